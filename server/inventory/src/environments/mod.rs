//! Environments: production, staging and the like; which hosts belong together, and what holds for all of them.
//!
//! Owns the table `environments`. Invariants: a host is in one environment at most; who puts it there decides which
//! secrets its hooks get, so that is for administrators alone; one that has hosts is not deleted, and its variables and
//! secrets go with it.

pub(crate) mod store;

use drover_kernel::call::{Administrator, SignedIn};
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Name, Prose};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Page, Paging, Path, Query, Reply, Result, Routes, Tx,
    when,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::store::EnvironmentRow;
use crate::scope::Scope;
use crate::{changes, secrets, variables};

/// Hosts that an error names.
const NAMED_MAX: usize = 20;

pub(crate) fn routes() -> Routes {
    Routes::tagged("environments")
        .get("/environments/", "environments-list", "List environments.", list)
        .post("/environments/", "environment-create", "Create an environment.", create)
        .get("/environments/{id}/", "environment-detail", "Read one environment.", detail)
        .patch("/environments/{id}/", "environment-update", "Change an environment.", update)
        .delete("/environments/{id}/", "environment-delete", "Delete an environment without hosts.", delete)
}

/// An environment.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Environment")]
struct EnvironmentOut {
    /// Id.
    id: i64,
    /// Name, unique.
    name: String,
    /// Free text.
    description: String,
}

impl From<EnvironmentRow> for EnvironmentOut {
    fn from(row: EnvironmentRow) -> Self {
        Self { id: row.id, name: row.name, description: row.description }
    }
}

/// An environment's properties. When one is made, `name` is required; a change keeps what is left out.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "EnvironmentProperties")]
struct EnvironmentBody {
    /// Name, unique.
    name: Option<Name>,
    /// Free text.
    description: Option<Prose>,
}

/// Filters of the list.
#[derive(Debug, Deserialize, JsonSchema)]
struct Filters {
    /// Part of the name.
    name: Option<Name>,
}

fn entry(action: &str, environment: &EnvironmentOut, detail: String) -> AuditEntry {
    AuditEntry::new(AuditList::General, action, "environment", environment.id, environment.name.as_str()).detail(detail)
}

/// The audit's entry for a change of what an environment has.
pub(crate) async fn entry_of(tx: &mut Tx, id: i64) -> Result<AuditEntry> {
    let organisation_id = tx.organisation_id();
    let environment = store::load(tx, organisation_id, id).await?;
    Ok(AuditEntry::new(AuditList::General, "update", "environment", id, environment.name))
}

/// Not found when there is no such environment.
pub(crate) async fn require(read: &mut Read, organisation_id: i64, id: i64) -> Result<()> {
    store::load(read, organisation_id, id).await.map(drop)
}

async fn list(
    call: Call<SignedIn>,
    Query(filters): Query<Filters>,
    paging: Paging,
) -> Result<Reply<Page<EnvironmentOut>>> {
    let mut conditions = Vec::new();
    if let Some(name) = filters.name {
        conditions.push(when!(r"lower(v.name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0)));
    }
    let mut read = call.read().await?;
    let (count, rows) = store::list(&mut read, &paging, call.organisation_id(), &conditions).await?;
    Ok(Reply::new(paging.page(count, rows.into_iter().map(EnvironmentOut::from).collect())))
}

async fn detail(call: Call<SignedIn>, Path(id): Path<i64>) -> Result<Reply<EnvironmentOut>> {
    let row = store::load(&mut call.read().await?, call.organisation_id(), id).await?;
    Ok(Reply::new(row.into()))
}

async fn create(call: Call<Administrator>, Body(body): Body<EnvironmentBody>) -> Result<Reply<EnvironmentOut>> {
    let name = checked(body.name)?.ok_or_else(|| Error::invalid("name", "is missing"))?;
    let description = body.description.unwrap_or_default().0;
    let mut tx = call.begin().await?;
    let id = store::insert(&mut tx, &name, &description).await?;
    let made = EnvironmentOut { id, name, description };
    let audit = Audit::of(entry("add", &made, changes::of(&made, &["id"])));
    tx.commit(audit, made).await
}

fn checked(name: Option<Name>) -> Result<Option<String>> {
    let Some(Name { 0: name }) = name else { return Ok(None) };
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Error::invalid("name", "must not be empty or contain control characters"));
    }
    Ok(Some(name))
}

async fn update(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<EnvironmentBody>,
) -> Result<Reply<EnvironmentOut>> {
    let name = checked(body.name)?;
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let before = EnvironmentOut::from(store::load(&mut tx, organisation_id, id).await?);
    let name = name.unwrap_or_else(|| before.name.clone());
    let description = body.description.map_or_else(|| before.description.clone(), |text| text.0);
    let after = EnvironmentOut { id, name, description };
    store::update(&mut tx, id, &after.name, &after.description).await?;
    let detail = changes::between(&before, &after, &[]);
    let audit = if detail.is_empty() {
        Audit::none("the environment stays as it is")
    } else {
        // Pid files may bear its name.
        crate::instances::states::changed(&mut tx, crate::instances::states::Changed::Environment(id)).await?;
        Audit::of(entry("update", &after, detail))
    };
    tx.commit(audit, after).await
}

async fn delete(call: Call<Administrator>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let environment = EnvironmentOut::from(store::load(&mut tx, organisation_id, id).await?);
    let mut hosts = store::hosts_in(&mut tx, id, NAMED_MAX + 1).await?;
    if !hosts.is_empty() {
        if hosts.len() > NAMED_MAX {
            hosts[NAMED_MAX] = "others".to_owned();
        }
        let text = format!("the environment {} still has the hosts {}", environment.name, hosts.join(", "));
        return Err(Error::conflict(text));
    }
    store::delete(&mut tx, id).await?;
    variables::store::forget(&mut tx, Scope::Environment, &[id]).await?;
    secrets::forget(&mut tx, Scope::Environment, &[id]).await?;
    let audit = Audit::of(entry("delete", &environment, changes::of(&environment, &["id"])));
    tx.commit(audit, Message::success()).await
}
