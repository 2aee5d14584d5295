//! Instances in the database, and the two moves by which other areas change their state.

use drover_kernel::db::{OnDuplicate as _, Read};
use drover_kernel::{Error, Result, Tx, args, row, sql};
use drover_shared::words::Word as _;

use super::rules::{self, Event, InstanceStatus};

row! {
    /// One application on one host.
    pub struct InstanceRow {
        /// Id.
        pub id: i64,
        /// Application.
        pub application_id: i64,
        /// Host.
        pub host_id: i64,
        /// Name of the host.
        pub host_name: String,
        /// What it is doing.
        pub status: InstanceStatus,
        /// Version installed; none before the first deployment.
        pub version: Option<String>,
    }
}

/// Those of these instances that are the application's, by id. Whoever needs all compares the numbers.
///
/// # Errors
/// When the database is not available.
pub async fn load_many(read: &mut Read, application_id: i64, ids: &[i64]) -> Result<Vec<InstanceRow>> {
    let rows = sql!(
        "SELECT i.id, i.application_id, i.host_id, h.name AS host_name, i.status, i.version \
         FROM instances i JOIN hosts h ON h.id = i.host_id WHERE i.application_id = $1 AND i.id IN ($2) ORDER BY i.id"
    );
    Ok(read.all(rows, args![application_id, ids.to_vec()]).await?)
}

/// Adds stopped instances without a version.
///
/// # Errors
/// A conflict when the application has one on one of the hosts.
pub async fn insert(tx: &mut Tx, application_id: i64, host_ids: &[i64]) -> Result<()> {
    let (organisation_id, now) = (tx.organisation_id(), tx.now());
    let row = |host_id: &i64| args![organisation_id, application_id, *host_id, InstanceStatus::Stopped, now];
    let insert = sql!(
        "INSERT INTO instances (organisation_id, application_id, host_id, status, created_at) \
         VALUES ($1, $2, $3, $4, $5)"
    );
    tx.insert_many(insert, host_ids.iter().map(row).collect())
        .await
        .on_duplicate(|| Error::conflict("hostid: the application has an instance on one of these hosts already"))
}

/// The instances of an application on these hosts, by id.
///
/// # Errors
/// When the database is not available.
pub async fn on_hosts(read: &mut Read, application_id: i64, host_ids: &[i64]) -> Result<Vec<InstanceRow>> {
    let rows = sql!(
        "SELECT i.id, i.application_id, i.host_id, h.name AS host_name, i.status, i.version FROM instances i \
         JOIN hosts h ON h.id = i.host_id WHERE i.application_id = $1 AND i.host_id IN ($2) ORDER BY i.id"
    );
    Ok(read.all(rows, args![application_id, host_ids.to_vec()]).await?)
}

/// Removes instances that are at rest, and gives how many it were.
///
/// # Errors
/// When the database refuses.
pub async fn delete(tx: &mut Tx, application_id: i64, ids: &[i64]) -> Result<u64> {
    let delete =
        sql!("DELETE FROM instances WHERE application_id = $1 AND id IN ($2) AND status IN ('running', 'stopped')");
    Ok(tx.run(delete, args![application_id, ids.to_vec()]).await?)
}

/// Those of these hosts that carry no instance.
///
/// # Errors
/// When the database is not available.
pub async fn empty_hosts(read: &mut Read, host_ids: &[i64]) -> Result<Vec<i64>> {
    let rows = sql!(
        "SELECT h.id FROM hosts h WHERE h.id IN ($1) AND h.status = 'attached' \
         AND NOT EXISTS (SELECT 1 FROM instances i WHERE i.host_id = h.id)"
    );
    Ok(read.values(rows, args![host_ids.to_vec()]).await?)
}

/// Waits until nobody else changes these instances; until the transaction ends nobody else does.
///
/// # Errors
/// When the database is not available.
pub async fn hold(tx: &mut Tx, ids: &[i64]) -> Result<()> {
    let touch = sql!("UPDATE instances SET status = status WHERE organisation_id = $1 AND id IN ($2)");
    let arguments = args![tx.organisation_id(), ids.to_vec()];
    Ok(tx.run(touch, arguments).await.map(drop)?)
}

/// Marks instances as being changed, all or none: a compare-and-set from rest.
///
/// # Errors
/// A conflict that names the hosts of instances that are busy already or gone; then the caller drops its transaction.
pub async fn begin_change(tx: &mut Tx, ids: &[i64], to: InstanceStatus) -> Result<()> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let from = words(&rules::sources(Event::Begin(to)));
    if from.is_empty() {
        return Err(Error::internal(format!("{to} is not a change of an instance")));
    }
    let organisation_id = tx.organisation_id();
    // The busy ones are read first: after the update nobody could tell them apart.
    let busy = sql!(
        "SELECT h.name FROM instances i JOIN hosts h ON h.id = i.host_id WHERE i.organisation_id = $1 \
         AND i.id IN ($2) AND i.status NOT IN ($3) ORDER BY h.name"
    );
    let busy: Vec<String> = tx.values(busy, args![organisation_id, ids.clone(), from.clone()]).await?;
    if !busy.is_empty() {
        return Err(Error::conflict(format!("a change is under way on the instances on: {}", busy.join(", "))));
    }
    let update = sql!("UPDATE instances SET status = $4 WHERE organisation_id = $1 AND id IN ($2) AND status IN ($3)");
    let touched = tx.run(update, args![organisation_id, ids.clone(), from, to]).await?;
    if usize::try_from(touched).ok() != Some(ids.len()) {
        return Err(Error::conflict("some of the instances are gone, or another change of them began just now"));
    }
    Ok(())
}

/// Ends the change of an instance and leaves it in `status`; a version that is none stays as it is. False when no change of
/// it is under way: somebody changed it by hand or took it away, and knows better.
///
/// # Errors
/// When the database is not available.
pub async fn finish_change(tx: &mut Tx, id: i64, status: InstanceStatus, version: Option<&str>) -> Result<bool> {
    let from = words(&rules::sources(Event::Finish(status)));
    if from.is_empty() {
        return Err(Error::internal(format!("{status} is not a state in which a change can end")));
    }
    let update = sql!(
        "UPDATE instances SET status = $4, version = COALESCE(CAST($5 AS TEXT), version) \
         WHERE organisation_id = $1 AND id = $2 AND status IN ($3)"
    );
    let arguments = args![tx.organisation_id(), id, from, status, version];
    Ok(tx.run(update, arguments).await? == 1)
}

/// As [`finish_change`], for instances that nothing was done to. What is gone is left out.
///
/// # Errors
/// When the database is not available.
pub async fn give_back(tx: &mut Tx, ids: Vec<i64>, status: InstanceStatus) -> Result<()> {
    let from = words(&rules::sources(Event::Finish(status)));
    let update = sql!("UPDATE instances SET status = $4 WHERE organisation_id = $1 AND id IN ($2) AND status IN ($3)");
    let arguments = args![tx.organisation_id(), ids, from, status];
    tx.run(update, arguments).await?;
    Ok(())
}

fn words(statuses: &[InstanceStatus]) -> Vec<String> {
    statuses.iter().map(|status| status.as_str().to_owned()).collect()
}
