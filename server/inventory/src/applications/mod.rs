//! Applications: the nodes of a tree, with what they depend on and who is responsible for them.
//!
//! Invariants: full names follow from the tree; a name is unique among siblings; an application with instances or an
//! open deploy task is not deleted. Who hangs an application somewhere else needs the right to edit it and its new
//! parent.

mod change;
mod output;
mod relations;
pub mod rules;
pub mod store;
mod tree;

use drover_identity::{
    applications_of_role, applications_of_user, caller_of, forget_resource, grant_all, visible_applications,
};
use drover_kernel::call::SignedIn;
use drover_kernel::db::Condition;
use drover_kernel::fields::{Flag, Id, Line, Many, Name};
use drover_kernel::resources::ResourceKind;
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Page, Paging, Path, Query, Reply, Result, Routes,
    permission, sql, when,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::output::{ApplicationActions, ApplicationOut, page, show, show_one};

use self::change::ApplicationBody;
use self::output::NOT_AUDITED;
use crate::instances::states::{self, Changed};
use crate::scope::Scope;
use crate::{changes, secrets, variables};

permission!(
    Create,
    "applications.create",
    "Create applications",
    Module { module: "application", right: "create_app" }
);
permission!(
    pub(crate) View,
    "applications.view",
    "See an application",
    Resource { kind: "application", right: "view_app" }
);
permission!(
    pub(crate) Edit,
    "applications.edit",
    "Change an application",
    Resource { kind: "application", right: "edit_app" }
);
permission!(
    Delete,
    "applications.delete",
    "Delete an application",
    Resource { kind: "application", right: "delete_app" }
);

/// Users that one call may ask about.
const USERS_MAX: usize = 100;

pub(crate) fn routes() -> Routes {
    Routes::tagged("applications")
        .get("/applications/", "applications-list", "List the applications that the caller may see.", list)
        .post("/applications/", "application-create", "Create an application.", create)
        .get("/applications/{id}/", "application-detail", "Read one application.", detail)
        .patch("/applications/{id}/", "application-update", "Change an application.", update)
        .delete("/applications/{id}/", "application-delete", "Delete an application that is not in use.", delete)
        .post(
            "/applications/get-by-users/",
            "applications-get-by-users",
            "Give the applications that each of several users may see.",
            get_by_users,
        )
        .merge(relations::routes())
}

pub(crate) fn resource() -> ResourceKind {
    ResourceKind {
        name: "application",
        noun: "application",
        governed_by: "application",
        find: sql!("SELECT id FROM applications WHERE organisation_id = $1 AND id = $2"),
        further_rights: None,
        implied: &[],
        text_key: false,
        instead: None,
    }
}

fn entry(action: &str, application: &ApplicationOut, detail: String) -> AuditEntry {
    AuditEntry::new(AuditList::Application, action, "application", application.id, &*application.full_name)
        .detail(detail)
}

/// Filters that every list of applications knows.
#[derive(Debug, Default, Deserialize, JsonSchema)]
struct NameFilters {
    /// Part of the application's own name.
    name: Option<Name>,
    /// Part of the names from the root down, joined by dots.
    #[serde(alias = "full_path")]
    full_name: Option<Line>,
    /// Applications that this username may see.
    user: Option<Name>,
    /// Applications that the role of this name may see.
    role: Option<Name>,
}

impl NameFilters {
    fn conditions(self) -> Vec<Condition> {
        let mut conditions = Vec::new();
        if let Some(name) = self.name {
            conditions.push(when!(r"lower(a.name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0)));
        }
        if let Some(name) = self.full_name {
            conditions.push(when!(r"lower(a.full_name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0)));
        }
        conditions.extend(self.user.map(|user| applications_of_user(&user.0)));
        conditions.extend(self.role.map(|role| applications_of_role(&role.0)));
        conditions
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ListFilters {
    /// Part of the application's own name.
    name: Option<Name>,
    /// Part of the names from the root down, joined by dots.
    #[serde(alias = "full_name")]
    full_path: Option<Line>,
    /// Ids of responsible persons; one of them is enough.
    #[serde(alias = "response_person")]
    response_persons: Option<Many<Id>>,
    /// 1: only applications with a parent; 0: only those without.
    has_parent: Option<Flag>,
    /// Applications that this username may see.
    user: Option<Name>,
    /// Applications that the role of this name may see.
    role: Option<Name>,
}

async fn list(
    call: Call<SignedIn>,
    Query(filters): Query<ListFilters>,
    paging: Paging,
) -> Result<Reply<Page<ApplicationOut>>> {
    let names =
        NameFilters { name: filters.name, full_name: filters.full_path, user: filters.user, role: filters.role };
    let mut conditions = names.conditions();
    if let Some(Many(persons)) = filters.response_persons {
        let ids: Vec<i64> = persons.into_iter().map(|id| id.0).collect();
        conditions.push(when!(
            "EXISTS (SELECT 1 FROM application_persons p WHERE p.application_id = a.id AND p.user_id IN ($1))",
            ids
        ));
    }
    conditions.extend(
        filters.has_parent.map(
            |Flag(has)| {
                if has { when!("a.parent_id IS NOT NULL") } else { when!("a.parent_id IS NULL") }
            },
        ),
    );
    let mut read = call.read().await?;
    Ok(Reply::new(page(&mut read, call.caller()?, &paging, conditions).await?))
}

async fn detail(call: Call<View>, Path(id): Path<i64>) -> Result<Reply<ApplicationOut>> {
    let mut read = call.read().await?;
    Ok(Reply::new(show_one(&mut read, call.caller()?, id).await?))
}

async fn create(call: Call<Create>, Body(body): Body<ApplicationBody>) -> Result<Reply<ApplicationOut>> {
    let change = body.checked()?;
    let name = change.name.clone().ok_or_else(|| Error::invalid("name", "is missing"))?;
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    tree::hold(&mut tx).await?;
    let parent_id = change.parent.value();
    if let Some(parent_id) = parent_id {
        output::require_right(&mut tx, &caller, &[parent_id], "edit_app", "parent_app").await?;
    }
    let id = tree::insert(&mut tx, &name, parent_id, &change.details(None)).await?;
    let mut entries = change::set_links(&mut tx, &caller, id, &change).await?;
    let granted = grant_all(&mut tx, caller.user_id, "application", id).await?;
    let application = output::whole(&mut tx, &caller, id).await?;
    entries.insert(0, entry("add", &application, changes::of(&application, NOT_AUDITED)));
    entries.extend(granted);
    tx.commit(Audit::all(entries), application).await
}

async fn update(call: Call<Edit>, Path(id): Path<i64>, Body(body): Body<ApplicationBody>) -> Result<Reply<Message>> {
    let change = body.checked()?;
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    if change.touches_tree() {
        tree::hold(&mut tx).await?;
    }
    store::hold(&mut tx, id).await?;
    let before = output::whole(&mut tx, &caller, id).await?;
    let row = store::load(&mut tx, caller.organisation_id, id).await?;
    let parent_id = change.parent.or(row.parent_id);
    if let Some(parent_id) = parent_id.filter(|_| parent_id != row.parent_id) {
        output::require_right(&mut tx, &caller, &[parent_id], "edit_app", "parent_app").await?;
    }
    store::update(&mut tx, id, &change.details(Some(&row))).await?;
    let name = change.name.as_deref().unwrap_or(&row.name);
    if change.touches_tree() {
        tree::place(&mut tx, id, name, parent_id, "parent_app").await?;
    }
    let mut entries = change::set_links(&mut tx, &caller, id, &change).await?;
    let after = output::whole(&mut tx, &caller, id).await?;
    let detail = changes::between(&before, &after, NOT_AUDITED);
    if !detail.is_empty() {
        entries.insert(0, entry("update", &after, detail));
    }
    // Those below bear its name.
    let touched = if change.touches_tree() { Changed::Organisation } else { Changed::Application(id) };
    states::changed(&mut tx, touched).await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

async fn delete(call: Call<Delete>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    tree::hold(&mut tx).await?;
    let application = output::whole(&mut tx, &caller, id).await?;
    let (hosts, tasks) = store::in_use(&mut tx, id).await?;
    if !hosts.is_empty() {
        let text = format!("{} still has instances on: {}", application.full_name, hosts.join(", "));
        return Err(Error::conflict(text));
    }
    if !tasks.is_empty() {
        let tasks: Vec<String> = tasks.iter().map(ToString::to_string).collect();
        let text =
            format!("{} still has deploy tasks that are not closed: {}", application.full_name, tasks.join(", "));
        return Err(Error::conflict(text));
    }
    let mut entries = vec![entry("delete", &application, changes::of(&application, NOT_AUDITED))];
    let orphans: Vec<(i64, Option<i64>)> = application.child_apps.iter().map(|child| (*child, None)).collect();
    entries.extend(change::hang(&mut tx, &caller, &orphans, "id").await?);
    store::delete(&mut tx, id).await?;
    forget_resource(&mut tx, "application", id).await?;
    variables::store::forget(&mut tx, Scope::Application, &[id]).await?;
    secrets::forget(&mut tx, Scope::Application, &[id]).await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

/// A user, by id or by name.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "UserReference")]
struct UserReference {
    /// User id.
    id: Option<Id>,
    /// Login name, in place of the id.
    username: Option<Name>,
}

/// The applications of one user.
#[derive(Debug, Serialize, JsonSchema)]
struct UserApplications {
    /// User id.
    user_id: i64,
    /// Applications that the user may see, with what that user may do.
    applications: Vec<ApplicationOut>,
}

async fn get_by_users(
    call: Call<SignedIn>,
    Body(Many(users)): Body<Many<UserReference>>,
) -> Result<Reply<Vec<UserApplications>>> {
    let asking = call.caller()?;
    if users.is_empty() || users.len() > USERS_MAX {
        return Err(Error::invalid("body", format!("must name 1 to {USERS_MAX} users")));
    }
    let mut read = call.read().await?;
    let mut answers = Vec::with_capacity(users.len());
    for (index, user) in users.into_iter().enumerate() {
        let field = |member: &str| format!("[{index}].{member}");
        let (id, member) = match (user.id, user.username.and_then(Name::non_empty)) {
            (Some(id), _) => (Some(id.0), "id"),
            (None, Some(username)) => {
                (store::user_named(&mut read, asking.organisation_id, &username).await?, "username")
            }
            (None, None) => return Err(Error::invalid(field("id"), "is missing")),
        };
        if id != Some(asking.user_id) && !asking.administrator {
            return Err(Error::Forbidden("only administrators may ask about other users".to_owned()));
        }
        let missing = || Error::invalid(field(member), "there is no such user");
        let id = id.ok_or_else(missing)?;
        let user = caller_of(&mut read, asking.organisation_id, id).await?.ok_or_else(missing)?;
        let conditions: Vec<Condition> = visible_applications(&user).into_iter().collect();
        let rows = store::all(&mut read, asking.organisation_id, &conditions).await?;
        answers.push(UserApplications { user_id: id, applications: show(&mut read, &user, rows).await? });
    }
    Ok(Reply::new(answers))
}
