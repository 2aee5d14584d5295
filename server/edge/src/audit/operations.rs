//! What was done to DNS, hosts and applications.

use drover_kernel::call::Administrator;
use drover_kernel::fields::{Line, Name, Words};
use drover_kernel::{AuditList, Call, Kernel, Page, Paging, Query, Reply, Result, Routes, api_words, when};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EntryRow, TimeText, conditions, page, part_of_detail, part_of_name, word};

pub(super) fn routes() -> Routes {
    Routes::tagged("audit")
        .get("/audit/dns-operations/", "audit-dns-operations-list", "List what was done to DNS.", list_dns)
        .get("/audit/host-operations/", "audit-host-operations-list", "List what was done to hosts.", list_hosts)
        .get(
            "/audit/app-operations/",
            "audit-app-operations-list",
            "List what was done to applications.",
            list_applications,
        )
}

api_words! {
    /// What is done to a DNS object.
    enum DnsAction {
        /// Added.
        Add = "add",
        /// Changed.
        Update = "update",
        /// Deleted.
        Delete = "delete",
        /// Switched off.
        Disable = "disable",
        /// Switched on.
        Enable = "enable",
    }
}

api_words! {
    /// Kind of a DNS object.
    enum DnsTarget {
        /// A server.
        Server = "server",
        /// A domain.
        Domain = "domain",
        /// A record.
        Record = "record",
    }
}

api_words! {
    /// What is done to a host.
    enum HostAction {
        /// Registered.
        Add = "add",
        /// Changed.
        Update = "update",
        /// Deleted.
        Delete = "delete",
        /// Given an instance.
        AttachApp = "attach_app",
        /// Rid of an instance.
        DeatachApp = "deatach_app",
    }
}

api_words! {
    /// What is done to an application.
    enum ApplicationAction {
        /// Created.
        Add = "add",
        /// Changed.
        Update = "update",
        /// Deleted.
        Delete = "delete",
        /// Given an instance.
        AttachHost = "attach_host",
        /// Rid of an instance.
        DeatachHost = "deatach_host",
        /// Deployed in another way from now on.
        ChangeDeploySetting = "change_deploy_setting",
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
struct DnsFilters {
    /// Username that acted.
    operator: Option<Name>,
    /// Kind of act.
    op_type: Option<DnsAction>,
    /// Kind of thing acted on.
    op_target: Option<DnsTarget>,
    /// Part of the detail.
    op_detail: Option<Line>,
    /// At or before this time.
    #[serde(rename = "op_time__lt")]
    until: Option<TimeText>,
    /// At or after this time.
    #[serde(rename = "op_time__gt")]
    from: Option<TimeText>,
}

/// What was done to DNS.
#[derive(Debug, Serialize, JsonSchema)]
struct DnsOperation {
    /// Id.
    id: i64,
    /// Kind of act.
    #[schemars(with = "Words<DnsAction>")]
    op_type: String,
    /// Kind of thing acted on.
    #[schemars(with = "Words<DnsTarget>")]
    op_target: String,
    /// What happened.
    op_detail: String,
    /// When.
    op_time: String,
    /// Username that acted.
    operator: String,
}

async fn list_dns(
    call: Call<Administrator>,
    Query(filters): Query<DnsFilters>,
    paging: Paging,
) -> Result<Reply<Page<DnsOperation>>> {
    let mut conditions = conditions(call.kernel(), filters.operator, filters.from, filters.until)?;
    conditions.extend(filters.op_type.map(|action| when!("e.action = $1", action)));
    conditions.extend(filters.op_target.map(|target| when!("e.object_type = $1", target)));
    conditions.extend(filters.op_detail.as_ref().map(part_of_detail));
    let show = |row: EntryRow, kernel: &Kernel| DnsOperation {
        id: row.id,
        op_type: row.action,
        op_target: row.object_type,
        op_detail: row.detail,
        op_time: kernel.show(row.created_at),
        operator: row.operator,
    };
    page(&call, &paging, AuditList::Dns, conditions, show).await
}

#[derive(Debug, Deserialize, JsonSchema)]
struct HostFilters {
    /// Username that acted.
    operator: Option<Name>,
    /// Kind of act.
    #[schemars(with = "Option<Words<HostAction>>")]
    op_type: Option<Name>,
    /// Part of the host's name.
    hostname: Option<Name>,
    /// Part of the detail.
    op_detail: Option<Line>,
    /// At or before this time.
    #[serde(rename = "op_time__lt")]
    until: Option<TimeText>,
    /// At or after this time.
    #[serde(rename = "op_time__gt")]
    from: Option<TimeText>,
}

/// What was done to a host.
#[derive(Debug, Serialize, JsonSchema)]
struct HostOperation {
    /// Id.
    id: i64,
    /// Host.
    hostname: String,
    /// Kind of act.
    #[schemars(with = "Words<HostAction>")]
    op_type: String,
    /// What happened.
    op_detail: String,
    /// When.
    op_time: String,
    /// Username that acted.
    operator: String,
}

async fn list_hosts(
    call: Call<Administrator>,
    Query(filters): Query<HostFilters>,
    paging: Paging,
) -> Result<Reply<Page<HostOperation>>> {
    let mut conditions = conditions(call.kernel(), filters.operator, filters.from, filters.until)?;
    if let Some(text) = &filters.op_type {
        let action: HostAction = word("op_type", text, &[("detach_app", "deatach_app")])?;
        conditions.push(when!("e.action = $1", action));
    }
    conditions.extend(filters.hostname.as_ref().map(part_of_name));
    conditions.extend(filters.op_detail.as_ref().map(part_of_detail));
    let show = |row: EntryRow, kernel: &Kernel| HostOperation {
        id: row.id,
        hostname: row.object_name,
        op_type: row.action,
        op_detail: row.detail,
        op_time: kernel.show(row.created_at),
        operator: row.operator,
    };
    page(&call, &paging, AuditList::Host, conditions, show).await
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ApplicationFilters {
    /// Username that acted.
    operator: Option<Name>,
    /// Part of the application's full name.
    app_name: Option<Name>,
    /// Kind of act.
    #[schemars(with = "Option<Words<ApplicationAction>>")]
    op_type: Option<Name>,
    /// Part of the detail.
    op_detail: Option<Line>,
    /// At or before this time.
    #[serde(rename = "op_time__lt")]
    until: Option<TimeText>,
    /// At or after this time.
    #[serde(rename = "op_time__gt")]
    from: Option<TimeText>,
}

/// What was done to an application.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AppOperation")]
struct ApplicationOperation {
    /// Id.
    id: i64,
    /// Full name of the application.
    app_name: String,
    /// Kind of act.
    #[schemars(with = "Words<ApplicationAction>")]
    op_type: String,
    /// What happened, with the values before and after.
    op_detail: String,
    /// When.
    op_time: String,
    /// Username that acted.
    operator: String,
}

async fn list_applications(
    call: Call<Administrator>,
    Query(filters): Query<ApplicationFilters>,
    paging: Paging,
) -> Result<Reply<Page<ApplicationOperation>>> {
    let mut conditions = conditions(call.kernel(), filters.operator, filters.from, filters.until)?;
    if let Some(text) = &filters.op_type {
        let aliases = [("detach_host", "deatach_host"), ("change_deploy_settings", "change_deploy_setting")];
        let action: ApplicationAction = word("op_type", text, &aliases)?;
        conditions.push(when!("e.action = $1", action));
    }
    conditions.extend(filters.app_name.as_ref().map(part_of_name));
    conditions.extend(filters.op_detail.as_ref().map(part_of_detail));
    let show = |row: EntryRow, kernel: &Kernel| ApplicationOperation {
        id: row.id,
        app_name: row.object_name,
        op_type: row.action,
        op_detail: row.detail,
        op_time: kernel.show(row.created_at),
        operator: row.operator,
    };
    page(&call, &paging, AuditList::Application, conditions, show).await
}
