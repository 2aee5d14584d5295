//! Outcomes without a run: of executions whose supervisor is gone, and of those that never started.
//!
//! Invariant: the outcome is written though the disk is full, as long as the space set aside for it is there.

use std::io;

use drover_shared::limits::OUTPUT_IN_FLIGHT_BYTES_MAX;
use drover_shared::message::{Finished, ProcessVerdict, StepEvent, StepOutcome};
use drover_shared::order::Entry;
use drover_shared::planted::{self, Bug};
use drover_shared::words::{ExecutionState, StepState};

use crate::log::{LogWriter, events};
use crate::release::Layout;
use crate::run::Host;
use crate::spool::{CancelNote, Folder, Key, Started};
use crate::supervise::{explain, skipped, with_survivors};

/// Time that processes get to end by themselves when nobody can read how long they may take, in milliseconds.
const KILL_GRACE_MS: u64 = 10_000;

/// An execution whose supervisor is gone.
pub(crate) struct Case {
    /// Its spool folder.
    pub(crate) folder: Folder,
    /// Who started it.
    pub(crate) started: Started,
    /// Id of this boot.
    pub(crate) boot_id: String,
}

/// Why an execution never started.
#[derive(Debug, Clone)]
pub(crate) struct Obstacle {
    /// The step that failed, if one had its turn already.
    pub(crate) step: Option<usize>,
    /// For people.
    pub(crate) reason: String,
    /// How it ends.
    pub(crate) state: ExecutionState,
}

impl Obstacle {
    /// One before any step.
    pub(crate) fn before_all(reason: String) -> Self {
        Self { step: None, reason, state: ExecutionState::Failed }
    }

    /// Somebody ended it, or its time was over.
    pub(crate) fn ended(note: CancelNote) -> Self {
        let state = if note.timed_out { ExecutionState::TimedOut } else { ExecutionState::Cancelled };
        Self { step: None, reason: note.reason, state }
    }
}

/// Ends what is left of a lost execution and writes its outcome.
///
/// # Errors
/// The spool cannot be read or written.
pub(crate) fn settle(key: &Key, case: &Case, host: &dyn Host) -> io::Result<Finished> {
    // A mark that a loss of power tore says nothing; the order was there before it.
    let boot_id = match case.started.boot_id.as_str() {
        "" => case.folder.accepted().map(|accepted| accepted.boot_id).unwrap_or_default(),
        boot_id => boot_id.to_owned(),
    };
    let restarted = !boot_id.is_empty() && boot_id != case.boot_id;
    let reason = if restarted {
        "the host was restarted while this ran: how it ended is not known".to_owned()
    } else {
        format!(
            "the supervisor died while this ran: how it ended is not known, and up to {} KiB of its last output may be missing",
            OUTPUT_IN_FLIGHT_BYTES_MAX / 1024
        )
    };
    let grace_ms = read_entry(&case.folder)?.map_or(KILL_GRACE_MS, |entry| entry.kill_grace_ms);
    let processes = if restarted || planted::has(Bug::OrphansLiveOn) {
        ProcessVerdict { certain: true, ..ProcessVerdict::default() }
    } else {
        host.end_orphans(&case.started, key, grace_ms)
    };
    let reason = with_survivors(reason, &processes);
    write(key, &case.folder, &Obstacle { state: ExecutionState::Lost, ..Obstacle::before_all(reason) }, processes)
}

/// Writes the outcome of an execution that could not be started.
///
/// # Errors
/// The spool cannot be read or written.
pub(crate) fn never_started(folder: &Folder, obstacle: &Obstacle) -> io::Result<Finished> {
    let key = folder.key().ok_or_else(|| io::Error::other("the spool folder is not named after an execution"))?;
    write(&key, folder, obstacle, ProcessVerdict { certain: true, ..ProcessVerdict::default() })
}

fn write(key: &Key, folder: &Folder, obstacle: &Obstacle, processes: ProcessVerdict) -> io::Result<Finished> {
    let entry = read_entry(folder)?;
    let all_steps = entry.as_ref().map_or(&[][..], |entry| &entry.steps);
    let mut log = LogWriter::open(&folder.log(), u64::MAX)?;
    let mut steps: Vec<StepOutcome> = all_steps.iter().map(|step| skipped(step, log.length())).collect();
    for (index, at, time_ms, event) in events(&folder.log())? {
        let Some(step) = steps.get_mut(usize::from(index)) else { continue };
        apply(step, at, time_ms, &event, log.length(), &obstacle.reason);
    }
    let mut reason = obstacle.reason.clone();
    if let Some((step, outcome)) = obstacle.step.and_then(|at| all_steps.get(at).zip(steps.get_mut(at))) {
        outcome.state = StepState::Failed;
        outcome.error = Some(obstacle.reason.clone());
        reason = explain(step, &obstacle.reason);
    }
    let last = steps.iter().rposition(|step| step.state != StepState::Skipped).unwrap_or(0);
    // On a full disk the line is left out, and the outcome still written.
    let _ = log.notice(u16::try_from(last).unwrap_or(0), &reason).and_then(|()| log.sync());
    let finished = Finished {
        execution_id: key.execution_id.clone(),
        attempt: key.attempt,
        state: obstacle.state,
        reason: Some(reason),
        steps,
        log_length: log.length(),
        output_truncated: false,
        processes,
        releases: entry.and_then(|entry| entry.deploy_path).and_then(|path| Layout::new(&path).list()),
    };
    folder.write_status(&finished)?;
    Ok(finished)
}

/// What was to be done; none when the order is damaged, which must not keep its end from being told.
fn read_entry(folder: &Folder) -> io::Result<Option<Entry>> {
    match folder.accepted().and_then(|accepted| accepted.open()) {
        Ok((_, entry)) => Ok(Some(entry)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

fn apply(step: &mut StepOutcome, at: u64, time_ms: i64, event: &StepEvent, length: u64, reason: &str) {
    if event.state == StepState::Running {
        step.state = StepState::Failed;
        step.error = Some(reason.to_owned());
        step.started_ms = Some(time_ms);
        (step.log_start, step.log_end) = (at, length);
    } else {
        step.state = event.state;
        step.exit_code = event.exit_code;
        step.error.clone_from(&event.error);
        step.duration_ms = step.started_ms.and_then(|started| u64::try_from(time_ms - started).ok());
        step.log_end = at;
    }
}
