//! Tasks: updates and reverts of batches of instances within a deploy task (the API calls them sub-tasks).
//!
//! Making one renders the whole plan, marks its instances as busy and wakes the engine, in one transaction. Invariants:
//! an instance is in one running task at a time; what runs is what was rendered when the task was made.

pub(crate) mod answer;
pub(crate) mod binding;
mod cancelling;
pub(crate) mod control;
pub(crate) mod create;
mod difference;
pub(crate) mod follow_up;
pub(crate) mod former;
pub mod health;
pub(crate) mod plan;
pub(crate) mod premises;
pub(crate) mod preview;
pub mod required;
pub mod rollout;
pub mod rules;
pub(crate) mod secrets;
pub(crate) mod seen;
pub(crate) mod store;
pub(crate) mod view;

use drover_kernel::db::Condition;
use drover_kernel::fields::{Flag, Line, Many, Name, Number, Reference};
use drover_kernel::resources::{ResourceKind, Resources};
use drover_kernel::{Body, Call, Page, Paging, Path, Query, Reply, Result, Routes, permission, sql, when};
use drover_shared::words::Action;
use schemars::JsonSchema;
use serde::Deserialize;

use self::create::{Asked, Wanted, create, look, wanted_instances, wanted_timeout};
use self::rollout::Rollout;
use self::view::{Status, shown, with_executions};
use crate::locks::taking::{IfBusy, Place};
use crate::output;

pub use self::view::SubTaskOut;
pub(crate) use self::view::of_deploy_task;

/// Output shown inside the detail, in bytes; the channel has all of it.
pub(crate) const OUTPUT_SHOWN_BYTES: u64 = 64 * 1024;

permission!(pub ReadSubTask, "sub_tasks.read", "See sub-tasks and their output",
    Resource { kind: "deploy_task", right: "view_app" });
permission!(pub Run, "sub_tasks.run", "Update and revert instances within a started deploy task",
    Resource { kind: "deploy_task", right: "deploy_app" });

/// Routes of sub-tasks.
pub fn routes() -> Routes {
    let upgrades = "/applications/deploy-tasks/{id}/sub-upgrade-tasks/";
    let reverts = "/applications/deploy-tasks/{id}/sub-revert-tasks/";
    let one = |base: &str| format!("{base}{{task_id}}/");
    let routes = Routes::tagged("deploy-tasks")
        .get(upgrades, "deploy-task-sub-upgrade-list", "List the batch updates of a deploy task.", list_upgrades)
        .post(
            upgrades,
            "deploy-task-sub-upgrade-create",
            "Update a batch of instances within a started deploy task.",
            upgrade,
        )
        .get(&one(upgrades), "deploy-task-sub-upgrade-detail", "Read one of the batch updates.", read_upgrade)
        .get(reverts, "deploy-task-sub-revert-list", "List the batch reverts of a deploy task.", list_reverts)
        .post(reverts, "deploy-task-sub-revert-create", "Take a batch of instances back to an earlier version.", revert)
        .get(&one(reverts), "deploy-task-sub-revert-detail", "Read one of the batch reverts.", read_revert);
    control::with_actions(routes, upgrades, reverts)
}

/// A channel stands for the application of its task.
pub fn resources() -> Resources {
    Resources::default().with(ResourceKind {
        name: "channel",
        noun: "channel",
        governed_by: "application",
        find: sql!("SELECT application_id FROM tasks WHERE organisation_id = $1 AND channel = $2"),
        further_rights: Some(sql!(
            "SELECT r.right_name FROM deploy_task_rights r JOIN tasks t ON t.deploy_task_id = r.deploy_task_id \
             WHERE t.organisation_id = $1 AND t.channel = $2 AND r.user_id = $3"
        )),
        implied: crate::deploys::REVIEWERS_READ,
        text_key: true,
        instead: Some(seen::BY_CHANNEL),
    })
}

/// Filters of the lists.
#[derive(Deserialize, JsonSchema)]
struct Filters {
    /// State.
    #[serde(default)]
    status: Option<Status>,
}

async fn list_upgrades(
    call: Call<ReadSubTask>,
    id: Path<i64>,
    filters: Query<Filters>,
    paging: Paging,
) -> Result<Reply<Page<SubTaskOut>>> {
    list(call, id.0, Action::Upgrade, filters.0, paging).await
}

async fn list_reverts(
    call: Call<ReadSubTask>,
    id: Path<i64>,
    filters: Query<Filters>,
    paging: Paging,
) -> Result<Reply<Page<SubTaskOut>>> {
    list(call, id.0, Action::Revert, filters.0, paging).await
}

async fn list(
    call: Call<ReadSubTask>,
    id: i64,
    kind: Action,
    filters: Filters,
    paging: Paging,
) -> Result<Reply<Page<SubTaskOut>>> {
    let conditions: Vec<Condition> = match filters.status {
        None => vec![],
        Some(Status::Running) => vec![when!("t.outcome IS NULL")],
        Some(over) => vec![when!("t.outcome = $1", over)],
    };
    let mut read = call.read().await?;
    let (count, tasks) = store::list(&mut read, id, kind, &conditions, &paging).await?;
    let results = with_executions(&call, &mut read, tasks).await?;
    Ok(Reply::new(paging.page(count, results)))
}

async fn read_upgrade(call: Call<ReadSubTask>, ids: Path<(i64, i64)>) -> Result<Reply<SubTaskOut>> {
    detail(call, ids.0, Action::Upgrade).await
}

async fn read_revert(call: Call<ReadSubTask>, ids: Path<(i64, i64)>) -> Result<Reply<SubTaskOut>> {
    detail(call, ids.0, Action::Revert).await
}

async fn detail(call: Call<ReadSubTask>, (deploy_task_id, id): (i64, i64), kind: Action) -> Result<Reply<SubTaskOut>> {
    let mut read = call.read().await?;
    let task = store::load(&mut read, deploy_task_id, kind, id).await?;
    let executions = store::execution_views(&mut read, vec![id]).await?;
    let after = required::shown(&call, &mut read, vec![id]).await?.remove(&id).unwrap_or_default();
    drop(read);
    let output = output::excerpt(call.kernel(), id).await?;
    Ok(Reply::new(shown(&call, task, executions, after).with_output(output)))
}

/// How a sub-task is asked for.
#[derive(Deserialize, JsonSchema)]
struct Manner {
    /// Whether to show the plan in place of carrying it out; nothing is stored then.
    #[serde(default)]
    dry_run: Option<Flag>,
}

/// A batch of updates.
#[derive(Deserialize, JsonSchema)]
struct UpgradeNew {
    /// Instances to update.
    instances: Many<Reference>,
    /// Path inside the repository; the deploy task's when left out, the whole tree when there is none.
    #[serde(default, alias = "package_source", alias = "deploy_source")]
    update_source: Option<Line>,
    /// Version being installed; the deploy task's when left out.
    #[serde(default)]
    version: Option<Name>,
    /// Seconds this sub-task may take; the settings' when left out.
    #[serde(default)]
    timeout: Option<Number>,
    /// How to go from instance to instance; all at once when left out. The time allowed then counts for each batch.
    #[serde(default)]
    rollout: Option<Rollout>,
    /// What becomes of it when a change of one of the instances is under way, or somebody waits for one: `refuse` (the
    /// default) makes nothing, `wait` has it begin by itself when everything is free.
    #[serde(default)]
    if_busy: Option<IfBusy>,
    /// Place in the queue, -100 to 100, 0 when left out: the more the earlier; of equal ones the older goes first.
    #[serde(default)]
    priority: Option<Number>,
}

/// A batch of reverts.
#[derive(Deserialize, JsonSchema)]
struct RevertNew {
    /// Instances to revert.
    instances: Many<Reference>,
    /// Version to return to: one that the instances keep, or had once.
    version: Name,
    /// Seconds this sub-task may take; the settings' when left out.
    #[serde(default)]
    timeout: Option<Number>,
    /// How to go from instance to instance; all at once when left out. The time allowed then counts for each batch.
    #[serde(default)]
    rollout: Option<Rollout>,
    /// What becomes of it when a change of one of the instances is under way, or somebody waits for one: `refuse` (the
    /// default) makes nothing, `wait` has it begin by itself when everything is free.
    #[serde(default)]
    if_busy: Option<IfBusy>,
    /// Place in the queue, -100 to 100, 0 when left out: the more the earlier; of equal ones the older goes first.
    #[serde(default)]
    priority: Option<Number>,
}

fn checked(rollout: Option<Rollout>) -> Result<Option<Rollout>> {
    rollout.map(|rollout| rollout.check().map(|()| rollout)).transpose()
}

async fn upgrade(
    call: Call<Run>,
    id: Path<i64>,
    manner: Query<Manner>,
    body: Body<UpgradeNew>,
) -> Result<Reply<Asked>> {
    // A revert needs no source and may be what makes room.
    call.kernel().part::<drover_kernel::room::Room>().require().await?;
    let new = body.0;
    let wanted = Wanted {
        action: Action::Upgrade,
        instances: wanted_instances(&new.instances)?,
        version: new.version.map(|version| version.required("version")).transpose()?,
        source: new.update_source.map(|path| path.0),
        timeout_s: wanted_timeout(new.timeout)?,
        rollout: checked(new.rollout)?,
        place: Place::wanted(new.if_busy, new.priority)?,
    };
    let dry_run = manner.0.dry_run.is_some_and(|flag| flag.0);
    if dry_run { look(call, id.0, wanted).await } else { create(call, id.0, wanted).await }
}

async fn revert(call: Call<Run>, id: Path<i64>, manner: Query<Manner>, body: Body<RevertNew>) -> Result<Reply<Asked>> {
    let new = body.0;
    let wanted = Wanted {
        action: Action::Revert,
        instances: wanted_instances(&new.instances)?,
        version: Some(new.version.required("version")?),
        source: None,
        timeout_s: wanted_timeout(new.timeout)?,
        rollout: checked(new.rollout)?,
        place: Place::wanted(new.if_busy, new.priority)?,
    };
    let dry_run = manner.0.dry_run.is_some_and(|flag| flag.0);
    if dry_run { look(call, id.0, wanted).await } else { create(call, id.0, wanted).await }
}
