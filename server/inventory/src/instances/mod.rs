//! Instances: which applications run on which hosts, in which version.
//!
//! Invariants: an application has at most one instance on a host; a call adds or removes all of its instances or none;
//! a host with an instance is attached, and prepared again when its last one goes.

pub mod rules;
pub mod states;
pub mod store;

use drover_identity::rights_on_many;
use drover_kernel::db::Condition;
use drover_kernel::fields::{Id, Many, Name};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Ids, Kernel, Message, Page, Paging, Path, Query, Reply, Result,
    Routes, Tx, when,
};
use drover_shared::instance::ProcessState;
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::rules::InstanceStatus;
use self::states::{Changed, ProcessOut, SeenRow};
use self::store::InstanceRow;
use crate::applications::{self, Edit, View};
use crate::hosts;
use crate::hosts::rules::HostStatus;
use crate::scope::Scope;
use crate::secrets::TaskSecrets;
use crate::{secrets, variables};

pub(crate) fn routes() -> Routes {
    let path = "/applications/{id}/instances/";
    Routes::tagged("applications")
        .get(path, "instances-list", "List the instances of an application.", list)
        .post(path, "instances-add", "Add instances of an application on given hosts.", add)
        .delete(path, "instances-remove", "Remove instances from an application.", remove)
        .get("/applications/{id}/instances/{instance_id}/", "instance-detail", "Read one instance.", detail)
}

/// An application on one host.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AppInstance")]
struct InstanceOut {
    /// Id.
    id: i64,
    /// Host's id.
    hostid: i64,
    /// Host's name.
    hostname: String,
    /// What it is doing.
    status: InstanceStatus,
    /// Version installed; null before the first deployment.
    version: Option<String>,
    /// What the host sees of its process, whatever was done to it last.
    process: ProcessOut,
}

fn shown(kernel: &Kernel, rows: Vec<SeenRow>) -> Vec<InstanceOut> {
    let out = |row: SeenRow| InstanceOut {
        process: row.process(kernel),
        id: row.id,
        hostid: row.host_id,
        hostname: row.host_name,
        status: row.status,
        version: row.version,
    };
    rows.into_iter().map(out).collect()
}

/// Filters of the list.
#[derive(Debug, Deserialize, JsonSchema)]
struct Filters {
    /// What it is doing.
    status: Option<InstanceStatus>,
    /// What its host sees of its process: `running`, `stopped`, `crashed` or `unknown`.
    process: Option<Name>,
}

async fn list(
    call: Call<View>,
    Path(id): Path<i64>,
    Query(filters): Query<Filters>,
    paging: Paging,
) -> Result<Reply<Page<InstanceOut>>> {
    let mut conditions: Vec<Condition> = Vec::new();
    conditions.extend(filters.status.map(|status| when!("i.status = $1", status)));
    if let Some(state) = filters.process {
        let state = ProcessState::parse(&state.0).map_err(|error| Error::invalid("process", error.to_string()))?;
        conditions.push(states::is(state));
    }
    let mut read = call.read().await?;
    let (count, rows) = states::list(&mut read, &paging, id, &conditions).await?;
    Ok(Reply::new(paging.page(count, shown(call.kernel(), rows))))
}

async fn detail(call: Call<View>, Path((id, instance_id)): Path<(i64, i64)>) -> Result<Reply<InstanceOut>> {
    let mut read = call.read().await?;
    let rows = states::find_many(&mut read, id, &[instance_id]).await?;
    shown(call.kernel(), rows).pop().map(Reply::new).ok_or_else(|| Error::not_found("instance"))
}

/// A host that shall carry an instance.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "NewInstance")]
struct InstanceBody {
    /// Host that shall carry the instance.
    #[serde(alias = "host_id")]
    hostid: Id,
    /// Name of that host; must agree with the id.
    hostname: Option<Name>,
}

async fn add(
    call: Call<Edit>,
    Path(id): Path<i64>,
    Body(Many(bodies)): Body<Many<InstanceBody>>,
) -> Result<Reply<Vec<InstanceOut>>> {
    if bodies.is_empty() {
        return Err(Error::invalid("hostid", "give at least one"));
    }
    let host_ids: Vec<i64> = bodies.iter().map(|body| body.hostid.0).collect();
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    let application = applications::store::load(&mut tx, caller.organisation_id, id).await?;
    hosts::store::hold(&mut tx, &host_ids).await?;
    let hosts = hosts::store::find_many(&mut tx, caller.organisation_id, &host_ids).await?;
    let rights = rights_on_many(&mut tx, &caller, "host", &host_ids).await?;
    let kept = TaskSecrets::read(&mut tx, (caller.organisation_id, id), host_ids.clone(), Vec::new()).await?;
    for (index, body) in bodies.iter().enumerate() {
        let invalid = |member: &str, reason: String| Error::invalid(format!("[{index}].{member}"), reason);
        let host_id = body.hostid.0;
        let visible = rights.get(&host_id).is_some_and(|rights| !rights.is_empty());
        let host = hosts.iter().find(|host| host.id == host_id && visible);
        let host = host.ok_or_else(|| invalid("hostid", format!("there is no host {host_id}")))?;
        if host_ids[..index].contains(&host_id) {
            return Err(invalid("hostid", format!("the host {host_id} is named twice")));
        }
        if body.hostname.as_ref().is_some_and(|name| !name.0.is_empty() && name.0 != host.name) {
            return Err(invalid("hostname", format!("the host {host_id} is named {}", host.name)));
        }
        // The scripts of an application may ask for whatever its hosts keep.
        if !kept.narrow(host_id, None).is_empty()
            && !rights.get(&host_id).is_some_and(|rights| rights.contains("edit_host"))
        {
            let text = format!("{} has secrets of its own: who puts an application there needs edit_host", host.name);
            return Err(Error::Forbidden(text));
        }
        if host.status == HostStatus::Offline {
            return Err(Error::conflict(format!("the host {} is out of service", host.name)));
        }
    }
    if let Some(present) = store::on_hosts(&mut tx, id, &host_ids).await?.first() {
        let text = format!("{} has an instance on {} already", application.full_name, present.host_name);
        return Err(Error::conflict(text));
    }
    store::insert(&mut tx, id, &host_ids).await?;
    hosts::store::set_status(&mut tx, &host_ids, HostStatus::Attached).await?;
    let rows = store::on_hosts(&mut tx, id, &host_ids).await?;
    states::changed(&mut tx, Changed::Application(id)).await?;
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let seen = states::find_many(&mut tx, id, &ids).await?;
    let audit = audit(&application.full_name, id, &rows, ("attach_host", "attach_app"));
    let answer = shown(tx.kernel(), seen);
    tx.commit(audit, answer).await
}

/// One entry for the application and one for each host: instances came, or went.
fn audit(full_name: &str, id: i64, rows: &[InstanceRow], (of_application, of_host): (&str, &str)) -> Audit {
    let detail = |row: &InstanceRow| {
        let version = row.version.as_deref().unwrap_or("none");
        format!("{full_name} on {}, instance {}, version {version}", row.host_name, row.id)
    };
    let application = rows.iter().map(|row| {
        AuditEntry::new(AuditList::Application, of_application, "application", id, full_name).detail(detail(row))
    });
    let hosts = rows
        .iter()
        .map(|row| AuditEntry::new(AuditList::Host, of_host, "host", row.host_id, &*row.host_name).detail(detail(row)));
    Audit::all(application.chain(hosts).collect())
}

async fn remove(call: Call<Edit>, Path(id): Path<i64>, Ids(ids): Ids) -> Result<Reply<Message>> {
    let organisation_id = call.organisation_id();
    let mut tx = call.begin().await?;
    let application = applications::store::load(&mut tx, organisation_id, id).await?;
    let rows = store::load_many(&mut tx, id, &ids).await?;
    if let Some(stranger) = ids.iter().find(|id| rows.iter().all(|row| row.id != **id)) {
        return Err(Error::invalid("id", format!("the instance {stranger} is not one of {}", application.full_name)));
    }
    if let Some(busy) = rows.iter().find(|row| row.status.is_busy()) {
        return Err(Error::conflict(format!("the instance on {} is {}", busy.host_name, busy.status)));
    }
    let host_ids: Vec<i64> = rows.iter().map(|row| row.host_id).collect();
    hosts::store::hold(&mut tx, &host_ids).await?;
    let removed = store::delete(&mut tx, id, &ids).await?;
    if usize::try_from(removed).ok() != Some(ids.len()) {
        return Err(Error::conflict("a change of one of the instances began just now"));
    }
    variables::store::forget(&mut tx, Scope::Instance, &ids).await?;
    secrets::forget(&mut tx, Scope::Instance, &ids).await?;
    release_hosts(&mut tx, &host_ids).await?;
    let audit = audit(&application.full_name, id, &rows, ("deatach_host", "deatach_app"));
    tx.commit(audit, Message::success()).await
}

/// Hosts that carry no instance any more are prepared, not attached.
async fn release_hosts(tx: &mut Tx, host_ids: &[i64]) -> Result<()> {
    let empty = store::empty_hosts(tx, host_ids).await?;
    hosts::store::set_status(tx, &empty, HostStatus::Inited).await
}
