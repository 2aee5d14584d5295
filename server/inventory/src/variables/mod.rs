//! Variables of organisation, application, environment, host and instance, which scripts see as `vars`.
//!
//! Owns the table `variables`. Invariants: what a script sees is the organisation's, then the application's, then the
//! environment's, then the host's, then the instance's, and of one name the last counts; who may change the object may change its variables.
//! They are no secrets: whoever may see the object sees them.

pub(crate) mod rules;
pub(crate) mod store;

use std::collections::{BTreeMap, BTreeSet};

use drover_kernel::call::Administrator;
use drover_kernel::db::Read;
use drover_kernel::{Audit, AuditEntry, AuditList, Body, Call, Error, Path, Reply, Result, Routes, Tx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::instances::states::{self, Changed};
use crate::scope::{NONE, Scope};
use crate::{applications, changes, environments, hosts, instances};
use rules::Variables;

pub(crate) fn routes() -> Routes {
    let application = "/applications/{id}/variables/";
    let environment = "/environments/{id}/variables/";
    let host = "/hosts/{id}/variables/";
    let instance = "/applications/{id}/instances/{instance_id}/variables/";
    Routes::tagged("variables")
        .get("/variables/", "variables-read", "Read the variables of the organisation.", of_organisation)
        .patch("/variables/", "variables-update", "Change variables of the organisation.", change_organisation)
        .get(application, "application-variables-read", "Read an application's variables.", of_application)
        .patch(application, "application-variables-update", "Change an application's variables.", change_application)
        .get(environment, "environment-variables-read", "Read an environment's variables.", of_environment)
        .patch(environment, "environment-variables-update", "Change an environment's variables.", change_environment)
        .get(host, "host-variables-read", "Read a host's variables.", of_host)
        .patch(host, "host-variables-update", "Change a host's variables.", change_host)
        .get(instance, "instance-variables-read", "Read an instance's variables.", of_instance)
        .patch(instance, "instance-variables-update", "Change an instance's variables.", change_instance)
}

/// Variables of one object.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Variables")]
struct VariablesOut {
    /// Values by name: text, numbers, true or false.
    variables: BTreeMap<String, Value>,
}

/// A change of variables.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "VariablesChange")]
struct VariablesBody {
    /// Values by name; null removes one.
    variables: BTreeMap<String, Value>,
    /// Whether those that are not named are removed.
    #[serde(default)]
    replace: bool,
}

async fn read_of(read: &mut Read, organisation_id: i64, scope: Scope, id: i64) -> Result<Reply<VariablesOut>> {
    Ok(Reply::new(VariablesOut { variables: store::of(read, organisation_id, scope, id).await? }))
}

async fn change(
    mut tx: Tx,
    scope: Scope,
    id: i64,
    body: VariablesBody,
    entry: AuditEntry,
) -> Result<Reply<VariablesOut>> {
    let organisation_id = tx.organisation_id();
    store::hold(&mut tx).await?;
    let before = store::of(&mut tx, organisation_id, scope, id).await?;
    let mut variables = if body.replace { Variables::new() } else { before.clone() };
    for (name, value) in body.variables {
        if value.is_null() {
            variables.remove(&name);
        } else {
            variables.insert(name, value);
        }
    }
    rules::check(&variables).map_err(|(field, why)| Error::invalid(field, why))?;
    store::replace(&mut tx, scope, id, &variables).await?;
    let detail = changes::between(&before, &variables, &[]);
    match scope {
        _ if detail.is_empty() => {}
        Scope::Organisation => states::changed(&mut tx, Changed::Organisation).await?,
        Scope::Application => states::changed(&mut tx, Changed::Application(id)).await?,
        Scope::Environment => states::changed(&mut tx, Changed::Environment(id)).await?,
        Scope::Host => states::changed(&mut tx, Changed::Host(id)).await?,
        Scope::Instance => states::changed(&mut tx, Changed::Instance(id)).await?,
    }
    let audit = if detail.is_empty() {
        Audit::none("the variables stay as they are")
    } else {
        Audit::of(entry.detail(format!("variables: {detail}")))
    };
    tx.commit(audit, VariablesOut { variables }).await
}

async fn of_organisation(call: Call<Administrator>) -> Result<Reply<VariablesOut>> {
    read_of(&mut call.read().await?, call.organisation_id(), Scope::Organisation, NONE).await
}

async fn change_organisation(
    call: Call<Administrator>,
    Body(body): Body<VariablesBody>,
) -> Result<Reply<VariablesOut>> {
    let tx = call.begin().await?;
    let entry = AuditEntry::new(AuditList::General, "update", "organisation", tx.organisation_id(), "variables");
    change(tx, Scope::Organisation, NONE, body, entry).await
}

async fn of_application(call: Call<applications::View>, Path(id): Path<i64>) -> Result<Reply<VariablesOut>> {
    read_of(&mut call.read().await?, call.organisation_id(), Scope::Application, id).await
}

async fn change_application(
    call: Call<applications::Edit>,
    Path(id): Path<i64>,
    Body(body): Body<VariablesBody>,
) -> Result<Reply<VariablesOut>> {
    let mut tx = call.begin().await?;
    let entry = entry_of_application(&mut tx, id).await?;
    change(tx, Scope::Application, id, body, entry).await
}

async fn of_environment(call: Call<Administrator>, Path(id): Path<i64>) -> Result<Reply<VariablesOut>> {
    let mut read = call.read().await?;
    environments::require(&mut read, call.organisation_id(), id).await?;
    read_of(&mut read, call.organisation_id(), Scope::Environment, id).await
}

async fn change_environment(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<VariablesBody>,
) -> Result<Reply<VariablesOut>> {
    let mut tx = call.begin().await?;
    let entry = environments::entry_of(&mut tx, id).await?;
    change(tx, Scope::Environment, id, body, entry).await
}

async fn of_host(call: Call<hosts::View>, Path(id): Path<i64>) -> Result<Reply<VariablesOut>> {
    read_of(&mut call.read().await?, call.organisation_id(), Scope::Host, id).await
}

async fn change_host(
    call: Call<hosts::Edit>,
    Path(id): Path<i64>,
    Body(body): Body<VariablesBody>,
) -> Result<Reply<VariablesOut>> {
    let mut tx = call.begin().await?;
    let entry = entry_of_host(&mut tx, id).await?;
    change(tx, Scope::Host, id, body, entry).await
}

async fn of_instance(
    call: Call<applications::View>,
    Path((id, instance_id)): Path<(i64, i64)>,
) -> Result<Reply<VariablesOut>> {
    let mut read = call.read().await?;
    find_instance(&mut read, id, instance_id).await?;
    read_of(&mut read, call.organisation_id(), Scope::Instance, instance_id).await
}

async fn change_instance(
    call: Call<applications::Edit>,
    Path((id, instance_id)): Path<(i64, i64)>,
    Body(body): Body<VariablesBody>,
) -> Result<Reply<VariablesOut>> {
    let mut tx = call.begin().await?;
    let entry = entry_of_instance(&mut tx, id, instance_id).await?;
    change(tx, Scope::Instance, instance_id, body, entry).await
}

/// The audit's entry for a change of what an application has.
pub(crate) async fn entry_of_application(tx: &mut Tx, id: i64) -> Result<AuditEntry> {
    let organisation_id = tx.organisation_id();
    let application = applications::store::load(tx, organisation_id, id).await?;
    Ok(AuditEntry::new(AuditList::Application, "update", "application", id, application.full_name))
}

/// The audit's entry for a change of what a host has.
pub(crate) async fn entry_of_host(tx: &mut Tx, id: i64) -> Result<AuditEntry> {
    let organisation_id = tx.organisation_id();
    let host = hosts::store::load(tx, organisation_id, id).await?;
    Ok(AuditEntry::new(AuditList::Host, "update", "host", id, host.name))
}

/// The audit's entry for a change of what an instance has.
pub(crate) async fn entry_of_instance(tx: &mut Tx, id: i64, instance_id: i64) -> Result<AuditEntry> {
    let instance = find_instance(tx, id, instance_id).await?;
    let organisation_id = tx.organisation_id();
    let application = applications::store::load(tx, organisation_id, id).await?;
    let name = format!("{} on {}", application.full_name, instance.host_name);
    Ok(AuditEntry::new(AuditList::Application, "update", "application", id, name))
}

/// An instance, found under its own application alone.
pub(crate) async fn find_instance(read: &mut Read, id: i64, instance_id: i64) -> Result<instances::store::InstanceRow> {
    let row = instances::store::load_many(read, id, &[instance_id]).await?.pop();
    row.ok_or_else(|| Error::not_found("instance"))
}

/// The variables that the targets of one task see.
#[derive(Debug, Default)]
pub struct TaskVariables {
    organisation: Option<Variables>,
    application: Option<Variables>,
    /// The environment of each host that is in one.
    members: BTreeMap<i64, i64>,
    environments: BTreeMap<i64, Variables>,
    hosts: BTreeMap<i64, Variables>,
    instances: BTreeMap<i64, Variables>,
}

impl TaskVariables {
    /// Reads those of an application with these hosts and instances, in a constant number of queries.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn read(
        read: &mut Read,
        application_id: i64,
        host_ids: Vec<i64>,
        instance_ids: Vec<i64>,
    ) -> Result<Self> {
        let organisation_id = store::organisation_of(read, application_id).await?;
        let members = environments::store::of_hosts(read, host_ids.clone()).await?;
        let environments: BTreeSet<i64> = members.values().copied().collect();
        let environments = environments.into_iter().collect();
        Ok(Self {
            members,
            environments: store::of_many(read, organisation_id, Scope::Environment, environments).await?,
            organisation: Some(store::of(read, organisation_id, Scope::Organisation, NONE).await?),
            application: Some(store::of(read, organisation_id, Scope::Application, application_id).await?),
            hosts: store::of_many(read, organisation_id, Scope::Host, host_ids).await?,
            instances: store::of_many(read, organisation_id, Scope::Instance, instance_ids).await?,
        })
    }

    /// What a script sees on a host, for an instance or for none.
    #[must_use]
    pub fn on(&self, host_id: i64, instance_id: Option<i64>) -> BTreeMap<String, Value> {
        let instance = instance_id.and_then(|id| self.instances.get(&id));
        let environment = self.members.get(&host_id).and_then(|id| self.environments.get(id));
        let (organisation, application) = (self.organisation.as_ref(), self.application.as_ref());
        rules::merged([organisation, application, environment, self.hosts.get(&host_id), instance])
    }
}
