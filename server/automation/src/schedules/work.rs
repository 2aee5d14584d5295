//! Having what schedules name begin when its time comes.
//!
//! Moments become rows first, in one transaction with the next one of their schedule, and a row is decided about once.
//! Invariants: no moment is run twice, whatever dies and however many servers look; one moment of a schedule at a time,
//! in their order; what cannot begin yet is tried again for an hour and says why, and is not begun later than that.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use drover_kernel::{Audit, AuditEntry, AuditList, Error, Kernel, Result, Time, Tx};
use drover_shared::words::Word as _;
use tokio::sync::Semaphore;

use super::rule_of;
use super::rules::{Due, Late, RunState, TRIED, Turn, WAITING_MAX, late, turn};
use super::store::{self, Named, Run, Schedule};
use super::what::{self, Ready};
use crate::deploys::carried;
use crate::deploys::moving::unchanged;
use crate::engine::{self, Engine, rollout};
use crate::tasks::store as task_store;

/// How long one that cannot begin is left alone.
const AGAIN: Duration = Duration::from_secs(30);
/// How long one that is being tried is left alone: somebody may have died of it.
const UNDER_WAY: Duration = Duration::from_secs(600);
/// Schedules that are tried at the same time.
const AT_ONCE: usize = 8;
/// What stands before the reason for which one cannot begin.
const NOT_YET: &str = "it cannot begin yet: ";
/// Times that one look asks for more moments that have come.
const ROUNDS: usize = 20;

/// Schedules that are tried or were, and before when they are not tried again. Bounded by the schedules that wait.
pub(crate) struct Scheduling {
    tried: Mutex<HashMap<i64, Time>>,
    turns: Semaphore,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self { tried: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }
}

impl Scheduling {
    /// Whether it is time to try one; it is not again until it was tried.
    fn may_try(&self, id: i64, now: Time) -> bool {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let free = tried.get(&id).is_none_or(|not_before| now >= *not_before);
        if free {
            tried.insert(id, now.after(UNDER_WAY));
        }
        free
    }

    /// It was tried: the next round may do so again, or one some time later.
    fn was_tried(&self, id: i64, not_before: Option<Time>) {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        match not_before {
            Some(time) => drop(tried.insert(id, time)),
            None => drop(tried.remove(&id)),
        }
    }
}

/// Looks at everything that is due: moments that came, and those that wait.
///
/// # Errors
/// When the database is not available; the next round does what this one left.
pub(crate) async fn look(kernel: &Kernel) -> Result<()> {
    let now = kernel.clock().now();
    for _ in 0..ROUNDS {
        let due = store::due(&mut kernel.work().read().await?, now).await?;
        let mut noted = 0;
        for named in &due {
            match take_moments(kernel, named).await {
                Ok(()) => noted += 1,
                Err(error) => {
                    tracing::warn!(schedule_id = named.id, %error, "the moments of a schedule could not be noted");
                }
            }
        }
        // What was noted is due no more.
        if noted == 0 {
            break;
        }
    }
    let mut beyond = 0;
    loop {
        let waiting = store::waiting(&mut kernel.work().read().await?, beyond).await?;
        let Some(last) = waiting.last() else { return Ok(()) };
        beyond = last.id;
        for named in waiting {
            if kernel.part::<Engine>().scheduling.may_try(named.id, now) {
                let owner = kernel.clone();
                kernel.spawn(async move { attempt(&owner, &named).await });
            }
        }
    }
}

/// Sets the first moment from now on, so that it counts as missed if no server is there.
///
/// # Errors
/// When the database is not available.
pub(super) async fn set_first(tx: &mut Tx, schedule: &Schedule) -> Result<()> {
    let rule = rule_of(schedule)?;
    let first = rule.coming(tx.now(), 1).pop();
    store::set_next(tx, schedule.id, first, first.map(|moment| rule.run_at(moment))).await
}

/// Notes the moments of a schedule that have come, and what comes next.
async fn take_moments(kernel: &Kernel, named: &Named) -> Result<()> {
    let mut tx = kernel.work().begin(named.organisation_id).await?;
    let schedule = store::hold(&mut tx, named.id).await?;
    let now = tx.now();
    if schedule.paused_by.is_some() || schedule.next_at.is_some_and(|at| at > now) {
        return Ok(());
    }
    let rule = rule_of(&schedule)?;
    let Due { run, missed, next } = match schedule.next_moment {
        Some(first) => rule.due(first, now),
        None => Due { next: rule.coming(now, 1).pop(), ..Due::default() },
    };
    if let Some(missed) = &missed {
        store::note_missed(&mut tx, &schedule, missed, &missed.first.show(rule.zone)).await?;
    }
    for moment in run {
        let full = store::is_full(&mut tx, schedule.id).await?;
        let many = format!("{WAITING_MAX} moments wait already");
        let (state, reason) = if full { (RunState::Skipped, Some(many.as_str())) } else { (RunState::Waiting, None) };
        store::note(&mut tx, (schedule.id, moment), state, None, reason).await?;
    }
    store::set_next(&mut tx, schedule.id, next, next.map(|moment| rule.run_at(moment))).await?;
    store::forget_old(&mut tx, schedule.id).await?;
    tx.finish(Audit::none("what becomes of the moments is told where they are run")).await
}

/// Has the first moment that waits begin, if it may.
async fn attempt(kernel: &Kernel, named: &Named) {
    let scheduling = &kernel.part::<Engine>().scheduling;
    let _turn = scheduling.turns.acquire().await;
    let not_before = match try_one(kernel, named).await {
        // What comes behind it is looked at by the next round.
        Ok(Tried::Decided) => None,
        Ok(Tried::Waits) => Some(kernel.clock().now().after(AGAIN)),
        Err(error) => {
            tracing::warn!(schedule_id = named.id, %error, "a schedule could not begin; it is tried again");
            Some(kernel.clock().now().after(AGAIN))
        }
    };
    scheduling.was_tried(named.id, not_before);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Decided,
    Waits,
}

async fn try_one(kernel: &Kernel, named: &Named) -> Result<Tried> {
    let mut read = kernel.work().read().await?;
    let schedule = match store::load(&mut read, named.organisation_id, named.id).await {
        Ok(schedule) if schedule.paused_by.is_none() => schedule,
        Ok(_) | Err(Error::NotFound(_)) => return Ok(Tried::Decided),
        Err(error) => return Err(error),
    };
    let Some(run) = store::first_waiting(&mut read, schedule.id).await? else { return Ok(Tried::Decided) };
    let at_work = store::at_work(&mut read, schedule.id).await?;
    let standing = store::standing(&mut read, &run).await?;
    drop(read);
    let since = standing.free.map_or(run.created_at, |free| free.max(run.created_at));
    let turn = turn(schedule.overlap, at_work.is_empty());
    // One for which the one before was cancelled begins when that is over; one that was asked for by hand, when it can.
    let is_first = turn == Turn::Start || (turn == Turn::Cancel && run.reason.is_none());
    if is_first && run.asked_by_id.is_none() {
        let (now, tried) = (kernel.clock().now(), run.reason.is_some());
        let late = late(schedule.missed, since, now, tried, standing.behind == 0);
        if late != Late::Begin {
            decide_late(kernel, &schedule, &run, late).await?;
            return Ok(Tried::Decided);
        }
    }
    match turn {
        Turn::Wait => Ok(Tried::Decided),
        Turn::Skip => {
            let reason = format!("task {} is not over", at_work.first().copied().unwrap_or_default());
            decide(kernel, &schedule, &run, RunState::Skipped, &reason).await?;
            Ok(Tried::Decided)
        }
        Turn::Cancel => {
            for task_id in &at_work {
                cancel(kernel, &schedule, *task_id).await?;
            }
            let first = at_work.first().copied().unwrap_or_default();
            note_why(kernel, &schedule, &run, format!("it waits for the end of task {first}, which it cancelled"))
                .await?;
            Ok(Tried::Decided)
        }
        Turn::Start => start(kernel, &schedule, &run, since).await,
    }
}

/// Decides about a moment that did not begin in its time.
async fn decide_late(kernel: &Kernel, schedule: &Schedule, run: &Run, late: Late) -> Result<()> {
    match late {
        Late::Begin => Ok(()),
        Late::Anew => {
            let mut tx = kernel.work().begin(schedule.organisation_id).await?;
            store::renew(&mut tx, run).await?;
            tx.finish(Audit::none("nothing is decided yet")).await
        }
        Late::Missed => {
            let reason = "no server could begin it within an hour";
            decide(kernel, schedule, run, RunState::Missed, reason).await
        }
        Late::Failed => {
            let reason = run.reason.as_deref().unwrap_or_default();
            let reason = format!("it could not begin for an hour: {}", reason.trim_start_matches(NOT_YET));
            decide(kernel, schedule, run, RunState::Failed, &reason).await
        }
    }
}

async fn start(kernel: &Kernel, schedule: &Schedule, run: &Run, since: Time) -> Result<Tried> {
    let user_id = run.asked_by_id.unwrap_or(schedule.owner_id);
    let begun = match what::prepare(kernel, schedule, user_id).await {
        Ok(Ready::Nothing(why)) => {
            decide(kernel, schedule, run, RunState::Skipped, &why).await?;
            return Ok(Tried::Decided);
        }
        Ok(Ready::Void(task, why)) => {
            let mut tx = kernel.work().begin(schedule.organisation_id).await?;
            let task = unchanged(&mut tx, &task).await?;
            carried::make_void(tx, &task, &why).await?;
            Err(Error::Forbidden(format!("the approval of the deploy task is void: {why}")))
        }
        Ok(ready) => begin(kernel, schedule, run, ready).await,
        Err(error) => Err(error),
    };
    let error = match begun {
        Ok(()) => return Ok(Tried::Decided),
        Err(error) => error,
    };
    let passing = matches!(error, Error::Conflict(_) | Error::Unavailable(_) | Error::Internal(_));
    if passing && kernel.clock().now() < since.after(TRIED) {
        note_why(kernel, schedule, run, format!("{NOT_YET}{error}")).await?;
        return Ok(Tried::Waits);
    }
    decide(kernel, schedule, run, RunState::Failed, &error.to_string()).await?;
    Ok(Tried::Decided)
}

/// Makes the task and decides about the moment, in one transaction.
async fn begin(kernel: &Kernel, schedule: &Schedule, run: &Run, ready: Ready) -> Result<()> {
    let mut tx = kernel.work().begin(schedule.organisation_id).await?;
    let moment = run.moment.show(super::zone_of(schedule)?);
    let about = match &run.asked_by {
        Some(asked_by) => format!("schedule {}, asked for by {asked_by}", schedule.name),
        None => format!("schedule {}, moment {moment}", schedule.name),
    };
    let creator = run.asked_by.as_deref().unwrap_or(&schedule.owner);
    let about = about + &ready.told();
    let (made, mut entries) = what::begin(&mut tx, ready, schedule.if_busy, creator, &about).await?;
    store::decide(&mut tx, run, RunState::Started, Some(made.task_id), None).await?;
    entries.push(entry("run", schedule).detail(format!("task {}, {about}", made.task_id)));
    let task_id = made.task_id;
    tx.after_commit(move |kernel| engine::say_and_wake(kernel, task_id, format!("by {about}")));
    tx.finish(Audit::all(entries)).await
}

async fn decide(kernel: &Kernel, schedule: &Schedule, run: &Run, state: RunState, reason: &str) -> Result<()> {
    let mut tx = kernel.work().begin(schedule.organisation_id).await?;
    store::decide(&mut tx, run, state, None, Some(reason)).await?;
    let entry = entry(state.as_str(), schedule).detail(reason.to_owned());
    tx.finish(Audit::of(entry)).await
}

/// Says why a moment has not begun yet.
async fn note_why(kernel: &Kernel, schedule: &Schedule, run: &Run, reason: String) -> Result<()> {
    if run.reason.as_deref() == Some(&reason) {
        return Ok(());
    }
    let mut tx = kernel.work().begin(schedule.organisation_id).await?;
    store::decide(&mut tx, run, RunState::Waiting, None, Some(&reason)).await?;
    tx.finish(Audit::none("nothing is decided yet")).await
}

/// Ends the task of the moment before, as a person would.
async fn cancel(kernel: &Kernel, schedule: &Schedule, task_id: i64) -> Result<()> {
    let mut tx = kernel.work().begin(schedule.organisation_id).await?;
    let Some(task) = task_store::lock(&mut tx, task_id).await? else { return Ok(()) };
    if task.outcome.is_some() || task.cancelled {
        return Ok(());
    }
    let reason = format!("cancelled by schedule {}: its next moment has come", schedule.name);
    rollout::stop(&mut tx, &task, &reason, true).await?;
    tx.enqueue_behind(engine::TOPIC, &task_id.to_string()).await?;
    let said = reason.clone();
    tx.after_commit(move |kernel| engine::say_and_wake(kernel, task_id, said));
    let entry = AuditEntry::new(AuditList::General, "cancel", "task", task_id, task.version).detail(reason);
    tx.finish(Audit::of(entry)).await
}

pub(super) fn entry(action: &str, schedule: &Schedule) -> AuditEntry {
    AuditEntry::new(AuditList::General, action, "schedule", schedule.id, schedule.name.as_str())
}
