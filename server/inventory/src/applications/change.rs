//! What a caller may say of an application, and how its links come to be as said.

use drover_identity::visible_applications;
use drover_kernel::call::Caller;
use drover_kernel::db::Condition;
use drover_kernel::fields::{Id, Line, Many, Name, Patch, Prose, Reference};
use drover_kernel::{AuditEntry, Error, Result, Tx};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::output::{self, NOT_AUDITED, whole};
use super::rules::{self, Capacity};
use super::store::{self, ApplicationRow, Details};
use super::{entry, tree};
use crate::changes;

/// An application's properties. When one is made, `name` is required; a change keeps what is left out.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ApplicationProperties")]
pub(super) struct ApplicationBody {
    /// Name of the node, unique among siblings, without dots.
    name: Option<Name>,
    /// Free text.
    description: Option<Prose>,
    /// Kind of application.
    application_type: Option<Name>,
    /// System account.
    #[serde(alias = "run_users")]
    run_user: Option<Name>,
    /// Deployment directory.
    directory: Option<Line>,
    /// Start command.
    startup_cmd: Option<Line>,
    /// Stop command.
    stop_cmd: Option<Line>,
    /// Standard output file.
    stdout_path: Option<Line>,
    /// Error output file.
    stderr_path: Option<Line>,
    /// Pid file.
    pid_path: Option<Line>,
    /// Parent id; null or 0 for none.
    #[serde(default)]
    parent_app: Patch<Id>,
    /// Id of the production line; null or 0 for none.
    #[serde(default)]
    production: Patch<Id>,
    /// Ids of the children; replaces the set.
    child_apps: Option<Many<Reference>>,
    /// Ids depended on; replaces the set.
    required_apps: Option<Many<Reference>>,
    /// Ids of responsible persons; replaces the set. One without a type keeps its own, or is a developer.
    #[serde(alias = "response_persons")]
    response_person: Option<Many<PersonReference>>,
}

/// A person: `{"id": 1, "type": "dev"}`, or the bare id.
#[derive(Debug, Clone, Copy)]
pub(super) struct PersonReference {
    pub(super) id: i64,
    pub(super) capacity: Option<Capacity>,
}

impl<'de> Deserialize<'de> for PersonReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Object {
            id: Id,
            #[serde(rename = "type")]
            capacity: Option<Capacity>,
        }
        match serde_json::Value::deserialize(deserializer)? {
            object @ serde_json::Value::Object(_) => {
                let Object { id, capacity } = Object::deserialize(object).map_err(de::Error::custom)?;
                Ok(Self { id: id.0, capacity })
            }
            bare => Id::deserialize(bare).map(|id| Self { id: id.0, capacity: None }).map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for PersonReference {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PersonReference".into()
    }
    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        let capacity = schemas.subschema_for::<Capacity>();
        json_schema!({
            "type": "object",
            "properties": {"id": {"type": "integer"}, "type": capacity},
            "required": ["id"],
        })
    }
}

/// A body that was checked as far as it can be without the database.
pub(super) struct Change {
    pub(super) name: Option<String>,
    /// The parent; `Null` for none.
    pub(super) parent: Patch<i64>,
    texts: Texts,
    children: Option<Vec<i64>>,
    required: Option<Vec<i64>>,
    persons: Option<Vec<PersonReference>>,
}

struct Texts {
    description: Option<String>,
    application_type: Option<String>,
    run_user: Option<String>,
    directory: Option<String>,
    startup_cmd: Option<String>,
    stop_cmd: Option<String>,
    stdout_path: Option<String>,
    stderr_path: Option<String>,
    pid_path: Option<String>,
}

/// The ids in order, each once.
fn set(references: Many<Reference>) -> Vec<i64> {
    let mut ids: Vec<i64> = references.0.into_iter().map(|reference| reference.id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// An id of which 0 means none.
fn nullable(id: Patch<Id>) -> Patch<i64> {
    match id {
        Patch::Absent => Patch::Absent,
        Patch::Null | Patch::Value(Id(0)) => Patch::Null,
        Patch::Value(Id(id)) => Patch::Value(id),
    }
}

impl ApplicationBody {
    pub(super) fn checked(self) -> Result<Change> {
        let name = self.name.map(|name| name.0);
        if let Some(name) = &name {
            rules::check_name(name)?;
        }
        if let Some(run_user) = &self.run_user {
            rules::check_account("run_user", &run_user.0)?;
        }
        if let Patch::Value(production) = nullable(self.production) {
            return Err(Error::invalid("production", format!("there is no production {production}")));
        }
        let persons = self.response_person.map(|persons| persons.0);
        if let Some(persons) = &persons {
            each_once(persons, "response_person")?;
        }
        let line = |text: Option<Line>| text.map(|text| text.0);
        Ok(Change {
            name,
            parent: nullable(self.parent_app),
            texts: Texts {
                description: self.description.map(|text| text.0),
                application_type: self.application_type.map(|text| text.0),
                run_user: self.run_user.map(|text| text.0),
                directory: line(self.directory),
                startup_cmd: line(self.startup_cmd),
                stop_cmd: line(self.stop_cmd),
                stdout_path: line(self.stdout_path),
                stderr_path: line(self.stderr_path),
                pid_path: line(self.pid_path),
            },
            children: self.child_apps.map(set),
            required: self.required_apps.map(set),
            persons,
        })
    }
}

/// Refuses a person who is named twice.
pub(super) fn each_once(persons: &[PersonReference], field: &str) -> Result<()> {
    let mut ids: Vec<i64> = persons.iter().map(|person| person.id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::invalid(field, format!("names the user {} twice", pair[0]))),
        None => Ok(()),
    }
}

impl Change {
    pub(super) fn touches_tree(&self) -> bool {
        self.name.is_some() || !self.parent.is_absent() || self.children.is_some()
    }

    /// The details after the change; a new application's when there is none before.
    pub(super) fn details(&self, before: Option<&ApplicationRow>) -> Details {
        let text = |said: &Option<String>, present: fn(&ApplicationRow) -> &String| {
            said.clone().or_else(|| before.map(|row| present(row).clone())).unwrap_or_default()
        };
        Details {
            description: text(&self.texts.description, |row| &row.description),
            application_type: text(&self.texts.application_type, |row| &row.application_type),
            run_user: text(&self.texts.run_user, |row| &row.run_user),
            directory: text(&self.texts.directory, |row| &row.directory),
            startup_cmd: text(&self.texts.startup_cmd, |row| &row.startup_cmd),
            stop_cmd: text(&self.texts.stop_cmd, |row| &row.stop_cmd),
            stdout_path: text(&self.texts.stdout_path, |row| &row.stdout_path),
            stderr_path: text(&self.texts.stderr_path, |row| &row.stderr_path),
            pid_path: text(&self.texts.pid_path, |row| &row.pid_path),
        }
    }
}

/// Makes children, dependencies and persons what the change says; gives the audit of the children that moved.
pub(super) async fn set_links(tx: &mut Tx, caller: &Caller, id: i64, change: &Change) -> Result<Vec<AuditEntry>> {
    let mut entries = Vec::new();
    let visible: Vec<Condition> = visible_applications(caller).into_iter().collect();
    if let Some(wanted) = &change.children {
        let present = linked(store::children(tx, &[id], &[]).await?);
        // A list says nothing about what its writer may not see: that stays.
        let seen = linked(store::children(tx, &[id], &visible).await?);
        let released = seen.iter().filter(|child| !wanted.contains(child)).map(|child| (*child, None));
        let taken: Vec<i64> = wanted.iter().copied().filter(|child| !present.contains(child)).collect();
        output::require_right(tx, caller, &taken, "edit_app", "child_apps").await?;
        let moves: Vec<_> = released.chain(taken.into_iter().map(|child| (child, Some(id)))).collect();
        entries = hang(tx, caller, &moves, "child_apps").await?;
    }
    if let Some(wanted) = &change.required {
        let present = linked(store::required(tx, &[id], &[]).await?);
        let seen = linked(store::required(tx, &[id], &visible).await?);
        let dropped: Vec<i64> = seen.iter().copied().filter(|required| !wanted.contains(required)).collect();
        let new: Vec<i64> = wanted.iter().copied().filter(|required| !present.contains(required)).collect();
        require(tx, caller, id, &new, "required_apps").await?;
        store::release(tx, id, &dropped).await?;
    }
    if let Some(wanted) = &change.persons {
        let present = linked(store::responsible(tx, &[id]).await?);
        let left: Vec<i64> =
            present.into_iter().filter(|user| wanted.iter().all(|person| person.id != *user)).collect();
        appoint(tx, id, wanted, "response_person").await?;
        store::dismiss(tx, id, &left).await?;
    }
    Ok(entries)
}

fn linked(links: Vec<store::LinkRow>) -> Vec<i64> {
    links.into_iter().map(|link| link.linked_id).collect()
}

/// Hangs applications below new parents, in order; gives their audit. The tree must be held.
pub(super) async fn hang(
    tx: &mut Tx,
    caller: &Caller,
    moves: &[(i64, Option<i64>)],
    field: &str,
) -> Result<Vec<AuditEntry>> {
    let mut entries = Vec::with_capacity(moves.len());
    for (id, parent_id) in moves {
        let before = whole(tx, caller, *id).await?;
        tree::place(tx, *id, &before.name, *parent_id, field).await?;
        let after = whole(tx, caller, *id).await?;
        let detail = changes::between(&before, &after, NOT_AUDITED);
        if !detail.is_empty() {
            entries.push(entry("update", &after, detail));
        }
    }
    Ok(entries)
}

/// Records dependencies on applications that the caller may see.
pub(super) async fn require(tx: &mut Tx, caller: &Caller, id: i64, required: &[i64], field: &str) -> Result<()> {
    if required.contains(&id) {
        return Err(Error::invalid(field, "an application cannot depend on itself"));
    }
    output::require_right(tx, caller, required, "view_app", field).await?;
    store::require(tx, id, required).await
}

/// Makes users of the organisation responsible; who has no type said keeps it, or is a developer.
pub(super) async fn appoint(tx: &mut Tx, id: i64, persons: &[PersonReference], field: &str) -> Result<()> {
    let ids: Vec<i64> = persons.iter().map(|person| person.id).collect();
    let organisation_id = tx.organisation_id();
    let known = store::known_users(tx, organisation_id, &ids).await?;
    if let Some(unknown) = ids.iter().find(|id| !known.contains(id)) {
        return Err(Error::invalid(field, format!("there is no user {unknown}")));
    }
    let present = store::find_persons(tx, id, &ids).await?;
    let capacity = |person: &PersonReference| {
        let kept = present.iter().find(|row| row.id == person.id).map(|row| row.capacity);
        (person.id, person.capacity.or(kept).unwrap_or(Capacity::Dev))
    };
    store::appoint(tx, id, &persons.iter().map(capacity).collect::<Vec<_>>()).await
}
