//! The agent's side of instances: a task that watches them, and processes that read their logs, a few at a time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use drover_shared::instance::{LogAnswer, LogOutcome, LogPiece, LogQuestion, Observation, PATH_BYTES_MAX, Watched};
use tokio::sync::{Notify, mpsc, watch};

use super::executions::Report;
use crate::instances::look::{self, Ask, Told, What};
use crate::instances::watch::{Watching, look_at};

/// Pause between two looks at what is watched.
const PAUSE: Duration = Duration::from_secs(2);
/// Logs that are read at a time, and that are followed.
const READS_MAX: usize = 4;
const FOLLOWS_MAX: usize = 16;
/// Time that reading may take beyond the wait.
const READING: Duration = Duration::from_secs(20);

/// What is watched and read.
pub(super) struct Instances {
    /// Folder of the agent.
    own: PathBuf,
    wanted: watch::Sender<Vec<Watched>>,
    reports: mpsc::Sender<Report>,
    reading: usize,
    following: usize,
}

impl Instances {
    /// Watches nothing yet. Looks right away whenever `ended` is notified.
    ///
    /// # Errors
    /// The agent's folder cannot be found.
    pub(super) fn start(data_dir: &Path, reports: mpsc::Sender<Report>, ended: Arc<Notify>) -> io::Result<Self> {
        let own = data_dir.canonicalize()?;
        let (wanted, changes) = watch::channel(Vec::new());
        tokio::spawn(keep_looking(changes, ended, reports.clone()));
        Ok(Self { own, wanted, reports, reading: 0, following: 0 })
    }

    /// Watches these from now on.
    pub(super) fn watch(&self, instances: Vec<Watched>) {
        self.wanted.send_replace(instances);
    }

    /// Nobody is there to hear of them.
    pub(super) fn disconnected(&self) {
        self.wanted.send_if_modified(|wanted| !std::mem::take(wanted).is_empty());
    }

    /// Has a piece of a log read; gives the answer at once when that cannot be.
    pub(super) fn read(&mut self, question: LogQuestion) -> Option<LogAnswer> {
        let LogQuestion { request, path, running_user, piece } = question;
        let wait_ms = match piece {
            LogPiece::Next { wait_ms, .. } => Some(wait_ms.min(drover_shared::instance::LOG_WAIT_MS_MAX)),
            _ => None,
        };
        let (count, most) = match wait_ms {
            Some(_) => (&mut self.following, FOLLOWS_MAX),
            None => (&mut self.reading, READS_MAX),
        };
        if *count >= most {
            return Some(LogAnswer { request, outcome: LogOutcome::Busy {} });
        }
        if path.len() > PATH_BYTES_MAX {
            let outcome = LogOutcome::Refused { reason: "the path is too long".to_owned() };
            return Some(LogAnswer { request, outcome });
        }
        *count += 1;
        let own = self.own.clone();
        let (reports, longest) = (self.reports.clone(), READING + Duration::from_millis(wait_ms.unwrap_or(0)));
        tokio::spawn(async move {
            let ask = Ask { running_user, what: What::Log { path, own, piece } };
            let outcome = match look::ask(&ask, longest).await {
                Ok(Told::Log(outcome)) => outcome,
                Ok(Told::Refused(reason)) | Err(reason) => LogOutcome::Refused { reason },
                Ok(Told::PidFiles(..)) => LogOutcome::Refused { reason: "its answer makes no sense".to_owned() },
            };
            let answer = Box::new(LogAnswer { request, outcome });
            let _ = reports.send(Report::Log { answer, followed: wait_ms.is_some() }).await;
        });
        None
    }

    /// A log was read.
    pub(super) fn done(&mut self, followed: bool) {
        let count = if followed { &mut self.following } else { &mut self.reading };
        *count = count.saturating_sub(1);
    }
}

async fn keep_looking(mut wanted: watch::Receiver<Vec<Watched>>, ended: Arc<Notify>, reports: mpsc::Sender<Report>) {
    let mut watching = Watching::default();
    loop {
        let is_idle = watching.is_empty();
        let changed = tokio::select! {
            changed = wanted.changed() => Some(changed),
            () = ended.notified(), if !is_idle => None,
            () = tokio::time::sleep(PAUSE), if !is_idle => None,
        };
        match changed {
            Some(Err(_)) => return,
            Some(Ok(())) => watching.set(&wanted.borrow_and_update()),
            None => {}
        }
        let tell = async |news: Vec<Observation>| {
            if !news.is_empty() {
                let _ = reports.send(Report::Observed(news)).await;
            }
        };
        tell(watching.look(look_at).await).await;
    }
}
