//! Which rights were granted and withdrawn.

use drover_identity::rights;
use drover_kernel::call::Administrator;
use drover_kernel::db::Condition;
use drover_kernel::fields::{Id, Name, Words};
use drover_kernel::{AuditList, Call, Kernel, Page, Paging, Query, Reply, Result, Routes, api_words, when};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EntryRow, TimeText, conditions, page};

pub(super) fn routes() -> Routes {
    Routes::tagged("audit")
        .get(
            "/audit/authorize-operations/modules/",
            "audit-module-authorizations-list",
            "List changes of rights on modules.",
            list_module_rights,
        )
        .get(
            "/audit/authorize-operations/resources/",
            "audit-resource-authorizations-list",
            "List changes of rights on single resources.",
            list_resource_rights,
        )
}

api_words! {
    /// What happens to a right.
    enum RightAction {
        /// Granted.
        Enable = "enable",
        /// Withdrawn.
        Disable = "disable",
    }
}

api_words! {
    /// Who holds a right.
    pub(super) enum RightTarget {
        /// A role.
        Role = "role",
        /// A user.
        User = "user",
    }
}

api_words! {
    /// Kind of a resource with rights of its own.
    enum ResourceType {
        /// A host.
        Host = "host",
        /// An application.
        Application = "application",
        /// A production line.
        Business = "business",
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ModuleRightFilters {
    /// Username that acted.
    operator: Option<Name>,
    /// Module; its key or its display name.
    module_name: Option<Name>,
    /// Name of the right.
    perm_name: Option<Name>,
    /// Granted or withdrawn.
    action: Option<RightAction>,
    /// Who got or lost it: a role or a user.
    authorized_target_type: Option<RightTarget>,
    /// Name of that role or user.
    authorized_target_name: Option<Name>,
    /// At or before this time.
    #[serde(rename = "op_time__lt")]
    until: Option<TimeText>,
    /// At or after this time.
    #[serde(rename = "op_time__gt")]
    from: Option<TimeText>,
}

/// A change of a right on a module.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ModuleAuthorizedOperation")]
struct ModuleRightOperation {
    /// Id.
    id: i64,
    /// Username that acted.
    operator: String,
    /// Module key.
    #[schemars(with = "rights::ModuleName")]
    module_name: String,
    /// Name of the right.
    perm_name: String,
    /// Granted or withdrawn.
    #[schemars(with = "Words<RightAction>")]
    action: String,
    /// Role or user.
    #[schemars(with = "Words<RightTarget>")]
    authorized_target_type: String,
    /// Its name.
    authorized_target_name: String,
    /// When.
    op_time: String,
}

/// Who got or lost a right, and whether it was granted.
fn right_conditions(
    action: Option<RightAction>,
    target_type: Option<RightTarget>,
    target_name: Option<Name>,
) -> impl Iterator<Item = Condition> {
    let action = action.map(|action| when!("e.action = $1", action));
    let target_type = target_type.map(|kind| when!("e.target_type = $1", kind));
    let target_name = target_name.map(|name| when!("lower(e.target_name) = lower($1)", name.0));
    [action, target_type, target_name].into_iter().flatten()
}

/// Rights of any module that this spelling leads to, itself included.
fn module_right_names(spelling: &str) -> Vec<String> {
    let rights = rights::MODULES.iter().flat_map(|module| module.rights);
    let meant = rights.filter(|right| right.aliases.contains(&spelling)).map(|right| right.name.to_owned());
    meant.chain([spelling.to_owned()]).collect()
}

async fn list_module_rights(
    call: Call<Administrator>,
    Query(filters): Query<ModuleRightFilters>,
    paging: Paging,
) -> Result<Reply<Page<ModuleRightOperation>>> {
    let mut conditions = conditions(call.kernel(), filters.operator, filters.from, filters.until)?;
    if let Some(name) = filters.module_name {
        let key = rights::module(&name.0).map_or(name.0.as_str(), |module| module.name);
        conditions.push(when!("e.object_name = $1", key));
    }
    conditions.extend(filters.perm_name.map(|name| when!("e.right_name IN ($1)", module_right_names(&name.0))));
    let target_name = filters.authorized_target_name;
    conditions.extend(right_conditions(filters.action, filters.authorized_target_type, target_name));
    let show = |row: EntryRow, kernel: &Kernel| ModuleRightOperation {
        id: row.id,
        operator: row.operator,
        module_name: row.object_name,
        perm_name: row.right_name.unwrap_or_default(),
        action: row.action,
        authorized_target_type: row.target_type.unwrap_or_default(),
        authorized_target_name: row.target_name.unwrap_or_default(),
        op_time: kernel.show(row.created_at),
    };
    page(&call, &paging, AuditList::ModuleRight, conditions, show).await
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ResourceRightFilters {
    /// Username that acted.
    operator: Option<Name>,
    /// Kind of resource.
    resource_type: Option<ResourceType>,
    /// Id of the resource.
    resource_id: Option<Id>,
    /// Name of the right.
    perm_name: Option<Name>,
    /// Granted or withdrawn.
    action: Option<RightAction>,
    /// Who got or lost it: a role or a user.
    authorized_target_type: Option<RightTarget>,
    /// Name of that role or user.
    authorized_target_name: Option<Name>,
    /// At or before this time.
    #[serde(rename = "op_time__lt")]
    until: Option<TimeText>,
    /// At or after this time.
    #[serde(rename = "op_time__gt")]
    from: Option<TimeText>,
}

/// A change of a right on a single resource.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResourceAuthorizedOperation")]
struct ResourceRightOperation {
    /// Id.
    id: i64,
    /// Username that acted.
    operator: String,
    /// Kind of resource.
    #[schemars(with = "Words<ResourceType>")]
    resource_type: String,
    /// Its id.
    resource_id: i64,
    /// The resource with its name at the time.
    resource: ResourceName,
    /// Name of the right.
    perm_name: String,
    /// Granted or withdrawn.
    #[schemars(with = "Words<RightAction>")]
    action: String,
    /// Role or user.
    #[schemars(with = "Words<RightTarget>")]
    authorized_target_type: String,
    /// Its name.
    authorized_target_name: String,
    /// When.
    op_time: String,
}

/// A resource in short.
#[derive(Debug, Serialize, JsonSchema)]
struct ResourceName {
    /// Id.
    id: i64,
    /// Name.
    name: String,
}

/// Rights on any kind of resource that this spelling leads to, itself included.
fn resource_right_names(spelling: &str) -> Vec<String> {
    let meant = ["application", "host"].iter().filter_map(|kind| rights::find(kind, spelling)).map(str::to_owned);
    meant.chain([spelling.to_owned()]).collect()
}

async fn list_resource_rights(
    call: Call<Administrator>,
    Query(filters): Query<ResourceRightFilters>,
    paging: Paging,
) -> Result<Reply<Page<ResourceRightOperation>>> {
    let mut conditions = conditions(call.kernel(), filters.operator, filters.from, filters.until)?;
    conditions.extend(filters.resource_type.map(|kind| when!("e.object_type = $1", kind)));
    conditions.extend(filters.resource_id.map(|id| when!("e.object_id = $1", id.0)));
    conditions.extend(filters.perm_name.map(|name| when!("e.right_name IN ($1)", resource_right_names(&name.0))));
    let target_name = filters.authorized_target_name;
    conditions.extend(right_conditions(filters.action, filters.authorized_target_type, target_name));
    let show = |row: EntryRow, kernel: &Kernel| ResourceRightOperation {
        id: row.id,
        operator: row.operator,
        resource_type: row.object_type,
        resource_id: row.object_id.unwrap_or_default(),
        resource: ResourceName { id: row.object_id.unwrap_or_default(), name: row.object_name },
        perm_name: row.right_name.unwrap_or_default(),
        action: row.action,
        authorized_target_type: row.target_type.unwrap_or_default(),
        authorized_target_name: row.target_name.unwrap_or_default(),
        op_time: kernel.show(row.created_at),
    };
    page(&call, &paging, AuditList::ResourceRight, conditions, show).await
}
