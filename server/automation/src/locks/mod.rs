//! Who holds what, who waits for it, and taking it away from a holder that does not let go.
//!
//! Invariants: one task at a time changes an instance; a task takes all that it changes together; a lock is not a row of
//! its own but follows from the executions that are not over, so that nothing is held by nobody.

mod breaking;
pub mod rules;
pub(crate) mod store;
pub(crate) mod taking;

use std::collections::BTreeMap;

use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Flag, Id, Words};
use drover_kernel::resources::{ResourceKind, Resources};
use drover_kernel::{Call, Kernel, Page, Paging, Query, Reply, Result, Routes, api_words, permission, sql, when};
use drover_shared::words::{Action, ExecutionState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::rules::{Holder, InLine, Object, Obstacle, Waiter};
use self::store::{HeldRow, QueuedRow, WantRow};
use crate::tasks::seen::visible_tasks;

/// Tasks, or things, that a list names for one of its rows; it says how many there are.
const NAMED_MAX: usize = 20;

permission!(pub List, "locks.list", "List who holds and who waits for what one may see", SignedIn);
permission!(pub BreakInstance, "locks.break", "Take an instance away from the task that has it",
    Resource { kind: "instance", right: "view_app" });
permission!(pub BreakHost, "locks.break_host", "Take a host away from the task that runs a script there",
    Resource { kind: "host", right: "view_host" });

/// Routes of locks and of the queue.
pub fn routes() -> Routes {
    Routes::tagged("locks")
        .get("/locks/", "locks-list", "List what tasks have, with who waits for it.", list)
        .post(
            "/locks/instances/{id}/actions/break/",
            "lock-break-instance",
            "Take an instance away from the task that has it: that is cancelled, and what is under way there given up.",
            breaking::break_instance,
        )
        .post(
            "/locks/hosts/{id}/actions/break/",
            "lock-break-host",
            "Take a host away from the task that runs a script there: that is cancelled, and what is under way given up.",
            breaking::break_host,
        )
        .get("/queue/", "queue-list", "List tasks that wait until what they change is free, in their order.", queue)
}

/// An instance stands for its application.
pub fn resources() -> Resources {
    Resources::default().with(ResourceKind {
        name: "instance",
        noun: "instance",
        governed_by: "application",
        find: sql!("SELECT application_id FROM instances WHERE organisation_id = $1 AND id = $2"),
        further_rights: None,
        implied: &[],
        text_key: false,
        instead: None,
    })
}

api_words! {
    /// What is held.
    pub(crate) enum Kind {
        /// An instance.
        Instance = "instance",
        /// A host.
        Host = "host",
    }
}

api_words! {
    /// Why a task waits for something.
    pub(crate) enum Why {
        /// Another task has it.
        Taken = "taken",
        /// A task that goes before it wants it.
        Wanted = "wanted",
    }
}

fn kind_of(object: Object) -> (Kind, i64) {
    match object {
        Object::Instance(id) => (Kind::Instance, id),
        Object::Host(id) => (Kind::Host, id),
    }
}

/// Whose queue: a task, with what it wants.
fn waiters(rows: &[WantRow]) -> Vec<Waiter> {
    let mut waiters: Vec<Waiter> = Vec::new();
    for row in rows {
        let want = (row.object(), row.is_taken());
        match waiters.last_mut().filter(|last| last.task_id == row.task_id) {
            Some(last) => last.wants.push(want),
            None => waiters.push(Waiter { task_id: row.task_id, rank: row.rank, ready: row.ready, wants: vec![want] }),
        }
    }
    waiters
}

/// Tasks that begin now.
pub(crate) fn beginning(rows: &[WantRow]) -> Vec<i64> {
    rules::line(waiters(rows)).iter().filter(|one| one.begins()).map(|one| one.task_id).collect()
}

/// Filters of the queue.
#[derive(Deserialize, JsonSchema)]
struct Filters {
    /// Of one application.
    #[serde(default, alias = "application")]
    application_id: Option<Id>,
    /// Of one task.
    #[serde(default)]
    task_id: Option<Id>,
}

/// What the caller may see, of an application and of a task if they are named.
fn conditions(call: &Call<List>, application_id: Option<Id>, task_id: Option<Id>) -> Result<Vec<Condition>> {
    let mut conditions: Vec<Condition> = Vec::new();
    conditions.extend(visible_tasks(call.caller()?));
    conditions.extend(application_id.map(|id| when!("t.application_id = $1", id.0)));
    conditions.extend(task_id.map(|id| when!("t.id = $1", id.0)));
    Ok(conditions)
}

/// A task in the queue.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "QueuedTask")]
struct QueuedOut {
    /// Its place among all that wait, from 1 on.
    position: usize,
    task_id: String,
    deploy_task_id: Option<i64>,
    #[schemars(with = "Words<Action>")]
    kind: Action,
    /// Null for a task that runs a script.
    application_id: Option<i64>,
    application: Option<String>,
    version: String,
    /// The more the earlier.
    priority: i64,
    /// What that has become by waiting: one more for each ten minutes.
    effective_priority: i64,
    creator: String,
    created_time: String,
    /// Who holds it: it takes nothing, and others pass it.
    held_by: Option<String>,
    /// Whether it goes after tasks that have not ended: until then it takes nothing, and others pass it.
    goes_after_others: bool,
    /// How many things it waits for.
    waits_for_count: usize,
    /// The first of them.
    waits_for: Vec<WaitsForOut>,
}

/// Something that a task waits for.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "WaitsFor")]
struct WaitsForOut {
    kind: Kind,
    id: i64,
    hostname: String,
    why: Why,
    /// Who has it, or gets it before; null while nobody can say.
    task_id: Option<String>,
}

async fn queue(call: Call<List>, filters: Query<Filters>, paging: Paging) -> Result<Reply<Page<QueuedOut>>> {
    let conditions = conditions(&call, filters.0.application_id, filters.0.task_id)?;
    let mut read = call.read().await?;
    let (count, tasks) = store::queue(&mut read, call.organisation_id(), &conditions, &paging).await?;
    let of_all = [when!("t.organisation_id = $1", call.organisation_id())];
    let rows = store::wanted(&mut read, &of_all).await?;
    let line = rules::line(waiters(&rows));
    let results = tasks.into_iter().map(|task| queued(call.kernel(), task, &line, &rows)).collect();
    Ok(Reply::new(paging.page(count, results)))
}

fn queued(kernel: &Kernel, task: QueuedRow, line: &[InLine], rows: &[WantRow]) -> QueuedOut {
    let place = line.iter().position(|one| one.task_id == task.id);
    let obstacles = place.and_then(|place| line.get(place)).map_or(&[][..], |one| one.obstacles.as_slice());
    let wanted = |object: Object| rows.iter().find(|row| row.task_id == task.id && row.object() == object);
    let shown = |(object, obstacle): &(Object, Obstacle)| {
        let (kind, id) = kind_of(*object);
        let row = wanted(*object);
        let (why, other) = match obstacle {
            Obstacle::Taken => (Why::Taken, row.and_then(|row| row.holder)),
            Obstacle::Wanted(task_id) => (Why::Wanted, Some(*task_id)),
        };
        let hostname = row.map(|row| row.host_name.clone()).unwrap_or_default();
        WaitsForOut { kind, id, hostname, why, task_id: other.map(|id| id.to_string()) }
    };
    QueuedOut {
        position: place.map_or(0, |place| place + 1),
        task_id: task.id.to_string(),
        deploy_task_id: task.deploy_task_id,
        kind: task.kind,
        application_id: task.application_id,
        application: task.application,
        version: task.version,
        priority: task.priority,
        effective_priority: rules::risen(task.priority, task.created_at, kernel.clock().now()),
        creator: task.creator,
        created_time: kernel.show(task.created_at),
        held_by: task.held_by,
        goes_after_others: task.waits,
        waits_for_count: obstacles.len(),
        waits_for: obstacles.iter().take(NAMED_MAX).map(shown).collect(),
    }
}

/// Filters of the locks.
#[derive(Deserialize, JsonSchema)]
struct LockFilters {
    /// Of one application.
    #[serde(default, alias = "application")]
    application_id: Option<Id>,
    /// Of one task.
    #[serde(default)]
    task_id: Option<Id>,
    /// Whether a task waits for it.
    #[serde(default)]
    wanted: Option<Flag>,
}

/// Something that a task has.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Lock")]
struct LockOut {
    kind: Kind,
    id: i64,
    host_id: i64,
    hostname: String,
    task_id: String,
    deploy_task_id: Option<i64>,
    /// What the task does.
    #[schemars(with = "Words<Action>")]
    task_kind: Action,
    /// Null for a task that runs a script.
    application_id: Option<i64>,
    application: Option<String>,
    version: String,
    creator: String,
    execution_id: String,
    /// What the task is doing there.
    #[schemars(with = "Words<ExecutionState>")]
    status: ExecutionState,
    /// Since when the task has it.
    since_time: Option<String>,
    /// Whether the host is connected.
    connected: bool,
    last_seen_time: Option<String>,
    /// Why somebody should look at it; null when all is as usual.
    stuck: Option<String>,
    /// How many tasks wait for it.
    waiting_count: usize,
    /// The first of them, in their order.
    waiting: Vec<String>,
}

async fn list(call: Call<List>, filters: Query<LockFilters>, paging: Paging) -> Result<Reply<Page<LockOut>>> {
    let mut conditions = conditions(&call, filters.0.application_id, filters.0.task_id)?;
    conditions.extend(filters.0.wanted.map(|wanted| {
        when!(
            "EXISTS (SELECT 1 FROM tasks w JOIN executions n ON n.task_id = w.id WHERE w.taken IS NULL AND w.phase <> 'over' \
             AND n.role = 'instance' AND n.state = 'queued' AND CASE WHEN e.instance_id IS NULL \
             THEN n.instance_id IS NULL AND n.host_id = e.host_id ELSE n.instance_id = e.instance_id END) = $1",
            wanted.0
        )
    }));
    let mut read = call.read().await?;
    let (count, rows) = store::held(&mut read, call.organisation_id(), &conditions, &paging).await?;
    let waiting = waiting(&mut read, call.organisation_id()).await?;
    let results = rows.into_iter().map(|row| lock(call.kernel(), row, &waiting)).collect();
    Ok(Reply::new(paging.page(count, results)))
}

/// Who waits for what, in the order of the queue.
async fn waiting(read: &mut Read, organisation_id: i64) -> Result<BTreeMap<Object, Vec<i64>>> {
    let rows = store::wanted(read, &[when!("t.organisation_id = $1", organisation_id)]).await?;
    let mut waiting: BTreeMap<Object, Vec<i64>> = BTreeMap::new();
    for row in rows {
        waiting.entry(row.object()).or_default().push(row.task_id);
    }
    Ok(waiting)
}

fn lock(kernel: &Kernel, row: HeldRow, waiting: &BTreeMap<Object, Vec<i64>>) -> LockOut {
    let object = store::object(row.instance_id, row.host_id);
    let (kind, id) = kind_of(object);
    let waiting = waiting.get(&object).map_or(&[][..], Vec::as_slice);
    let connected = row.connected == Some(true);
    let holder = Holder {
        state: row.state,
        has_turn: row.has_turn,
        deadline_at: row.deadline_at,
        held_by: row.held_by.as_deref(),
        connected,
    };
    LockOut {
        kind,
        id,
        stuck: rules::stuck(&holder, kernel.clock().now()),
        host_id: row.host_id,
        hostname: row.host_name,
        task_id: row.task_id.to_string(),
        deploy_task_id: row.deploy_task_id,
        task_kind: row.kind,
        application_id: row.application_id,
        application: row.application,
        version: row.version,
        creator: row.creator,
        execution_id: row.execution_id,
        status: row.state,
        since_time: row.taken_at.map(|time| kernel.show(time)),
        connected,
        last_seen_time: row.last_seen_at.map(|time| kernel.show(time)),
        waiting_count: waiting.len(),
        waiting: waiting.iter().take(NAMED_MAX).map(i64::to_string).collect(),
    }
}
