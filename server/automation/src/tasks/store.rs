//! Tasks and their executions in the database, and what planning reads.

use std::time::Duration;

use drover_kernel::db::{Condition, Json, Read};
use drover_kernel::{Error, Paging, Result, Time, Tx, api_words, args, row, sql};
use drover_shared::Digest;
use drover_shared::words::{Action, ExecutionState};

use super::rollout::Rollout;
use super::rules::{Outcome, Phase, Role};
use crate::credentials::store::Owner;
use crate::executions::rules::Answer;
use crate::locks::rules::Object;
use crate::locks::store as lock_store;

/// Executions in the detail of one deploy task; its newest sub-task is shown in any case.
const EXECUTIONS_SHOWN_MAX: i64 = 10_000;

row! {
    /// A task.
    pub struct Task {
        pub id: i64,
        pub organisation_id: i64,
        pub deploy_task_id: Option<i64>,
        /// None for a task that runs a script: it belongs to its hosts.
        pub application_id: Option<i64>,
        pub kind: Action,
        pub channel: String,
        pub version: String,
        pub update_source: Option<String>,
        pub timeout_s: i64,
        pub keep_backups: i64,
        pub phase: Phase,
        pub outcome: Option<Outcome>,
        pub reason: Option<String>,
        pub source: Option<Json<Source>>,
        pub resolved_commit: Option<String>,
        pub artifact_digest: Option<Digest>,
        pub plan_digest: Option<Digest>,
        pub creator: String,
        pub created_at: Time,
        pub deadline_at: Time,
        pub finished_at: Option<Time>,
        pub rollout: Option<Json<Rollout>>,
        pub batch_admitted: i64,
        pub promoted: bool,
        pub held_by: Option<String>,
        pub held_at: Option<Time>,
        pub stop_reason: Option<String>,
        pub cancelled: bool,
        pub origin: Option<Origin>,
        pub origin_task_id: Option<i64>,
        pub waits: bool,
        pub output_removed_at: Option<Time>,
        pub artifact_removed_at: Option<Time>,
        pub priority: i64,
        pub taken: Option<i64>,
    }
}

impl Task {
    /// What it is at, for rules and for people.
    pub(crate) fn phase(&self) -> Phase {
        if self.outcome.is_none() && (self.waits || self.is_queued()) { Phase::Waiting } else { self.phase }
    }

    /// Whether it waits until what it changes is free.
    pub(crate) fn is_queued(&self) -> bool {
        self.taken.is_none() && self.outcome.is_none()
    }
}

api_words! {
    /// Why a task was made from another one.
    pub enum Origin {
        /// A person wanted what failed to be tried again.
        Retry = "retry",
        /// The rollout was stopped and takes back what it changed.
        AutoRevert = "auto_revert",
    }
}

/// Where the files of an upgrade come from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Source {
    /// Application whose uploaded archives it is chosen from; then there is no repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_of: Option<i64>,
    /// Address of the repository.
    pub url: String,
    /// Branch taken when the version names nothing.
    pub branch: String,
    /// Version looked up as tag, commit or branch.
    pub version: String,
    /// Path inside; empty for the whole tree.
    pub path: String,
    /// Credential to log in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<i64>,
    /// Keys that the host may show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Certificates that the server is checked with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate: Option<String>,
    /// The commit to fetch, or the digest of the archive, when it was approved; else the version is looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Archive that has to come out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Digest>,
    /// Whose repository it is: there a host key is remembered that was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

row! {
    /// An execution as the engine needs it.
    pub struct Execution {
        pub id: String,
        pub task_id: i64,
        pub ordinal: i64,
        pub role: Role,
        pub instance_id: Option<i64>,
        pub host_id: i64,
        pub host_name: String,
        pub previous_status: Option<String>,
        pub attempt: i64,
        pub state: ExecutionState,
        pub batch: i64,
        pub excluded: bool,
        /// Why a person had it end by itself.
        pub cancel_reason: Option<String>,
        pub dispatched_at: Option<Time>,
        pub finished_at: Option<Time>,
    }
}

impl Execution {
    /// What people name: the instance, or the host of a script; none for a hook that runs once.
    pub(crate) fn target(&self) -> Option<i64> {
        self.instance_id.or_else(|| (self.role == Role::Instance).then_some(self.host_id))
    }

    /// What it has, until it is over.
    pub(crate) fn object(&self) -> Option<Object> {
        Object::of(self.role, self.instance_id, self.host_id)
    }
}

row! {
    /// What an execution was made from and did, which is long: read only by what makes or completes a plan.
    pub struct Script {
        pub execution_id: String,
        pub entry: String,
        pub steps: Option<Json<serde_json::Value>>,
        pub revert_entry: Option<String>,
    }
}

row! {
    /// An execution as its output names it.
    pub struct Speaker {
        pub id: String,
        pub ordinal: i64,
        pub instance_id: Option<i64>,
        pub host_name: String,
    }
}

row! {
    /// An execution as people see it.
    pub struct ExecutionView {
        pub id: String,
        pub task_id: i64,
        pub ordinal: i64,
        pub role: Role,
        pub instance_id: Option<i64>,
        pub host_id: i64,
        pub host_name: String,
        pub attempt: i64,
        pub state: ExecutionState,
        pub reason: Option<String>,
        pub steps: Option<Json<serde_json::Value>>,
        pub processes: Option<Json<serde_json::Value>>,
        pub output_truncated: bool,
        pub started_at: Option<Time>,
        pub finished_at: Option<Time>,
        pub batch: i64,
        pub excluded: bool,
        pub cancel_reason: Option<String>,
        pub answer: Option<Answer>,
        pub answered_by: Option<String>,
        pub answered_at: Option<Time>,
        pub answer_reason: Option<String>,
        pub broken: bool,
        pub host_said: Option<ExecutionState>,
    }
}

/// What is known of a new task before its row exists.
pub(crate) struct NewTask<'a> {
    pub deploy_task_id: Option<i64>,
    pub application_id: Option<i64>,
    pub kind: Action,
    pub channel: &'a str,
    pub version: &'a str,
    pub update_source: Option<&'a str>,
    pub timeout_s: i64,
    pub keep_backups: i64,
    pub source: Option<&'a Source>,
    pub creator: &'a str,
    pub deadline_at: Time,
    pub rollout: Option<&'a Rollout>,
    pub origin: Option<(Origin, i64)>,
    pub priority: i64,
    /// Whether it has what it changes.
    pub has_taken: bool,
}

pub(crate) async fn insert_task(tx: &mut Tx, new: &NewTask<'_>) -> Result<i64> {
    let source = new.source.map(serde_json::to_value).transpose().map_err(Error::internal)?;
    let rollout = new.rollout.map(serde_json::to_value).transpose().map_err(Error::internal)?;
    let turn = if new.has_taken { Some(lock_store::turn(tx).await?) } else { None };
    let arguments = args![
        tx.organisation_id(),
        new.deploy_task_id,
        new.application_id,
        new.kind,
        new.channel,
        new.version,
        new.update_source,
        new.timeout_s,
        new.keep_backups,
        Phase::Preparing,
        source,
        new.creator,
        tx.now(),
        new.deadline_at,
        rollout,
        new.origin.map(|(origin, _)| origin),
        new.origin.map(|(_, task_id)| task_id),
        new.priority,
        turn,
        turn.map(|_| tx.now())
    ];
    let sql = sql!(
        "INSERT INTO tasks (organisation_id, deploy_task_id, application_id, kind, channel, version, update_source, \
         timeout_s, keep_backups, phase, source, creator, created_at, deadline_at, rollout, origin, origin_task_id, \
         priority, taken, taken_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) RETURNING id"
    );
    Ok(tx.value(sql, arguments).await?)
}

/// A new execution; its entry is a draft until the plan is complete.
pub(crate) struct NewExecution {
    pub id: String,
    pub ordinal: i64,
    pub role: Role,
    pub instance_id: Option<i64>,
    pub host_id: i64,
    pub host_name: String,
    pub previous_status: Option<String>,
    pub entry: String,
    pub batch: i64,
    pub revert_entry: Option<String>,
}

pub(crate) async fn insert_executions(tx: &mut Tx, task_id: i64, executions: &[NewExecution]) -> Result<()> {
    let (organisation_id, now) = (tx.organisation_id(), tx.now());
    let rows = executions
        .iter()
        .map(|new| {
            args![
                new.id.as_str(),
                organisation_id,
                task_id,
                new.ordinal,
                new.role,
                new.instance_id,
                new.host_id,
                new.host_name.as_str(),
                new.previous_status.clone(),
                1_i64,
                ExecutionState::Queued,
                new.entry.as_str(),
                Digest::of(new.entry.as_bytes()),
                false,
                now,
                new.batch,
                new.revert_entry.clone()
            ]
        })
        .collect();
    let sql = sql!(
        "INSERT INTO executions (id, organisation_id, task_id, ordinal, role, instance_id, host_id, host_name, \
         previous_status, attempt, state, entry, entry_digest, output_truncated, created_at, batch, revert_entry) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
    );
    Ok(tx.insert_many(sql, rows).await?)
}

/// Stores the finished text of an execution's entry, once its artifact is known.
pub(crate) async fn set_entry(tx: &mut Tx, execution_id: &str, entry: &str) -> Result<()> {
    let digest = Digest::of(entry.as_bytes());
    // One that a person took out meanwhile is completed as well: the plan covers it, and it may be tried again.
    let sql =
        sql!("UPDATE executions SET entry = $2, entry_digest = $3 WHERE id = $1 AND state IN ('queued', 'cancelled')");
    tx.run_one(sql, args![execution_id, entry, digest]).await
}

/// Stores what the plan is bound to, once nothing of it can change any more, and the phase that the task enters.
pub(crate) async fn complete_plan(
    tx: &mut Tx,
    task_id: i64,
    phase: Phase,
    plan: Digest,
    artifact: Option<Digest>,
    commit: Option<&str>,
) -> Result<()> {
    let sql = sql!(
        "UPDATE tasks SET phase = $5, plan_digest = $2, artifact_digest = $3, resolved_commit = $4 \
         WHERE id = $1 AND plan_digest IS NULL AND phase = 'preparing'"
    );
    tx.run_one(sql, args![task_id, plan, artifact, commit, phase]).await
}

pub(crate) async fn find(read: &mut Read, task_id: i64) -> Result<Option<Task>> {
    Ok(read.opt(sql!("SELECT * FROM tasks WHERE id = $1"), args![task_id]).await?)
}

pub(crate) async fn find_by_channel(read: &mut Read, organisation_id: i64, channel: &str) -> Result<Task> {
    let sql = sql!("SELECT * FROM tasks WHERE organisation_id = $1 AND channel = $2");
    read.opt(sql, args![organisation_id, channel]).await?.ok_or_else(|| Error::not_found("channel"))
}

/// A sub-task of one kind within a deploy task.
pub(crate) async fn load(read: &mut Read, deploy_task_id: i64, kind: Action, id: i64) -> Result<Task> {
    let sql = sql!("SELECT * FROM tasks WHERE deploy_task_id = $1 AND kind = $2 AND id = $3");
    read.opt(sql, args![deploy_task_id, kind, id]).await?.ok_or_else(|| Error::not_found("sub-task"))
}

/// The task, its row locked for the rest of the transaction.
pub(crate) async fn lock(tx: &mut Tx, task_id: i64) -> Result<Option<Task>> {
    Ok(tx.opt(sql!("UPDATE tasks SET phase = phase WHERE id = $1 RETURNING *"), args![task_id]).await?)
}

pub(crate) async fn list(
    read: &mut Read,
    deploy_task_id: i64,
    kind: Action,
    conditions: &[Condition],
    paging: &Paging,
) -> Result<(i64, Vec<Task>)> {
    let count = sql!("SELECT COUNT(*) FROM tasks t WHERE t.deploy_task_id = $1 AND t.kind = $2/* filters */");
    let rows =
        sql!("SELECT t.* FROM tasks t WHERE t.deploy_task_id = $1 AND t.kind = $2/* filters */ ORDER BY t.id DESC");
    paging.read(read, count, rows, args![deploy_task_id, kind], conditions).await
}

/// Tasks of every kind, newest first.
pub(crate) async fn list_all(
    read: &mut Read,
    organisation_id: i64,
    conditions: &[Condition],
    paging: &Paging,
) -> Result<(i64, Vec<Task>)> {
    let count = sql!(
        "SELECT COUNT(*) FROM tasks t LEFT JOIN applications a ON a.id = t.application_id \
         WHERE t.organisation_id = $1/* filters */"
    );
    let rows = sql!(
        "SELECT t.* FROM tasks t LEFT JOIN applications a ON a.id = t.application_id \
         WHERE t.organisation_id = $1/* filters */ ORDER BY t.id DESC"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

/// Sub-tasks of a deploy task, oldest first: the newest hundred, and fewer when they have more executions together than
/// an answer may have.
pub(crate) async fn of_deploy_task(read: &mut Read, deploy_task_id: i64) -> Result<Vec<Task>> {
    let sql =
        sql!("SELECT * FROM (SELECT * FROM tasks WHERE deploy_task_id = $1 ORDER BY id DESC LIMIT 100) t ORDER BY id");
    let mut tasks: Vec<Task> = read.all(sql, args![deploy_task_id]).await?;
    if tasks.is_empty() {
        return Ok(tasks);
    }
    let sql = sql!("SELECT task_id, COUNT(*) AS executions FROM executions WHERE task_id IN ($1) GROUP BY task_id");
    let ids: Vec<i64> = tasks.iter().map(|task| task.id).collect();
    row! {
        struct Count {
            task_id: i64,
            executions: i64,
        }
    }
    let counts: Vec<Count> = read.all(sql, args![ids]).await?;
    let mut left = EXECUTIONS_SHOWN_MAX;
    let fits = |task: &Task| {
        left -= counts.iter().find(|count| count.task_id == task.id).map_or(0, |count| count.executions);
        left >= 0
    };
    let shown = tasks.iter().rev().map(fits).take_while(|fits| *fits).count().max(1);
    Ok(tasks.split_off(tasks.len() - shown))
}

pub(crate) async fn executions(read: &mut Read, task_id: i64) -> Result<Vec<Execution>> {
    let sql = sql!(
        "SELECT id, task_id, ordinal, role, instance_id, host_id, host_name, previous_status, attempt, state, batch, \
         excluded, cancel_reason, dispatched_at, finished_at FROM executions WHERE task_id = $1 ORDER BY ordinal"
    );
    Ok(read.all(sql, args![task_id]).await?)
}

/// The long texts of a task's executions, in the order of [`executions`].
pub(crate) async fn scripts(read: &mut Read, task_id: i64) -> Result<Vec<Script>> {
    let sql = sql!(
        "SELECT id AS execution_id, entry, steps, revert_entry FROM executions WHERE task_id = $1 ORDER BY ordinal"
    );
    Ok(read.all(sql, args![task_id]).await?)
}

/// Who speaks in the output of a task.
pub(crate) async fn speakers(read: &mut Read, task_id: i64) -> Result<Vec<Speaker>> {
    let sql = sql!("SELECT id, ordinal, instance_id, host_name FROM executions WHERE task_id = $1 ORDER BY ordinal");
    Ok(read.all(sql, args![task_id]).await?)
}

pub(crate) async fn execution_views(read: &mut Read, task_ids: Vec<i64>) -> Result<Vec<ExecutionView>> {
    let sql = sql!(
        "SELECT id, task_id, ordinal, role, instance_id, host_id, host_name, attempt, state, reason, steps, processes, \
         output_truncated, started_at, finished_at, batch, excluded, cancel_reason, answer, answered_by, answered_at, \
         answer_reason, broken, host_said \
         FROM executions WHERE task_id IN ($1) ORDER BY task_id, ordinal"
    );
    Ok(read.all(sql, args![task_ids]).await?)
}

/// The same without steps and processes, which are long: for lists of tasks.
pub(crate) async fn execution_summaries(read: &mut Read, task_ids: Vec<i64>) -> Result<Vec<ExecutionView>> {
    let sql = sql!(
        "SELECT id, task_id, ordinal, role, instance_id, host_id, host_name, attempt, state, reason, NULL AS steps, \
         NULL AS processes, output_truncated, started_at, finished_at, batch, excluded, cancel_reason, answer, \
         answered_by, answered_at, answer_reason, broken, host_said FROM executions WHERE task_id IN ($1) \
         ORDER BY task_id, ordinal"
    );
    Ok(read.all(sql, args![task_ids]).await?)
}

pub(crate) async fn enter(tx: &mut Tx, task: &Task, phase: Phase) -> Result<()> {
    let sql = sql!("UPDATE tasks SET phase = $3 WHERE id = $1 AND phase = $2");
    tx.run_one(sql, args![task.id, task.phase, phase]).await
}

/// Gives the next batch its turn, with the whole time allowed.
pub(crate) async fn admit(tx: &mut Tx, task: &Task, batch: i64) -> Result<()> {
    let deadline = tx.now().after(Duration::from_secs(u64::try_from(task.timeout_s).unwrap_or(1)));
    let sql = sql!("UPDATE tasks SET batch_admitted = $3, deadline_at = $4 WHERE id = $1 AND batch_admitted = $2");
    tx.run_one(sql, args![task.id, task.batch_admitted, batch, deadline]).await
}

/// Holds every task that has not ended and is not held. Gives how many.
pub(crate) async fn hold_all(tx: &mut Tx, held_by: &str) -> Result<u64> {
    let now = tx.now();
    let sql = sql!("UPDATE tasks SET held_by = $1, held_at = $2 WHERE phase <> 'over' AND held_by IS NULL");
    Ok(tx.run(sql, args![held_by, now]).await?)
}

/// The greatest number of a task.
pub(crate) async fn last_id(read: &mut Read) -> Result<i64> {
    Ok(read.value(sql!("SELECT COALESCE(MAX(id), 0) FROM tasks"), args![]).await?)
}

/// Gives every task that is not over the time that nobody was there to use, and this much more, but never more than it may
/// have from now on. Gives those that it concerns.
pub(crate) async fn move_deadlines(tx: &mut Tx, away_ms: i64, now: Time, more: Duration) -> Result<Vec<i64>> {
    let by = Time::from_millis(away_ms).after(more);
    let sql = sql!(
        "UPDATE tasks SET deadline_at = CASE WHEN deadline_at + $1 < $2 + timeout_s * 1000 THEN deadline_at + $1 \
         ELSE $2 + timeout_s * 1000 END WHERE phase <> 'over' AND deadline_at < $2 + timeout_s * 1000 RETURNING id"
    );
    Ok(tx.values(sql, args![by, now.after(more)]).await?)
}

/// Who holds a task, and since when; letting go gives what is waiting the whole time allowed.
pub(crate) async fn hold(tx: &mut Tx, task: &Task, held_by: Option<&str>) -> Result<()> {
    let now = tx.now();
    let held_at = held_by.map(|_| now);
    let allowed = Duration::from_secs(u64::try_from(task.timeout_s).unwrap_or(1));
    let deadline = if held_by.is_some() { task.deadline_at } else { task.deadline_at.max(now.after(allowed)) };
    let sql = sql!("UPDATE tasks SET held_by = $2, held_at = $3, deadline_at = $4 WHERE id = $1");
    tx.run_one(sql, args![task.id, held_by, held_at, deadline]).await
}

/// Notes that a person wants the rollout to go beyond its canary.
pub(crate) async fn promote(tx: &mut Tx, task_id: i64) -> Result<()> {
    tx.run_one(sql!("UPDATE tasks SET promoted = TRUE WHERE id = $1"), args![task_id]).await
}

/// Notes why nothing more starts. The first reason stays.
pub(crate) async fn stop(tx: &mut Tx, task_id: i64, reason: &str, cancelled: bool) -> Result<()> {
    let sql = sql!(
        "UPDATE tasks SET stop_reason = COALESCE(stop_reason, $2), cancelled = (cancelled OR $3), held_by = NULL, \
         held_at = NULL WHERE id = $1"
    );
    tx.run_one(sql, args![task_id, reason, cancelled]).await
}

/// Marks executions as taken out by a person; hooks that run once never are.
pub(crate) async fn exclude(tx: &mut Tx, execution_ids: Vec<String>) -> Result<()> {
    let sql = sql!("UPDATE executions SET excluded = TRUE WHERE id IN ($1) AND role = 'instance'");
    Ok(tx.run(sql, args![execution_ids]).await.map(drop)?)
}

pub(crate) async fn end(tx: &mut Tx, task: &Task, outcome: Outcome, reason: Option<&str>) -> Result<()> {
    let sql = sql!(
        "UPDATE tasks SET phase = 'over', outcome = $3, reason = $4, finished_at = $5 WHERE id = $1 AND phase = $2"
    );
    let now = tx.now();
    tx.run_one(sql, args![task.id, task.phase, outcome, reason, now]).await
}

/// Tasks that are not over, beyond an id: what a start looks after, a thousand at a time.
pub(crate) async fn at_work(read: &mut Read, beyond: i64) -> Result<Vec<i64>> {
    let sql = sql!("SELECT id FROM tasks WHERE phase <> 'over' AND id > $1 ORDER BY id LIMIT 1000");
    Ok(read.values(sql, args![beyond]).await?)
}

/// Tasks whose time has run out, beyond an id, a thousand at a time. The time of what waits has not begun,
/// but for the time to fetch its source.
pub(crate) async fn overdue(read: &mut Read, now: Time, beyond: i64) -> Result<Vec<i64>> {
    let sql = sql!(
        "SELECT id FROM tasks WHERE phase <> 'over' AND deadline_at <= $1 AND id > $2 \
         AND (plan_digest IS NULL OR NOT (waits OR taken IS NULL)) ORDER BY id LIMIT 1000"
    );
    Ok(read.values(sql, args![now, beyond]).await?)
}
