//! Schedules and their moments in the database.

use drover_kernel::db::{Condition, Json, OnDuplicate as _, Read};
use drover_kernel::{Error, Paging, Result, Time, Tx, args, row, sql};

use super::rules::{Missed, MissedMoments, Overlap, RunState, WAITING_MAX};
use super::what::What;
use crate::locks::taking::IfBusy;
use crate::script_tasks::targets::{HostRef, Wanted};

/// Schedules and moments that one round looks at.
const ROUND: i64 = 100;
/// Moments that are kept of a schedule.
const KEPT: i64 = 1_000;

row! {
    /// A schedule with the name of its application, if it has one.
    pub(crate) struct Schedule {
        pub id: i64,
        pub organisation_id: i64,
        pub application_id: Option<i64>,
        pub application_name: Option<String>,
        pub name: String,
        pub what: Json<What>,
        pub cron: String,
        pub zone: String,
        pub missed: Missed,
        pub missed_max: i64,
        pub overlap: Overlap,
        pub if_busy: IfBusy,
        pub jitter_s: i64,
        pub owner_id: i64,
        pub owner: String,
        pub paused_by: Option<String>,
        pub paused_at: Option<Time>,
        pub next_moment: Option<Time>,
        pub next_at: Option<Time>,
        pub created_at: Time,
    }
}

row! {
    /// What became of a moment.
    pub(crate) struct Run {
        pub schedule_id: i64,
        pub moment: Time,
        pub state: RunState,
        pub asked_by_id: Option<i64>,
        pub asked_by: Option<String>,
        pub task_id: Option<i64>,
        pub task_outcome: Option<String>,
        pub reason: Option<String>,
        pub created_at: Time,
    }
}

row! {
    /// A schedule of an organisation.
    pub(super) struct Named {
        pub id: i64,
        pub organisation_id: i64,
    }
}

/// What a person decides about a schedule.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub application_id: Option<i64>,
    pub name: String,
    pub what: What,
    pub cron: String,
    pub zone: String,
    pub missed: Missed,
    pub missed_max: i64,
    pub overlap: Overlap,
    pub if_busy: IfBusy,
    pub jitter_s: i64,
}

impl Content {
    fn what(&self) -> Result<serde_json::Value> {
        serde_json::to_value(&self.what).map_err(Error::internal)
    }
}

pub(super) async fn list(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<Schedule>)> {
    let count = sql!(
        "SELECT COUNT(*) FROM schedules s LEFT JOIN applications a ON a.id = s.application_id \
         WHERE s.organisation_id = $1/* filters */"
    );
    let rows = sql!(
        "SELECT s.*, a.name AS application_name FROM schedules s LEFT JOIN applications a ON a.id = s.application_id \
         WHERE s.organisation_id = $1/* filters */ ORDER BY s.id"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

/// One schedule.
pub(super) async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<Schedule> {
    let sql = sql!(
        "SELECT s.*, a.name AS application_name FROM schedules s LEFT JOIN applications a ON a.id = s.application_id \
         WHERE s.organisation_id = $1 AND s.id = $2"
    );
    read.opt(sql, args![organisation_id, id]).await?.ok_or_else(|| Error::not_found("schedule"))
}

/// One schedule that nobody else changes until this transaction ends.
pub(super) async fn hold(tx: &mut Tx, id: i64) -> Result<Schedule> {
    let organisation_id = tx.organisation_id();
    let sql = sql!("UPDATE schedules SET name = name WHERE organisation_id = $1 AND id = $2");
    if tx.run(sql, args![organisation_id, id]).await? == 0 {
        return Err(Error::not_found("schedule"));
    }
    load(tx, organisation_id, id).await
}

fn taken() -> Error {
    Error::conflict("name: there is a schedule of this name already")
}

/// Adds a schedule.
pub(super) async fn insert(tx: &mut Tx, content: &Content, owner: (i64, &str)) -> Result<i64> {
    let arguments = args![
        tx.organisation_id(),
        content.application_id,
        content.name.as_str(),
        content.what()?,
        content.cron.as_str(),
        content.zone.as_str(),
        content.missed,
        content.missed_max,
        content.overlap,
        content.if_busy,
        content.jitter_s,
        owner.0,
        owner.1,
        tx.now()
    ];
    let sql = sql!(
        "INSERT INTO schedules (organisation_id, application_id, name, what, cron, zone, missed, missed_max, overlap, \
         if_busy, jitter_s, owner_id, owner, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING id"
    );
    let id = tx.value(sql, arguments).await.on_duplicate(taken)?;
    set_targets(tx, id, &content.what).await?;
    Ok(id)
}

/// Notes on which hosts a script runs: whose the schedule is follows from them.
async fn set_targets(tx: &mut Tx, id: i64, what: &What) -> Result<()> {
    tx.run(sql!("DELETE FROM schedule_targets WHERE schedule_id = $1"), args![id]).await?;
    let (kind, named) = match what.script().map(|run| &run.targets) {
        None => return Ok(()),
        Some(Wanted::Hosts(hosts)) => ("host", hosts.clone()),
        Some(Wanted::Application(application)) => ("application", vec![application.clone()]),
        Some(Wanted::Label(label)) => ("label", vec![HostRef::Name(label.clone())]),
    };
    let organisation_id = tx.organisation_id();
    let row = |target| match target {
        HostRef::Id(target_id) => args![organisation_id, id, kind, Some(target_id), None::<String>],
        HostRef::Name(target) => args![organisation_id, id, kind, None::<i64>, Some(target)],
    };
    let sql = sql!(
        "INSERT INTO schedule_targets (organisation_id, schedule_id, kind, target_id, target) \
         VALUES ($1, $2, $3, $4, $5)"
    );
    Ok(tx.insert_many(sql, named.into_iter().map(row).collect()).await?)
}

/// Changes a schedule, which has the rights of whoever changes it from then on. Moments that have come wait as before;
/// what comes next is forgotten.
pub(super) async fn update(tx: &mut Tx, id: i64, content: &Content, owner: (i64, &str)) -> Result<()> {
    let arguments = args![
        id,
        content.application_id,
        content.name.as_str(),
        content.what()?,
        content.cron.as_str(),
        content.zone.as_str(),
        content.missed,
        content.missed_max,
        content.overlap,
        content.if_busy,
        content.jitter_s,
        owner.0,
        owner.1
    ];
    let sql = sql!(
        "UPDATE schedules SET application_id = $2, name = $3, what = $4, cron = $5, zone = $6, missed = $7, \
         missed_max = $8, overlap = $9, if_busy = $10, jitter_s = $11, owner_id = $12, owner = $13, next_moment = NULL, \
         next_at = NULL WHERE id = $1"
    );
    tx.run(sql, arguments).await.on_duplicate(taken)?;
    set_targets(tx, id, &content.what).await
}

pub(super) async fn delete(tx: &mut Tx, id: i64) -> Result<()> {
    tx.run_one(sql!("DELETE FROM schedules WHERE id = $1"), args![id]).await
}

/// Holds a schedule, or lets it go on from now.
pub(super) async fn pause(tx: &mut Tx, id: i64, by: Option<&str>) -> Result<()> {
    let at = by.map(|_| tx.now());
    let sql =
        sql!("UPDATE schedules SET paused_by = $2, paused_at = $3, next_moment = NULL, next_at = NULL WHERE id = $1");
    tx.run_one(sql, args![id, by.map(str::to_owned), at]).await
}

/// Moments that have come and have not begun are left out.
pub(super) async fn drop_waiting(tx: &mut Tx, id: i64, reason: &str) -> Result<()> {
    let sql =
        sql!("UPDATE schedule_runs SET state = 'skipped', reason = $2 WHERE schedule_id = $1 AND state = 'waiting'");
    tx.run(sql, args![id, reason]).await?;
    Ok(())
}

/// After a restore: nobody knows which moments were run since the backup.
pub(crate) async fn start_anew(tx: &mut Tx) -> Result<()> {
    tx.run(sql!("UPDATE schedules SET next_moment = NULL, next_at = NULL"), args![]).await?;
    let sql =
        sql!("UPDATE schedule_runs SET state = 'skipped', reason = 'a backup was restored' WHERE state = 'waiting'");
    tx.run(sql, args![]).await?;
    Ok(())
}

/// Schedules whose next moment has come, or has not been worked out.
pub(super) async fn due(read: &mut Read, now: Time) -> Result<Vec<Named>> {
    let sql = sql!(
        "SELECT id, organisation_id FROM schedules WHERE paused_by IS NULL AND (next_at IS NULL OR next_at <= $1) \
         ORDER BY next_at LIMIT $2"
    );
    Ok(read.all(sql, args![now, ROUND]).await?)
}

/// Sets what comes next.
pub(super) async fn set_next(tx: &mut Tx, id: i64, moment: Option<Time>, at: Option<Time>) -> Result<()> {
    let sql = sql!("UPDATE schedules SET next_moment = $2, next_at = $3 WHERE id = $1");
    tx.run_one(sql, args![id, moment, at]).await
}

/// Notes a moment; whether it was not noted before.
pub(super) async fn note(
    tx: &mut Tx,
    (schedule_id, moment): (i64, Time),
    state: RunState,
    asked_by: Option<(i64, &str)>,
    reason: Option<&str>,
) -> Result<bool> {
    let sql = sql!(
        "INSERT INTO schedule_runs (organisation_id, schedule_id, moment, state, asked_by_id, asked_by, reason, \
         created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (schedule_id, moment) DO NOTHING"
    );
    let (asked_by_id, asked_by) = (asked_by.map(|by| by.0), asked_by.map(|by| by.1.to_owned()));
    let arguments = args![
        tx.organisation_id(),
        schedule_id,
        moment,
        state,
        asked_by_id,
        asked_by,
        reason.map(str::to_owned),
        tx.now()
    ];
    Ok(tx.run(sql, arguments).await? == 1)
}

/// Notes moments that nobody was there for, as one.
pub(super) async fn note_missed(tx: &mut Tx, schedule: &Schedule, missed: &MissedMoments, first: &str) -> Result<()> {
    let reason = match missed.count {
        1 => "no server was there".to_owned(),
        count => format!("no server was there for {count} moments, the first one of them at {first}"),
    };
    note(tx, (schedule.id, missed.last), RunState::Missed, None, Some(&reason)).await.map(drop)
}

/// Whether no more moments of a schedule may wait.
pub(super) async fn is_full(read: &mut Read, id: i64) -> Result<bool> {
    let sql = sql!("SELECT COUNT(*) FROM schedule_runs WHERE schedule_id = $1 AND state = 'waiting'");
    let waiting: i64 = read.value(sql, args![id]).await?;
    Ok(waiting >= WAITING_MAX)
}

/// Forgets moments that were decided about long ago.
pub(super) async fn forget_old(tx: &mut Tx, id: i64) -> Result<()> {
    let sql = sql!(
        "DELETE FROM schedule_runs WHERE schedule_id = $1 AND state <> 'waiting' AND moment < \
         (SELECT moment FROM schedule_runs WHERE schedule_id = $1 ORDER BY moment DESC LIMIT 1 OFFSET $2)"
    );
    tx.run(sql, args![id, KEPT - 1]).await?;
    Ok(())
}

/// The first moment that waits of each of some schedules that nobody holds; from schedules behind `beyond`.
pub(super) async fn waiting(read: &mut Read, beyond: i64) -> Result<Vec<Named>> {
    let sql = sql!(
        "SELECT s.id, s.organisation_id FROM schedules s WHERE s.paused_by IS NULL AND s.id > $1 AND s.id IN \
         (SELECT schedule_id FROM schedule_runs WHERE state = 'waiting') ORDER BY s.id LIMIT $2"
    );
    Ok(read.all(sql, args![beyond, ROUND]).await?)
}

/// The first moment of a schedule that waits.
pub(super) async fn first_waiting(read: &mut Read, id: i64) -> Result<Option<Run>> {
    let sql = sql!(
        "SELECT r.*, CAST(NULL AS TEXT) AS task_outcome FROM schedule_runs r \
         WHERE r.schedule_id = $1 AND r.state = 'waiting' ORDER BY r.moment LIMIT 1"
    );
    Ok(read.opt(sql, args![id]).await?)
}

row! {
    /// How a moment that waits stands among the others of its schedule.
    pub(super) struct Standing {
        /// Since when everything before it is decided and over.
        pub free: Option<Time>,
        /// Those behind it that wait as well.
        pub behind: i64,
    }
}

/// How a moment that waits stands.
pub(super) async fn standing(read: &mut Read, run: &Run) -> Result<Standing> {
    let sql = sql!(
        "SELECT (SELECT MAX(COALESCE(t.finished_at, r.decided_at, r.created_at)) FROM schedule_runs r \
         LEFT JOIN tasks t ON t.id = r.task_id WHERE r.schedule_id = $1 AND r.moment < $2) AS free, \
         (SELECT COUNT(*) FROM schedule_runs r WHERE r.schedule_id = $1 AND r.moment > $2 AND r.state = 'waiting') AS behind"
    );
    Ok(read.one(sql, args![run.schedule_id, run.moment]).await?)
}

/// Gives a moment that waits its time anew.
pub(super) async fn renew(tx: &mut Tx, run: &Run) -> Result<()> {
    let now = tx.now();
    let sql =
        sql!("UPDATE schedule_runs SET created_at = $3 WHERE schedule_id = $1 AND moment = $2 AND state = 'waiting'");
    tx.run_one(sql, args![run.schedule_id, run.moment, now]).await
}

/// Tasks of a schedule that are not over.
pub(super) async fn at_work(read: &mut Read, id: i64) -> Result<Vec<i64>> {
    let sql = sql!(
        "SELECT t.id FROM schedule_runs r JOIN tasks t ON t.id = r.task_id \
         WHERE r.schedule_id = $1 AND r.state = 'started' AND t.outcome IS NULL ORDER BY t.id"
    );
    Ok(read.values(sql, args![id]).await?)
}

/// Decides about a moment that waits; nobody else has.
pub(super) async fn decide(
    tx: &mut Tx,
    run: &Run,
    state: RunState,
    task_id: Option<i64>,
    reason: Option<&str>,
) -> Result<()> {
    let sql = sql!(
        "UPDATE schedule_runs SET state = $3, task_id = $4, reason = $5, decided_at = $6 \
         WHERE schedule_id = $1 AND moment = $2 AND state = 'waiting'"
    );
    let decided_at = (state != RunState::Waiting).then(|| tx.now());
    let reason = reason.map(str::to_owned);
    tx.run_one(sql, args![run.schedule_id, run.moment, state, task_id, reason, decided_at]).await
}

/// One page of the moments of a schedule, newest first.
pub(super) async fn runs(
    read: &mut Read,
    paging: &Paging,
    id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<Run>)> {
    let count = sql!("SELECT COUNT(*) FROM schedule_runs r WHERE r.schedule_id = $1/* filters */");
    let rows = sql!(
        "SELECT r.*, t.outcome AS task_outcome FROM schedule_runs r LEFT JOIN tasks t ON t.id = r.task_id \
         WHERE r.schedule_id = $1/* filters */ ORDER BY r.moment DESC"
    );
    paging.read(read, count, rows, args![id], conditions).await
}
