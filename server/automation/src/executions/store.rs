//! Executions in the database: how they are sent, taken in and ended.
//!
//! Invariant: what is done for each order or outcome costs the same however many executions are over. Statements name
//! the condition of the index `executions_at_work` word for word, or SQLite would read the whole table.

use std::collections::BTreeSet;

use drover_kernel::db::Read;
use drover_kernel::{Error, Result, Time, Tx, args, row, sql};
use drover_shared::Digest;
use drover_shared::message::{Finished, Release};
use drover_shared::words::{Action, ExecutionState as State};

use super::rules::{self, Answer, Event};
use crate::locks::rules::Object;
use crate::tasks::rules::Role;

row! {
    /// What sending an execution needs.
    pub struct Sendable {
        pub id: String,
        pub organisation_id: i64,
        pub task_id: i64,
        /// None for a task that belongs to hosts.
        pub application_id: Option<i64>,
        pub ordinal: i64,
        pub attempt: i64,
        pub state: State,
        pub instance_id: Option<i64>,
        pub host_id: i64,
        pub host_name: String,
        pub role: Role,
        pub entry: String,
        pub entry_digest: Digest,
        pub plan_digest: Digest,
        pub deadline_at: Time,
        pub dispatched_at: Option<Time>,
        /// Why nothing of it is to be started any more, if a person or its task says so.
        pub withdrawn: Option<String>,
    }
}

row! {
    /// What taking in news of an execution needs.
    pub struct Known {
        pub id: String,
        pub organisation_id: i64,
        pub task_id: i64,
        pub ordinal: i64,
        pub role: Role,
        pub instance_id: Option<i64>,
        pub host_id: i64,
        pub host_name: String,
        pub attempt: i64,
        pub state: State,
        /// What its task does, and the version that it is about.
        pub kind: Action,
        pub version: String,
        /// Whether its task goes by a rollout rule, which has to hear of it.
        pub by_rule: bool,
        /// Whether a person has said what became of it, because nobody knew.
        pub answered: bool,
        /// Whether a person took its lock away: its host's word moves nothing any more.
        pub broken: bool,
    }
}

impl Known {
    /// What it has, until it is over.
    pub(crate) fn object(&self) -> Option<Object> {
        Object::of(self.role, self.instance_id, self.host_id)
    }
}

/// Executions of these hosts that may be sent now, beyond an id, oldest first: their task has reached their phase, its plan is
/// complete.
pub(crate) async fn queued_for_hosts(
    read: &mut Read,
    hosts: &[i64],
    beyond: &str,
    limit: i64,
) -> Result<Vec<Sendable>> {
    let sql = sql!(
        "SELECT e.id, e.organisation_id, e.task_id, e.ordinal, e.attempt, e.state, e.instance_id, e.host_id, e.host_name, \
         e.role, e.entry, e.entry_digest, t.plan_digest, t.deadline_at, e.dispatched_at, t.application_id, \
         COALESCE(e.cancel_reason, CASE WHEN t.cancelled OR e.role <> 'global_post' THEN t.stop_reason END) AS withdrawn FROM executions e \
         JOIN tasks t ON t.id = e.task_id WHERE e.host_id IN ($1) AND e.id > $2 \
         AND e.state IN ('queued', 'dispatched', 'running') AND e.state = 'queued' AND t.plan_digest IS NOT NULL \
         AND e.batch <= t.batch_admitted AND t.held_by IS NULL AND t.phase = CASE e.role WHEN 'instance' THEN 'instances' ELSE e.role END ORDER BY e.id LIMIT $3"
    );
    Ok(read.all(sql, args![hosts.to_vec(), beyond, limit]).await?)
}

/// Those of these hosts that have at least so many executions that are not over.
pub(crate) async fn hosts_with(read: &mut Read, hosts: &[i64], out: i64) -> Result<Vec<i64>> {
    let sql = sql!(
        "SELECT host_id FROM executions WHERE host_id IN ($1) AND state IN ('queued', 'dispatched', 'running') \
         AND state <> 'queued' GROUP BY host_id HAVING COUNT(*) >= $2"
    );
    Ok(read.values(sql, args![hosts.to_vec(), out]).await?)
}

row! {
    /// A host for which a task has executions that may be sent now.
    pub struct WaitingHost {
        pub host_id: i64,
        pub host_name: String,
    }
}

/// Hosts for which a task has executions that may be sent now.
pub(crate) async fn hosts_waiting(read: &mut Read, task_id: i64) -> Result<Vec<WaitingHost>> {
    let sql = sql!(
        "SELECT DISTINCT e.host_id, e.host_name FROM executions e JOIN tasks t ON t.id = e.task_id WHERE e.task_id = $1 \
         AND e.state = 'queued' AND t.plan_digest IS NOT NULL \
         AND e.batch <= t.batch_admitted AND t.held_by IS NULL AND t.phase = CASE e.role WHEN 'instance' THEN 'instances' ELSE e.role END"
    );
    Ok(read.all(sql, args![task_id]).await?)
}

/// Executions that were sent to a host and are not over: the agent answers for them.
pub(crate) async fn out_on_host(read: &mut Read, host_id: i64) -> Result<Vec<Sendable>> {
    let sql = sql!(
        "SELECT e.id, e.organisation_id, e.task_id, e.ordinal, e.attempt, e.state, e.instance_id, e.host_id, e.host_name, \
         e.role, e.entry, e.entry_digest, t.plan_digest, t.deadline_at, e.dispatched_at, t.application_id, \
         COALESCE(e.cancel_reason, CASE WHEN t.cancelled OR e.role <> 'global_post' THEN t.stop_reason END) AS withdrawn FROM executions e \
         JOIN tasks t ON t.id = e.task_id WHERE e.host_id = $1 AND e.state IN ('queued', 'dispatched', 'running') \
         AND e.state <> 'queued' ORDER BY e.id"
    );
    Ok(read.all(sql, args![host_id]).await?)
}

/// Executions that were marked as sent before a time, and whose agent has not answered, beyond an id; two hundred at a time.
pub(crate) async fn unanswered(read: &mut Read, before: Time, beyond: &str) -> Result<Vec<Sendable>> {
    let sql = sql!(
        "SELECT e.id, e.organisation_id, e.task_id, e.ordinal, e.attempt, e.state, e.instance_id, e.host_id, e.host_name, \
         e.role, e.entry, e.entry_digest, t.plan_digest, t.deadline_at, e.dispatched_at, t.application_id, \
         COALESCE(e.cancel_reason, CASE WHEN t.cancelled OR e.role <> 'global_post' THEN t.stop_reason END) AS withdrawn FROM executions e \
         JOIN tasks t ON t.id = e.task_id WHERE e.state = 'dispatched' AND e.dispatched_at < $1 AND e.id > $2 \
         ORDER BY e.id LIMIT 200"
    );
    Ok(read.all(sql, args![before, beyond]).await?)
}

/// An execution of a host.
pub(crate) async fn find(read: &mut Read, host_id: i64, id: &str) -> Result<Option<Known>> {
    Ok(find_all(read, vec![id.to_owned()]).await?.into_iter().find(|known| known.host_id == host_id))
}

/// Executions by their ids, whatever their hosts.
pub(crate) async fn find_all(read: &mut Read, ids: Vec<String>) -> Result<Vec<Known>> {
    let sql = sql!(
        "SELECT e.id, e.organisation_id, e.task_id, e.ordinal, e.role, e.instance_id, e.host_id, e.host_name, e.attempt, \
         e.state, t.kind, t.version, t.rollout IS NOT NULL AS by_rule, e.answer IS NOT NULL AS answered, \
         e.broken FROM executions e JOIN tasks t ON t.id = e.task_id WHERE e.id IN ($1)"
    );
    Ok(read.all(sql, args![ids]).await?)
}

/// What an execution was sent.
pub(crate) async fn entry(read: &mut Read, id: &str) -> Result<String> {
    Ok(read.value(sql!("SELECT entry FROM executions WHERE id = $1"), args![id]).await?)
}

/// Marks executions of these tasks as sent in the present session of their hosts' agents. Gives the ids that may still be sent: a person
/// may have held or ended their task since they were read.
pub async fn mark_sent(tx: &mut Tx, ids: Vec<String>, tasks: BTreeSet<i64>) -> Result<Vec<String>> {
    // Whoever holds or stops a task does it before, or after this is committed.
    for task_id in tasks {
        tx.run(sql!("UPDATE tasks SET phase = phase WHERE id = $1"), args![task_id]).await?;
    }
    let now = tx.now();
    let sql = sql!(
        "UPDATE executions SET state = 'dispatched', dispatched_at = $2, reason = NULL, \
         epoch = (SELECT MAX(a.epoch) FROM agents a WHERE a.host_id = executions.host_id) \
         WHERE id IN ($1) AND state = 'queued' AND EXISTS (SELECT 1 FROM tasks t WHERE t.id = executions.task_id \
         AND t.held_by IS NULL AND executions.batch <= t.batch_admitted AND t.phase = \
         CASE executions.role WHEN 'instance' THEN 'instances' ELSE executions.role END) RETURNING id"
    );
    Ok(tx.values(sql, args![ids, now]).await?)
}

/// Moves an execution from the state it was read in. False when the event does not apply: it was heard before.
pub(crate) async fn advance(tx: &mut Tx, execution: &Known, event: Event, reason: Option<&str>) -> Result<bool> {
    let Ok(state) = rules::step(execution.state, event) else { return Ok(false) };
    if state == execution.state {
        return Ok(true);
    }
    let now = tx.now();
    let (started, finished) = ((state == State::Running).then_some(now), state.is_over().then_some(now));
    let sql = sql!(
        "UPDATE executions SET state = $4, reason = $5, started_at = COALESCE(started_at, $6), finished_at = $7 \
         WHERE id = $1 AND attempt = $2 AND state = $3"
    );
    let arguments = args![execution.id.as_str(), execution.attempt, execution.state, state, reason, started, finished];
    tx.run_one(sql, arguments).await.map(|()| true)
}

/// Puts an execution back to those that wait to be sent, and notes why. False when the event does not apply.
pub(crate) async fn put_back(tx: &mut Tx, execution: &Known, reason: &str) -> Result<bool> {
    let Ok(state) = rules::step(execution.state, Event::PutBack) else { return Ok(false) };
    let sql = sql!(
        "UPDATE executions SET state = $4, reason = $5, dispatched_at = NULL, epoch = NULL \
         WHERE id = $1 AND attempt = $2 AND state = $3"
    );
    let arguments = args![execution.id.as_str(), execution.attempt, execution.state, state, reason];
    tx.run_one(sql, arguments).await.map(|()| true)
}

/// Takes all that was sent as begun, so that it is not sent again: after a restore nobody knows whether it was. Gives how
/// many are under way.
pub(crate) async fn take_as_begun(tx: &mut Tx) -> Result<u64> {
    let now = tx.now();
    let begin = sql!(
        "UPDATE executions SET state = 'running', started_at = COALESCE(started_at, $1) WHERE state = 'dispatched'"
    );
    tx.run(begin, args![now]).await?;
    let count: i64 = tx.value(sql!("SELECT COUNT(*) FROM executions WHERE state = 'running'"), args![]).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Moves executions on that their agents have accepted, from the state that they were read in.
pub(crate) async fn accept(tx: &mut Tx, ids: Vec<String>) -> Result<()> {
    let now = tx.now();
    let sql = sql!(
        "UPDATE executions SET state = 'running', started_at = COALESCE(started_at, $2) \
         WHERE id IN ($1) AND state = 'dispatched'"
    );
    tx.run(sql, args![ids, now]).await?;
    Ok(())
}

/// Moves an execution to its end, with the details of how it ended. False as [`advance`] gives it.
pub(crate) async fn finish(tx: &mut Tx, execution: &Known, event: Event, finished: &Finished) -> Result<bool> {
    let Ok(state) = rules::step(execution.state, event) else { return Ok(false) };
    let steps = serde_json::to_value(&finished.steps).map_err(Error::internal)?;
    let processes = serde_json::to_value(&finished.processes).map_err(Error::internal)?;
    let now = tx.now();
    let sql = sql!(
        "UPDATE executions SET state = $4, reason = $5, finished_at = $6, steps = $7, processes = $8, \
         output_truncated = $9 WHERE id = $1 AND attempt = $2 AND state = $3"
    );
    let (id, reason) = (execution.id.as_str(), finished.reason.as_deref());
    let truncated = finished.output_truncated;
    let arguments = args![id, execution.attempt, execution.state, state, reason, now, steps, processes, truncated];
    tx.run_one(sql, arguments).await.map(|()| true)
}

/// Keeps what a host says of an execution whose lock was broken. False when it has said so before.
pub(crate) async fn note_late_word(tx: &mut Tx, id: &str, finished: &Finished) -> Result<bool> {
    let steps = serde_json::to_value(&finished.steps).map_err(Error::internal)?;
    let processes = serde_json::to_value(&finished.processes).map_err(Error::internal)?;
    let sql = sql!(
        "UPDATE executions SET host_said = $2, steps = $3, processes = $4, output_truncated = $5 \
         WHERE id = $1 AND broken AND host_said IS NULL"
    );
    let said = finished.state;
    Ok(tx.run(sql, args![id, said, steps, processes, finished.output_truncated]).await? == 1)
}

row! {
    /// An execution that was ended before it was sent.
    pub struct Unsent {
        pub instance_id: Option<i64>,
        pub previous_status: Option<String>,
    }
}

/// Cancels what a task has not sent yet, all at once: what is being sent at the same time is left alone, and whatever is
/// left cannot be sent any more. Without `last_hook` the hook that runs once after the instances stays.
pub(crate) async fn cancel_queued(tx: &mut Tx, task_id: i64, reason: &str, last_hook: bool) -> Result<Vec<Unsent>> {
    let now = tx.now();
    let sql = sql!(
        "UPDATE executions SET state = 'cancelled', reason = $2, finished_at = $3 WHERE task_id = $1 AND state = 'queued' \
         AND ($4 OR role <> 'global_post') RETURNING instance_id, previous_status"
    );
    Ok(tx.all(sql, args![task_id, reason, now, last_hook]).await?)
}

/// Notes why what was sent is to end; the first reason stays. False when it is over.
pub(crate) async fn cancel(tx: &mut Tx, id: &str, reason: &str) -> Result<bool> {
    let sql = sql!(
        "UPDATE executions SET cancel_reason = COALESCE(cancel_reason, $2) \
         WHERE id = $1 AND state IN ('dispatched', 'running')"
    );
    Ok(tx.run(sql, args![id, reason]).await? == 1)
}

/// Takes out what ended because a person cancelled it alone.
pub(crate) async fn take_out_cancelled(tx: &mut Tx, id: &str) -> Result<()> {
    let sql = sql!(
        "UPDATE executions SET excluded = TRUE \
         WHERE id = $1 AND state = 'cancelled' AND cancel_reason IS NOT NULL AND role = 'instance'"
    );
    Ok(tx.run(sql, args![id]).await.map(drop)?)
}

/// Whether nothing of a task waits or runs any more.
pub(crate) async fn all_are_over(read: &mut Read, task_id: i64) -> Result<bool> {
    let sql =
        sql!("SELECT COUNT(*) FROM executions WHERE task_id = $1 AND state IN ('queued', 'dispatched', 'running')");
    Ok(read.value::<i64>(sql, args![task_id]).await? == 0)
}

row! {
    /// A later task that did something to an instance.
    pub struct Later {
        pub instance_id: i64,
        pub task_id: i64,
        /// Whether that task tried this one again.
        pub retries: bool,
    }
}

/// What tasks were sent for these instances that had them after this one, and what waits to try it again.
pub(crate) async fn later_tasks(read: &mut Read, instances: Vec<i64>, task_id: i64) -> Result<Vec<Later>> {
    let sql = sql!(
        "SELECT e.instance_id, e.task_id, COALESCE(t.origin = 'retry' AND t.origin_task_id = $2, FALSE) AS retries \
         FROM executions e JOIN tasks t ON t.id = e.task_id JOIN tasks o ON o.id = $2 \
         WHERE e.instance_id IN ($1) AND e.task_id <> $2 AND ((e.dispatched_at IS NOT NULL \
         AND (t.taken > o.taken OR (o.taken IS NULL AND t.id > o.id))) OR (e.state = 'queued' AND t.taken IS NULL \
         AND t.phase <> 'over' AND COALESCE(t.origin = 'retry' AND t.origin_task_id = $2, FALSE))) \
         ORDER BY t.taken, e.task_id"
    );
    Ok(read.all(sql, args![instances, task_id]).await?)
}

row! {
    /// What a retry of a task, or one of that, has of what belongs to no instance: a hook that runs once, or a script.
    pub struct TriedAgain {
        pub role: Role,
        pub host_id: i64,
        pub task_id: i64,
        pub state: State,
        /// Whether it is a retry of the task itself.
        pub directly: bool,
    }
}

/// What retries of a task, and retries of those, sent or are to send.
pub(crate) async fn tried_again(read: &mut Read, task_id: i64) -> Result<Vec<TriedAgain>> {
    let sql = sql!(
        "WITH RECURSIVE again (id, directly) AS (SELECT t.id, TRUE FROM tasks t WHERE t.origin_task_id = $1 \
         AND t.origin = 'retry' UNION ALL SELECT t.id, FALSE FROM again a JOIN tasks t ON t.origin_task_id = a.id \
         WHERE t.origin = 'retry') SELECT e.role, e.host_id, e.task_id, e.state, a.directly FROM again a \
         JOIN executions e ON e.task_id = a.id WHERE e.instance_id IS NULL \
         AND (e.dispatched_at IS NOT NULL OR e.state = 'queued') ORDER BY e.task_id"
    );
    Ok(read.all(sql, args![task_id]).await?)
}

/// Whether an instance has been given to another task after this one.
pub(crate) async fn has_later_task(read: &mut Read, instance_id: i64, task_id: i64) -> Result<bool> {
    let sql = sql!(
        "SELECT COUNT(*) FROM executions e JOIN tasks t ON t.id = e.task_id WHERE e.instance_id = $1 \
         AND t.taken > (SELECT o.taken FROM tasks o WHERE o.id = $2)"
    );
    Ok(read.value::<i64>(sql, args![instance_id, task_id]).await? > 0)
}

/// Replaces what is known of the releases that an instance keeps.
pub(crate) async fn set_releases(tx: &mut Tx, instance_id: i64, releases: &[Release]) -> Result<()> {
    let organisation_id = tx.organisation_id();
    tx.run(sql!("DELETE FROM instance_releases WHERE instance_id = $1"), args![instance_id]).await?;
    let rows = releases
        .iter()
        .map(|release| {
            args![
                organisation_id,
                instance_id,
                release.name.as_str(),
                release.version.as_str(),
                release.artifact_digest,
                release.tree_digest,
                release.current,
                release.installed_ms
            ]
        })
        .collect();
    let sql = sql!(
        "INSERT INTO instance_releases (organisation_id, instance_id, release_name, version, artifact_digest, \
         tree_digest, is_current, installed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
    );
    Ok(tx.insert_many(sql, rows).await?)
}

/// Keeps what a person says of a lost execution. False when somebody has said something already, or it is lost no more.
pub(crate) async fn answer(tx: &mut Tx, id: &str, answer: Answer, (by, reason): (&str, &str)) -> Result<bool> {
    let now = tx.now();
    let sql = sql!(
        "UPDATE executions SET answer = $2, answered_by = $3, answered_at = $4, answer_reason = $5 \
         WHERE id = $1 AND state = 'lost' AND answer IS NULL"
    );
    Ok(tx.run(sql, args![id, answer, by, now, reason]).await? == 1)
}

row! {
    /// A lost execution of which nobody has said anything.
    pub struct Unanswered {
        pub task_id: i64,
        pub host_name: String,
    }
}

/// Those of these instances.
pub(crate) async fn open_questions(read: &mut Read, instances: &[i64]) -> Result<Vec<Unanswered>> {
    let sql = sql!(
        "SELECT task_id, host_name FROM executions WHERE instance_id IN ($1) AND state = 'lost' AND answer IS NULL \
         ORDER BY task_id LIMIT 100"
    );
    Ok(read.all(sql, args![instances.to_vec()]).await?)
}

/// The status that an execution's instance had before its task.
pub(crate) async fn previous_status(read: &mut Read, id: &str) -> Result<Option<String>> {
    Ok(read.value(sql!("SELECT previous_status FROM executions WHERE id = $1"), args![id]).await?)
}
