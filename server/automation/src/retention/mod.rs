//! Retention: output, artifacts, tasks and deploy tasks that are over go when they are old, or too many; entries of the audit
//! where an operator says so, and mirrors of repositories that nothing names any more.
//!
//! What goes is decided by rules from what the database says, noted there in small transactions, and removed from the
//! disk afterwards: what a crash leaves in between is found by the next round. Invariants: files go only by the server
//! that works with their folder, or while none does; nothing goes that somebody reads, or that a revert needs.

mod mirrors;
pub mod rules;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_kernel::audit::{self, OldEntry};
use drover_kernel::jobs::Work;
use drover_kernel::retention::Retention;
use drover_kernel::{Audit, AuditEntry, AuditList, Error, Kernel, Result, Time, Tx, caught};

pub use self::mirrors::sweep as sweep_mirrors;
use self::rules::{Carried, Outputs};
use self::store::{DeployRow, EndedRow};
use crate::artifacts::{self, ArtifactStore};
use crate::engine::Engine;
use crate::logs;

/// How often files are looked for that no row wants any more.
const SWEEP: Duration = Duration::from_mins(10);
/// Of these one begins with deciding what goes.
const SWEEPS_PER_ROUND: u64 = 6;
/// Output that one round gives up at most.
const OUTPUTS_MAX: usize = 50_000;
/// Entries of the audit that one round removes at most.
const AUDIT_MAX: usize = 50_000;
/// Tasks in one transaction, and executions that go with them unless one task has more.
const TASKS_AT_A_TIME: usize = 100;
const EXECUTIONS_AT_A_TIME: i64 = 2_000;
/// Entries of the audit in one transaction.
const AUDIT_AT_A_TIME: usize = 1_000;

/// How many, and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Files.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counted {
    /// Counts more.
    pub fn add(&mut self, more: Self) {
        self.count += more.count;
        self.bytes += more.bytes;
    }
}

/// What goes, or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Tasks with their executions.
    pub tasks: u64,
    /// Deploy tasks.
    pub deploy_tasks: u64,
    /// Entries of the audit.
    pub audit: u64,
    /// Files of output, those of removed tasks among them.
    pub output: Counted,
    /// Artifacts, with what is kept beside them.
    pub artifacts: Counted,
    /// Mirrors of repositories, with what is remembered of what was packed from them.
    pub mirrors: Counted,
}

/// Where the files are.
pub struct Places {
    logs: PathBuf,
    sources: PathBuf,
    artifacts: ArtifactStore,
}

impl Places {
    /// Those under a data directory, for looking alone.
    #[must_use]
    pub fn beside(data_directory: &Path) -> Self {
        Self {
            logs: data_directory.join("logs"),
            sources: data_directory.join("sources"),
            artifacts: ArtifactStore::beside(&data_directory.join("artifacts")),
        }
    }

    fn of(engine: &Engine) -> Self {
        Self {
            logs: engine.logs.folder().to_owned(),
            sources: engine.sources.folder().to_owned(),
            artifacts: engine.artifacts.clone(),
        }
    }

    async fn logs(&self) -> Result<BTreeMap<i64, u64>> {
        let folder = self.logs.clone();
        tokio::task::spawn_blocking(move || logs::stored(&folder))
            .await
            .map_err(Error::internal)?
            .map_err(Error::internal)
    }
}

/// What a round has chosen.
#[derive(Default)]
struct Chosen {
    tasks: Vec<EndedRow>,
    outputs: Vec<EndedRow>,
    artifacts: Vec<EndedRow>,
    deploy_tasks: Vec<DeployRow>,
    audit: Vec<OldEntry>,
    /// Files of output, with their lengths.
    files: BTreeMap<i64, u64>,
}

/// Says what [`round`] would remove now.
///
/// # Errors
/// When the database or the disk is not available.
pub async fn look(work: &Work, places: &Places, retention: &Retention) -> Result<Removed> {
    let chosen = choose(work, places, retention).await?;
    foreseen(work, places, &chosen).await
}

/// Does what can be done beside a server that works with the files: removes tasks, and notes in the database whose output
/// and artifacts go. The server removes the files. Gives what goes.
///
/// # Errors
/// When the database or the disk is not available; what was done stays done.
pub async fn mark(work: &Work, places: &Places, retention: &Retention) -> Result<Removed> {
    let chosen = choose(work, places, retention).await?;
    let foreseen = foreseen(work, places, &chosen).await?;
    let Removed { tasks, deploy_tasks, audit, .. } = carry_out(work, &chosen).await?;
    Ok(Removed { tasks, deploy_tasks, audit, ..foreseen })
}

/// One round: decides what goes, and removes it.
///
/// # Errors
/// When the database or the disk is not available; the next round does what this one left.
pub async fn round(kernel: &Kernel, retention: &Retention) -> Result<Removed> {
    let (work, places) = (kernel.work(), Places::of(&kernel.part::<Engine>()));
    let chosen = choose(&work, &places, retention).await?;
    let rows = carry_out(&work, &chosen).await?;
    let (output, artifacts) = (sweep(kernel).await?, artifacts::sweep(kernel).await?);
    Ok(Removed { output, artifacts, mirrors: sweep_mirrors(kernel).await?, ..rows })
}

/// Removes files of output that no row wants: what was given up, what belonged to tasks that are gone, and what a crash
/// left. One that somebody has open waits for the next time. Gives what went.
///
/// # Errors
/// When the database or the disk is not available.
pub async fn sweep(kernel: &Kernel) -> Result<Counted> {
    let engine = kernel.part::<Engine>();
    let files = Places::of(&engine).logs().await?;
    let mut removed = Counted::default();
    for task_id in unwanted(&kernel.work(), &files).await? {
        if kernel.stopping().is_cancelled() {
            break;
        }
        if engine.logs.remove(task_id).await.map_err(Error::internal)? {
            removed.add(Counted { count: 1, bytes: files.get(&task_id).copied().unwrap_or(0) });
        }
    }
    Ok(removed)
}

/// Goes on for as long as the server does: every hour a round, and more often what was left by others.
pub async fn keep(kernel: Kernel) {
    let stop = kernel.stopping();
    let mut sweeps = 0_u64;
    while !stop.is_cancelled() {
        let work = async {
            if sweeps.is_multiple_of(SWEEPS_PER_ROUND) {
                let removed = round(&kernel, &kernel.settings().retention).await?;
                if removed != Removed::default() {
                    tracing::info!(?removed, "retention removed what is old");
                }
            } else {
                sweep(&kernel).await?;
                sweep_mirrors(&kernel).await?;
            }
            Ok(())
        };
        if let Err(error) = caught(Box::pin(work)).await {
            tracing::warn!(%error, "what is old cannot be removed, trying again later");
        }
        sweeps += 1;
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn choose(work: &Work, places: &Places, retention: &Retention) -> Result<Chosen> {
    let now = work.kernel().clock().now();
    let mut chosen = Chosen { files: places.logs().await?, ..Chosen::default() };
    // What belongs to no application has none of this number.
    choose_of(work, store::NO_APPLICATION, retention, now, &mut chosen).await?;
    let mut beyond = 0;
    loop {
        let applications = store::applications(work, beyond).await?;
        let Some(last) = applications.last() else { break };
        beyond = *last;
        for application_id in applications {
            choose_of(work, application_id, retention, now, &mut chosen).await?;
        }
    }
    choose_outputs(work, retention, now, &mut chosen).await?;
    if let Some(kept) = retention.audit {
        chosen.audit = audit::written_before(work, before(now, kept), AUDIT_MAX).await?;
    }
    Ok(chosen)
}

/// So long before now.
fn before(now: Time, kept: Duration) -> Time {
    Time::from_millis(now.millis().saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX)))
}

/// Chooses among the tasks of an application and their artifacts.
async fn choose_of(
    work: &Work,
    application_id: i64,
    retention: &Retention,
    now: Time,
    chosen: &mut Chosen,
) -> Result<()> {
    let (mut tasks, mut deploy_tasks, mut with_artifacts) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(kept) = retention.tasks {
        let (before, least) = (before(now, kept), retention.tasks_least);
        tasks = store::old_tasks(work, application_id, before, least).await?;
        deploy_tasks = store::old_deploy_tasks(work, application_id, before, least).await?;
    }
    if let Some(kept) = retention.artifacts {
        with_artifacts = store::with_artifacts(work, application_id, before(now, kept)).await?;
    }
    if tasks.is_empty() && deploy_tasks.is_empty() && with_artifacts.is_empty() {
        return Ok(());
    }
    let mut needed = BTreeSet::new();
    store::histories(work, application_id, |newest, had| needed.extend(rules::needed(newest, had))).await?;
    let made_from = if tasks.is_empty() { Vec::new() } else { store::made_from(work, application_id).await? };
    let ended = |rows: &[EndedRow]| rows.iter().map(EndedRow::ended).collect::<Vec<_>>();
    let going = rules::tasks(&ended(&tasks), &needed, &made_from, retention, now);
    let given_up = rules::artifacts(&ended(&with_artifacts), &needed, retention, now);
    let mut of_deploy_tasks: BTreeMap<i64, u64> = BTreeMap::new();
    for deploy_task_id in tasks.iter().filter(|task| going.contains(&task.id)).filter_map(|task| task.deploy_task_id) {
        *of_deploy_tasks.entry(deploy_task_id).or_default() += 1;
    }
    let carried: Vec<Carried> = deploy_tasks.iter().map(DeployRow::carried).collect();
    let carried = rules::deploy_tasks(&carried, &of_deploy_tasks);
    chosen.deploy_tasks.extend(deploy_tasks.into_iter().filter(|one| carried.contains(&one.id)));
    chosen.tasks.extend(tasks.into_iter().filter(|task| going.contains(&task.id)));
    let without = |task: &EndedRow| given_up.contains(&task.id) && !going.contains(&task.id);
    chosen.artifacts.extend(with_artifacts.into_iter().filter(without));
    Ok(())
}

async fn choose_outputs(work: &Work, retention: &Retention, now: Time, chosen: &mut Chosen) -> Result<()> {
    let going: HashSet<i64> = chosen.tasks.iter().map(|task| task.id).collect();
    let staying = chosen.files.iter().filter(|(task_id, _)| !going.contains(task_id));
    let mut outputs = Outputs::new(retention, now, staying.map(|(_, bytes)| bytes).sum());
    let mut beyond = (Time::from_millis(i64::MIN), 0);
    loop {
        let page = store::with_output(work, beyond).await?;
        let Some(last) = page.last() else { return Ok(()) };
        beyond = (last.finished_at, last.id);
        for task in page {
            if !outputs.reaches(task.finished_at) || chosen.outputs.len() >= OUTPUTS_MAX {
                return Ok(());
            }
            let bytes = chosen.files.get(&task.id).copied().unwrap_or(0);
            if !going.contains(&task.id) && outputs.goes(&task.ended(), bytes) {
                chosen.outputs.push(task);
            }
        }
    }
}

/// What goes once all that was chosen is carried out.
async fn foreseen(work: &Work, places: &Places, chosen: &Chosen) -> Result<Removed> {
    let ids = |tasks: &[EndedRow]| tasks.iter().map(|task| task.id).collect::<Vec<i64>>();
    let mut silent: BTreeSet<i64> = unwanted(work, &chosen.files).await?.into_iter().collect();
    silent.extend(ids(&chosen.tasks).into_iter().chain(ids(&chosen.outputs)));
    let mut output = Counted::default();
    for bytes in silent.iter().filter_map(|task_id| chosen.files.get(task_id)) {
        output.add(Counted { count: 1, bytes: *bytes });
    }
    let without = ids(&chosen.tasks).into_iter().chain(ids(&chosen.artifacts)).collect();
    let artifacts = artifacts::unneeded(&mut work.read().await?, &places.artifacts, &without).await?;
    Ok(Removed {
        tasks: chosen.tasks.len() as u64,
        deploy_tasks: chosen.deploy_tasks.len() as u64,
        audit: chosen.audit.len() as u64,
        output,
        artifacts,
        mirrors: mirrors::unneeded(work, &places.sources, &chosen.tasks).await?,
    })
}

/// Files of output that no row wants.
async fn unwanted(work: &Work, files: &BTreeMap<i64, u64>) -> Result<Vec<i64>> {
    let ids: Vec<i64> = files.keys().copied().collect();
    let keeping: HashSet<i64> = store::keeping(work, &ids).await?.into_iter().collect();
    Ok(ids.into_iter().filter(|id| !keeping.contains(id)).collect())
}

/// What is done to rows.
#[derive(Clone, Copy)]
enum Deed {
    RemoveTasks,
    RemoveDeployTasks,
    RemoveAudit,
    GiveUpOutput,
    GiveUpArtifacts,
}

impl Deed {
    /// Does it, and says of how many rows and in which words.
    async fn carry_out(self, tx: &mut Tx, ids: &[i64]) -> Result<(u64, AuditEntry)> {
        let (count, action, kind, what) = match self {
            Self::RemoveTasks => {
                (store::remove(tx, ids).await?, "remove", "task", "tasks with their output, which ended")
            }
            Self::RemoveDeployTasks => {
                let count = store::remove_deploy_tasks(tx, ids).await?;
                (count, "remove", "deploy_task", "deploy tasks without sub-tasks, which were closed or started")
            }
            Self::RemoveAudit => {
                (audit::remove(tx, ids).await?, "remove", "audit", "entries of the audit, which were written")
            }
            Self::GiveUpOutput => {
                (store::give_up_output(tx, ids).await?, "remove_output", "task", "outputs, which ended")
            }
            Self::GiveUpArtifacts => {
                let count = store::give_up_artifact(tx, ids).await?;
                (count, "remove_artifacts", "task", "tasks' claims on artifacts, which ended")
            }
        };
        let entry = AuditEntry::new(AuditList::General, action, kind, 0, "retention");
        Ok((count, entry.detail(format!("{count} {what} long ago"))))
    }
}

/// A row to do something to.
struct Row {
    organisation_id: i64,
    id: i64,
    executions: i64,
}

/// Notes in the database what was chosen; gives how many rows were removed.
async fn carry_out(work: &Work, chosen: &Chosen) -> Result<Removed> {
    let row = |task: &EndedRow| {
        let EndedRow { organisation_id, id, executions, .. } = *task;
        Row { organisation_id, id, executions }
    };
    note(work, Deed::GiveUpOutput, chosen.outputs.iter().map(row)).await?;
    note(work, Deed::GiveUpArtifacts, chosen.artifacts.iter().map(row)).await?;
    // What was made from a task goes with it or before it.
    let mut tasks: Vec<Row> = chosen.tasks.iter().map(row).collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(task.id));
    let tasks = note(work, Deed::RemoveTasks, tasks).await?;
    let row = |one: &DeployRow| Row { organisation_id: one.organisation_id, id: one.id, executions: 0 };
    let deploy_tasks = note(work, Deed::RemoveDeployTasks, chosen.deploy_tasks.iter().map(row)).await?;
    let row = |one: &OldEntry| Row { organisation_id: one.organisation_id, id: one.id, executions: 0 };
    let audit = note(work, Deed::RemoveAudit, chosen.audit.iter().map(row)).await?;
    Ok(Removed { tasks, deploy_tasks, audit, ..Removed::default() })
}

/// Does something to rows, some at a time, so that nobody waits long for the database. Each time is audited with how many
/// they were.
async fn note(work: &Work, deed: Deed, rows: impl IntoIterator<Item = Row>) -> Result<u64> {
    let mut by_organisation: BTreeMap<i64, Vec<Row>> = BTreeMap::new();
    for row in rows {
        by_organisation.entry(row.organisation_id).or_default().push(row);
    }
    let mut done = 0;
    for (organisation_id, rows) in by_organisation {
        let mut left = rows.as_slice();
        while !left.is_empty() && !work.kernel().stopping().is_cancelled() {
            let mut executions = 0;
            let fits = |row: &&Row| {
                executions += row.executions;
                executions <= EXECUTIONS_AT_A_TIME
            };
            let at_a_time = if matches!(deed, Deed::RemoveAudit) { AUDIT_AT_A_TIME } else { TASKS_AT_A_TIME };
            let count = left.iter().take(at_a_time).take_while(fits).count().max(1);
            let (some, rest) = left.split_at(count);
            left = rest;
            let ids: Vec<i64> = some.iter().map(|row| row.id).collect();
            let mut tx = work.begin(organisation_id).await?;
            let (count, entry) = deed.carry_out(&mut tx, &ids).await?;
            tx.finish(if count > 0 { Audit::of(entry) } else { Audit::none("nothing was to be removed") }).await?;
            done += count;
        }
    }
    Ok(done)
}
