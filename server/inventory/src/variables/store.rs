//! SQL of variables.

use std::collections::BTreeMap;

use drover_kernel::db::{OnDuplicate as _, Read};
use drover_kernel::{Error, Result, Tx, args, row, sql};
use drover_shared::words::Word as _;

use super::rules::Variables;
use crate::scope::Scope;

row! {
    struct VariableRow {
        object_id: i64,
        name: String,
        value: String,
    }
}

/// The variables of several objects of one scope.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn of_many(
    read: &mut Read,
    organisation_id: i64,
    scope: Scope,
    ids: Vec<i64>,
) -> Result<BTreeMap<i64, Variables>> {
    let sql = sql!(
        "SELECT object_id, name, value FROM variables WHERE organisation_id = $1 AND scope = $2 AND object_id IN ($3)"
    );
    let mut found: BTreeMap<i64, Variables> = BTreeMap::new();
    for row in read.all::<VariableRow>(sql, args![organisation_id, scope.as_str(), ids]).await? {
        let value = serde_json::from_str(&row.value).map_err(Error::internal)?;
        found.entry(row.object_id).or_default().insert(row.name, value);
    }
    Ok(found)
}

/// Organisation of an application.
///
/// # Errors
/// When there is no such application, or the database is not available.
pub(crate) async fn organisation_of(read: &mut Read, application_id: i64) -> Result<i64> {
    Ok(read.value(sql!("SELECT organisation_id FROM applications WHERE id = $1"), args![application_id]).await?)
}

/// The variables of one object.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn of(read: &mut Read, organisation_id: i64, scope: Scope, id: i64) -> Result<Variables> {
    Ok(of_many(read, organisation_id, scope, vec![id]).await?.remove(&id).unwrap_or_default())
}

/// Makes an object's variables these.
///
/// # Errors
/// A conflict when somebody else changes them at the same time.
pub(crate) async fn replace(tx: &mut Tx, scope: Scope, id: i64, variables: &Variables) -> Result<()> {
    forget(tx, scope, &[id]).await?;
    let organisation_id = tx.organisation_id();
    let row = |(name, value): (&String, &serde_json::Value)| {
        args![organisation_id, scope.as_str(), id, name.as_str(), value.to_string()]
    };
    let sql =
        sql!("INSERT INTO variables (organisation_id, scope, object_id, name, value) VALUES ($1, $2, $3, $4, $5)");
    tx.insert_many(sql, variables.iter().map(row).collect())
        .await
        .on_duplicate(|| Error::conflict("somebody else changed the variables at the same time, read them again"))
}

/// Removes the variables of objects that go.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn forget(tx: &mut Tx, scope: Scope, ids: &[i64]) -> Result<()> {
    let sql = sql!("DELETE FROM variables WHERE organisation_id = $1 AND scope = $2 AND object_id IN ($3)");
    let organisation_id = tx.organisation_id();
    tx.run(sql, args![organisation_id, scope.as_str(), ids.to_vec()]).await?;
    Ok(())
}

/// Makes the changes of an organisation's variables follow one another: each sees what the one before it did.
pub(super) async fn hold(tx: &mut Tx) -> Result<()> {
    let sql = sql!("UPDATE organisations SET name = name WHERE id = $1");
    let organisation_id = tx.organisation_id();
    Ok(tx.run(sql, args![organisation_id]).await.map(drop)?)
}
