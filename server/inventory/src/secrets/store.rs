//! SQL of secrets. Values are sealed before they come here.

use drover_kernel::db::Read;
use drover_kernel::{Result, Tx, args, row, sql};
use drover_shared::words::Word as _;

use crate::scope::Scope;

row! {
    pub(super) struct SealedRow {
        pub(super) name: String,
        pub(super) sealed: String,
    }
}

row! {
    pub(super) struct NameRow {
        pub(super) object_id: i64,
        pub(super) name: String,
    }
}

pub(super) async fn names_of_many(
    read: &mut Read,
    organisation_id: i64,
    scope: Scope,
    ids: Vec<i64>,
) -> Result<Vec<NameRow>> {
    let sql =
        sql!("SELECT object_id, name FROM secrets WHERE organisation_id = $1 AND scope = $2 AND object_id IN ($3)");
    Ok(read.all(sql, args![organisation_id, scope.as_str(), ids]).await?)
}

pub(super) async fn names(read: &mut Read, organisation_id: i64, scope: Scope, id: i64) -> Result<Vec<String>> {
    Ok(names_of_many(read, organisation_id, scope, vec![id]).await?.into_iter().map(|row| row.name).collect())
}

pub(super) async fn sealed(
    read: &mut Read,
    organisation_id: i64,
    scope: Scope,
    id: i64,
    names: &[&str],
) -> Result<Vec<SealedRow>> {
    let sql = sql!(
        "SELECT name, sealed FROM secrets WHERE organisation_id = $1 AND scope = $2 AND object_id = $3 \
         AND name IN ($4)"
    );
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    Ok(read.all(sql, args![organisation_id, scope.as_str(), id, names]).await?)
}

pub(super) async fn set(tx: &mut Tx, scope: Scope, id: i64, name: &str, sealed: &str) -> Result<()> {
    let sql = sql!(
        "INSERT INTO secrets (organisation_id, scope, object_id, name, sealed, changed_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (organisation_id, scope, object_id, name) DO UPDATE \
         SET sealed = excluded.sealed, changed_at = excluded.changed_at"
    );
    let (organisation_id, now) = (tx.organisation_id(), tx.now());
    tx.run(sql, args![organisation_id, scope.as_str(), id, name, sealed, now]).await?;
    Ok(())
}

pub(super) async fn remove(tx: &mut Tx, scope: Scope, id: i64, name: &str) -> Result<()> {
    let sql = sql!("DELETE FROM secrets WHERE organisation_id = $1 AND scope = $2 AND object_id = $3 AND name = $4");
    let organisation_id = tx.organisation_id();
    tx.run(sql, args![organisation_id, scope.as_str(), id, name]).await?;
    Ok(())
}

pub(super) async fn forget(tx: &mut Tx, scope: Scope, ids: &[i64]) -> Result<()> {
    let sql = sql!("DELETE FROM secrets WHERE organisation_id = $1 AND scope = $2 AND object_id IN ($3)");
    let organisation_id = tx.organisation_id();
    tx.run(sql, args![organisation_id, scope.as_str(), ids.to_vec()]).await?;
    Ok(())
}

/// Makes the changes of an organisation's secrets follow one another: each sees what the one before it did.
pub(super) async fn hold(tx: &mut Tx) -> Result<()> {
    let sql = sql!("UPDATE organisations SET name = name WHERE id = $1");
    let organisation_id = tx.organisation_id();
    Ok(tx.run(sql, args![organisation_id]).await.map(drop)?)
}
