//! Rights on single resources: under the user or role that holds them, and under the resource they are on.
//!
//! Owns what is the same for every kind of resource; [`Listed`] says what is not. Invariant: these lists show direct
//! rights alone; those through roles, modules and administrators are not in them.

use std::collections::BTreeMap;

use drover_kernel::call::{Administrator, SelfOrAdministrator};
use drover_kernel::db::{Condition, Read, Sql};
use drover_kernel::fields::Many;
use drover_kernel::{Body, Call, Message, Page, Paging, Path, Query, Reply, Result, args, row, sql};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::grants::{
    Authorizations, HeldFlags, Kind, RoleAuthorization, Subject, UserAuthorization, check_resource, set_of_subject,
    set_on_resource, subject_name,
};

/// A kind of resource in these lists.
pub(crate) trait Listed: Send + Sync + 'static {
    const KIND: Kind;
    /// How many resources of organisation $1 the subject of type $2 and id $3 holds rights on.
    const COUNT: Sql;
    /// Their ids and names.
    const ROWS: Sql;

    /// Query of a list under a user or role.
    type Filter: DeserializeOwned + JsonSchema + Send + 'static;
    /// A resource in a list under a user or role.
    type Entry: From<Grant> + Serialize + JsonSchema + Send + 'static;
    /// A user in a list under a resource.
    type UserEntry: From<Grant> + Serialize + JsonSchema + Send + 'static;
    /// A role in a list under a resource.
    type RoleEntry: From<Grant> + Serialize + JsonSchema + Send + 'static;

    /// What the query asks for.
    fn conditions(filter: Self::Filter) -> Vec<Condition>;
}

/// Direct rights of one pair, with the side of it that is listed.
pub(crate) struct Grant {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) permission: BTreeMap<String, bool>,
}

row! {
    struct Named {
        id: i64,
        name: String,
    }
}

pub(crate) async fn of_user<L: Listed>(
    call: Call<SelfOrAdministrator>,
    Path(id): Path<i64>,
    paging: Paging,
    Query(filter): Query<L::Filter>,
) -> Result<Reply<Page<L::Entry>>> {
    let mut read = call.read().await?;
    list_of::<L>(&mut read, call.organisation_id(), (Subject::User, id), &paging, filter).await
}

pub(crate) async fn of_role<L: Listed>(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    paging: Paging,
    Query(filter): Query<L::Filter>,
) -> Result<Reply<Page<L::Entry>>> {
    let mut read = call.read().await?;
    list_of::<L>(&mut read, call.organisation_id(), (Subject::Role, id), &paging, filter).await
}

async fn list_of<L: Listed>(
    read: &mut Read,
    organisation_id: i64,
    (subject, subject_id): (Subject, i64),
    paging: &Paging,
    filter: L::Filter,
) -> Result<Reply<Page<L::Entry>>> {
    subject_name(read, organisation_id, subject, subject_id).await?;
    let arguments = args![organisation_id, subject, subject_id];
    let (count, found) = paging.read::<Named>(read, L::COUNT, L::ROWS, arguments, &L::conditions(filter)).await?;
    let ids = found.iter().map(|resource| resource.id).collect();
    let flags = HeldFlags::read(read, subject, vec![subject_id], L::KIND, ids).await?;
    let grant = |Named { id, name }| Grant { id, name, permission: flags.of(subject_id, id) }.into();
    Ok(Reply::new(paging.page(count, found.into_iter().map(grant).collect())))
}

pub(crate) async fn set_of_user<L: Listed>(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<Authorizations>,
) -> Result<Reply<Message>> {
    set_of_subject(call, Subject::User, id, L::KIND, body).await
}

pub(crate) async fn set_of_role<L: Listed>(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<Authorizations>,
) -> Result<Reply<Message>> {
    set_of_subject(call, Subject::Role, id, L::KIND, body).await
}

pub(crate) async fn users_on<L: Listed>(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    paging: Paging,
) -> Result<Reply<Page<L::UserEntry>>> {
    list_on(&call, &paging, L::KIND, id, Subject::User).await
}

pub(crate) async fn roles_on<L: Listed>(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    paging: Paging,
) -> Result<Reply<Page<L::RoleEntry>>> {
    list_on(&call, &paging, L::KIND, id, Subject::Role).await
}

async fn list_on<E: From<Grant>>(
    call: &Call<Administrator>,
    paging: &Paging,
    kind: Kind,
    id: i64,
    subject: Subject,
) -> Result<Reply<Page<E>>> {
    let mut read = call.read().await?;
    check_resource(&mut read, call.organisation_id(), kind, id).await?;
    let (count, rows) = match subject {
        Subject::User => (
            sql!(
                "SELECT COUNT(*) FROM users u WHERE u.organisation_id = $1 AND u.id IN (SELECT subject_id \
                 FROM resource_rights WHERE subject_type = 'user' AND resource_type = $2 AND resource_id = $3)"
            ),
            sql!(
                "SELECT u.id, u.username AS name FROM users u WHERE u.organisation_id = $1 AND u.id IN (SELECT subject_id \
                 FROM resource_rights WHERE subject_type = 'user' AND resource_type = $2 AND resource_id = $3) ORDER BY u.id"
            ),
        ),
        Subject::Role => (
            sql!(
                "SELECT COUNT(*) FROM roles r WHERE r.organisation_id = $1 AND r.id IN (SELECT subject_id \
                 FROM resource_rights WHERE subject_type = 'role' AND resource_type = $2 AND resource_id = $3)"
            ),
            sql!(
                "SELECT r.id, r.name FROM roles r WHERE r.organisation_id = $1 AND r.id IN (SELECT subject_id \
                 FROM resource_rights WHERE subject_type = 'role' AND resource_type = $2 AND resource_id = $3) ORDER BY r.id"
            ),
        ),
    };
    let arguments = args![call.organisation_id(), kind, id];
    let (count, found) = paging.read::<Named>(&mut read, count, rows, arguments, &[]).await?;
    let ids = found.iter().map(|subject| subject.id).collect();
    let flags = HeldFlags::read(&mut read, subject, ids, kind, vec![id]).await?;
    let grant = |row: Named| Grant { permission: flags.of(row.id, id), id: row.id, name: row.name }.into();
    Ok(Reply::new(paging.page(count, found.into_iter().map(grant).collect())))
}

pub(crate) async fn set_users_on<L: Listed>(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<Many<UserAuthorization>>,
) -> Result<Reply<Message>> {
    set_on_resource(call, L::KIND, id, Subject::User, body).await
}

pub(crate) async fn set_roles_on<L: Listed>(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<Many<RoleAuthorization>>,
) -> Result<Reply<Message>> {
    set_on_resource(call, L::KIND, id, Subject::Role, body).await
}
