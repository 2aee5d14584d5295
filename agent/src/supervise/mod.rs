//! The supervisor: a small process for each execution that carries out its steps.
//!
//! It shares nothing with the agent but the spool folder, so that either may die without the other. Invariants: at
//! most one supervisor works on a folder, it starts the steps only if nobody has before, and it leaves a status
//! unless it is killed.

mod forms;
mod health;
mod leaf;
pub(crate) mod lost;
mod mask;
mod members;
pub mod processes;
mod script;
mod secrets;
mod spawn;
mod steps;
mod watch;

use std::io;
use std::path::Path;
use std::sync::Arc;

use drover_shared::message::{Finished, ProcessVerdict, StepEvent, StepOutcome};
use drover_shared::order::{Entry, Statement, Step};
use drover_shared::secret::Secrets;
use drover_shared::words::{ExecutionState, StepState};

use crate::clock;
use crate::log::LogWriter;
use crate::release;
use crate::spool::{Bound, Folder, Started, boot_id};
use lost::Obstacle;
use mask::Patterns;
use processes::{PIDS_MAX_DEFAULT, Session, Tree};
pub(crate) use secrets::{hand_over, hide};
pub(crate) use watch::UNNOTED;
use watch::{Stop, Watch};

/// Variable of a supervisor's environment that says how many processes its execution may have at a time.
pub const PIDS_MAX: &str = "DROVER_PIDS_MAX";

/// Tries for the lock: another process may hold it for a moment while it only looks.
const LOCK_TRIES: u32 = 10;

/// How a step ended.
#[derive(Debug)]
pub(crate) enum StepEnd {
    Succeeded { exit_code: Option<i32> },
    Failed { error: String, exit_code: Option<i32>, signal: Option<i32> },
    Stopped(Stop),
}

impl StepEnd {
    pub(crate) fn failed(error: String) -> Self {
        Self::Failed { error, exit_code: None, signal: None }
    }
}

/// What the steps of one execution share.
pub(crate) struct Context {
    pub(crate) folder: Folder,
    pub(crate) statement: Statement,
    pub(crate) entry: Entry,
    pub(crate) log: LogWriter,
    pub(crate) watch: Watch,
    pub(crate) tree: Tree,
    pub(crate) verdict: ProcessVerdict,
    pub(crate) secrets: Secrets,
    /// What is masked in output, if anything.
    pub(crate) patterns: Option<Arc<Patterns>>,
}

impl Context {
    /// Ends every process of the execution; `pause` passes the time meanwhile.
    pub(crate) fn end_processes(&mut self, pause: &mut dyn FnMut(&mut LogWriter, &Watch, u64)) {
        let (log, watch) = (&mut self.log, &self.watch);
        let verdict = self.tree.end(self.entry.kill_grace_ms, &mut |wait| pause(log, watch, wait));
        self.verdict = ProcessVerdict { ended: self.verdict.ended + verdict.ended, ..verdict };
    }
}

/// Runs the execution of a spool folder to its end. Gives whether there was anything to do.
///
/// # Errors
/// The folder cannot be read, or the outcome cannot be written.
pub fn supervise(path: &Path) -> io::Result<bool> {
    hide()?;
    watch::block_signals()?;
    let _ = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let folder = Folder::at(path);
    let Some(mut lock) = take_lock(&folder)? else { return Ok(false) };
    if folder.started()?.is_some() || folder.status()?.is_some() {
        return Ok(false);
    }
    let mut context = match sign(&mut lock).and_then(|()| prepare(folder.clone())) {
        Ok(context) => context,
        Err(error) => {
            let reason = format!("nothing was started: {}", crate::describe(&error));
            lost::never_started(&folder, &Obstacle::before_all(reason))?;
            return Ok(true);
        }
    };
    let finished = run(&mut context);
    conclude(&context.folder, &mut context.log, finished)?;
    Ok(true)
}

/// Makes log and outcome durable, both at once; the outcome gets its name when both are.
fn conclude(folder: &Folder, log: &mut LogWriter, mut finished: Finished) -> io::Result<()> {
    let (kept, drafted) = std::thread::scope(|scope| {
        let syncing = std::thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, || log.sync());
        let drafted = folder.draft_status(&finished);
        let kept = syncing.map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("the sync failed"))));
        (kept, drafted)
    });
    // Without a thread it goes one after the other.
    let kept = kept.unwrap_or_else(|_| log.sync());
    if let (Err(error), ExecutionState::Succeeded) = (&kept, finished.state) {
        finished.state = ExecutionState::Failed;
        finished.reason = Some(format!("the log cannot be kept: {}", crate::describe(error)));
        folder.draft_status(&finished)?;
    } else {
        drafted?;
    }
    folder.name_status()
}

fn take_lock(folder: &Folder) -> io::Result<Option<nix::fcntl::Flock<std::fs::File>>> {
    for _ in 0..LOCK_TRIES {
        if let Some(lock) = folder.lock()? {
            return Ok(Some(lock));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(None)
}

/// Writes down who holds the lock, for whoever wants to end it.
fn sign(lock: &mut std::fs::File) -> io::Result<()> {
    use std::io::Write as _;
    lock.set_len(0)?;
    lock.write_all(std::process::id().to_string().as_bytes())
}

fn prepare(folder: Folder) -> io::Result<Context> {
    let accepted = folder.accepted()?;
    let (statement, entry) = accepted.open()?;
    let boot_id = boot_id();
    let now = clock::now();
    let left = statement.timeout_ms.saturating_sub(accepted.elapsed_ms(&boot_id, now));
    let watch = Watch::new(&folder, now.monotonic_ms.saturating_add(left), statement.timeout_ms)?;
    let bound = accepted.spool_bytes_max.map(|bytes_max| Bound::of(&folder, bytes_max));
    let log = LogWriter::open(&folder.log(), entry.output_bytes_max)?.within(bound);
    // Without its secrets and its mark a hook must not start; with a cancel note or a failed fetch none is started.
    let starts = watch.stopped_by_note().is_none() && !failed_first(&folder.fetched()?, &entry.steps);
    let secrets = if entry.secrets.is_empty() { Secrets::default() } else { secrets::take_over()? };
    if starts {
        secrets.check(&entry.secrets).map_err(io::Error::other)?;
    }
    let patterns = Patterns::new(&secrets);
    let pids_max = std::env::var(PIDS_MAX).ok().and_then(|text| text.parse().ok()).unwrap_or(PIDS_MAX_DEFAULT);
    let tree = Tree::prepare(&format!("{}.{}", statement.execution_id, statement.attempt), pids_max);
    let started = Started { boot_id, cgroup: tree.cgroup().map(Path::to_owned), session: Session::own() };
    if let Err(error) = folder.write_started(&started, !accepted.at_once)
        && starts
    {
        tree.close();
        return Err(error);
    }
    let verdict = ProcessVerdict::default();
    Ok(Context { folder, statement, entry, log, watch, tree, verdict, secrets, patterns })
}

/// Whether a fetch failed before anything else has its turn.
fn failed_first(fetched: &[(usize, StepOutcome)], steps: &[Step]) -> bool {
    let first = steps.iter().position(|step| !matches!(step, Step::Fetch { .. })).unwrap_or(steps.len());
    fetched.iter().any(|(at, outcome)| *at < first && outcome.state == StepState::Failed)
}

fn run(context: &mut Context) -> Finished {
    let fetched = context.folder.fetched().unwrap_or_default();
    let steps = context.entry.steps.clone();
    let mut outcomes = Vec::with_capacity(steps.len());
    let mut failure: Option<String> = None;
    let mut stop = context.watch.stop();
    for (index, step) in steps.iter().enumerate() {
        let outcome = match fetched.iter().find(|(at, _)| *at == index) {
            Some((_, outcome)) if stop.is_none() && failure.is_none() => {
                let outcome = look_ahead(context, index, step, outcome.clone());
                stop = context.watch.stop();
                outcome
            }
            Some((_, outcome)) => outcome.clone(),
            None if failure.is_some() || stop.is_some() => skipped(step, context.log.length()),
            None => {
                let (outcome, stopped) = one_step(context, u16::try_from(index).unwrap_or(u16::MAX), step);
                stop = stopped.or_else(|| context.watch.stop());
                outcome
            }
        };
        if outcome.state == StepState::Failed && failure.is_none() {
            failure = Some(explain(step, outcome.error.as_deref().unwrap_or("failed")));
        }
        outcomes.push(outcome);
    }
    if stop.is_some() && outcomes.iter().all(|outcome| outcome.state == StepState::Succeeded) {
        // The last step was done before the stop came.
        stop = None;
    }
    finish(context, outcomes, failure, stop)
}

/// A download that went well, unless what was downloaded has no room: that is said before a script stops anything.
fn look_ahead(context: &mut Context, index: usize, step: &Step, mut outcome: StepOutcome) -> StepOutcome {
    if outcome.state != StepState::Succeeded {
        return outcome;
    }
    let Err(error) = steps::check_room(context, index) else { return outcome };
    if context.watch.stop().is_some() {
        return outcome;
    }
    let at = u16::try_from(index).unwrap_or(u16::MAX);
    let state = StepState::Failed;
    let event = StepEvent { step: step.name().to_owned(), state, exit_code: None, error: Some(error.clone()) };
    let _ = context.log.notice(at, &explain(step, &error)).and_then(|()| context.log.event(at, &event));
    let _ = context.log.flush();
    outcome.log_end = context.log.length();
    StepOutcome { state, error: Some(error), ..outcome }
}

fn finish(context: &mut Context, steps: Vec<StepOutcome>, failure: Option<String>, stop: Option<Stop>) -> Finished {
    let last = u16::try_from(steps.len().saturating_sub(1)).unwrap_or(0);
    if let Some(stop) = &stop {
        if !context.watch.childless() {
            context.end_processes(&mut |log, watch, wait| {
                let _ = log.flush();
                pass(watch, wait);
            });
        }
        let survivors = context.verdict.survivors_total;
        let (reason, ended) = (stop.reason(), context.verdict.ended);
        let line = format!("stopped: {reason} ({ended} processes ended, {survivors} left){}", in_use(&context.entry));
        let _ = context.log.notice(last, &line);
    } else if !context.watch.childless() && context.tree.alive() {
        context.verdict.left_running = true;
    }
    if !context.verdict.left_running {
        context.tree.close();
    }
    context.verdict.certain = context.tree.is_certain();
    let log_kept = context.log.flush();
    let (state, reason) = match (&stop, failure) {
        (Some(Stop::Cancelled(reason)), _) => (ExecutionState::Cancelled, Some(reason.clone())),
        (Some(Stop::TimedOut(reason)), _) => (ExecutionState::TimedOut, Some(reason.clone())),
        (Some(stop @ Stop::Told), _) => (ExecutionState::Failed, Some(stop.reason())),
        (None, Some(reason)) => (ExecutionState::Failed, Some(reason)),
        (None, None) => match log_kept {
            Ok(()) => (ExecutionState::Succeeded, None),
            Err(error) => {
                (ExecutionState::Failed, Some(format!("the log cannot be kept: {}", crate::describe(&error))))
            }
        },
    };
    Finished {
        execution_id: context.statement.execution_id.clone(),
        attempt: context.statement.attempt,
        state,
        reason: reason.map(|reason| with_survivors(reason, &context.verdict)),
        steps,
        log_length: context.log.length(),
        output_truncated: context.log.truncated(),
        processes: context.verdict.clone(),
        releases: context.entry.deploy_path.as_deref().and_then(|path| release::Layout::new(path).list()),
    }
}

/// Which release is in use when an execution that could have changed that is stopped, as the end of a line.
fn in_use(entry: &Entry) -> String {
    let switches = entry.steps.iter().any(|step| matches!(step, Step::Switch { .. }));
    let Some(path) = entry.deploy_path.as_deref().filter(|_| switches) else { return String::new() };
    let name = release::Layout::new(path).current_name();
    format!("; current is {}", name.as_deref().unwrap_or("no release"))
}

/// A reason, and what could not be ended.
pub(crate) fn with_survivors(reason: String, verdict: &ProcessVerdict) -> String {
    let listed = verdict.survivors.join(", ");
    let more = match (verdict.survivors_total as usize).saturating_sub(verdict.survivors.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match verdict.survivors_total {
        0 => reason,
        1 => format!("{reason}; 1 process survived: {listed}"),
        total => format!("{reason}; {total} processes survived: {listed}{more}"),
    }
}

/// Waits for a signal or until the time is over, and forgets dead children.
fn pass(watch: &Watch, wait_ms: u64) {
    std::thread::sleep(std::time::Duration::from_millis(wait_ms));
    watch.reap(nix::unistd::Pid::from_raw(0));
}

fn one_step(context: &mut Context, index: u16, step: &Step) -> (StepOutcome, Option<Stop>) {
    let begun = clock::now();
    let log_start = context.log.length();
    let event = |state, exit_code, error| StepEvent { step: step.name().to_owned(), state, exit_code, error };
    // The first flush also shows the start at once; a log that cannot be written fails the step before it begins.
    let opened = context.log.event(index, &event(StepState::Running, None, None)).and_then(|()| context.log.flush());
    let end = match opened {
        Ok(()) => steps::carry_out(context, index, step),
        Err(error) => StepEnd::failed(format!("its output cannot be kept: {}", crate::describe(&error))),
    };
    let (state, exit_code, signal, error, stop) = match end {
        StepEnd::Succeeded { exit_code } => (StepState::Succeeded, exit_code, None, None, None),
        StepEnd::Failed { error, exit_code, signal } => (StepState::Failed, exit_code, signal, Some(error), None),
        StepEnd::Stopped(stop) => {
            (StepState::Failed, None, None, Some(format!("stopped: {}", stop.reason())), Some(stop))
        }
    };
    if let Some(error) = &error {
        let _ = context.log.notice(index, &explain(step, error));
    }
    let _ = context.log.event(index, &event(state, exit_code, error.clone()));
    let _ = context.log.flush();
    let outcome = StepOutcome {
        name: step.name().to_owned(),
        state,
        exit_code,
        signal,
        error,
        started_ms: Some(begun.wall_ms),
        duration_ms: Some(clock::monotonic_ms().saturating_sub(begun.monotonic_ms)),
        log_start,
        log_end: context.log.length(),
    };
    (outcome, stop)
}

/// A sentence that names the step: `pre_exec exited with status 3`, `unpack: the disk is full`.
pub(crate) fn explain(step: &Step, error: &str) -> String {
    match step {
        Step::Script { name, .. } => format!("{name} {error}"),
        Step::Fetch { .. }
        | Step::Unpack { .. }
        | Step::Verify { .. }
        | Step::Switch { .. }
        | Step::Health { .. }
        | Step::Prune { .. } => {
            format!("{}: {error}", step.name())
        }
    }
}

pub(crate) fn skipped(step: &Step, at: u64) -> StepOutcome {
    StepOutcome {
        name: step.name().to_owned(),
        state: StepState::Skipped,
        exit_code: None,
        signal: None,
        error: None,
        started_ms: None,
        duration_ms: None,
        log_start: at,
        log_end: at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_what_survived() {
        let told = |survivors: &[&str], survivors_total| {
            let survivors = survivors.iter().map(|one| (*one).to_owned()).collect();
            let verdict = ProcessVerdict { survivors, survivors_total, ..ProcessVerdict::default() };
            with_survivors("cancelled by ada".to_owned(), &verdict)
        };
        assert_eq!(told(&[], 0), "cancelled by ada");
        assert_eq!(told(&["17 mount.nfs (D)"], 1), "cancelled by ada; 1 process survived: 17 mount.nfs (D)");
        assert_eq!(
            told(&["17 a (D)", "18 b (S)"], 9),
            "cancelled by ada; 9 processes survived: 17 a (D), 18 b (S) and 7 more"
        );
    }
}
