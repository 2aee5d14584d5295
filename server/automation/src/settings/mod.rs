//! Deploy settings: how one application is deployed.
//!
//! Invariants: an application without settings reads as one with the defaults, switched off; a change keeps whatever it
//! does not name; no plan that is made already sees it.

mod body;
pub mod rules;
pub mod store;

use drover_inventory::{applications, changes};
use drover_kernel::{Audit, AuditEntry, AuditList, Body, Call, Message, Path, Reply, Result, Routes, Tx, permission};
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::Serialize;

use self::body::SettingsBody;
use self::rules::{HookName, RepositoryType, Settings};
use self::store::{HookRow, Loaded};
use crate::scripts::ScriptOut;

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
}

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
    /// Scripts around an update.
    pub lifecycle_hooks: HooksOut,
    /// Linked template.
    pub template: Option<TemplateOut>,
    /// Copy of `lifecycle_hooks.running_user`.
    pub script_running_user: Option<String>,
    /// Whether a deploy task's reviewer must be another person than its creator.
    pub four_eyes: bool,
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
    pub credential: Option<serde_json::Value>,
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
            template_engine: row.template_engine,
            creator: row.creator,
        };
        Self { running_user: row.running_user, script }
    }
}

impl SettingsOut {
    fn new(application_id: i64, loaded: Option<Loaded>) -> Self {
        let settings = loaded.as_ref().map(Loaded::settings).unwrap_or_default();
        let (id, creator, rows) = match loaded {
            Some(loaded) => (loaded.row.id, loaded.row.creator, loaded.hooks),
            None => (0, None, Vec::new()),
        };
        let mut hooks = HooksOut { running_user: settings.running_user.clone(), ..HooksOut::default() };
        for row in rows {
            let slot = match row.hook {
                HookName::GlobalPreExec => &mut hooks.global_pre_exec,
                HookName::PreExec => &mut hooks.pre_exec,
                HookName::PostExec => &mut hooks.post_exec,
                HookName::GlobalPostExec => &mut hooks.global_post_exec,
            };
            *slot = Some(row.into());
        }
        let repository = settings.repository.map(|repository| RepositoryOut {
            repository_type: repository.repository_type,
            url: repository.url,
            branch: repository.branch,
            credential: None,
        });
        Self {
            id,
            enabled: settings.enabled,
            creator,
            application: application_id,
            repository,
            deploy_path: settings.deploy_path,
            timeout: settings.timeout_s,
            keep_backups: settings.keep_backups,
            lifecycle_hooks: hooks,
            template: None,
            script_running_user: settings.running_user,
            four_eyes: settings.four_eyes,
        }
    }
}

async fn detail(call: Call<View>, Path(id): Path<i64>) -> Result<Reply<SettingsOut>> {
    let mut read = call.read().await?;
    Ok(Reply::new(SettingsOut::new(id, store::load(&mut read, id).await?)))
}

async fn update(call: Call<Edit>, Path(id): Path<i64>, Body(body): Body<SettingsBody>) -> Result<Reply<SettingsOut>> {
    let creator = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let (audit, settings) = change(&mut tx, id, &creator, |settings| body.merged(settings)).await?;
    tx.commit(audit, settings).await
}

async fn enable(call: Call<Edit>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    set_enabled(call, id, true).await
}

async fn disable(call: Call<Edit>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    set_enabled(call, id, false).await
}

async fn set_enabled(call: Call<Edit>, id: i64, enabled: bool) -> Result<Reply<Message>> {
    let creator = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let (audit, _) = change(&mut tx, id, &creator, |settings| Ok(Settings { enabled, ..settings })).await?;
    tx.commit(audit, Message::success()).await
}

/// Has the settings of an application changed by `merge`, making them if there are none; gives audit and result.
async fn change(
    tx: &mut Tx,
    application_id: i64,
    creator: &str,
    merge: impl FnOnce(Settings) -> Result<Settings>,
) -> Result<(Audit, SettingsOut)> {
    let organisation_id = tx.organisation_id();
    let application = applications::store::load(tx, organisation_id, application_id).await?;
    let id = store::hold(tx, application_id, creator).await?;
    let present = store::load(tx, application_id).await?;
    let before = present.as_ref().map(Loaded::settings).unwrap_or_default();
    let after = merge(before.clone())?;
    rules::check(&after)?;
    body::check_scripts(tx, &after).await?;
    let before_told = told(&SettingsOut::new(application_id, present));
    if after != before {
        store::save(tx, id, &after).await?;
    }
    let settings = SettingsOut::new(application_id, store::load(tx, application_id).await?);
    let detail = changes::between(&before_told, &told(&settings), &[]);
    if detail.is_empty() {
        return Ok((Audit::all(vec![]), settings));
    }
    let list = AuditList::Application;
    let entry = AuditEntry::new(list, "change_deploy_setting", "application", application_id, application.full_name);
    Ok((Audit::of(entry.detail(detail)), settings))
}

/// Settings as the audit tells them: scripts by name, since their texts have an audit of their own.
fn told(settings: &SettingsOut) -> serde_json::Value {
    let mut told = serde_json::json!({
        "enabled": settings.enabled,
        "four_eyes": settings.four_eyes,
        "repository": settings.repository,
        "deploy_path": settings.deploy_path,
        "timeout": settings.timeout,
        "keep_backups": settings.keep_backups,
        "running_user": settings.script_running_user,
    });
    let hooks = &settings.lifecycle_hooks;
    for name in HookName::ALL {
        let hook = match name {
            HookName::GlobalPreExec => &hooks.global_pre_exec,
            HookName::PreExec => &hooks.pre_exec,
            HookName::PostExec => &hooks.post_exec,
            HookName::GlobalPostExec => &hooks.global_post_exec,
        };
        told[name.as_str()] = hook.as_ref().map_or(serde_json::Value::Null, |hook| {
            let account = hook.running_user.as_ref().map(|user| format!(" as {user}")).unwrap_or_default();
            format!("{} ({}){account}", hook.script.name, hook.script.id).into()
        });
    }
    told
}
