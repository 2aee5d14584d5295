//! Starting, stopping and restarting instances, and the tasks that do it.
//!
//! Such a task is made, sent, followed and stopped as an update is; it belongs to no deploy task, and whoever may restart
//! the application may make it. Invariant: an instance is in one task at a time, of whatever kind.

mod commands;
pub(crate) mod make;
pub(crate) mod paths;

use drover_kernel::db::Condition;
use drover_kernel::fields::{Flag, Id, Many, Name, Number, Reference, Words};
use drover_kernel::{Body, Call, Error, Page, Paging, Path, Query, Reply, Result, Routes, permission, when};
use drover_shared::words::{Action, Word as _};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::locks::taking::{IfBusy, Place};
use crate::output;
use crate::tasks::control;
use crate::tasks::rollout::{Rollout, Share};
use crate::tasks::seen::visible_tasks;
use crate::tasks::view::{Status, SubTaskReceipt, shown, with_executions};
use crate::tasks::{SubTaskOut, create, required, store};

permission!(pub Operate, "instances.operate", "Start, stop and restart instances of an application",
    Resource { kind: "application", right: "restart_app" });
permission!(pub Control, "tasks.control", "Hold, end and repeat tasks that belong to no deploy task",
    Resource { kind: "task", right: "restart_app" });
permission!(pub List, "tasks.list", "List the tasks of the applications one may see", SignedIn);
permission!(pub Read, "tasks.read", "See a task", Resource { kind: "task", right: "view_app" });

/// Routes of operations.
pub fn routes() -> Routes {
    let instances = |action: &str| format!("/applications/{{id}}/instances/actions/{action}/");
    let routes = Routes::tagged("instances")
        .post(&instances("start"), "instances-start", "Start instances of an application.", start)
        .post(&instances("stop"), "instances-stop", "Stop instances of an application.", stop)
        .post(&instances("restart"), "instances-restart", "Restart instances of an application.", restart);
    let tasks = Routes::tagged("tasks")
        .get("/tasks/", "tasks-list", "List tasks of every kind, newest first.", list)
        .get("/tasks/{id}/", "task-detail", "Read one task.", detail);
    routes.merge(control::with_operation_actions(tasks))
}

/// How to go from instance to instance: all at once when nothing is said.
#[derive(Deserialize, JsonSchema)]
struct Manner {
    /// Seconds it may take; for each batch, if there are several. 300 when left out.
    #[serde(default)]
    timeout: Option<Number>,
    /// Instances at a time: a number, or a percentage of all.
    #[serde(default)]
    batch: Option<Name>,
    /// Seconds between batches.
    #[serde(default)]
    pause: Option<Number>,
    /// Failures that are allowed: a number, or a percentage of all.
    #[serde(default)]
    max_failures: Option<Name>,
    /// What becomes of it when a change of one of the instances is under way, or somebody waits for one: `refuse` (the
    /// default) makes nothing, `wait` has it begin by itself when everything is free.
    #[serde(default)]
    if_busy: Option<IfBusy>,
    /// Place in the queue, -100 to 100, 0 when left out: the more the earlier; of equal ones the older goes first.
    #[serde(default)]
    priority: Option<Number>,
}

impl Manner {
    fn rollout(&self) -> Result<Option<Rollout>> {
        if self.batch.is_none() && self.pause.is_none() && self.max_failures.is_none() {
            return Ok(None);
        }
        let share = |text: &Option<Name>, field: &str| {
            let share = |text: &Name| text.0.parse::<Share>().map_err(|reason| Error::invalid(field, reason));
            text.as_ref().map(share).transpose()
        };
        let mut rollout = Rollout::default();
        if let Some(batch) = share(&self.batch, "batch")? {
            rollout.batch = batch;
        }
        if let Some(most) = share(&self.max_failures, "max_failures")? {
            rollout.max_failures = Some(most);
        }
        if let Some(pause) = self.pause {
            rollout.pause = u32::try_from(pause.0).map_err(|_| Error::invalid("pause", "must not be negative"))?;
        }
        rollout.check().map_err(|error| match error {
            Error::Invalid { field, reason } => Error::invalid(field.trim_start_matches("rollout."), reason),
            other => other,
        })?;
        Ok(Some(rollout))
    }
}

type Instances = Body<Many<Reference>>;

async fn start(
    call: Call<Operate>,
    id: Path<i64>,
    manner: Query<Manner>,
    body: Instances,
) -> Result<Reply<SubTaskReceipt>> {
    operate(call, id.0, Action::Start, &manner.0, &body.0).await
}

async fn stop(
    call: Call<Operate>,
    id: Path<i64>,
    manner: Query<Manner>,
    body: Instances,
) -> Result<Reply<SubTaskReceipt>> {
    operate(call, id.0, Action::Stop, &manner.0, &body.0).await
}

async fn restart(
    call: Call<Operate>,
    id: Path<i64>,
    manner: Query<Manner>,
    body: Instances,
) -> Result<Reply<SubTaskReceipt>> {
    operate(call, id.0, Action::Restart, &manner.0, &body.0).await
}

async fn operate(
    call: Call<Operate>,
    application_id: i64,
    action: Action,
    manner: &Manner,
    instances: &Many<Reference>,
) -> Result<Reply<SubTaskReceipt>> {
    let wanted = make::Wanted {
        action,
        instances: create::wanted_instances(instances)?,
        timeout_s: create::wanted_timeout(manner.timeout)?,
        rollout: manner.rollout()?,
        place: Place::wanted(manner.if_busy, manner.priority)?,
        leaves_out: false,
    };
    make::make(call, application_id, wanted).await
}

/// Filters of the list.
#[derive(Deserialize, JsonSchema)]
struct Filters {
    /// Tasks of one application.
    #[serde(default, alias = "application")]
    application_id: Option<Id>,
    /// What they do.
    #[serde(default)]
    #[schemars(with = "Option<Words<Action>>")]
    kind: Option<Name>,
    /// State.
    #[serde(default)]
    status: Option<Status>,
    /// Whether there are instances of which nobody knows how it ended there, and nobody has said so.
    #[serde(default)]
    unanswered: Option<Flag>,
    /// Tasks made by this username.
    #[serde(default)]
    creator: Option<Name>,
}

async fn list(call: Call<List>, filters: Query<Filters>, paging: Paging) -> Result<Reply<Page<SubTaskOut>>> {
    let filters = filters.0;
    let mut conditions: Vec<Condition> = Vec::new();
    conditions.extend(visible_tasks(call.caller()?));
    conditions.extend(filters.application_id.map(|id| when!("t.application_id = $1", id.0)));
    if let Some(kind) = filters.kind {
        let kind = Action::parse(&kind.0).map_err(|error| Error::invalid("kind", error.to_string()))?;
        conditions.push(when!("t.kind = $1", kind));
    }
    conditions.extend(filters.creator.map(|creator| when!("t.creator = $1", creator.0)));
    conditions.extend(filters.unanswered.map(|wanted| {
        when!(
            "EXISTS (SELECT 1 FROM executions e WHERE e.task_id = t.id AND e.role = 'instance' AND e.state = 'lost' \
             AND e.answer IS NULL) = $1",
            wanted.0
        )
    }));
    conditions.extend(filters.status.map(|status| match status {
        Status::Running => when!("t.outcome IS NULL"),
        over => when!("t.outcome = $1", over),
    }));
    let mut read = call.read().await?;
    let (count, tasks) = store::list_all(&mut read, call.organisation_id(), &conditions, &paging).await?;
    let results = with_executions(&call, &mut read, tasks).await?;
    Ok(Reply::new(paging.page(count, results)))
}

async fn detail(call: Call<Read>, id: Path<i64>) -> Result<Reply<SubTaskOut>> {
    let mut read = call.read().await?;
    let task = store::find(&mut read, id.0).await?.ok_or_else(|| Error::not_found("task"))?;
    let executions = store::execution_views(&mut read, vec![id.0]).await?;
    let after = required::shown(&call, &mut read, vec![id.0]).await?.remove(&id.0).unwrap_or_default();
    drop(read);
    let output = output::excerpt(call.kernel(), id.0).await?;
    Ok(Reply::new(shown(&call, task, executions, after).with_output(output)))
}
