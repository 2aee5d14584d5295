//! What planning reads of applications, instances and hosts. SQL alone.

use drover_kernel::db::{Json, Read};
use drover_kernel::fields::ELEMENTS_MAX;
use drover_kernel::{Result, Time, args, row, sql};
use drover_shared::Digest;
use drover_shared::words::Action;

use super::rules::Role;
use super::store::Source;

row! {
    /// An application as planning needs it.
    pub struct Application {
        pub id: i64,
        pub organisation_id: i64,
        pub name: String,
        pub full_name: String,
        pub application_type: String,
        pub directory: String,
        pub run_user: String,
        pub startup_cmd: String,
        pub stop_cmd: String,
        pub stdout_path: String,
        pub stderr_path: String,
        pub pid_path: String,
    }
}

row! {
    /// An instance with its host, as planning needs them.
    pub struct Target {
        pub instance_id: i64,
        pub host_id: i64,
        pub host_name: String,
        pub host_type: String,
        pub os_type: String,
        pub location: String,
        pub environment: Option<String>,
        pub status: String,
        pub version: Option<String>,
    }
}

row! {
    /// A release that a host keeps.
    pub struct KeptRelease {
        pub instance_id: i64,
        pub release_name: String,
        pub version: String,
        pub artifact_digest: Digest,
        pub tree_digest: Digest,
        pub is_current: bool,
        pub installed_at: Time,
    }
}

pub(crate) async fn application(read: &mut Read, id: i64) -> Result<Application> {
    Ok(read.one(sql!("SELECT * FROM applications WHERE id = $1"), args![id]).await?)
}

/// The instances in the order of the ids given; fewer when some are not of this application.
pub(crate) async fn targets(read: &mut Read, application_id: i64, ids: &[i64]) -> Result<Vec<Target>> {
    let sql = sql!(
        "SELECT i.id AS instance_id, i.host_id, h.name AS host_name, h.host_type, h.os_type, h.location, \
         v.name AS environment, i.status, i.version FROM instances i JOIN hosts h ON h.id = i.host_id \
         LEFT JOIN environments v ON v.id = h.environment_id WHERE i.application_id = $1 AND i.id IN ($2)"
    );
    let mut targets: Vec<Target> = read.all(sql, args![application_id, ids.to_vec()]).await?;
    targets.sort_by_key(|target| ids.iter().position(|id| *id == target.instance_id));
    Ok(targets)
}

/// Ids of the instances of an application, as many as a task may have.
pub(crate) async fn instances_of(read: &mut Read, application_id: i64) -> Result<Vec<i64>> {
    let sql = sql!("SELECT id FROM instances WHERE application_id = $1 ORDER BY id LIMIT $2");
    Ok(read.values(sql, args![application_id, i64::try_from(ELEMENTS_MAX).unwrap_or(i64::MAX)]).await?)
}

/// Addresses of hosts, as pairs of host and address.
pub(crate) async fn addresses(read: &mut Read, host_ids: Vec<i64>) -> Result<Vec<(i64, String)>> {
    row! {
        struct Address {
            host_id: i64,
            address: String,
        }
    }
    let sql = sql!("SELECT host_id, address FROM ip_addresses WHERE host_id IN ($1) ORDER BY id");
    let rows: Vec<Address> = read.all(sql, args![host_ids]).await?;
    Ok(rows.into_iter().map(|row| (row.host_id, row.address)).collect())
}

/// Releases that the instances keep, newest first.
pub(crate) async fn kept_releases(read: &mut Read, instance_ids: &[i64]) -> Result<Vec<KeptRelease>> {
    let sql = sql!("SELECT * FROM instance_releases WHERE instance_id IN ($1) ORDER BY instance_id, installed_at DESC");
    Ok(read.all(sql, args![instance_ids.to_vec()]).await?)
}

/// The statuses of instances, as pairs of instance and status.
pub(crate) async fn instance_statuses(read: &mut Read, ids: &[i64]) -> Result<Vec<(i64, String)>> {
    row! {
        struct Status {
            id: i64,
            status: String,
        }
    }
    let rows: Vec<Status> =
        read.all(sql!("SELECT id, status FROM instances WHERE id IN ($1)"), args![ids.to_vec()]).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.status)).collect())
}

row! {
    /// What was last sent to an instance, or as a hook that runs once.
    pub struct LastEntry {
        /// None for such a hook.
        pub instance_id: Option<i64>,
        pub role: Role,
        pub entry: String,
        /// Commit of its source, if it had one.
        pub resolved_commit: Option<String>,
        pub source: Option<Json<Source>>,
        pub timeout_s: i64,
        pub keep_backups: i64,
    }
}

/// What each of these instances was last sent by a task of this kind. A task that tried something again leaves out what
/// was done before: what it followed counts, if that was sent at all.
pub(crate) async fn last_entries(read: &mut Read, kind: Action, instance_ids: Vec<i64>) -> Result<Vec<LastEntry>> {
    let sql = sql!(
        "SELECT e.instance_id, e.role, e.entry, k.resolved_commit, k.source, k.timeout_s, k.keep_backups \
         FROM executions e JOIN tasks k ON k.id = e.task_id \
         WHERE e.id IN (SELECT n.id FROM (SELECT x.id, \
         ROW_NUMBER() OVER (PARTITION BY x.instance_id ORDER BY t.taken DESC, x.id DESC) AS place FROM executions x \
         JOIN tasks t ON t.id = x.task_id WHERE x.instance_id IN ($2) AND x.dispatched_at IS NOT NULL AND t.kind = $1 \
         AND NOT (t.origin IS NOT NULL AND t.origin = 'retry' AND EXISTS (SELECT 1 FROM executions o \
         WHERE o.task_id = t.origin_task_id AND o.instance_id = x.instance_id AND o.dispatched_at IS NOT NULL))) n \
         WHERE n.place = 1)"
    );
    Ok(read.all(sql, args![kind, instance_ids]).await?)
}

/// What was last sent as hooks that run once, by a task of this kind.
pub(crate) async fn last_hooks(read: &mut Read, kind: Action, application_id: i64) -> Result<Vec<LastEntry>> {
    let sql = sql!(
        "SELECT e.instance_id, e.role, e.entry, k.resolved_commit, k.source, k.timeout_s, k.keep_backups \
         FROM executions e JOIN tasks k ON k.id = e.task_id \
         WHERE e.id IN (SELECT n.id FROM (SELECT x.id, \
         ROW_NUMBER() OVER (PARTITION BY x.role ORDER BY t.taken DESC, x.id DESC) AS place \
         FROM executions x JOIN tasks t ON t.id = x.task_id \
         WHERE t.application_id = $2 AND t.kind = $1 AND x.instance_id IS NULL AND x.dispatched_at IS NOT NULL) n \
         WHERE n.place = 1)"
    );
    Ok(read.all(sql, args![kind, application_id]).await?)
}
