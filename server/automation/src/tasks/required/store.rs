//! What tasks go after, in the database.

use drover_kernel::db::{Condition, Read};
use drover_kernel::{Result, Tx, args, row, sql};
use drover_shared::words::Action;

use super::rules::{Required, Standing};
use crate::tasks::rules::Outcome;
use crate::tasks::store::Task;

/// Tasks that are woken when one ends that they go after; the sweep finds any others.
const WOKEN_MAX: i64 = 1_000;

row! {
    /// A task that goes first, as it is now; without kind and application it is gone.
    pub struct RequiredRow {
        pub task_id: i64,
        pub required_id: i64,
        pub kind: Option<Action>,
        pub deploy_task_id: Option<i64>,
        pub application_id: Option<i64>,
        pub version: Option<String>,
        pub outcome: Option<Outcome>,
        pub cancelled: Option<bool>,
    }
}

impl RequiredRow {
    pub(super) fn standing(&self) -> Standing {
        match self.kind {
            None => Standing::Gone,
            Some(_) => Standing::of(self.outcome, self.cancelled == Some(true)),
        }
    }
}

row! {
    /// A task that somebody names to go first.
    pub struct NamedRow {
        pub id: i64,
        pub outcome: Option<Outcome>,
        pub cancelled: bool,
    }
}

row! {
    /// An application's name.
    pub struct ApplicationName {
        pub id: i64,
        pub full_name: String,
    }
}

/// Pairs of an application among these and one that it requires, of those beyond a pair; a thousand at a time.
pub(super) async fn edges(read: &mut Read, ids: Vec<i64>, (from, to): (i64, i64)) -> Result<Vec<(i64, i64)>> {
    row! {
        struct Edge {
            application_id: i64,
            required_id: i64,
        }
    }
    let sql = sql!(
        "SELECT application_id, required_id FROM application_requirements WHERE application_id IN ($1) \
         AND (application_id > $2 OR (application_id = $2 AND required_id > $3)) \
         ORDER BY application_id, required_id LIMIT 1000"
    );
    let edges: Vec<Edge> = read.all(sql, args![ids, from, to]).await?;
    Ok(edges.into_iter().map(|edge| (edge.application_id, edge.required_id)).collect())
}

/// Names of those of these applications that meet the conditions, which speak of `a`.
pub(super) async fn names(read: &mut Read, ids: Vec<i64>, conditions: &[Condition]) -> Result<Vec<ApplicationName>> {
    let rows = sql!("SELECT a.id, a.full_name FROM applications a WHERE a.id IN ($1)/* filters */");
    let mut arguments = args![ids];
    Ok(read.all(rows.filtered(conditions, &mut arguments), arguments).await?)
}

/// Tasks of these applications that have not ended, oldest first, so many at most.
pub(super) async fn open_tasks(read: &mut Read, applications: Vec<i64>, limit: i64) -> Result<Vec<i64>> {
    let sql = sql!("SELECT id FROM tasks WHERE application_id IN ($1) AND phase <> 'over' ORDER BY id LIMIT $2");
    Ok(read.values(sql, args![applications, limit]).await?)
}

/// Those of these tasks that the organisation has.
pub(super) async fn named(read: &mut Read, organisation_id: i64, ids: &[i64]) -> Result<Vec<NamedRow>> {
    let sql = sql!("SELECT id, outcome, cancelled FROM tasks WHERE organisation_id = $1 AND id IN ($2) ORDER BY id");
    Ok(read.all(sql, args![organisation_id, ids.to_vec()]).await?)
}

/// The last task that tried this one again, directly or not.
pub(super) async fn last_try(read: &mut Read, task_id: i64) -> Result<Option<NamedRow>> {
    let sql = sql!(
        "WITH RECURSIVE tries (id) AS (SELECT id FROM tasks WHERE origin = 'retry' AND origin_task_id = $1 \
         UNION SELECT t.id FROM tasks t JOIN tries ON t.origin_task_id = tries.id WHERE t.origin = 'retry') \
         SELECT id, outcome, cancelled FROM tasks WHERE id = (SELECT MAX(id) FROM tries)"
    );
    Ok(read.all(sql, args![task_id]).await?.pop())
}

/// What these tasks go after.
pub(super) async fn of_tasks(read: &mut Read, task_ids: Vec<i64>) -> Result<Vec<RequiredRow>> {
    let sql = sql!(
        "SELECT r.task_id, r.required_id, t.kind, t.deploy_task_id, t.application_id, t.version, t.outcome, t.cancelled \
         FROM task_requirements r LEFT JOIN tasks t ON t.id = r.required_id WHERE r.task_id IN ($1) \
         ORDER BY r.task_id, r.required_id"
    );
    Ok(read.all(sql, args![task_ids]).await?)
}

/// The same for a task that is not made yet and would go after these.
pub(super) async fn of_ids(read: &mut Read, ids: &[i64]) -> Result<Vec<RequiredRow>> {
    let sql = sql!(
        "SELECT CAST(0 AS BIGINT) AS task_id, id AS required_id, kind, deploy_task_id, application_id, version, outcome, cancelled \
         FROM tasks WHERE id IN ($1) ORDER BY id"
    );
    Ok(read.all(sql, args![ids.to_vec()]).await?)
}

/// What a task goes after, for the decision.
pub(crate) async fn standings(read: &mut Read, task_id: i64) -> Result<Vec<Required>> {
    let rows = of_tasks(read, vec![task_id]).await?;
    Ok(rows.iter().map(|row| Required { task_id: row.required_id, standing: row.standing() }).collect())
}

/// Notes that a new task goes after these, and waits for them.
pub(super) async fn insert(tx: &mut Tx, task_id: i64, required: &[i64]) -> Result<()> {
    let organisation_id = tx.organisation_id();
    let rows = required.iter().map(|required_id| args![organisation_id, task_id, *required_id]).collect();
    let sql = sql!("INSERT INTO task_requirements (organisation_id, task_id, required_id) VALUES ($1, $2, $3)");
    tx.insert_many(sql, rows).await?;
    tx.run_one(sql!("UPDATE tasks SET waits = TRUE WHERE id = $1"), args![task_id]).await
}

/// Lets a task go on that waited, with the whole time allowed.
pub(crate) async fn let_go(tx: &mut Tx, task: &Task) -> Result<()> {
    let allowed = std::time::Duration::from_secs(u64::try_from(task.timeout_s).unwrap_or(1));
    let deadline = tx.now().after(allowed);
    let sql = sql!("UPDATE tasks SET waits = FALSE, deadline_at = $2 WHERE id = $1 AND waits AND phase = 'preparing'");
    tx.run_one(sql, args![task.id, deadline]).await
}

/// Tasks that wait for this one.
pub(crate) async fn waiting_for(read: &mut Read, task_id: i64) -> Result<Vec<i64>> {
    let sql = sql!(
        "SELECT t.id FROM task_requirements r JOIN tasks t ON t.id = r.task_id WHERE r.required_id = $1 AND t.waits \
         AND t.phase <> 'over' ORDER BY t.id LIMIT $2"
    );
    Ok(read.values(sql, args![task_id, WOKEN_MAX]).await?)
}
