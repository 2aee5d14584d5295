//! What an application is linked to: children, dependencies in both directions, and responsible persons.
//!
//! Invariant: linking makes and deletes no application; one id that cannot be linked refuses the whole call.

use drover_kernel::db::Condition;
use drover_kernel::fields::{Id, Many};
use drover_kernel::{Audit, Body, Call, Error, Ids, Message, Page, Paging, Path, Query, Reply, Result, Routes, when};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::change::{self, PersonReference};
use super::output::{self, ApplicationOut, NOT_AUDITED, show_one};
use super::rules::Capacity;
use super::store::{self, PersonRow};
use super::{Edit, NameFilters, View, entry, tree};
use crate::changes;

pub(super) fn routes() -> Routes {
    let persons = "/applications/{id}/response-person/";
    let children = "/applications/{id}/child-apps/";
    let required = "/applications/{id}/required-apps/";
    let required_by = "/applications/{id}/required-by-apps/";
    Routes::tagged("applications")
        .get(persons, "response-persons-list", "List the persons responsible for an application.", list_persons)
        .post(persons, "response-persons-add", "Make users responsible for an application.", add_persons)
        .delete(persons, "response-persons-remove", "Withdraw persons from an application.", remove_persons)
        .get(children, "child-apps-list", "List an application's children.", list_children)
        .post(children, "child-apps-add", "Hang existing applications below this one.", add_children)
        .delete(children, "child-apps-remove", "Release children from this application.", remove_children)
        .get(required, "required-apps-list", "List the applications that this one depends on.", list_required)
        .post(required, "required-apps-add", "Record that this application depends on others.", add_required)
        .delete(required, "required-apps-remove", "Drop dependencies of this application.", remove_required)
        .get(required_by, "required-by-apps-list", "List the applications that depend on this one.", list_required_by)
}

/// A user responsible for an application.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponsePerson")]
struct PersonOut {
    /// User id.
    id: i64,
    /// The user's display name.
    name: String,
    /// E-mail address.
    email: String,
    /// Capacity.
    #[serde(rename = "type")]
    capacity: Capacity,
    /// Mobile number; null when the user has none that is a number.
    mobile: Option<i64>,
}

impl From<PersonRow> for PersonOut {
    fn from(row: PersonRow) -> Self {
        let digits: String = row.phone.chars().filter(|character| !matches!(character, ' ' | '-' | '+')).collect();
        Self { id: row.id, name: row.name, email: row.email, capacity: row.capacity, mobile: digits.parse().ok() }
    }
}

/// A person who shall be responsible.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "NewResponsePerson")]
struct PersonBody {
    /// User id.
    id: Id,
    /// Capacity.
    #[serde(rename = "type")]
    capacity: Capacity,
}

async fn list_persons(call: Call<View>, Path(id): Path<i64>, paging: Paging) -> Result<Reply<Page<PersonOut>>> {
    let mut read = call.read().await?;
    let (count, rows) = store::persons(&mut read, &paging, id).await?;
    Ok(Reply::new(paging.page(count, rows.into_iter().map(PersonOut::from).collect())))
}

async fn add_persons(
    call: Call<Edit>,
    Path(id): Path<i64>,
    Body(Many(bodies)): Body<Many<PersonBody>>,
) -> Result<Reply<Vec<PersonOut>>> {
    if bodies.is_empty() {
        return Err(Error::invalid("id", "give at least one"));
    }
    let persons: Vec<PersonReference> =
        bodies.iter().map(|body| PersonReference { id: body.id.0, capacity: Some(body.capacity) }).collect();
    change::each_once(&persons, "id")?;
    let ids: Vec<i64> = persons.iter().map(|person| person.id).collect();
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    let application = output::whole(&mut tx, &caller, id).await?;
    let before = capacities(&store::find_persons(&mut tx, id, &ids).await?);
    change::appoint(&mut tx, id, &persons, "id").await?;
    let rows = store::find_persons(&mut tx, id, &ids).await?;
    let after = capacities(&rows);
    let detail = changes::between(
        &serde_json::json!({"response_person": before}),
        &serde_json::json!({"response_person": after}),
        &[],
    );
    let entries = if detail.is_empty() { vec![] } else { vec![entry("update", &application, detail)] };
    tx.commit(Audit::all(entries), rows.into_iter().map(PersonOut::from).collect()).await
}

/// Persons by name with their capacities, for the audit.
fn capacities(rows: &[PersonRow]) -> std::collections::BTreeMap<String, Capacity> {
    rows.iter().map(|row| (format!("{} ({})", row.name, row.id), row.capacity)).collect()
}

async fn remove_persons(call: Call<Edit>, Path(id): Path<i64>, Ids(ids): Ids) -> Result<Reply<Message>> {
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    let before = output::whole(&mut tx, &caller, id).await?;
    refuse_strangers(&ids, &before.response_person, "the user {} is not responsible for this application")?;
    store::dismiss(&mut tx, id, &ids).await?;
    let after = output::whole(&mut tx, &caller, id).await?;
    let entry = entry("update", &after, changes::between(&before, &after, NOT_AUDITED));
    tx.commit(Audit::of(entry), Message::success()).await
}

/// Refuses the call when one of `ids` is not among those present; `text` has `{}` where the id goes.
fn refuse_strangers(ids: &[i64], present: &[i64], text: &str) -> Result<()> {
    match ids.iter().find(|id| !present.contains(id)) {
        Some(stranger) => Err(Error::invalid("id", text.replace("{}", &stranger.to_string()))),
        None => Ok(()),
    }
}

/// One page of the applications that are linked as `link` says, among those the caller may see.
async fn list_linked(
    call: &Call<View>,
    paging: &Paging,
    filters: NameFilters,
    link: Condition,
) -> Result<Reply<Page<ApplicationOut>>> {
    let mut conditions = filters.conditions();
    conditions.push(link);
    let mut read = call.read().await?;
    Ok(Reply::new(output::page(&mut read, call.caller()?, paging, conditions).await?))
}

async fn list_children(
    call: Call<View>,
    Path(id): Path<i64>,
    Query(filters): Query<NameFilters>,
    paging: Paging,
) -> Result<Reply<Page<ApplicationOut>>> {
    list_linked(&call, &paging, filters, when!("a.parent_id = $1", id)).await
}

async fn add_children(call: Call<Edit>, Path(id): Path<i64>, Ids(ids): Ids) -> Result<Reply<Vec<ApplicationOut>>> {
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    tree::hold(&mut tx).await?;
    output::require_right(&mut tx, &caller, &ids, "edit_app", "id").await?;
    let moves: Vec<(i64, Option<i64>)> = ids.iter().map(|child| (*child, Some(id))).collect();
    let entries = change::hang(&mut tx, &caller, &moves, "id").await?;
    let rows = store::find_many(&mut tx, caller.organisation_id, &ids).await?;
    let shown = output::show(&mut tx, &caller, rows).await?;
    tx.commit(Audit::all(entries), shown).await
}

async fn remove_children(call: Call<Edit>, Path(id): Path<i64>, Ids(ids): Ids) -> Result<Reply<Message>> {
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    tree::hold(&mut tx).await?;
    let present = show_one(&mut tx, &caller, id).await?.child_apps;
    refuse_strangers(&ids, &present, "the application {} is not a child of this one")?;
    let moves: Vec<(i64, Option<i64>)> = ids.iter().map(|child| (*child, None)).collect();
    let entries = change::hang(&mut tx, &caller, &moves, "id").await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

async fn list_required(
    call: Call<View>,
    Path(id): Path<i64>,
    Query(filters): Query<NameFilters>,
    paging: Paging,
) -> Result<Reply<Page<ApplicationOut>>> {
    let link = when!("a.id IN (SELECT r.required_id FROM application_requirements r WHERE r.application_id = $1)", id);
    list_linked(&call, &paging, filters, link).await
}

async fn add_required(call: Call<Edit>, Path(id): Path<i64>, Ids(ids): Ids) -> Result<Reply<Vec<ApplicationOut>>> {
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    let before = output::whole(&mut tx, &caller, id).await?;
    change::require(&mut tx, &caller, id, &ids, "id").await?;
    let after = output::whole(&mut tx, &caller, id).await?;
    let detail = changes::between(&before, &after, NOT_AUDITED);
    let entries = if detail.is_empty() { vec![] } else { vec![entry("update", &after, detail)] };
    let rows = store::find_many(&mut tx, caller.organisation_id, &ids).await?;
    let shown = output::show(&mut tx, &caller, rows).await?;
    tx.commit(Audit::all(entries), shown).await
}

async fn remove_required(call: Call<Edit>, Path(id): Path<i64>, Ids(ids): Ids) -> Result<Reply<Message>> {
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    let before = output::whole(&mut tx, &caller, id).await?;
    let seen = show_one(&mut tx, &caller, id).await?.required_apps;
    refuse_strangers(&ids, &seen, "this application does not depend on the application {}")?;
    store::release(&mut tx, id, &ids).await?;
    let after = output::whole(&mut tx, &caller, id).await?;
    let entry = entry("update", &after, changes::between(&before, &after, NOT_AUDITED));
    tx.commit(Audit::of(entry), Message::success()).await
}

async fn list_required_by(
    call: Call<View>,
    Path(id): Path<i64>,
    Query(filters): Query<NameFilters>,
    paging: Paging,
) -> Result<Reply<Page<ApplicationOut>>> {
    let link = when!("a.id IN (SELECT r.application_id FROM application_requirements r WHERE r.required_id = $1)", id);
    list_linked(&call, &paging, filters, link).await
}
