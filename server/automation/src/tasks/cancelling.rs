//! What a person does to one execution of a task: it ends, and the others go on.
//!
//! Invariants: what was not sent never is; what was sent is told to its agent, in every session of it, until it is over. An
//! instance that ends so was taken out: it says nothing about the version. A hook that runs once and ends so has failed,
//! since nobody said that the task may do without it.

use drover_kernel::call::Permission;
use drover_kernel::db::Read;
use drover_kernel::{Call, Error, Message, Reply, Result};
use drover_shared::words::ExecutionState as State;

use super::control::{Reason, Which, finish, running};
use super::rules::Role;
use super::store::{self, Execution, Task};
use crate::engine::rollout;
use crate::executions::store as execution_store;

pub(super) async fn cancel_one<P: Permission>(
    call: Call<P>,
    (which, execution_id): (Which, String),
    body: Reason,
) -> Result<Reply<Message>> {
    let username = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let task = which.load(&mut tx).await?;
    let mut execution = find(&mut tx, &task, &execution_id).await?;
    let what = match execution.role {
        Role::Instance => execution.host_name.clone(),
        role => format!("{role} on {}", execution.host_name),
    };
    let reason = format!("cancelled by {username}{}", body.why());
    // Whoever takes its end in may wait for the task: nobody keeps that who waits for the execution.
    let mut told = execution_store::cancel(&mut tx, &execution.id, &reason).await?;
    if !told {
        let task = running(&mut tx, which).await?;
        execution = find(&mut tx, &task, &execution_id).await?;
        told = if execution.state == State::Queued {
            rollout::exclude(&mut tx, &task, &execution, &reason).await.map(|()| true)?
        } else {
            execution_store::cancel(&mut tx, &execution.id, &reason).await?
        };
    }
    if !told {
        return Err(Error::conflict(format!("{what} is over: it is {}", execution.state)));
    }
    finish(tx, &task, "cancel", format!("{username} cancels {what}{}", body.why())).await
}

async fn find(read: &mut Read, task: &Task, id: &str) -> Result<Execution> {
    let all = store::executions(read, task.id).await?;
    all.into_iter().find(|one| one.id == id).ok_or_else(|| Error::not_found("execution"))
}
