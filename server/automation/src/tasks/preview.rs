//! What a sub-task would do: every rendered script, and how all of it differs from what last ran. Nothing is stored.
//!
//! Invariant: equal texts are shown once, and all of them together are bounded; the digest covers what is left out too.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use drover_kernel::call::Caller;
use drover_kernel::db::Read;
use drover_kernel::fields::Words;
use drover_kernel::{Error, Kernel, Result, api_words};
use drover_shared::Digest;
use drover_shared::order::{Entry, Probe, Step};
use drover_shared::words::{Action, Language, Word as _};
use schemars::JsonSchema;
use serde::Serialize;

use super::binding::Binding;
use super::create::Planned;
use super::difference::{self, Terms};
use super::former;
use super::plan;
use super::premises;
use super::required::{self, OrderOut};
use super::rollout::Rollout;
use super::rules::Role;
use super::store::Source;
use crate::archives;
use crate::engine::{Engine, prepare};
use crate::source::GitSource;

/// Bytes of scripts and differences in one answer.
const SHOWN_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Instances whose last run is read at a time.
const COMPARED_AT_ONCE: usize = 200;
/// Lines around a difference.
const CONTEXT_LINES: usize = 3;

/// What a conflict with a repository's reason begins with.
pub(super) const SOURCE_FAILED: &str = "the source cannot be had: ";

/// A plan that was not stored.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SubTaskPlan")]
pub(crate) struct Preview {
    /// SHA-256 of everything that would run, and where.
    digest: String,
    #[schemars(with = "Words<Action>")]
    kind: Action,
    version: String,
    /// Commit that the version is at now.
    commit: Option<String>,
    timeout: i64,
    rollout: Option<Rollout>,
    /// What it goes after, by its rollout.
    after: OrderOut,
    /// Hosts in the order of their turns.
    batches: Vec<Vec<String>>,
    /// What happens on each host.
    targets: Vec<TargetOut>,
    /// What takes each host back to the release that it has now, if the rollout is stopped and is to do so.
    way_back: Vec<TargetOut>,
    /// Every script once, by its SHA-256.
    scripts: BTreeMap<String, ScriptText>,
    /// How scripts, what is fetched and the settings (`settings`) differ from those of the last sub-task of the same
    /// kind, and the release that is gone back to (`switch`) from the one that serves.
    changes: Vec<Change>,
    /// Whether texts of scripts or of differences were left out because there are too many.
    truncated: bool,
}

/// What happens on one host.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SubTaskPlanTarget")]
struct TargetOut {
    /// Instance; null for a hook that runs once.
    id: Option<i64>,
    hostname: String,
    role: Role,
    /// The batch in which its turn comes, from 1 on.
    batch: i64,
    deploy_path: Option<String>,
    /// Names of the secrets that its scripts get.
    secrets: Vec<String>,
    /// The steps in order.
    steps: Vec<StepOut>,
}

/// One step.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SubTaskPlanStep")]
struct StepOut {
    name: String,
    /// SHA-256 of its script.
    script: Option<String>,
    /// Account that runs it.
    running_user: Option<String>,
    /// Seconds that it may take by itself; null when only the sub-task's time counts.
    timeout: Option<u64>,
}

/// A rendered script.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SubTaskPlanScript")]
struct ScriptText {
    /// `address` stands for what a health check asks.
    #[schemars(schema_with = "languages")]
    language: String,
    content: String,
}

/// What a health check asks, where its script would be.
const ADDRESS: &str = "address";

fn languages(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let words: Vec<&str> = Language::ALL.iter().map(|language| language.as_str()).chain([ADDRESS]).collect();
    schemars::json_schema!({"type": "string", "enum": words})
}

api_words! {
    /// What became of a script since it last ran.
    pub enum ChangeKind {
        /// It is new.
        Added = "added",
        /// It is gone.
        Removed = "removed",
        /// Its text is another one.
        Changed = "changed",
    }
}

/// A difference, and the hosts that have it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SubTaskPlanChange")]
struct Change {
    step: String,
    hostnames: Vec<String>,
    /// What became of it.
    kind: ChangeKind,
    /// Unified difference; empty when it was left out.
    diff: String,
}

/// The commit that a source is at now. Asks the repository.
///
/// # Errors
/// A conflict with the repository's reason.
pub(crate) async fn commit(kernel: &Kernel, organisation_id: i64, source: Option<&Source>) -> Result<Option<String>> {
    let Some(source) = source else { return Ok(None) };
    if former::stored(kernel, source).await?.is_some() {
        return Ok(source.commit.clone());
    }
    if let Some(application_id) = source.archive_of {
        let mut read = kernel.work().read().await?;
        let found = archives::find(&mut read, application_id, &source.version, source.commit.as_deref()).await;
        let found = found.map_err(source_failed)?;
        return Ok(Some(found.sha256.to_string()));
    }
    let wanted = GitSource {
        url: source.url.clone(),
        branch: source.branch.clone(),
        version: source.commit.clone().unwrap_or_else(|| source.version.clone()),
        path: (!source.path.is_empty()).then(|| source.path.clone()),
    };
    let access = prepare::access(kernel, organisation_id, source).await.map_err(source_failed)?;
    let found = kernel.part::<Engine>().sources.resolve(&wanted, &access).await;
    let failed = |reason: String| source_failed(Error::conflict(reason));
    let found = found.map_err(|error| failed(error.to_string()))?;
    match source.commit.as_ref().filter(|commit| **commit != found) {
        Some(commit) => Err(failed(format!("commit {commit} is no longer in the repository"))),
        None => Ok(Some(found)),
    }
}

/// Says of a source's own reason that it is one; what is in the way on this server stays as it is.
fn source_failed(error: Error) -> Error {
    match error {
        Error::Conflict(reason) => Error::conflict(format!("{SOURCE_FAILED}{reason}")),
        error => error,
    }
}

/// Puts the answer together.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn preview(read: &mut Read, caller: &Caller, planned: Planned, binding: Binding) -> Result<Preview> {
    let Binding { digest, commit, .. } = binding;
    let digest = digest.to_string();
    let Planned { input, drafts, reverts, source, timeout_s, .. } = planned;
    let has_artifact = source.is_some();
    let after = required::look(read, caller, input.application.id, input.rollout.as_ref()).await?;
    let mut shown = Shown::default();
    let mut batches: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    let mut targets = Vec::with_capacity(drafts.len());
    let mut way_back = Vec::with_capacity(reverts.len());
    for draft in &drafts {
        if draft.role == Role::Instance {
            batches.entry(draft.batch).or_default().push(draft.host_name.clone());
        }
        let entry = plan::with_placeholders(draft.entry.clone(), has_artifact, input.settings.keep_backups());
        targets.push(shown.target(draft, &entry));
    }
    for draft in &drafts {
        if let Some(entry) = draft.instance_id.and_then(|id| reverts.get(&id)) {
            way_back.push(shown.target(draft, entry));
        }
    }
    let now = Now {
        terms: Terms { timeout_s, keep_backups: input.settings.keep_backups() },
        fetched: difference::fetched(source.as_ref(), commit.as_deref()),
        // Where it comes out of a known archive, so is its name.
        release: source.as_ref().and_then(|source| source.artifact).map(|artifact| {
            plan::release_name(&input.version, artifact, input.settings.shared_paths.as_deref().unwrap_or_default())
        }),
    };
    compare_all(read, &mut shown, &input, &drafts, &now).await?;
    Ok(Preview {
        digest,
        kind: input.action,
        version: input.version,
        commit,
        timeout: timeout_s,
        rollout: input.rollout,
        after,
        batches: batches.into_values().collect(),
        targets,
        way_back,
        scripts: shown.scripts,
        changes: shown.changes,
        truncated: shown.truncated,
    })
}

/// What is planned besides the entries.
struct Now {
    terms: Terms,
    fetched: String,
    release: Option<String>,
}

/// Tells how every entry differs from what last ran in its place.
async fn compare_all(
    read: &mut Read,
    shown: &mut Shown,
    input: &plan::Input,
    drafts: &[plan::Draft],
    now: &Now,
) -> Result<()> {
    let hooks = premises::last_hooks(read, input.action, input.application.id).await?;
    for role in [Role::GlobalPre, Role::GlobalPost] {
        let draft = drafts.iter().find(|draft| draft.role == role);
        let before = hooks
            .iter()
            .find(|last| last.role == role)
            .map(|last| entry_of(last).map(|entry| (entry, last)))
            .transpose()?;
        // Where it ran before is where it no longer runs.
        let host =
            draft.map(|draft| draft.host_name.clone()).or_else(|| before.as_ref().map(|(old, _)| old.host.clone()));
        let before = before.as_ref().map(|(entry, last)| (entry, Terms::of_last(last)));
        shown.compare(before, (draft.map(|draft| &draft.entry), now.terms), &host.unwrap_or_default());
    }
    for some in drafts.chunks(COMPARED_AT_ONCE) {
        let ids: Vec<i64> = some.iter().filter_map(|draft| draft.instance_id).collect();
        let kept = if input.action == Action::Revert { premises::kept_releases(read, &ids).await? } else { Vec::new() };
        let last = premises::last_entries(read, input.action, ids).await?;
        for draft in some.iter().filter(|draft| draft.role == Role::Instance) {
            let last = last.iter().find(|last| last.instance_id == draft.instance_id);
            let before = last.map(entry_of).transpose()?;
            let terms = last.zip(before.as_ref()).map(|(last, entry)| (entry, Terms::of_last(last)));
            shown.compare(terms, (Some(&draft.entry), now.terms), &draft.host_name);
            let returns_to = difference::switched(&draft.entry);
            if returns_to.is_none() && !now.fetched.is_empty() {
                let source = last.and_then(|last| last.source.as_ref()).map(|source| &source.0);
                let before = difference::fetched(source, last.and_then(|last| last.resolved_commit.as_deref()));
                shown.change_if("fetch", &before, &now.fetched, &draft.host_name);
            }
            if let (Action::Revert, Some(release)) = (input.action, returns_to.or(now.release.as_deref())) {
                // Not the last revert counts here but what serves.
                let current = kept.iter().find(|one| one.is_current && Some(one.instance_id) == draft.instance_id);
                let line = |release: &str| format!("release {release}\n");
                let current = current.map(|one| line(&one.release_name)).unwrap_or_default();
                shown.change_if("switch", &current, &line(release), &draft.host_name);
            }
        }
    }
    Ok(())
}

fn entry_of(last: &premises::LastEntry) -> Result<Entry> {
    serde_json::from_str(&last.entry).map_err(Error::internal)
}

/// Language, text and account of what a step runs.
fn script(step: &Step) -> Option<(String, &str, Option<&str>)> {
    match step {
        Step::Script { language, content, running_user, .. } => {
            Some((language.to_string(), content, running_user.as_deref()))
        }
        Step::Health { probe: Probe::Command { content }, running_user, .. } => {
            Some(("bash".to_owned(), content, running_user.as_deref()))
        }
        Step::Health { probe: Probe::Http { url: text } | Probe::Tcp { address: text }, .. } => {
            Some((ADDRESS.to_owned(), text, None))
        }
        _ => None,
    }
}

#[derive(Default)]
struct Shown {
    scripts: BTreeMap<String, ScriptText>,
    changes: Vec<Change>,
    /// Where a difference between two texts stands among the changes.
    known: HashMap<(String, Digest, Digest), usize>,
    bytes: usize,
    truncated: bool,
}

impl Shown {
    fn fits(&mut self, bytes: usize) -> bool {
        let fits = self.bytes + bytes <= SHOWN_BYTES_MAX;
        if fits {
            self.bytes += bytes;
        } else {
            self.truncated = true;
        }
        fits
    }

    /// What this entry does on the host of a draft.
    fn target(&mut self, draft: &plan::Draft, entry: &Entry) -> TargetOut {
        TargetOut {
            id: draft.instance_id,
            hostname: draft.host_name.clone(),
            role: draft.role,
            batch: draft.batch + 1,
            deploy_path: entry.deploy_path.clone(),
            secrets: entry.secrets.clone(),
            steps: entry.steps.iter().map(|step| self.step(step)).collect(),
        }
    }

    fn step(&mut self, step: &Step) -> StepOut {
        let found = script(step);
        let digest = found.as_ref().map(|(_, content, _)| Digest::of(content.as_bytes()).to_string());
        if let (Some((language, content, _)), Some(digest)) = (&found, &digest)
            && !self.scripts.contains_key(digest)
            && self.fits(content.len())
        {
            let text = ScriptText { language: language.clone(), content: (*content).to_owned() };
            self.scripts.insert(digest.clone(), text);
        }
        let running_user = found.and_then(|(_, _, user)| user.map(str::to_owned));
        let timeout = match step {
            Step::Script { timeout_ms, .. } => timeout_ms.map(|limit| limit / 1_000),
            _ => None,
        };
        StepOut { name: step.name().to_owned(), script: digest, running_user, timeout }
    }

    /// Compares the texts of scripts; and the settings, where something ran before with which they can be compared.
    fn compare(&mut self, before: Option<(&Entry, Terms)>, (now, terms): (Option<&Entry>, Terms), host: &str) {
        let texts = |entry: &Entry| {
            let text = |step: &Step| script(step).map(|(_, text, _)| (step.name().to_owned(), text.to_owned()));
            entry.steps.iter().filter_map(text).collect::<BTreeMap<String, String>>()
        };
        let old = before.map(|(entry, _)| texts(entry)).unwrap_or_default();
        let new = now.map(texts).unwrap_or_default();
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let text = |texts: &BTreeMap<String, String>, name: &String| texts.get(name).cloned().unwrap_or_default();
        for name in names {
            self.change_if(name, &text(&old, name), &text(&new, name), host);
        }
        if let (Some(before), Some(now)) = (before, now) {
            let (old, new) = difference::settings(before, (now, terms));
            self.change_if("settings", &old, &new, host);
        }
    }

    fn change_if(&mut self, step: &str, old: &str, new: &str, host: &str) {
        if old != new {
            self.change(step, old, new, host);
        }
    }

    fn change(&mut self, step: &str, old: &str, new: &str, host: &str) {
        let key = (step.to_owned(), Digest::of(old.as_bytes()), Digest::of(new.as_bytes()));
        if let Some(change) = self.known.get(&key).and_then(|at| self.changes.get_mut(*at)) {
            change.hostnames.push(host.to_owned());
            return;
        }
        let mut diff = String::new();
        // That there is a difference is told in any case.
        if self.fits(1) {
            diff = similar::TextDiff::from_lines(old, new)
                .unified_diff()
                .context_radius(CONTEXT_LINES)
                .header(&format!("{step} as it last ran"), &format!("{step} as planned"))
                .to_string();
            if !self.fits(diff.len()) {
                diff.clear();
            }
        }
        let kind = match (old.is_empty(), new.is_empty()) {
            (true, _) => ChangeKind::Added,
            (_, true) => ChangeKind::Removed,
            _ => ChangeKind::Changed,
        };
        self.known.insert(key, self.changes.len());
        self.changes.push(Change { step: step.to_owned(), hostnames: vec![host.to_owned()], kind, diff });
    }
}
