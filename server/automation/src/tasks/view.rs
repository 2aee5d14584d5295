//! Tasks as the API shows them.

use std::collections::BTreeMap;

use drover_kernel::db::Read;
use drover_kernel::fields::Words;
use drover_kernel::{Call, Result, api_words};
use drover_shared::words::{Action, ExecutionState};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::answer::{self, AnswerOut};
use super::required::{self, RequiredOut};
use super::rollout::Rollout;
use super::rules::{Outcome, Phase, Role};
use super::store::{self, ExecutionView, Origin, Task};
use crate::channel;
use crate::deploys;
use crate::deploys::store::DeployTask;

api_words! {
    /// State of a sub-task.
    pub enum Status {
        /// At work.
        Running = "running",
        /// An instance or a hook failed, or the time ran out.
        Failed = "failed",
        /// All went well.
        Finished = "finished",
    }
}

impl Status {
    /// The state of a task that ended like this, or has not ended.
    pub(crate) fn of(outcome: Option<Outcome>) -> Self {
        match outcome {
            None => Self::Running,
            Some(Outcome::Finished) => Self::Finished,
            Some(Outcome::Failed) => Self::Failed,
        }
    }
}

/// What making a sub-task returns.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SubTaskReceipt {
    /// Id of the sub-task.
    pub task_id: String,
    /// Websocket address that streams the sub-task's output.
    pub task_output: String,
}

/// One batch of updates or reverts.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeploySubTask")]
pub struct SubTaskOut {
    task_id: String,
    /// What it does.
    #[schemars(with = "Words<Action>")]
    kind: Action,
    /// None for a task that starts, stops or restarts instances, or runs a script.
    deploy_task_id: Option<i64>,
    /// State for each instance.
    instances: Vec<InstanceOut>,
    /// State of the hooks that run once, if there are any.
    global_hooks: Vec<InstanceOut>,
    update_source: Option<String>,
    /// The version; of a script its name.
    version: String,
    timeout: i64,
    status: Status,
    /// What the sub-task is at.
    phase: Phase,
    /// Tasks that it goes after: it starts when all of them have ended well.
    after: Vec<RequiredOut>,
    /// How it goes from instance to instance; null when all at once.
    rollout: Option<Rollout>,
    /// The batch that has its turn, from 1 on.
    batch: i64,
    /// Whether it waits until what it changes is free; the queue says for what.
    queued: bool,
    /// Its place in the queue: the more the earlier.
    priority: i64,
    /// Who holds it.
    held_by: Option<String>,
    /// Whether a person promoted the canary.
    promoted: bool,
    /// Why nothing more of it starts.
    stop_reason: Option<String>,
    /// Why it was made from another sub-task.
    origin: Option<Origin>,
    /// The sub-task that it was made from.
    origin_task_id: Option<i64>,
    /// Why it failed, when that was before or beside the instances.
    error: Option<String>,
    creator: String,
    created_time: String,
    finished_time: Option<String>,
    task_output: String,
    /// When retention removed the output.
    output_removed_time: Option<String>,
    /// Output so far, cut in the middle if it is long; in the detail only, and not when it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// Commit that the version was resolved to.
    commit: Option<String>,
    /// SHA-256 of the artifact.
    artifact_digest: Option<String>,
    /// Digest of the plan: what agents check.
    plan_digest: Option<String>,
}

impl SubTaskOut {
    pub(crate) fn with_output(self, output: Option<String>) -> Self {
        Self { output, ..self }
    }
}

/// One instance or hook within a sub-task.
#[derive(Debug, Serialize, JsonSchema)]
struct InstanceOut {
    /// Instance, or host of a script; null for a hook that runs once.
    id: Option<i64>,
    hostname: String,
    /// What it is for.
    role: Role,
    #[schemars(with = "Words<ExecutionState>")]
    status: ExecutionState,
    error: Option<String>,
    /// The batch in which its turn comes, from 1 on.
    batch: i64,
    /// Whether a person took it out, before its turn or by cancelling it alone: then it is no failure of the version.
    excluded: bool,
    /// Who cancelled it alone, and why; it is told to its host until it is over.
    cancel_reason: Option<String>,
    /// What a person said of it, because nobody knows how it ended.
    answer: Option<AnswerOut>,
    /// Whether a person took its lock away.
    broken: bool,
    /// What the host said after that of how it ended.
    #[schemars(with = "Option<Words<ExecutionState>>")]
    host_said: Option<ExecutionState>,
    execution_id: String,
    attempt: i64,
    /// Every step with its state, once the execution is over; in the sub-task's own detail only.
    steps: Option<Value>,
    /// What became of the processes, once the execution is over; in the sub-task's own detail only.
    processes: Option<Value>,
    output_truncated: bool,
    started_time: Option<String>,
    finished_time: Option<String>,
}

pub(crate) fn shown<P: drover_kernel::call::Permission>(
    call: &Call<P>,
    task: Task,
    executions: Vec<ExecutionView>,
    after: Vec<RequiredOut>,
) -> SubTaskOut {
    let kernel = call.kernel();
    let (phase, queued) = (task.phase(), task.is_queued());
    let out = |view: ExecutionView| InstanceOut {
        answer: answer::shown(kernel, &view),
        id: view.instance_id.or_else(|| (view.role == Role::Instance).then_some(view.host_id)),
        hostname: view.host_name,
        role: view.role,
        status: view.state,
        error: view.reason,
        batch: view.batch + 1,
        excluded: view.excluded,
        cancel_reason: view.cancel_reason,
        broken: view.broken,
        host_said: view.host_said,
        execution_id: view.id,
        attempt: view.attempt,
        steps: view.steps.map(|json| json.0),
        processes: view.processes.map(|json| json.0),
        output_truncated: view.output_truncated,
        started_time: view.started_at.map(|time| kernel.show(time)),
        finished_time: view.finished_at.map(|time| kernel.show(time)),
    };
    let (instances, global): (Vec<_>, Vec<_>) = executions.into_iter().partition(|view| view.role == Role::Instance);
    SubTaskOut {
        task_id: task.id.to_string(),
        kind: task.kind,
        deploy_task_id: task.deploy_task_id,
        instances: instances.into_iter().map(out).collect(),
        global_hooks: global.into_iter().map(out).collect(),
        status: Status::of(task.outcome),
        update_source: task.update_source,
        version: task.version,
        timeout: task.timeout_s,
        phase,
        after,
        rollout: task.rollout.map(|rollout| rollout.0),
        batch: task.batch_admitted + 1,
        queued,
        priority: task.priority,
        held_by: task.held_by,
        promoted: task.promoted,
        stop_reason: task.stop_reason,
        origin: task.origin,
        origin_task_id: task.origin_task_id,
        error: task.reason,
        creator: task.creator,
        created_time: kernel.show(task.created_at),
        finished_time: task.finished_at.map(|time| kernel.show(time)),
        task_output: channel::addresses(call).of(&task.channel),
        output_removed_time: task.output_removed_at.map(|time| kernel.show(time)),
        output: None,
        commit: task.resolved_commit,
        artifact_digest: task.artifact_digest.map(|digest| digest.to_string()),
        plan_digest: task.plan_digest.map(|digest| digest.to_string()),
    }
}

/// Tasks with their executions, in two queries for any number of them.
pub(crate) async fn with_executions<P: drover_kernel::call::Permission>(
    call: &Call<P>,
    read: &mut Read,
    tasks: Vec<Task>,
) -> Result<Vec<SubTaskOut>> {
    let ids: Vec<i64> = tasks.iter().map(|task| task.id).collect();
    let mut after = required::shown(call, read, ids.clone()).await?;
    let mut by_task: BTreeMap<i64, Vec<ExecutionView>> = BTreeMap::new();
    for view in store::execution_summaries(read, ids).await? {
        by_task.entry(view.task_id).or_default().push(view);
    }
    Ok(tasks
        .into_iter()
        .map(|task| {
            let executions = by_task.remove(&task.id).unwrap_or_default();
            let first = after.remove(&task.id).unwrap_or_default();
            shown(call, task, executions, first)
        })
        .collect())
}

/// The sub-tasks of a deploy task, for its detail.
pub(crate) async fn of_deploy_task(
    call: &Call<deploys::Read>,
    read: &mut Read,
    task: &DeployTask,
) -> Result<Vec<SubTaskOut>> {
    let tasks = store::of_deploy_task(read, task.id).await?;
    with_executions(call, read, tasks).await
}
