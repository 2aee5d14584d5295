//! Health steps: asks until the host says that what was started works, or has said often enough that it does not.
//!
//! Invariant: a question that hangs costs no more than its own timeout, and a stop is noticed while one is open.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use drover_shared::order::{Probe, Step};
use drover_shared::words::Language;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock;
use crate::supervise::script::{self, Script};
use crate::supervise::watch::Watch;
use crate::supervise::{Context, StepEnd};

/// How often a stop is looked for while a question is open, in milliseconds.
const LOOK_MS: u64 = 50;

/// Carries out a health step.
pub(crate) fn check(context: &mut Context, index: u16, step: &Step) -> StepEnd {
    let Step::Health { probe, interval_ms, timeout_ms, retries, successes, running_user } = step else {
        return StepEnd::failed("this is no health step".to_owned());
    };
    let mut good = 0;
    let mut last = "it was never asked".to_owned();
    for attempt in 1..=*retries {
        let asked = clock::monotonic_ms();
        let answer = match probe {
            Probe::Command { content } => {
                match command(context, index, content, *timeout_ms, running_user.as_deref()) {
                    StepEnd::Succeeded { .. } => Ok(()),
                    // Not told by its status, which a command may have of its own accord.
                    StepEnd::Failed { .. } if clock::monotonic_ms() >= asked + limit_s(*timeout_ms) * 1_000 => {
                        Err(format!("no answer within {timeout_ms} ms"))
                    }
                    StepEnd::Failed { error, .. } => Err(format!("the command {error}")),
                    StepEnd::Stopped(stop) => return StepEnd::Stopped(stop),
                }
            }
            Probe::Http { url } => {
                let (url, timeout) = (url.clone(), Duration::from_millis(*timeout_ms));
                match aside(&mut context.watch, *timeout_ms, move || http(&url, timeout)) {
                    Some(answer) => answer,
                    None => break,
                }
            }
            Probe::Tcp { address } => {
                let (address, timeout) = (address.clone(), Duration::from_millis(*timeout_ms));
                match aside(&mut context.watch, *timeout_ms, move || tcp(&address, timeout)) {
                    Some(answer) => answer,
                    None => break,
                }
            }
        };
        if let Some(stop) = context.watch.stop() {
            return StepEnd::Stopped(stop);
        }
        let line = match &answer {
            Ok(()) => format!("health: good answer, attempt {attempt} of {retries}"),
            Err(reason) => format!("health: {reason}, attempt {attempt} of {retries}"),
        };
        let _ = context.log.notice(index, &line).and_then(|()| context.log.flush());
        match answer {
            Ok(()) => good += 1,
            Err(reason) => (good, last) = (0, reason),
        }
        if good >= *successes {
            return StepEnd::Succeeded { exit_code: None };
        }
        if attempt < *retries {
            pause(&mut context.watch, *interval_ms);
        }
        if let Some(stop) = context.watch.stop() {
            return StepEnd::Stopped(stop);
        }
    }
    match context.watch.stop() {
        Some(stop) => StepEnd::Stopped(stop),
        None => StepEnd::failed(format!("not healthy after {retries} questions: {last}")),
    }
}

/// A command under a time limit of its own, so that nothing else of the execution has to end with it.
fn command(context: &mut Context, index: u16, content: &str, timeout_ms: u64, user: Option<&str>) -> StepEnd {
    let limit_s = Some(limit_s(timeout_ms));
    let (name, language, running_user) = ("health", Language::Bash, user);
    let script = Script { index, name, language, content, running_user, limit_s, timeout_ms: None };
    script::run(context, script)
}

fn limit_s(timeout_ms: u64) -> u64 {
    timeout_ms.div_ceil(1000).max(1)
}

/// Asks on a thread of its own; none when the execution has to stop meanwhile. A thread that hangs ends with the
/// process.
fn aside(
    watch: &mut Watch,
    timeout_ms: u64,
    ask: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Option<Result<(), String>> {
    let (sender, answer) = mpsc::sync_channel(1);
    std::thread::spawn(move || drop(sender.try_send(ask())));
    let until = clock::monotonic_ms().saturating_add(timeout_ms);
    loop {
        match answer.recv_timeout(Duration::from_millis(LOOK_MS)) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Disconnected) => return Some(Err("the question could not be asked".to_owned())),
            Err(RecvTimeoutError::Timeout) if watch.stop().is_some() => return None,
            Err(RecvTimeoutError::Timeout) if clock::monotonic_ms() >= until => {
                return Some(Err(format!("no answer within {timeout_ms} ms")));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn http(url: &str, timeout: Duration) -> Result<(), String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .max_redirects(0)
        .max_redirects_will_error(false)
        // The host itself is asked, whatever the agent was started with.
        .proxy(None)
        .http_status_as_error(false)
        .build();
    match ureq::Agent::new_with_config(config).get(url).call() {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("{url} answered {}", answer.status().as_u16())),
        Err(error) => Err(format!("{url}: {error}")),
    }
}

fn tcp(address: &str, timeout: Duration) -> Result<(), String> {
    let describe = |error: io::Error| format!("{address}: {error}");
    let mut last = format!("{address} is no address");
    for one in address.to_socket_addrs().map_err(describe)? {
        match TcpStream::connect_timeout(&one, timeout) {
            Ok(_) => return Ok(()),
            Err(error) => last = describe(error),
        }
    }
    Err(last)
}

/// Passes the time between two questions, unless the execution has to stop.
fn pause(watch: &mut Watch, wait_ms: u64) {
    let until = clock::monotonic_ms().saturating_add(wait_ms);
    while watch.stop().is_none() {
        let left = until.saturating_sub(clock::monotonic_ms()).min(watch.left_ms());
        if left == 0 {
            return;
        }
        watch.reap(nix::unistd::Pid::from_raw(0));
        let timeout = PollTimeout::try_from(u32::try_from(left.min(1_000)).unwrap_or(1_000));
        let _ = poll(&mut [PollFd::new(watch.descriptor(), PollFlags::POLLIN)], timeout.unwrap_or(PollTimeout::ZERO));
    }
}
