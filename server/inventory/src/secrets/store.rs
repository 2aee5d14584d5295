//! SQL of secrets. Values are sealed before they come here.

use drover_kernel::db::Read;
use drover_kernel::{Result, Tx, args, row, sql};

row! {
    pub(super) struct SealedRow {
        pub(super) application_id: i64,
        pub(super) name: String,
        pub(super) sealed: String,
    }
}

pub(super) async fn names(read: &mut Read, organisation_id: i64, application_id: i64) -> Result<Vec<String>> {
    let sql = sql!("SELECT name FROM secrets WHERE organisation_id = $1 AND application_id = $2");
    Ok(read.values(sql, args![organisation_id, application_id]).await?)
}

pub(super) async fn sealed(
    read: &mut Read,
    organisation_id: i64,
    application_ids: &[i64],
    names: &[String],
) -> Result<Vec<SealedRow>> {
    let sql = sql!(
        "SELECT application_id, name, sealed FROM secrets WHERE organisation_id = $1 AND application_id IN ($2) \
         AND name IN ($3)"
    );
    Ok(read.all(sql, args![organisation_id, application_ids.to_vec(), names.to_vec()]).await?)
}

pub(super) async fn set(tx: &mut Tx, application_id: i64, name: &str, sealed: &str) -> Result<()> {
    let sql = sql!(
        "INSERT INTO secrets (organisation_id, application_id, name, sealed, changed_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (organisation_id, application_id, name) DO UPDATE \
         SET sealed = excluded.sealed, changed_at = excluded.changed_at"
    );
    let (organisation_id, now) = (tx.organisation_id(), tx.now());
    tx.run(sql, args![organisation_id, application_id, name, sealed, now]).await?;
    Ok(())
}

pub(super) async fn remove(tx: &mut Tx, application_id: i64, name: &str) -> Result<()> {
    let sql = sql!("DELETE FROM secrets WHERE organisation_id = $1 AND application_id = $2 AND name = $3");
    let organisation_id = tx.organisation_id();
    tx.run(sql, args![organisation_id, application_id, name]).await?;
    Ok(())
}

pub(super) async fn forget(tx: &mut Tx, application_id: i64) -> Result<()> {
    let sql = sql!("DELETE FROM secrets WHERE organisation_id = $1 AND application_id = $2");
    let organisation_id = tx.organisation_id();
    tx.run(sql, args![organisation_id, application_id]).await?;
    Ok(())
}

/// Makes the changes of an organisation's secrets follow one another: each sees what the one before it did.
pub(super) async fn hold(tx: &mut Tx) -> Result<()> {
    let sql = sql!("UPDATE organisations SET name = name WHERE id = $1");
    let organisation_id = tx.organisation_id();
    Ok(tx.run(sql, args![organisation_id]).await.map(drop)?)
}
