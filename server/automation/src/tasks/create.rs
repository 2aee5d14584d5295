//! Making a task: everything is read, checked and rendered first, then stored in one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use drover_inventory::secrets::TaskSecrets;
use drover_inventory::variables::TaskVariables;
use drover_kernel::at_once::blocking;
use drover_kernel::db::Read;
use drover_kernel::fields::{Many, Number, Reference};
use drover_kernel::{Audit, AuditEntry, AuditList, Call, Error, Reply, Result, Tx};
use drover_shared::order::{Entry, canonical};
use drover_shared::words::{Action, Word as _};
use schemars::JsonSchema;
use serde::Serialize;

use super::binding::Binding;
use super::follow_up::Made;
use super::former;
use super::premises;
use super::preview::{self, Preview};
use super::required;
use super::rollout::Rollout;
use super::rules::{Phase, first_phase};
use super::secrets::Offered;
use super::store::{self, NewExecution, NewTask, Source};
use super::view::SubTaskReceipt;
use super::{Run, plan};
use crate::channel;
use crate::credentials::store::Owner;
use crate::deploys::carried::{self, Standing};
use crate::deploys::rules as deploy_rules;
use crate::deploys::store::{self as deploy_store, DeployTask};
use crate::engine;
use crate::link::keys::random_secret;
use crate::locks::taking::{Place, Taken, Targets, take_or_wait};
use crate::render;
use crate::settings::rules::{Repository, RepositoryType, TIMEOUT_S_MAX};
use crate::settings::{self, store::Loaded};

/// What both kinds ask for.
pub(crate) struct Wanted {
    pub action: Action,
    pub instances: Vec<i64>,
    pub version: Option<String>,
    pub source: Option<String>,
    pub timeout_s: Option<i64>,
    pub rollout: Option<Rollout>,
    pub place: Place,
}

pub(crate) fn wanted_instances(references: &Many<Reference>) -> Result<Vec<i64>> {
    let mut ids: Vec<i64> = Vec::with_capacity(references.0.len());
    for reference in &references.0 {
        if !ids.contains(&reference.id.0) {
            ids.push(reference.id.0);
        }
    }
    if ids.is_empty() { Err(Error::invalid("instances", "give at least one")) } else { Ok(ids) }
}

pub(crate) fn wanted_timeout(timeout: Option<Number>) -> Result<Option<i64>> {
    match timeout {
        Some(Number(seconds)) if !(1..=TIMEOUT_S_MAX).contains(&seconds) => {
            Err(Error::invalid("timeout", format!("must be 1 to {TIMEOUT_S_MAX} seconds")))
        }
        timeout => Ok(timeout.map(|seconds| seconds.0)),
    }
}

/// What a plan is made from.
pub(crate) struct Gathered {
    deploy_task: DeployTask,
    pub input: plan::Input,
    /// Releases that instances have now, if the rollout is to take back what it changes.
    kept: Vec<premises::KeptRelease>,
    pub source: Option<Source>,
    timeout_s: i64,
}

/// A plan, and what it was made from.
pub(crate) struct Planned {
    pub deploy_task: DeployTask,
    pub input: plan::Input,
    pub drafts: Vec<plan::Draft>,
    /// What takes an instance back, if the rollout is to do so.
    pub reverts: BTreeMap<i64, Entry>,
    pub source: Option<Source>,
    pub timeout_s: i64,
}

impl Planned {
    /// Has the source fetched at the commit that this plan is bound to, wherever its version points by then.
    pub(crate) fn pin(&mut self, binding: &Binding) {
        if let Some(source) = &mut self.source {
            source.commit.clone_from(&binding.commit);
        }
    }
}

/// Reads everything that the plan needs, and checks it. Nothing is written.
pub(crate) async fn gather(
    read: &mut Read,
    deploy_task: DeployTask,
    creator: &str,
    wanted: &Wanted,
    output_bytes_max: u64,
) -> Result<Gathered> {
    let application_id = deploy_task.application_id;
    let loaded = Loaded::check_enabled(settings::store::load(read, application_id).await?)?;
    let owner = loaded.owner_of_repository();
    let Loaded { values: settings, hooks, .. } = loaded;
    let targets = premises::targets(read, application_id, &wanted.instances).await?;
    if let Some(missing) = wanted.instances.iter().find(|id| !targets.iter().any(|target| target.instance_id == **id)) {
        return Err(Error::invalid("instances", format!("{missing} is no instance of this application")));
    }
    let application = premises::application(read, application_id).await?;
    let addresses = premises::addresses(read, targets.iter().map(|target| target.host_id).collect()).await?;
    let host_ids: Vec<i64> = targets.iter().map(|target| target.host_id).collect();
    let variables = TaskVariables::read(read, application.id, host_ids.clone(), wanted.instances.clone()).await?;
    let owner_of_secrets = (application.organisation_id, application.id);
    let secrets = TaskSecrets::read(read, owner_of_secrets, host_ids, wanted.instances.clone()).await?;
    required::find(read, application.organisation_id, Some(application_id), wanted.rollout.as_ref()).await?;
    let version = wanted.version.clone().unwrap_or_else(|| deploy_task.version.clone());
    let takes_back = wanted.rollout.as_ref().is_some_and(|rollout| rollout.auto_revert);
    let mut kept = Vec::new();
    if wanted.action == Action::Revert || takes_back {
        kept = premises::kept_releases(read, &wanted.instances).await?;
    }
    let back = match wanted.action {
        Action::Upgrade | Action::Start | Action::Stop | Action::Restart | Action::Script => {
            former::Return { kept: Vec::new(), source: None }
        }
        Action::Revert => former::find(read, &kept, &targets, &version, &settings).await?,
    };
    let source_path = wanted.source.clone().unwrap_or_else(|| deploy_task.package_source.clone());
    let repository = settings.repository.as_ref().filter(|_| wanted.action == Action::Upgrade);
    let source = repository.map(|repository| Source {
        version: version.clone(),
        path: source_path.clone(),
        ..source_of(repository, owner, application_id)
    });
    let source = source.or(back.source);
    let moves_files = source.is_some() || wanted.action == Action::Revert;
    if moves_files && settings.deploy_path.is_none() && application.directory.is_empty() {
        return Err(Error::conflict("the deploy settings have no deploy_path: there is no place for the files"));
    }
    if takes_back && (source.is_none() || wanted.action == Action::Revert) {
        return Err(Error::invalid(
            "rollout.auto_revert",
            "this sub-task installs no release that could be taken back",
        ));
    }
    let timeout_s = wanted.timeout_s.unwrap_or(settings.timeout_s());
    let everyone = plan::everyone(&targets);
    let input = plan::Input {
        action: wanted.action,
        output_bytes_max,
        version,
        source_path,
        creator: creator.to_owned(),
        deploy_task: Some(told(&deploy_task)),
        application,
        settings,
        hooks,
        targets,
        everyone,
        addresses,
        releases: back.kept,
        former: source.as_ref().and_then(|source| source.artifact),
        rollout: wanted.rollout.clone(),
        variables: Arc::new(variables),
        work: Arc::default(),
        secrets: Offered::new(secrets),
    };
    Ok(Gathered { deploy_task, input, kept, source, timeout_s })
}

/// A deploy task as scripts see it.
fn told(deploy_task: &DeployTask) -> render::DeployTask {
    render::DeployTask {
        id: deploy_task.id,
        version: deploy_task.version.clone(),
        level: deploy_task.level.clone(),
        description: deploy_task.description.clone(),
        creator: deploy_task.creator.clone(),
    }
}

/// Where a repository is and what it is reached with.
fn source_of(repository: &Repository, owner: Owner, application_id: i64) -> Source {
    Source {
        archive_of: (repository.repository_type == RepositoryType::Archive).then_some(application_id),
        url: repository.url.clone(),
        branch: repository.branch.clone(),
        version: String::new(),
        path: String::new(),
        credential_id: repository.credential_id,
        host_key: repository.host_key.clone(),
        ca_certificate: repository.ca_certificate.clone(),
        commit: None,
        artifact: None,
        owner: Some(owner),
    }
}

/// Renders the plan, on a thread of its own: for many targets it takes a processor for a while, and requests beside it
/// do not wait.
pub(crate) async fn render(gathered: Gathered) -> Result<Planned> {
    let Gathered { deploy_task, input, kept, source, timeout_s } = gathered;
    let rendering = blocking(move || {
        let drafts = plan::draft(&input)?;
        let takes_back = input.rollout.as_ref().is_some_and(|rollout| rollout.auto_revert);
        let reverts = if takes_back { plan::draft_reverts(&input, kept)? } else { BTreeMap::new() };
        Ok::<_, Error>(Planned { deploy_task, input, drafts, reverts, source, timeout_s })
    });
    rendering.await?
}

/// What asking for a sub-task gives.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Asked {
    /// It was made.
    Made(SubTaskReceipt),
    /// Its plan, when only that was asked for.
    Planned(Box<Preview>),
}

/// Shows what a sub-task would do.
pub(super) async fn look(call: Call<Run>, deploy_task_id: i64, wanted: Wanted) -> Result<Reply<Asked>> {
    let mut read = call.read().await?;
    required::check_seen(&call, &mut read, wanted.rollout.as_ref()).await?;
    let deploy_task = deploy_store::load(&mut read, call.organisation_id(), deploy_task_id).await?;
    let creator = creator(&call, &deploy_task, &wanted)?;
    let gathered = gather(&mut read, deploy_task, &creator, &wanted, call.kernel().settings().output_bytes_max).await?;
    drop(read);
    let planned = render(gathered).await?;
    let commit = preview::commit(call.kernel(), call.organisation_id(), planned.source.as_ref()).await?;
    let binding = Binding::of(&planned, commit);
    let preview = preview::preview(&mut call.read().await?, call.caller()?, planned, binding).await?;
    Ok(Reply::new(Asked::Planned(Box::new(preview))))
}

/// Whom scripts are told as the one who deploys: for an approved plan who wrote it, whoever carries it out.
fn creator(call: &Call<Run>, deploy_task: &DeployTask, wanted: &Wanted) -> Result<String> {
    let is_bound = deploy_task.plan.is_some() && wanted.action == Action::Upgrade;
    Ok(if is_bound { deploy_task.creator.clone() } else { call.caller()?.username.clone() })
}

pub(super) async fn create(call: Call<Run>, deploy_task_id: i64, wanted: Wanted) -> Result<Reply<Asked>> {
    let username = call.caller()?.username.clone();
    let mut read = call.read().await?;
    let deploy_task = deploy_store::load(&mut read, call.organisation_id(), deploy_task_id).await?;
    deploy_rules::step(deploy_task.status, deploy_rules::Event::MakeSubTask, deploy_rules::Facts::default())?;
    required::check_seen(&call, &mut read, wanted.rollout.as_ref()).await?;
    let creator = creator(&call, &deploy_task, &wanted)?;
    let gathered = gather(&mut read, deploy_task, &creator, &wanted, call.kernel().settings().output_bytes_max).await?;
    drop(read);
    if let Some(source) = &gathered.source {
        former::check(call.kernel(), call.organisation_id(), &gathered.input.version, source).await?;
    }
    let mut planned = render(gathered).await?;
    let addresses = channel::addresses(&call);
    let (action, instances) = (wanted.action, wanted.instances.len());
    let version = planned.input.version.clone();
    let call = match hold_to_what_was_approved(call, &mut planned).await? {
        Held::Good(call) => call,
        Held::Void(tx, why) => {
            carried::make_void(tx, &planned.deploy_task, &why).await?;
            return Err(Error::conflict(format!("the approval of this deploy task is void: {why}")));
        }
    };
    let mut tx = call.begin().await?;
    deploy_store::lock(&mut tx, &planned.deploy_task).await?;
    let made = store_planned(&mut tx, planned, &username, wanted.place).await?;
    let entry = AuditEntry::new(AuditList::General, action.as_str(), "task", made.task_id, version)
        .detail(format!("deploy task {deploy_task_id}, {instances} instances"));
    let receipt = SubTaskReceipt { task_id: made.task_id.to_string(), task_output: addresses.of(&made.channel) };
    tx.commit(Audit::of(entry), Asked::Made(receipt)).await
}

enum Held {
    Good(Call<Run>),
    Void(Tx, String),
}

/// An update within a deploy task that was approved with its plan has to be that plan.
async fn hold_to_what_was_approved(call: Call<Run>, planned: &mut Planned) -> Result<Held> {
    let deploy_task = &planned.deploy_task;
    let Some(approval) = deploy_task.approval.clone().filter(|_| planned.input.action == Action::Upgrade) else {
        return Ok(Held::Good(call));
    };
    let organisation_id = call.organisation_id();
    let commit = preview::commit(call.kernel(), organisation_id, planned.source.as_ref()).await?;
    let asked = Binding::of(planned, commit);
    if asked.is_approved_by(&approval.0) {
        planned.pin(&asked);
        return Ok(Held::Good(call));
    }
    if let Standing::Void(why) = carried::standing(call.kernel(), organisation_id, deploy_task).await? {
        return Ok(Held::Void(call.begin().await?, why));
    }
    let differences = approval.0.differences(&asked);
    Err(Error::conflict(format!("this is not what was approved: {differences} differ")))
}

/// Stores the plan of an update or a revert as a task.
pub(crate) async fn store_planned(tx: &mut Tx, planned: Planned, creator: &str, place: Place) -> Result<Made> {
    let Planned { deploy_task, input, drafts, reverts, source, timeout_s } = planned;
    let instances = input.targets.iter().map(|target| target.instance_id).collect();
    let new = NewPlan {
        deploy_task_id: Some(deploy_task.id),
        application_id: Some(deploy_task.application_id),
        action: input.action,
        version: &input.version,
        targets: Targets::Instances(instances),
        timeout_s,
        keep_backups: input.settings.keep_backups(),
        source: source.as_ref(),
        creator,
        rollout: input.rollout.as_ref(),
        place,
        drafts,
        reverts: &reverts,
    };
    store_plan(tx, new).await
}

/// Has a new task looked after once it is committed; says what it waits for.
pub(super) async fn begin(tx: &mut Tx, task_id: i64, first: &[i64], taken: &Taken) -> Result<()> {
    tx.enqueue_behind(engine::TOPIC, &task_id.to_string()).await?;
    let after = (!first.is_empty()).then(|| required::told(first));
    let queued = taken.waits().map(|why| format!("waits in the queue: {why}"));
    let said: Vec<String> = after.into_iter().chain(queued).collect();
    let said = (!said.is_empty()).then(|| said.join("; "));
    tx.after_commit(move |kernel| match said {
        Some(said) => engine::say_and_wake(kernel, task_id, said),
        None => engine::wake(kernel, task_id),
    });
    Ok(())
}

/// A rendered plan that is to become a task.
pub(crate) struct NewPlan<'a> {
    pub deploy_task_id: Option<i64>,
    pub application_id: Option<i64>,
    pub action: Action,
    pub version: &'a str,
    pub targets: Targets,
    pub timeout_s: i64,
    pub keep_backups: i64,
    pub source: Option<&'a Source>,
    pub creator: &'a str,
    pub rollout: Option<&'a Rollout>,
    pub place: Place,
    pub drafts: Vec<plan::Draft>,
    pub reverts: &'a BTreeMap<i64, Entry>,
}

/// Stores a plan as a task, marks its instances as busy, or puts it into the queue, and wakes the engine.
pub(crate) async fn store_plan(tx: &mut Tx, plan: NewPlan<'_>) -> Result<Made> {
    let channel = random_secret().map_err(Error::internal)?;
    let taken = take_or_wait(tx, &plan.targets, plan.action, plan.place).await?;
    if !plan.reverts.is_empty() && taken.waits().is_some() {
        // By then it would take back to a release that is no longer the one before it.
        let text = "a task that takes back what it changes does not wait: leave out auto_revert or if_busy";
        return Err(Error::conflict(text));
    }
    let allowed = Duration::from_secs(u64::try_from(plan.timeout_s).unwrap_or(1));
    let new = NewTask {
        deploy_task_id: plan.deploy_task_id,
        application_id: plan.application_id,
        kind: plan.action,
        channel: &channel,
        version: plan.version,
        update_source: plan.source.map(|source| source.path.as_str()),
        timeout_s: plan.timeout_s,
        keep_backups: plan.keep_backups,
        source: plan.source,
        creator: plan.creator,
        deadline_at: tx.now().after(allowed),
        rollout: plan.rollout,
        origin: None,
        priority: plan.place.priority,
        has_taken: taken.waits().is_none(),
    };
    let task_id = store::insert_task(tx, &new).await?;
    let first = required::note(tx, (plan.application_id, task_id), plan.rollout).await?;
    let execution = |draft: plan::Draft| NewExecution {
        id: uuid::Uuid::now_v7().to_string(),
        ordinal: draft.ordinal,
        role: draft.role,
        instance_id: draft.instance_id,
        host_id: draft.host_id,
        host_name: draft.host_name,
        previous_status: taken.status_before(draft.instance_id),
        entry: canonical(&plan::complete(draft.entry, task_id, None, plan.keep_backups)),
        batch: draft.batch,
        revert_entry: draft.instance_id.and_then(|id| plan.reverts.get(&id)).map(canonical),
    };
    let executions: Vec<NewExecution> = plan.drafts.into_iter().map(execution).collect();
    store::insert_executions(tx, task_id, &executions).await?;
    if plan.source.is_none() {
        // Nothing is to be fetched: the plan is complete as it is.
        let entries: Vec<String> = executions.iter().map(|execution| execution.entry.clone()).collect();
        let digest = plan::digest(task_id, plan.action, plan.version, None, &entries);
        let begins = first_phase(executions.iter().map(|execution| execution.role));
        let phase = if first.is_empty() && taken.waits().is_none() { begins } else { Phase::Preparing };
        store::complete_plan(tx, task_id, phase, digest, None, None).await?;
    }
    begin(tx, task_id, &first, &taken).await?;
    Ok(Made { task_id, channel })
}
