//! Rights on applications, as the API shows them.
//!
//! Invariant: the logic is that of every kind, in [`crate::resource_grants`]; here are addresses, names and texts.

use std::collections::BTreeMap;

use drover_kernel::db::{Condition, Sql};
use drover_kernel::fields::Line;
use drover_kernel::{Routes, sql, when};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::grants::Kind;
use crate::resource_grants::{
    Grant, Listed, of_role, of_user, roles_on, set_of_role, set_of_user, set_roles_on, set_users_on, users_on,
};

pub(crate) fn routes() -> Routes {
    Routes::tagged("permissions")
        .get(
            "/users/{id}/application/perms/",
            "user-application-perms-list",
            "List a user's rights on applications.",
            of_user::<Applications>,
        )
        .post(
            "/users/{id}/application/perms/",
            "user-application-perms-set",
            "Grant or withdraw a user's rights on applications.",
            set_of_user::<Applications>,
        )
        .get(
            "/roles/{id}/application/perms/",
            "role-application-perms-list",
            "List a role's rights on applications.",
            of_role::<Applications>,
        )
        .post(
            "/roles/{id}/application/perms/",
            "role-application-perms-set",
            "Grant or withdraw a role's rights on applications.",
            set_of_role::<Applications>,
        )
        .get(
            "/applications/{id}/authorization/users/",
            "application-authorization-users-list",
            "List the users with rights on one application.",
            users_on::<Applications>,
        )
        .patch(
            "/applications/{id}/authorization/users/",
            "application-authorization-users-update",
            "Change or remove the rights of several users on one application.",
            set_users_on::<Applications>,
        )
        .get(
            "/applications/{id}/authorization/roles/",
            "application-authorization-roles-list",
            "List the roles with rights on one application.",
            roles_on::<Applications>,
        )
        .patch(
            "/applications/{id}/authorization/roles/",
            "application-authorization-roles-update",
            "Change or remove the rights of several roles on one application.",
            set_roles_on::<Applications>,
        )
}

/// Applications as a kind of resource with rights of its own.
struct Applications;

impl Listed for Applications {
    const KIND: Kind = Kind::Application;
    const COUNT: Sql = sql!(
        "SELECT COUNT(*) FROM applications a WHERE a.organisation_id = $1 AND a.id IN \
         (SELECT resource_id FROM resource_rights WHERE subject_type = $2 AND subject_id = $3 \
         AND resource_type = 'application')/* filters */"
    );
    const ROWS: Sql = sql!(
        "SELECT a.id, a.full_name AS name FROM applications a WHERE a.organisation_id = $1 AND a.id IN \
         (SELECT resource_id FROM resource_rights WHERE subject_type = $2 AND subject_id = $3 \
         AND resource_type = 'application')/* filters */ ORDER BY a.id"
    );
    type Filter = Filter;
    type Entry = Entry;
    type UserEntry = UserEntry;
    type RoleEntry = RoleEntry;

    fn conditions(filter: Filter) -> Vec<Condition> {
        let part = |name: Line| when!("lower(a.full_name) LIKE $1 ESCAPE '\\'", Condition::pattern(&name.0));
        filter.app_name.map(part).into_iter().collect()
    }
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

impl From<Grant> for Entry {
    fn from(grant: Grant) -> Self {
        Self { id: grant.id, app_name: grant.name, permission: grant.permission }
    }
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

impl From<Grant> for UserEntry {
    fn from(grant: Grant) -> Self {
        Self { user: UserBrief { id: grant.id, username: grant.name }, permission: grant.permission }
    }
}

impl From<Grant> for RoleEntry {
    fn from(grant: Grant) -> Self {
        Self { role: RoleBrief { id: grant.id, name: grant.name }, permission: grant.permission }
    }
}
