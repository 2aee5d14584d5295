//! Deploy tasks that start by themselves: at their time, once they are approved, with exactly the plan that was approved.
//!
//! Invariants: one that cannot start yet says why and is tried again, for an hour; one whose time passed longer ago never
//! starts by itself; one whose plan became another one waits for review again.

use std::time::Duration;

use drover_kernel::room::Room;
use drover_kernel::{Audit, AuditEntry, AuditList, Error, Kernel, Result};

use super::{Engine, lock};
use crate::deploys::carried::{self, Standing};
use crate::deploys::moving::unchanged;
use crate::deploys::rules::{self, Event, Facts, Status};
use crate::deploys::store::{self, DeployTask, Due};
use crate::locks::taking::Place;
use crate::tasks::create::Planned;

/// How long one that cannot start yet is left alone.
const AGAIN: Duration = Duration::from_secs(30);

/// Starts what is due, each beside the others.
pub(super) async fn look(kernel: &Kernel) -> Result<()> {
    let now = kernel.clock().now();
    let engine = kernel.part::<Engine>();
    let mut beyond = 0;
    loop {
        let due = store::due(&mut kernel.work().read().await?, now, beyond).await?;
        let Some(last) = due.last() else { return Ok(()) };
        beyond = last.id;
        for one in due {
            let free = lock(&engine.starting).get(&one.id).is_none_or(|not_before| now >= *not_before);
            if free {
                // At most one attempt at a time: the next one is not before this one had its time.
                lock(&engine.starting).insert(one.id, now.after(AGAIN));
                let owner = kernel.clone();
                kernel.spawn(async move { attempt(&owner, &one).await });
            }
        }
    }
}

async fn attempt(kernel: &Kernel, due: &Due) {
    let outcome = match start(kernel, due).await {
        Err(error @ Error::Internal(_)) => Err(error),
        Err(error) => put_off(kernel, due.organisation_id, due.id, &error.to_string()).await,
        Ok(()) => {
            lock(&kernel.part::<Engine>().starting).remove(&due.id);
            Ok(())
        }
    };
    if let Err(error) = outcome {
        tracing::warn!(deploy_task_id = due.id, %error, "a deploy task could not start by itself; it is tried again");
    }
}

async fn start(kernel: &Kernel, due: &Due) -> Result<()> {
    let task = store::load(&mut kernel.work().read().await?, due.organisation_id, due.id).await?;
    if carried::is_too_late(task.planned_exec_at, kernel.clock().now()) {
        return Err(Error::conflict("its time has passed"));
    }
    kernel.part::<Room>().require().await?;
    match carried::standing(kernel, due.organisation_id, &task).await? {
        Standing::Good(planned) => carry_out(kernel, due, &task, *planned).await,
        Standing::Void(why) => {
            let mut tx = kernel.work().begin(due.organisation_id).await?;
            let task = unchanged(&mut tx, &task).await?;
            carried::make_void(tx, &task, &why).await
        }
        Standing::Unbound => Err(Error::conflict("it was approved without its plan")),
    }
}

/// Starts the deploy task and makes its update, in one transaction.
async fn carry_out(kernel: &Kernel, due: &Due, task: &DeployTask, planned: Planned) -> Result<()> {
    // What somebody started meanwhile is theirs.
    rules::step(task.status, Event::Start, Facts::default())?;
    let mut tx = kernel.work().begin(due.organisation_id).await?;
    let about = "by itself at the planned time";
    let (_, entries) = carried::begin(&mut tx, task, planned, Place::NONE, (&task.creator, about)).await?;
    tx.finish(Audit::all(entries)).await
}

/// Says why it does not start yet, or why it never will; nothing of one that somebody started or closed meanwhile.
///
/// # Errors
/// When the database is not available, or somebody else moves it at this moment.
pub async fn put_off(kernel: &Kernel, organisation_id: i64, id: i64, why: &str) -> Result<()> {
    let mut tx = kernel.work().begin(organisation_id).await?;
    store::hold(&mut tx, id).await?;
    let task = store::load(&mut tx, organisation_id, id).await?;
    if task.status != Status::Approved || !task.auto_start {
        return Ok(());
    }
    let gives_up = carried::is_too_late(task.planned_exec_at, tx.now());
    let before = task.status_reason.as_deref().filter(|_| gives_up).map(|before| format!(" ({before})"));
    let reason = if gives_up {
        format!("it did not start by itself: its time passed more than an hour ago{}", before.unwrap_or_default())
    } else {
        format!("it cannot start yet: {why}")
    };
    if task.status_reason.as_deref() == Some(&reason) {
        return Ok(());
    }
    store::put_off(&mut tx, &task, &reason, !gives_up).await?;
    if gives_up {
        lock(&kernel.part::<Engine>().starting).remove(&id);
    }
    let entry = AuditEntry::new(AuditList::General, "put_off", "deploy_task", task.id, task.version).detail(reason);
    tx.finish(Audit::of(entry)).await
}
