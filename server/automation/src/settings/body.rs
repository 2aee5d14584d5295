//! A change of deploy settings as callers send it, and how it meets the settings there are.

use drover_kernel::fields::{Flag, Line, Many, Name, Number, Patch, Reference};
use drover_kernel::{Error, Result, Tx};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::rules::{self, BRANCH_DEFAULT, Hook, HookName, Repository, RepositoryType, Settings};
use crate::scripts;

/// A change of deploy settings; what is left out stays, null takes the default.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "DeploySettingsChange")]
pub(super) struct SettingsBody {
    /// Where the sources come from; null for none.
    #[serde(default)]
    repository: Patch<RepositoryBody>,
    /// Folder to deploy into; may hold template expressions.
    #[serde(default)]
    deploy_path: Patch<Line>,
    /// Seconds a deploy task may take, 1 to 86400.
    #[serde(default)]
    timeout: Patch<Number>,
    /// How many recent versions to keep, 0 to 100.
    #[serde(default)]
    keep_backups: Patch<Number>,
    /// Default account and the four hooks; a script is named by id.
    #[serde(default, alias = "lifecyle_hooks")]
    lifecycle_hooks: Option<Many<HooksBody>>,
    /// Switch deployment on or off.
    enabled: Option<Flag>,
    /// Whether a deploy task's reviewer must be another person than its creator.
    four_eyes: Option<Flag>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "RepositoryChange")]
struct RepositoryBody {
    /// Kind of repository; guessed from the address when left out.
    #[serde(rename = "type")]
    repository_type: Option<RepositoryType>,
    /// Address of the repository.
    url: Option<Line>,
    /// Branch to take, `main` by default.
    #[serde(default)]
    branch: Patch<Name>,
    /// How to log in.
    #[serde(default)]
    credential: Patch<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "LifecycleHooksChange")]
struct HooksBody {
    /// Account for hooks that name none.
    #[serde(default)]
    running_user: Patch<Name>,
    /// Runs once, before any instance is touched; null removes it.
    #[serde(default)]
    global_pre_exec: Patch<HookBody>,
    /// Runs on each instance before its update; null removes it.
    #[serde(default)]
    pre_exec: Patch<HookBody>,
    /// Runs on each instance after its update; null removes it.
    #[serde(default)]
    post_exec: Patch<HookBody>,
    /// Runs once, after all instances; null removes it.
    #[serde(default, alias = "glboal_post_exec")]
    global_post_exec: Patch<HookBody>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "LifecycleHookChange")]
struct HookBody {
    /// Account for this script; wins over the set's.
    #[serde(default)]
    running_user: Patch<Name>,
    /// Script to run, by id.
    script: Option<Reference>,
}

/// An account; an empty name stands for none.
fn account(said: Patch<Name>, present: Option<String>) -> Option<String> {
    match said {
        Patch::Absent => present,
        Patch::Null => None,
        Patch::Value(name) => name.non_empty(),
    }
}

impl SettingsBody {
    /// The settings after this change.
    pub(super) fn merged(self, settings: Settings) -> Result<Settings> {
        let number = |said: Patch<Number>, present: i64, default: i64| match said {
            Patch::Absent => present,
            Patch::Null => default,
            Patch::Value(number) => number.0,
        };
        let repository = match self.repository {
            Patch::Absent => settings.repository,
            Patch::Null => None,
            Patch::Value(body) => Some(body.merged(settings.repository)?),
        };
        let merged = Settings {
            enabled: self.enabled.map_or(settings.enabled, |flag| flag.0),
            four_eyes: self.four_eyes.map_or(settings.four_eyes, |flag| flag.0),
            repository,
            deploy_path: match self.deploy_path {
                Patch::Absent => settings.deploy_path,
                Patch::Null => None,
                Patch::Value(path) => path.non_empty(),
            },
            timeout_s: number(self.timeout, settings.timeout_s, rules::TIMEOUT_S_DEFAULT),
            keep_backups: number(self.keep_backups, settings.keep_backups, rules::KEEP_BACKUPS_DEFAULT),
            running_user: settings.running_user,
            hooks: settings.hooks,
        };
        match self.lifecycle_hooks.map(|hooks| hooks.0) {
            None => Ok(merged),
            Some(hooks) if hooks.len() > 1 => Err(Error::invalid("lifecycle_hooks", "must be one object")),
            Some(mut hooks) => match hooks.pop() {
                Some(hooks) => hooks.merged(merged),
                None => Ok(merged),
            },
        }
    }
}

impl RepositoryBody {
    fn merged(self, present: Option<Repository>) -> Result<Repository> {
        if matches!(self.credential, Patch::Value(_)) {
            return Err(Error::invalid("repository.credential", "credentials are not supported, send null"));
        }
        let present_url = present.as_ref().map(|present| present.url.clone());
        let moved = self.url.is_some();
        let url = self.url.map(|url| url.0).or(present_url);
        let url = url.ok_or_else(|| Error::invalid("repository.url", "is missing"))?;
        let kept = present.as_ref().map(|present| present.repository_type).filter(|_| !moved);
        let repository_type = self.repository_type.or(kept).unwrap_or_else(|| rules::guess_type(&url));
        let branch = match self.branch {
            Patch::Absent => present.map(|present| present.branch),
            Patch::Null => None,
            Patch::Value(branch) => Some(branch.0),
        };
        Ok(Repository { repository_type, url, branch: branch.unwrap_or_else(|| BRANCH_DEFAULT.to_owned()) })
    }
}

impl HooksBody {
    fn merged(self, mut settings: Settings) -> Result<Settings> {
        settings.running_user = account(self.running_user, settings.running_user);
        let said = [
            (HookName::GlobalPreExec, self.global_pre_exec),
            (HookName::PreExec, self.pre_exec),
            (HookName::PostExec, self.post_exec),
            (HookName::GlobalPostExec, self.global_post_exec),
        ];
        for (name, hook) in said {
            match hook {
                Patch::Absent => {}
                Patch::Null => _ = settings.hooks.remove(&name),
                Patch::Value(body) => {
                    let present = settings.hooks.remove(&name);
                    let script = body.script.map(|script| script.id.0);
                    let script_id = script.or(present.as_ref().map(|present| present.script_id)).ok_or_else(|| {
                        Error::invalid(format!("lifecycle_hooks.{name}.script"), "is missing; a null hook is none")
                    })?;
                    let running_user = account(body.running_user, present.and_then(|present| present.running_user));
                    settings.hooks.insert(name, Hook { script_id, running_user });
                }
            }
        }
        Ok(settings)
    }
}

/// Refuses hooks with a script that does not exist.
pub(super) async fn check_scripts(tx: &mut Tx, settings: &Settings) -> Result<()> {
    let ids: Vec<i64> = settings.hooks.values().map(|hook| hook.script_id).collect();
    let organisation_id = tx.organisation_id();
    let known = scripts::store::find_many(tx, organisation_id, &ids).await?;
    for (name, hook) in &settings.hooks {
        if known.iter().all(|script| script.id != hook.script_id) {
            let field = format!("lifecycle_hooks.{name}.script");
            return Err(Error::invalid(field, format!("there is no deploy script {}", hook.script_id)));
        }
    }
    Ok(())
}
