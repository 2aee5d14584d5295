//! Which secrets a rendered script asks for. Pure.
//!
//! A script asks for a secret by its placeholder, which `{{ secrets.NAME }}` renders to, or by the variable of its
//! environment, `DROVER_SECRET_NAME`. Invariant: an entry names every secret that one of its scripts asks for, each of them
//! was there when the plan was made, and no value is known here.

use std::collections::BTreeSet;
use std::sync::Arc;

use drover_inventory::secrets::TaskSecrets;
use drover_shared::order::{Entry, Probe, Step};
use drover_shared::secret::{self, SECRETS_MAX};

use crate::render::SecretNames;

/// What is left of a placeholder in whichever way a filter changed it.
const REMAINS: [&str; 2] = ["drover-secret:", "drover-secret%3a"];

/// What the scripts of each target may ask for.
#[derive(Clone)]
pub(crate) struct Offered {
    /// For most targets: those of the organisation and the application.
    wide: SecretNames,
    all: Arc<TaskSecrets>,
}

impl Offered {
    /// What was read for a task.
    pub(crate) fn new(all: TaskSecrets) -> Self {
        Self { wide: all.wide().iter().cloned().collect(), all: Arc::new(all) }
    }

    /// What is offered on a host, for an instance or for none.
    pub(crate) fn on(&self, host_id: i64, instance_id: Option<i64>) -> SecretNames {
        let mut names = self.all.narrow(host_id, instance_id);
        if names.is_subset(self.wide.names()) {
            return self.wide.clone();
        }
        names.extend(self.wide.names().iter().cloned());
        names.into_iter().collect()
    }
}

/// Names the secrets that the scripts of an entry ask for.
///
/// # Errors
/// The step, and what is wrong with what it asks for.
pub(crate) fn name(entry: &mut Entry, known: &BTreeSet<String>) -> Result<(), (String, String)> {
    let mut needed = BTreeSet::new();
    for step in &entry.steps {
        let asked = match step {
            Step::Script { content, .. } => asked(content),
            Step::Health { probe, .. } => probed(probe),
            _ => continue,
        };
        let asked = asked.map_err(|why| (step.name().to_owned(), why))?;
        if let Some(missing) = asked.difference(known).next() {
            let why = format!(
                "there is no secret `{missing}`, neither of the instance, its host, its environment and the application nor of the organisation"
            );
            return Err((step.name().to_owned(), why));
        }
        needed.extend(asked);
        if needed.len() > SECRETS_MAX {
            return Err((step.name().to_owned(), format!("a target may need {SECRETS_MAX} secrets at most")));
        }
    }
    entry.secrets = needed.into_iter().collect();
    Ok(())
}

fn asked(script: &str) -> Result<BTreeSet<String>, String> {
    let lower = script.to_ascii_lowercase();
    let remains: usize = REMAINS.iter().map(|text| lower.matches(text).count()).sum();
    if remains > secret::names(script).count() {
        return Err("a secret is put in place on the host: no filter but shell_quote can be applied to it".to_owned());
    }
    Ok(secret::asked(script))
}

/// A command gets secrets as variables alone: its text passes through another shell. An address gets none.
fn probed(probe: &Probe) -> Result<BTreeSet<String>, String> {
    match probe {
        Probe::Command { content } => match secret::names(content).next() {
            Some(name) => {
                Err(format!("write \"${}\" for the secret: a command finds it there", secret::variable(name)))
            }
            None => asked(content),
        },
        Probe::Http { url: text } | Probe::Tcp { address: text } => match asked(text)?.pop_first() {
            Some(name) => Err(format!("the secret `{name}` cannot be part of an address")),
            None => Ok(BTreeSet::new()),
        },
    }
}

#[cfg(test)]
mod tests {
    use drover_shared::words::{Action, Language};

    use super::*;

    fn known() -> BTreeSet<String> {
        ["TOKEN", "KEY_2"].map(str::to_owned).into()
    }

    fn entry(steps: Vec<Step>) -> Entry {
        Entry {
            action: Action::Upgrade,
            task_id: 1,
            host: "web-1".to_owned(),
            application: "shop".to_owned(),
            instance_id: Some(1),
            version: "1.0".to_owned(),
            deploy_path: None,
            run_user: None,
            steps,
            environment: std::collections::BTreeMap::new(),
            secrets: Vec::new(),
            shared_paths: Vec::new(),
            output_bytes_max: 1,
            kill_grace_ms: 1,
        }
    }

    fn script(content: &str) -> Step {
        let (name, language) = ("pre_exec".to_owned(), Language::Bash);
        Step::Script { name, language, content: content.to_owned(), running_user: None, timeout_ms: None }
    }

    fn health(probe: Probe) -> Step {
        Step::Health { probe, interval_ms: 1, timeout_ms: 1, retries: 1, successes: 1, running_user: None }
    }

    fn named(steps: Vec<Step>) -> Result<Vec<String>, (String, String)> {
        let mut entry = entry(steps);
        name(&mut entry, &known()).map(|()| entry.secrets)
    }

    #[test]
    fn what_scripts_ask_for_is_named_once() {
        for (content, expected) in [
            ("echo nothing", vec![]),
            ("a @@drover-secret:TOKEN@@ b", vec!["TOKEN"]),
            ("\"$DROVER_SECRET_KEY_2\" ${DROVER_SECRET_TOKEN:?}", vec!["KEY_2", "TOKEN"]),
            ("@@drover-secret:TOKEN@@ $DROVER_SECRET_TOKEN", vec!["TOKEN"]),
            // Neither names one.
            ("env | grep DROVER_SECRET_; $MY_DROVER_SECRET_NOPE $DROVER_SECRET_x", vec![]),
        ] {
            assert_eq!(
                named(vec![script(content)]),
                Ok(expected.into_iter().map(str::to_owned).collect()),
                "{content}"
            );
        }
        let command = || health(Probe::Command { content: "curl -u \"$DROVER_SECRET_KEY_2\" x".to_owned() });
        let both = named(vec![script("$DROVER_SECRET_TOKEN"), command()]);
        assert_eq!(both, Ok(vec!["KEY_2".to_owned(), "TOKEN".to_owned()]));
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        for (step, place, part) in [
            (script("$DROVER_SECRET_NOPE"), "pre_exec", "no secret `NOPE`"),
            (script("@@drover-secret:NOPE@@"), "pre_exec", "no secret `NOPE`"),
            (script("@@drover-secret:token@@"), "pre_exec", "no filter"),
            (script("%40%40drover-secret%3ATOKEN%40%40"), "pre_exec", "no filter"),
            (health(Probe::Http { url: "http://x/@@drover-secret:TOKEN@@".to_owned() }), "health", "address"),
            (health(Probe::Command { content: "@@drover-secret:TOKEN@@".to_owned() }), "health", "DROVER_SECRET_TOKEN"),
        ] {
            let (step, why) = named(vec![step]).unwrap_err();
            assert_eq!(step, place);
            assert!(why.contains(part), "{why}");
        }
    }
}
