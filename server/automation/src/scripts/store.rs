//! Deploy scripts in the database.

use drover_kernel::db::{Condition, DbError, Json, OnDuplicate as _, Read};
use drover_kernel::{Error, Paging, Result, Tx, args, row, sql};
use drover_shared::words::Language;

use super::parameters::Parameter;
use super::rules::{self, TemplateEngine};

row! {
    /// A deploy script.
    pub struct ScriptRow {
        /// Id.
        pub id: i64,
        /// Name, unique in the organisation.
        pub name: String,
        /// Language.
        pub language: Language,
        /// Text before rendering.
        pub content: String,
        /// Engine that renders it.
        pub template_engine: TemplateEngine,
        /// Who made it.
        pub creator: String,
        /// What it takes.
        pub parameters: Option<Json<Vec<Parameter>>>,
        /// Account that it runs as by itself; the agent's own when none is named.
        pub running_user: Option<String>,
    }
}

impl ScriptRow {
    /// What it takes.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        self.parameters.as_ref().map_or(&[], |parameters| parameters.0.as_slice())
    }
}

/// A script as a caller describes it.
#[derive(Debug, Clone)]
pub struct Script {
    /// Name.
    pub name: String,
    /// Language.
    pub language: Language,
    /// Text before rendering.
    pub content: String,
    /// Engine that renders it.
    pub template_engine: TemplateEngine,
    /// What it takes.
    pub parameters: Vec<Parameter>,
    /// Account that it runs as by itself.
    pub running_user: Option<String>,
}

/// One page of the organisation's scripts; conditions speak of `s`.
///
/// # Errors
/// When the database is not available.
pub async fn list(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<ScriptRow>)> {
    let count = sql!("SELECT COUNT(*) FROM deploy_scripts s WHERE s.organisation_id = $1/* filters */");
    let rows = sql!(
        "SELECT s.id, s.name, s.language, s.content, s.template_engine, s.creator, s.parameters, \
         s.running_user FROM deploy_scripts s \
         WHERE s.organisation_id = $1/* filters */ ORDER BY s.id"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

/// The scripts of these ids.
///
/// # Errors
/// When the database is not available.
pub async fn find_many(read: &mut Read, organisation_id: i64, ids: &[i64]) -> Result<Vec<ScriptRow>> {
    let rows = sql!(
        "SELECT id, name, language, content, template_engine, creator, parameters, running_user FROM deploy_scripts \
         WHERE organisation_id = $1 AND id IN ($2) ORDER BY id"
    );
    Ok(read.all(rows, args![organisation_id, ids.to_vec()]).await?)
}

/// The script of this name.
///
/// # Errors
/// When the database is not available.
pub async fn find_by_name(read: &mut Read, organisation_id: i64, name: &str) -> Result<Option<ScriptRow>> {
    let row = sql!(
        "SELECT id, name, language, content, template_engine, creator, parameters, running_user FROM deploy_scripts \
         WHERE organisation_id = $1 AND name = $2"
    );
    Ok(read.opt(row, args![organisation_id, name]).await?)
}

/// One script.
///
/// # Errors
/// Not found, or when the database is not available.
pub async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<ScriptRow> {
    find_many(read, organisation_id, &[id]).await?.pop().ok_or_else(|| Error::not_found("deploy script"))
}

fn described(parameters: &[Parameter]) -> Result<Option<serde_json::Value>> {
    if parameters.is_empty() {
        return Ok(None);
    }
    serde_json::to_value(parameters).map(Some).map_err(Error::internal)
}

/// Adds a script and gives its id.
///
/// # Errors
/// The interface's own number when the name is taken.
pub async fn insert(tx: &mut Tx, script: &Script, creator: &str) -> Result<i64> {
    let insert = sql!(
        "INSERT INTO deploy_scripts (organisation_id, name, language, content, template_engine, creator, created_at, \
         parameters, running_user) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id"
    );
    let arguments = args![
        tx.organisation_id(),
        script.name.as_str(),
        script.language,
        script.content.as_str(),
        script.template_engine,
        creator,
        tx.now(),
        described(&script.parameters)?,
        script.running_user.as_deref()
    ];
    tx.value(insert, arguments).await.on_duplicate(|| rules::name_taken(&script.name))
}

/// Changes a script.
///
/// # Errors
/// The interface's own number when the name is taken; not found when the script is gone.
pub async fn update(tx: &mut Tx, id: i64, script: &Script) -> Result<()> {
    let update = sql!(
        "UPDATE deploy_scripts SET name = $3, language = $4, content = $5, template_engine = $6, \
         parameters = $7, running_user = $8 WHERE organisation_id = $1 AND id = $2"
    );
    let arguments = args![
        tx.organisation_id(),
        id,
        script.name.as_str(),
        script.language,
        script.content.as_str(),
        script.template_engine,
        described(&script.parameters)?,
        script.running_user.as_deref()
    ];
    match tx.run(update, arguments).await.on_duplicate(|| rules::name_taken(&script.name))? {
        1 => Ok(()),
        _ => Err(Error::not_found("deploy script")),
    }
}

/// What has hooks that use a script: applications by full name, and templates.
///
/// # Errors
/// When the database is not available.
pub async fn used_by(read: &mut Read, id: i64) -> Result<Vec<String>> {
    let applications = sql!(
        "SELECT DISTINCT a.full_name FROM deploy_hooks k JOIN deploy_settings d ON d.id = k.settings_id \
         JOIN applications a ON a.id = d.application_id WHERE k.script_id = $1 ORDER BY a.full_name"
    );
    let mut users: Vec<String> = read.values(applications, args![id]).await?;
    let templates = sql!(
        "SELECT DISTINCT t.name FROM deploy_template_hooks k JOIN deploy_templates t ON t.id = k.template_id \
         WHERE k.script_id = $1 ORDER BY t.name"
    );
    let templates: Vec<String> = read.values(templates, args![id]).await?;
    users.extend(templates.into_iter().map(|name| format!("the deploy template {name}")));
    Ok(users)
}

/// Removes a script that no hook uses.
///
/// # Errors
/// A conflict when a hook came to use it meanwhile, not found when it is gone.
pub async fn delete(tx: &mut Tx, id: i64) -> Result<()> {
    let arguments = args![tx.organisation_id(), id];
    match tx.run(sql!("DELETE FROM deploy_scripts WHERE organisation_id = $1 AND id = $2"), arguments).await {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::not_found("deploy script")),
        Err(DbError::Reference) => Err(Error::conflict("a hook came to use the script just now")),
        Err(error) => Err(error.into()),
    }
}

/// Takes the row's lock before it is read, so that of two changes at the same time the second one sees the first.
pub(crate) async fn hold(tx: &mut Tx, id: i64) -> Result<()> {
    let sql = sql!("UPDATE deploy_scripts SET name = name WHERE organisation_id = $1 AND id = $2");
    let organisation_id = tx.organisation_id();
    Ok(tx.run(sql, args![organisation_id, id]).await.map(drop)?)
}
