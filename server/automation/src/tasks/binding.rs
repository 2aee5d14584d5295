//! What a plan is bound to before it has a number: its digest, and the digests of its parts, by which a person is told
//! what became another.
//!
//! Invariant: the parts cover everything that an agent will be told to do, and the digest covers all parts.

use std::collections::BTreeMap;

use drover_shared::Digest;
use drover_shared::order::{Entry, Step, canonical};
use serde::{Deserialize, Serialize};

use super::create::Planned;

/// Name of the part that says whether and when it starts by itself.
const START: &str = "its start";

/// A plan in a few lines: what is approved, and what is compared before it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    /// SHA-256 of everything that would run, and where.
    pub digest: Digest,
    /// Commit of the source, if there is one.
    pub commit: Option<String>,
    /// Digests of the parts, by names for people.
    parts: BTreeMap<String, Digest>,
}

impl Binding {
    /// The binding of a plan whose source is at this commit.
    pub(crate) fn of(planned: &Planned, commit: Option<String>) -> Self {
        let Planned { deploy_task, input, drafts, reverts, source, timeout_s } = planned;
        let mut parts = Parts::default();
        for draft in drafts {
            parts.add("the targets", &format!("{:?} {} {}", draft.role, draft.host_id, draft.batch));
            parts.entry(&draft.entry);
        }
        for entry in reverts.values() {
            parts.add("the way back", &canonical(entry));
        }
        // What is fetched, not how: a key that comes to be trusted changes nothing of it.
        let fetched = source.as_ref().map(|source| (&source.url, &source.branch, &source.path));
        parts.add("the source", &canonical(&fetched));
        parts.add("the version", &canonical(&(input.action, &input.version)));
        parts.add("the commit", &canonical(&commit));
        parts.add("the rollout", &canonical(&input.rollout));
        parts.add("the settings", &canonical(&(timeout_s, input.settings.keep_backups())));
        parts.add(START, &canonical(&deploy_task.auto_start.then(|| deploy_task.planned_exec_at.seconds())));
        let parts = parts.digests();
        Self { digest: Digest::of(canonical(&parts).as_bytes()), commit, parts }
    }

    /// Whether this plan is the one that was approved. When it starts by itself cannot be changed under an approval, but
    /// one that was put off for too long is left to people.
    pub(crate) fn is_approved_by(&self, approval: &Self) -> bool {
        let parts = |binding: &Self| {
            let mut parts = binding.parts.clone();
            parts.remove(START);
            parts
        };
        parts(self) == parts(approval)
    }

    /// Names of the parts in which another plan differs: `the script of pre_exec and the settings`.
    pub(crate) fn differences(&self, other: &Self) -> String {
        let names = self.parts.keys().chain(other.parts.keys()).filter(|name| *name != START);
        let mut names: Vec<&str> =
            names.filter(|name| self.parts.get(*name) != other.parts.get(*name)).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        match names.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, others)) => format!("{} and {last}", others.join(", ")),
            None => "nothing".to_owned(),
        }
    }
}

/// Texts that are gathered by the name of their part.
#[derive(Default)]
struct Parts(BTreeMap<String, String>);

impl Parts {
    fn add(&mut self, name: &str, text: &str) {
        let part = self.0.entry(name.to_owned()).or_default();
        // A digest for each text keeps two texts from running into one another.
        part.push_str(&Digest::of(text.as_bytes()).to_string());
    }

    /// Every field is named here, so that a new one cannot be left out.
    fn entry(&mut self, entry: &Entry) {
        let Entry {
            action,
            task_id: _,
            host,
            application,
            instance_id,
            version,
            deploy_path,
            run_user,
            steps,
            environment,
            secrets,
            shared_paths,
            output_bytes_max,
            kill_grace_ms,
        } = entry;
        self.add("the targets", &canonical(&(host, application, instance_id)));
        self.add("the version", &canonical(&(action, version)));
        self.add("the settings", &canonical(&(deploy_path, run_user, environment, shared_paths)));
        self.add("the settings", &canonical(&(secrets, output_bytes_max, kill_grace_ms)));
        for step in steps {
            let part = match step {
                Step::Script { name, .. } => format!("the script of {name}"),
                Step::Health { .. } => "the health check".to_owned(),
                Step::Fetch { .. } | Step::Unpack { .. } => "the source".to_owned(),
                Step::Prune { .. } => "the settings".to_owned(),
                Step::Verify { .. } | Step::Switch { .. } => "the releases that are gone back to".to_owned(),
            };
            self.add(&part, &canonical(step));
        }
    }

    fn digests(self) -> BTreeMap<String, Digest> {
        self.0.into_iter().map(|(name, text)| (name, Digest::of(text.as_bytes()))).collect()
    }
}
