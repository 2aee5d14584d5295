//! Who holds what and who waits for it, in the database. There is no table of locks: what a task holds is what it has not
//! ended there, so nothing can be held by nobody.

use drover_inventory::instances::rules::InstanceStatus;
use drover_kernel::db::{Condition, Read};
use drover_kernel::{Paging, Result, Time, Tx, args, row, sql};
use drover_shared::words::{Action, ExecutionState, Word as _};

use super::rules::Object;
use super::taking::Targets;
use crate::executions::rules::Answer;
use crate::tasks::store::Task;

row! {
    /// Something that a task in the queue wants.
    pub struct WantRow {
        pub task_id: i64,
        pub rank: i64,
        pub ready: bool,
        pub instance_id: Option<i64>,
        pub host_id: i64,
        pub host_name: String,
        /// What the instance is doing; none when it, or the host, is gone.
        pub status: Option<String>,
        /// The task that has it.
        pub holder: Option<i64>,
    }
}

impl WantRow {
    pub(super) fn object(&self) -> Object {
        object(self.instance_id, self.host_id)
    }

    /// Whether somebody has it. Whatever its status says counts as well: an instance that is changed belongs to somebody.
    pub(super) fn is_taken(&self) -> bool {
        let status: Option<InstanceStatus> = self.status.as_deref().and_then(|text| text.parse().ok());
        self.holder.is_some() || status.is_some_and(InstanceStatus::is_busy)
    }
}

/// What an execution changes.
pub(super) fn object(instance_id: Option<i64>, host_id: i64) -> Object {
    instance_id.map_or(Object::Host(host_id), Object::Instance)
}

/// Everything that tasks in the queue want: all of it, because an order is of all. Bounded by what the queue takes.
pub(crate) async fn wanted(read: &mut Read, conditions: &[Condition]) -> Result<Vec<WantRow>> {
    let rows = sql!(
        "SELECT t.id AS task_id, (t.created_at - t.priority * 600000) AS rank, (NOT t.waits AND t.held_by IS NULL AND t.stop_reason IS NULL) AS ready, \
         e.instance_id, e.host_id, e.host_name, CASE WHEN e.instance_id IS NULL THEN h.status ELSE i.status END AS status, \
         COALESCE((SELECT MAX(x.task_id) FROM executions x JOIN tasks o ON o.id = x.task_id \
         WHERE x.instance_id = e.instance_id AND o.taken IS NOT NULL AND (x.state IN ('queued', 'dispatched', 'running') \
         OR (x.state = 'lost' AND x.answer IS NULL))), \
         (SELECT MAX(x.task_id) FROM executions x JOIN tasks o ON o.id = x.task_id WHERE e.instance_id IS NULL \
         AND x.host_id = e.host_id AND x.state IN ('queued', 'dispatched', 'running') AND x.instance_id IS NULL \
         AND x.role = 'instance' AND o.taken IS NOT NULL), \
         (SELECT MAX(x.task_id) FROM executions x JOIN tasks o ON o.id = x.task_id WHERE e.instance_id IS NULL \
         AND x.host_id = e.host_id AND x.state = 'lost' AND x.answer IS NULL AND x.instance_id IS NULL \
         AND x.role = 'instance' AND o.taken IS NOT NULL)) AS holder \
         FROM tasks t JOIN executions e ON e.task_id = t.id AND e.role = 'instance' AND e.state = 'queued' \
         LEFT JOIN instances i ON i.id = e.instance_id LEFT JOIN hosts h ON h.id = e.host_id \
         WHERE t.taken IS NULL AND t.phase <> 'over'/* filters */ ORDER BY rank, t.id, e.ordinal"
    );
    let mut arguments = args![];
    Ok(read.all(rows.filtered(conditions, &mut arguments), arguments).await?)
}

row! {
    /// How much waits.
    pub struct Length {
        pub tasks: i64,
        pub objects: i64,
    }
}

/// How long the queue is.
pub(super) async fn length(read: &mut Read) -> Result<Length> {
    let sql = sql!(
        "SELECT COUNT(DISTINCT t.id) AS tasks, COUNT(*) AS objects FROM tasks t JOIN executions e ON e.task_id = t.id \
         WHERE t.taken IS NULL AND t.phase <> 'over' AND e.role = 'instance' AND e.state = 'queued'"
    );
    Ok(read.one(sql, args![]).await?)
}

row! {
    /// What a task of a certain kind is in the way of.
    pub struct InTheWay {
        pub task_id: i64,
        pub host_name: String,
    }
}

/// A task in line that wants one of these and stands at this [rank](super::rules::rank) or before it.
pub(super) async fn before(read: &mut Read, targets: &Targets, rank: i64) -> Result<Option<InTheWay>> {
    let (instances, hosts) = targets.ids();
    let sql = sql!(
        "SELECT t.id AS task_id, e.host_name FROM executions e JOIN tasks t ON t.id = e.task_id \
         WHERE t.taken IS NULL AND t.phase <> 'over' AND NOT t.waits AND t.held_by IS NULL AND t.stop_reason IS NULL \
         AND t.created_at - t.priority * 600000 <= $3 AND e.state = 'queued' AND (e.instance_id IN ($1) OR (e.instance_id IS NULL \
         AND e.role = 'instance' AND e.host_id IN ($2))) \
         ORDER BY t.created_at - t.priority * 600000, t.id LIMIT 1"
    );
    Ok(read.opt(sql, args![instances.to_vec(), hosts.to_vec(), rank]).await?)
}

/// A task that has one of these.
pub(super) async fn holder(read: &mut Read, targets: &Targets) -> Result<Option<InTheWay>> {
    let of_instances = sql!(
        "SELECT x.task_id, x.host_name FROM executions x JOIN tasks o ON o.id = x.task_id WHERE x.instance_id IN ($1) \
         AND o.taken IS NOT NULL AND (x.state IN ('queued', 'dispatched', 'running') \
         OR (x.state = 'lost' AND x.answer IS NULL)) ORDER BY x.task_id LIMIT 1"
    );
    let of_hosts = sql!(
        "SELECT x.task_id, x.host_name FROM executions x JOIN tasks o ON o.id = x.task_id WHERE x.host_id IN ($1) \
         AND x.state IN ('queued', 'dispatched', 'running') AND x.instance_id IS NULL AND x.role = 'instance' \
         AND o.taken IS NOT NULL UNION ALL \
         SELECT x.task_id, x.host_name FROM executions x JOIN tasks o ON o.id = x.task_id WHERE x.host_id IN ($1) \
         AND x.state = 'lost' AND x.answer IS NULL AND x.instance_id IS NULL AND x.role = 'instance' \
         AND o.taken IS NOT NULL ORDER BY task_id LIMIT 1"
    );
    match targets {
        Targets::Instances(ids) => Ok(read.opt(of_instances, args![ids.clone()]).await?),
        Targets::Hosts(ids) => Ok(read.opt(of_hosts, args![ids.clone()]).await?),
    }
}

/// Hosts of what a task in the queue wants and that is not there any more.
pub(crate) async fn gone(read: &mut Read, task_id: i64) -> Result<Vec<String>> {
    let sql = sql!(
        "SELECT e.host_name FROM executions e LEFT JOIN instances i ON i.id = e.instance_id \
         LEFT JOIN hosts h ON h.id = e.host_id WHERE e.task_id = $1 AND e.role = 'instance' AND e.state = 'queued' \
         AND CASE WHEN e.instance_id IS NULL THEN h.id IS NULL ELSE i.id IS NULL END ORDER BY e.ordinal LIMIT 20"
    );
    Ok(read.values(sql, args![task_id]).await?)
}

/// Whether everything that a task was to change was taken out of it.
pub(crate) async fn wants_nothing(read: &mut Read, task_id: i64) -> Result<bool> {
    let sql = sql!("SELECT COUNT(*) FROM executions WHERE task_id = $1 AND role = 'instance' AND state = 'queued'");
    Ok(read.value::<i64>(sql, args![task_id]).await? == 0)
}

/// Tasks that were stopped, are not over, and have begun with one of these instances: they may take it back.
pub(crate) async fn stopped_on(read: &mut Read, instances: &[i64]) -> Result<Vec<i64>> {
    let sql = sql!(
        "SELECT DISTINCT t.id FROM executions e JOIN tasks t ON t.id = e.task_id WHERE e.instance_id IN ($1) \
         AND e.role = 'instance' AND e.dispatched_at IS NOT NULL AND t.phase <> 'over' AND t.stop_reason IS NOT NULL"
    );
    Ok(read.values(sql, args![instances.to_vec()]).await?)
}

/// Notes that a task has what it changes, with the status that each instance had before.
pub(crate) async fn take(tx: &mut Tx, task: &Task, before: &[(i64, String)]) -> Result<()> {
    let mut statuses: Vec<&str> = before.iter().map(|(_, status)| status.as_str()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    for status in statuses {
        let ids: Vec<i64> = before.iter().filter(|(_, one)| one == status).map(|(id, _)| *id).collect();
        let sql = sql!("UPDATE executions SET previous_status = $3 WHERE task_id = $1 AND instance_id IN ($2)");
        tx.run(sql, args![task.id, ids, status]).await?;
    }
    let now = tx.now();
    let deadline = now.after(std::time::Duration::from_secs(u64::try_from(task.timeout_s).unwrap_or(1)));
    let turn = turn(tx).await?;
    let sql = sql!("UPDATE tasks SET taken = $2, taken_at = $3, deadline_at = $4 WHERE id = $1 AND taken IS NULL");
    tx.run_one(sql, args![task.id, turn, now, deadline]).await
}

/// The number of the turn that begins: of two tasks that change the same thing the later one has the greater number,
/// because it is asked for when that thing is taken.
pub(crate) async fn turn(read: &mut Read) -> Result<i64> {
    Ok(read.value(sql!("SELECT COALESCE(MAX(taken), 0) + 1 FROM tasks"), args![]).await?)
}

/// Gives a task in the queue another place. False when it is not in the queue any more.
pub(crate) async fn prioritise(tx: &mut Tx, task_id: i64, priority: i64) -> Result<bool> {
    let sql = sql!("UPDATE tasks SET priority = $2 WHERE id = $1 AND taken IS NULL AND phase <> 'over'");
    Ok(tx.run(sql, args![task_id, priority]).await? == 1)
}

row! {
    /// A task in the queue, as it is listed.
    pub struct QueuedRow {
        pub id: i64,
        pub deploy_task_id: Option<i64>,
        pub kind: Action,
        pub application_id: Option<i64>,
        pub application: Option<String>,
        pub version: String,
        pub priority: i64,
        pub waits: bool,
        pub held_by: Option<String>,
        pub creator: String,
        pub created_at: Time,
    }
}

/// Tasks in the queue, in their order.
pub(super) async fn queue(
    read: &mut Read,
    organisation_id: i64,
    conditions: &[Condition],
    paging: &Paging,
) -> Result<(i64, Vec<QueuedRow>)> {
    let count = sql!(
        "SELECT COUNT(*) FROM tasks t LEFT JOIN applications a ON a.id = t.application_id \
         WHERE t.organisation_id = $1 AND t.taken IS NULL AND t.phase <> 'over'/* filters */"
    );
    let rows = sql!(
        "SELECT t.id, t.deploy_task_id, t.kind, t.application_id, a.full_name AS application, t.version, t.priority, t.waits, \
         t.held_by, t.creator, t.created_at FROM tasks t LEFT JOIN applications a ON a.id = t.application_id \
         WHERE t.organisation_id = $1 AND t.taken IS NULL AND t.phase <> 'over'/* filters */ \
         ORDER BY t.created_at - t.priority * 600000, t.id"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

row! {
    /// Something that a task has.
    pub struct HeldRow {
        pub execution_id: String,
        pub task_id: i64,
        pub instance_id: Option<i64>,
        pub host_id: i64,
        pub host_name: String,
        pub state: ExecutionState,
        pub has_turn: bool,
        pub deploy_task_id: Option<i64>,
        pub kind: Action,
        pub application_id: Option<i64>,
        pub application: Option<String>,
        pub version: String,
        pub creator: String,
        pub taken_at: Option<Time>,
        pub deadline_at: Time,
        pub held_by: Option<String>,
        pub connected: Option<bool>,
        pub last_seen_at: Option<Time>,
    }
}

/// What tasks have, in the order in which they took it.
pub(super) async fn held(
    read: &mut Read,
    organisation_id: i64,
    conditions: &[Condition],
    paging: &Paging,
) -> Result<(i64, Vec<HeldRow>)> {
    let count = sql!(
        "SELECT COUNT(*) FROM executions e JOIN tasks t ON t.id = e.task_id LEFT JOIN applications a ON a.id = t.application_id \
         WHERE e.organisation_id = $1 AND e.role = 'instance' AND t.taken IS NOT NULL \
         AND e.id IN (SELECT x.id FROM executions x WHERE x.state IN ('queued', 'dispatched', 'running') \
         UNION ALL SELECT y.id FROM executions y WHERE y.state = 'lost' AND y.answer IS NULL)/* filters */"
    );
    let rows = sql!(
        "SELECT e.id AS execution_id, e.task_id, e.instance_id, e.host_id, e.host_name, e.state, \
         (t.phase = 'instances' AND t.held_by IS NULL AND e.batch <= t.batch_admitted) AS has_turn, t.deploy_task_id, t.kind, \
         t.application_id, a.full_name AS application, t.version, t.creator, t.taken_at, t.deadline_at, t.held_by, \
         g.connected, g.last_seen_at FROM executions e JOIN tasks t ON t.id = e.task_id \
         LEFT JOIN applications a ON a.id = t.application_id LEFT JOIN agents g ON g.host_id = e.host_id \
         WHERE e.organisation_id = $1 AND e.role = 'instance' AND t.taken IS NOT NULL \
         AND e.id IN (SELECT x.id FROM executions x WHERE x.state IN ('queued', 'dispatched', 'running') \
         UNION ALL SELECT y.id FROM executions y WHERE y.state = 'lost' AND y.answer IS NULL)/* filters */ \
         ORDER BY t.taken, e.task_id, e.ordinal"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

row! {
    /// Who has something, for taking it away.
    pub struct HolderRow {
        pub execution_id: String,
        pub task_id: i64,
        pub deploy_task_id: Option<i64>,
    }
}

/// Who has an instance.
pub(super) async fn holder_of(read: &mut Read, organisation_id: i64, object: Object) -> Result<Option<HolderRow>> {
    let (instance_id, host_id) = match object {
        Object::Instance(id) => (Some(id), None),
        Object::Host(id) => (None, Some(id)),
    };
    let sql = sql!(
        "SELECT x.id AS execution_id, x.task_id, o.deploy_task_id FROM executions x JOIN tasks o ON o.id = x.task_id \
         WHERE x.organisation_id = $1 AND o.taken IS NOT NULL AND x.role = 'instance' \
         AND (x.state IN ('queued', 'dispatched', 'running') OR (x.state = 'lost' AND x.answer IS NULL)) \
         AND (x.instance_id = CAST($2 AS BIGINT) OR (x.instance_id IS NULL AND x.host_id = CAST($3 AS BIGINT))) \
         ORDER BY o.taken DESC LIMIT 1"
    );
    Ok(read.opt(sql, args![organisation_id, instance_id, host_id]).await?)
}

/// Takes an execution's lock away: nobody knows how it ends, and a person has said what follows from that. Gives whether
/// it had one.
pub(super) async fn break_one(tx: &mut Tx, id: &str, (by, reason): (&str, &str)) -> Result<bool> {
    let now = tx.now();
    let sql = sql!(
        "UPDATE executions SET state = 'lost', reason = CASE WHEN state = 'lost' THEN reason ELSE $5 END, \
         finished_at = COALESCE(finished_at, $4), broken = TRUE, answer = $2, answered_by = $3, answered_at = $4, \
         answer_reason = $5 WHERE id = $1 AND (state IN ('dispatched', 'running') OR (state = 'lost' AND answer IS NULL))"
    );
    let give_up = Answer::GiveUp.as_str();
    Ok(tx.run(sql, args![id, give_up, by, now, reason]).await? == 1)
}
