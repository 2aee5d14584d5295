//! Carrying out rollout rules: batches get their turn, failures stop what has not started, persons hold, let go and end.
//!
//! Invariants: whether a failure stops the rollout is decided in the transaction that takes the failure in, under the
//! task's lock; what is stopped is no longer queued, so nothing can send it.

use drover_kernel::jobs::Work;
use drover_kernel::{Audit, Kernel, Result, Time, Tx};
use drover_shared::planted::{self, Bug};
use drover_shared::words::ExecutionState as State;

use super::{Engine, known, lock as guard, restore_instance, restore_instances, say_and_wake, wake};
use crate::executions::rules::Event;
use crate::executions::store::{self as execution_store, Known};
use crate::tasks::follow_up::{self, TakenBack};
use crate::tasks::rollout::{self as rules, Move, Target};
use crate::tasks::rules::{Outcome, Phase, Role};
use crate::tasks::store::{self as task_store, Execution, Task};

/// Remarks that are remembered, so that each is made once; beyond that they are made again.
const TOLD_MAX: usize = 100_000;

/// A turn that comes this soon is waited for here; later ones are found by the sweep, which looks every 5 s.
const SOON_MS: i64 = 6_000;

/// What the rule says of a task, if it has one and is at its instances.
fn next(task: &Task, executions: &[Execution], now: Time) -> Option<Move> {
    Some(rules::next(&facts(task, executions, now)?))
}

fn facts<'a>(task: &'a Task, executions: &[Execution], now: Time) -> Option<rules::Facts<'a>> {
    let rollout = task.rollout.as_ref().filter(|_| task.phase == Phase::Instances && task.stop_reason.is_none())?;
    let instances = executions.iter().filter(|execution| execution.role == Role::Instance);
    let target = |execution: &Execution| Target {
        batch: execution.batch,
        state: execution.state,
        excluded: execution.excluded,
        finished_at: execution.finished_at,
    };
    Some(rules::Facts {
        rollout: &rollout.0,
        admitted: task.batch_admitted,
        promoted: task.promoted,
        held_at: task.held_at,
        targets: instances.map(target).collect(),
        now,
    })
}

/// Moves a task to its next batch or stops it. True when anything changed.
pub(super) async fn turn(kernel: &Kernel, work: &Work, task: &Task, executions: &[Execution]) -> Result<bool> {
    let now = kernel.clock().now();
    let Some(next_move) = next(task, executions, now) else { return Ok(false) };
    let engine = kernel.part::<Engine>();
    match next_move {
        Move::Stay | Move::Held => Ok(false),
        Move::AwaitPromotion => {
            let proved = facts(task, executions, now).is_some_and(|facts| facts.is_proved());
            let what = if proved { "the canary went well" } else { "no canary ran, so nothing was proved" };
            let text = format!("{what}; somebody has to promote it before the others follow");
            tell(kernel, &engine, task, &text).await;
            Ok(false)
        }
        Move::Until(time) => {
            let left = time.millis() - now.millis();
            let text = format!(
                "batch {} is over; the next one follows {} s later",
                task.batch_admitted + 1,
                (left + 500) / 1000
            );
            tell(kernel, &engine, task, &text).await;
            if left <= SOON_MS {
                wake_in(kernel, task.id, left);
            }
            Ok(false)
        }
        Move::Admit(_) | Move::Stop(_) => decide(kernel, work, task).await,
    }
}

/// Decides anew under the task's lock.
async fn decide(kernel: &Kernel, work: &Work, task: &Task) -> Result<bool> {
    let mut tx = work.begin(task.organisation_id).await?;
    let Some(task) = task_store::lock(&mut tx, task.id).await? else { return Ok(false) };
    let executions = task_store::executions(&mut tx, task.id).await?;
    let text = match next(&task, &executions, tx.now()) {
        Some(Move::Admit(batch)) => {
            task_store::admit(&mut tx, &task, batch).await?;
            let hosts: Vec<&str> =
                executions.iter().filter(|one| one.batch == batch).map(|one| one.host_name.as_str()).take(20).collect();
            let last = executions.iter().map(|one| one.batch).max().unwrap_or(batch);
            format!("batch {} of {}: {}", batch + 1, last + 1, hosts.join(", "))
        }
        Some(Move::Stop(reason)) => {
            stop(&mut tx, &task, &reason, false).await?;
            format!("the rollout is stopped: {reason}")
        }
        _ => return Ok(false),
    };
    tx.finish(Audit::none("a rollout goes on by its rule")).await?;
    kernel.part::<Engine>().notice(task.id, kernel.clock().now(), &text).await;
    Ok(true)
}

/// Takes the task's lock before one of its executions changes, when a rule has to hear of it.
pub(super) async fn lock(tx: &mut Tx, known: &Known) -> Result<()> {
    if known.by_rule {
        task_store::lock(tx, known.task_id).await?;
    }
    Ok(())
}

/// Stops the rollout if what this transaction takes in is one failure too many.
pub(super) async fn settle(tx: &mut Tx, known: &Known) -> Result<()> {
    if !known.by_rule || planted::has(Bug::FailureUnheard) {
        return Ok(());
    }
    let Some(task) = task_store::find(tx, known.task_id).await? else { return Ok(()) };
    let may_stop = task.rollout.as_ref().is_some_and(|rollout| rollout.0.may_stop());
    // Ten thousand instances that may all fail are not read for each that does.
    if !may_stop || task.stop_reason.is_some() {
        return Ok(());
    }
    let executions = task_store::executions(tx, task.id).await?;
    let Some(Move::Stop(reason)) = next(&task, &executions, tx.now()) else { return Ok(()) };
    stop(tx, &task, &reason, false).await?;
    let task_id = task.id;
    let said = format!("the rollout is stopped: {reason}");
    tx.after_commit(move |kernel| say_and_wake(kernel, task_id, said));
    Ok(())
}

/// Cancels what has not been sent, and notes why. With `cancelled` what is at work is told to end as well, and the last
/// hook is left out.
pub(crate) async fn stop(tx: &mut Tx, task: &Task, reason: &str, cancelled: bool) -> Result<()> {
    let ended = execution_store::cancel_queued(tx, task.id, reason, cancelled).await?;
    restore_instances(tx, ended).await?;
    task_store::stop(tx, task.id, reason, cancelled).await
}

/// Tells the agents that are connected to end what was cancelled, by itself or with its task.
pub(super) async fn pass_on_cancel(engine: &Engine, task: &Task, executions: &[Execution]) {
    let of_task = task.cancelled.then(|| task.stop_reason.as_deref().unwrap_or("cancelled"));
    for execution in executions.iter().filter(|one| matches!(one.state, State::Dispatched | State::Running)) {
        let Some(reason) = execution.cancel_reason.as_deref().or(of_task) else { continue };
        if let Some(session) = engine.hub.find(execution.host_id).filter(|session| session.has_room()) {
            session.cancel(&known(task, execution), reason, false).await;
        }
    }
}

/// Takes an instance out before its turn.
pub(crate) async fn exclude(tx: &mut Tx, task: &Task, execution: &Execution, reason: &str) -> Result<()> {
    execution_store::advance(tx, &known(task, execution), Event::Cancelled, Some(reason)).await?;
    restore_instance(tx, execution.instance_id, execution.previous_status.as_deref()).await?;
    tx.after_commit(super::queue::freed);
    task_store::exclude(tx, vec![execution.id.clone()]).await
}

/// Makes the task that takes back what a stopped rollout changed, if its rule asks for that. Gives what to say of it.
pub(super) async fn take_back(
    tx: &mut Tx,
    task: &Task,
    outcome: Outcome,
    executions: &[Execution],
) -> Result<Option<TakenBack>> {
    // Failures that the rule allows take nothing back.
    let asked = task.rollout.as_ref().is_some_and(|rollout| rollout.0.auto_revert) && task.stop_reason.is_some();
    if !asked || outcome != Outcome::Failed {
        return Ok(None);
    }
    follow_up::auto_revert(tx, task, executions).await.map(Some)
}

/// Adds a line to a task's output, once for each batch.
async fn tell(kernel: &Kernel, engine: &Engine, task: &Task, text: &str) {
    let first = {
        let mut told = guard(&engine.told);
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        told.insert((task.id, task.batch_admitted))
    };
    if first {
        engine.notice(task.id, kernel.clock().now(), text).await;
    }
}

fn wake_in(kernel: &Kernel, task_id: i64, milliseconds: i64) {
    let owner = kernel.clone();
    let span = std::time::Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0));
    kernel.spawn(async move {
        let stop = owner.stopping();
        tokio::select! {
            () = tokio::time::sleep(span) => wake(&owner, task_id),
            () = stop.cancelled() => {}
        }
    });
}
