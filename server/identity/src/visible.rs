//! Conditions for lists: which applications (alias `a`) and hosts (alias `h`) somebody may see.
//!
//! Invariant: a list shows a resource exactly when its own address would not answer "there is no such thing": when the
//! caller holds any right on it.

use drover_kernel::call::Caller;
use drover_kernel::db::Condition;
use drover_kernel::when;

use crate::rights;

fn sees_all(caller: &Caller, kind: &str) -> bool {
    caller.administrator || !rights::implied(kind, &caller.module_rights).is_empty()
}

/// Condition on `a.id` for the applications that the caller may see; none when it is all of them.
#[must_use]
pub fn visible_applications(caller: &Caller) -> Option<Condition> {
    if sees_all(caller, "application") {
        return None;
    }
    Some(when!(
        "a.id IN (SELECT rr.resource_id FROM resource_rights rr WHERE rr.resource_type = 'application' \
         AND rr.organisation_id = $1 AND ((rr.subject_type = 'user' AND rr.subject_id = $2) \
         OR (rr.subject_type = 'role' AND rr.subject_id IN ($3))))",
        caller.organisation_id,
        caller.user_id,
        caller.role_ids.clone(),
    ))
}

/// Condition on `h.id` for the hosts that the caller may see; none when it is all of them.
#[must_use]
pub fn visible_hosts(caller: &Caller) -> Option<Condition> {
    if sees_all(caller, "host") {
        return None;
    }
    Some(when!(
        "h.id IN (SELECT rr.resource_id FROM resource_rights rr WHERE rr.resource_type = 'host' \
         AND rr.organisation_id = $1 AND ((rr.subject_type = 'user' AND rr.subject_id = $2) \
         OR (rr.subject_type = 'role' AND rr.subject_id IN ($3))))",
        caller.organisation_id,
        caller.user_id,
        caller.role_ids.clone(),
    ))
}

/// Condition on alias `a` for the applications that the user of this name may see, by whatever right.
#[must_use]
pub fn applications_of_user(username: &str) -> Condition {
    when!(
        "EXISTS (SELECT 1 FROM users su WHERE su.organisation_id = a.organisation_id AND lower(su.username) = lower($1) \
         AND (su.administrator \
         OR EXISTS (SELECT 1 FROM resource_rights rr WHERE rr.resource_type = 'application' AND rr.resource_id = a.id \
         AND ((rr.subject_type = 'user' AND rr.subject_id = su.id) OR (rr.subject_type = 'role' \
         AND rr.subject_id IN (SELECT ru.role_id FROM role_users ru WHERE ru.user_id = su.id)))) \
         OR (SELECT COUNT(DISTINCT CASE WHEN mr.right_name = 'enable_app_mgmt' THEN 1 ELSE 2 END) FROM module_rights mr \
         WHERE mr.module = 'application' \
         AND mr.right_name IN ('enable_app_mgmt', 'view_app', 'edit_app', 'delete_app') \
         AND ((mr.subject_type = 'user' AND mr.subject_id = su.id) OR (mr.subject_type = 'role' \
         AND mr.subject_id IN (SELECT ru.role_id FROM role_users ru WHERE ru.user_id = su.id)))) = 2))",
        username,
    )
}

/// Condition on alias `a` for the applications that the role of this name opens, by whatever right.
#[must_use]
pub fn applications_of_role(name: &str) -> Condition {
    when!(
        "EXISTS (SELECT 1 FROM roles sr WHERE sr.organisation_id = a.organisation_id AND sr.name = $1 AND (\
         EXISTS (SELECT 1 FROM resource_rights rr WHERE rr.resource_type = 'application' AND rr.resource_id = a.id \
         AND rr.subject_type = 'role' AND rr.subject_id = sr.id) \
         OR (SELECT COUNT(DISTINCT CASE WHEN mr.right_name = 'enable_app_mgmt' THEN 1 ELSE 2 END) FROM module_rights mr \
         WHERE mr.module = 'application' \
         AND mr.right_name IN ('enable_app_mgmt', 'view_app', 'edit_app', 'delete_app') \
         AND mr.subject_type = 'role' AND mr.subject_id = sr.id) = 2))",
        name,
    )
}

/// Condition on alias `h` for the hosts that the user of this name may see, by whatever right.
#[must_use]
pub fn hosts_of_user(username: &str) -> Condition {
    when!(
        "EXISTS (SELECT 1 FROM users su WHERE su.organisation_id = h.organisation_id AND lower(su.username) = lower($1) \
         AND (su.administrator \
         OR EXISTS (SELECT 1 FROM resource_rights rr WHERE rr.resource_type = 'host' AND rr.resource_id = h.id \
         AND ((rr.subject_type = 'user' AND rr.subject_id = su.id) OR (rr.subject_type = 'role' \
         AND rr.subject_id IN (SELECT ru.role_id FROM role_users ru WHERE ru.user_id = su.id)))) \
         OR (SELECT COUNT(DISTINCT CASE WHEN mr.right_name = 'enable_host_mgmt' THEN 1 ELSE 2 END) FROM module_rights mr \
         WHERE mr.module = 'host' \
         AND mr.right_name IN ('enable_host_mgmt', 'edit_host', 'delete_host', 'manage_host') \
         AND ((mr.subject_type = 'user' AND mr.subject_id = su.id) OR (mr.subject_type = 'role' \
         AND mr.subject_id IN (SELECT ru.role_id FROM role_users ru WHERE ru.user_id = su.id)))) = 2))",
        username,
    )
}

/// Condition on alias `h` for the hosts that the role of this name opens, by whatever right.
#[must_use]
pub fn hosts_of_role(name: &str) -> Condition {
    when!(
        "EXISTS (SELECT 1 FROM roles sr WHERE sr.organisation_id = h.organisation_id AND sr.name = $1 AND (\
         EXISTS (SELECT 1 FROM resource_rights rr WHERE rr.resource_type = 'host' AND rr.resource_id = h.id \
         AND rr.subject_type = 'role' AND rr.subject_id = sr.id) \
         OR (SELECT COUNT(DISTINCT CASE WHEN mr.right_name = 'enable_host_mgmt' THEN 1 ELSE 2 END) FROM module_rights mr \
         WHERE mr.module = 'host' \
         AND mr.right_name IN ('enable_host_mgmt', 'edit_host', 'delete_host', 'manage_host') \
         AND mr.subject_type = 'role' AND mr.subject_id = sr.id) = 2))",
        name,
    )
}
