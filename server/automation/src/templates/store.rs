//! Deploy templates and their hooks in the database.

use drover_kernel::db::{Condition, DbError, FromRow, Read, Row};
use drover_kernel::{Error, Paging, Result, Tx, args, row, sql};

use crate::credentials::store::{self as credential_store, CredentialRow};
use crate::settings::rules::Values;
use crate::settings::store::{HookRow, WithValues, arguments};

row! {
    struct TemplateRow {
        id: i64,
        name: String,
        enabled: bool,
        creator: String,
    }
}

/// A template with its hooks and their scripts, in the hooks' order.
#[derive(Debug, Clone)]
pub struct Template {
    /// Id.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Whether it can be used.
    pub enabled: bool,
    /// Who made it.
    pub creator: String,
    /// What it gives to the settings that are linked to it.
    pub values: Values,
    /// Its hooks with their scripts.
    pub hooks: Vec<HookRow>,
    /// The credential of its repository.
    pub credential: Option<CredentialRow>,
}

/// A hook and the template that it belongs to.
struct TemplateHook {
    template_id: i64,
    hook: HookRow,
}

impl FromRow for TemplateHook {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self { template_id: row.get("template_id")?, hook: HookRow::from_row(row)? })
    }
}

/// Gives rows their hooks and credentials.
async fn complete(read: &mut Read, organisation_id: i64, rows: Vec<WithValues<TemplateRow>>) -> Result<Vec<Template>> {
    let ids: Vec<i64> = rows.iter().map(|row| row.row.id).collect();
    let hooks = sql!(
        "SELECT k.template_id, k.hook, k.running_user, k.timeout_s, s.id AS script_id, s.name AS script_name, s.language, \
         s.content, s.template_engine, s.creator FROM deploy_template_hooks k \
         JOIN deploy_scripts s ON s.id = k.script_id WHERE k.template_id IN ($1)"
    );
    let mut hooks: Vec<TemplateHook> = read.all(hooks, args![ids]).await?;
    hooks.sort_by_key(|hook| hook.hook.hook);
    let credentials: Vec<i64> = rows.iter().filter_map(WithValues::credential_id).collect();
    let credentials = credential_store::find_many(read, organisation_id, &credentials).await?;
    let complete = rows.into_iter().map(|row| {
        let own = hooks.iter().filter(|hook| hook.template_id == row.row.id);
        let hooks: Vec<HookRow> = own.map(|hook| hook.hook.clone()).collect();
        let credential = row.credential_id().and_then(|id| credentials.iter().find(|found| found.id == id)).cloned();
        let (TemplateRow { id, name, enabled, creator }, values) = row.split(&hooks);
        Template { id, name, enabled, creator, values, hooks, credential }
    });
    Ok(complete.collect())
}

/// One page of the organisation's templates; conditions speak of `t`.
///
/// # Errors
/// When the database is not available.
pub async fn list(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<Template>)> {
    let count = sql!("SELECT COUNT(*) FROM deploy_templates t WHERE t.organisation_id = $1/* filters */");
    let rows = sql!("SELECT t.* FROM deploy_templates t WHERE t.organisation_id = $1/* filters */ ORDER BY t.id");
    let (count, rows) = paging.read(read, count, rows, args![organisation_id], conditions).await?;
    Ok((count, complete(read, organisation_id, rows).await?))
}

/// One template, if there is one of this id.
///
/// # Errors
/// When the database is not available.
pub async fn find(read: &mut Read, organisation_id: i64, id: i64) -> Result<Option<Template>> {
    let sql = sql!("SELECT t.* FROM deploy_templates t WHERE t.organisation_id = $1 AND t.id = $2");
    let rows = read.all(sql, args![organisation_id, id]).await?;
    Ok(complete(read, organisation_id, rows).await?.pop())
}

/// One template.
///
/// # Errors
/// Not found, or when the database is not available.
pub async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<Template> {
    find(read, organisation_id, id).await?.ok_or_else(|| Error::not_found("deploy template"))
}

/// Takes a template's row for the rest of the transaction, so that nobody else changes it meanwhile.
///
/// # Errors
/// Not found, or when the database is not available.
pub async fn hold(tx: &mut Tx, id: i64) -> Result<()> {
    let sql = sql!("UPDATE deploy_templates SET enabled = enabled WHERE organisation_id = $1 AND id = $2");
    let arguments = args![tx.organisation_id(), id];
    match tx.run(sql, arguments).await? {
        1 => Ok(()),
        _ => Err(Error::not_found("deploy template")),
    }
}

/// Ids of the applications whose settings are linked to each of these templates, as pairs of template and application.
///
/// # Errors
/// When the database is not available.
pub async fn linked(read: &mut Read, ids: &[i64]) -> Result<Vec<(i64, i64)>> {
    row! {
        struct Link {
            template_id: i64,
            application_id: i64,
        }
    }
    let sql = sql!(
        "SELECT template_id, application_id FROM deploy_settings WHERE template_id IN ($1) ORDER BY application_id"
    );
    let links: Vec<Link> = read.all(sql, args![ids.to_vec()]).await?;
    Ok(links.into_iter().map(|link| (link.template_id, link.application_id)).collect())
}

/// Full names of the applications whose settings are linked to a template.
///
/// # Errors
/// When the database is not available.
pub async fn used_by(read: &mut Read, id: i64) -> Result<Vec<String>> {
    let sql = sql!(
        "SELECT a.full_name FROM deploy_settings d JOIN applications a ON a.id = d.application_id \
         WHERE d.template_id = $1 ORDER BY a.full_name"
    );
    Ok(read.values(sql, args![id]).await?)
}

/// Adds an empty template and gives its id; one without a name is named after it.
///
/// # Errors
/// When the database refuses.
pub async fn insert(tx: &mut Tx, name: Option<&str>, enabled: bool, creator: &str) -> Result<i64> {
    let insert = sql!(
        "INSERT INTO deploy_templates (organisation_id, name, enabled, creator, created_at) \
         VALUES ($1, $2, $3, $4, $5) RETURNING id"
    );
    let arguments = args![tx.organisation_id(), name.unwrap_or(""), enabled, creator, tx.now()];
    let id: i64 = tx.value(insert, arguments).await?;
    if name.is_none() {
        let name = format!("template-{id}");
        tx.run_one(sql!("UPDATE deploy_templates SET name = $2 WHERE id = $1"), args![id, name]).await?;
    }
    Ok(id)
}

/// Makes a template what is said, hooks included.
///
/// # Errors
/// When the database refuses.
pub async fn save(tx: &mut Tx, id: i64, name: &str, enabled: bool, values: &Values) -> Result<()> {
    let update = sql!(
        "UPDATE deploy_templates SET repository_type = $1, repository_url = $2, repository_branch = $3, \
         repository_host_key = $4, repository_ca_certificate = $5, credential_id = $6, deploy_path = $7, \
         timeout_s = $8, keep_backups = $9, running_user = $10, shared_paths = $11, name = $12, enabled = $13 \
         WHERE id = $14"
    );
    let mut arguments = arguments(values);
    arguments.extend(args![name, enabled, id]);
    tx.run_one(update, arguments).await?;
    tx.run(sql!("DELETE FROM deploy_template_hooks WHERE template_id = $1"), args![id]).await?;
    let organisation_id = tx.organisation_id();
    let rows = values.hooks.iter().map(|(name, hook)| {
        args![organisation_id, id, *name, hook.script_id, hook.running_user.clone(), hook.timeout_s]
    });
    let insert = sql!(
        "INSERT INTO deploy_template_hooks (organisation_id, template_id, hook, script_id, running_user, timeout_s) \
         VALUES ($1, $2, $3, $4, $5, $6)"
    );
    Ok(tx.insert_many(insert, rows.collect()).await?)
}

/// Removes a template that nothing is linked to.
///
/// # Errors
/// A conflict when an application came to be linked meanwhile, not found when it is gone.
pub async fn delete(tx: &mut Tx, id: i64) -> Result<()> {
    let arguments = args![tx.organisation_id(), id];
    match tx.run(sql!("DELETE FROM deploy_templates WHERE organisation_id = $1 AND id = $2"), arguments).await {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::not_found("deploy template")),
        Err(DbError::Reference) => Err(Error::conflict("an application came to be linked to the template just now")),
        Err(error) => Err(error.into()),
    }
}
