//! The engine: moves tasks from phase to phase, completes plans, sends executions and takes in how they ended.
//!
//! The truth is in the tables; the engine may be asked about a task at any time, any number of times, and does what is
//! due: a wake-up that gets lost is repaired by the sweep. Invariants: every move is one transaction with everything
//! that belongs to it; nothing waits for the network inside one; an execution is marked as sent before it is sent.

mod after;
mod attending;
mod auto_start;
mod dispatch;
mod expire;
mod intake;
pub(crate) mod prepare;
pub(crate) mod queue;
mod restored;
mod results;
pub(crate) mod rollout;
mod sending;
mod waking;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_inventory::instances;
use drover_inventory::instances::rules::InstanceStatus;
use drover_kernel::jobs::{Jobs, Work};
use drover_kernel::{Audit, AuditEntry, AuditList, Error, Kernel, Result, Time, Tx, caught};
use drover_shared::Digest;
use drover_shared::order::{Order, Statement, canonical};
use drover_shared::words::{Action, Word as _};
use tokio_util::sync::CancellationToken;

use crate::artifacts::ArtifactStore;
use crate::executions::rules::Event;
use crate::executions::store::{self as execution_store, Known, Sendable, Unsent};
use crate::link::hub::{Hub, Session};
use crate::link::keys::Keys;
use crate::logs::LogStore;
use crate::schedules::{self, Scheduling};
use crate::source::Sources;
use crate::tasks::follow_up::TakenBack;
use crate::tasks::rules::{self, Facts, Next, Outcome, Phase, Role};
use crate::tasks::store::{self as task_store, Execution, Task};
use crate::watching::{self, Watching};

pub use attending::attend;
pub use auto_start::put_off;
pub(crate) use dispatch::dispatch_hosts;
pub(crate) use intake::{News, take_in};
pub use restored::{Restored, restored};
pub(crate) use results::{
    UNTOUCHING, let_others_in, lost, put_back, rejected, settle_as_done, stop_instance, withdraw,
};
pub(crate) use sending::send_missing;
pub(crate) use waking::{say_and_wake, wake};

use attending::Attendance;
use dispatch::{Dispatch, dispatch};
use intake::Intake;
use waking::Waking;

/// Topic of the engine's wake-ups; the key is a task.
pub(crate) const TOPIC: &str = "task";

/// Interval of the sweep.
const SWEEP: Duration = Duration::from_secs(1);

/// How long the sweep may stay at one task before the server no longer counts as ready.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How long an order may stay without an answer before it is sent again.
const UNANSWERED: Duration = Duration::from_secs(10);

/// Time for the hook that runs once after the instances, however late they were.
const GLOBAL_POST_MS_MIN: i64 = 30_000;

/// What the engine works with. One for each server.
pub struct Engine {
    /// Output of every task.
    pub logs: LogStore,
    /// Packed sources.
    pub artifacts: ArtifactStore,
    /// Repositories.
    pub sources: Sources,
    /// Connected agents.
    pub hub: Hub,
    /// CA and signing key.
    pub keys: Keys,
    /// Held by whoever names an artifact in a table, or removes one that none names.
    pub(crate) naming: Arc<tokio::sync::Mutex<()>>,
    /// Tasks whose source this server is fetching.
    preparing: Mutex<HashMap<i64, CancellationToken>>,
    /// Deploy tasks that were tried to start by themselves, and before when they are not tried again.
    starting: Mutex<HashMap<i64, Time>>,
    /// Tasks that ended and whose log has no end yet, because the disk was full for example.
    unclosed: Mutex<BTreeMap<i64, Outcome>>,
    /// What the output of tasks was told about their batches, so that it is told once.
    told: Mutex<HashSet<(i64, i64)>>,
    /// When the sweep was last seen to move, in milliseconds since 1970; 0 before it began.
    turned_at: AtomicI64,
    attendance: Attendance,
    dispatch: Dispatch,
    intake: Intake,
    waking: Waking,
    queue: queue::Queue,
    pub(crate) watching: Watching,
    pub(crate) scheduling: Scheduling,
}

impl Engine {
    /// Puts the engine together.
    #[must_use]
    pub fn new(logs: LogStore, artifacts: ArtifactStore, sources: Sources, keys: Keys) -> Self {
        Self {
            logs,
            artifacts,
            sources,
            hub: Hub::default(),
            keys,
            naming: Arc::default(),
            preparing: Mutex::default(),
            starting: Mutex::default(),
            unclosed: Mutex::default(),
            told: Mutex::default(),
            turned_at: AtomicI64::new(0),
            attendance: Attendance::default(),
            dispatch: Dispatch::default(),
            intake: Intake::default(),
            waking: Waking::default(),
            queue: queue::Queue::default(),
            watching: Watching::default(),
            scheduling: Scheduling::default(),
        }
    }

    fn turned(&self, kernel: &Kernel) {
        self.turned_at.store(kernel.clock().now().millis(), Ordering::Relaxed);
    }

    /// Whether the sweep goes round, once it has begun.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn check_sweep(&self, now: Time) -> std::result::Result<(), String> {
        let turned_at = self.turned_at.load(Ordering::Relaxed);
        let silence = now.millis().saturating_sub(turned_at);
        if turned_at > 0 && silence > i64::try_from(STANDSTILL.as_millis()).unwrap_or(i64::MAX) {
            return Err(format!("the engine has stood still for {} s", silence / 1000));
        }
        Ok(())
    }

    /// Adds the server's own line to a task's output. A log that cannot be written stops nothing.
    async fn notice(&self, task_id: i64, now: Time, text: &str) {
        let written = match self.logs.task(task_id).await {
            Ok(log) => log.notice(0, text, now.millis()).await.map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = written {
            tracing::warn!(task_id, text, error, "cannot add a line to the output");
        }
    }
}

/// The engine's background handlers.
pub fn jobs() -> Jobs {
    Jobs::default()
        .on(TOPIC, |work: Work, key: String| async move {
            match key.parse() {
                Ok(task_id) => advance(work.kernel(), task_id).await,
                Err(_) => Err(Error::internal(format!("`{key}` is no task"))),
            }
        })
        .merge(watching::jobs())
}

/// Looks after every task that is not over, again and again: what lost wake-ups, failures and restarts left behind.
pub async fn sweep(kernel: Kernel) {
    let stop = kernel.stopping();
    attending::begin(&kernel).await;
    let mut full = true;
    let mut rounds = 0_u64;
    while !stop.is_cancelled() {
        kernel.part::<Engine>().turned(&kernel);
        if let Err(error) = caught(Box::pin(sweep_once(&kernel, full))).await {
            tracing::warn!(%error, "sweep failed, trying again");
        }
        // At the start as well: a crash may have left some.
        if rounds.is_multiple_of(600)
            && let Err(error) = crate::artifacts::sweep(&kernel).await
        {
            tracing::warn!(%error, "cannot remove artifacts that nothing names, trying again later");
        }
        rounds += 1;
        full = rounds.is_multiple_of(5);
        if rounds.is_multiple_of(60)
            && let Err(error) = kernel.clean().await
        {
            tracing::warn!(%error, "housekeeping failed, trying again later");
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// One round of the sweep: tasks whose time has run out, and with `full` every task that is not over.
///
/// # Errors
/// When the database is not available; the next round does what this one left.
pub async fn sweep_once(kernel: &Kernel, full: bool) -> Result<()> {
    let work = kernel.work();
    let now = kernel.clock().now();
    close_logs(kernel).await;
    if full && let Err(error) = crate::archives::sweep(kernel).await {
        tracing::warn!(%error, "cannot look after archives; the next round does");
    }
    if let Err(error) = auto_start::look(kernel).await {
        tracing::warn!(%error, "cannot look which deploy tasks start by themselves; the next round does");
    }
    if let Err(error) = Box::pin(schedules::look(kernel)).await {
        tracing::warn!(%error, "cannot look at schedules; the next round does");
    }
    let mut beyond = 0;
    loop {
        let overdue = task_store::overdue(&mut work.read().await?, now, beyond).await?;
        let Some(last) = overdue.last() else { break };
        beyond = *last;
        for task_id in overdue {
            report(task_id, caught(Box::pin(expire::expire(kernel, task_id))).await);
            kernel.part::<Engine>().turned(kernel);
        }
    }
    if full {
        if let Err(error) = Box::pin(send_again(kernel, now)).await {
            tracing::warn!(%error, "cannot look which orders have no answer; the next round does");
        }
        let mut beyond = 0;
        loop {
            let tasks = task_store::at_work(&mut work.read().await?, beyond).await?;
            let Some(last) = tasks.last() else { break };
            beyond = *last;
            for task_id in tasks {
                report(task_id, caught(Box::pin(advance(kernel, task_id))).await);
                kernel.part::<Engine>().turned(kernel);
            }
        }
    }
    Ok(())
}

/// Orders that were marked as sent a while ago and never answered, as far as anybody heard: a connected agent gets them
/// again, and answers a repeated one with the state it has. What is still under way to it is not sent a second time.
async fn send_again(kernel: &Kernel, now: Time) -> Result<()> {
    let engine = kernel.part::<Engine>();
    let before = Time::from_millis(now.millis() - i64::try_from(UNANSWERED.as_millis()).unwrap_or(i64::MAX));
    let mut beyond = String::new();
    loop {
        let unanswered = execution_store::unanswered(&mut kernel.work().read().await?, before, &beyond).await?;
        let Some(last) = unanswered.last() else { return Ok(()) };
        beyond.clone_from(&last.id);
        for execution in unanswered {
            let Some(session) = engine.hub.find(execution.host_id) else { continue };
            // Who is being sent to, or reads nothing, is asked by a later round: nobody else waits for it.
            let Some(_turn) = session.sending.try_lock().ok().filter(|_| session.has_room()) else { continue };
            if execution.withdrawn.is_none() && session.is_under_way(&execution.id, execution.attempt) {
                continue;
            }
            if execution.withdrawn.is_some() {
                // Whether it ever arrived only a new session can say.
                session.closed.cancel();
            } else {
                report(execution.task_id, sending::send_again(kernel, &session, &execution).await);
            }
        }
    }
}

/// Ends the logs whose end could not be written when their tasks ended.
async fn close_logs(kernel: &Kernel) {
    let engine = kernel.part::<Engine>();
    let unclosed = std::mem::take(&mut *lock(&engine.unclosed));
    for (task_id, outcome) in unclosed {
        report(task_id, close_log(&engine, task_id, outcome).await);
    }
}

/// One task that cannot be moved must not keep the others waiting.
fn report(task_id: i64, outcome: Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(task_id, %error, "a task could not be moved on; the sweep tries again");
    }
}

/// Does what is due for a task.
pub(crate) async fn advance(kernel: &Kernel, task_id: i64) -> Result<()> {
    let engine = kernel.part::<Engine>();
    let work = kernel.work();
    // Phases are few, and a batch that is admitted has something to do; the bound is for a rule that would not end.
    for _ in 0..16 {
        let mut read = work.read().await?;
        let Some(task) = task_store::find(&mut read, task_id).await? else { return Ok(()) };
        if task.output_removed_at.is_some() {
            return Ok(());
        }
        if let Some(outcome) = task.outcome {
            return close_log(&engine, task_id, outcome).await;
        }
        if task.waits {
            // Many may wait for one and look at the same time: nobody keeps a connection while asking for another.
            drop(read);
            if after::look(kernel, &work, &task).await? == after::Looked::Moved {
                continue;
            }
            read = work.read().await?;
        }
        if task.is_queued() {
            drop(read);
            if queue::look_at(kernel, &work, &task).await? == after::Looked::Moved {
                continue;
            }
            read = work.read().await?;
        }
        if task.plan_digest.is_none() {
            drop(read);
            if task.stop_reason.is_some() {
                return prepare::give_up(kernel, &task).await;
            }
            prepare::start(kernel, task);
            return Ok(());
        }
        if task.phase() == Phase::Waiting {
            return Ok(());
        }
        let executions = task_store::executions(&mut read, task.id).await?;
        drop(read);
        rollout::pass_on_cancel(&engine, &task, &executions).await;
        if rules::next(&facts(&task, &executions)) != Next::Stay {
            move_on(kernel, &work, &task).await?;
        } else if !rollout::turn(kernel, &work, &task, &executions).await? {
            return dispatch(kernel, &task).await;
        }
    }
    Err(Error::internal(format!("task {task_id} does not come to rest")))
}

fn facts(task: &Task, executions: &[Execution]) -> Facts {
    // What a person took out before its turn is neither well done nor failed.
    let counts = executions.iter().filter(|one| !one.excluded);
    Facts { phase: task.phase(), executions: counts.map(|one| (one.role, one.state)).collect() }
}

/// Moves the task one phase on.
async fn move_on(kernel: &Kernel, work: &Work, task: &Task) -> Result<()> {
    let mut tx = work.begin(task.organisation_id).await?;
    let back = step(&mut tx, task.id).await?;
    let audit = match back.as_ref().and_then(|back| back.made.as_ref().map(|made| (made, &back.said))) {
        Some(((id, version), said)) => Audit::of(
            AuditEntry::new(AuditList::General, Action::Revert.as_str(), "task", *id, version.clone()).detail(said),
        ),
        None => Audit::none("a task goes on by itself"),
    };
    tx.finish(audit).await?;
    if let Some(back) = back {
        kernel.part::<Engine>().notice(task.id, kernel.clock().now(), &back.said).await;
    }
    Ok(())
}

/// Decides under the task's lock whether it goes on or ends. Gives what there is to say of that.
async fn step(tx: &mut Tx, task_id: i64) -> Result<Option<TakenBack>> {
    let Some(task) = task_store::lock(tx, task_id).await? else { return Ok(None) };
    let executions = task_store::executions(tx, task.id).await?;
    match rules::next(&facts(&task, &executions)) {
        Next::Stay => Ok(None),
        Next::Enter(phase) => task_store::enter(tx, &task, phase).await.map(|()| None),
        Next::End(outcome) => {
            end(tx, &task, outcome, None).await?;
            rollout::take_back(tx, &task, outcome, &executions).await
        }
    }
}

/// Ends a task: what never started is cancelled, and its instances are as they were before.
async fn end(tx: &mut Tx, task: &Task, outcome: Outcome, reason: Option<&str>) -> Result<()> {
    let why = "the task ended before this was started";
    let unsent = execution_store::cancel_queued(tx, task.id, why, true).await?;
    restore_instances(tx, unsent).await?;
    for execution in task_store::executions(tx, task.id).await? {
        if execution.state.is_over() {
            continue;
        }
        execution_store::advance(tx, &known(task, &execution), Event::Cancelled, Some(why)).await?;
        restore_instance(tx, execution.instance_id, execution.previous_status.as_deref()).await?;
    }
    let reason = reason.or(task.stop_reason.as_deref()).filter(|_| outcome == Outcome::Failed);
    task_store::end(tx, task, outcome, reason).await?;
    tx.after_commit(queue::freed);
    after::wake_those_after(tx, task.id).await
}

/// An execution as news of it are taken in.
fn known(task: &Task, execution: &Execution) -> Known {
    Known {
        id: execution.id.clone(),
        organisation_id: task.organisation_id,
        task_id: task.id,
        ordinal: execution.ordinal,
        role: execution.role,
        instance_id: execution.instance_id,
        host_id: execution.host_id,
        host_name: execution.host_name.clone(),
        attempt: execution.attempt,
        state: execution.state,
        kind: task.kind,
        version: task.version.clone(),
        by_rule: task.rollout.is_some(),
        answered: false,
        broken: false,
    }
}

/// Gives an instance that was not touched the status that it had. Without one it never was the task's.
async fn restore_instance(tx: &mut Tx, instance_id: Option<i64>, previous: Option<&str>) -> Result<()> {
    let (Some(instance_id), Some(previous)) = (instance_id, previous) else { return Ok(()) };
    tx.after_commit(queue::freed);
    instances::store::finish_change(tx, instance_id, former_status(Some(previous)), None).await.map(drop)
}

/// As [`restore_instance`], for many; one that is gone meanwhile keeps nobody waiting.
async fn restore_instances(tx: &mut Tx, unsent: Vec<Unsent>) -> Result<()> {
    let mut by_status: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for one in unsent {
        let (Some(instance_id), Some(previous)) = (one.instance_id, one.previous_status) else { continue };
        by_status.entry(previous).or_default().push(instance_id);
    }
    tx.after_commit(queue::freed);
    for (status, ids) in by_status {
        instances::store::give_back(tx, ids, former_status(Some(&status))).await?;
    }
    Ok(())
}

/// The status that an instance goes back to.
fn former_status(previous: Option<&str>) -> InstanceStatus {
    let status: Option<InstanceStatus> = previous.and_then(|text| text.parse().ok());
    status.filter(|status| !status.is_busy()).unwrap_or(InstanceStatus::Stopped)
}

async fn close_log(engine: &Engine, task_id: i64, outcome: Outcome) -> Result<()> {
    let ended = match engine.logs.task(task_id).await {
        // Nothing is written when the mark is there already; late output or a late outcome needs a new one.
        Ok(log) => log.finish(outcome.as_str()).await.map_err(Error::internal),
        Err(error) => Err(Error::internal(error)),
    };
    if ended.is_err() {
        lock(&engine.unclosed).insert(task_id, outcome);
    }
    ended
}

/// The signed order for an execution.
fn order(kernel: &Kernel, session: &Session, execution: &Sendable) -> Order {
    let engine = kernel.part::<Engine>();
    let left = execution.deadline_at.millis() - kernel.clock().now().millis();
    let least = if execution.role == Role::GlobalPost { GLOBAL_POST_MS_MIN } else { 1 };
    let statement = Statement {
        execution_id: execution.id.clone(),
        attempt: u32::try_from(execution.attempt).unwrap_or(u32::MAX),
        agent_id: session.agent_id.clone(),
        plan_digest: execution.plan_digest,
        entry_digest: execution.entry_digest,
        timeout_ms: u64::try_from(left.max(least)).unwrap_or(1),
    };
    Order::seal(&statement, execution.entry.clone(), |bytes| engine.keys.sign(bytes))
}

/// Plan digest and entries in the form that is stored.
fn entry_texts(entries: &[drover_shared::order::Entry]) -> Vec<String> {
    entries.iter().map(canonical).collect()
}

/// Digest of the plan of a task.
fn plan_digest(task: &Task, commit: Option<&str>, entries: &[String]) -> Digest {
    crate::tasks::plan::digest(task.id, task.kind, &task.version, commit, entries)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
