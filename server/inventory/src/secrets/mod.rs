//! Secrets by name, of an organisation, an application, an environment, a host or one instance, for hooks that need them.
//!
//! Owns the table `secrets`. Invariants: a value is stored sealed and never leaves over the API; each belongs to its
//! organisation, object and name, and opens for nothing else; who may change the object may change its own; of one name
//! the narrowest counts, as with variables.

mod store;

use std::collections::{BTreeMap, BTreeSet};

use drover_kernel::db::Read;
use drover_kernel::fields::{Masked, Secret};
use drover_kernel::{Audit, AuditEntry, Error, Reply, Result, Routes, Sealer, Tx};
use drover_shared::secret::{self, MASKED_BYTES_MIN, VALUE_BYTES_MAX};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::environments;
use crate::scope::{self, Kept, NONE, Scope};

/// Secrets of one object, or of the organisation itself.
pub const SECRETS_MAX: usize = 100;

pub(crate) fn routes() -> Routes {
    let application = "/applications/{id}/secrets/";
    let environment = "/environments/{id}/secrets/";
    let host = "/hosts/{id}/secrets/";
    let instance = "/applications/{id}/instances/{instance_id}/secrets/";
    Routes::tagged("variables")
        .get(
            "/secrets/",
            "secrets-list",
            "List the names of the organisation's secrets.",
            scope::of_organisation::<SecretsOf>,
        )
        .patch(
            "/secrets/",
            "secrets-update",
            "Set or remove secrets of the organisation.",
            scope::change_organisation::<SecretsOf>,
        )
        .get(
            application,
            "application-secrets-list",
            "List the names of an application's secrets.",
            scope::of_application::<SecretsOf>,
        )
        .patch(
            application,
            "application-secrets-update",
            "Set or remove an application's secrets.",
            scope::change_application::<SecretsOf>,
        )
        .get(
            environment,
            "environment-secrets-list",
            "List the names of an environment's secrets.",
            scope::of_environment::<SecretsOf>,
        )
        .patch(
            environment,
            "environment-secrets-update",
            "Set or remove an environment's secrets.",
            scope::change_environment::<SecretsOf>,
        )
        .get(host, "host-secrets-list", "List the names of a host's secrets.", scope::of_host::<SecretsOf>)
        .patch(host, "host-secrets-update", "Set or remove a host's secrets.", scope::change_host::<SecretsOf>)
        .get(
            instance,
            "instance-secrets-list",
            "List the names of an instance's secrets.",
            scope::of_instance::<SecretsOf>,
        )
        .patch(
            instance,
            "instance-secrets-update",
            "Set or remove an instance's secrets.",
            scope::change_instance::<SecretsOf>,
        )
}

/// Secrets without their values.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Secrets")]
struct SecretsOut {
    /// `******` for each name.
    secrets: BTreeMap<String, Masked>,
}

/// A change of secrets.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "SecretsChange")]
struct SecretsBody {
    /// Values by name, which is written in capitals; `******` keeps the present one, null removes it.
    secrets: BTreeMap<String, Option<Secret<VALUE_BYTES_MAX>>>,
}

fn shown(names: Vec<String>) -> SecretsOut {
    SecretsOut { secrets: names.into_iter().map(|name| (name, Masked(true))).collect() }
}

/// Refuses what no agent takes, or could not mask.
fn check(name: &str, value: &str) -> Result<(), String> {
    if !secret::is_name(name) {
        return Err("a name is a capital letter, then capital letters, digits and _, 64 at most".to_owned());
    }
    if value.contains('\0') {
        return Err("must not contain the character NUL".to_owned());
    }
    if value.len() < MASKED_BYTES_MIN {
        return Err(format!("must have at least {MASKED_BYTES_MIN} bytes: shorter ones cannot be masked in output"));
    }
    Ok(())
}

/// What a value belongs to.
fn about(organisation_id: i64, scope: Scope, id: i64, name: &str) -> String {
    match scope {
        // As it was before hosts and instances had secrets: what was sealed then still opens.
        Scope::Organisation | Scope::Application => format!("secrets/{organisation_id}/{id}/{name}"),
        Scope::Environment | Scope::Host | Scope::Instance => format!("secrets/{organisation_id}/{scope}/{id}/{name}"),
    }
}

/// What an object has of them.
struct SecretsOf;

impl Kept for SecretsOf {
    const NOUN: &'static str = "secrets";
    type Shown = SecretsOut;
    type Change = SecretsBody;

    async fn read(read: &mut Read, organisation_id: i64, (scope, id): (Scope, i64)) -> Result<Reply<SecretsOut>> {
        Ok(Reply::new(shown(store::names(read, organisation_id, scope, id).await?)))
    }

    async fn change(
        mut tx: Tx,
        (scope, id): (Scope, i64),
        body: SecretsBody,
        entry: AuditEntry,
    ) -> Result<Reply<SecretsOut>> {
        let organisation_id = tx.organisation_id();
        store::hold(&mut tx).await?;
        let before = store::names(&mut tx, organisation_id, scope, id).await?;
        let mut done = Vec::new();
        for (name, secret) in body.secrets {
            let field = || format!("secrets.{name}");
            let present = before.contains(&name);
            match secret {
                Some(Secret::Keep) if present => {}
                Some(Secret::Keep) => {
                    return Err(Error::invalid(field(), "there is no such secret that could be kept"));
                }
                None if present => {
                    store::remove(&mut tx, scope, id, &name).await?;
                    done.push(format!("{name} removed"));
                }
                None => {}
                Some(Secret::Set(value)) => {
                    check(&name, &value).map_err(|why| Error::invalid(field(), why))?;
                    let about = about(organisation_id, scope, id, &name);
                    let sealed = tx.kernel().sealer().seal(&about, value.as_bytes())?;
                    store::set(&mut tx, scope, id, &name, &sealed).await?;
                    done.push(format!("{name} {}", if present { "changed" } else { "set" }));
                }
            }
        }
        let names = store::names(&mut tx, organisation_id, scope, id).await?;
        if names.len() > SECRETS_MAX {
            return Err(Error::invalid("secrets", format!("there may be at most {SECRETS_MAX}")));
        }
        let audit = if done.is_empty() {
            Audit::none("the secrets stay as they are")
        } else {
            Audit::of(entry.detail(format!("secrets: {}", done.join(", "))))
        };
        tx.commit(audit, shown(names)).await
    }
}

/// Removes the secrets of objects that go.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn forget(tx: &mut Tx, scope: Scope, ids: &[i64]) -> Result<()> {
    store::forget(tx, scope, ids).await
}

/// Names of the secrets that the targets of one task may ask for.
#[derive(Debug, Default)]
pub struct TaskSecrets {
    /// The organisation's and the application's.
    wide: BTreeSet<String>,
    /// The environment of each host that is in one.
    members: BTreeMap<i64, i64>,
    environments: BTreeMap<i64, BTreeSet<String>>,
    hosts: BTreeMap<i64, BTreeSet<String>>,
    instances: BTreeMap<i64, BTreeSet<String>>,
}

impl TaskSecrets {
    /// Reads those of an application with these hosts and instances, in a constant number of queries.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn read(
        read: &mut Read,
        (organisation_id, application_id): (i64, i64),
        host_ids: Vec<i64>,
        instance_ids: Vec<i64>,
    ) -> Result<Self> {
        let members = environments::store::of_hosts(read, host_ids.clone()).await?;
        let environments: BTreeSet<i64> = members.values().copied().collect();
        let mut secrets = Self { members, ..Self::default() };
        for (scope, ids) in [
            (Scope::Organisation, vec![NONE]),
            (Scope::Application, vec![application_id]),
            (Scope::Environment, environments.into_iter().collect()),
            (Scope::Host, host_ids),
            (Scope::Instance, instance_ids),
        ] {
            for row in store::names_of_many(read, organisation_id, scope, ids).await? {
                let names = match scope {
                    Scope::Organisation | Scope::Application => &mut secrets.wide,
                    Scope::Environment => secrets.environments.entry(row.object_id).or_default(),
                    Scope::Host => secrets.hosts.entry(row.object_id).or_default(),
                    Scope::Instance => secrets.instances.entry(row.object_id).or_default(),
                };
                if secret::is_name(&row.name) {
                    names.insert(row.name);
                }
            }
        }
        Ok(secrets)
    }

    /// Those that every target may ask for.
    #[must_use]
    pub fn wide(&self) -> &BTreeSet<String> {
        &self.wide
    }

    /// Those that this host or instance has beyond that.
    #[must_use]
    pub fn narrow(&self, host_id: i64, instance_id: Option<i64>) -> BTreeSet<String> {
        let of_instance = instance_id.and_then(|id| self.instances.get(&id));
        let of_environment = self.members.get(&host_id).and_then(|id| self.environments.get(id));
        let narrow = [of_environment, self.hosts.get(&host_id), of_instance];
        narrow.into_iter().flatten().flatten().cloned().collect()
    }
}

/// Where an execution runs: what its secrets are looked up by.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Organisation.
    pub organisation_id: i64,
    /// Application.
    pub application_id: i64,
    /// Host.
    pub host_id: i64,
    /// The instance that is changed, unless the hook is a global one.
    pub instance_id: Option<i64>,
}

/// Opens the secrets that are named, as they count at a place: of one name the narrowest.
///
/// # Errors
/// Invalid, with the name as field, when there is no such secret; a fault when one cannot be opened.
pub async fn open(
    read: &mut Read,
    sealer: &Sealer,
    place: Place,
    names: &[String],
) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>> {
    let Place { organisation_id, application_id, host_id, instance_id } = place;
    let environment = environments::store::of_hosts(read, vec![host_id]).await?.remove(&host_id);
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut opened = BTreeMap::new();
    for (scope, id) in [
        (Scope::Instance, instance_id.unwrap_or(NONE)),
        (Scope::Host, host_id),
        (Scope::Environment, environment.unwrap_or(NONE)),
        (Scope::Application, application_id),
        (Scope::Organisation, NONE),
    ] {
        if wanted.is_empty() {
            break;
        }
        for row in store::sealed(read, organisation_id, scope, id, &wanted).await? {
            let about = about(organisation_id, scope, id, &row.name);
            opened.insert(row.name, sealer.open(&about, &row.sealed)?);
        }
        wanted.retain(|name| !opened.contains_key(*name));
    }
    match wanted.first() {
        Some(missing) => Err(Error::invalid(*missing, "there is no such secret")),
        None => Ok(opened),
    }
}
