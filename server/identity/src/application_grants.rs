//! Rights on applications: under the user or role that holds them, and under the application they are on.
//!
//! Invariant: these lists show direct rights alone; those through roles, modules and administrators are not in them.

use std::collections::BTreeMap;

use drover_kernel::call::{Administrator, SelfOrAdministrator};
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Line, Many};
use drover_kernel::{Body, Call, Message, Page, Paging, Path, Query, Reply, Result, Routes, args, row, sql, when};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::grants::{
    Authorizations, HeldFlags, Kind, RoleAuthorization, Subject, UserAuthorization, check_resource, set_of_subject,
    set_on_resource, subject_name,
};

pub(crate) fn routes() -> Routes {
    Routes::tagged("permissions")
        .get(
            "/users/{id}/application/perms/",
            "user-application-perms-list",
            "List a user's rights on applications.",
            of_user,
        )
        .post(
            "/users/{id}/application/perms/",
            "user-application-perms-set",
            "Grant or withdraw a user's rights on applications.",
            set_of_user,
        )
        .get(
            "/roles/{id}/application/perms/",
            "role-application-perms-list",
            "List a role's rights on applications.",
            of_role,
        )
        .post(
            "/roles/{id}/application/perms/",
            "role-application-perms-set",
            "Grant or withdraw a role's rights on applications.",
            set_of_role,
        )
        .get(
            "/applications/{id}/authorization/users/",
            "application-authorization-users-list",
            "List the users with rights on one application.",
            users_on,
        )
        .patch(
            "/applications/{id}/authorization/users/",
            "application-authorization-users-update",
            "Change or remove the rights of several users on one application.",
            set_users_on,
        )
        .get(
            "/applications/{id}/authorization/roles/",
            "application-authorization-roles-list",
            "List the roles with rights on one application.",
            roles_on,
        )
        .patch(
            "/applications/{id}/authorization/roles/",
            "application-authorization-roles-update",
            "Change or remove the rights of several roles on one application.",
            set_roles_on,
        )
}

/// Rights on one application of the user or role asked about.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AppAuthorizationEntry")]
struct Entry {
    /// Id of the application.
    id: i64,
    /// Full name of the application.
    app_name: String,
    /// Rights.
    permission: BTreeMap<String, bool>,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "AppAuthorizationFilter")]
struct Filter {
    /// Part of the application's name.
    app_name: Option<Line>,
}

row! {
    struct Named {
        id: i64,
        name: String,
    }
}

async fn of_user(
    call: Call<SelfOrAdministrator>,
    Path(id): Path<i64>,
    paging: Paging,
    Query(filter): Query<Filter>,
) -> Result<Reply<Page<Entry>>> {
    let mut read = call.read().await?;
    list_of(&mut read, call.organisation_id(), Subject::User, id, &paging, filter).await
}

async fn of_role(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    paging: Paging,
    Query(filter): Query<Filter>,
) -> Result<Reply<Page<Entry>>> {
    let mut read = call.read().await?;
    list_of(&mut read, call.organisation_id(), Subject::Role, id, &paging, filter).await
}

async fn list_of(
    read: &mut Read,
    organisation_id: i64,
    subject: Subject,
    subject_id: i64,
    paging: &Paging,
    filter: Filter,
) -> Result<Reply<Page<Entry>>> {
    subject_name(read, organisation_id, subject, subject_id).await?;
    let mut conditions = Vec::new();
    if let Some(name) = filter.app_name {
        conditions.push(when!("lower(a.full_name) LIKE $1 ESCAPE '\\'", Condition::pattern(&name.0)));
    }
    let (count, resources) = paging
        .read::<Named>(
            read,
            sql!(
                "SELECT COUNT(*) FROM applications a WHERE a.organisation_id = $1 AND a.id IN \
                 (SELECT resource_id FROM resource_rights WHERE subject_type = $2 AND subject_id = $3 \
                 AND resource_type = 'application')/* filters */"
            ),
            sql!(
                "SELECT a.id, a.full_name AS name FROM applications a WHERE a.organisation_id = $1 AND a.id IN \
                 (SELECT resource_id FROM resource_rights WHERE subject_type = $2 AND subject_id = $3 \
                 AND resource_type = 'application')/* filters */ ORDER BY a.id"
            ),
            args![organisation_id, subject, subject_id],
            &conditions,
        )
        .await?;
    let ids = resources.iter().map(|resource| resource.id).collect();
    let flags = HeldFlags::read(read, subject, vec![subject_id], Kind::Application, ids).await?;
    let entries = resources
        .into_iter()
        .map(|resource| Entry {
            permission: flags.of(subject_id, resource.id),
            id: resource.id,
            app_name: resource.name,
        })
        .collect();
    Ok(Reply::new(paging.page(count, entries)))
}

async fn set_of_user(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<Authorizations>,
) -> Result<Reply<Message>> {
    set_of_subject(call, Subject::User, id, Kind::Application, body).await
}

async fn set_of_role(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<Authorizations>,
) -> Result<Reply<Message>> {
    set_of_subject(call, Subject::Role, id, Kind::Application, body).await
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UserAppAuthorizationUser")]
struct UserBrief {
    /// Id.
    id: i64,
    /// Login name.
    username: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RoleAppAuthorizationRole")]
struct RoleBrief {
    /// Id.
    id: i64,
    /// Name.
    name: String,
}

/// A user's rights on the application asked about.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UserAppAuthorization")]
struct UserEntry {
    /// Who.
    user: UserBrief,
    /// Rights.
    permission: BTreeMap<String, bool>,
}

/// A role's rights on the application asked about.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RoleAppAuthorization")]
struct RoleEntry {
    /// Who.
    role: RoleBrief,
    /// Rights.
    permission: BTreeMap<String, bool>,
}

async fn users_on(call: Call<Administrator>, Path(id): Path<i64>, paging: Paging) -> Result<Reply<Page<UserEntry>>> {
    let mut read = call.read().await?;
    check_resource(&mut read, call.organisation_id(), Kind::Application, id).await?;
    let (count, users) = paging
        .read::<Named>(
            &mut read,
            sql!(
                "SELECT COUNT(*) FROM users u WHERE u.organisation_id = $1 AND u.id IN (SELECT subject_id \
                 FROM resource_rights WHERE subject_type = 'user' AND resource_type = 'application' AND resource_id = $2)"
            ),
            sql!(
                "SELECT u.id, u.username AS name FROM users u WHERE u.organisation_id = $1 AND u.id IN (SELECT subject_id \
                 FROM resource_rights WHERE subject_type = 'user' AND resource_type = 'application' AND resource_id = $2) \
                 ORDER BY u.id"
            ),
            args![call.organisation_id(), id],
            &[],
        )
        .await?;
    let ids = users.iter().map(|user| user.id).collect();
    let flags = HeldFlags::read(&mut read, Subject::User, ids, Kind::Application, vec![id]).await?;
    let entries = users
        .into_iter()
        .map(|user| UserEntry {
            permission: flags.of(user.id, id),
            user: UserBrief { id: user.id, username: user.name },
        })
        .collect();
    Ok(Reply::new(paging.page(count, entries)))
}

async fn roles_on(call: Call<Administrator>, Path(id): Path<i64>, paging: Paging) -> Result<Reply<Page<RoleEntry>>> {
    let mut read = call.read().await?;
    check_resource(&mut read, call.organisation_id(), Kind::Application, id).await?;
    let (count, roles) = paging
        .read::<Named>(
            &mut read,
            sql!(
                "SELECT COUNT(*) FROM roles r WHERE r.organisation_id = $1 AND r.id IN (SELECT subject_id \
                 FROM resource_rights WHERE subject_type = 'role' AND resource_type = 'application' AND resource_id = $2)"
            ),
            sql!(
                "SELECT r.id, r.name FROM roles r WHERE r.organisation_id = $1 AND r.id IN (SELECT subject_id \
                 FROM resource_rights WHERE subject_type = 'role' AND resource_type = 'application' AND resource_id = $2) \
                 ORDER BY r.id"
            ),
            args![call.organisation_id(), id],
            &[],
        )
        .await?;
    let ids = roles.iter().map(|role| role.id).collect();
    let flags = HeldFlags::read(&mut read, Subject::Role, ids, Kind::Application, vec![id]).await?;
    let entries = roles
        .into_iter()
        .map(|role| RoleEntry { permission: flags.of(role.id, id), role: RoleBrief { id: role.id, name: role.name } })
        .collect();
    Ok(Reply::new(paging.page(count, entries)))
}

async fn set_users_on(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<Many<UserAuthorization>>,
) -> Result<Reply<Message>> {
    set_on_resource(call, Kind::Application, id, Subject::User, body).await
}

async fn set_roles_on(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<Many<RoleAuthorization>>,
) -> Result<Reply<Message>> {
    set_on_resource(call, Kind::Application, id, Subject::Role, body).await
}
