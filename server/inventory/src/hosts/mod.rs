//! Hosts: the records of machines, with what their agents last said.
//!
//! Invariants: a name is unique in its organisation; a host that carries instances is not deleted; its status is not
//! changed by editing the record.

pub mod rules;
pub mod store;

use drover_identity::{forget_resource, grant_all, visible_hosts};
use drover_kernel::call::{Caller, SignedIn};
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Flag, Id, Line, Many, Name, Number, Patch, Prose};
use drover_kernel::resources::ResourceKind;
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Kernel, Message, Page, Paging, Path, Query, Reply, Result, Routes,
    Tx, permission, sql, when,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::rules::{ADDRESSES_MAX, AddressOwner, AddressReach, HostStatus, HostType, OsStatus};
use self::store::{Address, AddressRow, HostRecord, HostRow};
use crate::applications::{self, ApplicationOut};
use crate::changes;
use crate::instances::states::{self, Changed};
use crate::scope::Scope;
use crate::{environments, secrets, variables};

permission!(Create, "hosts.create", "Register hosts", Module { module: "host", right: "add_host" });
permission!(pub(crate) View, "hosts.view", "See a host", Resource { kind: "host", right: "view_host" });
permission!(pub(crate) Edit, "hosts.edit", "Change a host's record", Resource { kind: "host", right: "edit_host" });
permission!(Delete, "hosts.delete", "Remove a host's record", Resource { kind: "host", right: "delete_host" });

pub(crate) fn routes() -> Routes {
    Routes::tagged("hosts")
        .get("/hosts/", "hosts-list", "List the hosts that the caller may see.", list)
        .post("/hosts/", "host-create", "Register a host.", create)
        .get("/hosts/{id}/", "host-detail", "Read one host.", detail)
        .patch("/hosts/{id}/", "host-update", "Change a host's record.", update)
        .delete("/hosts/{id}/", "host-delete", "Remove the record of a host without instances.", delete)
        .get(
            "/hosts/{id}/applications/",
            "host-applications-list",
            "List the applications on a host.",
            list_applications,
        )
}

pub(crate) fn resource() -> ResourceKind {
    ResourceKind {
        name: "host",
        noun: "host",
        governed_by: "host",
        find: sql!("SELECT id FROM hosts WHERE organisation_id = $1 AND id = $2"),
        further_rights: None,
        implied: &[],
        text_key: false,
        instead: None,
    }
}

/// A machine.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Host")]
pub struct HostOut {
    /// Id.
    pub id: i64,
    /// Host name.
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
    /// Addresses.
    pub ip_address: Vec<AddressOut>,
    /// Free text.
    pub description: String,
    /// Words by which hosts are chosen.
    pub labels: Vec<String>,
    /// The environment that it is in.
    pub environment: Option<HostEnvironmentOut>,
    /// The agent on it, null before one was enrolled.
    pub agent: Option<AgentOut>,
}

/// The environment of a host.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "HostEnvironment")]
pub struct HostEnvironmentOut {
    /// Id.
    pub id: i64,
    /// Name.
    pub name: String,
}

/// A network address.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "IpAddress")]
pub struct AddressOut {
    /// Id.
    pub id: i64,
    /// Kind of thing that it is bound to.
    pub owner: Option<AddressOwner>,
    /// Whether it is a floating address.
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

/// The agent of a host.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "HostAgent")]
pub struct AgentOut {
    /// Version, null before it first connected.
    pub version: Option<String>,
    /// Whether it is connected now.
    pub connected: bool,
    /// When it was last heard of.
    pub last_seen_time: Option<String>,
    /// How far the host's clock is ahead of the server's, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// The boot of its host in which it was last heard of.
    pub boot_id: Option<String>,
    /// When it was first heard of after its host had been restarted; null when that was never seen.
    pub restart_time: Option<String>,
    /// What it said it can do.
    pub abilities: Option<serde_json::Value>,
}

impl From<AddressRow> for AddressOut {
    fn from(row: AddressRow) -> Self {
        Self {
            id: row.id,
            owner: row.owner,
            is_virtual: row.is_virtual,
            addr_type: row.addr_type,
            network: row.network,
            netmask: row.netmask,
            address: row.address,
        }
    }
}

impl HostOut {
    fn new(row: HostRow, addresses: Vec<AddressOut>, labels: Vec<String>, kernel: &Kernel) -> Self {
        let agent = row.agent_id.map(|_| AgentOut {
            version: row.agent_version,
            connected: row.agent_connected.unwrap_or(false),
            last_seen_time: row.agent_last_seen_at.map(|time| kernel.show(time)),
            clock_skew_ms: row.agent_clock_skew_ms,
            boot_id: row.agent_boot_id,
            restart_time: row.agent_restarted_at.map(|time| kernel.show(time)),
            abilities: row.agent_abilities.map(|abilities| abilities.0),
        });
        let environment = row.environment_id.zip(row.environment_name);
        Self {
            environment: environment.map(|(id, name)| HostEnvironmentOut { id, name }),
            id: row.id,
            name: row.name,
            host_type: row.host_type,
            status: row.status,
            os_status: row.os_status,
            os_type: row.os_type,
            cpu: row.cpu,
            memory: row.memory,
            location: row.location,
            ip_address: addresses,
            labels,
            description: row.description,
            agent,
        }
    }
}

/// Shows rows with their addresses, in one query for all.
async fn show(read: &mut Read, kernel: &Kernel, rows: Vec<HostRow>) -> Result<Vec<HostOut>> {
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let mut addresses = store::addresses(read, &ids).await?;
    let mut labels = store::labels(read, &ids).await?;
    let shown = rows.into_iter().map(|row| {
        let own = addresses.extract_if(.., |address| address.host_id == row.id).map(AddressOut::from).collect();
        let labels = labels.extract_if(.., |label| label.host_id == row.id).map(|label| label.label).collect();
        HostOut::new(row, own, labels, kernel)
    });
    Ok(shown.collect())
}

async fn show_one(read: &mut Read, kernel: &Kernel, organisation_id: i64, id: i64) -> Result<HostOut> {
    let row = store::load(read, organisation_id, id).await?;
    show(read, kernel, vec![row]).await?.pop().ok_or_else(|| Error::not_found("host"))
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ListFilters {
    /// Part of the name.
    name: Option<Name>,
    /// Kind of host.
    host_type: Option<HostType>,
    /// Management status.
    status: Option<HostStatus>,
    /// Id of the environment that they are in.
    environment: Option<Id>,
    /// Label that they have.
    label: Option<Name>,
}

async fn list(
    call: Call<SignedIn>,
    Query(filters): Query<ListFilters>,
    paging: Paging,
) -> Result<Reply<Page<HostOut>>> {
    let mut conditions: Vec<Condition> = visible_hosts(call.caller()?).into_iter().collect();
    if let Some(name) = filters.name {
        conditions.push(when!(r"lower(h.name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0)));
    }
    conditions.extend(filters.host_type.map(|kind| when!("h.host_type = $1", kind)));
    conditions.extend(filters.status.map(|status| when!("h.status = $1", status)));
    conditions.extend(filters.environment.map(|environment| when!("h.environment_id = $1", environment.0)));
    conditions.extend(
        filters.label.map(|label| {
            when!("EXISTS (SELECT 1 FROM host_labels l WHERE l.host_id = h.id AND l.label = $1)", label.0)
        }),
    );
    let mut read = call.read().await?;
    let (count, rows) = store::list(&mut read, &paging, call.organisation_id(), &conditions).await?;
    let shown = show(&mut read, call.kernel(), rows).await?;
    Ok(Reply::new(paging.page(count, shown)))
}

async fn detail(call: Call<View>, Path(id): Path<i64>) -> Result<Reply<HostOut>> {
    let mut read = call.read().await?;
    Ok(Reply::new(show_one(&mut read, call.kernel(), call.organisation_id(), id).await?))
}

/// An address in a request.
#[derive(Debug, Deserialize, JsonSchema)]
struct AddressBody {
    /// Kind of thing that it is bound to; a host by default.
    #[serde(default = "AddressBody::owner")]
    owner: Option<AddressOwner>,
    /// Whether it is a floating address.
    is_virtual: Option<Flag>,
    /// Reach; by the address's range when left out.
    addr_type: Option<AddressReach>,
    /// Network that it is in.
    network: Option<Name>,
    /// Subnet mask or prefix length.
    netmask: Option<Name>,
    /// The address.
    address: Name,
}

impl AddressBody {
    #[expect(clippy::unnecessary_wraps, reason = "the default of an optional member")]
    fn owner() -> Option<AddressOwner> {
        Some(AddressOwner::Host)
    }
}

/// A host's record. When one is made, `name` and `host_type` are required; a change keeps what is left out.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "HostRecord")]
struct HostBody {
    /// Host name, unique.
    name: Option<Name>,
    /// Kind of host.
    host_type: Option<HostType>,
    /// Management status, `raw` by default; a change of the record does not change it.
    status: Option<HostStatus>,
    /// Operating system and version.
    os_type: Option<Name>,
    /// Cores.
    cpu: Option<Number>,
    /// Memory in MB.
    memory: Option<Number>,
    /// Where it stands.
    location: Option<Line>,
    /// Addresses; replaces the set.
    #[serde(alias = "ip_adress")]
    ip_address: Option<Many<AddressBody>>,
    /// Free text.
    description: Option<Prose>,
    /// Words by which hosts are chosen; replaces the set.
    labels: Option<Many<Name>>,
    /// Id of the environment that it is in, null for none; administrators alone change it.
    #[serde(default)]
    environment: Patch<Id>,
}

impl HostBody {
    fn labels(&mut self) -> Result<Option<Vec<String>>> {
        let Some(Many(labels)) = self.labels.take() else { return Ok(None) };
        let mut labels: Vec<String> = labels.into_iter().map(|label| label.0).collect();
        labels.sort_unstable();
        labels.dedup();
        rules::check_labels(&labels)?;
        Ok(Some(labels))
    }

    fn addresses(&mut self) -> Result<Option<Vec<Address>>> {
        let Some(Many(bodies)) = self.ip_address.take() else { return Ok(None) };
        if bodies.len() > ADDRESSES_MAX {
            return Err(Error::invalid("ip_address", format!("must have at most {ADDRESSES_MAX} elements")));
        }
        let read = |(index, body): (usize, AddressBody)| {
            let wrong = |member: &str, reason: String| Error::invalid(format!("ip_address[{index}].{member}"), reason);
            let address = rules::address(&body.address.0).map_err(|reason| wrong("address", reason))?;
            let netmask = body.netmask.unwrap_or_default().0;
            rules::check_netmask(&netmask).map_err(|reason| wrong("netmask", reason))?;
            Ok(Address {
                owner: body.owner,
                is_virtual: body.is_virtual.is_some_and(|flag| flag.0),
                addr_type: body.addr_type.unwrap_or_else(|| rules::reach(address)),
                network: body.network.unwrap_or_default().0,
                netmask,
                address: address.to_string(),
            })
        };
        bodies.into_iter().enumerate().map(read).collect::<Result<_>>().map(Some)
    }

    /// The record after this change; a new host's when there is none before.
    fn record(self, before: Option<&HostRow>) -> Result<HostRecord> {
        let missing = |field: &str| Error::invalid(field, "is missing");
        let record = HostRecord {
            name: self
                .name
                .map(|name| name.0)
                .or_else(|| before.map(|row| row.name.clone()))
                .ok_or_else(|| missing("name"))?,
            host_type: self.host_type.or(before.map(|row| row.host_type)).ok_or_else(|| missing("host_type"))?,
            status: before.map(|row| row.status).or(self.status).unwrap_or(HostStatus::Raw),
            os_type: self
                .os_type
                .map_or_else(|| before.map(|row| row.os_type.clone()).unwrap_or_default(), |text| text.0),
            cpu: self.cpu.map_or_else(|| before.map_or(0, |row| row.cpu), |number| number.0),
            memory: self.memory.map_or_else(|| before.map_or(0, |row| row.memory), |number| number.0),
            location: self
                .location
                .map_or_else(|| before.map(|row| row.location.clone()).unwrap_or_default(), |text| text.0),
            description: self
                .description
                .map_or_else(|| before.map(|row| row.description.clone()).unwrap_or_default(), |text| text.0),
            environment_id: match self.environment {
                Patch::Absent => before.and_then(|row| row.environment_id),
                Patch::Null => None,
                Patch::Value(Id(id)) => Some(id),
            },
        };
        rules::check_name(&record.name)?;
        rules::check_size(record.cpu, record.memory)?;
        Ok(record)
    }
}

fn entry(action: &str, host: &HostOut, detail: String) -> AuditEntry {
    AuditEntry::new(AuditList::Host, action, "host", host.id, &*host.name).detail(detail)
}

/// Members that the audit leaves out: they are the agent's, or follow from others.
const NOT_AUDITED: &[&str] = &["id", "agent", "os_status"];

async fn create(call: Call<Create>, Body(mut body): Body<HostBody>) -> Result<Reply<HostOut>> {
    let addresses = body.addresses()?.unwrap_or_default();
    let labels = body.labels()?.unwrap_or_default();
    let record = body.record(None)?;
    let (kernel, organisation_id, caller) = (call.kernel().clone(), call.organisation_id(), call.caller()?.clone());
    let mut tx = call.begin().await?;
    check_environment(&mut tx, &caller, None, record.environment_id).await?;
    let id = store::insert(&mut tx, &record).await?;
    store::replace_addresses(&mut tx, id, &addresses).await?;
    store::replace_labels(&mut tx, id, &labels).await?;
    let host = show_one(&mut tx, &kernel, organisation_id, id).await?;
    let mut entries = vec![entry("add", &host, changes::of(&host, NOT_AUDITED))];
    if let Some(user_id) = tx.user_id() {
        entries.extend(grant_all(&mut tx, user_id, "host", id).await?);
    }
    tx.commit(Audit::all(entries), host).await
}

async fn update(call: Call<Edit>, Path(id): Path<i64>, Body(mut body): Body<HostBody>) -> Result<Reply<HostOut>> {
    let addresses = body.addresses()?;
    let labels = body.labels()?;
    let (kernel, organisation_id, caller) = (call.kernel().clone(), call.organisation_id(), call.caller()?.clone());
    let mut tx = call.begin().await?;
    store::hold(&mut tx, &[id]).await?;
    let row = store::load(&mut tx, organisation_id, id).await?;
    if body.status.is_some_and(|status| status != row.status) {
        return Err(Error::invalid("status", "is not changed with the record: use actions/change-status"));
    }
    let record = body.record(Some(&row))?;
    check_environment(&mut tx, &caller, row.environment_id, record.environment_id).await?;
    let present = store::addresses(&mut tx, &[id]).await?;
    let before = show_one(&mut tx, &kernel, organisation_id, id).await?;
    store::update(&mut tx, id, &record).await?;
    if let Some(addresses) = addresses.filter(|addresses| !same(&present, addresses)) {
        store::replace_addresses(&mut tx, id, &addresses).await?;
    }
    if let Some(labels) = labels {
        store::replace_labels(&mut tx, id, &labels).await?;
    }
    let after = show_one(&mut tx, &kernel, organisation_id, id).await?;
    let detail = changes::between(&before, &after, NOT_AUDITED);
    let entries = if detail.is_empty() { vec![] } else { vec![entry("update", &after, detail)] };
    states::changed(&mut tx, Changed::Host(id)).await?;
    tx.commit(Audit::all(entries), after).await
}

/// Whose hooks run with an environment's secrets is for administrators to say.
async fn check_environment(tx: &mut Tx, caller: &Caller, present: Option<i64>, wanted: Option<i64>) -> Result<()> {
    if wanted == present {
        return Ok(());
    }
    if !caller.administrator {
        return Err(Error::Forbidden("only administrators may change the environment of a host".to_owned()));
    }
    let Some(id) = wanted else { return Ok(()) };
    environments::require(tx, caller.organisation_id, id).await.map_err(|error| match error {
        Error::NotFound(_) => Error::invalid("environment", format!("there is no environment {id}")),
        other => other,
    })
}

/// Whether a host has exactly these addresses already, so that their ids stay.
fn same(present: &[AddressRow], wanted: &[Address]) -> bool {
    let plain = |row: &AddressRow| Address {
        owner: row.owner,
        is_virtual: row.is_virtual,
        addr_type: row.addr_type,
        network: row.network.clone(),
        netmask: row.netmask.clone(),
        address: row.address.clone(),
    };
    present.iter().map(plain).eq(wanted.iter().cloned())
}

async fn delete(call: Call<Delete>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let (kernel, organisation_id) = (call.kernel().clone(), call.organisation_id());
    let mut tx = call.begin().await?;
    store::hold(&mut tx, &[id]).await?;
    let host = show_one(&mut tx, &kernel, organisation_id, id).await?;
    let carried = store::applications_on(&mut tx, id).await?;
    if !carried.is_empty() {
        let text = format!("the host {} still carries instances of: {}", host.name, carried.join(", "));
        return Err(Error::conflict(text));
    }
    if let Some(task) = store::task_at_work(&mut tx, id).await? {
        return Err(Error::conflict(format!("task {task} is at work on the host {}", host.name)));
    }
    store::delete(&mut tx, id).await?;
    forget_resource(&mut tx, "host", id).await?;
    variables::store::forget(&mut tx, Scope::Host, &[id]).await?;
    secrets::forget(&mut tx, Scope::Host, &[id]).await?;
    let entry = entry("delete", &host, changes::of(&host, NOT_AUDITED));
    tx.commit(Audit::of(entry), Message::success()).await
}

async fn list_applications(
    call: Call<View>,
    Path(id): Path<i64>,
    paging: Paging,
) -> Result<Reply<Page<ApplicationOut>>> {
    let mut read = call.read().await?;
    let on_host = when!("EXISTS (SELECT 1 FROM instances i WHERE i.application_id = a.id AND i.host_id = $1)", id);
    Ok(Reply::new(applications::page(&mut read, call.caller()?, &paging, vec![on_host]).await?))
}
