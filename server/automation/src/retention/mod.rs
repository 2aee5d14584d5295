//! Retention: output, artifacts and tasks that are over go when they are old, or too many.
//!
//! What goes is decided by rules from what the database says, noted there in small transactions, and removed from the
//! disk afterwards: what a crash leaves in between is found by the next round. Invariants: files go only by the server
//! that works with their folder, or while none does; nothing goes that somebody reads, or that a revert needs.

pub mod rules;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_kernel::jobs::Work;
use drover_kernel::retention::Retention;
use drover_kernel::{Audit, AuditEntry, AuditList, Error, Kernel, Result, Time, caught};

use self::rules::Outputs;
use self::store::EndedRow;
use crate::artifacts::{self, ArtifactStore};
use crate::engine::Engine;
use crate::logs;

/// How often files are looked for that no row wants any more.
const SWEEP: Duration = Duration::from_mins(10);
/// Of these one begins with deciding what goes.
const SWEEPS_PER_ROUND: u64 = 6;
/// Output that one round gives up at most.
const OUTPUTS_MAX: usize = 50_000;
/// Tasks in one transaction, and executions that go with them unless one task has more.
const TASKS_AT_A_TIME: usize = 100;
const EXECUTIONS_AT_A_TIME: i64 = 2_000;

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
    /// Files of output, those of removed tasks among them.
    pub output: Counted,
    /// Artifacts, with what is kept beside them.
    pub artifacts: Counted,
}

/// Where the files are.
pub struct Places {
    logs: PathBuf,
    artifacts: ArtifactStore,
}

impl Places {
    /// Those under a data directory, for looking alone.
    #[must_use]
    pub fn beside(data_directory: &Path) -> Self {
        Self { logs: data_directory.join("logs"), artifacts: ArtifactStore::beside(&data_directory.join("artifacts")) }
    }

    fn of(engine: &Engine) -> Self {
        Self { logs: engine.logs.folder().to_owned(), artifacts: engine.artifacts.clone() }
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
    let tasks = carry_out(work, &chosen).await?;
    Ok(Removed { tasks, ..foreseen })
}

/// One round: decides what goes, and removes it.
///
/// # Errors
/// When the database or the disk is not available; the next round does what this one left.
pub async fn round(kernel: &Kernel, retention: &Retention) -> Result<Removed> {
    let (work, places) = (kernel.work(), Places::of(&kernel.part::<Engine>()));
    let chosen = choose(&work, &places, retention).await?;
    let tasks = carry_out(&work, &chosen).await?;
    Ok(Removed { tasks, output: sweep(kernel).await?, artifacts: artifacts::sweep(kernel).await? })
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
                let Removed { tasks, output, artifacts } = round(&kernel, &kernel.settings().retention).await?;
                if tasks + output.count + artifacts.count > 0 {
                    let (files, bytes) = (output.count + artifacts.count, output.bytes + artifacts.bytes);
                    tracing::info!(tasks, files, bytes, "retention removed what is old");
                }
            } else {
                sweep(&kernel).await?;
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
    Ok(chosen)
}

/// Chooses among the tasks of an application and their artifacts.
async fn choose_of(
    work: &Work,
    application_id: i64,
    retention: &Retention,
    now: Time,
    chosen: &mut Chosen,
) -> Result<()> {
    let before = |kept: Duration| {
        Time::from_millis(now.millis().saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX)))
    };
    let tasks = match retention.tasks {
        Some(kept) => store::old_tasks(work, application_id, before(kept), retention.tasks_least).await?,
        None => Vec::new(),
    };
    let with_artifacts = match retention.artifacts {
        Some(kept) => store::with_artifacts(work, application_id, before(kept)).await?,
        None => Vec::new(),
    };
    if tasks.is_empty() && with_artifacts.is_empty() {
        return Ok(());
    }
    let mut needed = BTreeSet::new();
    store::histories(work, application_id, |newest, had| needed.extend(rules::needed(newest, had))).await?;
    let made_from = if tasks.is_empty() { Vec::new() } else { store::made_from(work, application_id).await? };
    let ended = |rows: &[EndedRow]| rows.iter().map(EndedRow::ended).collect::<Vec<_>>();
    let going = rules::tasks(&ended(&tasks), &needed, &made_from, retention, now);
    let given_up = rules::artifacts(&ended(&with_artifacts), &needed, retention, now);
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
    Ok(Removed { tasks: chosen.tasks.len() as u64, output, artifacts })
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
    GiveUpOutput,
    GiveUpArtifacts,
}

/// Notes in the database what was chosen; gives how many tasks were removed.
async fn carry_out(work: &Work, chosen: &Chosen) -> Result<u64> {
    note(work, Deed::GiveUpOutput, &chosen.outputs).await?;
    note(work, Deed::GiveUpArtifacts, &chosen.artifacts).await?;
    // What was made from a task goes with it or before it.
    let mut tasks: Vec<&EndedRow> = chosen.tasks.iter().collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(task.id));
    note(work, Deed::RemoveTasks, tasks).await
}

/// Does something to rows, some at a time, so that nobody waits long for the database. Each time is audited with how many
/// they were.
async fn note<'a>(work: &Work, deed: Deed, tasks: impl IntoIterator<Item = &'a EndedRow>) -> Result<u64> {
    let mut by_organisation: BTreeMap<i64, Vec<&EndedRow>> = BTreeMap::new();
    for task in tasks {
        by_organisation.entry(task.organisation_id).or_default().push(task);
    }
    let mut done = 0;
    for (organisation_id, tasks) in by_organisation {
        let mut left = tasks.as_slice();
        while !left.is_empty() && !work.kernel().stopping().is_cancelled() {
            let mut executions = 0;
            let fits = |task: &&&EndedRow| {
                executions += task.executions;
                executions <= EXECUTIONS_AT_A_TIME
            };
            let count = left.iter().take(TASKS_AT_A_TIME).take_while(fits).count().max(1);
            let (some, rest) = left.split_at(count);
            left = rest;
            let ids: Vec<i64> = some.iter().map(|task| task.id).collect();
            let mut tx = work.begin(organisation_id).await?;
            let (count, action, what) = match deed {
                Deed::RemoveTasks => (store::remove(&mut tx, &ids).await?, "remove", "tasks with their output"),
                Deed::GiveUpOutput => (store::give_up_output(&mut tx, &ids).await?, "remove_output", "outputs"),
                Deed::GiveUpArtifacts => {
                    (store::give_up_artifact(&mut tx, &ids).await?, "remove_artifacts", "tasks' claims on artifacts")
                }
            };
            let entry = AuditEntry::new(AuditList::General, action, "task", 0, "retention")
                .detail(format!("{count} {what}, which ended long ago"));
            tx.finish(if count > 0 { Audit::of(entry) } else { Audit::none("nothing was to be removed") }).await?;
            done += count;
        }
    }
    Ok(done)
}
