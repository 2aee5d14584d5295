//! Tasks that follow another one: what failed is tried again, what a stopped rollout changed is taken back.
//!
//! Invariant: nothing is rendered here. What runs was rendered, and approved, with the task that is followed; a retry
//! leaves out the steps that succeeded.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use drover_inventory::instances;
use drover_kernel::{Error, Result, Tx};
use drover_shared::order::{Entry, Step, canonical};
use drover_shared::words::{Action, ExecutionState as State};

use super::create::{self, busy};
use super::plan;
use super::premises;
use super::required;
use super::rollout::Rollout;
use super::rules::{Phase, Role, first_phase};
use super::store::{self, Execution, NewExecution, NewTask, Origin, Script, Task};
use crate::link::keys::random_secret;

/// Hosts that a remark names.
const NAMED_MAX: usize = 20;

/// A task to be made from another one.
struct FollowUp<'a> {
    origin: Origin,
    of: &'a Task,
    kind: Action,
    version: &'a str,
    creator: &'a str,
    rollout: Option<&'a Rollout>,
    parts: Vec<Part>,
    /// Whether the entries are final; else the source has to be fetched first.
    complete: bool,
}

struct Part {
    role: Role,
    instance_id: Option<i64>,
    host_id: i64,
    host_name: String,
    batch: i64,
    entry: Entry,
    revert_entry: Option<String>,
}

/// What became of making one.
pub(crate) struct Made {
    pub task_id: i64,
    pub channel: String,
}

/// What a person wants tried again.
pub(crate) struct Retry<'a> {
    /// Instances, or all that failed.
    pub instances: Option<&'a [i64]>,
    /// Whether steps that succeeded are left out.
    pub from_failed_step: bool,
    pub creator: &'a str,
    /// How to go from instance to instance; as the task did when left out.
    pub rollout: Option<&'a Rollout>,
}

/// Makes a task that tries again what failed.
///
/// # Errors
/// A conflict when nothing failed, or an instance is at work in another task.
pub(crate) async fn retry(tx: &mut Tx, task: &Task, executions: &[Execution], retry: &Retry<'_>) -> Result<Made> {
    let chosen = |execution: &Execution| match (execution.instance_id, retry.instances) {
        (Some(id), Some(wanted)) => wanted.contains(&id),
        // Nobody knows what a lost one did: it is tried again only when a person names it.
        (Some(_), None) => !execution.excluded && execution.state != State::Lost,
        (None, _) => true,
    };
    let failed: Vec<&Execution> =
        executions.iter().filter(|one| one.state.is_over() && one.state != State::Succeeded && chosen(one)).collect();
    for id in retry.instances.unwrap_or_default() {
        if !failed.iter().any(|one| one.instance_id == Some(*id)) {
            return Err(Error::invalid("instances", format!("{id} did not fail in this sub-task")));
        }
    }
    if !failed.iter().any(|one| one.role == Role::Instance) {
        return Err(Error::conflict("no instance of this sub-task failed"));
    }
    // The tasks that were named went before the task that is followed.
    let as_before = || task.rollout.as_ref().map(|rollout| Rollout { after_tasks: Vec::new(), ..rollout.0.clone() });
    let rollout = retry.rollout.cloned().or_else(as_before);
    let rollout = rollout.as_ref();
    let instances = failed.iter().filter(|one| one.role == Role::Instance).count();
    let mut batches = rollout.map(|rollout| rollout.batches(instances)).unwrap_or_default().into_iter();
    let mut parts = Vec::with_capacity(failed.len());
    let mut scripts = scripts(tx, task).await?;
    for execution in failed {
        let Some(script) = scripts.remove(&execution.id) else { continue };
        let entry: Entry = serde_json::from_str(&script.entry).map_err(Error::internal)?;
        let batch = if execution.role == Role::Instance { batches.next().unwrap_or(0) } else { 0 };
        let entry = if retry.from_failed_step { without_done(entry, &script) } else { entry };
        parts.push(Part { revert_entry: script.revert_entry, ..part(execution, batch, entry) });
    }
    let complete = task.plan_digest.is_some();
    let (version, creator) = (task.version.as_str(), retry.creator);
    let follow_up =
        FollowUp { origin: Origin::Retry, of: task, kind: task.kind, version, creator, rollout, parts, complete };
    insert(tx, follow_up).await
}

/// The texts of a task's executions, by execution.
async fn scripts(tx: &mut Tx, task: &Task) -> Result<HashMap<String, Script>> {
    let scripts = store::scripts(tx, task.id).await?;
    Ok(scripts.into_iter().map(|script| (script.execution_id.clone(), script)).collect())
}

fn part(execution: &Execution, batch: i64, entry: Entry) -> Part {
    Part {
        role: execution.role,
        instance_id: execution.instance_id,
        host_id: execution.host_id,
        host_name: execution.host_name.clone(),
        batch,
        entry,
        revert_entry: None,
    }
}

/// The entry without the steps that were done. The artifact is fetched in any case, which costs nothing when the host
/// still has it.
fn without_done(mut entry: Entry, script: &Script) -> Entry {
    let done = |index: usize| {
        let steps = script.steps.as_ref().and_then(|steps| steps.0.as_array())?;
        steps.get(index)?.get("state")?.as_str().map(|state| state == "succeeded")
    };
    let first = (0..entry.steps.len()).find(|index| done(*index) != Some(true)).unwrap_or(0);
    let rest = entry.steps.split_off(first);
    let unpacks = rest.iter().any(|step| matches!(step, Step::Unpack { .. }));
    entry.steps.retain(|step| unpacks && matches!(step, Step::Fetch { .. }));
    entry.steps.extend(rest);
    entry
}

/// Makes the task that takes back what a stopped rollout changed, and gives what to say of it.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn auto_revert(tx: &mut Tx, task: &Task, executions: &[Execution]) -> Result<String> {
    let started = |one: &&Execution| one.role == Role::Instance && one.dispatched_at.is_some() && !one.excluded;
    let mut parts = Vec::new();
    let mut left = Vec::new();
    let mut scripts = scripts(tx, task).await?;
    for execution in executions.iter().filter(started) {
        let way_back = scripts.remove(&execution.id).and_then(|script| script.revert_entry);
        match (way_back, execution.state) {
            (_, State::Lost) => left.push(format!("{} cannot say where it stands", execution.host_name)),
            (None, _) => left.push(format!("{} has no earlier release", execution.host_name)),
            (Some(entry), _) => {
                let entry = serde_json::from_str(&entry).map_err(Error::internal)?;
                parts.push(part(execution, 0, entry));
            }
        }
    }
    let left: Vec<String> = left.into_iter().take(NAMED_MAX).collect();
    let rest = if left.is_empty() { String::new() } else { format!("; not taken back: {}", left.join(", ")) };
    if parts.is_empty() {
        return Ok(format!("nothing to take back{rest}"));
    }
    let hosts: Vec<String> = parts.iter().map(|part| part.host_name.clone()).take(NAMED_MAX).collect();
    let versions: BTreeSet<String> = parts.iter().map(|part| part.entry.version.clone()).collect();
    let version = versions.into_iter().collect::<Vec<_>>().join(", ");
    let count = parts.len();
    let follow_up = FollowUp {
        origin: Origin::AutoRevert,
        of: task,
        kind: Action::Revert,
        version: &version,
        creator: &task.creator,
        rollout: None,
        parts,
        complete: true,
    };
    let made = insert(tx, follow_up).await?;
    let and = if count > hosts.len() { format!(" and {} more", count - hosts.len()) } else { String::new() };
    Ok(format!("sub-task {} takes {}{and} back to {version}{rest}", made.task_id, hosts.join(", ")))
}

async fn insert(tx: &mut Tx, follow_up: FollowUp<'_>) -> Result<Made> {
    let FollowUp { origin, of, kind, version, creator, rollout, parts, complete } = follow_up;
    let channel = random_secret().map_err(Error::internal)?;
    let ids: Vec<i64> = parts.iter().filter_map(|part| part.instance_id).collect();
    let before = premises::instance_statuses(tx, &ids).await?;
    instances::store::begin_change(tx, &ids, busy(kind)).await?;
    let allowed = Duration::from_secs(u64::try_from(of.timeout_s).unwrap_or(1));
    let task_id = store::insert_task(
        tx,
        &NewTask {
            deploy_task_id: of.deploy_task_id,
            application_id: of.application_id,
            kind,
            channel: &channel,
            version,
            update_source: of.update_source.as_deref(),
            timeout_s: of.timeout_s,
            keep_backups: of.keep_backups,
            source: of.source.as_ref().map(|source| &source.0).filter(|_| origin == Origin::Retry),
            creator,
            deadline_at: tx.now().after(allowed),
            rollout,
            origin: Some((origin, of.id)),
        },
    )
    .await?;
    let first = required::note(tx, (of.application_id, task_id), rollout).await?;
    let previous =
        |id: Option<i64>| before.iter().find(|(instance, _)| Some(*instance) == id).map(|(_, status)| status.clone());
    let executions: Vec<NewExecution> = parts
        .into_iter()
        .zip(1..)
        .map(|(part, ordinal)| NewExecution {
            id: uuid::Uuid::now_v7().to_string(),
            ordinal,
            role: part.role,
            instance_id: part.instance_id,
            host_id: part.host_id,
            host_name: part.host_name,
            previous_status: previous(part.instance_id),
            entry: canonical(&Entry { task_id, ..part.entry }),
            batch: part.batch,
            revert_entry: part.revert_entry,
        })
        .collect();
    store::insert_executions(tx, task_id, &executions).await?;
    if complete {
        let entries: Vec<String> = executions.iter().map(|execution| execution.entry.clone()).collect();
        let commit = of.resolved_commit.as_deref();
        let digest = plan::digest(task_id, kind, version, commit, &entries);
        let begins = first_phase(executions.iter().map(|execution| execution.role));
        let phase = if first.is_empty() { begins } else { Phase::Preparing };
        store::complete_plan(tx, task_id, phase, digest, of.artifact_digest, commit).await?;
    }
    create::begin(tx, task_id, &first).await?;
    Ok(Made { task_id, channel })
}
