//! Which hosts a script runs on.
//!
//! Invariant: every host that is meant is one on which the caller may log in, or nothing is made at all: a selection never
//! means fewer hosts than it says.

use std::collections::HashMap;
use std::fmt;

use drover_identity::rights_on_many;
use drover_kernel::call::Caller;
use drover_kernel::db::Read;
use drover_kernel::fields::{Id, Many, Name};
use drover_kernel::{Error, Result, args, row, sql};
use schemars::JsonSchema;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

/// Hosts of one task.
const HOSTS_MAX: usize = 10_000;
/// Hosts that a message names.
const NAMED_MAX: usize = 20;

/// Something by its id or its name: a number or `{"id": 7}`, or a text that is not only digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ScriptRef {
    Id(i64),
    Name(String),
}

impl Serialize for ScriptRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Id(id) => serializer.serialize_i64(*id),
            Self::Name(name) => serializer.serialize_str(name),
        }
    }
}

impl fmt::Display for ScriptRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(formatter),
            Self::Name(name) => name.fmt(formatter),
        }
    }
}

/// The same for hosts.
pub(crate) type HostRef = ScriptRef;

impl<'de> Deserialize<'de> for ScriptRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let value = match value {
            serde_json::Value::Object(mut members) => members.remove("id").unwrap_or_default(),
            other => other,
        };
        let wrong = || de::Error::custom("must be an id or a name");
        match &value {
            serde_json::Value::Number(_) => Id::deserialize(value).map(|id| Self::Id(id.0)).map_err(|_| wrong()),
            serde_json::Value::String(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map(Self::Id).map_err(|_| wrong())
            }
            serde_json::Value::String(_) => match Name::deserialize(value).map(Name::non_empty) {
                Ok(Some(name)) => Ok(Self::Name(name)),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

impl JsonSchema for ScriptRef {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IdOrName".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "object", "properties": {"id": {"type": "integer"}}}]
        })
    }
}

/// What says where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ScheduledHosts")]
pub(crate) enum Wanted {
    /// These hosts, each by id or name.
    Hosts(Vec<HostRef>),
    /// The hosts of an application's instances.
    Application(ScriptRef),
    /// The hosts that have a label.
    Label(String),
}

impl Wanted {
    /// The one that is given.
    ///
    /// # Errors
    /// An invalid field when there is none, or more than one.
    pub(crate) fn of(
        hosts: Option<Many<HostRef>>,
        application: Option<ScriptRef>,
        label: Option<Name>,
    ) -> Result<Self> {
        match (hosts, application, label.and_then(Name::non_empty)) {
            (Some(Many(hosts)), None, None) if !hosts.is_empty() => Ok(Self::Hosts(hosts)),
            (None, Some(application), None) => Ok(Self::Application(application)),
            (None, None, Some(label)) => Ok(Self::Label(label)),
            _ => Err(Error::invalid("hosts", "give hosts, or an application, or a label: exactly one of them")),
        }
    }

    /// The field that says where, and why that is nowhere when it is.
    pub(super) fn nothing(&self) -> (&'static str, String) {
        match self {
            Self::Hosts(_) => ("hosts", "give at least one".to_owned()),
            Self::Application(application) => {
                ("application", format!("the application {application} has no instances"))
            }
            Self::Label(label) => ("label", format!("no host has the label {label}")),
        }
    }
}

row! {
    /// A host that a script runs on.
    pub struct HostRow {
        pub id: i64,
        pub name: String,
        pub host_type: String,
        pub os_type: String,
        pub location: String,
        pub environment: Option<String>,
    }
}

/// The hosts that are meant, by name; those that are named in the order in which they are. An application or a label may
/// mean none.
///
/// # Errors
/// Not found for a host or an application that the caller may not see, an invalid field when too much is meant, forbidden
/// when the caller may not log in on one of them.
pub(super) async fn find(read: &mut Read, caller: &Caller, wanted: &Wanted) -> Result<Vec<HostRow>> {
    let found = match wanted {
        Wanted::Hosts(hosts) => named(read, caller, hosts).await?,
        Wanted::Application(application) => of_application(read, caller, application).await?,
        Wanted::Label(label) => {
            let sql = sql!(
                "SELECT h.id, h.name, h.host_type, h.os_type, h.location, v.name AS environment FROM hosts h \
                 LEFT JOIN environments v ON v.id = h.environment_id WHERE h.organisation_id = $1 AND h.id IN \
                 (SELECT l.host_id FROM host_labels l WHERE l.organisation_id = $1 AND l.label = $2) \
                 ORDER BY h.name, h.id LIMIT 10001"
            );
            read.all(sql, args![caller.organisation_id, label.as_str()]).await?
        }
    };
    if found.len() > HOSTS_MAX {
        return Err(Error::invalid(wanted.nothing().0, format!("{HOSTS_MAX} hosts at most")));
    }
    check_rights(read, caller, &found).await?;
    Ok(found)
}

async fn named(read: &mut Read, caller: &Caller, hosts: &[HostRef]) -> Result<Vec<HostRow>> {
    let ids: Vec<i64> =
        hosts.iter().filter_map(|host| if let HostRef::Id(id) = host { Some(*id) } else { None }).collect();
    let names: Vec<String> = hosts
        .iter()
        .filter_map(|host| if let HostRef::Name(name) = host { Some(name.clone()) } else { None })
        .collect();
    let sql = sql!(
        "SELECT h.id, h.name, h.host_type, h.os_type, h.location, v.name AS environment FROM hosts h \
         LEFT JOIN environments v ON v.id = h.environment_id WHERE h.organisation_id = $1 \
         AND (h.id IN ($2) OR h.name IN ($3))"
    );
    let mut rows: Vec<HostRow> = read.all(sql, args![caller.organisation_id, ids, names]).await?;
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let rights = rights_on_many(read, caller, "host", &ids).await?;
    rows.retain(|row| rights.get(&row.id).is_some_and(|rights| !rights.is_empty()));
    let mut places: HashMap<HostRef, usize> = HashMap::with_capacity(2 * rows.len());
    for (at, row) in rows.iter().enumerate() {
        places.insert(HostRef::Id(row.id), at);
        places.insert(HostRef::Name(row.name.clone()), at);
    }
    let mut order = vec![usize::MAX; rows.len()];
    for (position, host) in hosts.iter().enumerate() {
        let Some(at) = places.get(host) else {
            return Err(Error::NotFound(format!("there is no host `{host}`")));
        };
        order[*at] = order[*at].min(position);
    }
    let mut rows: Vec<(usize, HostRow)> = order.into_iter().zip(rows).collect();
    rows.sort_by_key(|(position, _)| *position);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

async fn of_application(read: &mut Read, caller: &Caller, wanted: &ScriptRef) -> Result<Vec<HostRow>> {
    let (id, name) = match wanted {
        ScriptRef::Id(id) => (*id, None),
        ScriptRef::Name(name) => (0, Some(name.as_str())),
    };
    let sql = sql!(
        "SELECT id FROM applications WHERE organisation_id = $1 AND (id = $2 OR full_name = CAST($3 AS TEXT)) LIMIT 1"
    );
    let ids: Vec<i64> = read.values(sql, args![caller.organisation_id, id, name]).await?;
    let rights = rights_on_many(read, caller, "application", &ids).await?;
    let visible = ids.first().filter(|id| rights.get(id).is_some_and(|rights| !rights.is_empty()));
    let id = *visible.ok_or_else(|| Error::NotFound(format!("there is no application `{wanted}`")))?;
    let sql = sql!(
        "SELECT h.id, h.name, h.host_type, h.os_type, h.location, v.name AS environment FROM hosts h \
         LEFT JOIN environments v ON v.id = h.environment_id WHERE h.organisation_id = $1 AND h.id IN \
         (SELECT i.host_id FROM instances i WHERE i.application_id = $2) ORDER BY h.name, h.id LIMIT 10001"
    );
    Ok(read.all(sql, args![caller.organisation_id, id]).await?)
}

/// Refuses hosts on which the caller may not log in.
async fn check_rights(read: &mut Read, caller: &Caller, hosts: &[HostRow]) -> Result<()> {
    let ids: Vec<i64> = hosts.iter().map(|host| host.id).collect();
    let rights = rights_on_many(read, caller, "host", &ids).await?;
    let of = |host: &&HostRow| rights.get(&host.id);
    let closed: Vec<&HostRow> =
        hosts.iter().filter(|host| !of(host).is_some_and(|rights| rights.contains("login_host"))).collect();
    if closed.is_empty() {
        return Ok(());
    }
    let seen = closed.iter().filter(|host| of(host).is_some_and(|rights| !rights.is_empty()));
    let names: Vec<&str> = seen.map(|host| host.name.as_str()).take(NAMED_MAX).collect();
    let more = closed.len() - names.len();
    let missing = match (names.join(", "), more) {
        (names, 0) => names,
        (names, more) if names.is_empty() => format!("{more} of them"),
        (names, more) => format!("{names} and {more} more"),
    };
    Err(Error::Forbidden(format!("this needs the right login_host on each host; it is missing on {missing}")))
}
