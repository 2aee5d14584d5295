//! What a person does to a running rollout: hold it, let it go on, promote its canary, take instances out, end it, and
//! try again what failed. Each is audited with its reason.

use drover_kernel::call::Permission;
use drover_kernel::db::Read;
use drover_kernel::fields::{Flag, Many, Number, Prose, Reference};
use drover_kernel::{Audit, AuditEntry, AuditList, Body, Call, Error, Message, Path, Reply, Result, Routes, Tx};
use drover_shared::words::{Action, ExecutionState as State};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Run;
use super::answer::{AnswerNew, answer};
use super::cancelling::cancel_one;
use super::create::wanted_instances;
use super::follow_up::{self, Retry};
use super::required;
use super::rollout::Rollout;
use super::rules::{Phase, Role};
use super::store::{self, Execution, Task};
use super::view::SubTaskReceipt;
use crate::artifacts::Naming;
use crate::channel;
use crate::deploys::rules as deploy_rules;
use crate::deploys::store as deploy_store;
use crate::engine::{self, rollout};
use crate::locks::store as lock_store;
use crate::locks::taking::{IfBusy, Place, checked_priority};
use crate::operations;

/// Adds the actions of one kind of sub-task.
macro_rules! actions {
    ($routes:expr, $base:expr, $name:literal, $permission:ty, $ids:ty, $which:expr) => {{
        let at = |action: &str| format!("{}actions/{action}/", $base);
        $routes
            .post(
                &at("pause"),
                concat!($name, "-pause"),
                "Hold a running task: nothing more of it starts until it is resumed.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<Reason>| {
                    act(call, $which(ids.0), Act::Pause, body.0)
                },
            )
            .post(
                &at("resume"),
                concat!($name, "-resume"),
                "Let a held sub-task go on.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<Reason>| {
                    act(call, $which(ids.0), Act::Resume, body.0)
                },
            )
            .post(
                &at("proceed"),
                concat!($name, "-proceed"),
                "Let a task start that waits for other tasks, without them.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<Reason>| {
                    act(call, $which(ids.0), Act::Proceed, body.0)
                },
            )
            .post(
                &at("prioritise"),
                concat!($name, "-prioritise"),
                "Give a task another place in the queue.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<Prioritise>| {
                    prioritise(call, $which(ids.0), body.0)
                },
            )
            .post(
                &at("promote"),
                concat!($name, "-promote"),
                "Let the other instances follow a canary that went well.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<Reason>| {
                    act(call, $which(ids.0), Act::Promote, body.0)
                },
            )
            .post(
                &at("refuse"),
                concat!($name, "-refuse"),
                "Stop a rollout: what was not started never is; with auto_revert what was changed goes back.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<Reason>| {
                    act(call, $which(ids.0), Act::Refuse, body.0)
                },
            )
            .post(
                &at("cancel"),
                concat!($name, "-cancel"),
                "End a sub-task: what was not started never is, what runs is ended with all its processes.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<Reason>| {
                    act(call, $which(ids.0), Act::Cancel, body.0)
                },
            )
            .post(
                &format!("{}executions/{{execution_id}}/actions/cancel/", $base),
                concat!($name, "-execution-cancel"),
                "End one execution of a sub-task with all its processes; the others go on.",
                |call: Call<$permission>, ids: Path<($ids, String)>, body: Body<Reason>| {
                    cancel_one(call, ($which(ids.0.0), ids.0.1), body.0)
                },
            )
            .post(
                &at("skip"),
                concat!($name, "-skip"),
                "Take instances out of a sub-task before their turn.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<Skip>| skip(call, $which(ids.0), body.0),
            )
            .post(
                &at("answer"),
                concat!($name, "-answer"),
                "Say what became of instances of which nobody knows how the sub-task ended there.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<AnswerNew>| answer(call, $which(ids.0), body.0),
            )
            .post(
                &at("retry"),
                concat!($name, "-retry"),
                "Make a sub-task that tries again what failed in this one, from the failed step on.",
                |call: Call<$permission>, ids: Path<$ids>, body: Body<RetryNew>| retry(call, $which(ids.0), body.0),
            )
    }};
}

/// Adds the actions on sub-tasks to their routes.
pub(super) fn with_actions(routes: Routes, upgrades: &str, reverts: &str) -> Routes {
    let one = |base: &str| format!("{base}{{task_id}}/");
    let routes = actions!(routes, one(upgrades), "deploy-task-sub-upgrade", Run, (i64, i64), Which::upgrade);
    actions!(routes, one(reverts), "deploy-task-sub-revert", Run, (i64, i64), Which::revert)
}

/// Adds the actions on tasks that belong to no deploy task.
pub(crate) fn with_operation_actions(routes: Routes) -> Routes {
    actions!(routes, "/tasks/{id}/", "task", operations::Control, i64, Which::operation)
}

/// A task as its address names it.
#[derive(Clone, Copy)]
pub(super) struct Which {
    pub(super) id: i64,
    /// Its deploy task and its kind, unless it belongs to none.
    of: Option<(i64, Action)>,
}

impl Which {
    fn upgrade((deploy_task_id, id): (i64, i64)) -> Self {
        Self { id, of: Some((deploy_task_id, Action::Upgrade)) }
    }

    fn revert((deploy_task_id, id): (i64, i64)) -> Self {
        Self { id, of: Some((deploy_task_id, Action::Revert)) }
    }

    fn operation(id: i64) -> Self {
        Self { id, of: None }
    }

    pub(super) async fn load(self, read: &mut Read) -> Result<Task> {
        match self.of {
            Some((deploy_task_id, kind)) => store::load(read, deploy_task_id, kind, self.id).await,
            None => {
                let task = store::find(read, self.id).await?.ok_or_else(|| Error::not_found("task"))?;
                match task.deploy_task_id {
                    None => Ok(task),
                    Some(id) => {
                        Err(Error::conflict(format!("this task belongs to the deploy task {id}: act on it there")))
                    }
                }
            }
        }
    }
}

/// Why something is done.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    /// Why; shown in the output and the audit.
    #[serde(default)]
    reason: Prose,
}

impl Reason {
    /// To be put behind what somebody does.
    pub(super) fn why(&self) -> String {
        if self.reason.0.is_empty() { String::new() } else { format!(": {}", self.reason.0) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Pause,
    Resume,
    Proceed,
    Promote,
    Refuse,
    Cancel,
}

impl Act {
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Proceed => "proceed",
            Self::Promote => "promote",
            Self::Refuse => "refuse",
            Self::Cancel => "cancel",
        }
    }
}

/// The sub-task under its lock, while it runs.
pub(super) async fn running(tx: &mut Tx, which: Which) -> Result<Task> {
    which.load(tx).await?;
    let task = store::lock(tx, which.id).await?.ok_or_else(|| Error::not_found("sub-task"))?;
    if task.outcome.is_some() {
        return Err(Error::conflict("this task is over"));
    }
    Ok(task)
}

async fn act<P: Permission>(call: Call<P>, which: Which, act: Act, body: Reason) -> Result<Reply<Message>> {
    let username = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let task = running(&mut tx, which).await?;
    let why = body.why();
    match act {
        Act::Pause if task.held_by.is_some() => return Err(Error::conflict("this task is held already")),
        Act::Pause => store::hold(&mut tx, &task, Some(&username)).await?,
        Act::Resume if task.held_by.is_none() => return Err(Error::conflict("nobody holds this task")),
        Act::Resume => store::hold(&mut tx, &task, None).await?,
        Act::Proceed if !task.waits => return Err(Error::conflict("this task waits for no other")),
        Act::Proceed if task.stop_reason.is_some() => return Err(Error::conflict("this task is stopped")),
        Act::Proceed => required::store::let_go(&mut tx, &task).await?,
        Act::Promote => {
            may_promote(&task, &store::executions(&mut tx, task.id).await?)?;
            store::promote(&mut tx, task.id).await?;
        }
        Act::Refuse if task.rollout.is_none() => {
            return Err(Error::conflict("this task has no rollout rule: cancel it"));
        }
        Act::Refuse => {
            rollout::stop(&mut tx, &task, &format!("refused by {username}{why}"), false).await?;
        }
        Act::Cancel => {
            rollout::stop(&mut tx, &task, &format!("cancelled by {username}{why}"), true).await?;
        }
    }
    finish(tx, &task, act.name(), format!("{username} says {}{why}", act.name())).await
}

/// Commits an action with its audit entry and its line in the output, and has the engine look at the task.
pub(super) async fn finish(mut tx: Tx, task: &Task, action: &'static str, said: String) -> Result<Reply<Message>> {
    let task_id = task.id;
    tx.enqueue_behind(engine::TOPIC, &task_id.to_string()).await?;
    let entry = AuditEntry::new(AuditList::General, action, "task", task_id, task.version.clone()).detail(said.clone());
    tx.after_commit(move |kernel| engine::say_and_wake(kernel, task_id, said));
    tx.commit(Audit::of(entry), Message::success()).await
}

/// Another place in the queue.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Prioritise {
    /// -100 to 100: the more the earlier.
    priority: Number,
    /// Why; shown in the output and the audit.
    #[serde(default)]
    reason: Prose,
}

async fn prioritise<P: Permission>(call: Call<P>, which: Which, body: Prioritise) -> Result<Reply<Message>> {
    let priority = checked_priority(body.priority)?;
    let username = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let task = running(&mut tx, which).await?;
    if !lock_store::prioritise(&mut tx, task.id, priority).await? {
        return Err(Error::conflict("this task is not in the queue"));
    }
    let why = if body.reason.0.is_empty() { String::new() } else { format!(": {}", body.reason.0) };
    let said = format!("{username} gives it priority {priority} in place of {}{why}", task.priority);
    finish(tx, &task, "prioritise", said).await
}

fn may_promote(task: &Task, executions: &[Execution]) -> Result<()> {
    let has_canary = task.rollout.as_ref().is_some_and(|rollout| rollout.0.canary.is_some());
    if !has_canary {
        return Err(Error::conflict("this sub-task has no canary"));
    }
    if task.promoted || task.batch_admitted > 0 || task.stop_reason.is_some() {
        return Err(Error::conflict("the canary of this sub-task does not wait for anybody"));
    }
    let canary = |one: &&Execution| one.role == Role::Instance && one.batch == 0;
    let at_work = executions.iter().filter(canary).any(|one| !one.state.is_over());
    if at_work || task.phase != Phase::Instances {
        return Err(Error::conflict("the canary of this sub-task has not ended yet"));
    }
    Ok(())
}

/// Instances to take out.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Skip {
    /// Instances whose turn has not come.
    instances: Many<Reference>,
    /// Why; shown in the output and the audit.
    #[serde(default)]
    reason: Prose,
}

async fn skip<P: Permission>(call: Call<P>, which: Which, body: Skip) -> Result<Reply<Message>> {
    let wanted = wanted_instances(&body.instances)?;
    let username = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let task = running(&mut tx, which).await?;
    let executions = store::executions(&mut tx, task.id).await?;
    let why = if body.reason.0.is_empty() { String::new() } else { format!(": {}", body.reason.0) };
    let mut hosts = Vec::with_capacity(wanted.len());
    for id in wanted.iter().copied() {
        let Some(execution) = executions.iter().find(|one| one.target() == Some(id)) else {
            return Err(Error::invalid("instances", format!("{id} is no instance of this sub-task")));
        };
        if execution.state != State::Queued {
            return Err(Error::conflict(format!(
                "{} has had its turn: it is {}",
                execution.host_name, execution.state
            )));
        }
        rollout::exclude(&mut tx, &task, execution, &format!("taken out by {username}{why}")).await?;
        hosts.push(execution.host_name.clone());
    }
    let out = |one: &Execution| one.excluded || one.target().is_some_and(|id| wanted.contains(&id));
    if executions.iter().filter(|one| one.role == Role::Instance).all(out) {
        // Who waits for this task would take it for well done.
        return Err(Error::conflict("this would leave nothing to do: cancel the task instead"));
    }
    finish(tx, &task, "skip", format!("{username} takes out {}{why}", hosts.join(", "))).await
}

/// What to try again.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RetryNew {
    /// Instances; when left out all that did not succeed, also those that never had their turn, but for lost ones and those
    /// that were taken out, which have to be named.
    #[serde(default)]
    instances: Option<Many<Reference>>,
    /// Whether steps that succeeded are left out; true when left out.
    #[serde(default)]
    from_failed_step: Option<Flag>,
    /// How to go from instance to instance; as before when left out.
    #[serde(default)]
    rollout: Option<Rollout>,
    /// Why; shown in the audit. Has to be given when an instance is named of which nobody knows how it ended.
    #[serde(default)]
    reason: Prose,
    /// What becomes of it when a change of one of the instances is under way, or somebody waits for one: `refuse` (the
    /// default) makes nothing, `wait` has it begin by itself when everything is free.
    #[serde(default)]
    if_busy: Option<IfBusy>,
    /// Place in the queue, -100 to 100, 0 when left out: the more the earlier; of equal ones the older goes first.
    #[serde(default)]
    priority: Option<Number>,
}

async fn retry<P: Permission>(call: Call<P>, which: Which, body: RetryNew) -> Result<Reply<SubTaskReceipt>> {
    let wanted = body.instances.as_ref().map(wanted_instances).transpose()?;
    if let Some(rollout) = &body.rollout {
        rollout.check()?;
        required::check_seen(&call, &mut call.read().await?, Some(rollout)).await?;
    }
    let place = Place::wanted(body.if_busy, body.priority)?;
    let caller = call.caller()?.clone();
    let addresses = channel::addresses(&call);
    let naming = Naming::begin(call.kernel()).await;
    let mut tx = call.begin().await?;
    if let Some((deploy_task_id, _)) = which.of {
        let organisation_id = tx.organisation_id();
        let deploy_task = deploy_store::load(&mut tx, organisation_id, deploy_task_id).await?;
        deploy_rules::step(deploy_task.status, deploy_rules::Event::MakeSubTask, deploy_rules::Facts::default())?;
        deploy_store::lock(&mut tx, &deploy_task).await?;
    }
    which.load(&mut tx).await?;
    // It stays as long as something is made from it.
    let task = store::lock(&mut tx, which.id).await?.ok_or_else(|| Error::not_found("task"))?;
    if task.outcome.is_none() {
        return Err(Error::conflict("this task is not over"));
    }
    let executions = store::executions(&mut tx, task.id).await?;
    let former = task.rollout.as_ref().map(|rollout| &rollout.0);
    let rollout = body.rollout.map(|rollout| rollout.retrying(former)).transpose()?;
    let retry = Retry {
        instances: wanted.as_deref(),
        from_failed_step: body.from_failed_step.is_none_or(|flag| flag.0),
        naming: &naming,
        caller: &caller,
        reason: &body.reason.0,
        rollout: rollout.as_ref(),
        place,
    };
    let made = follow_up::retry(&mut tx, &task, &executions, &retry).await?;
    let why = if body.reason.0.is_empty() { String::new() } else { format!(": {}", body.reason.0) };
    let entry = AuditEntry::new(AuditList::General, "retry", "task", made.task_id, task.version.clone())
        .detail(format!("tries again what failed in sub-task {}{why}", task.id));
    let receipt = SubTaskReceipt { task_id: made.task_id.to_string(), task_output: addresses.of(&made.channel) };
    tx.commit(Audit::of(entry), receipt).await
}
