//! Running a stored script on hosts, for nothing but itself.
//!
//! Such a task is rendered, sent, followed and stopped as an update is; it belongs to its hosts and to no application.
//! Invariants: who makes one may log in on each of its hosts, and so may who ends it; a host runs one at a time; which hosts
//! those are is settled when it is made.

pub(crate) mod make;
pub(crate) mod targets;

use drover_kernel::fields::{Flag, Many, Name, Number};
use drover_kernel::{Audit, Body, Call, Error, Query, Reply, Result, Routes, permission};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::make::{Prepared, Wanted};
use self::targets::{HostRef, ScriptRef};
use crate::channel;
use crate::locks::taking::{IfBusy, Place};
use crate::tasks::create::wanted_timeout;
use crate::tasks::rollout::Rollout;
use crate::tasks::view::SubTaskReceipt;

/// Hosts that a preview names.
const SHOWN_MAX: usize = 100;

permission!(pub Run, "scripts.run", "Run a stored script on hosts on which one may log in",
    Named { kind: "host", right: "login_host" });

/// Routes of tasks that run scripts; what is done to them is done as to all tasks that belong to no deploy task.
pub fn routes() -> Routes {
    Routes::tagged("tasks").post("/tasks/actions/run-script/", "task-run-script", "Run a stored script on hosts.", run)
}

/// A script to run, and where. Exactly one of `hosts`, `application` and `label` says where.
#[derive(Deserialize, JsonSchema)]
struct RunNew {
    /// Stored script, by id or name.
    script: ScriptRef,
    /// Hosts, each by id or name.
    #[serde(default)]
    hosts: Option<Many<HostRef>>,
    /// The hosts of this application's instances, by id or full name.
    #[serde(default)]
    application: Option<ScriptRef>,
    /// The hosts that have this label.
    #[serde(default)]
    label: Option<Name>,
    /// A value for each parameter that has no default, or shall have another one.
    #[serde(default)]
    parameters: serde_json::Map<String, serde_json::Value>,
    /// Account to run as; the script's when left out. Another one is for administrators.
    #[serde(default)]
    running_user: Option<Name>,
    /// Seconds it may take; for each batch, if there are several. 300 when left out.
    #[serde(default)]
    timeout: Option<Number>,
    /// How to go from host to host; all at once when left out.
    #[serde(default)]
    rollout: Option<Rollout>,
    /// What becomes of it when a script runs on one of the hosts, or somebody waits for one: `refuse` (the default) makes
    /// nothing, `wait` has it begin by itself when all are free.
    #[serde(default)]
    if_busy: Option<IfBusy>,
    /// Place in the queue, -100 to 100, 0 when left out: the more the earlier; of equal ones the older goes first.
    #[serde(default)]
    priority: Option<Number>,
}

/// How it is asked for.
#[derive(Deserialize, JsonSchema)]
struct Manner {
    /// Whether to show what would run in place of running it; nothing is stored then.
    #[serde(default)]
    dry_run: Option<Flag>,
}

/// What asking for a task gives.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum Asked {
    /// It was made.
    Made(SubTaskReceipt),
    /// What it would run, when only that was asked for.
    Planned(PlannedOut),
}

/// What would run.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ScriptPlan")]
struct PlannedOut {
    /// Name of the script.
    script: String,
    /// How many hosts there are.
    count: usize,
    /// The first of them.
    hosts: Vec<PlannedHostOut>,
    /// Account that it would run as; the agent's own when null.
    running_user: Option<String>,
    /// The text for the first host; what stands for secrets is put in place there.
    content: String,
}

/// A host of it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ScriptPlanHost")]
struct PlannedHostOut {
    id: i64,
    hostname: String,
    /// The batch in which its turn would come, from 1 on.
    batch: i64,
}

/// Refuses what makes no sense for a script.
///
/// # Errors
/// An invalid field.
pub(crate) fn checked_rollout(rollout: Option<Rollout>) -> Result<Option<Rollout>> {
    let Some(rollout) = rollout else { return Ok(None) };
    rollout.check()?;
    let none = |field: &str, why: &str| Err(Error::invalid(format!("rollout.{field}"), why));
    if rollout.auto_revert {
        return none("auto_revert", "a script installs nothing that could be taken back");
    }
    if rollout.health.is_some() {
        return none("health", "a script proves itself by how it ends");
    }
    if rollout.after_required {
        return none("after_required", "a script belongs to no application");
    }
    if !rollout.after_tasks.is_empty() {
        return none("after_tasks", "a script goes after no tasks");
    }
    Ok(Some(rollout))
}

async fn run(call: Call<Run>, manner: Query<Manner>, body: Body<RunNew>) -> Result<Reply<Asked>> {
    let new = body.0;
    let wanted = Wanted {
        script: new.script,
        targets: targets::Wanted::of(new.hosts, new.application, new.label)?,
        parameters: new.parameters,
        running_user: new.running_user.and_then(Name::non_empty),
        timeout_s: wanted_timeout(new.timeout)?,
        rollout: checked_rollout(new.rollout)?,
        place: Place::wanted(new.if_busy, new.priority)?,
    };
    let caller = call.caller()?.clone();
    let prepared = make::prepare(call.kernel(), &caller, wanted).await?.meant()?;
    if manner.0.dry_run.is_some_and(|flag| flag.0) {
        return Ok(Reply::new(Asked::Planned(shown(&prepared))));
    }
    let addresses = channel::addresses(&call);
    let mut tx = call.begin().await?;
    let (made, entry) = make::store(&mut tx, prepared, &caller.username).await?;
    let receipt = SubTaskReceipt { task_id: made.task_id.to_string(), task_output: addresses.of(&made.channel) };
    tx.commit(Audit::of(entry), Asked::Made(receipt)).await
}

fn shown(prepared: &Prepared) -> PlannedOut {
    let host = |draft: &crate::tasks::plan::Draft| PlannedHostOut {
        id: draft.host_id,
        hostname: draft.host_name.clone(),
        batch: draft.batch + 1,
    };
    PlannedOut {
        script: prepared.script.clone(),
        count: prepared.drafts.len(),
        hosts: prepared.drafts.iter().take(SHOWN_MAX).map(host).collect(),
        running_user: prepared.running_user.clone(),
        content: prepared.content().to_owned(),
    }
}
