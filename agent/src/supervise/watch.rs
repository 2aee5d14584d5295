//! What may end an execution early: its cancel note, its deadline, a signal from outside; and its dying children.
//!
//! Invariant: signals are blocked before anything else happens and read from a descriptor, so that none is missed
//! and none interrupts a write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::clock;
use crate::spool::Folder;

/// Tells a supervisor to end although there is no cancel note, because none could be written.
pub(crate) const UNNOTED: Signal = Signal::SIGINT;

/// Why an execution ends before its steps are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Somebody cancelled it.
    Cancelled(String),
    /// The time allowed ran out.
    TimedOut(String),
    /// The supervisor was told to end without a note.
    Told,
}

impl Stop {
    /// For people.
    #[must_use]
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Cancelled(reason) | Self::TimedOut(reason) => reason.clone(),
            Self::Told => "the host told the supervisor to end, as it does when it shuts down".to_owned(),
        }
    }
}

/// The signals that a supervisor reads from its descriptor.
fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD])
}

/// Keeps signals from their default effects.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn block_signals() -> io::Result<()> {
    let mut blocked = signals();
    // A write beyond a file size limit then fails with an error that names the reason.
    blocked.add(Signal::SIGXFSZ);
    blocked.add(Signal::SIGHUP);
    Ok(blocked.thread_block()?)
}

/// Sees signals and the deadline.
#[derive(Debug)]
pub(crate) struct Watch {
    signals: SignalFd,
    folder: Folder,
    deadline_ms: u64,
    timeout_ms: u64,
    /// What has a time of its own: its name, its end by the monotonic clock, and how much it had.
    limited: Option<(String, u64, u64)>,
    stop: Option<Stop>,
}

impl Watch {
    /// Watches over an execution that may take until `deadline_ms` of the monotonic clock.
    ///
    /// # Errors
    /// The kernel refuses a descriptor.
    pub(crate) fn new(folder: &Folder, deadline_ms: u64, timeout_ms: u64) -> io::Result<Self> {
        let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let stop = note(folder);
        Ok(Self { signals, folder: folder.clone(), deadline_ms, timeout_ms, limited: None, stop })
    }

    /// The descriptor that becomes readable with a signal.
    #[must_use]
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Why it had to end before it began, if it had.
    #[must_use]
    pub(crate) fn stopped_by_note(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// Gives a step a time of its own, from now on.
    pub(crate) fn limit(&mut self, name: &str, timeout_ms: u64) {
        let ends_ms = clock::monotonic_ms().saturating_add(timeout_ms);
        self.limited = Some((name.to_owned(), ends_ms, timeout_ms));
    }

    /// The step is over.
    pub(crate) fn lift_limit(&mut self) {
        self.limited = None;
    }

    /// Milliseconds that are left.
    #[must_use]
    pub(crate) fn left_ms(&self) -> u64 {
        let ends_ms = self.limited.as_ref().map_or(u64::MAX, |(_, ends_ms, _)| *ends_ms);
        self.deadline_ms.min(ends_ms).saturating_sub(clock::monotonic_ms())
    }

    /// Whether the execution has to end; once it has, it stays so.
    pub(crate) fn stop(&mut self) -> Option<Stop> {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 && self.stop.is_none() {
                let is_unnoted = signal.ssi_signo == UNNOTED as u32;
                let why = || "ended by the server, or by its time; its host could not write down which".to_owned();
                let unnoted = if is_unnoted { Stop::Cancelled(why()) } else { Stop::Told };
                self.stop = Some(note(&self.folder).unwrap_or(unnoted));
            }
        }
        if self.stop.is_none() && self.left_ms() == 0 {
            let (whose, timeout_ms) = match &self.limited {
                Some((name, ends_ms, timeout_ms)) if *ends_ms < self.deadline_ms => (format!("of {name}"), *timeout_ms),
                _ => ("allowed".to_owned(), self.timeout_ms),
            };
            let seconds = timeout_ms.div_ceil(1000);
            self.stop = Some(Stop::TimedOut(format!("the time {whose} ({seconds} s) ran out")));
        }
        self.stop.clone()
    }

    /// Forgets dead children and gives the status of `wanted` if it is among them.
    pub(crate) fn reap(&self, wanted: Pid) -> Option<WaitStatus> {
        let mut found = None;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return found,
                Ok(status) if status.pid() == Some(wanted) => found = Some(status),
                Ok(_) => {}
            }
        }
    }

    /// Whether this process has no descendants left, as far as the kernel knows without looking closely.
    #[must_use]
    pub(crate) fn childless(&self) -> bool {
        self.reap(Pid::from_raw(0));
        waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD)
    }
}

fn note(folder: &Folder) -> Option<Stop> {
    let note = folder.cancel()?;
    Some(if note.timed_out { Stop::TimedOut(note.reason) } else { Stop::Cancelled(note.reason) })
}
