//! Conditions for lists: which applications (alias `a`) and hosts (alias `h`) somebody may see.
//!
//! Invariant: a list shows a resource exactly when its own address would not answer "there is no such thing": when the
//! caller holds any right on it.

use drover_kernel::call::Caller;
use drover_kernel::db::Condition;
use drover_kernel::when;

use crate::rights;

/// One kind of resource in lists.
struct Listed {
    kind: &'static str,
    /// Alias of its table in the statements that are filtered.
    alias: &'static str,
    /// Right that switches the kind's module on.
    enabling: &'static str,
    /// Rights of that module, one of which opens every resource once it is switched on.
    opening: &'static [&'static str],
}

const APPLICATIONS: Listed = Listed {
    kind: "application",
    alias: "a",
    enabling: "enable_app_mgmt",
    opening: &["view_app", "edit_app", "delete_app"],
};

const HOSTS: Listed = Listed {
    kind: "host",
    alias: "h",
    enabling: "enable_host_mgmt",
    opening: &["edit_host", "delete_host", "manage_host"],
};

/// Condition on alias `a` for the applications that the caller may see; none when it is all of them.
#[must_use]
pub fn visible_applications(caller: &Caller) -> Option<Condition> {
    APPLICATIONS.visible(caller)
}

/// Condition on alias `h` for the hosts that the caller may see; none when it is all of them.
#[must_use]
pub fn visible_hosts(caller: &Caller) -> Option<Condition> {
    HOSTS.visible(caller)
}

/// Condition on alias `a` for the applications that the user of this name may see, by whatever right.
#[must_use]
pub fn applications_of_user(username: &str) -> Condition {
    APPLICATIONS.of_user(username)
}

/// Condition on alias `a` for the applications that the role of this name opens, by whatever right.
#[must_use]
pub fn applications_of_role(name: &str) -> Condition {
    APPLICATIONS.of_role(name)
}

/// Condition on alias `h` for the hosts that the user of this name may see, by whatever right.
#[must_use]
pub fn hosts_of_user(username: &str) -> Condition {
    HOSTS.of_user(username)
}

/// Condition on alias `h` for the hosts that the role of this name opens, by whatever right.
#[must_use]
pub fn hosts_of_role(name: &str) -> Condition {
    HOSTS.of_role(name)
}

impl Listed {
    fn visible(&self, caller: &Caller) -> Option<Condition> {
        if caller.administrator || !rights::implied(self.kind, &caller.module_rights).is_empty() {
            return None;
        }
        let condition = when!(
            "/* row */.id IN (SELECT rr.resource_id FROM resource_rights rr WHERE rr.resource_type = $1 \
             AND rr.organisation_id = $2 AND ((rr.subject_type = 'user' AND rr.subject_id = $3) \
             OR (rr.subject_type = 'role' AND rr.subject_id IN ($4))))",
            self.kind,
            caller.organisation_id,
            caller.user_id,
            caller.role_ids.clone(),
        );
        Some(condition.about(self.alias))
    }

    fn of_user(&self, username: &str) -> Condition {
        let condition = when!(
            "EXISTS (SELECT 1 FROM users su WHERE su.organisation_id = /* row */.organisation_id \
             AND lower(su.username) = lower($1) AND (su.administrator \
             OR EXISTS (SELECT 1 FROM resource_rights rr WHERE rr.resource_type = $2 AND rr.resource_id = /* row */.id \
             AND ((rr.subject_type = 'user' AND rr.subject_id = su.id) OR (rr.subject_type = 'role' \
             AND rr.subject_id IN (SELECT ru.role_id FROM role_users ru WHERE ru.user_id = su.id)))) \
             OR (SELECT COUNT(DISTINCT CASE WHEN mr.right_name = $3 THEN 1 ELSE 2 END) FROM module_rights mr \
             WHERE mr.module = $2 AND (mr.right_name = $3 OR mr.right_name IN ($4)) \
             AND ((mr.subject_type = 'user' AND mr.subject_id = su.id) OR (mr.subject_type = 'role' \
             AND mr.subject_id IN (SELECT ru.role_id FROM role_users ru WHERE ru.user_id = su.id)))) = 2))",
            username,
            self.kind,
            self.enabling,
            self.opening(),
        );
        condition.about(self.alias)
    }

    fn of_role(&self, name: &str) -> Condition {
        let condition = when!(
            "EXISTS (SELECT 1 FROM roles sr WHERE sr.organisation_id = /* row */.organisation_id AND sr.name = $1 AND (\
             EXISTS (SELECT 1 FROM resource_rights rr WHERE rr.resource_type = $2 AND rr.resource_id = /* row */.id \
             AND rr.subject_type = 'role' AND rr.subject_id = sr.id) \
             OR (SELECT COUNT(DISTINCT CASE WHEN mr.right_name = $3 THEN 1 ELSE 2 END) FROM module_rights mr \
             WHERE mr.module = $2 AND (mr.right_name = $3 OR mr.right_name IN ($4)) \
             AND mr.subject_type = 'role' AND mr.subject_id = sr.id) = 2))",
            name,
            self.kind,
            self.enabling,
            self.opening(),
        );
        condition.about(self.alias)
    }

    fn opening(&self) -> Vec<String> {
        self.opening.iter().map(|&right| right.to_owned()).collect()
    }
}
