//! Tasks that follow another one: what failed is tried again, what a stopped rollout changed is taken back.
//!
//! Invariant: nothing is rendered here. What runs was rendered, and approved, with the task that is followed; a retry
//! leaves out the steps that succeeded, and what another retry has tried, or has done of the hooks that run once.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use drover_kernel::call::Caller;
use drover_kernel::{Error, Result, Tx};
use drover_shared::order::{Entry, Step, canonical};
use drover_shared::words::{Action, ExecutionState as State};

use super::answer;
use super::create;
use super::plan;
use super::premises;
use super::required;
use super::rollout::{Rollout, Standing, WayBack, way_back};
use super::rules::{Phase, Role, first_phase};
use super::store::{self, Execution, NewExecution, NewTask, Origin, Script, Source, Task};
use crate::archives;
use crate::artifacts::Naming;
use crate::engine::UNTOUCHING;
use crate::executions::rules::Answer;
use crate::executions::store as execution_store;
use crate::link::keys::random_secret;
use crate::locks::rules::Object;
use crate::locks::taking::{Place, Taken, Targets, take, take_or_wait};

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
    place: Place,
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
    /// Keeps what is fetched again from being removed.
    pub naming: &'a Naming,
    pub caller: &'a Caller,
    /// Why; what it says of lost ones.
    pub reason: &'a str,
    /// How to go from instance to instance; as the task did when left out.
    pub rollout: Option<&'a Rollout>,
    pub place: Place,
}

/// Makes a task that tries again what failed.
///
/// # Errors
/// A conflict when nothing failed, or an instance is at work in another task.
pub(crate) async fn retry(tx: &mut Tx, task: &Task, executions: &[Execution], retry: &Retry<'_>) -> Result<Made> {
    let chosen = |execution: &Execution| match (execution.target(), retry.instances) {
        (Some(id), Some(wanted)) => wanted.contains(&id),
        // Nobody knows what a lost one did: it is tried again only when a person names it.
        (Some(_), None) => !execution.excluded && execution.state != State::Lost,
        (None, _) => true,
    };
    let mut failed: Vec<&Execution> =
        executions.iter().filter(|one| one.state.is_over() && one.state != State::Succeeded && chosen(one)).collect();
    for id in retry.instances.unwrap_or_default() {
        if !failed.iter().any(|one| one.target() == Some(*id)) {
            return Err(Error::invalid("instances", format!("{id} did not fail in this sub-task")));
        }
    }
    let later = Later::read(tx, task, &failed).await?;
    // What was tried again already goes on from where that came to.
    for execution in failed.iter().filter(|_| retry.instances.is_some()) {
        if let Some(again) = later.retry_of(execution) {
            let host = &execution.host_name;
            return Err(Error::conflict(format!("{host} was tried again already: retry sub-task {again} instead")));
        }
    }
    failed.retain(|one| later.retry_of(one).is_none() && !later.has_done(one));
    if !failed.iter().any(|one| one.role == Role::Instance) {
        return Err(Error::conflict("no instance of this sub-task failed and was not tried again since"));
    }
    let as_before = match (retry.rollout, &task.rollout) {
        (None, Some(rollout)) => {
            // What has begun went after everything that had to go before it.
            let began = executions.iter().any(|one| one.dispatched_at.is_some());
            let after_tasks = if began { Vec::new() } else { required::still(tx, &rollout.0.after_tasks).await? };
            Some(Rollout { after_tasks, ..rollout.0.clone() })
        }
        _ => None,
    };
    let rollout = retry.rollout.or(as_before.as_ref());
    let instances = failed.iter().filter(|one| one.role == Role::Instance).count();
    let mut batches = rollout.map(|rollout| rollout.batches(instances)).unwrap_or_default().into_iter();
    let mut parts = Vec::with_capacity(failed.len());
    let mut scripts = scripts(tx, task).await?;
    for execution in failed {
        if execution.state == State::Lost && execution.role == Role::Instance {
            answer::note(tx, execution, Answer::Retry, (retry.caller, retry.reason)).await?;
        }
        let Some(script) = scripts.remove(&execution.id) else { continue };
        let entry: Entry = serde_json::from_str(&script.entry).map_err(Error::internal)?;
        let batch = if execution.role == Role::Instance { batches.next().unwrap_or(0) } else { 0 };
        // What another task did since then may have undone what was done.
        let goes_on = retry.from_failed_step && !later.changed(execution.instance_id);
        let entry = if goes_on { without_done(entry, &script) } else { entry };
        parts.push(Part { revert_entry: script.revert_entry, ..part(execution, batch, entry) });
    }
    check_source(tx, retry.naming, task, &parts).await?;
    let complete = task.plan_digest.is_some();
    let (version, creator) = (task.version.as_str(), retry.caller.username.as_str());
    let (origin, kind, place) = (Origin::Retry, task.kind, retry.place);
    let follow_up = FollowUp { origin, of: task, kind, version, creator, rollout, place, parts, complete };
    insert(tx, follow_up).await
}

/// Refuses to fetch again what is gone.
async fn check_source(tx: &mut Tx, naming: &Naming, task: &Task, parts: &[Part]) -> Result<()> {
    let fetches = |part: &Part| part.entry.steps.iter().any(|step| matches!(step, Step::Fetch { .. }));
    match (task.artifact_digest, task.source.as_ref().map(|source| &source.0)) {
        (Some(artifact), _) if parts.iter().any(fetches) && !naming.has(artifact).await? => {
            let version = &task.version;
            Err(Error::conflict(format!(
                "what version {version} was made of is no longer on this server: make a new sub-task, for an uploaded \
                 archive after uploading it again"
            )))
        }
        (None, Some(Source { archive_of: Some(application_id), version, commit, artifact: None, .. })) => {
            archives::find(tx, *application_id, version, commit.as_deref()).await.map(drop)
        }
        _ => Ok(()),
    }
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

/// What became of the same things after the task that is tried again or taken back.
struct Later {
    /// Tasks that were given its instances.
    instances: Vec<execution_store::Later>,
    /// What its retries have of the rest.
    others: Vec<execution_store::TriedAgain>,
}

impl Later {
    async fn read(tx: &mut Tx, task: &Task, executions: &[&Execution]) -> Result<Self> {
        let instances = executions.iter().filter_map(|one| one.instance_id).collect();
        let instances = execution_store::later_tasks(tx, instances, task.id).await?;
        Ok(Self { instances, others: execution_store::tried_again(tx, task.id).await? })
    }

    fn changed(&self, instance_id: Option<i64>) -> bool {
        self.instances.iter().any(|later| Some(later.instance_id) == instance_id)
    }

    /// The task that tried it again.
    fn retry_of(&self, execution: &Execution) -> Option<i64> {
        match execution.object()? {
            Object::Instance(id) => {
                let mut of = self.instances.iter().rev().filter(|later| later.instance_id == id);
                of.find(|later| later.retries).map(|later| later.task_id)
            }
            Object::Host(id) => {
                let mut of =
                    self.others.iter().rev().filter(|again| again.role == Role::Instance && again.host_id == id);
                of.find(|again| again.directly).map(|again| again.task_id)
            }
        }
    }

    /// Whether a hook that runs once was done by trying again, or is to be. One that failed there as well is taken along.
    fn has_done(&self, execution: &Execution) -> bool {
        let done = |state| {
            matches!(state, State::Queued | State::Dispatched | State::Running | State::Succeeded | State::Lost)
        };
        execution.role != Role::Instance
            && self.others.iter().any(|again| again.role == execution.role && done(again.state))
    }
}

/// The entry without the steps that were done. Two of these stay in any case, because they cost nothing when there is
/// nothing to do: fetching the artifact for an unpacking that is still due, and the switch, which tells the hooks behind it
/// which release they belong to.
fn without_done(mut entry: Entry, script: &Script) -> Entry {
    let first = (0..entry.steps.len()).find(|index| !done(script, *index)).unwrap_or(entry.steps.len());
    let rest = entry.steps.split_off(first);
    let unpacks = rest.iter().any(|step| matches!(step, Step::Unpack { .. }));
    entry.steps.retain(|step| match step {
        Step::Fetch { .. } => unpacks,
        Step::Switch { .. } => true,
        _ => false,
    });
    entry.steps.extend(rest);
    entry
}

/// Whether a step succeeded.
fn done(script: &Script, index: usize) -> bool {
    state_of(script, index) == Some("succeeded")
}

fn state_of(script: &Script, index: usize) -> Option<&str> {
    script.steps.as_ref()?.0.as_array()?.get(index)?.get("state")?.as_str()
}

/// Whether anything may have been done to what an instance serves. A host that told no steps leaves that open, unless it
/// never began: then it turned the order down, or never got it.
fn touched(script: &Script, state: State) -> bool {
    let Some(steps) = script.steps.as_ref().and_then(|steps| steps.0.as_array()) else { return state == State::Lost };
    let waits = |index: usize| matches!(state_of(script, index), Some("pending" | "skipped") | None);
    let changes = |step: &serde_json::Value| {
        !UNTOUCHING.contains(&step.get("name").and_then(serde_json::Value::as_str).unwrap_or_default())
    };
    steps.is_empty() || steps.iter().enumerate().any(|(index, step)| !waits(index) && changes(step))
}

/// What became of taking a rollout back.
pub(crate) struct TakenBack {
    /// The task that does it and the version that it goes back to, if there is anything to take back.
    pub made: Option<(i64, String)>,
    /// For the output.
    pub said: String,
}

/// Makes the task that takes back what a stopped rollout changed, and gives what to say of it. Whatever somebody else has
/// taken in hand since then is left alone, and named.
///
/// # Errors
/// When the database is not available, or an instance is taken in hand at this very moment.
pub(crate) async fn auto_revert(tx: &mut Tx, task: &Task, executions: &[Execution]) -> Result<TakenBack> {
    let started = |one: &&Execution| one.role == Role::Instance && one.dispatched_at.is_some();
    let started: Vec<&Execution> = executions.iter().filter(started).collect();
    let mut parts = Vec::new();
    let mut left = Vec::new();
    let mut scripts = scripts(tx, task).await?;
    let later = Later::read(tx, task, &started).await?;
    let ids: Vec<i64> = started.iter().filter_map(|one| one.instance_id).collect();
    let statuses: HashMap<i64, String> = premises::instance_statuses(tx, &ids).await?.into_iter().collect();
    for execution in started {
        let Some(script) = scripts.remove(&execution.id) else { continue };
        let status = execution.instance_id.and_then(|id| statuses.get(&id));
        let standing = Standing {
            state: execution.state,
            touched: touched(&script, execution.state),
            status: status.and_then(|text| text.parse().ok()),
            changed_since: later.changed(execution.instance_id),
            has_former: script.revert_entry.is_some(),
        };
        match (way_back(standing), script.revert_entry) {
            (WayBack::Goes, Some(entry)) => {
                let entry = serde_json::from_str(&entry).map_err(Error::internal)?;
                parts.push(part(execution, 0, entry));
            }
            (WayBack::Left(why), _) => left.push(format!("{} {why}", execution.host_name)),
            (WayBack::Untouched | WayBack::Goes, _) => {}
        }
    }
    let left: Vec<String> = left.into_iter().take(NAMED_MAX).collect();
    let rest = if left.is_empty() { String::new() } else { format!("; not taken back: {}", left.join(", ")) };
    if parts.is_empty() {
        return Ok(TakenBack { made: None, said: format!("nothing to take back{rest}") });
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
        place: Place::NONE,
        parts,
        complete: true,
    };
    let made = insert(tx, follow_up).await?;
    let and = if count > hosts.len() { format!(" and {} more", count - hosts.len()) } else { String::new() };
    let said = format!("sub-task {} takes {}{and} back to {version}{rest}", made.task_id, hosts.join(", "));
    Ok(TakenBack { made: Some((made.task_id, version)), said })
}

async fn insert(tx: &mut Tx, follow_up: FollowUp<'_>) -> Result<Made> {
    let FollowUp { origin, of, kind, version, creator, rollout, place, parts, complete } = follow_up;
    let channel = random_secret().map_err(Error::internal)?;
    let targets = Targets::of(parts.iter().filter_map(|part| Object::of(part.role, part.instance_id, part.host_id)));
    let taken = match origin {
        Origin::Retry => take_or_wait(tx, &targets, kind, place).await?,
        // It belongs to what had them up to now: nobody in the queue comes in between.
        Origin::AutoRevert => Taken::Now(take(tx, &targets, kind).await?),
    };
    if taken.waits().is_some() && parts.iter().any(|part| part.revert_entry.is_some()) {
        let text = "a task that takes back what it changes does not wait: leave out if_busy";
        return Err(Error::conflict(text));
    }
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
            priority: place.priority,
            has_taken: taken.waits().is_none(),
        },
    )
    .await?;
    let first = required::note(tx, (of.application_id, task_id), rollout).await?;
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
            previous_status: taken.status_before(part.instance_id),
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
        let phase = if first.is_empty() && taken.waits().is_none() { begins } else { Phase::Preparing };
        store::complete_plan(tx, task_id, phase, digest, of.artifact_digest, commit).await?;
    }
    create::begin(tx, task_id, &first, &taken).await?;
    Ok(Made { task_id, channel })
}

#[cfg(test)]
#[path = "follow_up_tests.rs"]
mod tests;
