//! Deploy settings and their hooks in the database, together with what a linked template gives.

use drover_kernel::db::{DbError, FromRow, Json, Read, Row, Value};
use drover_kernel::{Error, Result, Tx, args, row, sql};
use drover_shared::words::Language;

use super::rules::{Hook, HookName, Repository, RepositoryType, Settings, Values};
use crate::credentials::store::{self as credential_store, CredentialRow, Owner};
use crate::scripts::rules::TemplateEngine;
use crate::templates::store::{self as template_store, Template};

row! {
    /// An application's own settings, values aside.
    struct SettingsRow {
        id: i64,
        organisation_id: i64,
        enabled: bool,
        creator: Option<String>,
        template_id: Option<i64>,
        four_eyes: bool,
    }
}

row! {
    /// The columns that settings and templates have in common.
    struct ValuesRow {
        repository_type: Option<RepositoryType>,
        repository_url: Option<String>,
        repository_branch: Option<String>,
        repository_host_key: Option<String>,
        repository_ca_certificate: Option<String>,
        credential_id: Option<i64>,
        deploy_path: Option<String>,
        timeout_s: Option<i64>,
        keep_backups: Option<i64>,
        shared_paths: Option<Json<Vec<String>>>,
        running_user: Option<String>,
    }
}

row! {
    /// A hook with its script.
    pub struct HookRow {
        /// Which hook.
        pub hook: HookName,
        /// Account for this script alone.
        pub running_user: Option<String>,
        /// Seconds that it may take by itself.
        pub timeout_s: Option<i64>,
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

/// A settings' or template's row, whose other columns are decoded to `T`, with the values that it holds.
pub(crate) struct WithValues<T> {
    pub(crate) row: T,
    values: ValuesRow,
}

impl<T: FromRow> FromRow for WithValues<T> {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self { row: T::from_row(row)?, values: ValuesRow::from_row(row)? })
    }
}

impl<T> WithValues<T> {
    /// The credential of the repository.
    pub(crate) fn credential_id(&self) -> Option<i64> {
        self.values.credential_id
    }

    /// The values with these hooks, and the rest of the row.
    pub(crate) fn split(self, hooks: &[HookRow]) -> (T, Values) {
        let row = self.values;
        let repository = match (row.repository_type, row.repository_url, row.repository_branch) {
            (Some(repository_type), Some(url), Some(branch)) => Some(Repository {
                repository_type,
                url,
                branch,
                credential_id: row.credential_id,
                host_key: row.repository_host_key,
                ca_certificate: row.repository_ca_certificate,
            }),
            _ => None,
        };
        let hook = |hook: &HookRow| {
            let (script_id, running_user, timeout_s) = (hook.script_id, hook.running_user.clone(), hook.timeout_s);
            (hook.hook, Hook { script_id, running_user, timeout_s })
        };
        let values = Values {
            repository,
            deploy_path: row.deploy_path,
            timeout_s: row.timeout_s,
            keep_backups: row.keep_backups,
            shared_paths: row.shared_paths.map(|paths| paths.0),
            running_user: row.running_user,
            hooks: hooks.iter().map(hook).collect(),
        };
        (self.row, values)
    }
}

/// The columns of values in the order of `$1` to `$11`.
pub(crate) fn arguments(values: &Values) -> Vec<Value> {
    let repository = values.repository.as_ref();
    args![
        repository.map(|repository| repository.repository_type.to_string()),
        repository.map(|repository| repository.url.clone()),
        repository.map(|repository| repository.branch.clone()),
        repository.and_then(|repository| repository.host_key.clone()),
        repository.and_then(|repository| repository.ca_certificate.clone()),
        repository.and_then(|repository| repository.credential_id),
        values.deploy_path.clone(),
        values.timeout_s,
        values.keep_backups,
        values.running_user.clone(),
        values.shared_paths.as_ref().map(|paths| serde_json::json!(paths))
    ]
}

/// How an application is deployed: its own settings, the template that is linked, and what follows from both.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Id of the settings.
    pub id: i64,
    /// Who made the settings.
    pub creator: Option<String>,
    /// What is set on the application itself.
    pub own: Settings,
    /// The linked template.
    pub template: Option<Template>,
    /// What counts: the application's own values, and the template's for what was never set.
    pub values: Values,
    /// The hooks that count with their scripts, in the hooks' order.
    pub hooks: Vec<HookRow>,
    /// The credential that counts.
    pub credential: Option<CredentialRow>,
}

impl Loaded {
    /// Whose the repository is that counts: the application's own, or the template's.
    #[must_use]
    pub fn owner_of_repository(&self) -> Owner {
        match &self.template {
            Some(template) if self.own.values.repository.is_none() => Owner::Template(template.id),
            _ => Owner::Settings(self.id),
        }
    }

    /// Refuses what may not be deployed at present.
    ///
    /// # Errors
    /// A conflict when deployment or the linked template is switched off.
    pub fn check_enabled(loaded: Option<Self>) -> Result<Self> {
        let Some(settings) = loaded.filter(|settings| settings.own.enabled) else {
            return Err(Error::conflict("the deploy settings of this application are not enabled"));
        };
        match &settings.template {
            Some(template) if !template.enabled => Err(Error::conflict(format!(
                "the deploy template {} ({}) that this application's deploy settings are linked to is disabled",
                template.name, template.id
            ))),
            _ => Ok(settings),
        }
    }
}

/// The settings of an application; none before the first change of them.
///
/// # Errors
/// When the database is not available.
pub async fn load(read: &mut Read, application_id: i64) -> Result<Option<Loaded>> {
    let settings = sql!("SELECT * FROM deploy_settings WHERE application_id = $1");
    let row: Option<WithValues<SettingsRow>> = read.opt(settings, args![application_id]).await?;
    let Some(row) = row else { return Ok(None) };
    let hooks = sql!(
        "SELECT k.hook, k.running_user, k.timeout_s, s.id AS script_id, s.name AS script_name, s.language, s.content, \
         s.template_engine, s.creator FROM deploy_hooks k JOIN deploy_scripts s ON s.id = k.script_id \
         WHERE k.settings_id = $1"
    );
    let mut hooks: Vec<HookRow> = read.all(hooks, args![row.row.id]).await?;
    let (row, own) = row.split(&hooks);
    let template = match row.template_id {
        Some(id) => template_store::find(read, row.organisation_id, id).await?,
        None => None,
    };
    let values = template.as_ref().map_or_else(|| own.clone(), |template| own.over(&template.values));
    let inherited = template.iter().flat_map(|template| &template.hooks);
    hooks.extend(inherited.filter(|hook| !own.hooks.contains_key(&hook.hook)).cloned());
    hooks.sort_by_key(|hook| hook.hook);
    let own = Settings { enabled: row.enabled, four_eyes: row.four_eyes, template_id: row.template_id, values: own };
    let credential = match values.repository.as_ref().and_then(|repository| repository.credential_id) {
        Some(id) => credential_store::find(read, row.organisation_id, id).await?,
        None => None,
    };
    Ok(Some(Loaded { id: row.id, creator: row.creator, own, template, values, hooks, credential }))
}

/// Makes sure that an application has settings and that nobody else changes them until the transaction ends.
///
/// # Errors
/// When the database refuses.
pub async fn hold(tx: &mut Tx, application_id: i64, creator: &str) -> Result<i64> {
    let defaults = Settings::default();
    let insert = sql!(
        "INSERT INTO deploy_settings (organisation_id, application_id, enabled, creator, four_eyes, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (application_id) DO UPDATE SET enabled = deploy_settings.enabled RETURNING id"
    );
    let arguments =
        args![tx.organisation_id(), application_id, defaults.enabled, creator, defaults.four_eyes, tx.now()];
    Ok(tx.value(insert, arguments).await?)
}

/// Makes an application's own settings what is said, hooks included.
///
/// # Errors
/// When the database refuses.
pub async fn save(tx: &mut Tx, id: i64, settings: &Settings) -> Result<()> {
    let update = sql!(
        "UPDATE deploy_settings SET repository_type = $1, repository_url = $2, repository_branch = $3, \
         repository_host_key = $4, repository_ca_certificate = $5, credential_id = $6, deploy_path = $7, \
         timeout_s = $8, keep_backups = $9, running_user = $10, shared_paths = $11, enabled = $12, four_eyes = $13, \
         template_id = $14 WHERE id = $15"
    );
    let mut arguments = arguments(&settings.values);
    arguments.extend(args![settings.enabled, settings.four_eyes, settings.template_id, id]);
    tx.run_one(update, arguments).await?;
    tx.run(sql!("DELETE FROM deploy_hooks WHERE settings_id = $1"), args![id]).await?;
    let organisation_id = tx.organisation_id();
    let rows = settings.values.hooks.iter().map(|(name, hook)| {
        args![organisation_id, id, *name, hook.script_id, hook.running_user.clone(), hook.timeout_s]
    });
    let insert = sql!(
        "INSERT INTO deploy_hooks (organisation_id, settings_id, hook, script_id, running_user, timeout_s) \
         VALUES ($1, $2, $3, $4, $5, $6)"
    );
    Ok(tx.insert_many(insert, rows.collect()).await?)
}

/// Remembers the keys that a repository's host showed, where none was known so far.
///
/// # Errors
/// A conflict when other keys came to be known meanwhile; when the database refuses.
pub async fn trust(tx: &mut Tx, owner: Owner, url: &str, keys: &str) -> Result<bool> {
    let arguments = |id: i64| args![id, url, keys];
    let touched = match owner {
        Owner::Settings(id) => {
            let sql = sql!(
                "UPDATE deploy_settings SET repository_host_key = $3 \
                 WHERE id = $1 AND repository_url = $2 AND repository_host_key IS NULL"
            );
            tx.run(sql, arguments(id)).await?
        }
        Owner::Template(id) => {
            let sql = sql!(
                "UPDATE deploy_templates SET repository_host_key = $3 \
                 WHERE id = $1 AND repository_url = $2 AND repository_host_key IS NULL"
            );
            tx.run(sql, arguments(id)).await?
        }
    };
    if touched == 1 {
        return Ok(true);
    }
    let other = match owner {
        Owner::Settings(id) => {
            let sql = sql!(
                "SELECT COUNT(*) FROM deploy_settings WHERE id = $1 AND repository_url = $2 AND repository_host_key <> $3"
            );
            tx.value::<i64>(sql, arguments(id)).await?
        }
        Owner::Template(id) => {
            let sql = sql!(
                "SELECT COUNT(*) FROM deploy_templates WHERE id = $1 AND repository_url = $2 AND repository_host_key <> $3"
            );
            tx.value::<i64>(sql, arguments(id)).await?
        }
    };
    if other > 0 {
        return Err(Error::conflict("another host key came to be pinned for the repository at the same time"));
    }
    Ok(false)
}
