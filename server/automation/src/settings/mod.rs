//! Deploy settings: how one application is deployed.
//!
//! Invariants: an application without settings reads as one with the defaults, switched off; a value that is set on the
//! application wins over the linked template's; a change keeps whatever it does not name; no plan that is made already
//! sees it.

pub(crate) mod body;
mod linking;
pub mod rules;
mod shared;
pub mod store;

use drover_inventory::instances::states::Changed;
use drover_inventory::{applications, changes};
use drover_kernel::fields::Patch;
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Caller, Message, Path, Reply, Result, Routes, Tx, permission,
};
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::Serialize;

use self::body::SettingsBody;
use self::rules::{HookName, Repository, RepositoryType, Settings, Values};
use self::store::{HookRow, Loaded};
use crate::credentials::choice::{self, Asked, CredentialBody};
use crate::credentials::store::{CredentialRow, Owner};
use crate::credentials::{self, CredentialOut};
use crate::scripts::ScriptOut;
use crate::watching;

/// What the audit tells of a secret.
const SECRET_CHANGED: &str = "secret of the credential: changed";

permission!(
    pub View,
    "deploy_settings.view",
    "See how an application is deployed",
    Resource { kind: "application", right: "view_app" }
);
permission!(
    pub Edit,
    "deploy_settings.edit",
    "Change how an application is deployed",
    Resource { kind: "application", right: "edit_app" }
);

/// Routes of deploy settings.
pub fn routes() -> Routes {
    let base = "/applications/{id}/deploy-settings/";
    let enable_path = "/applications/{id}/deploy-settings/actions/enable/";
    let disable_path = "/applications/{id}/deploy-settings/actions/disable/";
    Routes::tagged("deploy-settings")
        .get(base, "deploy-settings-get", "Read how an application is deployed.", detail)
        .patch(base, "deploy-settings-update", "Change an application's deploy settings.", update)
        .post(enable_path, "deploy-settings-enable", "Allow deployment of an application.", enable)
        .post(disable_path, "deploy-settings-disable", "Stop deployment of an application.", disable)
        .merge(linking::routes())
}

pub(crate) use linking::{link, unlink};

/// How one application is deployed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeploySettings")]
pub struct SettingsOut {
    /// Id of the settings; 0 before the first change of them.
    pub id: i64,
    /// Whether the application may be deployed.
    pub enabled: bool,
    /// Username that made them.
    pub creator: Option<String>,
    /// Application id.
    pub application: i64,
    /// Where the sources come from.
    pub repository: Option<RepositoryOut>,
    /// Folder to deploy into; may hold template expressions.
    pub deploy_path: Option<String>,
    /// Seconds a deploy task may take.
    pub timeout: i64,
    /// How many recent versions are kept.
    pub keep_backups: i64,
    /// Paths inside a release that every version shares; one that ends in `/` is a folder.
    pub shared_paths: Vec<String>,
    /// Scripts around an update.
    pub lifecycle_hooks: HooksOut,
    /// Linked template.
    pub template: Option<TemplateOut>,
    /// Copy of `lifecycle_hooks.running_user`.
    pub script_running_user: Option<String>,
    /// Whether a deploy task's reviewer must be another person than its creator.
    pub four_eyes: bool,
    /// Names of the values that come from the linked template, since they were never set here.
    pub from_template: Vec<String>,
}

/// Sources in a repository.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Repository")]
pub struct RepositoryOut {
    /// Kind of repository.
    #[serde(rename = "type")]
    pub repository_type: RepositoryType,
    /// Address.
    pub url: String,
    /// Branch to take.
    pub branch: String,
    /// How to log in; null when nothing is needed.
    pub credential: Option<CredentialOut>,
    /// Keys that the host of a repository over SSH may show, one a line; null until one is trusted.
    pub host_key: Option<String>,
    /// Certificates in PEM that a repository over https is checked with; null for the system's.
    pub ca_certificate: Option<String>,
}

/// A template in short.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TemplateReference")]
pub struct TemplateOut {
    /// Id.
    pub id: i64,
    /// Name.
    pub name: String,
}

/// The scripts that run around an update.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "LifecycleHooks")]
pub struct HooksOut {
    /// Account for hooks that name none.
    pub running_user: Option<String>,
    /// Runs once, before any instance is touched.
    pub global_pre_exec: Option<HookOut>,
    /// Runs on each instance before its update.
    pub pre_exec: Option<HookOut>,
    /// Runs on each instance after its update.
    pub post_exec: Option<HookOut>,
    /// Runs once, after all instances.
    pub global_post_exec: Option<HookOut>,
}

/// One hook.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LifecycleHook")]
pub struct HookOut {
    /// Account for this script; wins over the set's.
    pub running_user: Option<String>,
    /// Seconds that this script may take by itself; null when only the sub-task's time counts.
    pub timeout: Option<i64>,
    /// Script to run.
    pub script: ScriptOut,
}

impl From<HookRow> for HookOut {
    fn from(row: HookRow) -> Self {
        let script = ScriptOut {
            id: row.script_id,
            name: row.script_name,
            language: row.language,
            content: row.content,
            // A hook takes none, and says itself as whom it runs.
            parameters: Vec::new(),
            running_user: None,
            template_engine: row.template_engine,
            creator: row.creator,
        };
        Self { running_user: row.running_user, timeout: row.timeout_s, script }
    }
}

impl RepositoryOut {
    /// The repository with its credential, whose secret is not shown.
    pub(crate) fn new(repository: Repository, credential: Option<&CredentialRow>) -> Self {
        Self {
            repository_type: repository.repository_type,
            url: repository.url,
            branch: repository.branch,
            credential: credential.map(CredentialOut::from),
            host_key: repository.host_key,
            ca_certificate: repository.ca_certificate,
        }
    }
}

impl HooksOut {
    /// The hooks with their scripts.
    pub(crate) fn new(running_user: Option<String>, rows: Vec<HookRow>) -> Self {
        let mut hooks = Self { running_user, ..Self::default() };
        for row in rows {
            let slot = match row.hook {
                HookName::GlobalPreExec => &mut hooks.global_pre_exec,
                HookName::PreExec => &mut hooks.pre_exec,
                HookName::PostExec => &mut hooks.post_exec,
                HookName::GlobalPostExec => &mut hooks.global_post_exec,
            };
            *slot = Some(row.into());
        }
        hooks
    }

    fn hook(&self, name: HookName) -> Option<&HookOut> {
        match name {
            HookName::GlobalPreExec => self.global_pre_exec.as_ref(),
            HookName::PreExec => self.pre_exec.as_ref(),
            HookName::PostExec => self.post_exec.as_ref(),
            HookName::GlobalPostExec => self.global_post_exec.as_ref(),
        }
    }

    /// Adds each hook to what the audit tells: scripts by name, since their texts have an audit of their own.
    pub(crate) fn tell(&self, told: &mut serde_json::Value) {
        for name in HookName::ALL {
            told[name.as_str()] = self.hook(*name).map_or(serde_json::Value::Null, |hook| {
                let account = hook.running_user.as_ref().map(|user| format!(" as {user}")).unwrap_or_default();
                let time = hook.timeout.map(|seconds| format!(" within {seconds} s")).unwrap_or_default();
                format!("{} ({}){account}{time}", hook.script.name, hook.script.id).into()
            });
        }
    }
}

impl SettingsOut {
    fn new(application_id: i64, loaded: Option<Loaded>) -> Self {
        let Loaded { id, creator, own, template, values, hooks, credential } = loaded.unwrap_or_default();
        Self {
            id,
            enabled: own.enabled,
            creator,
            application: application_id,
            deploy_path: values.deploy_path.clone(),
            timeout: values.timeout_s(),
            keep_backups: values.keep_backups(),
            shared_paths: values.shared_paths.clone().unwrap_or_default(),
            lifecycle_hooks: HooksOut::new(values.running_user.clone(), hooks),
            from_template: template.as_ref().map(|template| own.values.inherited(&template.values)).unwrap_or_default(),
            template: template.map(|template| TemplateOut { id: template.id, name: template.name }),
            script_running_user: values.running_user,
            repository: values.repository.map(|repository| RepositoryOut::new(repository, credential.as_ref())),
            four_eyes: own.four_eyes,
        }
    }
}

async fn detail(call: Call<View>, Path(id): Path<i64>) -> Result<Reply<SettingsOut>> {
    let mut read = call.read().await?;
    Ok(Reply::new(SettingsOut::new(id, store::load(&mut read, id).await?)))
}

async fn update(call: Call<Edit>, Path(id): Path<i64>, Body(body): Body<SettingsBody>) -> Result<Reply<SettingsOut>> {
    let asker = Asker::new(call.caller()?);
    let mut body = body;
    let credential = body.take_credential();
    let mut tx = call.begin().await?;
    let merge = |own: &Settings, effective: &Values| body.merged(own, effective);
    let (entries, settings) = change(&mut tx, id, &asker, credential, merge).await?;
    tx.commit(Audit::all(entries), settings).await
}

async fn enable(call: Call<Edit>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    set_enabled(call, id, true).await
}

async fn disable(call: Call<Edit>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    set_enabled(call, id, false).await
}

async fn set_enabled(call: Call<Edit>, id: i64, enabled: bool) -> Result<Reply<Message>> {
    let asker = Asker::new(call.caller()?);
    let mut tx = call.begin().await?;
    let switch = |own: &Settings, _: &Values| Ok(Settings { enabled, ..own.clone() });
    let (entries, _) = change(&mut tx, id, &asker, Patch::Absent, switch).await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

/// Who asks for a change.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    /// Login name.
    pub(crate) username: String,
    /// Whether they may manage credentials.
    pub(crate) may_manage: bool,
}

impl Asker {
    pub(crate) fn new(caller: &Caller) -> Self {
        let (module, right) = credentials::MANAGING;
        Self { username: caller.username.clone(), may_manage: caller.has_module_right(module, right) }
    }
}

/// Has an application's own settings changed by `merge`, which is given them and the values that count, making them if
/// there are none; gives audit and result.
async fn change(
    tx: &mut Tx,
    application_id: i64,
    asker: &Asker,
    credential: Patch<CredentialBody>,
    merge: impl FnOnce(&Settings, &Values) -> Result<Settings>,
) -> Result<(Vec<AuditEntry>, SettingsOut)> {
    let organisation_id = tx.organisation_id();
    let application = applications::store::load(tx, organisation_id, application_id).await?;
    let id = store::hold(tx, application_id, &asker.username).await?;
    let present = store::load(tx, application_id).await?;
    let (before, effective) =
        present.as_ref().map(|loaded| (loaded.own.clone(), loaded.values.clone())).unwrap_or_default();
    let mut after = merge(&before, &effective)?;
    rules::check(&after.values)?;
    let owner = Owner::Settings(id);
    let asked =
        Asked { said: credential, before: &effective, owner, creator: &asker.username, may_manage: asker.may_manage };
    let secret_changed = choice::settle(tx, &mut after.values, asked).await?;
    body::check_scripts(tx, &after.values).await?;
    let before_told = told(&SettingsOut::new(application_id, present));
    if after != before {
        store::save(tx, id, &after).await?;
        tx.after_commit(move |kernel| watching::say(kernel, Changed::Application(application_id)));
        let used = after.values.repository.as_ref().and_then(|repository| repository.credential_id);
        credentials::store::sweep(tx, owner, used).await?;
    }
    let settings = SettingsOut::new(application_id, store::load(tx, application_id).await?);
    let mut detail = changes::between(&before_told, &told(&settings), &[]);
    if secret_changed {
        detail.push_str(if detail.is_empty() { SECRET_CHANGED } else { "; secret of the credential: changed" });
    }
    if detail.is_empty() {
        return Ok((vec![], settings));
    }
    let list = AuditList::Application;
    let entry = AuditEntry::new(list, "change_deploy_setting", "application", application_id, application.full_name);
    Ok((vec![entry.detail(detail)], settings))
}

/// Settings as the audit tells them.
fn told(settings: &SettingsOut) -> serde_json::Value {
    let template = settings.template.as_ref();
    let mut told = serde_json::json!({
        "enabled": settings.enabled,
        "four_eyes": settings.four_eyes,
        "repository": settings.repository,
        "deploy_path": settings.deploy_path,
        "timeout": settings.timeout,
        "keep_backups": settings.keep_backups,
        "shared_paths": settings.shared_paths,
        "running_user": settings.script_running_user,
        "template": template.map(|template| format!("{} ({})", template.name, template.id)),
        "from_template": settings.from_template,
    });
    settings.lifecycle_hooks.tell(&mut told);
    told
}

/// The audit entry of a host key that was trusted because nobody knew another.
pub(crate) async fn trusted(tx: &mut Tx, owner: Owner, application_id: i64, shown: &str) -> Result<AuditEntry> {
    let organisation_id = tx.organisation_id();
    let detail = format!("repository.host_key: null → {shown}, which the host showed first");
    Ok(match owner {
        Owner::Settings(_) => {
            let application = applications::store::load(tx, organisation_id, application_id).await?;
            let list = AuditList::Application;
            AuditEntry::new(list, "change_deploy_setting", "application", application_id, application.full_name)
        }
        Owner::Template(id) => {
            let template = crate::templates::store::load(tx, organisation_id, id).await?;
            AuditEntry::new(AuditList::General, "update", "deploy_template", id, template.name)
        }
    }
    .detail(detail))
}
