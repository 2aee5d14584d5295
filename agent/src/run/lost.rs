//! Outcomes that no supervisor wrote: of executions that were lost, and of those that never started.

use std::io;
use std::time::Duration;

use drover_shared::message::{Finished, ProcessVerdict, StepEvent, StepOutcome};
use drover_shared::words::{ExecutionState, StepState};

use crate::log::{LogWriter, events};
use crate::release::Layout;
use crate::spool::{Folder, Key, Started};
use crate::supervise::processes::Tree;
use crate::supervise::skipped;

/// An execution whose supervisor is gone.
pub(super) struct Case {
    /// Its spool folder.
    pub(super) folder: Folder,
    /// Who started it.
    pub(super) started: Started,
    /// Id of this boot.
    pub(super) boot_id: String,
}

/// Ends what is left of a lost execution and writes its outcome.
///
/// # Errors
/// The spool cannot be read or written.
pub(super) fn settle(key: &Key, case: &Case) -> io::Result<Finished> {
    let restarted = case.started.boot_id != case.boot_id;
    let reason = if restarted {
        "the host was restarted while this ran: how it ended is not known"
    } else {
        "the supervisor died while this ran: how it ended is not known"
    };
    let accepted = case.folder.accepted()?;
    let (_, entry) = accepted.open().map_err(io::Error::other)?;
    let processes = if restarted {
        ProcessVerdict { certain: true, ..ProcessVerdict::default() }
    } else {
        let tree = Tree::orphaned(case.started.cgroup.clone(), key);
        tree.end(entry.kill_grace_ms, &mut |wait| std::thread::sleep(Duration::from_millis(wait)))
    };
    write(&case.folder, ExecutionState::Lost, reason.to_owned(), processes)
}

/// Writes the outcome of an execution that no supervisor could be started for.
///
/// # Errors
/// The spool cannot be read or written.
pub(super) fn never_started(folder: &Folder, reason: String) -> io::Result<Finished> {
    write(folder, ExecutionState::Failed, reason, ProcessVerdict { certain: true, ..ProcessVerdict::default() })
}

fn write(folder: &Folder, state: ExecutionState, reason: String, processes: ProcessVerdict) -> io::Result<Finished> {
    let accepted = folder.accepted()?;
    let (statement, entry) = accepted.open().map_err(io::Error::other)?;
    let mut log = LogWriter::open(&folder.log(), u64::MAX)?;
    let mut steps: Vec<StepOutcome> = entry.steps.iter().map(|step| skipped(step, log.length())).collect();
    for (index, at, time_ms, event) in events(&folder.log())? {
        let Some(step) = steps.get_mut(usize::from(index)) else { continue };
        apply(step, at, time_ms, &event, log.length(), &reason);
    }
    let last = steps.iter().rposition(|step| step.state != StepState::Skipped).unwrap_or(0);
    // On a full disk the line is left out, and the outcome still written.
    let _ = log.notice(u16::try_from(last).unwrap_or(0), &reason).and_then(|()| log.sync());
    let finished = Finished {
        execution_id: statement.execution_id,
        attempt: statement.attempt,
        state,
        reason: Some(reason),
        steps,
        log_length: log.length(),
        output_truncated: false,
        processes,
        releases: entry.deploy_path.as_deref().and_then(|path| Layout::new(path).list()),
    };
    folder.write_status(&finished)?;
    Ok(finished)
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
