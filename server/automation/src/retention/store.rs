//! What retention reads and writes in the database: a page, or a batch, at a time.

use drover_kernel::jobs::Work;
use drover_kernel::{Result, Time, Tx, args, row, sql};

use super::rules::{Carried, Ended, Had, Newest};

/// In place of an application, for tasks that run scripts on hosts.
pub(super) const NO_APPLICATION: i64 = 0;
/// Tasks of one application that a round looks at: the oldest ones. The next round looks at the others.
const LOOKED_AT_MAX: i64 = 50_000;
/// Rows that are read at a time.
const PAGE: i64 = 1_000;
/// Instances whose history is read at a time: each may have had many versions.
const INSTANCES: i64 = 100;
/// Ids in one statement.
const IDS: usize = 500;

row! {
    /// A task that is over, as the database has it.
    pub struct EndedRow {
        pub id: i64,
        pub organisation_id: i64,
        pub finished_at: Time,
        pub lost: bool,
        pub awaited: bool,
        pub executions: i64,
        pub deploy_task_id: Option<i64>,
        /// Address of the repository that it was fetched from.
        pub url: Option<String>,
    }
}

row! {
    /// A deploy task that was closed or started long ago, with how many sub-tasks it has.
    pub struct DeployRow {
        pub id: i64,
        pub organisation_id: i64,
        pub tasks: i64,
    }
}

impl EndedRow {
    pub(super) fn ended(&self) -> Ended {
        Ended { id: self.id, finished_at: self.finished_at, lost: self.lost, awaited: self.awaited }
    }
}

impl DeployRow {
    pub(super) fn carried(&self) -> Carried {
        Carried { id: self.id, tasks: u64::try_from(self.tasks).unwrap_or(0) }
    }
}

/// Applications beyond an id.
pub(super) async fn applications(work: &Work, beyond: i64) -> Result<Vec<i64>> {
    let sql = sql!("SELECT id FROM applications WHERE id > $1 ORDER BY id LIMIT $2");
    Ok(work.read().await?.values(sql, args![beyond, PAGE]).await?)
}

/// Tasks of an application that ended before a time, beyond its newest ones.
pub(super) async fn old_tasks(work: &Work, application_id: i64, before: Time, least: u32) -> Result<Vec<EndedRow>> {
    let sql = sql!(
        "SELECT t.id, t.organisation_id, t.finished_at, \
         EXISTS (SELECT 1 FROM executions e WHERE e.task_id = t.id AND e.state = 'lost') AS lost, \
         EXISTS (SELECT 1 FROM task_requirements r JOIN tasks w ON w.id = r.task_id \
         WHERE r.required_id = t.id AND w.phase <> 'over') AS awaited, \
         (SELECT COUNT(*) FROM executions e WHERE e.task_id = t.id) AS executions, \
         t.deploy_task_id, t.source ->> 'url' AS url \
         FROM tasks t WHERE (t.application_id = $1 OR ($1 = 0 AND t.application_id IS NULL)) AND t.phase = 'over' AND t.finished_at <= $2 \
         AND t.id < COALESCE((SELECT MIN(n.id) FROM (SELECT id FROM tasks \
         WHERE application_id = $1 OR ($1 = 0 AND application_id IS NULL) ORDER BY id DESC LIMIT $3) n), 9223372036854775807) ORDER BY t.id LIMIT $4"
    );
    let arguments = args![application_id, before, i64::from(least), LOOKED_AT_MAX];
    Ok(work.read().await?.all(sql, arguments).await?)
}

/// Tasks of an application that ended before a time and whose artifact is not given up.
pub(super) async fn with_artifacts(work: &Work, application_id: i64, before: Time) -> Result<Vec<EndedRow>> {
    let sql = sql!(
        "SELECT t.id, t.organisation_id, t.finished_at, \
         EXISTS (SELECT 1 FROM executions e WHERE e.task_id = t.id AND e.state = 'lost') AS lost, \
         FALSE AS awaited, CAST(0 AS BIGINT) AS executions, \
         t.deploy_task_id, t.source ->> 'url' AS url \
         FROM tasks t WHERE (t.application_id = $1 OR ($1 = 0 AND t.application_id IS NULL)) AND t.phase = 'over' AND t.finished_at <= $2 \
         AND t.artifact_digest IS NOT NULL AND t.artifact_removed_at IS NULL ORDER BY t.id LIMIT $3"
    );
    Ok(work.read().await?.all(sql, args![application_id, before, LOOKED_AT_MAX]).await?)
}

/// Tasks whose output is kept, in the order in which they ended, beyond one of them.
pub(super) async fn with_output(work: &Work, (ended, id): (Time, i64)) -> Result<Vec<EndedRow>> {
    let sql = sql!(
        "SELECT t.id, t.organisation_id, t.finished_at, \
         EXISTS (SELECT 1 FROM executions e WHERE e.task_id = t.id AND e.state = 'lost') AS lost, \
         FALSE AS awaited, CAST(0 AS BIGINT) AS executions, \
         t.deploy_task_id, t.source ->> 'url' AS url \
         FROM tasks t WHERE t.phase = 'over' AND t.output_removed_at IS NULL \
         AND (t.finished_at > $1 OR (t.finished_at = $1 AND t.id > $2)) ORDER BY t.finished_at, t.id LIMIT $3"
    );
    Ok(work.read().await?.all(sql, args![ended, id, PAGE]).await?)
}

/// Deploy tasks of an application that were closed, or else started, before a time, beyond its newest ones.
pub(super) async fn old_deploy_tasks(
    work: &Work,
    application_id: i64,
    before: Time,
    least: u32,
) -> Result<Vec<DeployRow>> {
    let sql = sql!(
        "SELECT d.id, d.organisation_id, (SELECT COUNT(*) FROM tasks t WHERE t.deploy_task_id = d.id) AS tasks \
         FROM deploy_tasks d WHERE d.application_id = $1 AND d.status IN ('closed', 'running') \
         AND COALESCE(d.closed_at, d.started_at) <= $2 AND d.id < COALESCE((SELECT MIN(n.id) FROM (SELECT id \
         FROM deploy_tasks WHERE application_id = $1 ORDER BY id DESC LIMIT $3) n), 9223372036854775807) \
         ORDER BY d.id LIMIT $4"
    );
    let arguments = args![application_id, before, i64::from(least), LOOKED_AT_MAX];
    Ok(work.read().await?.all(sql, arguments).await?)
}

/// Addresses of the repositories in the settings of applications and templates.
pub(super) async fn repositories(work: &Work) -> Result<Vec<String>> {
    let sql = sql!(
        "SELECT url FROM (SELECT repository_url AS url FROM deploy_settings \
         UNION SELECT repository_url FROM deploy_templates) n WHERE url > $1 ORDER BY url LIMIT $2"
    );
    let mut all: Vec<String> = Vec::new();
    loop {
        let beyond = all.last().cloned().unwrap_or_default();
        let page: Vec<String> = work.read().await?.values(sql.clone(), args![beyond, PAGE]).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// Addresses of the repositories that tasks were fetched from, with how many were.
pub(super) async fn fetched_from(work: &Work) -> Result<Vec<(String, u64)>> {
    row! {
        struct From {
            url: String,
            tasks: i64,
        }
    }
    let sql = sql!(
        "SELECT url, COUNT(*) AS tasks FROM (SELECT source ->> 'url' AS url FROM tasks) n \
         WHERE url > $1 GROUP BY url ORDER BY url LIMIT $2"
    );
    let mut all: Vec<(String, u64)> = Vec::new();
    loop {
        let beyond = all.last().map(|(url, _)| url.clone()).unwrap_or_default();
        let page: Vec<From> = work.read().await?.all(sql.clone(), args![beyond, PAGE]).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page.into_iter().map(|row| (row.url, u64::try_from(row.tasks).unwrap_or(0))));
    }
}

/// Every task of an application that was made from another one, with that one.
pub(super) async fn made_from(work: &Work, application_id: i64) -> Result<Vec<(i64, i64)>> {
    row! {
        struct Made {
            id: i64,
            origin_task_id: i64,
        }
    }
    let sql = sql!(
        "SELECT id, origin_task_id FROM tasks WHERE (application_id = $1 OR ($1 = 0 AND application_id IS NULL)) \
         AND origin_task_id IS NOT NULL"
    );
    let made: Vec<Made> = work.read().await?.all(sql, args![application_id]).await?;
    Ok(made.into_iter().map(|made| (made.id, made.origin_task_id)).collect())
}

/// What the instances of an application were given, and had; `take` gets it for some of them at a time.
pub(super) async fn histories(work: &Work, application_id: i64, mut take: impl FnMut(&[Newest], &[Had])) -> Result<()> {
    row! {
        struct NewestRow {
            task_id: i64,
            sent_task_id: Option<i64>,
        }
    }
    row! {
        struct HadRow {
            instance_id: i64,
            last_turn: i64,
            update_task_id: Option<i64>,
        }
    }
    let instances = sql!("SELECT id FROM instances WHERE application_id = $1 AND id > $2 ORDER BY id LIMIT $3");
    let newest = sql!(
        "SELECT MAX(id) AS task_id, MAX(CASE WHEN was_sent AND place = 1 THEN id END) AS sent_task_id \
         FROM (SELECT e.instance_id, t.kind, t.id, e.dispatched_at IS NOT NULL AS was_sent, ROW_NUMBER() OVER (\
         PARTITION BY e.instance_id, t.kind, e.dispatched_at IS NOT NULL ORDER BY t.taken DESC, t.id DESC) AS place \
         FROM executions e JOIN tasks t ON t.id = e.task_id WHERE e.instance_id IN ($1)) n GROUP BY instance_id, kind"
    );
    // As `tasks::former` looks for what is installed again.
    let had = sql!(
        "SELECT instance_id, MAX(taken) AS last_turn, MAX(CASE WHEN installs AND place = 1 THEN id END) AS update_task_id \
         FROM (SELECT o.*, ROW_NUMBER() OVER (PARTITION BY instance_id, version, installs ORDER BY taken DESC, id DESC) \
         AS place FROM (SELECT e.instance_id, t.version, t.id, COALESCE(t.taken, 0) AS taken, (t.kind = 'upgrade' \
         AND t.artifact_digest IS NOT NULL AND t.resolved_commit IS NOT NULL AND t.source IS NOT NULL) AS installs \
         FROM executions e JOIN tasks t ON t.id = e.task_id WHERE e.instance_id IN ($1) \
         AND e.state = 'succeeded' AND t.kind IN ('upgrade', 'revert')) o) n GROUP BY instance_id, version"
    );
    let mut beyond = 0;
    loop {
        let mut read = work.read().await?;
        let ids: Vec<i64> = read.values(instances.clone(), args![application_id, beyond, INSTANCES]).await?;
        let Some(last) = ids.last() else { return Ok(()) };
        beyond = *last;
        let rows: Vec<NewestRow> = read.all(newest.clone(), args![ids.clone()]).await?;
        let newest: Vec<Newest> =
            rows.iter().map(|row| Newest { task_id: row.task_id, sent_task_id: row.sent_task_id }).collect();
        let rows: Vec<HadRow> = read.all(had.clone(), args![ids]).await?;
        let had = |row: HadRow| Had {
            instance_id: row.instance_id,
            last_turn: row.last_turn,
            update_task_id: row.update_task_id,
        };
        take(&newest, &rows.into_iter().map(had).collect::<Vec<Had>>());
    }
}

/// Of which of these tasks the output stays: they are there, or later than every one that is, and it was not given up.
pub(super) async fn keeping(work: &Work, ids: &[i64]) -> Result<Vec<i64>> {
    // A database that knows nothing of what is here is another one, or an older one.
    let last: i64 = work.read().await?.value(sql!("SELECT COALESCE(MAX(id), 0) FROM tasks"), args![]).await?;
    let mut keeping: Vec<i64> = ids.iter().copied().filter(|id| *id > last).collect();
    for some in ids.chunks(IDS) {
        let sql = sql!("SELECT id FROM tasks WHERE id IN ($1) AND output_removed_at IS NULL");
        keeping.extend(work.read().await?.values::<i64>(sql, args![some.to_vec()]).await?);
    }
    Ok(keeping)
}

/// Removes tasks with their executions, unless something wants them since they were chosen. Gives how many went.
pub(super) async fn remove(tx: &mut Tx, ids: &[i64]) -> Result<u64> {
    // Who makes a task from one of them does it before, or finds it gone.
    tx.run(sql!("UPDATE tasks SET phase = phase WHERE id IN ($1)"), args![ids.to_vec()]).await?;
    let sql = sql!(
        "DELETE FROM tasks WHERE id IN ($1) AND phase = 'over' \
         AND NOT EXISTS (SELECT 1 FROM tasks m WHERE m.origin_task_id = tasks.id AND m.id NOT IN ($1)) \
         AND NOT EXISTS (SELECT 1 FROM task_requirements r JOIN tasks w ON w.id = r.task_id \
         WHERE r.required_id = tasks.id AND w.phase <> 'over')"
    );
    Ok(tx.run(sql, args![ids.to_vec()]).await?)
}

/// Removes deploy tasks, unless they have a sub-task since they were chosen. Gives how many went.
pub(super) async fn remove_deploy_tasks(tx: &mut Tx, ids: &[i64]) -> Result<u64> {
    // Who makes a sub-task does it before, or finds it gone.
    tx.run(sql!("UPDATE deploy_tasks SET status = status WHERE id IN ($1)"), args![ids.to_vec()]).await?;
    let sql = sql!(
        "DELETE FROM deploy_tasks WHERE id IN ($1) AND status IN ('closed', 'running') \
         AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.deploy_task_id = deploy_tasks.id)"
    );
    Ok(tx.run(sql, args![ids.to_vec()]).await?)
}

/// Notes that the output of tasks is removed. Gives of how many.
pub(super) async fn give_up_output(tx: &mut Tx, ids: &[i64]) -> Result<u64> {
    let now = tx.now();
    let sql = sql!(
        "UPDATE tasks SET output_removed_at = $2 WHERE id IN ($1) AND phase = 'over' AND output_removed_at IS NULL"
    );
    Ok(tx.run(sql, args![ids.to_vec(), now]).await?)
}

/// Notes that the artifacts of tasks are not needed for them. Gives of how many.
pub(super) async fn give_up_artifact(tx: &mut Tx, ids: &[i64]) -> Result<u64> {
    let now = tx.now();
    let sql = sql!(
        "UPDATE tasks SET artifact_removed_at = $2 WHERE id IN ($1) AND phase = 'over' AND artifact_removed_at IS NULL"
    );
    Ok(tx.run(sql, args![ids.to_vec(), now]).await?)
}
