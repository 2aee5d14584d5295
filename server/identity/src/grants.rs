//! Rights of users and roles on single applications and hosts.
//!
//! Owns the table of rights on resources. Invariants: a call names only defined rights, or changes nothing; each right
//! that really changed leaves one audit entry; rights are stored under one name.

use std::collections::{BTreeMap, BTreeSet};

use drover_kernel::call::Administrator;
use drover_kernel::db::{OnDuplicate as _, Read};
use drover_kernel::fields::{Flag, Id, Many, Reference};
use drover_kernel::{Audit, AuditEntry, AuditList, Call, Error, Message, Reply, Result, Tx, api_words, args, row, sql};
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{rights, roles, users};

api_words! {
    /// Who holds a right.
    pub(crate) enum Subject {
        /// A user.
        User = "user",
        /// A role.
        Role = "role",
    }
}

api_words! {
    /// What a right is on.
    pub(crate) enum Kind {
        /// An application.
        Application = "application",
        /// A host.
        Host = "host",
    }
}

/// Rights by name: true grants, false withdraws, absent leaves as it is.
pub(crate) type Flags = BTreeMap<String, Option<Flag>>;

/// A right that is not defined.
pub(crate) fn undefined(field: String, right: &str) -> Error {
    let right: String = right.chars().take(64).collect();
    let message = format!("{field}: the right {right} is not defined here");
    Error::Coded { status: 400, code: 30001, message, field: Some(field) }
}

/// Name of a user or role of the organisation.
///
/// # Errors
/// Not found.
pub(crate) async fn subject_name(read: &mut Read, organisation_id: i64, subject: Subject, id: i64) -> Result<String> {
    Ok(match subject {
        Subject::User => users::load(read, organisation_id, id).await?.username,
        Subject::Role => roles::load(read, organisation_id, id).await?.name,
    })
}

row! {
    struct Named {
        id: i64,
        name: String,
    }
}

type Names = BTreeMap<i64, String>;

async fn subject_names(read: &mut Read, organisation_id: i64, subject: Subject, ids: Vec<i64>) -> Result<Names> {
    let sql = match subject {
        Subject::User => sql!("SELECT id, username AS name FROM users WHERE organisation_id = $1 AND id IN ($2)"),
        Subject::Role => sql!("SELECT id, name FROM roles WHERE organisation_id = $1 AND id IN ($2)"),
    };
    let found: Vec<Named> = read.all(sql, args![organisation_id, ids]).await?;
    Ok(found.into_iter().map(|named| (named.id, named.name)).collect())
}

async fn resource_names(read: &mut Read, organisation_id: i64, kind: Kind, ids: Vec<i64>) -> Result<Names> {
    let sql = match kind {
        Kind::Application => {
            sql!("SELECT id, full_name AS name FROM applications WHERE organisation_id = $1 AND id IN ($2)")
        }
        Kind::Host => sql!("SELECT id, name FROM hosts WHERE organisation_id = $1 AND id IN ($2)"),
    };
    let found: Vec<Named> = read.all(sql, args![organisation_id, ids]).await?;
    Ok(found.into_iter().map(|named| (named.id, named.name)).collect())
}

/// Checks that there is such a resource.
///
/// # Errors
/// Not found.
pub(crate) async fn check_resource(read: &mut Read, organisation_id: i64, kind: Kind, id: i64) -> Result<()> {
    let found = resource_names(read, organisation_id, kind, vec![id]).await?;
    if found.is_empty() { Err(Error::not_found(kind.as_str())) } else { Ok(()) }
}

row! {
    struct Held {
        subject_id: i64,
        resource_id: i64,
        right_name: String,
    }
}

async fn held(
    read: &mut Read,
    subject: Subject,
    subject_ids: Vec<i64>,
    kind: Kind,
    resource_ids: Vec<i64>,
) -> Result<Vec<Held>> {
    let sql = sql!(
        "SELECT subject_id, resource_id, right_name FROM resource_rights \
         WHERE subject_type = $1 AND subject_id IN ($2) AND resource_type = $3 AND resource_id IN ($4)"
    );
    Ok(read.all(sql, args![subject, subject_ids, kind, resource_ids]).await?)
}

/// Direct rights for answers: for each pair of subject and resource every right there is, held or not.
pub(crate) struct HeldFlags {
    kind: Kind,
    held: BTreeSet<(i64, i64, String)>,
}

impl HeldFlags {
    /// Reads them for all pairs at once.
    pub(crate) async fn read(
        read: &mut Read,
        subject: Subject,
        subject_ids: Vec<i64>,
        kind: Kind,
        resource_ids: Vec<i64>,
    ) -> Result<Self> {
        let rows = held(read, subject, subject_ids, kind, resource_ids).await?;
        Ok(Self { kind, held: rows.into_iter().map(|row| (row.subject_id, row.resource_id, row.right_name)).collect() })
    }

    /// Those of one pair.
    pub(crate) fn of(&self, subject_id: i64, resource_id: i64) -> BTreeMap<String, bool> {
        rights::every(self.kind.as_str())
            .into_iter()
            .map(|right| {
                let cell = (subject_id, resource_id, right);
                let holds = self.held.contains(&cell);
                (cell.2, holds)
            })
            .collect()
    }
}

/// What shall be: by subject, resource and right.
#[derive(Default)]
struct Wanted(BTreeMap<(i64, i64, &'static str), bool>);

impl Wanted {
    fn flags(&mut self, subject_id: i64, resource_id: i64, kind: Kind, flags: &Flags, field: &str) -> Result<()> {
        for (spelling, flag) in flags {
            let right = rights::find(kind.as_str(), spelling)
                .ok_or_else(|| undefined(format!("{field}.{spelling}"), spelling))?;
            if let Some(Flag(flag)) = flag {
                self.0.insert((subject_id, resource_id, right), *flag);
            }
        }
        Ok(())
    }

    fn all(&mut self, subject_id: i64, resource_id: i64, kind: Kind, flag: bool) {
        for right in rights::of_kind(kind.as_str()).unwrap_or_default() {
            self.0.insert((subject_id, resource_id, right.name), flag);
        }
    }
}

/// Writes what differs from what is, and gives its audit entries. One side has a single id, so that pairs of ids need
/// no statement of their own.
async fn apply(
    tx: &mut Tx,
    (subject, subjects): (Subject, &Names),
    (kind, resources): (Kind, &Names),
    wanted: Wanted,
) -> Result<Vec<AuditEntry>> {
    let (subject_ids, resource_ids): (Vec<i64>, Vec<i64>) =
        (subjects.keys().copied().collect(), resources.keys().copied().collect());
    let held = held(tx, subject, subject_ids, kind, resource_ids).await?;
    let held: BTreeSet<(i64, i64, &str)> =
        held.iter().map(|row| (row.subject_id, row.resource_id, row.right_name.as_str())).collect();
    let organisation_id = tx.organisation_id();
    let (mut entries, mut grants) = (Vec::new(), Vec::new());
    let mut withdrawn: BTreeMap<&str, (BTreeSet<i64>, BTreeSet<i64>)> = BTreeMap::new();
    for ((subject_id, resource_id, right), flag) in &wanted.0 {
        if held.contains(&(*subject_id, *resource_id, *right)) == *flag {
            continue;
        }
        if *flag {
            grants.push(args![organisation_id, subject, *subject_id, kind, *resource_id, *right]);
        } else {
            let (subjects, resources) = withdrawn.entry(right).or_default();
            subjects.insert(*subject_id);
            resources.insert(*resource_id);
        }
        let (resource_name, subject_name) = (&resources[resource_id], &subjects[subject_id]);
        let action = if *flag { "enable" } else { "disable" };
        entries.push(
            AuditEntry::new(AuditList::ResourceRight, action, kind.as_str(), *resource_id, resource_name.as_str())
                .right(right, subject.as_str(), subject_name),
        );
    }
    let sql = sql!(
        "INSERT INTO resource_rights (organisation_id, subject_type, subject_id, resource_type, resource_id, \
         right_name) VALUES ($1, $2, $3, $4, $5, $6)"
    );
    tx.insert_many(sql, grants).await.on_duplicate(|| Error::conflict("the rights were changed at the same time"))?;
    for (right, (subject_ids, resource_ids)) in withdrawn {
        let sql = sql!(
            "DELETE FROM resource_rights WHERE organisation_id = $1 AND subject_type = $2 AND subject_id IN ($3) \
             AND resource_type = $4 AND resource_id IN ($5) AND right_name = $6"
        );
        let (subject_ids, resource_ids): (Vec<i64>, Vec<i64>) =
            (subject_ids.into_iter().collect(), resource_ids.into_iter().collect());
        tx.run(sql, args![organisation_id, subject, subject_ids, kind, resource_ids, right]).await?;
    }
    Ok(entries)
}

/// Body of the calls under a user or role.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Authorizations {
    /// One element for each resource.
    authorizations: Many<Authorization>,
}

#[derive(Deserialize, JsonSchema)]
struct Authorization {
    /// Id of the application or host.
    id: Id,
    /// true grants, false withdraws, absent leaves as it is.
    #[serde(default, alias = "permissions")]
    permission: Flags,
}

/// Sets rights of one user or role on several resources.
pub(crate) async fn set_of_subject(
    call: Call<Administrator>,
    subject: Subject,
    subject_id: i64,
    kind: Kind,
    body: Authorizations,
) -> Result<Reply<Message>> {
    let elements = body.authorizations.0;
    let mut wanted = Wanted::default();
    for (index, element) in elements.iter().enumerate() {
        let field = format!("authorizations[{index}].permission");
        wanted.flags(subject_id, element.id.0, kind, &element.permission, &field)?;
    }
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let name = subject_name(&mut tx, organisation_id, subject, subject_id).await?;
    let ids = elements.iter().map(|element| element.id.0).collect();
    let resources = resource_names(&mut tx, organisation_id, kind, ids).await?;
    if let Some(index) = elements.iter().position(|element| !resources.contains_key(&element.id.0)) {
        return Err(Error::invalid(format!("authorizations[{index}].id"), format!("there is no such {kind}")));
    }
    let subjects = BTreeMap::from([(subject_id, name)]);
    let entries = apply(&mut tx, (subject, &subjects), (kind, &resources), wanted).await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

api_words! {
    /// What a change of a resource's own list does to one subject.
    pub(crate) enum AuthorizationAction {
        /// Applies the rights that are sent.
        Update = "update",
        /// Removes all rights.
        Delete = "delete",
    }
}

/// One element of a change to the users of a resource.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct UserAuthorization {
    /// Whose rights.
    user: Reference,
    /// true grants, false withdraws, absent leaves as it is.
    #[serde(default, alias = "permissions")]
    permission: Flags,
    /// `update` applies `permission`, `delete` removes all rights.
    action: Option<AuthorizationAction>,
}

/// One element of a change to the roles of a resource.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct RoleAuthorization {
    /// Whose rights.
    role: Reference,
    /// true grants, false withdraws, absent leaves as it is.
    #[serde(default, alias = "permissions")]
    permission: Flags,
    /// `update` applies `permission`, `delete` removes all rights.
    action: Option<AuthorizationAction>,
}

/// An element of either form.
pub(crate) struct SubjectChange {
    id: i64,
    permission: Flags,
    delete: bool,
}

impl From<UserAuthorization> for SubjectChange {
    fn from(element: UserAuthorization) -> Self {
        let delete = element.action == Some(AuthorizationAction::Delete);
        Self { id: element.user.id.0, permission: element.permission, delete }
    }
}

impl From<RoleAuthorization> for SubjectChange {
    fn from(element: RoleAuthorization) -> Self {
        let delete = element.action == Some(AuthorizationAction::Delete);
        Self { id: element.role.id.0, permission: element.permission, delete }
    }
}

/// Sets rights of several users or roles on one resource.
pub(crate) async fn set_on_resource(
    call: Call<Administrator>,
    kind: Kind,
    resource_id: i64,
    subject: Subject,
    elements: Many<impl Into<SubjectChange>>,
) -> Result<Reply<Message>> {
    let elements: Vec<SubjectChange> = elements.0.into_iter().map(Into::into).collect();
    let mut wanted = Wanted::default();
    for (index, change) in elements.iter().enumerate() {
        wanted.flags(change.id, resource_id, kind, &change.permission, &format!("[{index}].permission"))?;
        if change.delete {
            wanted.all(change.id, resource_id, kind, false);
        }
    }
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let resources = resource_names(&mut tx, organisation_id, kind, vec![resource_id]).await?;
    if resources.is_empty() {
        return Err(Error::not_found(kind.as_str()));
    }
    let ids = elements.iter().map(|change| change.id).collect();
    let subjects = subject_names(&mut tx, organisation_id, subject, ids).await?;
    if let Some(index) = elements.iter().position(|change| !subjects.contains_key(&change.id)) {
        return Err(Error::invalid(format!("[{index}].{subject}.id"), format!("there is no such {subject}")));
    }
    let entries = apply(&mut tx, (subject, &subjects), (kind, &resources), wanted).await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

fn parse_kind(kind: &str) -> Result<Kind> {
    Kind::parse(kind).map_err(Error::internal)
}

/// Gives a user every right on one `application` or `host`: what its creator gets. Returns the audit entries, which go
/// into the audit of the same transaction.
///
/// # Errors
/// Not found when there is no such user; a fault when there is no such resource or kind.
pub async fn grant_all(tx: &mut Tx, user_id: i64, kind: &str, id: i64) -> Result<Vec<AuditEntry>> {
    let kind = parse_kind(kind)?;
    let organisation_id = tx.organisation_id();
    let name = subject_name(tx, organisation_id, Subject::User, user_id).await?;
    let resources = resource_names(tx, organisation_id, kind, vec![id]).await?;
    if resources.is_empty() {
        return Err(Error::internal(format!("rights on the {kind} {id}, which does not exist")));
    }
    let mut wanted = Wanted::default();
    wanted.all(user_id, id, kind, true);
    apply(tx, (Subject::User, &BTreeMap::from([(user_id, name)])), (kind, &resources), wanted).await
}

/// Removes every right on an `application` or `host` that is deleted in the same transaction; its own audit entry says
/// enough.
///
/// # Errors
/// When the database is not available.
pub async fn forget_resource(tx: &mut Tx, kind: &str, id: i64) -> Result<()> {
    let kind = parse_kind(kind)?;
    let sql =
        sql!("DELETE FROM resource_rights WHERE organisation_id = $1 AND resource_type = $2 AND resource_id = $3");
    let organisation_id = tx.organisation_id();
    tx.run(sql, args![organisation_id, kind, id]).await?;
    Ok(())
}
