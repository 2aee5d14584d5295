//! Everything that was done, of whatever kind: users, roles, tokens, scripts, tasks, and what the other lists show.

use drover_kernel::call::Administrator;
use drover_kernel::fields::{Id, Line, Name, Words};
use drover_kernel::{AuditList, Call, Kernel, Page, Paging, Query, Reply, Result, Routes, when};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rights::RightTarget;
use super::{EntryRow, TimeText, conditions, page_of_all};

pub(super) fn routes() -> Routes {
    Routes::tagged("audit").get(
        "/audit/entries/",
        "audit-entries-list",
        "List everything that was done, of whatever kind.",
        list_entries,
    )
}

#[derive(Debug, Deserialize, JsonSchema)]
struct EntryFilters {
    /// Username that acted.
    operator: Option<Name>,
    /// Which list; general has users, roles, tokens, scripts and tasks.
    #[schemars(with = "Option<Words<AuditList>>")]
    list: Option<Name>,
    /// Kind of act, such as create or approve.
    op_type: Option<Name>,
    /// Kind of object, such as user or deploy_task.
    object_type: Option<Name>,
    /// Id of the object.
    object_id: Option<Id>,
    /// Part of the object's name.
    object_name: Option<Name>,
    /// Part of the detail.
    op_detail: Option<Line>,
    /// At or before this time.
    #[serde(rename = "op_time__lt")]
    until: Option<TimeText>,
    /// At or after this time.
    #[serde(rename = "op_time__gt")]
    from: Option<TimeText>,
}

/// What was done.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AuditEntry")]
struct EntryOut {
    /// Id; a later entry has a greater one.
    id: i64,
    /// Which list it is in.
    #[schemars(with = "Words<AuditList>")]
    list: String,
    /// Kind of act.
    op_type: String,
    /// Kind of object.
    object_type: String,
    /// Id of the object.
    object_id: Option<i64>,
    /// The object's name at the time.
    object_name: String,
    /// What happened, with the values before and after.
    op_detail: String,
    /// Right that was granted or withdrawn.
    perm_name: Option<String>,
    /// Who got or lost it: role or user.
    #[schemars(with = "Option<Words<RightTarget>>")]
    authorized_target_type: Option<String>,
    /// Name of that role or user.
    authorized_target_name: Option<String>,
    /// When.
    op_time: String,
    /// Username that acted.
    operator: String,
    /// Id of the request, which the server's log has as well.
    request_id: Option<String>,
}

async fn list_entries(
    call: Call<Administrator>,
    Query(filters): Query<EntryFilters>,
    paging: Paging,
) -> Result<Reply<Page<EntryOut>>> {
    let mut conditions = conditions(call.kernel(), filters.operator, filters.from, filters.until)?;
    if let Some(name) = &filters.list {
        let list: AuditList = super::word("list", name, &[])?;
        conditions.push(when!("e.list = $1", list));
    }
    conditions.extend(filters.op_type.map(|action| when!("e.action = $1", action.0)));
    conditions.extend(filters.object_type.map(|kind| when!("e.object_type = $1", kind.0)));
    conditions.extend(filters.object_id.map(|id| when!("e.object_id = $1", id.0)));
    conditions.extend(filters.object_name.as_ref().map(super::part_of_name));
    conditions.extend(filters.op_detail.as_ref().map(super::part_of_detail));
    page_of_all(&call, &paging, conditions, shown).await
}

fn shown(row: EntryRow, kernel: &Kernel) -> EntryOut {
    EntryOut {
        id: row.id,
        list: row.list,
        op_type: row.action,
        object_type: row.object_type,
        object_id: row.object_id,
        object_name: row.object_name,
        op_detail: row.detail,
        perm_name: row.right_name,
        authorized_target_type: row.target_type,
        authorized_target_name: row.target_name,
        op_time: kernel.show(row.created_at),
        operator: row.operator,
        request_id: row.request_id,
    }
}
