//! Variables of organisation, application, environment, host and instance, which scripts see as `vars`.
//!
//! Owns the table `variables`. Invariants: what a script sees is the organisation's, then the application's, then the
//! environment's, then the host's, then the instance's, and of one name the last counts; who may change the object may change its variables.
//! They are no secrets: whoever may see the object sees them.

pub(crate) mod rules;
pub(crate) mod store;

use std::collections::{BTreeMap, BTreeSet};

use drover_kernel::db::Read;
use drover_kernel::{Audit, AuditEntry, Error, Reply, Result, Routes, Tx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::instances::states::{self, Changed};
use crate::scope::{self, Kept, NONE, Scope};
use crate::{changes, environments};
use rules::Variables;

pub(crate) fn routes() -> Routes {
    let application = "/applications/{id}/variables/";
    let environment = "/environments/{id}/variables/";
    let host = "/hosts/{id}/variables/";
    let instance = "/applications/{id}/instances/{instance_id}/variables/";
    Routes::tagged("variables")
        .get(
            "/variables/",
            "variables-read",
            "Read the variables of the organisation.",
            scope::of_organisation::<VariablesOf>,
        )
        .patch(
            "/variables/",
            "variables-update",
            "Change variables of the organisation.",
            scope::change_organisation::<VariablesOf>,
        )
        .get(
            application,
            "application-variables-read",
            "Read an application's variables.",
            scope::of_application::<VariablesOf>,
        )
        .patch(
            application,
            "application-variables-update",
            "Change an application's variables.",
            scope::change_application::<VariablesOf>,
        )
        .get(
            environment,
            "environment-variables-read",
            "Read an environment's variables.",
            scope::of_environment::<VariablesOf>,
        )
        .patch(
            environment,
            "environment-variables-update",
            "Change an environment's variables.",
            scope::change_environment::<VariablesOf>,
        )
        .get(host, "host-variables-read", "Read a host's variables.", scope::of_host::<VariablesOf>)
        .patch(host, "host-variables-update", "Change a host's variables.", scope::change_host::<VariablesOf>)
        .get(instance, "instance-variables-read", "Read an instance's variables.", scope::of_instance::<VariablesOf>)
        .patch(
            instance,
            "instance-variables-update",
            "Change an instance's variables.",
            scope::change_instance::<VariablesOf>,
        )
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

/// What an object has of them.
struct VariablesOf;

impl Kept for VariablesOf {
    const NOUN: &'static str = "variables";
    type Shown = VariablesOut;
    type Change = VariablesBody;

    async fn read(read: &mut Read, organisation_id: i64, (scope, id): (Scope, i64)) -> Result<Reply<VariablesOut>> {
        Ok(Reply::new(VariablesOut { variables: store::of(read, organisation_id, scope, id).await? }))
    }

    async fn change(
        mut tx: Tx,
        (scope, id): (Scope, i64),
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

    /// Reads those of hosts that are no application's here.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn of_hosts(read: &mut Read, organisation_id: i64, host_ids: Vec<i64>) -> Result<Self> {
        let members = environments::store::of_hosts(read, host_ids.clone()).await?;
        let environments: BTreeSet<i64> = members.values().copied().collect();
        let environments = environments.into_iter().collect();
        Ok(Self {
            members,
            environments: store::of_many(read, organisation_id, Scope::Environment, environments).await?,
            organisation: Some(store::of(read, organisation_id, Scope::Organisation, NONE).await?),
            application: None,
            hosts: store::of_many(read, organisation_id, Scope::Host, host_ids).await?,
            instances: BTreeMap::new(),
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
