//! Deploy scripts: the texts that hooks run, before they are rendered.
//!
//! Invariants: a name is unique in its organisation; the content is kept to the byte; a script that a hook uses is not
//! deleted. A change of a script is seen by the next plan, never by one that is made already.

pub mod parameters;
pub mod rules;
pub mod store;

use drover_inventory::applications::rules::check_account;
use drover_inventory::applications::{self, ApplicationOut};
use drover_inventory::changes;
use drover_kernel::db::Condition;
use drover_kernel::fields::{Name, Patch, Text, Words};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Page, Paging, Path, Query, Reply, Result, Routes,
    permission, when,
};
use drover_shared::Digest;
use drover_shared::words::Language;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::parameters::Parameter;
use self::rules::{Content, TemplateEngine};
use self::store::{Script, ScriptRow};

permission!(
    pub Manage,
    "deploy_scripts.manage",
    "See and change deploy scripts",
    Module { module: "deploy_template", right: "enable_deploy_template_mgmt" }
);

/// Routes of deploy scripts.
pub fn routes() -> Routes {
    let base = "/applications/deploy-scripts/";
    let one = "/applications/deploy-scripts/{id}/";
    let used = "/applications/deploy-scripts/{id}/applications/";
    Routes::tagged("deploy-scripts")
        .get(base, "deploy-scripts-list", "List deploy scripts.", list)
        .post(base, "deploy-script-create", "Make a deploy script.", create)
        .get(one, "deploy-script-detail", "Read one deploy script.", detail)
        .patch(one, "deploy-script-update", "Change a deploy script.", update)
        .delete(one, "deploy-script-delete", "Delete a deploy script that no hook uses.", delete)
        .get(
            used,
            "deploy-script-applications-list",
            "List the applications whose hooks use a script.",
            list_applications,
        )
}

/// A script for hooks.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeployScript")]
pub struct ScriptOut {
    /// Id.
    pub id: i64,
    /// Name, unique.
    pub name: String,
    /// Language.
    #[schemars(with = "Words<Language>")]
    pub language: Language,
    /// Text before rendering.
    pub content: String,
    /// Engine that renders the text.
    pub template_engine: TemplateEngine,
    /// What it takes when it is run by itself; left out when that is nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<Parameter>,
    /// Account that it runs as by itself, unless somebody says otherwise; the agent's own when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_user: Option<String>,
    /// Username that made it.
    pub creator: String,
}

impl From<ScriptRow> for ScriptOut {
    fn from(row: ScriptRow) -> Self {
        Self {
            parameters: row.parameters().to_vec(),
            id: row.id,
            name: row.name,
            language: row.language,
            content: row.content,
            template_engine: row.template_engine,
            running_user: row.running_user,
            creator: row.creator,
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ListFilters {
    /// Part of the name.
    name: Option<Name>,
    /// Username that made it.
    creator: Option<Name>,
    /// Language.
    #[schemars(with = "Option<Words<Language>>")]
    language: Option<Language>,
    /// Part of the text.
    content: Option<Text<1000>>,
}

async fn list(
    call: Call<Manage>,
    Query(filters): Query<ListFilters>,
    paging: Paging,
) -> Result<Reply<Page<ScriptOut>>> {
    let mut conditions: Vec<Condition> = Vec::new();
    if let Some(name) = filters.name {
        conditions.push(when!(r"lower(s.name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0)));
    }
    if let Some(content) = filters.content {
        conditions.push(when!(r"lower(s.content) LIKE $1 ESCAPE '\'", Condition::pattern(&content.0)));
    }
    conditions.extend(filters.creator.map(|creator| when!("lower(s.creator) = lower($1)", creator.0)));
    conditions.extend(filters.language.map(|language| when!("s.language = $1", language)));
    let mut read = call.read().await?;
    let (count, rows) = store::list(&mut read, &paging, call.organisation_id(), &conditions).await?;
    Ok(Reply::new(paging.page(count, rows.into_iter().map(ScriptOut::from).collect())))
}

async fn detail(call: Call<Manage>, Path(id): Path<i64>) -> Result<Reply<ScriptOut>> {
    let mut read = call.read().await?;
    Ok(Reply::new(store::load(&mut read, call.organisation_id(), id).await?.into()))
}

/// A deploy script. When one is made, `name`, `language` and `content` are required; a change keeps what is left out.
/// The creator is the caller, whatever is sent.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "DeployScriptProperties")]
struct ScriptBody {
    /// Name, unique.
    name: Option<Name>,
    /// Language.
    #[schemars(with = "Option<Words<Language>>")]
    language: Option<Name>,
    /// Text before rendering, kept to the byte.
    content: Option<Content>,
    /// Engine that renders the text.
    #[schemars(with = "Option<Words<TemplateEngine>>")]
    template_engine: Option<Name>,
    /// What it takes when it is run by itself; replaces all.
    parameters: Option<Vec<Parameter>>,
    /// Account that it runs as by itself, unless somebody says otherwise; null for the agent's own.
    #[serde(default)]
    running_user: Patch<Name>,
}

impl ScriptBody {
    /// The script after this change; a new one when there is none before.
    fn script(self, before: Option<&ScriptRow>) -> Result<Script> {
        let missing = |field: &str| Error::invalid(field, "is missing");
        let name = self.name.map(|name| name.0).or_else(|| before.map(|row| row.name.clone()));
        let name = name.ok_or_else(|| missing("name"))?;
        rules::check_name(&name)?;
        let language = self.language.map(|language| rules::language(&language.0)).transpose()?;
        let engine = self.template_engine.map(|engine| rules::engine(&engine.0)).transpose()?;
        let running_user = match self.running_user {
            Patch::Absent => before.and_then(|row| row.running_user.clone()),
            Patch::Null => None,
            Patch::Value(account) => account.non_empty(),
        };
        if let Some(account) = &running_user {
            check_account("running_user", account)?;
        }
        let parameters = self.parameters.or_else(|| before.map(|row| row.parameters().to_vec())).unwrap_or_default();
        parameters::check(&parameters)?;
        let content = self.content.map(|content| content.0).or_else(|| before.map(|row| row.content.clone()));
        Ok(Script {
            name,
            language: language.or(before.map(|row| row.language)).ok_or_else(|| missing("language"))?,
            content: content.ok_or_else(|| missing("content"))?,
            template_engine: engine.or(before.map(|row| row.template_engine)).unwrap_or(TemplateEngine::Jinja),
            parameters,
            running_user,
        })
    }
}

/// A script as the audit tells it: of the text only what identifies it, since people write secrets into scripts.
fn told(script: &ScriptOut) -> serde_json::Value {
    let content = format!("{} bytes, SHA-256 {}", script.content.len(), Digest::of(script.content.as_bytes()));
    serde_json::json!({
        "name": script.name,
        "language": script.language,
        "template_engine": script.template_engine,
        "content": content,
        "parameters": script.parameters,
        "running_user": script.running_user,
    })
}

fn entry(action: &str, script: &ScriptOut, detail: String) -> AuditEntry {
    AuditEntry::new(AuditList::General, action, "deploy_script", script.id, &*script.name).detail(detail)
}

async fn create(call: Call<Manage>, Body(body): Body<ScriptBody>) -> Result<Reply<ScriptOut>> {
    let script = body.script(None)?;
    let creator = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let id = store::insert(&mut tx, &script, &creator).await?;
    let organisation_id = tx.organisation_id();
    let made = ScriptOut::from(store::load(&mut tx, organisation_id, id).await?);
    let entry = entry("add", &made, changes::of(&told(&made), &[]));
    tx.commit(Audit::of(entry), made).await
}

async fn update(call: Call<Manage>, Path(id): Path<i64>, Body(body): Body<ScriptBody>) -> Result<Reply<ScriptOut>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    store::hold(&mut tx, id).await?;
    let row = store::load(&mut tx, organisation_id, id).await?;
    let script = body.script(Some(&row))?;
    store::update(&mut tx, id, &script).await?;
    let after = ScriptOut::from(store::load(&mut tx, organisation_id, id).await?);
    let detail = changes::between(&told(&row.into()), &told(&after), &[]);
    let entries = if detail.is_empty() { vec![] } else { vec![entry("update", &after, detail)] };
    tx.commit(Audit::all(entries), after).await
}

async fn delete(call: Call<Manage>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let script = ScriptOut::from(store::load(&mut tx, organisation_id, id).await?);
    let used_by = store::used_by(&mut tx, id).await?;
    if !used_by.is_empty() {
        let text = format!("the script {} is used by hooks of: {}", script.name, used_by.join(", "));
        return Err(Error::conflict(text));
    }
    store::delete(&mut tx, id).await?;
    let entry = entry("delete", &script, changes::of(&told(&script), &[]));
    tx.commit(Audit::of(entry), Message::success()).await
}

async fn list_applications(
    call: Call<Manage>,
    Path(id): Path<i64>,
    paging: Paging,
) -> Result<Reply<Page<ApplicationOut>>> {
    let mut read = call.read().await?;
    store::load(&mut read, call.organisation_id(), id).await?;
    let uses = when!(
        "a.id IN (SELECT d.application_id FROM deploy_settings d JOIN deploy_hooks k ON k.settings_id = d.id \
         WHERE k.script_id = $1) \
         OR a.id IN (SELECT d.application_id FROM deploy_settings d \
         JOIN deploy_template_hooks t ON t.template_id = d.template_id WHERE t.script_id = $1 \
         AND NOT EXISTS (SELECT 1 FROM deploy_hooks k WHERE k.settings_id = d.id AND k.hook = t.hook))",
        id
    );
    Ok(Reply::new(applications::page(&mut read, call.caller()?, &paging, vec![uses]).await?))
}
