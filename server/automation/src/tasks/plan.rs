//! Plans: every script rendered for every target when the task is made, and what the digest is bound to. Pure.
//!
//! Invariants: rendering is strict, and a plan with one script that does not render is no plan; a completed entry never
//! changes; the plan's digest covers everything that an agent will be told to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use drover_inventory::variables::TaskVariables;
use drover_kernel::{Error, Result};
use drover_shared::Digest;
use drover_shared::limits::KILL_GRACE_MS_DEFAULT;
use drover_shared::order::{Entry, IndexOf, Step, canonical};
use drover_shared::words::{Action, Word as _};

use super::health::Health;
use super::premises::{Application, KeptRelease, Target};
use super::rollout::Rollout;
use super::rules::Role;
use super::secrets;
use crate::render;
use crate::settings::rules::{HookName, Values};
use crate::settings::store::HookRow;

/// Bytes of an entry as it is sent: leaves room in a control message for what is around it.
const ORDER_BYTES_MAX: usize = drover_shared::limits::CONTROL_BYTES_MAX - 64 * 1024;

/// Everything that a plan is made from.
#[derive(Clone)]
pub(crate) struct Input {
    pub action: Action,
    /// Output of an execution that is kept, in bytes.
    pub output_bytes_max: u64,
    pub version: String,
    /// Path inside the repository; empty for the whole tree.
    pub source_path: String,
    pub creator: String,
    /// None when instances are started, stopped or restarted.
    pub deploy_task: Option<render::DeployTask>,
    pub application: Application,
    /// What the deploy settings come to, a linked template included.
    pub settings: Values,
    pub hooks: Vec<HookRow>,
    pub targets: Vec<Target>,
    /// The targets as scripts see them: [`everyone`] of them.
    pub everyone: render::Targets,
    /// Pairs of host and address.
    pub addresses: Vec<(i64, String)>,
    /// For a revert: the release that each instance goes back to.
    pub releases: Vec<KeptRelease>,
    /// For a revert: the archive for instances that keep none.
    pub former: Option<Digest>,
    /// How the task goes from instance to instance.
    pub rollout: Option<Rollout>,
    /// What scripts see as `vars`.
    pub variables: Arc<TaskVariables>,
    /// What all scripts together may take.
    pub work: Arc<render::Work>,
    /// What scripts see as `secrets`.
    pub secrets: secrets::Offered,
}

/// A target's part before the artifact is known.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub role: Role,
    pub ordinal: i64,
    pub instance_id: Option<i64>,
    pub host_id: i64,
    pub host_name: String,
    /// When its turn comes.
    pub batch: i64,
    pub entry: Entry,
}

/// The artifact of an upgrade.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Artifact {
    pub digest: Digest,
    pub size_bytes: u64,
    /// What it is made of, if that is known.
    pub index: Option<IndexOf>,
}

/// Renders everything. Global hooks run on the host of the first target.
pub(crate) fn draft(input: &Input) -> Result<Vec<Draft>> {
    let first = input.targets.first().ok_or_else(|| Error::invalid("instances", "give at least one"))?;
    let mut drafts = Vec::with_capacity(input.targets.len() + 2);
    if let Some(hook) = find(input, HookName::GlobalPreExec) {
        drafts.push(global(input, Role::GlobalPre, hook, first)?);
    }
    let batches = input.rollout.as_ref().map(|rollout| rollout.batches(input.targets.len())).unwrap_or_default();
    for (index, target) in input.targets.iter().enumerate() {
        let batch = batches.get(index).copied().unwrap_or(0);
        drafts.push(Draft { batch, ..instance(input, target)? });
    }
    if let Some(hook) = find(input, HookName::GlobalPostExec) {
        drafts.push(global(input, Role::GlobalPost, hook, first)?);
    }
    for (draft, ordinal) in drafts.iter_mut().zip(1..) {
        check_size(&draft.entry)?;
        draft.ordinal = ordinal;
    }
    Ok(drafts)
}

/// What takes each instance back to the release that it has now. Rendered with the update, so that what runs in an
/// emergency was seen before.
pub(crate) fn draft_reverts(input: &Input, kept: Vec<KeptRelease>) -> Result<BTreeMap<i64, Entry>> {
    let mut reverts = BTreeMap::new();
    let mut back = Input { action: Action::Revert, former: None, ..input.clone() };
    for release in kept.into_iter().filter(|release| release.is_current) {
        let Some(target) = input.targets.iter().find(|target| target.instance_id == release.instance_id) else {
            continue;
        };
        back.version.clone_from(&release.version);
        back.releases = vec![release];
        let entry = instance(&back, target)?.entry;
        check_size(&entry)?;
        reverts.insert(target.instance_id, entry);
    }
    Ok(reverts)
}

/// An order travels as text within text; one that is too long for the link would never arrive.
pub(crate) fn check_size(entry: &Entry) -> Result<()> {
    let length = canonical(&canonical(entry)).len();
    if length > ORDER_BYTES_MAX {
        let reason = format!(
            "the rendered scripts for {} are too long together: {length} bytes as they are sent, {ORDER_BYTES_MAX} at most",
            entry.host
        );
        return Err(Error::invalid("lifecycle_hooks", reason));
    }
    Ok(())
}

fn find(input: &Input, name: HookName) -> Option<&HookRow> {
    input.hooks.iter().find(|hook| hook.hook == name)
}

fn global(input: &Input, role: Role, hook: &HookRow, target: &Target) -> Result<Draft> {
    let mut entry = bare(input, target, None);
    entry.steps.push(script(input, hook, target, None)?);
    name_secrets(input, target, &mut entry)?;
    Ok(Draft {
        role,
        ordinal: 0,
        instance_id: None,
        host_id: target.host_id,
        host_name: target.host_name.clone(),
        batch: 0,
        entry,
    })
}

fn instance(input: &Input, target: &Target) -> Result<Draft> {
    let deploy_path = deploy_path(input, target)?;
    let mut entry = bare(input, target, deploy_path.clone());
    if deploy_path.is_some() {
        entry.shared_paths = input.settings.shared_paths.clone().unwrap_or_default();
    }
    entry.instance_id = Some(target.instance_id);
    let path = deploy_path.as_deref();
    let release = input.releases.iter().find(|release| release.instance_id == target.instance_id);
    if let Some(release) = release {
        // Verified before anything is stopped.
        entry.steps.push(Step::Verify { release: release.release_name.clone(), tree_digest: release.tree_digest });
    }
    for name in [HookName::PreExec, HookName::PostExec] {
        if let Some(hook) = find(input, name) {
            entry.steps.push(script(input, hook, target, path)?);
        }
        if let (Some(release), HookName::PreExec) = (release, name) {
            entry.steps.push(Step::Switch { release: release.release_name.clone() });
        }
    }
    if let Some(health) = input.rollout.as_ref().and_then(|rollout| rollout.health.as_ref()) {
        entry.steps.push(health_step(input, target, health, path)?);
    }
    name_secrets(input, target, &mut entry)?;
    Ok(Draft {
        role: Role::Instance,
        ordinal: 0,
        instance_id: Some(target.instance_id),
        host_id: target.host_id,
        host_name: target.host_name.clone(),
        batch: 0,
        entry,
    })
}

pub(crate) fn name_secrets(input: &Input, target: &Target, entry: &mut Entry) -> Result<()> {
    let offered = input.secrets.on(target.host_id, entry.instance_id);
    secrets::name(entry, offered.names()).map_err(|(step, why)| {
        let health = input.rollout.as_ref().and_then(|rollout| rollout.health.as_ref());
        let field = match health.filter(|_| step == "health") {
            Some(health) => format!("rollout.health.{}", health.template().0),
            None => format!("lifecycle_hooks.{step}.script"),
        };
        Error::invalid(field, why)
    })
}

pub(crate) fn bare(input: &Input, target: &Target, deploy_path: Option<String>) -> Entry {
    Entry {
        action: input.action,
        task_id: 0,
        host: target.host_name.clone(),
        application: input.application.full_name.clone(),
        instance_id: None,
        version: input.version.clone(),
        deploy_path,
        run_user: running_user(input),
        steps: Vec::new(),
        environment: BTreeMap::new(),
        output_bytes_max: input.output_bytes_max,
        kill_grace_ms: KILL_GRACE_MS_DEFAULT,
        secrets: Vec::new(),
        shared_paths: Vec::new(),
    }
}

/// The account of what belongs to no hook: the application's, else the settings'.
pub(crate) fn running_user(input: &Input) -> Option<String> {
    non_empty(&input.application.run_user).or_else(|| input.settings.running_user.clone())
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The account of a hook: its own, else the set's, else the application's.
fn account(input: &Input, hook: &HookRow) -> Option<String> {
    let own = hook.running_user.clone().filter(|user| !user.is_empty());
    own.or_else(|| input.settings.running_user.clone().filter(|user| !user.is_empty()))
        .or_else(|| non_empty(&input.application.run_user))
}

fn script(input: &Input, hook: &HookRow, target: &Target, deploy_path: Option<&str>) -> Result<Step> {
    let running_user = account(input, hook);
    let context = context(input, target, hook.hook.as_str(), deploy_path, running_user.as_deref());
    let content = render::render_within(&hook.script_name, &hook.content, &context, &input.work)
        .map_err(|error| Error::invalid(format!("lifecycle_hooks.{}.script", hook.hook), error.to_string()))?;
    let timeout_ms = hook.timeout_s.and_then(|seconds| u64::try_from(seconds).ok()).map(|seconds| seconds * 1_000);
    Ok(Step::Script { name: hook.hook.to_string(), language: hook.language, content, running_user, timeout_ms })
}

/// The question that proves an update: a template as scripts are.
fn health_step(input: &Input, target: &Target, health: &Health, deploy_path: Option<&str>) -> Result<Step> {
    let running_user = non_empty(input.settings.running_user.as_deref().unwrap_or(""))
        .or_else(|| non_empty(&input.application.run_user));
    let context = context(input, target, "health", deploy_path, running_user.as_deref());
    let (member, template) = health.template();
    let rendered = render::render_within("health", template, &context, &input.work)
        .map_err(|error| Error::invalid(format!("rollout.health.{member}"), error.to_string()))?;
    let milliseconds = |seconds: u32| u64::from(seconds) * 1_000;
    Ok(Step::Health {
        probe: health.probe(rendered, &target.host_name)?,
        interval_ms: milliseconds(health.interval),
        timeout_ms: milliseconds(health.timeout),
        retries: health.retries,
        successes: health.successes,
        running_user,
    })
}

/// The folder on this target: a template as scripts are, absolute, without steps upwards.
pub(crate) fn deploy_path(input: &Input, target: &Target) -> Result<Option<String>> {
    let Some(text) = input.settings.deploy_path.clone().or_else(|| non_empty(&input.application.directory)) else {
        return Ok(None);
    };
    let context = context(input, target, "", None, None);
    let path = render::render_within("deploy_path", &text, &context, &input.work)
        .map_err(|error| Error::invalid("deploy_path", error.to_string()))?;
    let path = path.trim().trim_end_matches('/').to_owned();
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains(['\n', '\0']) {
        return Err(Error::invalid(
            "deploy_path",
            format!("must be an absolute path below `/` without `..`; on {} it is `{path}`", target.host_name),
        ));
    }
    Ok(Some(path))
}

pub(crate) fn context(
    input: &Input,
    target: &Target,
    hook: &str,
    deploy_path: Option<&str>,
    running_user: Option<&str>,
) -> render::Context {
    let application = &input.application;
    let repository = input.settings.repository.as_ref();
    let instance_id = (!hook.starts_with("global_")).then_some(target.instance_id);
    render::Context {
        action: input.action,
        task: render::Task { creator: input.creator.clone() },
        deploy_task: input.deploy_task.clone(),
        application: Some(render::Application {
            id: application.id,
            name: application.name.clone(),
            full_name: application.full_name.clone(),
            kind: application.application_type.clone(),
            directory: application.directory.clone(),
            run_user: application.run_user.clone(),
            startup_cmd: application.startup_cmd.clone(),
            stop_cmd: application.stop_cmd.clone(),
            stdout_path: application.stdout_path.clone(),
            stderr_path: application.stderr_path.clone(),
            pid_path: application.pid_path.clone(),
        }),
        version: input.version.clone(),
        previous_version: target.version.clone(),
        deploy_path: deploy_path.map(str::to_owned),
        release_path: release_path(input, target, deploy_path),
        host: host(input, target),
        instance: instance_id.map(|id| render::Instance { id, version: target.version.clone() }),
        instances: input.everyone.clone(),
        hook: hook.to_owned(),
        running_user: running_user.unwrap_or("").to_owned(),
        keep_backups: input.settings.keep_backups(),
        source: render::Source {
            kind: repository.map(|repository| repository.repository_type.to_string()).unwrap_or_default(),
            url: repository.map(|repository| repository.url.clone()).unwrap_or_default(),
            branch: repository.map(|repository| repository.branch.clone()).unwrap_or_default(),
            path: input.source_path.clone(),
        },
        vars: input.variables.on(target.host_id, instance_id),
        params: BTreeMap::new(),
        // A path is stored and shown.
        secrets: match hook {
            "" => render::SecretNames::from_iter([]),
            _ => input.secrets.on(target.host_id, instance_id),
        },
    }
}

fn host(input: &Input, target: &Target) -> render::Host {
    let own = input.addresses.iter().filter(|(host_id, _)| *host_id == target.host_id);
    render::Host {
        id: target.host_id,
        name: target.host_name.clone(),
        ip_addresses: own.map(|(_, address)| address.clone()).collect(),
        os_type: target.os_type.clone(),
        location: target.location.clone(),
        environment: target.environment.clone(),
        kind: target.host_type.clone(),
    }
}

/// The targets as scripts see them.
pub(crate) fn everyone(targets: &[Target]) -> render::Targets {
    targets.iter().map(instance_of).collect()
}

fn instance_of(target: &Target) -> render::Target {
    render::Target { id: target.instance_id, host: target.host_name.clone(), version: target.version.clone() }
}

/// Known before the artifact is only for a revert; hooks find it in their environment in any case.
fn release_path(input: &Input, target: &Target, deploy_path: Option<&str>) -> Option<String> {
    let kept = input.releases.iter().find(|release| release.instance_id == target.instance_id);
    let kept = kept.map(|release| release.release_name.clone());
    let shared_paths = input.settings.shared_paths.as_deref().unwrap_or_default();
    let release = kept.or_else(|| input.former.map(|artifact| release_name(&input.version, artifact, shared_paths)))?;
    deploy_path.map(|path| format!("{path}/releases/{release}"))
}

/// The name of a release's folder: another archive or other shared paths make another one, so that what serves is never
/// in the way of what is unpacked.
#[must_use]
pub(crate) fn release_name(version: &str, artifact: Digest, shared_paths: &[String]) -> String {
    let content = match shared_paths {
        [] => artifact,
        paths => Digest::of(canonical(&(artifact, paths)).as_bytes()),
    };
    let safe =
        |character: char| if character.is_ascii_alphanumeric() || "._-+".contains(character) { character } else { '_' };
    let version: String = version.chars().take(100).map(safe).collect();
    format!("{}-{}", version.trim_start_matches('.'), content.short())
}

/// The entry once the task's number and the artifact are known.
#[must_use]
pub(crate) fn complete(mut entry: Entry, task_id: i64, artifact: Option<Artifact>, keep_backups: i64) -> Entry {
    entry.task_id = task_id;
    let is_instance = entry.instance_id.is_some();
    // What switches already goes back to a release that the host keeps.
    let is_kept = entry.steps.iter().any(|step| matches!(step, Step::Switch { .. }));
    let installs = is_instance && !is_kept && entry.deploy_path.is_some();
    let Some(artifact) = artifact.filter(|_| installs) else { return entry };
    let release = release_name(&entry.version, artifact.digest, &entry.shared_paths);
    // Fetched first, so that a download that fails never stops a running application.
    let mut steps =
        vec![Step::Fetch { digest: artifact.digest, size_bytes: artifact.size_bytes, index: artifact.index }];
    let (before, after): (Vec<_>, Vec<_>) = entry.steps.into_iter().partition(|step| step.name() == "pre_exec");
    steps.extend(before);
    steps.push(Step::Unpack { digest: artifact.digest, release: release.clone() });
    steps.push(Step::Switch { release });
    steps.extend(after);
    steps.push(Step::Prune { keep: u32::try_from(keep_backups).unwrap_or(u32::MAX) });
    entry.steps = steps;
    entry
}

/// The entry as it will look once the artifact is known: for looking at it before.
#[must_use]
pub(crate) fn with_placeholders(entry: Entry, has_artifact: bool, keep_backups: i64) -> Entry {
    let artifact = has_artifact.then(|| Artifact { digest: Digest::of(b""), size_bytes: 0, index: None });
    complete(entry, 0, artifact, keep_backups)
}

/// The digest that approval and agents check: what the task is, and every entry in order.
#[must_use]
pub(crate) fn digest(task_id: i64, action: Action, version: &str, commit: Option<&str>, entries: &[String]) -> Digest {
    let header = serde_json::json!({"task_id": task_id, "action": action, "version": version, "commit": commit});
    let mut text = canonical(&header);
    for entry in entries {
        text.push('\n');
        text.push_str(&Digest::of(entry.as_bytes()).to_string());
    }
    Digest::of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_shared_paths_make_another_release() {
        let artifact = Digest::of(b"archive");
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        let name = |shared: &[&str]| release_name(".v 1", artifact, &paths(shared));
        assert_eq!(name(&[]), format!("v_1-{}", artifact.short()));
        let names = [name(&[]), name(&["a"]), name(&["a/"]), name(&["a", "b"]), name(&["a,b"])];
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len(), "{names:?}");
    }
}
