//! Secrets by name, of an organisation or of one application, for hooks that need them.
//!
//! Owns the table `secrets`. Invariants: a value is stored sealed and never leaves over the API; each belongs to its
//! organisation, application and name, and opens for nothing else; who may change the application may change its own.

mod store;

use std::collections::BTreeMap;

use drover_kernel::call::Administrator;
use drover_kernel::db::Read;
use drover_kernel::fields::{Masked, Secret};
use drover_kernel::{Audit, AuditEntry, AuditList, Body, Call, Error, Path, Reply, Result, Routes, Sealer, Tx};
use drover_shared::secret::{self, MASKED_BYTES_MIN, VALUE_BYTES_MAX};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::applications;

/// Secrets of one application, or of the organisation itself.
pub const SECRETS_MAX: usize = 100;

/// Application under which the organisation's own are kept.
const NONE: i64 = 0;

pub(crate) fn routes() -> Routes {
    let of_one = "/applications/{id}/secrets/";
    Routes::tagged("variables")
        .get("/secrets/", "secrets-list", "List the names of the organisation's secrets.", of_organisation)
        .patch("/secrets/", "secrets-update", "Set or remove secrets of the organisation.", change_organisation)
        .get(of_one, "application-secrets-list", "List the names of an application's secrets.", of_application)
        .patch(of_one, "application-secrets-update", "Set or remove an application's secrets.", change_application)
}

/// Secrets without their values.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Secrets")]
struct SecretsOut {
    /// `******` for each name.
    secrets: BTreeMap<String, Masked>,
}

/// A change of secrets.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "SecretsChange")]
struct SecretsBody {
    /// Values by name, which is written in capitals; `******` keeps the present one, null removes it.
    secrets: BTreeMap<String, Option<Secret<VALUE_BYTES_MAX>>>,
}

fn shown(names: Vec<String>) -> SecretsOut {
    SecretsOut { secrets: names.into_iter().map(|name| (name, Masked(true))).collect() }
}

/// Refuses what no agent takes, or could not mask.
fn check(name: &str, value: &str) -> Result<(), String> {
    if !secret::is_name(name) {
        return Err("a name is a capital letter, then capital letters, digits and _, 64 at most".to_owned());
    }
    if value.contains('\0') {
        return Err("must not contain the character NUL".to_owned());
    }
    if value.len() < MASKED_BYTES_MIN {
        return Err(format!("must have at least {MASKED_BYTES_MIN} bytes: shorter ones cannot be masked in output"));
    }
    Ok(())
}

/// What a value belongs to.
fn about(organisation_id: i64, application_id: i64, name: &str) -> String {
    format!("secrets/{organisation_id}/{application_id}/{name}")
}

async fn change(mut tx: Tx, application_id: i64, body: SecretsBody, entry: AuditEntry) -> Result<Reply<SecretsOut>> {
    let organisation_id = tx.organisation_id();
    store::hold(&mut tx).await?;
    let before = store::names(&mut tx, organisation_id, application_id).await?;
    let mut done = Vec::new();
    for (name, secret) in body.secrets {
        let field = || format!("secrets.{name}");
        let present = before.contains(&name);
        match secret {
            Some(Secret::Keep) if present => {}
            Some(Secret::Keep) => return Err(Error::invalid(field(), "there is no such secret that could be kept")),
            None if present => {
                store::remove(&mut tx, application_id, &name).await?;
                done.push(format!("{name} removed"));
            }
            None => {}
            Some(Secret::Set(value)) => {
                check(&name, &value).map_err(|why| Error::invalid(field(), why))?;
                let about = about(organisation_id, application_id, &name);
                let sealed = tx.kernel().sealer().seal(&about, value.as_bytes())?;
                store::set(&mut tx, application_id, &name, &sealed).await?;
                done.push(format!("{name} {}", if present { "changed" } else { "set" }));
            }
        }
    }
    let names = store::names(&mut tx, organisation_id, application_id).await?;
    if names.len() > SECRETS_MAX {
        return Err(Error::invalid("secrets", format!("there may be at most {SECRETS_MAX}")));
    }
    let audit = if done.is_empty() {
        Audit::none("the secrets stay as they are")
    } else {
        Audit::of(entry.detail(format!("secrets: {}", done.join(", "))))
    };
    tx.commit(audit, shown(names)).await
}

async fn of_organisation(call: Call<Administrator>) -> Result<Reply<SecretsOut>> {
    Ok(Reply::new(shown(store::names(&mut call.read().await?, call.organisation_id(), NONE).await?)))
}

async fn change_organisation(call: Call<Administrator>, Body(body): Body<SecretsBody>) -> Result<Reply<SecretsOut>> {
    let tx = call.begin().await?;
    let entry = AuditEntry::new(AuditList::General, "update", "organisation", tx.organisation_id(), "secrets");
    change(tx, NONE, body, entry).await
}

async fn of_application(call: Call<applications::View>, Path(id): Path<i64>) -> Result<Reply<SecretsOut>> {
    Ok(Reply::new(shown(store::names(&mut call.read().await?, call.organisation_id(), id).await?)))
}

async fn change_application(
    call: Call<applications::Edit>,
    Path(id): Path<i64>,
    Body(body): Body<SecretsBody>,
) -> Result<Reply<SecretsOut>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let application = applications::store::load(&mut tx, organisation_id, id).await?;
    let entry = AuditEntry::new(AuditList::Application, "update", "application", id, application.full_name);
    change(tx, id, body, entry).await
}

/// Removes the secrets of an application that goes.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn forget(tx: &mut Tx, application_id: i64) -> Result<()> {
    store::forget(tx, application_id).await
}

/// Names of the secrets that an application's hooks may ask for: its own and the organisation's.
///
/// # Errors
/// When the database is not available.
pub async fn secrets_for(read: &mut Read, organisation_id: i64, application_id: i64) -> Result<Vec<String>> {
    let mut names = store::names(read, organisation_id, NONE).await?;
    names.extend(store::names(read, organisation_id, application_id).await?);
    names.sort_unstable();
    names.dedup();
    names.retain(|name| secret::is_name(name));
    Ok(names)
}

/// Opens those of [`secrets_for`] that are named; of one name the application's own counts.
///
/// # Errors
/// Invalid, with the name as field, when there is no such secret; a fault when one cannot be opened.
pub async fn open(
    read: &mut Read,
    sealer: &Sealer,
    organisation_id: i64,
    application_id: i64,
    names: &[String],
) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>> {
    let rows = store::sealed(read, organisation_id, &[NONE, application_id], names).await?;
    let mut opened = BTreeMap::new();
    for name in names {
        // The organisation's own have the smaller number, so the application's come last.
        let row = rows.iter().filter(|row| row.name == *name).max_by_key(|row| row.application_id);
        let row = row.ok_or_else(|| Error::invalid(name.as_str(), "there is no such secret"))?;
        let about = about(organisation_id, row.application_id, name);
        opened.insert(name.clone(), sealer.open(&about, &row.sealed)?);
    }
    Ok(opened)
}
