//! The queue: tasks begin when everything that they change is free.
//!
//! A commit that frees something has the whole queue looked at right after it, and the sweep does so too: a crash in between
//! delays a task by seconds. It is not looked at within that commit, which may end executions of many tasks: what begins
//! takes instances in another order, and two that did so would wait for each other.
//! Invariants: nothing of a task in the queue is sent, and its instances are somebody else's; one that cannot begin any more
//! ends at once; one look at a time, and whoever asks during one gets another.

use std::sync::atomic::{AtomicBool, Ordering};

use drover_kernel::db::Read;
use drover_kernel::jobs::Work;
use drover_kernel::{Audit, Error, Kernel, Result, Time, Tx};
use drover_shared::words::ExecutionState as State;

use super::after::Looked;
use super::waking::Waking;
use super::{Engine, end, prepare, report, say_and_wake};
use crate::locks::store as lock_store;
use crate::locks::taking::Targets;
use crate::locks::{self, taking};
use crate::tasks::rollout::PATIENCE;
use crate::tasks::rules::{Outcome, Role};
use crate::tasks::store::{self as task_store, Execution, Task};

/// The key under which looks at the queue are counted.
const ALL: i64 = 0;

/// Looks at the queue.
#[derive(Default)]
pub(super) struct Queue {
    looks: Waking,
    /// Whether a task of the queue was seen since it was last read and empty. Most ends free something that nobody wants.
    waits: AtomicBool,
}

/// Something is free: lets begin what can, if anything is known to wait. Of what another server put into the queue the
/// sweep learns.
pub(crate) fn freed(kernel: &Kernel) {
    if kernel.part::<Engine>().queue.waits.load(Ordering::SeqCst) {
        look(kernel);
    }
}

fn look(kernel: &Kernel) {
    let engine = kernel.part::<Engine>();
    if !engine.queue.looks.begin(ALL) {
        return;
    }
    let owner = kernel.clone();
    kernel.spawn(async move {
        let _looking = engine.queue.looks.looking(ALL);
        loop {
            if let Err(error) = let_begin(&owner, &engine.queue).await {
                tracing::warn!(%error, "the queue cannot be looked at; the sweep tries again");
            }
            if !engine.queue.looks.again(ALL) {
                return;
            }
        }
    });
}

async fn let_begin(kernel: &Kernel, queue: &Queue) -> Result<()> {
    let work = kernel.work();
    // Before it is read: a task that comes behind that says so itself.
    queue.waits.store(false, Ordering::SeqCst);
    let rows = match work.read().await {
        Ok(mut read) => lock_store::wanted(&mut read, &[]).await,
        Err(error) => Err(error),
    };
    if rows.as_ref().map_or(true, |rows| !rows.is_empty()) {
        queue.waits.store(true, Ordering::SeqCst);
    }
    let rows = rows?;
    for task_id in locks::beginning(&rows) {
        report(task_id, begin(kernel, &work, task_id).await);
    }
    Ok(())
}

/// Lets one task begin, unless something happened to it or to what it changes since the queue was read.
async fn begin(kernel: &Kernel, work: &Work, task_id: i64) -> Result<()> {
    let Some(task) = task_store::find(&mut work.read().await?, task_id).await? else { return Ok(()) };
    let mut tx = work.begin(task.organisation_id).await?;
    let Some(task) = task_store::lock(&mut tx, task_id).await? else { return Ok(()) };
    let is_ready = task.is_queued() && !task.waits && task.held_by.is_none() && task.stop_reason.is_none();
    if !is_ready {
        return Ok(());
    }
    let executions = task_store::executions(&mut tx, task_id).await?;
    let wanted = executions.iter().filter(|one| one.role == Role::Instance && one.state == State::Queued);
    let targets = Targets::of(wanted.filter_map(Execution::object));
    let before = match taking::take(&mut tx, &targets, task.kind).await {
        Ok(before) => before,
        // Somebody was faster.
        Err(Error::Conflict(reason)) => {
            tracing::debug!(task_id, reason, "a task stays in the queue");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    // Asked when they are taken: who stops a task frees what failed in the same commit.
    if goes_back(&mut tx, &targets).await? {
        tracing::debug!(task_id, "a task stays in the queue: what it changes goes back first");
        return Ok(());
    }
    lock_store::take(&mut tx, &task, &before).await?;
    tx.after_commit(move |kernel| say_and_wake(kernel, task_id, "what it changes is free: it begins".to_owned()));
    tx.finish(Audit::none("a task begins when what it changes is free")).await?;
    kernel.part::<Engine>().turned(kernel);
    Ok(())
}

/// Whether a rollout that was stopped is about to take back what it did to one of these. It does so when all of it is over,
/// and its end has the queue looked at again.
async fn goes_back(tx: &mut Tx, targets: &Targets) -> Result<bool> {
    let Targets::Instances(ids) = targets else { return Ok(false) };
    for task_id in lock_store::stopped_on(tx, ids).await? {
        let task = task_store::find(tx, task_id).await?;
        if task.and_then(|task| task.rollout).is_some_and(|rollout| rollout.0.auto_revert) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Why a task in the queue never begins, if that is so.
async fn hopeless(read: &mut Read, task: &Task, now: Time) -> Result<Option<String>> {
    if let Some(reason) = &task.stop_reason {
        return Ok(Some(reason.clone()));
    }
    if lock_store::wants_nothing(read, task.id).await? {
        return Ok(Some("everything that it was to change was taken out of it".to_owned()));
    }
    let gone = lock_store::gone(read, task.id).await?;
    if !gone.is_empty() {
        let what = if task.application_id.is_some() { "the instance on" } else { "the host" };
        return Ok(Some(format!("not there any more: {what} {}", gone.join(", "))));
    }
    Ok((now >= task.created_at.after(PATIENCE)).then(|| "it waited in the queue for a week".to_owned()))
}

/// Looks after one task of the queue: ends it if it cannot begin any more.
pub(super) async fn look_at(kernel: &Kernel, work: &Work, task: &Task) -> Result<Looked> {
    if hopeless(&mut work.read().await?, task, kernel.clock().now()).await?.is_none() {
        kernel.part::<Engine>().queue.waits.store(true, Ordering::SeqCst);
        look(kernel);
        return Ok(Looked::Waits);
    }
    let mut tx = work.begin(task.organisation_id).await?;
    let Some(task) = task_store::lock(&mut tx, task.id).await? else { return Ok(Looked::Moved) };
    if !task.is_queued() {
        return Ok(Looked::Moved);
    }
    let now = tx.now();
    let Some(reason) = hopeless(&mut tx, &task, now).await? else { return Ok(Looked::Waits) };
    task_store::stop(&mut tx, task.id, &reason, task.cancelled).await?;
    end(&mut tx, &task, Outcome::Failed, Some(&reason)).await?;
    tx.finish(Audit::none("a task in the queue ends, because it cannot begin any more")).await?;
    prepare::stop_fetching(kernel, &task);
    let said = format!("nothing of it starts: {reason}");
    kernel.part::<Engine>().notice(task.id, kernel.clock().now(), &said).await;
    Ok(Looked::Moved)
}
