//! Fetch steps: done here, before an execution gets its supervisor.
//!
//! Invariant: the outcome of a fetch step is in the spool before anything else of its execution starts.

use std::collections::BTreeSet;
use std::io;

use drover_shared::Digest;
use drover_shared::message::{StepEvent, StepOutcome};
use drover_shared::order::{Entry, Step};
use drover_shared::words::StepState;

use super::cache::{Done, Job, Progress, Shortcut, Wanted};
use super::executions::{Executions, Report, Stage};
use crate::clock;
use crate::describe;
use crate::log::LogWriter;
use crate::release::{Layout, check_path};
use crate::session::Session;
use crate::spool::{Folder, Key};
use crate::supervise::lost::Obstacle;
use crate::supervise::skipped;

impl Executions {
    /// Brings the artifacts that are missing, one after the other, then lets the supervisor have it.
    pub(super) fn advance(&mut self, key: &Key, session: &mut Session) {
        loop {
            let Some(execution) = self.all.get_mut(key) else { return };
            let Some(entry) = execution.entry.as_deref() else { return };
            let fetched = execution.folder.fetched().unwrap_or_default();
            let failed = fetched.iter().any(|(_, outcome)| outcome.state == StepState::Failed);
            let missing = entry.steps.iter().enumerate().find_map(|(at, step)| match step {
                Step::Fetch { digest, size_bytes, index } if !fetched.iter().any(|(done, _)| *done == at) => {
                    Some((at, *digest, *size_bytes, *index))
                }
                _ => None,
            });
            let stopping = execution.folder.cancel().is_some();
            let Some((index, digest, size, of)) = missing.filter(|_| !failed && !stopping) else {
                if execution.secrets.is_none() && !failed && !stopping {
                    execution.stage = Stage::AwaitingSecrets;
                    return;
                }
                execution.stage = Stage::Queued;
                self.queue.push_back(key.clone());
                return self.start_queued(session);
            };
            let shortcut = of.zip(entry.deploy_path.as_deref()).filter(|(_, path)| check_path(path).is_ok());
            let shortcut = shortcut.map(|(index, path)| Shortcut { index, layout: Layout::new(path) });
            let wanted = self.cache.want(digest, size, shortcut, key);
            if wanted == Wanted::Here {
                self.end_fetch(key, index, Ok("is on this host already".to_owned()), session);
                continue;
            }
            execution.stage = Stage::Fetching;
            if let Err(error) = begin_fetch(&execution.folder, index, size, wanted == Wanted::InLine) {
                tracing::warn!(%key, %error, "the fetch cannot be noted in the log");
            }
            self.grew(key, session);
            return self.start_downloads(session);
        }
    }

    /// Starts downloads as long as there is room for more.
    fn start_downloads(&mut self, session: &mut Session) {
        while let Some(next) = self.cache.next_job() {
            match next {
                Ok(job) => self.employ(job),
                Err((digest, progress)) => self.progressed(digest, progress, session),
            }
        }
    }

    fn employ(&self, job: Job) {
        let reports = self.reports.clone();
        tokio::task::spawn_blocking(move || {
            let _ = reports.blocking_send(Report::Cache(Box::new(job.run())));
        });
    }

    /// An execution no longer waits for artifacts.
    pub(super) fn leave_downloads(&mut self, key: &Key, session: &mut Session) {
        let left = self.cache.leave(key);
        for digest in left.idle {
            session.fetch_done(digest);
        }
        for (digest, other) in left.others {
            session.fetch_for(digest, &other.execution_id);
        }
        self.start_downloads(session);
    }

    /// Writes how a fetch ended into log and spool.
    fn end_fetch(&mut self, key: &Key, index: usize, outcome: Result<String, String>, session: &mut Session) {
        let Some(execution) = self.all.get(key) else { return };
        if let Err(error) = note_fetch(&execution.folder, index, outcome.clone()) {
            tracing::error!(%key, %error, "the outcome of a fetch cannot be kept");
            // Without it the execution cannot go on as if nothing had happened, and a supervisor has nothing to add.
            let reason = outcome.err().unwrap_or_else(|| describe(&error));
            return self.give_up(key, Obstacle { step: Some(index), ..Obstacle::before_all(reason) }, session);
        }
        self.grew(key, session);
    }

    /// A piece of an artifact came.
    pub(super) fn artifact(&mut self, digest: Digest, offset: u64, bytes: &[u8], session: &mut Session) {
        match self.cache.write(digest, offset, bytes) {
            None => session.fetch_done(digest),
            Some(progress) => self.progressed(digest, progress, session),
        }
    }

    /// The server has no more of an artifact than what came up to this offset.
    pub(super) fn artifact_ended(&mut self, digest: Digest, end: u64, session: &mut Session) {
        if let Some(progress) = self.cache.ended(digest, end) {
            self.progressed(digest, progress, session);
        }
    }

    /// The server has no such artifact.
    pub(super) fn artifact_refused(&mut self, digest: Digest, reason: &str, session: &mut Session) {
        let progress = self.cache.refused(digest, reason);
        self.progressed(digest, progress, session);
    }

    /// Work on a download is done.
    pub(super) fn cache_done(&mut self, done: Done, session: &mut Session) {
        if let Some((digest, progress)) = self.cache.done(done) {
            self.progressed(digest, progress, session);
        }
    }

    fn progressed(&mut self, digest: Digest, progress: Progress, session: &mut Session) {
        let (waiting, outcome) = match progress {
            Progress::Ask(part, offset, key) => return session.fetch(digest, part, offset, &key.execution_id),
            Progress::Again(reason) => {
                session.fetch_done(digest);
                tracing::info!(%digest, reason, "all of an artifact is fetched");
                return self.start_downloads(session);
            }
            Progress::Written(offset) => return session.artifact_written(digest, offset),
            Progress::Whole => {
                session.fetch_done(digest);
                return match self.cache.close(digest) {
                    Ok(job) => self.employ(job),
                    Err(progress) => self.progressed(digest, progress, session),
                };
            }
            Progress::Complete(waiting, line) => {
                (waiting, Ok(line.map_or_else(|| "verified".to_owned(), |line| format!("verified; {line}"))))
            }
            Progress::Failed(waiting, reason) => {
                session.fetch_done(digest);
                (waiting, Err(reason))
            }
        };
        self.fetched(waiting, digest, &outcome, session);
        self.start_downloads(session);
    }

    fn fetched(
        &mut self,
        waiting: BTreeSet<Key>,
        digest: Digest,
        outcome: &Result<String, String>,
        session: &mut Session,
    ) {
        for key in waiting {
            let Some(execution) = self.all.get(&key) else { continue };
            let done: Vec<usize> = execution.folder.fetched().unwrap_or_default().iter().map(|(at, _)| *at).collect();
            let steps = execution.entry.as_deref().map_or(&[][..], |entry| &entry.steps);
            let index = steps.iter().enumerate().position(|(at, step)| {
                matches!(step, Step::Fetch { digest: wanted, .. } if *wanted == digest) && !done.contains(&at)
            });
            if let Some(index) = index {
                self.end_fetch(&key, index, outcome.clone(), session);
            }
            self.advance(&key, session);
        }
    }
}

/// What an entry needs of the cache.
pub(super) fn artifacts(entry: &Entry) -> BTreeSet<Digest> {
    let digest = |step: &Step| match step {
        Step::Fetch { digest, .. } | Step::Unpack { digest, .. } => Some(*digest),
        Step::Script { .. } | Step::Verify { .. } | Step::Switch { .. } | Step::Health { .. } | Step::Prune { .. } => {
            None
        }
    };
    entry.steps.iter().filter_map(digest).collect()
}

fn begin_fetch(folder: &Folder, index: usize, size: u64, in_line: bool) -> io::Result<()> {
    let step = u16::try_from(index).unwrap_or(u16::MAX);
    let mut log = LogWriter::open(&folder.log(), u64::MAX)?;
    if log.length() == 0 {
        let event = StepEvent { step: "fetch".to_owned(), state: StepState::Running, exit_code: None, error: None };
        log.event(step, &event)?;
        let turn = if in_line { ", after those of other executions" } else { "" };
        log.notice(step, &format!("fetch: {size} bytes{turn}"))?;
    } else {
        log.notice(step, "fetch: goes on")?;
    }
    log.flush()
}

fn note_fetch(folder: &Folder, index: usize, outcome: Result<String, String>) -> io::Result<()> {
    let accepted = folder.accepted()?;
    let mut fetched = folder.fetched()?;
    let step = u16::try_from(index).unwrap_or(u16::MAX);
    let mut log = LogWriter::open(&folder.log(), u64::MAX)?;
    let log_start = fetched.last().map_or(0, |(_, outcome)| outcome.log_end);
    let event = |state, error| StepEvent { step: "fetch".to_owned(), state, exit_code: None, error };
    if log.length() == log_start {
        log.event(step, &event(StepState::Running, None))?;
    }
    let (state, line, error) = match outcome {
        Ok(line) => (StepState::Succeeded, line, None),
        Err(reason) => (StepState::Failed, reason.clone(), Some(reason)),
    };
    log.notice(step, &format!("fetch: {line}"))?;
    log.event(step, &event(state, error.clone()))?;
    log.sync()?;
    let now = clock::now();
    let elapsed = accepted.elapsed_ms(&crate::spool::boot_id(), now);
    let blank = skipped(&Step::Fetch { digest: Digest::of(b""), size_bytes: 0, index: None }, log_start);
    let (started_ms, duration_ms, log_end) = (Some(accepted.wall_ms), Some(elapsed), log.length());
    fetched.push((index, StepOutcome { state, error, started_ms, duration_ms, log_end, ..blank }));
    folder.write_fetched(&fetched)
}
