//! Tasks that go after others: they start when those have ended well, and end when one of those did not.
//!
//! Invariants: nothing of a task that waits is sent, not even its first hook; it is woken in the transaction that ends what
//! it waits for; one that cannot start any more ends at once, with its instances as they were.

use drover_kernel::jobs::Work;
use drover_kernel::{Audit, Kernel, Result, Time, Tx};

use super::{Engine, TOPIC, end, prepare, wake};
use crate::tasks::required::rules::{self, Move};
use crate::tasks::required::store;
use crate::tasks::rollout::PATIENCE;
use crate::tasks::rules::Outcome;
use crate::tasks::store::{self as task_store, Task};

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// It waits.
    Waits,
    /// It goes on, or has ended.
    Moved,
}

fn next(task: &Task, required: &[rules::Required], now: Time) -> Move {
    rules::next(required, task.stop_reason.as_deref(), now >= task.created_at.after(PATIENCE))
}

/// Lets a task start that waits, or ends it, if it is time.
pub(super) async fn look(kernel: &Kernel, work: &Work, task: &Task) -> Result<Looked> {
    let required = store::standings(&mut work.read().await?, task.id).await?;
    if next(task, &required, kernel.clock().now()) == Move::Wait {
        return Ok(Looked::Waits);
    }
    let mut tx = work.begin(task.organisation_id).await?;
    let Some(task) = task_store::lock(&mut tx, task.id).await? else { return Ok(Looked::Moved) };
    if !task.waits || task.outcome.is_some() {
        return Ok(Looked::Moved);
    }
    let required = store::standings(&mut tx, task.id).await?;
    let said = match next(&task, &required, tx.now()) {
        Move::Wait => return Ok(Looked::Waits),
        Move::Go => {
            store::let_go(&mut tx, &task).await?;
            "what had to go first has ended well".to_owned()
        }
        Move::Stop(reason) => {
            task_store::stop(&mut tx, task.id, &reason, task.cancelled).await?;
            end(&mut tx, &task, Outcome::Failed, Some(&reason)).await?;
            prepare::stop_fetching(kernel, &task);
            format!("nothing of it starts: {reason}")
        }
    };
    tx.finish(Audit::none("a task goes on, or ends, by what it goes after")).await?;
    kernel.part::<Engine>().notice(task.id, kernel.clock().now(), &said).await;
    Ok(Looked::Moved)
}

/// Has the tasks looked after that wait for one that ends here.
pub(super) async fn wake_those_after(tx: &mut Tx, task_id: i64) -> Result<()> {
    for waiting in store::waiting_for(tx, task_id).await? {
        tx.enqueue_behind(TOPIC, &waiting.to_string()).await?;
        tx.after_commit(move |kernel| wake(kernel, waiting));
    }
    Ok(())
}
