//! A change of deploy settings or of a template as callers send it, and how it meets what there is.
//!
//! Invariant: what is not named stays; null makes a value one that was never set; naming a part of a value that came
//! from a template makes the whole value the application's own.

use drover_kernel::fields::{Flag, Line, Many, Name, Number, Patch, Prose, Reference, Text};
use drover_kernel::{Error, Result, Tx};
use schemars::JsonSchema;
use serde::Deserialize;

use super::rules::{self, BRANCH_DEFAULT, Hook, HookName, Repository, RepositoryType, Settings, Values};
use crate::credentials::choice::CredentialBody;
use crate::scripts;

/// A change of deploy settings; what is left out stays, null takes the template's value, else the default.
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
    /// Paths inside a release that every version shares, such as `uploads/`; one that ends in `/` is a folder. The list
    /// takes the place of the present one.
    #[serde(default)]
    shared_paths: Patch<Many<Line>>,
    /// Default account and the four hooks; a script is named by id.
    #[serde(default, alias = "lifecyle_hooks")]
    lifecycle_hooks: Option<Many<HooksBody>>,
    /// Switch deployment on or off.
    enabled: Option<Flag>,
    /// Whether a deploy task's reviewer must be another person than its creator.
    four_eyes: Option<Flag>,
}

/// The part of a change that templates have as well.
#[derive(Debug, Default)]
pub(crate) struct ValuesChange {
    pub(crate) repository: Patch<RepositoryBody>,
    pub(crate) deploy_path: Patch<Line>,
    pub(crate) timeout: Patch<Number>,
    pub(crate) keep_backups: Patch<Number>,
    pub(crate) shared_paths: Patch<Many<Line>>,
    pub(crate) lifecycle_hooks: Option<Many<HooksBody>>,
}

/// Where the sources come from.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "RepositoryChange")]
pub(crate) struct RepositoryBody {
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
    credential: Patch<CredentialBody>,
    /// Keys that the host of a repository over SSH may show, one a line; null trusts what it shows first.
    #[serde(default)]
    host_key: Patch<Prose>,
    /// Certificates in PEM that a repository over https is checked with; null takes the system's.
    #[serde(default)]
    ca_certificate: Patch<Text<262_144>>,
}

/// Default account and the four hooks.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "LifecycleHooksChange")]
pub(crate) struct HooksBody {
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
    /// Seconds that this script may take by itself, 1 to 86400; null leaves it what the sub-task has left.
    #[serde(default)]
    timeout: Patch<Number>,
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
    /// Takes out what is said about the repository's credential.
    pub(super) fn take_credential(&mut self) -> Patch<CredentialBody> {
        take_credential(&mut self.repository)
    }

    /// The application's own settings after this change; `effective` is what counted before it.
    pub(super) fn merged(self, own: &Settings, effective: &Values) -> Result<Settings> {
        let change = ValuesChange {
            repository: self.repository,
            deploy_path: self.deploy_path,
            timeout: self.timeout,
            keep_backups: self.keep_backups,
            shared_paths: self.shared_paths,
            lifecycle_hooks: self.lifecycle_hooks,
        };
        Ok(Settings {
            enabled: self.enabled.map_or(own.enabled, |flag| flag.0),
            four_eyes: self.four_eyes.map_or(own.four_eyes, |flag| flag.0),
            template_id: own.template_id,
            values: change.merged(own.values.clone(), effective)?,
        })
    }
}

impl ValuesChange {
    /// Takes out what is said about the repository's credential.
    pub(crate) fn take_credential(&mut self) -> Patch<CredentialBody> {
        take_credential(&mut self.repository)
    }

    /// The values after this change; parts that are left out are taken from `effective`.
    pub(crate) fn merged(self, own: Values, effective: &Values) -> Result<Values> {
        let merged = Values {
            repository: match self.repository {
                Patch::Absent => own.repository,
                Patch::Null => None,
                Patch::Value(body) => Some(body.merged(effective.repository.as_ref())?),
            },
            deploy_path: match self.deploy_path {
                Patch::Absent => own.deploy_path,
                Patch::Null => None,
                Patch::Value(path) => path.non_empty(),
            },
            timeout_s: self.timeout.map(|number| number.0).or(own.timeout_s),
            keep_backups: self.keep_backups.map(|number| number.0).or(own.keep_backups),
            shared_paths: self.shared_paths.map(texts).or(own.shared_paths),
            running_user: own.running_user,
            hooks: own.hooks,
        };
        match self.lifecycle_hooks.map(|hooks| hooks.0) {
            None => Ok(merged),
            Some(hooks) if hooks.len() > 1 => Err(Error::invalid("lifecycle_hooks", "must be one object")),
            Some(mut hooks) => match hooks.pop() {
                Some(hooks) => hooks.merged(merged, effective),
                None => Ok(merged),
            },
        }
    }
}

fn texts(lines: Many<Line>) -> Vec<String> {
    lines.0.into_iter().map(|line| line.0).collect()
}

fn take_credential(repository: &mut Patch<RepositoryBody>) -> Patch<CredentialBody> {
    match repository {
        Patch::Value(body) => std::mem::take(&mut body.credential),
        Patch::Absent | Patch::Null => Patch::Absent,
    }
}

impl RepositoryBody {
    fn merged(self, present: Option<&Repository>) -> Result<Repository> {
        let was_archive = present.is_some_and(|present| present.repository_type == RepositoryType::Archive);
        let is_archive = self.repository_type == Some(RepositoryType::Archive)
            || was_archive && self.repository_type.is_none() && self.url.is_none();
        if is_archive {
            return Ok(Repository {
                repository_type: RepositoryType::Archive,
                url: self.url.map(|url| url.0).unwrap_or_default(),
                branch: BRANCH_DEFAULT.to_owned(),
                credential_id: None,
                host_key: self.host_key.map(|text| text.0).or(None),
                ca_certificate: self.ca_certificate.map(|text| text.0).or(None),
            });
        }
        let present = present.filter(|_| !was_archive);
        let url = self.url.map(|url| url.0).or_else(|| present.map(|present| present.url.clone()));
        let url = url.ok_or_else(|| Error::invalid("repository.url", "is missing"))?;
        // What belongs to the place goes with it.
        let same_place = present.filter(|present| present.url == url);
        let kept = same_place.map(|present| present.repository_type);
        let repository_type = self.repository_type.or(kept).unwrap_or_else(|| rules::guess_type(&url));
        let branch = match self.branch {
            Patch::Absent => present.map(|present| present.branch.clone()),
            Patch::Null => None,
            Patch::Value(branch) => Some(branch.0),
        };
        Ok(Repository {
            repository_type,
            url,
            branch: branch.unwrap_or_else(|| BRANCH_DEFAULT.to_owned()),
            // Decided in the transaction, where there are credentials to look at.
            credential_id: present.and_then(|present| present.credential_id),
            host_key: self.host_key.map(|text| text.0).or(same_place.and_then(|present| present.host_key.clone())),
            ca_certificate: self
                .ca_certificate
                .map(|text| text.0)
                .or(same_place.and_then(|present| present.ca_certificate.clone())),
        })
    }
}

impl HooksBody {
    fn merged(self, mut values: Values, effective: &Values) -> Result<Values> {
        values.running_user = account(self.running_user, values.running_user);
        let said = [
            (HookName::GlobalPreExec, self.global_pre_exec),
            (HookName::PreExec, self.pre_exec),
            (HookName::PostExec, self.post_exec),
            (HookName::GlobalPostExec, self.global_post_exec),
        ];
        for (name, hook) in said {
            match hook {
                Patch::Absent => {}
                Patch::Null => _ = values.hooks.remove(&name),
                Patch::Value(body) => {
                    let present = effective.hooks.get(&name);
                    let script = body.script.map(|script| script.id.0);
                    let script_id = script.or(present.map(|present| present.script_id)).ok_or_else(|| {
                        Error::invalid(format!("lifecycle_hooks.{name}.script"), "is missing; a null hook is none")
                    })?;
                    let running_user = present.and_then(|present| present.running_user.clone());
                    let hook = Hook {
                        script_id,
                        running_user: account(body.running_user, running_user),
                        timeout_s: body
                            .timeout
                            .map(|number| number.0)
                            .or(present.and_then(|present| present.timeout_s)),
                    };
                    values.hooks.insert(name, hook);
                }
            }
        }
        Ok(values)
    }
}

/// Refuses hooks with a script that does not exist.
pub(crate) async fn check_scripts(tx: &mut Tx, values: &Values) -> Result<()> {
    let ids: Vec<i64> = values.hooks.values().map(|hook| hook.script_id).collect();
    let organisation_id = tx.organisation_id();
    let known = scripts::store::find_many(tx, organisation_id, &ids).await?;
    for (name, hook) in &values.hooks {
        if known.iter().all(|script| script.id != hook.script_id) {
            let field = format!("lifecycle_hooks.{name}.script");
            return Err(Error::invalid(field, format!("there is no deploy script {}", hook.script_id)));
        }
    }
    Ok(())
}
