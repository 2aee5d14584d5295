//! Making a task: everything is read, checked and rendered first, then stored in one transaction.

use std::time::Duration;

use drover_inventory::instances;
use drover_kernel::fields::{Many, Number, Reference};
use drover_kernel::{Audit, AuditEntry, AuditList, Call, Error, Reply, Result};
use drover_shared::order::{Entry, canonical};
use drover_shared::words::{Action, Word as _};

use super::store::{self, NewExecution, NewTask, Source};
use super::view::SubTaskReceipt;
use super::{Run, plan};
use crate::channel;
use crate::deploys::rules as deploy_rules;
use crate::deploys::store::{self as deploy_store, DeployTask};
use crate::link::keys::random_secret;
use crate::settings::rules::{TIMEOUT_S_DEFAULT, TIMEOUT_S_MAX};

/// What both kinds ask for.
pub(super) struct Wanted {
    pub action: Action,
    pub instances: Vec<i64>,
    pub version: Option<String>,
    pub source: Option<String>,
    pub timeout_s: Option<i64>,
}

pub(super) fn wanted_instances(references: &Many<Reference>) -> Result<Vec<i64>> {
    let mut ids: Vec<i64> = Vec::with_capacity(references.0.len());
    for reference in &references.0 {
        if !ids.contains(&reference.id.0) {
            ids.push(reference.id.0);
        }
    }
    if ids.is_empty() { Err(Error::invalid("instances", "give at least one")) } else { Ok(ids) }
}

pub(super) fn wanted_timeout(timeout: Option<Number>) -> Result<Option<i64>> {
    match timeout {
        Some(Number(seconds)) if !(1..=TIMEOUT_S_MAX).contains(&seconds) => {
            Err(Error::invalid("timeout", format!("must be 1 to {TIMEOUT_S_MAX} seconds")))
        }
        timeout => Ok(timeout.map(|seconds| seconds.0)),
    }
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
    let timeout_s =
        wanted.timeout_s.unwrap_or(if settings.timeout_s > 0 { settings.timeout_s } else { TIMEOUT_S_DEFAULT });
    let everyone = plan::everyone(&targets);
    let input = plan::Input {
        action: wanted.action,
        version,
        source_path,
        creator,
        deploy_task,
        application,
        settings,
        hooks,
        targets,
        everyone,
        addresses,
        releases,
    };
    // Rendering for many targets takes a processor for a while: requests beside it do not wait.
    let rendering = tokio::task::spawn_blocking(move || plan::draft(&input).map(|drafts| (input, drafts)));
    let (input, drafts) = rendering.await.map_err(Error::internal)??;
    let plan::Input { deploy_task, version, settings, .. } = input;
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

pub(super) async fn create(call: Call<Run>, deploy_task_id: i64, wanted: Wanted) -> Result<Reply<SubTaskReceipt>> {
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
