//! Hosts and their addresses in the database.

use drover_kernel::db::{Condition, Json, OnDuplicate as _, Read};
use drover_kernel::{Error, Paging, Result, Time, Tx, args, row, sql};
use serde_json::Value;

use super::rules::{AddressOwner, AddressReach, HostStatus, HostType, OsStatus};

row! {
    /// A host, with what its agent last said.
    pub struct HostRow {
        /// Id.
        pub id: i64,
        /// Name, unique in the organisation.
        pub name: String,
        /// Kind.
        pub host_type: HostType,
        /// Management status.
        pub status: HostStatus,
        /// State of the operating system.
        pub os_status: OsStatus,
        /// Operating system and version.
        pub os_type: String,
        /// Cores.
        pub cpu: i64,
        /// Memory in MB.
        pub memory: i64,
        /// Where it stands.
        pub location: String,
        /// Free text.
        pub description: String,
        /// The environment that it is in.
        pub environment_id: Option<i64>,
        /// Its name.
        pub environment_name: Option<String>,
        /// The agent, if one was enrolled.
        pub agent_id: Option<String>,
        /// Version of the agent.
        pub agent_version: Option<String>,
        /// Whether the agent is connected.
        pub agent_connected: Option<bool>,
        /// When the agent was last heard of.
        pub agent_last_seen_at: Option<Time>,
        /// How far the host's clock is ahead of the server's, in milliseconds.
        pub agent_clock_skew_ms: Option<i64>,
        /// What the agent said it can do.
        pub agent_abilities: Option<Json<Value>>,
        /// The boot of the host in which the agent was last heard of.
        pub agent_boot_id: Option<String>,
        /// When it was first heard of after the host had been restarted.
        pub agent_restarted_at: Option<Time>,
    }
}

row! {
    /// An address of a host.
    pub struct AddressRow {
        /// Id.
        pub id: i64,
        /// Host.
        pub host_id: i64,
        /// Kind of thing that it is bound to.
        pub owner: Option<AddressOwner>,
        /// Whether it floats.
        pub is_virtual: bool,
        /// Reach.
        pub addr_type: AddressReach,
        /// Network that it is in.
        pub network: String,
        /// Subnet mask.
        pub netmask: String,
        /// The address.
        pub address: String,
    }
}

/// An address that a host shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Kind of thing that it is bound to.
    pub owner: Option<AddressOwner>,
    /// Whether it floats.
    pub is_virtual: bool,
    /// Reach.
    pub addr_type: AddressReach,
    /// Network that it is in.
    pub network: String,
    /// Subnet mask.
    pub netmask: String,
    /// The address.
    pub address: String,
}

/// A host's record as a caller describes it.
#[derive(Debug, Clone)]
pub struct HostRecord {
    /// Name.
    pub name: String,
    /// Kind.
    pub host_type: HostType,
    /// Management status.
    pub status: HostStatus,
    /// Operating system and version.
    pub os_type: String,
    /// Cores.
    pub cpu: i64,
    /// Memory in MB.
    pub memory: i64,
    /// Where it stands.
    pub location: String,
    /// Free text.
    pub description: String,
    /// The environment that it is in.
    pub environment_id: Option<i64>,
}

fn name_taken(name: &str) -> Error {
    Error::conflict(format!("name: there is a host named `{name}` already"))
}

/// One page of the organisation's hosts; conditions speak of `h`.
///
/// # Errors
/// When the database is not available.
pub async fn list(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<HostRow>)> {
    let count = sql!("SELECT COUNT(*) FROM hosts h WHERE h.organisation_id = $1/* filters */");
    let rows = sql!(
        "SELECT h.id, h.name, h.host_type, h.status, h.os_status, h.os_type, h.cpu, h.memory, h.location, \
         h.description, h.environment_id, v.name AS environment_name, g.id AS agent_id, g.version AS agent_version, g.connected AS agent_connected, \
         g.last_seen_at AS agent_last_seen_at, g.clock_skew_ms AS agent_clock_skew_ms, g.abilities AS agent_abilities, \
         g.boot_id AS agent_boot_id, g.restarted_at AS agent_restarted_at \
         FROM hosts h LEFT JOIN agents g ON g.host_id = h.id \
         LEFT JOIN environments v ON v.id = h.environment_id WHERE h.organisation_id = $1/* filters */ ORDER BY h.id"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

/// The hosts of these ids, by id.
///
/// # Errors
/// When the database is not available.
pub async fn find_many(read: &mut Read, organisation_id: i64, ids: &[i64]) -> Result<Vec<HostRow>> {
    let rows = sql!(
        "SELECT h.id, h.name, h.host_type, h.status, h.os_status, h.os_type, h.cpu, h.memory, h.location, \
         h.description, h.environment_id, v.name AS environment_name, g.id AS agent_id, g.version AS agent_version, g.connected AS agent_connected, \
         g.last_seen_at AS agent_last_seen_at, g.clock_skew_ms AS agent_clock_skew_ms, g.abilities AS agent_abilities, \
         g.boot_id AS agent_boot_id, g.restarted_at AS agent_restarted_at \
         FROM hosts h LEFT JOIN agents g ON g.host_id = h.id \
         LEFT JOIN environments v ON v.id = h.environment_id WHERE h.organisation_id = $1 AND h.id IN ($2) \
         ORDER BY h.id"
    );
    Ok(read.all(rows, args![organisation_id, ids.to_vec()]).await?)
}

/// One host.
///
/// # Errors
/// Not found, or when the database is not available.
pub async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<HostRow> {
    find_many(read, organisation_id, &[id]).await?.pop().ok_or_else(|| Error::not_found("host"))
}

/// The addresses of these hosts, by host and id.
///
/// # Errors
/// When the database is not available.
pub async fn addresses(read: &mut Read, host_ids: &[i64]) -> Result<Vec<AddressRow>> {
    let rows = sql!(
        "SELECT id, host_id, owner, is_virtual, addr_type, network, netmask, address FROM ip_addresses \
         WHERE host_id IN ($1) ORDER BY host_id, id"
    );
    Ok(read.all(rows, args![host_ids.to_vec()]).await?)
}

row! {
    /// A label of a host.
    pub struct LabelRow {
        /// Host.
        pub host_id: i64,
        /// The word.
        pub label: String,
    }
}

/// The labels of these hosts, in their order.
///
/// # Errors
/// When the database is not available.
pub async fn labels(read: &mut Read, host_ids: &[i64]) -> Result<Vec<LabelRow>> {
    let rows = sql!("SELECT host_id, label FROM host_labels WHERE host_id IN ($1) ORDER BY host_id, label");
    Ok(read.all(rows, args![host_ids.to_vec()]).await?)
}

/// Replaces the labels of a host.
///
/// # Errors
/// When the database refuses.
pub async fn replace_labels(tx: &mut Tx, host_id: i64, labels: &[String]) -> Result<()> {
    tx.run(sql!("DELETE FROM host_labels WHERE host_id = $1"), args![host_id]).await?;
    let organisation_id = tx.organisation_id();
    let rows = labels.iter().map(|label| args![organisation_id, host_id, label.as_str()]).collect();
    let insert = sql!("INSERT INTO host_labels (organisation_id, host_id, label) VALUES ($1, $2, $3)");
    Ok(tx.insert_many(insert, rows).await?)
}

/// A task that is at work on a host.
///
/// # Errors
/// When the database is not available.
pub async fn task_at_work(read: &mut Read, host_id: i64) -> Result<Option<i64>> {
    let sql = sql!(
        "SELECT MIN(e.task_id) FROM executions e JOIN tasks t ON t.id = e.task_id WHERE e.host_id = $1 \
         AND e.state IN ('queued', 'dispatched', 'running') AND t.taken IS NOT NULL"
    );
    Ok(read.value(sql, args![host_id]).await?)
}

/// Adds a host and gives its id.
///
/// # Errors
/// A conflict when the name is taken.
pub async fn insert(tx: &mut Tx, host: &HostRecord) -> Result<i64> {
    let insert = sql!(
        "INSERT INTO hosts (organisation_id, name, host_type, status, os_status, os_type, cpu, memory, location, \
         description, created_at, environment_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING id"
    );
    let arguments = args![
        tx.organisation_id(),
        host.name.as_str(),
        host.host_type,
        host.status,
        OsStatus::Running,
        host.os_type.as_str(),
        host.cpu,
        host.memory,
        host.location.as_str(),
        host.description.as_str(),
        tx.now(),
        host.environment_id
    ];
    tx.value(insert, arguments).await.on_duplicate(|| name_taken(&host.name))
}

/// Changes a host's record.
///
/// # Errors
/// A conflict when the name is taken or the host is gone.
pub async fn update(tx: &mut Tx, id: i64, host: &HostRecord) -> Result<()> {
    let update = sql!(
        "UPDATE hosts SET name = $3, host_type = $4, os_type = $5, cpu = $6, memory = $7, location = $8, \
         description = $9, environment_id = $10 WHERE organisation_id = $1 AND id = $2"
    );
    let arguments = args![
        tx.organisation_id(),
        id,
        host.name.as_str(),
        host.host_type,
        host.os_type.as_str(),
        host.cpu,
        host.memory,
        host.location.as_str(),
        host.description.as_str(),
        host.environment_id
    ];
    match tx.run(update, arguments).await.on_duplicate(|| name_taken(&host.name))? {
        1 => Ok(()),
        _ => Err(Error::not_found("host")),
    }
}

/// Sets a host's addresses to exactly these.
///
/// # Errors
/// When the database refuses.
pub async fn replace_addresses(tx: &mut Tx, host_id: i64, addresses: &[Address]) -> Result<()> {
    tx.run(sql!("DELETE FROM ip_addresses WHERE host_id = $1"), args![host_id]).await?;
    let organisation_id = tx.organisation_id();
    let rows = addresses.iter().map(|address| {
        args![
            organisation_id,
            host_id,
            address.owner,
            address.is_virtual,
            address.addr_type,
            address.network.as_str(),
            address.netmask.as_str(),
            address.address.as_str()
        ]
    });
    let insert = sql!(
        "INSERT INTO ip_addresses (organisation_id, host_id, owner, is_virtual, addr_type, network, netmask, address) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
    );
    Ok(tx.insert_many(insert, rows.collect()).await?)
}

/// Waits until nobody else changes these hosts or what they carry; until the transaction ends nobody else does.
///
/// # Errors
/// When the database is not available.
pub async fn hold(tx: &mut Tx, ids: &[i64]) -> Result<()> {
    let touch = sql!("UPDATE hosts SET status = status WHERE organisation_id = $1 AND id IN ($2)");
    let arguments = args![tx.organisation_id(), ids.to_vec()];
    Ok(tx.run(touch, arguments).await.map(drop)?)
}

/// Sets the management status of these hosts.
///
/// # Errors
/// When the database refuses.
pub async fn set_status(tx: &mut Tx, ids: &[i64], status: HostStatus) -> Result<()> {
    let update = sql!("UPDATE hosts SET status = $3 WHERE organisation_id = $1 AND id IN ($2)");
    let arguments = args![tx.organisation_id(), ids.to_vec(), status];
    Ok(tx.run(update, arguments).await.map(drop)?)
}

/// Full names of the applications that have an instance on a host.
///
/// # Errors
/// When the database is not available.
pub async fn applications_on(read: &mut Read, host_id: i64) -> Result<Vec<String>> {
    let names = sql!(
        "SELECT a.full_name FROM instances i JOIN applications a ON a.id = i.application_id WHERE i.host_id = $1 \
         ORDER BY a.full_name"
    );
    Ok(read.values(names, args![host_id]).await?)
}

/// Removes a host's record with its addresses and its agent.
///
/// # Errors
/// A conflict when it is gone.
pub async fn delete(tx: &mut Tx, id: i64) -> Result<()> {
    let arguments = args![tx.organisation_id(), id];
    tx.run_one(sql!("DELETE FROM hosts WHERE organisation_id = $1 AND id = $2"), arguments).await
}

/// The host of this name; made as a raw physical host when there is none. The second part says whether it was made.
///
/// # Errors
/// Invalid when the name cannot be a host's, or when the database refuses.
pub async fn find_or_create(tx: &mut Tx, name: &str) -> Result<(i64, bool)> {
    super::rules::check_name(name)?;
    let insert = sql!(
        "INSERT INTO hosts (organisation_id, name, host_type, status, os_status, os_type, cpu, memory, location, \
         description, created_at) VALUES ($1, $2, $3, $4, $5, '', 0, 0, '', '', $6) \
         ON CONFLICT (organisation_id, name) DO NOTHING RETURNING id"
    );
    let arguments = args![tx.organisation_id(), name, HostType::PhyHost, HostStatus::Raw, OsStatus::Running, tx.now()];
    if let Some((id,)) = tx.opt::<(i64,)>(insert, arguments).await? {
        return Ok((id, true));
    }
    let arguments = args![tx.organisation_id(), name];
    let id = tx.value(sql!("SELECT id FROM hosts WHERE organisation_id = $1 AND name = $2"), arguments).await?;
    Ok((id, false))
}
