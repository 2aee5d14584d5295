//! Deploy templates: deploy settings that several applications share.
//!
//! Invariants: an application's own values win over its template's; a template that an application is linked to is not
//! deleted; what is linked to a disabled template is not deployed. A change of a template is seen by the next plan of
//! each application that is linked to it, never by one that is made already.

pub mod rules;
pub mod store;

use std::collections::BTreeMap;

use drover_inventory::changes;
use drover_inventory::instances::states::Changed;
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Flag, Id, Line, Many, Name, Number, Patch};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Page, Paging, Path, Query, Reply, Result, Routes, Tx,
    permission, when,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::store::Template;
use crate::credentials;
use crate::credentials::choice::{self, Asked, CredentialBody};
use crate::credentials::store::Owner;
use crate::settings::body::{self, HooksBody, RepositoryBody, ValuesChange};
use crate::settings::rules::Values;
use crate::settings::{self, Asker, HooksOut, RepositoryOut};
use crate::watching;

permission!(
    pub Manage,
    "deploy_templates.manage",
    "See and change deploy templates",
    Module { module: "deploy_template", right: "enable_deploy_template_mgmt" }
);

/// Routes of deploy templates.
pub fn routes() -> Routes {
    let base = "/applications/deploy-templates/";
    let one = "/applications/deploy-templates/{id}/";
    let enable_path = "/applications/deploy-templates/{id}/actions/enable/";
    let disable_path = "/applications/deploy-templates/{id}/actions/disable/";
    Routes::tagged("deploy-templates")
        .get(base, "deploy-templates-list", "List deploy templates.", list)
        .post(base, "deploy-template-create", "Make a deploy template.", create)
        .get(one, "deploy-template-detail", "Read one deploy template.", detail)
        .patch(one, "deploy-template-update", "Change a deploy template.", update)
        .delete(one, "deploy-template-delete", "Delete a deploy template that no application is linked to.", delete)
        .post(enable_path, "deploy-template-enable", "Enable a deploy template.", enable)
        .post(disable_path, "deploy-template-disable", "Disable a deploy template.", disable)
}

/// Deploy settings that several applications can share.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeployTemplate")]
struct TemplateOut {
    /// Id.
    id: i64,
    /// Name.
    name: String,
    /// Whether it can be used.
    enabled: bool,
    /// Username that made it.
    creator: String,
    /// Ids of the applications that use it.
    applications: Vec<i64>,
    /// Where the sources come from.
    repository: Option<RepositoryOut>,
    /// Folder to deploy into; may hold template expressions.
    deploy_path: Option<String>,
    /// Seconds a deploy task may take.
    timeout: i64,
    /// How many recent versions are kept.
    keep_backups: i64,
    /// Paths inside a release that every version shares; one that ends in `/` is a folder.
    shared_paths: Vec<String>,
    /// Scripts around an update.
    lifecycle_hooks: HooksOut,
}

/// Shows templates with the applications that are linked to them.
async fn show(read: &mut Read, templates: Vec<Template>) -> Result<Vec<TemplateOut>> {
    let ids: Vec<i64> = templates.iter().map(|template| template.id).collect();
    let mut applications: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (template_id, application_id) in store::linked(read, &ids).await? {
        applications.entry(template_id).or_default().push(application_id);
    }
    let shown = templates.into_iter().map(|template| {
        let Template { id, name, enabled, creator, values, hooks, credential } = template;
        TemplateOut {
            id,
            name,
            enabled,
            creator,
            applications: applications.remove(&id).unwrap_or_default(),
            deploy_path: values.deploy_path.clone(),
            timeout: values.timeout_s(),
            keep_backups: values.keep_backups(),
            shared_paths: values.shared_paths.clone().unwrap_or_default(),
            lifecycle_hooks: HooksOut::new(values.running_user.clone(), hooks),
            repository: values.repository.map(|repository| RepositoryOut::new(repository, credential.as_ref())),
        }
    });
    Ok(shown.collect())
}

async fn show_one(read: &mut Read, organisation_id: i64, id: i64) -> Result<TemplateOut> {
    let template = store::load(read, organisation_id, id).await?;
    show(read, vec![template]).await?.pop().ok_or_else(|| Error::not_found("deploy template"))
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ListFilters {
    /// Part of the name.
    name: Option<Name>,
    /// Username that made it.
    creator: Option<Name>,
    /// Script that a hook uses, by id.
    script: Option<Id>,
    /// Credential that the repository uses, by id.
    credential: Option<Id>,
}

async fn list(
    call: Call<Manage>,
    Query(filters): Query<ListFilters>,
    paging: Paging,
) -> Result<Reply<Page<TemplateOut>>> {
    let mut conditions = Vec::new();
    if let Some(name) = filters.name {
        conditions.push(when!(r"lower(t.name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0)));
    }
    conditions.extend(filters.creator.map(|creator| when!("lower(t.creator) = lower($1)", creator.0)));
    conditions.extend(
        filters.script.map(|id| {
            when!("t.id IN (SELECT k.template_id FROM deploy_template_hooks k WHERE k.script_id = $1)", id.0)
        }),
    );
    conditions.extend(filters.credential.map(|id| when!("t.credential_id = $1", id.0)));
    let mut read = call.read().await?;
    let (count, templates) = store::list(&mut read, &paging, call.organisation_id(), &conditions).await?;
    let shown = show(&mut read, templates).await?;
    Ok(Reply::new(paging.page(count, shown)))
}

async fn detail(call: Call<Manage>, Path(id): Path<i64>) -> Result<Reply<TemplateOut>> {
    let mut read = call.read().await?;
    Ok(Reply::new(show_one(&mut read, call.organisation_id(), id).await?))
}

/// A deploy template. When one is made, `repository` and `deploy_path` are required and it is enabled unless it says
/// otherwise; a change keeps what is left out, and null takes the default where there is one.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "DeployTemplateProperties")]
struct TemplateBody {
    /// Name; `template-<id>` when one is made without.
    name: Option<Name>,
    /// Ids of the applications that use the template: those linked to it afterwards. One that is left out of the list
    /// is unlinked and keeps the template's values as its own.
    #[serde(alias = "applictions")]
    applications: Option<Many<Id>>,
    /// Where the sources come from.
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
    /// Whether the template can be used.
    enabled: Option<Flag>,
}

/// What a body asks for, apart from the applications.
struct Change {
    name: Option<String>,
    enabled: Option<bool>,
    values: ValuesChange,
}

impl TemplateBody {
    /// The ids of the applications, if any are said, and the rest.
    fn split(self) -> (Option<Vec<i64>>, Change) {
        let values = ValuesChange {
            repository: self.repository,
            deploy_path: self.deploy_path,
            timeout: self.timeout,
            keep_backups: self.keep_backups,
            shared_paths: self.shared_paths,
            lifecycle_hooks: self.lifecycle_hooks,
        };
        let change =
            Change { name: self.name.and_then(Name::non_empty), enabled: self.enabled.map(|flag| flag.0), values };
        (self.applications.map(|many| many.0.into_iter().map(|id| id.0).collect()), change)
    }
}

/// A template as the audit tells it.
fn told(template: &TemplateOut) -> serde_json::Value {
    let mut told = serde_json::json!({
        "name": template.name,
        "enabled": template.enabled,
        "applications": template.applications,
        "repository": template.repository,
        "deploy_path": template.deploy_path,
        "timeout": template.timeout,
        "keep_backups": template.keep_backups,
        "shared_paths": template.shared_paths,
        "running_user": template.lifecycle_hooks.running_user,
    });
    template.lifecycle_hooks.tell(&mut told);
    told
}

fn entry(action: &str, template: &TemplateOut, detail: String) -> AuditEntry {
    AuditEntry::new(AuditList::General, action, "deploy_template", template.id, &*template.name).detail(detail)
}

/// Refuses applications whose deploy settings the caller may not change; gives what is to be done with the links.
async fn check_links(call: &Call<Manage>, template_id: Option<i64>, wanted: Option<&[i64]>) -> Result<rules::Links> {
    let Some(wanted) = wanted else { return Ok(rules::links(&[], &[])) };
    let mut read = call.read().await?;
    let present: Vec<i64> = match template_id {
        Some(id) => {
            store::load(&mut read, call.organisation_id(), id).await?;
            store::linked(&mut read, &[id]).await?.into_iter().map(|(_, application_id)| application_id).collect()
        }
        None => Vec::new(),
    };
    let links = rules::links(&present, wanted);
    for id in links.added.iter().chain(&links.removed) {
        call.require(&mut read, "application", *id, "edit_app").await.map_err(|error| match error {
            Error::NotFound(_) => Error::invalid("applications", format!("there is no application {id}")),
            error => error,
        })?;
    }
    Ok(links)
}

async fn create(call: Call<Manage>, Body(body): Body<TemplateBody>) -> Result<Reply<TemplateOut>> {
    let (applications, mut change) = body.split();
    let credential = change.values.take_credential();
    let mut values = change.values.merged(Values::default(), &Values::default())?;
    rules::check(change.name.as_deref(), &values)?;
    let links = check_links(&call, None, applications.as_deref()).await?;
    let asker = Asker::new(call.caller()?);
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    body::check_scripts(&mut tx, &values).await?;
    let enabled = change.enabled.unwrap_or(true);
    let id = store::insert(&mut tx, change.name.as_deref(), enabled, &asker.username).await?;
    settle(&mut tx, id, &mut values, &Values::default(), credential, &asker).await?;
    let name = change.name.unwrap_or_else(|| format!("template-{id}"));
    store::save(&mut tx, id, &name, enabled, &values).await?;
    let mut entries = relink(&mut tx, id, &asker, &links).await?;
    let made = show_one(&mut tx, organisation_id, id).await?;
    entries.insert(0, entry("add", &made, changes::of(&told(&made), &[])));
    tx.commit(Audit::all(entries), made).await
}

async fn update(call: Call<Manage>, Path(id): Path<i64>, Body(body): Body<TemplateBody>) -> Result<Reply<TemplateOut>> {
    let (applications, change) = body.split();
    let links = check_links(&call, Some(id), applications.as_deref()).await?;
    let asker = Asker::new(call.caller()?);
    let mut tx = call.begin().await?;
    let (entries, after) = apply(&mut tx, id, &asker, change, &links).await?;
    tx.commit(Audit::all(entries), after).await
}

/// Changes a template and its links; gives audit and result.
async fn apply(
    tx: &mut Tx,
    id: i64,
    asker: &Asker,
    mut change: Change,
    links: &rules::Links,
) -> Result<(Vec<AuditEntry>, TemplateOut)> {
    let organisation_id = tx.organisation_id();
    store::hold(tx, id).await?;
    let present = store::load(tx, organisation_id, id).await?;
    let credential = change.values.take_credential();
    let mut values = change.values.merged(present.values.clone(), &present.values)?;
    let name = change.name.unwrap_or_else(|| present.name.clone());
    let enabled = change.enabled.unwrap_or(present.enabled);
    rules::check(Some(&name), &values)?;
    body::check_scripts(tx, &values).await?;
    let before = show_one(tx, organisation_id, id).await?;
    // Who is unlinked keeps what the template said before this change.
    let mut entries = relink(tx, id, asker, &rules::Links { added: vec![], removed: links.removed.clone() }).await?;
    let secret_changed = settle(tx, id, &mut values, &present.values, credential, asker).await?;
    if (&name, enabled, &values) != (&present.name, present.enabled, &present.values) {
        store::save(tx, id, &name, enabled, &values).await?;
        tx.after_commit(|kernel| watching::say(kernel, Changed::Organisation));
        let used = values.repository.as_ref().and_then(|repository| repository.credential_id);
        credentials::store::sweep(tx, Owner::Template(id), used).await?;
    }
    entries.extend(relink(tx, id, asker, &rules::Links { added: links.added.clone(), removed: vec![] }).await?);
    let after = show_one(tx, organisation_id, id).await?;
    let mut detail = changes::between(&told(&before), &told(&after), &[]);
    if secret_changed {
        detail.push_str(if detail.is_empty() { "" } else { "; " });
        detail.push_str("secret of the credential: changed");
    }
    if !detail.is_empty() {
        entries.insert(0, entry("update", &after, detail));
    }
    Ok((entries, after))
}

/// Gives the template's repository its credential; tells whether a secret was set.
async fn settle(
    tx: &mut Tx,
    id: i64,
    values: &mut Values,
    before: &Values,
    credential: Patch<CredentialBody>,
    asker: &Asker,
) -> Result<bool> {
    let Asker { username, may_manage } = asker;
    let owner = Owner::Template(id);
    let asked = Asked { said: credential, before, owner, creator: username, may_manage: *may_manage };
    choice::settle(tx, values, asked).await
}

/// Links and unlinks applications; their audit entries.
async fn relink(tx: &mut Tx, id: i64, asker: &Asker, links: &rules::Links) -> Result<Vec<AuditEntry>> {
    let mut entries = Vec::new();
    for application_id in &links.removed {
        entries.extend(settings::unlink(tx, *application_id, asker, id, false).await?);
    }
    for application_id in &links.added {
        entries.extend(settings::link(tx, *application_id, asker, id).await?);
    }
    Ok(entries)
}

async fn enable(call: Call<Manage>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    set_enabled(call, id, true).await
}

async fn disable(call: Call<Manage>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    set_enabled(call, id, false).await
}

async fn set_enabled(call: Call<Manage>, id: i64, enabled: bool) -> Result<Reply<Message>> {
    let asker = Asker::new(call.caller()?);
    let mut tx = call.begin().await?;
    let change = Change { name: None, enabled: Some(enabled), values: ValuesChange::default() };
    let (entries, _) = apply(&mut tx, id, &asker, change, &rules::links(&[], &[])).await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

async fn delete(call: Call<Manage>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let template = show_one(&mut tx, organisation_id, id).await?;
    let used_by = store::used_by(&mut tx, id).await?;
    if !used_by.is_empty() {
        let text = format!("the deploy template {} is linked to: {}", template.name, used_by.join(", "));
        return Err(Error::conflict(text));
    }
    store::delete(&mut tx, id).await?;
    let entry = entry("delete", &template, changes::of(&told(&template), &[]));
    tx.commit(Audit::of(entry), Message::success()).await
}
