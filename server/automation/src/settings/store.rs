//! Deploy settings and their hooks in the database.

use drover_kernel::db::Read;
use drover_kernel::{Result, Tx, args, row, sql};
use drover_shared::words::Language;

use super::rules::{Hook, HookName, Repository, RepositoryType, Settings};
use crate::scripts::rules::TemplateEngine;

row! {
    /// How an application is deployed, hooks aside.
    pub struct SettingsRow {
        /// Id.
        pub id: i64,
        /// Application.
        pub application_id: i64,
        /// Whether it may be deployed.
        pub enabled: bool,
        /// Who made the settings.
        pub creator: Option<String>,
        /// Kind of the repository.
        pub repository_type: Option<RepositoryType>,
        /// Address of the repository.
        pub repository_url: Option<String>,
        /// Branch to take.
        pub repository_branch: Option<String>,
        /// Folder to deploy into, before rendering.
        pub deploy_path: Option<String>,
        /// Seconds a deploy task may take.
        pub timeout_s: i64,
        /// Versions that are kept.
        pub keep_backups: i64,
        /// Account for hooks that name none.
        pub running_user: Option<String>,
        /// Whether a reviewer must be another person than the creator.
        pub four_eyes: bool,
    }
}

row! {
    /// A hook with its script.
    pub struct HookRow {
        /// Which hook.
        pub hook: HookName,
        /// Account for this script alone.
        pub running_user: Option<String>,
        /// Id of the script.
        pub script_id: i64,
        /// Name of the script.
        pub script_name: String,
        /// Language of the script.
        pub language: Language,
        /// Text before rendering.
        pub content: String,
        /// Engine that renders it.
        pub template_engine: TemplateEngine,
        /// Who made the script.
        pub creator: String,
    }
}

/// An application's settings with hooks and scripts, in the hooks' order.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Everything but the hooks.
    pub row: SettingsRow,
    /// The hooks that there are.
    pub hooks: Vec<HookRow>,
}

impl Loaded {
    /// What the settings say.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let row = &self.row;
        let repository = match (row.repository_type, &row.repository_url, &row.repository_branch) {
            (Some(repository_type), Some(url), Some(branch)) => {
                Some(Repository { repository_type, url: url.clone(), branch: branch.clone() })
            }
            _ => None,
        };
        let hook =
            |hook: &HookRow| (hook.hook, Hook { script_id: hook.script_id, running_user: hook.running_user.clone() });
        Settings {
            enabled: row.enabled,
            four_eyes: row.four_eyes,
            repository,
            deploy_path: row.deploy_path.clone(),
            timeout_s: row.timeout_s,
            keep_backups: row.keep_backups,
            running_user: row.running_user.clone(),
            hooks: self.hooks.iter().map(hook).collect(),
        }
    }
}

/// The settings of an application; none before the first change of them.
///
/// # Errors
/// When the database is not available.
pub async fn load(read: &mut Read, application_id: i64) -> Result<Option<Loaded>> {
    let settings = sql!(
        "SELECT id, application_id, enabled, creator, repository_type, repository_url, repository_branch, \
         deploy_path, timeout_s, keep_backups, running_user, four_eyes FROM deploy_settings WHERE application_id = $1"
    );
    let Some(row) = read.opt::<SettingsRow>(settings, args![application_id]).await? else { return Ok(None) };
    let hooks = sql!(
        "SELECT k.hook, k.running_user, s.id AS script_id, s.name AS script_name, s.language, s.content, \
         s.template_engine, s.creator FROM deploy_hooks k JOIN deploy_scripts s ON s.id = k.script_id \
         WHERE k.settings_id = $1"
    );
    let mut hooks: Vec<HookRow> = read.all(hooks, args![row.id]).await?;
    hooks.sort_by_key(|hook| hook.hook);
    Ok(Some(Loaded { row, hooks }))
}

/// Makes sure that an application has settings and that nobody else changes them until the transaction ends.
///
/// # Errors
/// When the database refuses.
pub async fn hold(tx: &mut Tx, application_id: i64, creator: &str) -> Result<i64> {
    let defaults = Settings::default();
    let insert = sql!(
        "INSERT INTO deploy_settings (organisation_id, application_id, enabled, creator, timeout_s, keep_backups, \
         four_eyes, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (application_id) DO UPDATE SET enabled = deploy_settings.enabled RETURNING id"
    );
    let arguments = args![
        tx.organisation_id(),
        application_id,
        defaults.enabled,
        creator,
        defaults.timeout_s,
        defaults.keep_backups,
        defaults.four_eyes,
        tx.now()
    ];
    Ok(tx.value(insert, arguments).await?)
}

/// Makes an application's settings what is said, hooks included.
///
/// # Errors
/// When the database refuses.
pub async fn save(tx: &mut Tx, id: i64, settings: &Settings) -> Result<()> {
    let update = sql!(
        "UPDATE deploy_settings SET enabled = $2, repository_type = $3, repository_url = $4, repository_branch = $5, \
         deploy_path = $6, timeout_s = $7, keep_backups = $8, running_user = $9, four_eyes = $10 WHERE id = $1"
    );
    let repository = settings.repository.as_ref();
    let arguments = args![
        id,
        settings.enabled,
        repository.map(|repository| repository.repository_type.to_string()),
        repository.map(|repository| repository.url.clone()),
        repository.map(|repository| repository.branch.clone()),
        settings.deploy_path.clone(),
        settings.timeout_s,
        settings.keep_backups,
        settings.running_user.clone(),
        settings.four_eyes
    ];
    tx.run_one(update, arguments).await?;
    tx.run(sql!("DELETE FROM deploy_hooks WHERE settings_id = $1"), args![id]).await?;
    let organisation_id = tx.organisation_id();
    let rows = settings
        .hooks
        .iter()
        .map(|(name, hook)| args![organisation_id, id, *name, hook.script_id, hook.running_user.clone()]);
    let insert = sql!(
        "INSERT INTO deploy_hooks (organisation_id, settings_id, hook, script_id, running_user) \
         VALUES ($1, $2, $3, $4, $5)"
    );
    Ok(tx.insert_many(insert, rows.collect()).await?)
}
