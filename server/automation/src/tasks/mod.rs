//! Tasks: updates and reverts of batches of instances within a deploy task (the API calls them sub-tasks).
//!
//! Making one renders the whole plan, marks its instances as busy and wakes the engine, in one transaction. Invariants:
//! an instance is in one running task at a time; what runs is what was rendered when the task was made.

pub(crate) mod plan;
pub mod rules;
pub(crate) mod store;

use std::collections::BTreeMap;
use std::time::Duration;

use drover_inventory::instances;
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Line, Many, Name, Number, Reference};
use drover_kernel::resources::{ResourceKind, Resources};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Page, Paging, Path, Query, Reply, Result, Routes, api_words,
    permission, sql, when,
};
use drover_shared::order::{Entry, canonical};
use drover_shared::words::{Action, ExecutionState, Word as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::channel;
use crate::deploys::store::{self as deploy_store, DeployTask};
use crate::deploys::{self, rules as deploy_rules};
use crate::engine::Engine;
use crate::link::keys::random_secret;
use rules::{Outcome, Phase, Role};
use store::{ExecutionView, NewExecution, NewTask, Source, Task};

/// Seconds that a task may take unless call or settings say otherwise.
const TIMEOUT_S_DEFAULT: i64 = 120;
const TIMEOUT_S_MAX: i64 = 86_400;
/// Output shown inside the detail, in bytes; the channel has all of it.
const OUTPUT_SHOWN_BYTES: u64 = 64 * 1024;

permission!(pub ReadSubTask, "sub_tasks.read", "See sub-tasks and their output",
    Resource { kind: "deploy_task", right: "view_app" });
permission!(pub Run, "sub_tasks.run", "Update and revert instances within a started deploy task",
    Resource { kind: "deploy_task", right: "deploy_app" });

/// Routes of sub-tasks.
pub fn routes() -> Routes {
    let upgrades = "/applications/deploy-tasks/{id}/sub-upgrade-tasks/";
    let reverts = "/applications/deploy-tasks/{id}/sub-revert-tasks/";
    let one = |base: &str| format!("{base}{{task_id}}/");
    Routes::tagged("deploy-tasks")
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
        .get(&one(reverts), "deploy-task-sub-revert-detail", "Read one of the batch reverts.", read_revert)
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
        text_key: true,
    })
}

api_words! {
    /// State of a sub-task.
    pub enum Status {
        /// At work.
        Running = "running",
        /// An instance or a hook failed, or the time ran out.
        Failed = "failed",
        /// All went well.
        Finished = "finished",
    }
}

/// What making a sub-task returns.
#[derive(Debug, Serialize, JsonSchema)]
struct SubTaskReceipt {
    /// Id of the sub-task.
    task_id: String,
    /// Websocket address that streams the sub-task's output.
    task_output: String,
}

/// One batch of updates or reverts.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeploySubTask")]
pub struct SubTaskOut {
    task_id: String,
    /// `upgrade` or `revert`.
    #[schemars(with = "String")]
    kind: Action,
    deploy_task_id: i64,
    /// State for each instance.
    instances: Vec<InstanceOut>,
    /// State of the hooks that run once, if there are any.
    global_hooks: Vec<InstanceOut>,
    update_source: Option<String>,
    version: String,
    timeout: i64,
    status: Status,
    /// What the sub-task is at.
    phase: Phase,
    /// Why it failed, when that was before or beside the instances.
    error: Option<String>,
    creator: String,
    created_time: String,
    finished_time: Option<String>,
    task_output: String,
    /// Output so far, cut in the middle if it is long; in the detail only.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// Commit that the version was resolved to.
    commit: Option<String>,
    /// SHA-256 of the artifact.
    artifact_digest: Option<String>,
    /// Digest of the plan: what agents check.
    plan_digest: Option<String>,
}

/// One instance or hook within a sub-task.
#[derive(Debug, Serialize, JsonSchema)]
struct InstanceOut {
    /// Instance; null for a hook that runs once.
    id: Option<i64>,
    hostname: String,
    /// What it is for.
    role: Role,
    #[schemars(with = "String")]
    status: ExecutionState,
    error: Option<String>,
    execution_id: String,
    attempt: i64,
    /// Every step with its state, once the execution is over.
    steps: Option<Value>,
    /// What became of the processes, once the execution is over.
    processes: Option<Value>,
    output_truncated: bool,
    started_time: Option<String>,
    finished_time: Option<String>,
}

fn status(task: &Task) -> Status {
    match task.outcome {
        None => Status::Running,
        Some(Outcome::Finished) => Status::Finished,
        Some(Outcome::Failed) => Status::Failed,
    }
}

fn shown<P: drover_kernel::call::Permission>(call: &Call<P>, task: Task, executions: Vec<ExecutionView>) -> SubTaskOut {
    let kernel = call.kernel();
    let out = |view: ExecutionView| InstanceOut {
        id: view.instance_id,
        hostname: view.host_name,
        role: view.role,
        status: view.state,
        error: view.reason,
        execution_id: view.id,
        attempt: view.attempt,
        steps: view.steps.map(|json| json.0),
        processes: view.processes.map(|json| json.0),
        output_truncated: view.output_truncated,
        started_time: view.started_at.map(|time| kernel.show(time)),
        finished_time: view.finished_at.map(|time| kernel.show(time)),
    };
    let (instances, global): (Vec<_>, Vec<_>) = executions.into_iter().partition(|view| view.role == Role::Instance);
    SubTaskOut {
        task_id: task.id.to_string(),
        kind: task.kind,
        deploy_task_id: task.deploy_task_id,
        instances: instances.into_iter().map(out).collect(),
        global_hooks: global.into_iter().map(out).collect(),
        status: status(&task),
        update_source: task.update_source,
        version: task.version,
        timeout: task.timeout_s,
        phase: task.phase,
        error: task.reason,
        creator: task.creator,
        created_time: kernel.show(task.created_at),
        finished_time: task.finished_at.map(|time| kernel.show(time)),
        task_output: channel::address(call, &task.channel),
        output: None,
        commit: task.resolved_commit,
        artifact_digest: task.artifact_digest.map(|digest| digest.to_string()),
        plan_digest: task.plan_digest.map(|digest| digest.to_string()),
    }
}

/// Tasks with their executions, in two queries for any number of them.
async fn with_executions<P: drover_kernel::call::Permission>(
    call: &Call<P>,
    read: &mut Read,
    tasks: Vec<Task>,
) -> Result<Vec<SubTaskOut>> {
    let ids = tasks.iter().map(|task| task.id).collect();
    let mut by_task: BTreeMap<i64, Vec<ExecutionView>> = BTreeMap::new();
    for view in store::execution_views(read, ids).await? {
        by_task.entry(view.task_id).or_default().push(view);
    }
    Ok(tasks
        .into_iter()
        .map(|task| {
            let executions = by_task.remove(&task.id).unwrap_or_default();
            shown(call, task, executions)
        })
        .collect())
}

/// The sub-tasks of a deploy task, for its detail.
pub(crate) async fn of_deploy_task(
    call: &Call<deploys::Read>,
    read: &mut Read,
    task: &DeployTask,
) -> Result<Vec<SubTaskOut>> {
    let tasks = store::of_deploy_task(read, task.id).await?;
    with_executions(call, read, tasks).await
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
    drop(read);
    let log = call.kernel().part::<Engine>().logs.task(id).await.map_err(Error::internal)?;
    let output = log.text(OUTPUT_SHOWN_BYTES).await.map_err(Error::internal)?.to_string();
    Ok(Reply::new(SubTaskOut { output: Some(output), ..shown(&call, task, executions) }))
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
}

/// A batch of reverts.
#[derive(Deserialize, JsonSchema)]
struct RevertNew {
    /// Instances to revert.
    instances: Many<Reference>,
    /// Version to return to; must be among the kept releases.
    version: Name,
    /// Seconds this sub-task may take; the settings' when left out.
    #[serde(default)]
    timeout: Option<Number>,
}

/// What both kinds ask for.
struct Wanted {
    action: Action,
    instances: Vec<i64>,
    version: Option<String>,
    source: Option<String>,
    timeout_s: Option<i64>,
}

fn wanted_instances(references: &Many<Reference>) -> Result<Vec<i64>> {
    let mut ids: Vec<i64> = Vec::with_capacity(references.0.len());
    for reference in &references.0 {
        if !ids.contains(&reference.id.0) {
            ids.push(reference.id.0);
        }
    }
    if ids.is_empty() { Err(Error::invalid("instances", "give at least one")) } else { Ok(ids) }
}

fn wanted_timeout(timeout: Option<Number>) -> Result<Option<i64>> {
    match timeout {
        Some(Number(seconds)) if !(1..=TIMEOUT_S_MAX).contains(&seconds) => {
            Err(Error::invalid("timeout", format!("must be 1 to {TIMEOUT_S_MAX} seconds")))
        }
        timeout => Ok(timeout.map(|seconds| seconds.0)),
    }
}

async fn upgrade(call: Call<Run>, id: Path<i64>, body: Body<UpgradeNew>) -> Result<Reply<SubTaskReceipt>> {
    let new = body.0;
    let wanted = Wanted {
        action: Action::Upgrade,
        instances: wanted_instances(&new.instances)?,
        version: new.version.map(|version| version.required("version")).transpose()?,
        source: new.update_source.map(|path| path.0),
        timeout_s: wanted_timeout(new.timeout)?,
    };
    create(call, id.0, wanted).await
}

async fn revert(call: Call<Run>, id: Path<i64>, body: Body<RevertNew>) -> Result<Reply<SubTaskReceipt>> {
    let new = body.0;
    let wanted = Wanted {
        action: Action::Revert,
        instances: wanted_instances(&new.instances)?,
        version: Some(new.version.required("version")?),
        source: None,
        timeout_s: wanted_timeout(new.timeout)?,
    };
    create(call, id.0, wanted).await
}

/// What a plan was made from, and the plan.
struct Planned {
    deploy_task: DeployTask,
    drafts: Vec<plan::Draft>,
    version: String,
    source: Option<Source>,
    timeout_s: i64,
    keep_backups: i64,
}

/// Reads everything that the plan needs, checks it and renders. Nothing is written.
async fn prepare(call: &Call<Run>, deploy_task_id: i64, wanted: &Wanted) -> Result<Planned> {
    let mut read = call.read().await?;
    let deploy_task = deploy_store::load(&mut read, call.organisation_id(), deploy_task_id).await?;
    deploy_rules::step(deploy_task.status, deploy_rules::Event::MakeSubTask, deploy_rules::Facts::default())?;
    let application_id = deploy_task.application_id;
    let settings = store::settings(&mut read, application_id).await?.filter(|settings| settings.enabled);
    let settings =
        settings.ok_or_else(|| Error::conflict("the deploy settings of this application are not enabled"))?;
    let targets = store::targets(&mut read, application_id, &wanted.instances).await?;
    if let Some(missing) = wanted.instances.iter().find(|id| !targets.iter().any(|target| target.instance_id == **id)) {
        return Err(Error::invalid("instances", format!("{missing} is no instance of this application")));
    }
    let application = store::application(&mut read, application_id).await?;
    let hooks = store::hooks(&mut read, application_id).await?;
    let addresses = store::addresses(&mut read, targets.iter().map(|target| target.host_id).collect()).await?;
    let version = wanted.version.clone().unwrap_or_else(|| deploy_task.version.clone());
    let releases = match wanted.action {
        Action::Upgrade => vec![],
        Action::Revert => {
            let kept = store::kept_releases(&mut read, &wanted.instances).await?;
            releases_to_return_to(kept, &targets, &version)?
        }
    };
    drop(read);
    let source_path = wanted.source.clone().unwrap_or_else(|| deploy_task.package_source.clone());
    let source = match (&settings.repository_url, wanted.action) {
        (Some(url), Action::Upgrade) => Some(Source {
            url: url.clone(),
            branch: settings.repository_branch.clone().unwrap_or_else(|| "main".to_owned()),
            version: version.clone(),
            path: source_path.clone(),
        }),
        _ => None,
    };
    let moves_files = source.is_some() || wanted.action == Action::Revert;
    if moves_files && settings.deploy_path.is_none() && application.directory.is_empty() {
        return Err(Error::conflict("the deploy settings have no deploy_path: there is no place for the files"));
    }
    let creator = call.caller()?.username.clone();
    let input = plan::Input {
        action: wanted.action,
        version: &version,
        source_path: &source_path,
        creator: &creator,
        deploy_task: &deploy_task,
        application: &application,
        settings: &settings,
        hooks: &hooks,
        targets: &targets,
        everyone: plan::everyone(&targets),
        addresses: &addresses,
        releases: &releases,
    };
    let drafts = plan::draft(&input)?;
    let timeout_s =
        wanted.timeout_s.unwrap_or(if settings.timeout_s > 0 { settings.timeout_s } else { TIMEOUT_S_DEFAULT });
    Ok(Planned { deploy_task, drafts, version, source, timeout_s, keep_backups: settings.keep_backups })
}

/// The kept release of every target that has this version, the newest if there are several.
fn releases_to_return_to(
    kept: Vec<store::KeptRelease>,
    targets: &[store::Target],
    version: &str,
) -> Result<Vec<store::KeptRelease>> {
    let mut chosen = Vec::with_capacity(targets.len());
    for target in targets {
        let of_target: Vec<_> = kept.iter().filter(|release| release.instance_id == target.instance_id).collect();
        // Branches and labels name several releases: what is live already is nothing to go back to if there is another.
        let of_version = || of_target.iter().filter(|release| release.version == version);
        match of_version().find(|release| !release.is_current).or_else(|| of_version().next()) {
            Some(release) => chosen.push((*release).clone()),
            None => {
                let mut versions: Vec<&str> = of_target.iter().map(|release| release.version.as_str()).collect();
                versions.dedup();
                let kept = if versions.is_empty() { "nothing".to_owned() } else { versions.join(", ") };
                return Err(Error::conflict(format!(
                    "version {version} is not among the releases that {} keeps; it keeps {kept}",
                    target.host_name
                )));
            }
        }
    }
    Ok(chosen)
}

async fn create(call: Call<Run>, deploy_task_id: i64, wanted: Wanted) -> Result<Reply<SubTaskReceipt>> {
    let planned = prepare(&call, deploy_task_id, &wanted).await?;
    let caller = call.caller()?;
    let creator = caller.username.clone();
    let channel = random_secret().map_err(Error::internal)?;
    let address = channel::address(&call, &channel);
    let mut tx = call.begin().await?;
    deploy_store::lock(&mut tx, &planned.deploy_task).await?;
    let busy = match wanted.action {
        Action::Upgrade => instances::rules::InstanceStatus::Updating,
        Action::Revert => instances::rules::InstanceStatus::Reverting,
    };
    // Read under the change's own lock: this is what they go back to if nothing happens to them.
    let before = store::instance_statuses(&mut tx, &wanted.instances).await?;
    instances::store::begin_change(&mut tx, &wanted.instances, busy).await?;
    let allowed = Duration::from_secs(u64::try_from(planned.timeout_s).unwrap_or(1));
    let new = NewTask {
        deploy_task_id,
        application_id: planned.deploy_task.application_id,
        kind: wanted.action,
        channel: &channel,
        version: &planned.version,
        update_source: planned.source.as_ref().map(|source| source.path.as_str()),
        timeout_s: planned.timeout_s,
        keep_backups: planned.keep_backups,
        source: planned.source.as_ref(),
        creator: &creator,
        deadline_at: tx.now().after(allowed),
    };
    let task_id = store::insert_task(&mut tx, &new).await?;
    let entries: Vec<Entry> = planned
        .drafts
        .iter()
        .map(|draft| plan::complete(draft.entry.clone(), task_id, None, planned.keep_backups))
        .collect();
    let executions: Vec<NewExecution> = planned
        .drafts
        .into_iter()
        .zip(&entries)
        .map(|(draft, entry)| NewExecution {
            id: uuid::Uuid::now_v7().to_string(),
            ordinal: draft.ordinal,
            role: draft.role,
            instance_id: draft.instance_id,
            host_id: draft.host_id,
            host_name: draft.host_name,
            previous_status: draft
                .instance_id
                .and_then(|id| before.iter().find(|(instance, _)| *instance == id))
                .map(|(_, status)| status.clone()),
            entry: canonical(entry),
        })
        .collect();
    store::insert_executions(&mut tx, task_id, &executions).await?;
    if planned.source.is_none() {
        // Nothing is to be fetched: the plan is complete as it is.
        let entries: Vec<String> = executions.iter().map(|execution| execution.entry.clone()).collect();
        let digest = plan::digest(task_id, wanted.action, &planned.version, None, &entries);
        store::complete_plan(&mut tx, task_id, digest, None, None).await?;
    }
    tx.enqueue(crate::engine::TOPIC, &task_id.to_string()).await?;
    tx.after_commit(move |kernel| crate::engine::wake(kernel, task_id));
    let entry = AuditEntry::new(AuditList::General, wanted.action.as_str(), "task", task_id, planned.version)
        .detail(format!("deploy task {deploy_task_id}, {} instances", wanted.instances.len()));
    tx.commit(Audit::of(entry), SubTaskReceipt { task_id: task_id.to_string(), task_output: address }).await
}
