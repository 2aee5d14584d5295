//! SQL of environments, and which hosts are in them.

use std::collections::BTreeMap;

use drover_kernel::db::{Condition, OnDuplicate as _, Read};
use drover_kernel::{Error, Paging, Result, Tx, args, row, sql};

row! {
    /// An environment.
    pub(crate) struct EnvironmentRow {
        pub(crate) id: i64,
        pub(crate) name: String,
        pub(crate) description: String,
    }
}

row! {
    struct MemberRow {
        id: i64,
        environment_id: i64,
    }
}

/// One page of the organisation's environments; conditions speak of `v`.
pub(super) async fn list(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<EnvironmentRow>)> {
    let count = sql!("SELECT COUNT(*) FROM environments v WHERE v.organisation_id = $1/* filters */");
    let rows = sql!(
        "SELECT v.id, v.name, v.description FROM environments v WHERE v.organisation_id = $1/* filters */ ORDER BY v.id"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

/// One environment.
///
/// # Errors
/// Not found, or when the database is not available.
pub(crate) async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<EnvironmentRow> {
    let sql = sql!("SELECT id, name, description FROM environments WHERE organisation_id = $1 AND id = $2");
    read.opt(sql, args![organisation_id, id]).await?.ok_or_else(|| Error::not_found("environment"))
}

fn taken() -> Error {
    Error::conflict("name: there is an environment of this name already")
}

pub(super) async fn insert(tx: &mut Tx, name: &str, description: &str) -> Result<i64> {
    let sql = sql!(
        "INSERT INTO environments (organisation_id, name, description, created_at) VALUES ($1, $2, $3, $4) RETURNING id"
    );
    let arguments = args![tx.organisation_id(), name, description, tx.now()];
    tx.value(sql, arguments).await.on_duplicate(taken)
}

pub(super) async fn update(tx: &mut Tx, id: i64, name: &str, description: &str) -> Result<()> {
    let sql = sql!("UPDATE environments SET name = $3, description = $4 WHERE organisation_id = $1 AND id = $2");
    let arguments = args![tx.organisation_id(), id, name, description];
    tx.run(sql, arguments).await.on_duplicate(taken).map(drop)
}

pub(super) async fn delete(tx: &mut Tx, id: i64) -> Result<()> {
    let arguments = args![tx.organisation_id(), id];
    tx.run_one(sql!("DELETE FROM environments WHERE organisation_id = $1 AND id = $2"), arguments).await
}

/// Names of hosts in an environment.
pub(super) async fn hosts_in(read: &mut Read, id: i64, most: usize) -> Result<Vec<String>> {
    let sql = sql!("SELECT name FROM hosts WHERE environment_id = $1 ORDER BY name LIMIT $2");
    Ok(read.values(sql, args![id, i64::try_from(most).unwrap_or(i64::MAX)]).await?)
}

/// The environments of those of these hosts that are in one, by host.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn of_hosts(read: &mut Read, host_ids: Vec<i64>) -> Result<BTreeMap<i64, i64>> {
    let sql = sql!("SELECT id, environment_id FROM hosts WHERE id IN ($1) AND environment_id IS NOT NULL");
    let rows: Vec<MemberRow> = read.all(sql, args![host_ids]).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.environment_id)).collect())
}
