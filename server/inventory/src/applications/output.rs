//! Applications as answers show them: with children, dependencies, persons and what the caller may do.
//!
//! Invariant: a whole page takes a constant number of queries.

use std::collections::{BTreeMap, BTreeSet};

use drover_identity::{rights_on_many, visible_applications};
use drover_kernel::call::Caller;
use drover_kernel::db::{Condition, Read};
use drover_kernel::{Error, Page, Paging, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::store::{self, ApplicationRow, LinkRow};

/// One node of the application tree.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Application")]
pub struct ApplicationOut {
    /// Id.
    pub id: i64,
    /// Name of this node.
    pub name: String,
    /// Names from the root down to this node, joined by dots.
    pub full_name: String,
    /// Whether there are child applications.
    pub has_child: bool,
    /// Id of the production line.
    pub production: Option<i64>,
    /// Parent's id.
    pub parent_app: Option<i64>,
    /// What the caller may do with it.
    pub available_actions: ApplicationActions,
    /// Free text.
    pub description: String,
    /// Kind of application.
    pub application_type: String,
    /// System account.
    pub run_user: String,
    /// Deployment directory.
    pub directory: String,
    /// Start command.
    pub startup_cmd: String,
    /// Stop command.
    pub stop_cmd: String,
    /// Standard output file.
    pub stdout_path: String,
    /// Error output file.
    pub stderr_path: String,
    /// Pid file.
    pub pid_path: String,
    /// Ids of children, of those that the caller may see.
    pub child_apps: Vec<i64>,
    /// Ids depended on, of those that the caller may see.
    pub required_apps: Vec<i64>,
    /// Ids of responsible persons.
    pub response_person: Vec<i64>,
}

/// Members that the audit leaves out: they follow from others or belong to the reader.
pub(super) const NOT_AUDITED: &[&str] = &["id", "has_child", "available_actions"];

/// What somebody may do with an application.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "ApplicationPermission")]
#[expect(clippy::struct_excessive_bools, reason = "these are the rights there are, each on its own")]
pub struct ApplicationActions {
    /// See the application.
    pub view_app: bool,
    /// Change the application.
    pub edit_app: bool,
    /// Delete the application.
    pub delete_app: bool,
    /// Make and carry out deploy tasks.
    pub deploy_app: bool,
    /// Approve or reject deploy tasks.
    pub review_app_deploy_task: bool,
    /// Restart instances.
    pub restart_app: bool,
    /// Read instance logs.
    pub view_app_log: bool,
    /// See monitoring.
    pub view_app_monitor: bool,
}

impl From<&BTreeSet<String>> for ApplicationActions {
    fn from(rights: &BTreeSet<String>) -> Self {
        let has = |right: &str| rights.contains(right);
        Self {
            view_app: has("view_app"),
            edit_app: has("edit_app"),
            delete_app: has("delete_app"),
            deploy_app: has("deploy_app"),
            review_app_deploy_task: has("review_app_deploy_task"),
            restart_app: has("restart_app"),
            view_app_log: has("view_app_log"),
            view_app_monitor: has("view_app_monitor"),
        }
    }
}

fn grouped(links: Vec<LinkRow>) -> BTreeMap<i64, Vec<i64>> {
    let mut groups: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for link in links {
        groups.entry(link.application_id).or_default().push(link.linked_id);
    }
    groups
}

/// Shows rows with what `caller` may do with each, and with those of their links that `caller` may see.
///
/// # Errors
/// When the database is not available.
pub async fn show(read: &mut Read, caller: &Caller, rows: Vec<ApplicationRow>) -> Result<Vec<ApplicationOut>> {
    let visible: Vec<Condition> = visible_applications(caller).into_iter().collect();
    assemble(read, caller, rows, &visible).await
}

async fn assemble(
    read: &mut Read,
    caller: &Caller,
    rows: Vec<ApplicationRow>,
    visible: &[Condition],
) -> Result<Vec<ApplicationOut>> {
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let parents: BTreeSet<i64> = store::parents_among(read, &ids).await?.into_iter().collect();
    let mut children = grouped(store::children(read, &ids, visible).await?);
    let mut required = grouped(store::required(read, &ids, visible).await?);
    let mut persons = grouped(store::responsible(read, &ids).await?);
    let rights = rights_on_many(read, caller, "application", &ids).await?;
    let none = BTreeSet::new();
    let shown = rows.into_iter().map(|row| ApplicationOut {
        id: row.id,
        name: row.name,
        full_name: row.full_name,
        has_child: parents.contains(&row.id),
        production: row.production_id,
        parent_app: row.parent_id,
        available_actions: rights.get(&row.id).unwrap_or(&none).into(),
        description: row.description,
        application_type: row.application_type,
        run_user: row.run_user,
        directory: row.directory,
        startup_cmd: row.startup_cmd,
        stop_cmd: row.stop_cmd,
        stdout_path: row.stdout_path,
        stderr_path: row.stderr_path,
        pid_path: row.pid_path,
        child_apps: children.remove(&row.id).unwrap_or_default(),
        required_apps: required.remove(&row.id).unwrap_or_default(),
        response_person: persons.remove(&row.id).unwrap_or_default(),
    });
    Ok(shown.collect())
}

/// Shows one application to `caller`.
///
/// # Errors
/// Not found, or when the database is not available.
pub async fn show_one(read: &mut Read, caller: &Caller, id: i64) -> Result<ApplicationOut> {
    let row = store::load(read, caller.organisation_id, id).await?;
    show(read, caller, vec![row]).await?.pop().ok_or_else(|| Error::not_found("application"))
}

/// One application with every link, for the audit and for what has to follow every link.
///
/// # Errors
/// Not found, or when the database is not available.
pub(super) async fn whole(read: &mut Read, caller: &Caller, id: i64) -> Result<ApplicationOut> {
    let row = store::load(read, caller.organisation_id, id).await?;
    assemble(read, caller, vec![row], &[]).await?.pop().ok_or_else(|| Error::not_found("application"))
}

/// One page of the applications that `caller` may see and that meet the conditions, which speak of `a`.
///
/// # Errors
/// When the database is not available.
pub async fn page(
    read: &mut Read,
    caller: &Caller,
    paging: &Paging,
    mut conditions: Vec<Condition>,
) -> Result<Page<ApplicationOut>> {
    conditions.extend(visible_applications(caller));
    let (count, rows) = store::list(read, paging, caller.organisation_id, &conditions).await?;
    let shown = show(read, caller, rows).await?;
    Ok(paging.page(count, shown))
}

/// Refuses ids of applications that do not exist or that `caller` may not see, and those without the right.
///
/// # Errors
/// Invalid `field` for the former, forbidden for the latter.
pub(super) async fn require_right(
    read: &mut Read,
    caller: &Caller,
    ids: &[i64],
    right: &str,
    field: &str,
) -> Result<Vec<ApplicationRow>> {
    let rows = store::find_many(read, caller.organisation_id, ids).await?;
    let rights = rights_on_many(read, caller, "application", ids).await?;
    for id in ids {
        let held = rights.get(id).filter(|held| !held.is_empty() && rows.iter().any(|row| row.id == *id));
        let held = held.ok_or_else(|| Error::invalid(field, format!("there is no application {id}")))?;
        if !held.contains(right) {
            return Err(Error::Forbidden(format!("this needs the right {right} on the application {id}")));
        }
    }
    Ok(rows)
}
