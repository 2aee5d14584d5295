//! Rights on hosts, as the API shows them.
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
        .get("/users/{id}/host/perms/", "user-host-perms-list", "List a user's rights on hosts.", of_user::<Hosts>)
        .post(
            "/users/{id}/host/perms/",
            "user-host-perms-set",
            "Grant or withdraw a user's rights on hosts.",
            set_of_user::<Hosts>,
        )
        .get("/roles/{id}/host/perms/", "role-host-perms-list", "List a role's rights on hosts.", of_role::<Hosts>)
        .post(
            "/roles/{id}/host/perms/",
            "role-host-perms-set",
            "Grant or withdraw a role's rights on hosts.",
            set_of_role::<Hosts>,
        )
        .get(
            "/hosts/{id}/authorization/users/",
            "host-authorization-users-list",
            "List the users with rights on one host.",
            users_on::<Hosts>,
        )
        .patch(
            "/hosts/{id}/authorization/users/",
            "host-authorization-users-update",
            "Change or remove the rights of several users on one host.",
            set_users_on::<Hosts>,
        )
        .get(
            "/hosts/{id}/authorization/roles/",
            "host-authorization-roles-list",
            "List the roles with rights on one host.",
            roles_on::<Hosts>,
        )
        .patch(
            "/hosts/{id}/authorization/roles/",
            "host-authorization-roles-update",
            "Change or remove the rights of several roles on one host.",
            set_roles_on::<Hosts>,
        )
}

/// Hosts as a kind of resource with rights of its own.
struct Hosts;

impl Listed for Hosts {
    const KIND: Kind = Kind::Host;
    const COUNT: Sql = sql!(
        "SELECT COUNT(*) FROM hosts h WHERE h.organisation_id = $1 AND h.id IN \
         (SELECT resource_id FROM resource_rights WHERE subject_type = $2 AND subject_id = $3 \
         AND resource_type = 'host')/* filters */"
    );
    const ROWS: Sql = sql!(
        "SELECT h.id, h.name FROM hosts h WHERE h.organisation_id = $1 AND h.id IN \
         (SELECT resource_id FROM resource_rights WHERE subject_type = $2 AND subject_id = $3 \
         AND resource_type = 'host')/* filters */ ORDER BY h.id"
    );
    type Filter = Filter;
    type Entry = Entry;
    type UserEntry = UserEntry;
    type RoleEntry = RoleEntry;

    fn conditions(filter: Filter) -> Vec<Condition> {
        let part = |name: Line| when!("lower(h.name) LIKE $1 ESCAPE '\\'", Condition::pattern(&name.0));
        filter.hostname.map(part).into_iter().collect()
    }
}

/// Rights on one host of the user or role asked about.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "HostAuthorizationEntry")]
struct Entry {
    /// Id of the host.
    id: i64,
    /// Name of the host.
    hostname: String,
    /// Rights.
    permission: BTreeMap<String, bool>,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "HostAuthorizationFilter")]
struct Filter {
    /// Part of the host's name.
    hostname: Option<Line>,
}

impl From<Grant> for Entry {
    fn from(grant: Grant) -> Self {
        Self { id: grant.id, hostname: grant.name, permission: grant.permission }
    }
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UserHostAuthorizationUser")]
struct UserBrief {
    /// Id.
    id: i64,
    /// Login name.
    username: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RoleHostAuthorizationRole")]
struct RoleBrief {
    /// Id.
    id: i64,
    /// Name.
    name: String,
}

/// A user's rights on the host asked about.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UserHostAuthorization")]
struct UserEntry {
    /// Who.
    user: UserBrief,
    /// Rights.
    permission: BTreeMap<String, bool>,
}

/// A role's rights on the host asked about.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RoleHostAuthorization")]
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
