//! What a person says of executions of which nobody knows how they ended.
//!
//! Invariants: an instance with such an execution is in no other task until somebody has said something; who, when and why
//! is kept with the execution. The host's own word counts more than anybody's: it takes the place of `lost` also after an
//! answer, and of what the answer made of the instance unless somebody changed that since.

use drover_kernel::call::{Caller, Permission};
use drover_kernel::fields::{Many, Prose, Reference, Words};
use drover_kernel::{Call, Error, Message, Reply, Result, Tx, api_words};
use drover_shared::words::ExecutionState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::control::{Which, finish};
use super::create::wanted_instances;
use super::store::{self, Execution, ExecutionView};
use crate::engine::{self, Engine};
use crate::executions::rules::Answer;
use crate::executions::store as execution_store;

/// What a host is told that still runs what somebody has answered for.
const ANSWERED: &str = "somebody said meanwhile what became of it";

api_words! {
    /// What an answer may say.
    pub(crate) enum Said {
        /// It did what it was to do: the instance is as if it had succeeded.
        Done = "done",
        /// It is as it is: the instance stays stopped, and may be changed again.
        GiveUp = "give_up",
    }
}

/// What somebody says of instances whose executions are lost.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AnswerNew {
    /// Instances.
    instances: Many<Reference>,
    /// What became of them. To try again, retry the sub-task with these instances.
    #[schemars(with = "Words<Said>")]
    answer: Said,
    /// How that is known; shown in the output and the audit.
    reason: Prose,
}

/// What somebody said of a lost execution.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ExecutionAnswer")]
pub(super) struct AnswerOut {
    /// What is to become of it.
    answer: Answer,
    /// Who said so.
    by: String,
    /// When.
    time: String,
    reason: String,
}

/// The answer as the API shows it.
pub(super) fn shown(kernel: &drover_kernel::Kernel, view: &ExecutionView) -> Option<AnswerOut> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some(AnswerOut {
        answer: view.answer?,
        by: text(&view.answered_by),
        time: view.answered_at.map(|time| kernel.show(time)).unwrap_or_default(),
        reason: text(&view.answer_reason),
    })
}

pub(super) async fn answer<P: Permission>(call: Call<P>, which: Which, body: AnswerNew) -> Result<Reply<Message>> {
    let wanted = wanted_instances(&body.instances)?;
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    which.load(&mut tx).await?;
    let task = store::lock(&mut tx, which.id).await?.ok_or_else(|| Error::not_found("sub-task"))?;
    let executions = store::executions(&mut tx, task.id).await?;
    let answer = match body.answer {
        Said::Done => Answer::Done,
        Said::GiveUp => Answer::GiveUp,
    };
    let mut hosts = Vec::with_capacity(wanted.len());
    for id in wanted {
        let Some(execution) = executions.iter().find(|one| one.target() == Some(id)) else {
            return Err(Error::invalid("instances", format!("{id} is no instance of this sub-task")));
        };
        note(&mut tx, execution, answer, (&caller, &body.reason.0)).await?;
        if answer == Answer::Done {
            engine::settle_as_done(&mut tx, &task, execution).await?;
        }
        hosts.push(execution.host_name.clone());
    }
    // Who waits for one of them need not wait any more.
    tx.after_commit(engine::queue::freed);
    let what = match body.answer {
        Said::Done => "is done",
        Said::GiveUp => "is given up",
    };
    let said = format!("{} says that it {what} on {}: {}", caller.username, hosts.join(", "), body.reason.0);
    finish(tx, &task, "answer", said).await
}

/// Keeps an answer with its execution.
///
/// # Errors
/// A conflict when it is known how the execution ended, or somebody has answered; an invalid reason.
pub(super) async fn note(
    tx: &mut Tx,
    execution: &Execution,
    answer: Answer,
    (by, reason): (&Caller, &str),
) -> Result<()> {
    let host = &execution.host_name;
    if reason.trim().is_empty() {
        return Err(Error::invalid("reason", format!("nobody knows how it ended on {host}: say why you do this")));
    }
    if execution.state != ExecutionState::Lost {
        return Err(Error::conflict(format!("{host} is not lost: it is {}", execution.state)));
    }
    if !execution_store::answer(tx, &execution.id, answer, (&by.username, reason)).await? {
        return Err(Error::conflict(format!("somebody has answered for {host} already")));
    }
    end_there(tx, execution);
    Ok(())
}

/// Has a connected host end what it still runs of it. One that comes back is told when it does.
fn end_there(tx: &mut Tx, execution: &Execution) {
    let (host_id, object) = (execution.host_id, execution.object());
    let (id, attempt) = (execution.id.clone(), execution.attempt);
    tx.after_commit(move |kernel| {
        let Some(session) = kernel.part::<Engine>().hub.find(host_id) else { return };
        kernel.spawn(async move {
            // What it holds is known when it has been welcomed.
            drop(session.sending.lock().await);
            if !session.is_free(object) {
                session.cancel_one(&id, attempt, ANSWERED, false).await;
            }
        });
    });
}

/// Refuses to change instances of which somebody has to say something first.
///
/// # Errors
/// A conflict that names one of them, with its task.
pub(crate) async fn check_answered(tx: &mut Tx, instances: &[i64]) -> Result<()> {
    let Some(open) = execution_store::open_questions(tx, instances).await?.into_iter().next() else { return Ok(()) };
    let text = format!(
        "nobody knows how sub-task {} ended on {}: say so first (retry, done or give_up)",
        open.task_id, open.host_name
    );
    Err(Error::conflict(text))
}
