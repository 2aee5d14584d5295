//! Ending what a task whose time has run out still does.
//!
//! Invariant: what was never sent is timed out and its instance is as it was; what was sent is ended by its agent, and is
//! called lost only when the agent cannot say, or does not say at long last, how it ended. Time in which no server was there
//! does not count (`attending.rs`).

use std::time::Duration;

use drover_kernel::jobs::Work;
use drover_kernel::{Audit, Kernel, Result, Tx};
use drover_shared::words::ExecutionState as State;

use super::{Engine, advance, known, prepare, restore_instance, results, rollout};
use crate::executions::rules::Event;
use crate::executions::store as execution_store;
use crate::tasks::rollout::PATIENCE;
use crate::tasks::rules::{Phase, Role};
use crate::tasks::store::{self as task_store, Execution, Task};

/// How long after its deadline a task waits for an agent that is not connected.
const ABSENT_GRACE: Duration = Duration::from_secs(60);

/// How long after a task's deadline its last hook waits for an agent that is not connected.
const LAST_HOOK_GRACE: Duration = Duration::from_secs(180);

/// Ends what is due of one task.
pub(super) async fn expire(kernel: &Kernel, task_id: i64) -> Result<()> {
    let (work, engine) = (kernel.work(), kernel.part::<Engine>());
    let mark = engine.attendance.mark();
    let may_give_up = || engine.attendance.is_unbroken(mark, kernel.clock().now());
    let mut read = work.read().await?;
    let Some(task) = task_store::find(&mut read, task_id).await? else { return Ok(()) };
    if task.deadline_at > kernel.clock().now() || !may_give_up() {
        return Ok(());
    }
    if task.plan_digest.is_none() {
        drop(read);
        let reason = format!("the time of {} s ran out while the source was being fetched", task.timeout_s);
        return prepare::fail(kernel, &task, &reason).await;
    }
    let executions = task_store::executions(&mut read, task_id).await?;
    drop(read);
    let mut moved = false;
    for execution in executions.iter().filter(|one| !one.state.is_over()) {
        if !may_give_up() {
            break;
        }
        if let Some((event, reason)) = due(kernel, &task, execution).await {
            moved |= carry_out(&work, &task, execution, event, reason).await?;
        }
    }
    if moved || task.phase == Phase::GlobalPost { advance(kernel, task_id).await } else { Ok(()) }
}

/// What has to happen to an execution, if anything.
async fn due(kernel: &Kernel, task: &Task, execution: &Execution) -> Option<(Event, &'static str)> {
    let now = kernel.clock().now();
    let session = kernel.part::<Engine>().hub.find(execution.host_id);
    let is_last_hook = execution.role == Role::GlobalPost;
    // The last hook has a time of its own, counted by its agent; here only an agent that never comes is given up.
    let last = task.phase == Phase::GlobalPost && now >= task.deadline_at.after(LAST_HOOK_GRACE);
    if is_last_hook && !last {
        return None;
    }
    let late = now >= task.deadline_at.after(ABSENT_GRACE);
    // A connected agent that does not end what it was told to end is given up as well, at long last.
    let grace = if is_last_hook { LAST_HOOK_GRACE * 3 } else { LAST_HOOK_GRACE };
    let hopeless = now >= task.deadline_at.after(grace);
    match (execution.state, session) {
        (State::Queued, _) if task.held_at.is_some_and(|held_at| now >= held_at.after(PATIENCE)) => {
            Some((Event::TimedOut, "it was held for too long"))
        }
        // Its time has not begun.
        (State::Queued, _) if task.held_by.is_some() || execution.batch > task.batch_admitted => None,
        (State::Queued, session) if session.is_none() || !is_last_hook => {
            Some((Event::TimedOut, "the time ran out before this was started"))
        }
        (_, Some(session)) if !hopeless => {
            if !is_last_hook && late && session.has_room() {
                session.cancel(&known(task, execution), "the time ran out", true).await;
            }
            None
        }
        (_, None) if late => {
            Some((Event::Lost, "the time ran out and the host's agent is not connected to say how it ended"))
        }
        (_, Some(_)) => Some((Event::Lost, "the time ran out and the host's agent does not say how it ended")),
        (_, None) => None,
    }
}

async fn carry_out(work: &Work, task: &Task, execution: &Execution, event: Event, reason: &str) -> Result<bool> {
    let mut tx = work.begin(task.organisation_id).await?;
    let known = known(task, execution);
    rollout::lock(&mut tx, &known).await?;
    if !execution_store::advance(&mut tx, &known, event, Some(reason)).await? {
        return Ok(false);
    }
    settle_instance(&mut tx, execution, event).await?;
    rollout::settle(&mut tx, &known).await?;
    let engine = tx.kernel().part::<Engine>();
    let given_up = event == Event::Lost;
    let session = engine.hub.find(execution.host_id).filter(|_| given_up);
    if let Some((session, object)) = session.as_ref().zip(execution.object()) {
        // It may be at it still, or begin yet: nothing else is sent for the same thing until it says that it is through.
        session.is_at_work(&execution.id, object);
    }
    if let Some(session) = session.clone() {
        let reason = reason.to_owned();
        tx.after_commit(move |kernel| {
            kernel.spawn(async move { session.cancel(&known, &reason, true).await });
        });
    }
    let finished = tx.finish(Audit::none("the time ran out")).await;
    if let (Err(_), Some(session)) = (&finished, session) {
        session.is_through(&execution.id);
    }
    finished.map(|()| true)
}

async fn settle_instance(tx: &mut Tx, execution: &Execution, event: Event) -> Result<()> {
    if event == Event::TimedOut {
        restore_instance(tx, execution.instance_id, execution.previous_status.as_deref()).await
    } else {
        results::stop_instance(tx, execution.instance_id).await
    }
}
