//! Taking something away from a task that does not let go of it.
//!
//! Invariants: a person does it and says why; the task is cancelled; what was under way stays `lost`, which is true, with that
//! person's answer; what its host says of it later is kept and moves nothing. The host is told to end it, and gets nothing
//! for that instance while it still runs it.

use std::sync::Arc;

use drover_kernel::call::Permission;
use drover_kernel::fields::{Flag, Prose};
use drover_kernel::{Audit, AuditEntry, AuditList, Body, Call, Error, Kernel, Message, Path, Reply, Result, Tx};
use drover_shared::words::ExecutionState as State;
use schemars::JsonSchema;
use serde::Deserialize;

use super::rules::Object;
use super::store::{self, HolderRow};
use super::{BreakHost, BreakInstance};
use crate::engine::{self, Engine, rollout};
use crate::executions::rules::{self, Event};
use crate::link::hub::Session;
use crate::tasks::store::{self as task_store, Execution, Task};

/// How a lock is to be broken.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BreakNew {
    /// Why; shown in the output and the audit.
    reason: Prose,
    /// Whether everything else that the same task has under way is given up as well; otherwise its hosts are told to end it,
    /// and keep it until they say so.
    #[serde(default)]
    whole_task: Option<Flag>,
}

pub(super) async fn break_instance(
    call: Call<BreakInstance>,
    id: Path<i64>,
    body: Body<BreakNew>,
) -> Result<Reply<Message>> {
    take_away(call, Object::Instance(id.0), body.0).await
}

pub(super) async fn break_host(call: Call<BreakHost>, id: Path<i64>, body: Body<BreakNew>) -> Result<Reply<Message>> {
    take_away(call, Object::Host(id.0), body.0).await
}

async fn take_away<P: Permission>(call: Call<P>, object: Object, body: BreakNew) -> Result<Reply<Message>> {
    let reason = body.reason.required("reason")?;
    let mut read = call.read().await?;
    let holder = store::holder_of(&mut read, call.organisation_id(), object).await?.ok_or_else(nobody)?;
    // Whoever may end the task may.
    match holder.deploy_task_id {
        Some(deploy_task_id) => call.require(&mut read, "deploy_task", deploy_task_id, "deploy_app").await?,
        None => call.require(&mut read, "task", holder.task_id, "restart_app").await?,
    }
    drop(read);
    let username = call.caller()?.username.clone();
    let tx = call.begin().await?;
    carry_out(tx, (object, &holder), (&username, &reason), body.whole_task.is_some_and(|flag| flag.0)).await
}

fn nobody() -> Error {
    Error::conflict("no task has it")
}

async fn carry_out(
    mut tx: Tx,
    (object, holder): (Object, &HolderRow),
    (by, why): (&str, &str),
    whole_task: bool,
) -> Result<Reply<Message>> {
    let task = task_store::lock(&mut tx, holder.task_id).await?.ok_or_else(nobody)?;
    let organisation_id = tx.organisation_id();
    let present = store::holder_of(&mut tx, organisation_id, object).await?.ok_or_else(nobody)?;
    if present.execution_id != holder.execution_id {
        return Err(Error::conflict("somebody else has it by now: look again"));
    }
    let executions = task_store::executions(&mut tx, task.id).await?;
    let host = executions.iter().find(|one| one.id == holder.execution_id).map(|one| one.host_name.clone());
    let said = format!("{by} takes {} away from this task: {why}", host.unwrap_or_default());
    if task.outcome.is_none() {
        rollout::stop(&mut tx, &task, &said, true).await?;
    }
    let is_given_up = |one: &&Execution| whole_task || one.id == holder.execution_id;
    let mut broken = Vec::new();
    for execution in executions.iter().filter(is_given_up) {
        if give_up(&mut tx, execution, (by, &said)).await? {
            broken.push(execution);
        }
    }
    let still_there = Marked::new(tx.kernel(), &broken);
    for (session, execution_id, attempt) in still_there.0.iter().cloned() {
        let said = said.clone();
        tx.after_commit(move |kernel| {
            kernel.spawn(async move { session.cancel_one(&execution_id, attempt, &said, false).await });
        });
    }
    let answered = finish(tx, &task, said, broken.len()).await;
    if answered.is_err() {
        still_there.take_back();
    }
    answered
}

/// Gives up what is under way, or lost without an answer. False for everything else.
async fn give_up(tx: &mut Tx, execution: &Execution, said: (&str, &str)) -> Result<bool> {
    if execution.state != State::Lost && rules::step(execution.state, Event::Broken).is_err() {
        return Ok(false);
    }
    if !store::break_one(tx, &execution.id, said).await? {
        return Ok(false);
    }
    engine::stop_instance(tx, execution.instance_id).await?;
    Ok(true)
}

async fn finish(mut tx: Tx, task: &Task, said: String, broken: usize) -> Result<Reply<Message>> {
    let task_id = task.id;
    tx.enqueue_behind(engine::TOPIC, &task_id.to_string()).await?;
    let detail = format!("{said}; {broken} given up");
    let entry = AuditEntry::new(AuditList::General, "break_lock", "task", task_id, task.version.clone()).detail(detail);
    tx.after_commit(move |kernel| engine::say_and_wake(kernel, task_id, said));
    tx.after_commit(engine::queue::freed);
    tx.commit(Audit::of(entry), Message::success()).await
}

/// Executions that connected hosts may still be at: marked before anything can be sent there in their place.
struct Marked(Vec<(Arc<Session>, String, i64)>);

impl Marked {
    fn new(kernel: &Kernel, broken: &[&Execution]) -> Self {
        let engine = kernel.part::<Engine>();
        let mut marked = Vec::new();
        for execution in broken {
            let Some((session, object)) = engine.hub.find(execution.host_id).zip(execution.object()) else {
                continue;
            };
            // What was lost before is not there, unless the host said so itself.
            if execution.state != State::Lost {
                session.is_at_work(&execution.id, object);
                marked.push((session, execution.id.clone(), execution.attempt));
            }
        }
        Self(marked)
    }

    fn take_back(&self) {
        for (session, id, ..) in &self.0 {
            session.is_through(id);
        }
    }
}
