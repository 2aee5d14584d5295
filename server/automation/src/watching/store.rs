//! Which instances are on which hosts, as far as there is something to watch.

use drover_kernel::db::Read;
use drover_kernel::{Result, args, row, sql};

row! {
    struct PairRow {
        application_id: i64,
        id: i64,
    }
}

/// Pairs of application and instance on a host that have a pid file, by instance.
pub(super) async fn watched_on(read: &mut Read, host_id: i64, most: usize) -> Result<Vec<(i64, i64)>> {
    let sql = sql!(
        "SELECT i.application_id, i.id FROM instances i JOIN applications a ON a.id = i.application_id \
         WHERE i.host_id = $1 AND a.pid_path <> '' ORDER BY i.id LIMIT $2"
    );
    let rows: Vec<PairRow> = read.all(sql, args![host_id, i64::try_from(most).unwrap_or(i64::MAX)]).await?;
    Ok(rows.into_iter().map(|row| (row.application_id, row.id)).collect())
}

/// Hosts that an application is on.
pub(super) async fn hosts_of_application(read: &mut Read, application_id: i64) -> Result<Vec<i64>> {
    Ok(read.values(sql!("SELECT host_id FROM instances WHERE application_id = $1"), args![application_id]).await?)
}

/// The host that an instance is on.
pub(super) async fn hosts_of_instance(read: &mut Read, instance_id: i64) -> Result<Vec<i64>> {
    Ok(read.values(sql!("SELECT host_id FROM instances WHERE id = $1"), args![instance_id]).await?)
}

/// The hosts of an environment.
pub(super) async fn hosts_of_environment(read: &mut Read, environment_id: i64) -> Result<Vec<i64>> {
    Ok(read.values(sql!("SELECT id FROM hosts WHERE environment_id = $1"), args![environment_id]).await?)
}
