//! The executions that the agent answers for, from the spool's side.
//!
//! Invariant: what the session is told about an execution is what its spool folder says.

mod recovery;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use drover_shared::Digest;
use drover_shared::instance::{LogAnswer, Observation};
use drover_shared::message::{Finished, Inspected};
use drover_shared::order::{Entry, Order, Step};
use drover_shared::secret::Secrets;
use tokio::sync::Notify;

use super::cache::{Cache, Done};
use super::fetching::artifacts;
use super::host::Host;
use super::watcher::{Watcher, Watches};
use crate::clock;
use crate::describe;
use crate::session::{NewOrder, Session};
use crate::spool::{Accepted, CancelNote, Folder, Key, Spool, Standing, TAKEN_BYTES, taken};
use crate::supervise::lost::{self, Obstacle};

/// Supervisors at work at a time; the others wait their turn.
const RUNNING_MAX: usize = 128;

/// Where an execution stands for the agent.
pub(super) enum Stage {
    /// Artifacts are on their way.
    Fetching,
    /// Ready but for its secrets, which an earlier agent had in memory.
    AwaitingSecrets,
    /// Waits for its turn.
    Queued,
    /// A supervisor is at work; `own` if this process started it.
    Running { own: bool },
    /// What a dead supervisor left is being ended.
    Ending,
    /// Over.
    Finished,
}

pub(super) struct Execution {
    pub(super) folder: Folder,
    order_bytes: u64,
    pub(super) stage: Stage,
    /// When its time is over, by the monotonic clock.
    deadline_ms: u64,
    timeout_ms: u64,
    /// Its steps, until they are a supervisor's business.
    pub(super) entry: Option<Box<Entry>>,
    /// Values that its scripts need, until they are a supervisor's business; none if they are not here.
    pub(super) secrets: Option<Secrets>,
    /// What it needs of the cache.
    artifacts: BTreeSet<Digest>,
    log: Option<File>,
    watch: Option<Watches>,
    discard: bool,
    /// Why it never started, while that cannot be written.
    obstacle: Option<Obstacle>,
    /// Whether its supervisor has to be told of a cancel note.
    untold: bool,
}

impl Execution {
    /// Has the supervisor look at its cancel note. When nobody can say whether it lives, its process id may be anybody's
    /// by now, and the sweep tries again.
    fn tell(&mut self, host: &dyn Host) {
        match self.folder.supervised() {
            Ok(lives) => {
                self.untold = false;
                if let Some(pid) = self.folder.supervisor().filter(|_| lives) {
                    host.tell(pid, self.folder.cancel().is_some());
                }
            }
            Err(error) => {
                tracing::error!(folder = %self.folder.path().display(), %error, "the supervisor cannot be told to end");
                self.untold = true;
                self.stage = Stage::Running { own: false };
            }
        }
    }
}

/// Length of an order in bytes, about.
fn length(order: &Order) -> u64 {
    (order.statement.len() + order.entry.len()) as u64
}

/// Reports of work that went on elsewhere.
pub(super) enum Report {
    /// A supervisor that this process started has ended.
    Exited(Key),
    /// A lost execution's processes are ended; this is its outcome.
    Settled(Key, Box<Finished>),
    /// The outcome of a lost execution could not be written: the sweep tries again.
    Unsettled(Key),
    /// Work on a file of the artifact cache is done.
    Cache(Box<Done>),
    /// A deploy path was looked at.
    Inspected(Box<Inspected>),
    /// News of instances.
    Observed(Vec<Observation>),
    /// A log was read, or followed.
    Log { answer: Box<LogAnswer>, followed: bool },
}

/// All executions.
pub(super) struct Executions {
    host: Arc<dyn Host>,
    spool: Spool,
    spool_bytes_max: u64,
    pub(super) cache: Cache,
    pub(super) all: BTreeMap<Key, Execution>,
    pub(super) queue: VecDeque<Key>,
    running: usize,
    /// Inspections under way.
    pub(super) inspecting: usize,
    watcher: Watcher,
    boot_id: String,
    pub(super) reports: tokio::sync::mpsc::Sender<Report>,
    /// Notified when an execution is over: an instance may be another one then.
    pub(super) ended: Arc<Notify>,
}

impl Executions {
    /// Nothing yet; [`Executions::recover`] reads the spool.
    pub(super) fn new(
        (spool, spool_bytes_max): (Spool, u64),
        cache: Cache,
        host: Arc<dyn Host>,
        boot_id: String,
        reports: tokio::sync::mpsc::Sender<Report>,
    ) -> Self {
        let (all, queue) = (BTreeMap::new(), VecDeque::new());
        let ended = Arc::default();
        let watcher = host.watcher();
        Self {
            host,
            spool,
            spool_bytes_max,
            cache,
            all,
            queue,
            running: 0,
            inspecting: 0,
            watcher,
            boot_id,
            reports,
            ended,
        }
    }

    /// What wakes the agent when a supervisor writes.
    pub(super) fn watcher(&self) -> &Watcher {
        &self.watcher
    }

    /// Takes a verified order: into the spool, then on its way.
    pub(super) fn take(&mut self, new: NewOrder, session: &mut Session) {
        let now = clock::now();
        let NewOrder { key, order, statement, entry, secrets } = new;
        let boot_id = self.boot_id.clone();
        let fetches = entry.steps.iter().any(|step| matches!(step, Step::Fetch { .. }));
        let at_once = !fetches && self.queue.is_empty() && self.running < RUNNING_MAX;
        let order_bytes = length(&order);
        let (used, bytes_max) = (self.used(session), self.spool_bytes_max);
        if used + taken(order_bytes, TAKEN_BYTES) > bytes_max {
            let reason = format!("its spool is full: {used} of {bytes_max} bytes are used");
            return session.has_no_room(&key, reason);
        }
        let (wall_ms, monotonic_ms, spool_bytes_max) = (now.wall_ms, now.monotonic_ms, Some(bytes_max));
        let accepted = Accepted { order, wall_ms, monotonic_ms, boot_id, at_once, spool_bytes_max };
        let folder = match self.spool.accept(&key, &accepted) {
            Ok(folder) => folder,
            Err(error) => return session.rejected(&key, format!("the order cannot be kept: {}", describe(&error))),
        };
        session.accepted(&key);
        let execution = Execution {
            folder,
            order_bytes,
            stage: Stage::Queued,
            deadline_ms: now.monotonic_ms.saturating_add(statement.timeout_ms),
            timeout_ms: statement.timeout_ms,
            artifacts: artifacts(&entry),
            entry: Some(Box::new(entry)),
            secrets: Some(secrets),
            log: None,
            watch: None,
            discard: false,
            obstacle: None,
            untold: false,
        };
        self.all.insert(key.clone(), execution);
        self.advance(&key, session);
    }

    /// What the spool holds, in bytes.
    fn used(&self, session: &Session) -> u64 {
        self.all.values().map(|execution| taken(execution.order_bytes, 0)).sum::<u64>() + session.log_bytes()
    }

    /// The secrets of an execution have come again.
    pub(super) fn arm(&mut self, key: &Key, secrets: Secrets, session: &mut Session) {
        let Some(execution) = self.all.get_mut(key).filter(|one| one.secrets.is_none()) else { return };
        execution.secrets = Some(secrets);
        if matches!(execution.stage, Stage::AwaitingSecrets) {
            self.advance(key, session);
        }
    }

    pub(super) fn start_queued(&mut self, session: &mut Session) {
        while self.running < RUNNING_MAX {
            let Some(key) = self.queue.pop_front() else { return };
            self.start(&key, session);
        }
    }

    fn start(&mut self, key: &Key, session: &mut Session) {
        let Some(execution) = self.all.get_mut(key) else { return };
        execution.entry = None;
        let secrets = execution.secrets.take().unwrap_or_default();
        execution.watch = self.watcher.add(key, &execution.folder);
        let spawned = self.host.supervise(&execution.folder, &secrets);
        execution.stage = Stage::Running { own: true };
        self.running += 1;
        match spawned {
            Ok(end) => {
                let (reports, key) = (self.reports.clone(), key.clone());
                tokio::spawn(async move {
                    end.await;
                    let _ = reports.send(Report::Exited(key)).await;
                });
            }
            Err(error) => {
                tracing::error!(%key, %error, "no supervisor can be started");
                let reason = format!("no supervisor can be started: {}", describe(&error));
                self.give_up(key, Obstacle::before_all(reason), session);
            }
        }
    }

    /// Ends an execution that never started.
    pub(super) fn give_up(&mut self, key: &Key, obstacle: Obstacle, session: &mut Session) {
        let Some(execution) = self.all.get_mut(key) else { return };
        match lost::never_started(&execution.folder, &obstacle) {
            Ok(finished) => self.over(key, finished, session),
            Err(error) => {
                tracing::error!(%key, %error, reason = obstacle.reason, "the outcome cannot be written, trying again");
                execution.obstacle = Some(obstacle);
                execution.entry = None;
                self.look_again(key);
            }
        }
    }

    /// Has the sweep look at an execution whose outcome could not be written.
    pub(super) fn look_again(&mut self, key: &Key) {
        let Some(execution) = self.all.get_mut(key) else { return };
        if !matches!(execution.stage, Stage::Running { .. }) {
            self.running += 1;
        }
        execution.stage = Stage::Running { own: false };
    }

    /// Looks at what a supervisor wrote.
    pub(super) fn examine(&mut self, key: &Key, session: &mut Session) {
        self.grew(key, session);
        let Some(execution) = self.all.get(key) else { return };
        if !matches!(execution.stage, Stage::Running { .. }) {
            return;
        }
        match execution.folder.status() {
            Ok(Some(finished)) => self.over(key, finished, session),
            Ok(None) => {}
            Err(error) => tracing::error!(%key, %error, "the status cannot be read"),
        }
    }

    /// A supervisor has ended, or may have: if it left no status, the execution is lost.
    pub(super) fn check(&mut self, key: &Key, session: &mut Session) {
        self.examine(key, session);
        let Some(execution) = self.all.get_mut(key) else { return };
        if !matches!(execution.stage, Stage::Running { .. }) {
            return;
        }
        match execution.folder.standing() {
            Ok(Standing::Lost(started)) => {
                execution.stage = Stage::Ending;
                self.running -= 1;
                let case = lost::Case { folder: execution.folder.clone(), started, boot_id: self.boot_id.clone() };
                self.settle_lost(key, case);
            }
            Ok(Standing::Waiting) => {
                let unknown = || Obstacle::before_all("the supervisor ended before it started anything".to_owned());
                let obstacle = execution.obstacle.take().unwrap_or_else(unknown);
                self.give_up(key, obstacle, session);
            }
            Ok(Standing::Finished(finished)) => self.over(key, *finished, session),
            // Another supervisor than the one that was started here has the lock, or nobody can say: the sweep looks
            // after it from now on.
            Ok(Standing::Running) => {
                execution.stage = Stage::Running { own: false };
                if execution.untold {
                    execution.tell(&*self.host);
                }
            }
            Err(error) => {
                tracing::error!(%key, %error, "the spool folder cannot be read");
                execution.stage = Stage::Running { own: false };
            }
        }
    }

    /// Supervisors of an earlier agent tell nobody when they end: looks after them.
    pub(super) fn sweep(&mut self, session: &mut Session) {
        let foreign = |execution: &Execution| matches!(execution.stage, Stage::Running { own: false });
        let keys: Vec<Key> = self.all.iter().filter(|(_, one)| foreign(one)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.check(&key, session);
        }
        for key in self.watcher.unwatched() {
            self.examine(&key, session);
        }
    }

    /// Whether [`Executions::sweep`] has to be called, and how often at least, in milliseconds.
    pub(super) fn sweep_ms(&self) -> Option<u64> {
        if !self.watcher.unwatched().is_empty() {
            return Some(20);
        }
        let foreign = self.all.values().any(|one| matches!(one.stage, Stage::Running { own: false }));
        foreign.then_some(1_000)
    }

    fn settle_lost(&self, key: &Key, case: lost::Case) {
        let (reports, key, host) = (self.reports.clone(), key.clone(), self.host.clone());
        tokio::spawn(async move {
            let of = key.clone();
            let settled = clock::blocking(move || lost::settle(&of, &case, &*host)).await;
            let report = match settled.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(finished) => Report::Settled(key, Box::new(finished)),
                Err(error) => {
                    tracing::error!(%key, %error, "the outcome of a lost execution cannot be written, trying again");
                    Report::Unsettled(key)
                }
            };
            let _ = reports.send(report).await;
        });
    }

    /// An execution is over.
    pub(super) fn over(&mut self, key: &Key, finished: Finished, session: &mut Session) {
        let Some(execution) = self.all.get_mut(key) else { return };
        if matches!(execution.stage, Stage::Running { .. }) {
            self.running -= 1;
        }
        execution.stage = Stage::Finished;
        execution.entry = None;
        let watch = execution.watch.take();
        self.watcher.remove(key, watch);
        tracing::debug!(%key, state = %finished.state, reason = finished.reason, "finished");
        let discard = execution.discard;
        self.ended.notify_one();
        session.finished(key, finished);
        if discard {
            self.forget(key, session);
        }
        self.start_queued(session);
    }

    /// Ends an execution early.
    pub(super) fn cancel(&mut self, key: &Key, reason: String, timed_out: bool, session: &mut Session) {
        let Some(execution) = self.all.get_mut(key) else { return };
        if matches!(execution.stage, Stage::Finished | Stage::Ending) {
            return;
        }
        // The deadline must not ask again.
        execution.deadline_ms = u64::MAX;
        let note = CancelNote { reason, timed_out };
        let noted = execution.folder.write_cancel(&note).inspect_err(|error| {
            tracing::error!(%key, %error, "the cancel note cannot be written");
        });
        match execution.stage {
            Stage::Fetching => self.leave_downloads(key, session),
            Stage::Queued => self.queue.retain(|queued| queued != key),
            Stage::AwaitingSecrets => {}
            Stage::Running { .. } => return execution.tell(&*self.host),
            Stage::Ending | Stage::Finished => return,
        }
        match noted {
            Ok(()) => self.start(key, session),
            // A supervisor would know nothing of it, and begin.
            Err(_) => self.give_up(key, Obstacle::ended(note), session),
        }
    }

    /// Ends an execution that the server does not want and removes it.
    pub(super) fn discard(&mut self, key: &Key, session: &mut Session) {
        let Some(execution) = self.all.get_mut(key) else { return };
        tracing::warn!(%key, "the server does not want this execution: ended and removed");
        execution.discard = true;
        if matches!(execution.stage, Stage::Finished) {
            return self.forget(key, session);
        }
        self.cancel(key, "the server does not want this execution".to_owned(), false, session);
    }

    /// Removes an execution that is over.
    pub(super) fn forget(&mut self, key: &Key, session: &mut Session) {
        let Some(execution) = self.all.get(key).filter(|one| matches!(one.stage, Stage::Finished)) else { return };
        match self.spool.forget(&execution.folder) {
            Ok(None) => {}
            Ok(Some(spare)) => {
                let spool = self.spool.clone();
                tokio::spawn(clock::blocking(move || spool.recycle(spare)));
            }
            Err(error) => return tracing::error!(%key, %error, "a spool folder cannot be removed"),
        }
        let used = self.all.remove(key).map(|one| one.artifacts).unwrap_or_default();
        session.removed(key);
        if !used.is_empty() {
            let unfinished = self.all.values().filter(|one| !matches!(one.stage, Stage::Finished));
            let needed = unfinished.flat_map(|one| &one.artifacts).copied().collect();
            self.cache.prune(&needed);
        }
    }

    /// Ends what has used up its time while no supervisor watches over it.
    pub(super) fn expire(&mut self, session: &mut Session) {
        let now = clock::monotonic_ms();
        let late: Vec<(Key, u64)> = self
            .waiting()
            .filter(|(_, one)| one.deadline_ms <= now)
            .map(|(key, one)| (key.clone(), one.timeout_ms))
            .collect();
        for (key, timeout_ms) in late {
            let reason = format!("the time allowed ({} s) ran out", timeout_ms.div_ceil(1000));
            self.cancel(&key, reason, true, session);
        }
    }

    /// When [`Executions::expire`] has to be called, by the monotonic clock.
    pub(super) fn expire_at_ms(&self) -> Option<u64> {
        self.waiting().map(|(_, one)| one.deadline_ms).min()
    }

    fn waiting(&self) -> impl Iterator<Item = (&Key, &Execution)> {
        self.all.iter().filter(|(_, one)| matches!(one.stage, Stage::Fetching | Stage::AwaitingSecrets | Stage::Queued))
    }

    /// Reads a piece of a log.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn read_log(&mut self, key: &Key, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let execution = self.all.get_mut(key).ok_or_else(|| io::Error::other("no such execution"))?;
        let file = match execution.log.take() {
            Some(file) => file,
            None => File::open(execution.folder.log())?,
        };
        let mut bytes = vec![0; bytes_max];
        let length = file.read_at(&mut bytes, offset)?;
        bytes.truncate(length);
        // A finished log is read once: it need not stay open.
        execution.log = (!matches!(execution.stage, Stage::Finished)).then_some(file);
        Ok(bytes)
    }

    pub(super) fn grew(&self, key: &Key, session: &mut Session) {
        let Some(execution) = self.all.get(key) else { return };
        let length = match &execution.log {
            Some(file) => file.metadata(),
            None => std::fs::metadata(execution.folder.log()),
        };
        session.log_grew(key, length.map_or(0, |meta| meta.len()));
    }
}
