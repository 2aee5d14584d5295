//! What a task goes after: named tasks, and tasks of the applications that its own application requires.
//!
//! Invariants: a task goes only after tasks that are older than itself, so no two wait for each other; what it goes after
//! is noted in the transaction that makes it, and never becomes more.

pub mod rules;
pub(crate) mod store;

use std::collections::{BTreeMap, BTreeSet};

use drover_identity::visible_applications;
use drover_kernel::call::{Caller, Permission};
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::Words;
use drover_kernel::{Call, Error, Result, Tx};
use drover_shared::words::Action;
use schemars::JsonSchema;
use serde::Serialize;

use self::rules::Standing;
use super::rollout::Rollout;
use super::view::Status;

/// Applications that one may require, directly or not.
const APPLICATIONS_MAX: usize = 1_000;
/// Dependencies among them.
const EDGES_MAX: usize = 20_000;
/// Tasks that one may go after.
const TASKS_MAX: usize = 200;
/// Names in a sentence.
const NAMED_MAX: usize = 10;

const AFTER_REQUIRED: &str = "rollout.after_required";
const AFTER_TASKS: &str = "rollout.after_tasks";

/// A task that goes before another one.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "TaskThatGoesFirst")]
pub(crate) struct RequiredOut {
    task_id: String,
    /// Its deploy task; null when it starts, stops or restarts instances.
    deploy_task_id: Option<i64>,
    /// What it does; null when it was deleted, or the caller may not see its application.
    #[schemars(with = "Option<Words<Action>>")]
    kind: Option<Action>,
    application_id: Option<i64>,
    /// Full name of its application.
    application: Option<String>,
    version: Option<String>,
    /// State; null when it was deleted.
    status: Option<Status>,
}

/// Refuses tasks to go after that the caller may not see.
///
/// # Errors
/// Names the first one.
pub(crate) async fn check_seen<P: Permission>(call: &Call<P>, read: &mut Read, rule: Option<&Rollout>) -> Result<()> {
    for id in rule.map(|rule| rule.after_tasks.as_slice()).unwrap_or_default() {
        call.require(read, "task", *id, "view_app").await.map_err(|error| match error {
            Error::NotFound(_) | Error::Forbidden(_) => unknown(*id),
            other => other,
        })?;
    }
    Ok(())
}

fn unknown(id: i64) -> Error {
    Error::invalid(AFTER_TASKS, format!("there is no task {id}"))
}

/// Applications that have to go first, each after what it requires itself.
///
/// # Errors
/// An invalid field that names the applications that require each other, or says that there are too many.
pub(crate) async fn applications(read: &mut Read, application_id: i64) -> Result<Vec<i64>> {
    let mut seen = BTreeSet::from([application_id]);
    let mut fresh = vec![application_id];
    let mut edges: Vec<(i64, i64)> = Vec::new();
    while !fresh.is_empty() {
        let mut beyond = (0, 0);
        let known = edges.len();
        loop {
            let some = store::edges(read, fresh.clone(), beyond).await?;
            let Some(last) = some.last() else { break };
            beyond = *last;
            edges.extend(some);
            if edges.len() > EDGES_MAX {
                return Err(Error::invalid(AFTER_REQUIRED, format!("more than {EDGES_MAX} dependencies")));
            }
        }
        fresh = edges[known..].iter().map(|(_, to)| *to).filter(|to| seen.insert(*to)).collect();
        if seen.len() > APPLICATIONS_MAX {
            let reason = format!("the application requires more than {APPLICATIONS_MAX} others");
            return Err(Error::invalid(AFTER_REQUIRED, reason));
        }
    }
    match rules::order(application_id, &edges) {
        Ok(order) => Ok(order),
        Err(circle) => {
            let names = names_of(read, &circle, None).await?;
            let name = |id: &i64| names.get(id).cloned().unwrap_or_else(|| id.to_string());
            let mut way: Vec<String> = circle.iter().take(NAMED_MAX).map(name).collect();
            way.extend((circle.len() > NAMED_MAX).then(|| "…".to_owned()));
            way.extend(circle.first().map(name));
            let reason = format!("these applications require each other in a circle: {}", way.join(" → "));
            Err(Error::invalid(AFTER_REQUIRED, reason))
        }
    }
}

async fn names_of(read: &mut Read, ids: &[i64], visible: Option<Condition>) -> Result<BTreeMap<i64, String>> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let conditions: Vec<_> = visible.into_iter().collect();
    let rows = store::names(read, ids.to_vec(), &conditions).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.full_name)).collect())
}

/// The tasks that a task with this rule would go after if it were made now.
///
/// # Errors
/// An invalid field when there is a circle, a task that is not there or will not end well any more, or too many.
pub(crate) async fn find(
    read: &mut Read,
    organisation_id: i64,
    application_id: Option<i64>,
    rule: Option<&Rollout>,
) -> Result<Vec<i64>> {
    let Some(rule) = rule else { return Ok(Vec::new()) };
    let mut first = BTreeSet::new();
    if !rule.after_tasks.is_empty() {
        let rows = store::named(read, organisation_id, &rule.after_tasks).await?;
        for id in &rule.after_tasks {
            let row = rows.iter().find(|row| row.id == *id).ok_or_else(|| unknown(*id))?;
            let standing = Standing::of(row.outcome, row.cancelled);
            if let Some(how) = standing.misfortune() {
                let reason = format!("task {id} {how}: what goes after it would never start");
                return Err(Error::invalid(AFTER_TASKS, reason));
            }
            first.extend((standing == Standing::Open).then_some(*id));
        }
    }
    if let Some(application_id) = application_id.filter(|_| rule.after_required) {
        let applications = applications(read, application_id).await?;
        let limit = i64::try_from(TASKS_MAX).unwrap_or(i64::MAX) + 1;
        first.extend(store::open_tasks(read, applications, limit).await?);
    }
    if first.len() > TASKS_MAX {
        let reason = format!("more than {TASKS_MAX} tasks would have to go first");
        return Err(Error::invalid(AFTER_REQUIRED, reason));
    }
    Ok(first.into_iter().collect())
}

/// Notes what a new task goes after. Gives the tasks that it waits for.
///
/// # Errors
/// As [`find`].
pub(crate) async fn note(
    tx: &mut Tx,
    (application_id, task_id): (Option<i64>, i64),
    rule: Option<&Rollout>,
) -> Result<Vec<i64>> {
    let organisation_id = tx.organisation_id();
    let mut first = find(tx, organisation_id, application_id, rule).await?;
    first.retain(|id| *id < task_id);
    if !first.is_empty() {
        store::insert(tx, task_id, &first).await?;
    }
    Ok(first)
}

/// What a task that never began still has to go after when it is tried again, of what was named then: in place of what
/// failed, what tried that again.
///
/// # Errors
/// A conflict that names the task that failed and was not tried again since.
pub(crate) async fn still(read: &mut Read, named: &[i64]) -> Result<Vec<i64>> {
    let mut open = Vec::new();
    let rows = store::of_ids(read, named).await?;
    for id in named {
        let (id, standing) = match store::last_try(read, *id).await? {
            Some(again) => (again.id, Standing::of(again.outcome, again.cancelled)),
            None => {
                let row = rows.iter().find(|row| row.required_id == *id);
                (*id, row.map_or(Standing::Gone, store::RequiredRow::standing))
            }
        };
        if let Some(how) = standing.misfortune() {
            let text = format!("task {id}, which has to go first, {how}: try that again first, or give a rollout");
            return Err(Error::conflict(text));
        }
        open.extend((standing == Standing::Open).then_some(id));
    }
    Ok(open)
}

/// What the output says of a task that waits.
pub(crate) fn told(first: &[i64]) -> String {
    let named: Vec<String> = first.iter().take(NAMED_MAX).map(i64::to_string).collect();
    let more = first.len() - named.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let tasks = if first.len() == 1 { "task" } else { "tasks" };
    format!("waits for {tasks} {}{more} to end well before anything of it starts", named.join(", "))
}

/// What these tasks go after, as the caller may see it.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn shown<P: Permission>(
    call: &Call<P>,
    read: &mut Read,
    task_ids: Vec<i64>,
) -> Result<BTreeMap<i64, Vec<RequiredOut>>> {
    let rows = store::of_tasks(read, task_ids).await?;
    as_seen(read, call.caller()?, rows).await
}

async fn as_seen(
    read: &mut Read,
    caller: &Caller,
    rows: Vec<store::RequiredRow>,
) -> Result<BTreeMap<i64, Vec<RequiredOut>>> {
    let applications: BTreeSet<i64> = rows.iter().filter_map(|row| row.application_id).collect();
    let applications: Vec<i64> = applications.into_iter().collect();
    let names = names_of(read, &applications, visible_applications(caller)).await?;
    let mut by_task: BTreeMap<i64, Vec<RequiredOut>> = BTreeMap::new();
    for row in rows {
        let name = row.application_id.and_then(|id| names.get(&id)).cloned();
        let seen = name.is_some();
        by_task.entry(row.task_id).or_default().push(RequiredOut {
            task_id: row.required_id.to_string(),
            deploy_task_id: row.deploy_task_id.filter(|_| seen),
            kind: row.kind.filter(|_| seen),
            application_id: row.application_id.filter(|_| seen),
            application: name,
            version: row.version.filter(|_| seen),
            status: row.kind.map(|_| Status::of(row.outcome)),
        });
    }
    Ok(by_task)
}

/// In which order a task would go if it were made now.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "SubTaskPlanOrder")]
pub(crate) struct OrderOut {
    /// Full names of the applications that go first, each after those that it requires itself.
    applications: Vec<String>,
    /// Tasks that it would wait for.
    tasks: Vec<RequiredOut>,
}

/// The order as the caller may see it.
///
/// # Errors
/// As [`find`].
pub(crate) async fn look(
    read: &mut Read,
    caller: &Caller,
    application_id: i64,
    rule: Option<&Rollout>,
) -> Result<OrderOut> {
    let Some(rule) = rule else { return Ok(OrderOut::default()) };
    let mut order = OrderOut::default();
    if rule.after_required {
        let ids = applications(read, application_id).await?;
        let mut names = names_of(read, &ids, visible_applications(caller)).await?;
        order.applications = ids.iter().filter_map(|id| names.remove(id)).collect();
    }
    let first = find(read, caller.organisation_id, Some(application_id), Some(rule)).await?;
    let rows = store::of_ids(read, &first).await?;
    order.tasks = as_seen(read, caller, rows).await?.into_values().flatten().collect();
    Ok(order)
}
