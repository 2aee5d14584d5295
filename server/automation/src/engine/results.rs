//! Taking in what agents say of executions.

use drover_inventory::instances::rules::InstanceStatus;
use drover_inventory::instances::states;
use drover_inventory::instances::store::{begin_change, finish_change};
use drover_kernel::{Audit, Error, Kernel, Result, Tx};
use drover_shared::instance::ProcessState;
use drover_shared::message::{Finished, StepOutcome};
use drover_shared::planted::{self, Bug};
use drover_shared::words::{Action, ExecutionState as State, StepState, Word as _};

use super::{Engine, dispatch_hosts, former_status, known, queue, restore_instance, rollout, say_and_wake, wake};
use crate::executions::rules::{Event, reported};
use crate::executions::store::{self as store, Known};
use crate::link::hub::Session;
use crate::link::is_newest;
use crate::tasks::premises::instance_statuses;
use crate::tasks::rules::Role;
use crate::tasks::store::{self as task_store, Execution, Task};
use crate::watching;

/// Steps that leave what an instance serves as it is.
pub(crate) const UNTOUCHING: [&str; 2] = ["fetch", "verify"];

/// The execution, if it belongs to the session's host and this is its present attempt.
async fn find(kernel: &Kernel, session: &Session, id: &str, attempt: i64) -> Result<Option<Known>> {
    let mut read = kernel.work().read().await?;
    Ok(store::find(&mut read, session.host_id, id).await?.filter(|known| known.attempt == attempt))
}

/// What a session concludes from what its agent does not hold, or does not take, counts while it is the agent's newest: an
/// older one knows nothing of what the agent was sent since.
async fn fence(tx: &mut Tx, session: &Session) -> Result<()> {
    if planted::has(Bug::NoFence) || is_newest(tx, &session.agent_id, session.epoch).await? {
        return Ok(());
    }
    Err(Error::conflict(format!("a newer session of {} is open", session.host_name)))
}

/// The agent did not take the order; nothing was started.
pub(crate) async fn rejected(kernel: &Kernel, session: &Session, id: &str, attempt: i64, reason: &str) -> Result<()> {
    withheld(kernel, session, id, attempt, &format!("the agent refused: {reason}")).await
}

/// The order was not sent, because it could not be carried out: the instance is as it was.
pub(super) async fn withheld(kernel: &Kernel, session: &Session, id: &str, attempt: i64, reason: &str) -> Result<()> {
    let Some(known) = find(kernel, session, id, attempt).await? else { return Ok(()) };
    // Before the end of the task, which may follow at once and closes the output.
    let line = format!("{}: not started: {reason}", known.host_name);
    kernel.part::<Engine>().notice(known.task_id, kernel.clock().now(), &line).await;
    let mut tx = kernel.work().begin(known.organisation_id).await?;
    rollout::lock(&mut tx, &known).await?;
    fence(&mut tx, session).await?;
    if !store::advance(&mut tx, &known, Event::Rejected, Some(reason)).await? {
        return Ok(());
    }
    let previous = store::previous_status(&mut tx, id).await?;
    restore_instance(&mut tx, known.instance_id, previous.as_deref()).await?;
    ended(tx, &known, true).await
}

/// The agent has no room for the order at the time, and nothing was started: it waits for its turn again.
pub(crate) async fn put_back(kernel: &Kernel, session: &Session, id: &str, attempt: i64, reason: &str) -> Result<()> {
    let Some(known) = find(kernel, session, id, attempt).await? else { return Ok(()) };
    let mut tx = kernel.work().begin(known.organisation_id).await?;
    let task = task_store::lock(&mut tx, known.task_id).await?;
    let wants_more = |task: &Task| task.stop_reason.is_none() || known.role == Role::GlobalPost && !task.cancelled;
    if let Some(task) = task.filter(|task| !wants_more(task)) {
        drop(tx);
        return withdraw(kernel, session, id, attempt, task.stop_reason.as_deref().unwrap_or(reason)).await;
    }
    fence(&mut tx, session).await?;
    if !store::put_back(&mut tx, &known, reason).await? {
        return Ok(());
    }
    tx.finish(Audit::none("an agent has no room for an order")).await?;
    let engine = kernel.part::<Engine>();
    session.has_no_room();
    if engine.hub.first_absence(known.task_id, known.host_id) {
        let line = format!("{}: waits, because the agent has no room: {reason}", known.host_name);
        engine.notice(known.task_id, kernel.clock().now(), &line).await;
    }
    Ok(())
}

/// An order that its agent never got, and that is not wanted any more because its task was stopped: nothing was started.
pub(crate) async fn withdraw(kernel: &Kernel, session: &Session, id: &str, attempt: i64, reason: &str) -> Result<()> {
    let Some(known) = find(kernel, session, id, attempt).await? else { return Ok(()) };
    let mut tx = kernel.work().begin(known.organisation_id).await?;
    rollout::lock(&mut tx, &known).await?;
    fence(&mut tx, session).await?;
    if !store::advance(&mut tx, &known, Event::Cancelled, Some(reason)).await? {
        return Ok(());
    }
    store::take_out_cancelled(&mut tx, id).await?;
    let previous = store::previous_status(&mut tx, id).await?;
    restore_instance(&mut tx, known.instance_id, previous.as_deref()).await?;
    ended(tx, &known, false).await
}

/// Nobody can say how an execution ended.
pub(crate) async fn lost(kernel: &Kernel, session: &Session, id: &str, attempt: i64, reason: &str) -> Result<()> {
    let Some(known) = find(kernel, session, id, attempt).await? else { return Ok(()) };
    let mut tx = kernel.work().begin(known.organisation_id).await?;
    rollout::lock(&mut tx, &known).await?;
    fence(&mut tx, session).await?;
    if !store::advance(&mut tx, &known, Event::Lost, Some(reason)).await? {
        return Ok(());
    }
    stop_instance(&mut tx, known.instance_id).await?;
    ended(tx, &known, true).await
}

/// An instance whose execution failed is not serving, as far as anybody can say.
pub(crate) async fn stop_instance(tx: &mut Tx, instance_id: Option<i64>) -> Result<()> {
    tx.after_commit(queue::freed);
    match instance_id {
        Some(instance_id) => finish_change(tx, instance_id, InstanceStatus::Stopped, None).await.map(drop),
        None => Ok(()),
    }
}

/// How an execution ended; all of its output is durable. Heard twice it changes nothing. Of an execution that was given
/// up as lost it is the truth that was missing.
pub(super) async fn finished(tx: &mut Tx, known: &Known, news: &Finished) -> Result<()> {
    let Some(event) = reported(news.state) else { return Ok(()) };
    let failed = news.state != State::Succeeded;
    if known.broken {
        return note_late_word(tx, known, news).await;
    }
    if failed {
        rollout::lock(tx, known).await?;
    }
    if !store::finish(tx, known, event, news).await? {
        return Ok(());
    }
    if event == Event::Cancelled {
        store::take_out_cancelled(tx, &known.id).await?;
    }
    let late = known.state == State::Lost;
    if late {
        let (host_id, id) = (known.host_id, known.id.clone());
        tx.after_commit(move |kernel| let_others_in(kernel, host_id, &id));
    }
    if late && event == Event::Unknown {
        // What there is to know is kept; nothing else changes.
        return Ok(());
    }
    if let Some(instance_id) = known.instance_id {
        // Whoever changed the instance since then, or took it away, knows better.
        let outdated = late && !take_up(tx, instance_id, known).await?;
        if !outdated && !settle_instance(tx, instance_id, known, news).await? {
            let text =
                format!("{}: the instance was changed by somebody else meanwhile, and is left so", known.host_name);
            let task_id = known.task_id;
            tx.after_commit(move |kernel| say_and_wake(kernel, task_id, text));
        }
    }
    if late {
        let text = format!("{}: came back after it was given up as lost: {}", known.host_name, news.state.as_str());
        let task_id = known.task_id;
        tx.after_commit(move |kernel| say_and_wake(kernel, task_id, text));
    }
    over(tx, known, failed).await
}

/// What a host says of an execution whose lock somebody broke: it is kept, and nothing follows from it.
async fn note_late_word(tx: &mut Tx, known: &Known, news: &Finished) -> Result<()> {
    let (host_id, id) = (known.host_id, known.id.clone());
    tx.after_commit(move |kernel| let_others_in(kernel, host_id, &id));
    if !store::note_late_word(tx, &known.id, news).await? {
        return Ok(());
    }
    let text = format!("{}: says after its lock was broken how it ended: {}", known.host_name, news.state.as_str());
    let task_id = known.task_id;
    tx.after_commit(move |kernel| say_and_wake(kernel, task_id, text));
    Ok(())
}

/// A host is through with what was given up as lost: what waited for that has its turn.
pub(crate) fn let_others_in(kernel: &Kernel, host_id: i64, id: &str) {
    let session = kernel.part::<Engine>().hub.find(host_id);
    if session.is_some_and(|session| session.is_through(id)) {
        let owner = kernel.clone();
        kernel.spawn(async move {
            if let Err(error) = dispatch_hosts(&owner, [host_id]).await {
                tracing::warn!(%error, host_id, "orders could not be sent; the sweep tries again");
            }
        });
    }
}

/// Marks the instance of a lost execution as being changed once more. False when it is somebody else's by now.
async fn take_up(tx: &mut Tx, instance_id: i64, known: &Known) -> Result<bool> {
    if store::has_later_task(tx, instance_id, known.task_id).await?
        || instance_statuses(tx, &[instance_id]).await?.is_empty()
    {
        return Ok(false);
    }
    match begin_change(tx, &[instance_id], InstanceStatus::Updating).await {
        Err(Error::Conflict(_)) => Ok(false),
        begun => begun.map(|()| true),
    }
}

/// A person says that a lost execution did what it was to do: its instance is as if it had succeeded, unless somebody
/// changed it since.
pub(crate) async fn settle_as_done(tx: &mut Tx, task: &Task, execution: &Execution) -> Result<()> {
    let known = known(task, execution);
    let Some(instance_id) = known.instance_id else { return Ok(()) };
    if !take_up(tx, instance_id, &known).await? {
        return Ok(());
    }
    let version = match known.kind {
        Action::Upgrade => Some(known.version.clone()),
        Action::Revert => entry_version(&store::entry(tx, &known.id).await?),
        Action::Start | Action::Stop | Action::Restart | Action::Script => None,
    };
    let status = if known.kind == Action::Stop { InstanceStatus::Stopped } else { InstanceStatus::Running };
    finish_change(tx, instance_id, status, version.as_deref()).await.map(drop)
}

/// What an execution leaves behind on its instance. False when somebody changed that meanwhile.
async fn settle_instance(tx: &mut Tx, instance_id: i64, known: &Known, news: &Finished) -> Result<bool> {
    if news.state != State::Succeeded && known.state != State::Lost && !touched(&news.steps) {
        let previous = store::previous_status(tx, &known.id).await?;
        return finish_change(tx, instance_id, former_status(previous.as_deref()), None).await;
    }
    let mut version = None;
    if let Some(releases) = &news.releases {
        store::set_releases(tx, instance_id, releases).await?;
        version = releases.iter().find(|release| release.current).map(|release| release.version.clone());
    }
    let succeeded = news.state == State::Succeeded;
    if succeeded && version.is_none() {
        version = match known.kind {
            Action::Upgrade => Some(known.version.clone()),
            // A revert by a rule takes each instance back to a version of its own.
            Action::Revert => entry_version(&store::entry(tx, &known.id).await?),
            Action::Start | Action::Stop | Action::Restart | Action::Script => None,
        };
    }
    // What could not be stopped runs, as far as anybody can say; what could not be started does not.
    let runs = succeeded != (known.kind == Action::Stop);
    let status = if runs { InstanceStatus::Running } else { InstanceStatus::Stopped };
    if succeeded && !matches!(known.kind, Action::Upgrade | Action::Revert) {
        let seen = if runs { ProcessState::Running } else { ProcessState::Stopped };
        states::presume(tx, instance_id, seen).await?;
        // What the host saw meanwhile may have come before this: it says again how it is.
        let host_id = known.host_id;
        tx.after_commit(move |kernel| watching::tell_anew(kernel, host_id));
    }
    finish_change(tx, instance_id, status, version.as_deref()).await
}

/// Whether anything may have been done to what an instance serves: fetching and verifying change nothing there. An agent
/// that tells no steps leaves that open.
fn touched(steps: &[StepOutcome]) -> bool {
    let waits = |step: &StepOutcome| matches!(step.state, StepState::Pending | StepState::Skipped);
    steps.is_empty() || steps.iter().any(|step| !waits(step) && !UNTOUCHING.contains(&step.name.as_str()))
}

fn entry_version(entry: &str) -> Option<String> {
    serde_json::from_str::<drover_shared::order::Entry>(entry).ok().map(|entry| entry.version)
}

/// Commits the end of an execution and has its task looked after.
async fn ended(mut tx: Tx, known: &Known, failed: bool) -> Result<()> {
    over(&mut tx, known, failed).await?;
    tx.finish(Audit::none("an execution ended")).await
}

/// An execution is over: its rollout hears of a failure, and its task is looked after. No wake-up is written for that: after a
/// crash the sweep looks at every task, and a commit for each execution is one too many.
async fn over(tx: &mut Tx, known: &Known, failed: bool) -> Result<()> {
    let task_id = known.task_id;
    if failed {
        rollout::settle(tx, known).await?;
    }
    tx.after_commit(move |kernel| wake(kernel, task_id));
    tx.after_commit(queue::freed);
    Ok(())
}
