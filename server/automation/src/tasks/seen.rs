//! Which tasks somebody may see: those of the applications that they may see, and those that run a script on hosts all of
//! which they may see.
//!
//! Invariant: a list shows a task exactly when its own address would not answer "there is no such thing".

use drover_identity::{visible_applications, visible_hosts};
use drover_kernel::call::Caller;
use drover_kernel::db::Condition;
use drover_kernel::resources::Instead;
use drover_kernel::{sql, when};

/// Whose rights count for a task that runs a script: those on every host of it.
pub(crate) const BY_TASK: Instead = Instead {
    governed_by: "host",
    find: sql!(
        "SELECT DISTINCT h.id FROM executions e JOIN hosts h ON h.id = e.host_id \
         WHERE e.organisation_id = $1 AND e.task_id = $2 ORDER BY h.id"
    ),
    implied: IMPLIED,
};

/// The same by the name of a task's output.
pub(crate) const BY_CHANNEL: Instead = Instead {
    governed_by: "host",
    find: sql!(
        "SELECT DISTINCT h.id FROM executions e JOIN tasks t ON t.id = e.task_id JOIN hosts h ON h.id = e.host_id \
         WHERE e.organisation_id = $1 AND t.channel = $2 ORDER BY h.id"
    ),
    implied: IMPLIED,
};

/// Who may see a host sees what runs there; who may log in there may end it and run it again.
pub(crate) const IMPLIED: &[(&str, &str)] =
    &[("view_host", "view_app"), ("login_host", "view_app"), ("login_host", "restart_app")];

/// Condition on aliases `t` and `a` for the tasks that the caller may see; none when it is all of them.
pub(crate) fn visible_tasks(caller: &Caller) -> Option<Condition> {
    let (applications, hosts) = (visible_applications(caller), visible_hosts(caller));
    if applications.is_none() && hosts.is_none() {
        return None;
    }
    let of_applications = applications.unwrap_or_else(|| when!("t.application_id IS NOT NULL"));
    let of_hosts = match hosts {
        None => when!("t.application_id IS NULL"),
        Some(hosts) => hosts.within(&when!(
            "t.application_id IS NULL AND EXISTS (SELECT 1 FROM executions s JOIN hosts h ON h.id = s.host_id \
             WHERE s.task_id = t.id) AND NOT EXISTS (SELECT 1 FROM executions s JOIN hosts h ON h.id = s.host_id \
             WHERE s.task_id = t.id AND NOT (/* condition */))"
        )),
    };
    Some(of_applications.or(of_hosts))
}
