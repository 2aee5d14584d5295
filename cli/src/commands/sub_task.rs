//! What a person does to a sub-task: hold it, let it go on, promote, refuse, cancel, take hosts out, try again.

use serde_json::{Value, json};

use super::rollout::TASKS;
use crate::api::Server;
use crate::arguments::{Action, Answer, Cancel, LogTarget, Prioritise, Retry, Skip};
use crate::failure::{Failure, Result};
use crate::follow::{self, SubTask};
use crate::output;

/// A sub-task as its deploy task shows it; the newest when none is named. A task that belongs to none by itself.
pub(super) fn find(server: &Server, target: &LogTarget) -> Result<Value> {
    let Some(deploy_task) = target.task else {
        return server.get(&format!("/tasks/{}/", target.sub_task.as_deref().unwrap_or_default()));
    };
    let mut task = server.get(&format!("{TASKS}{deploy_task}/"))?;
    let sub_tasks: Vec<Value> = match task["sub_tasks"].take() {
        Value::Array(sub_tasks) => sub_tasks,
        _ => Vec::new(),
    };
    let found = match &target.sub_task {
        Some(id) => sub_tasks.into_iter().find(|sub_task| sub_task["task_id"] == id.as_str()),
        None => newest(sub_tasks),
    };
    found.ok_or_else(|| {
        let what = target.sub_task.as_ref().map_or("sub-tasks yet".to_owned(), |id| format!("sub-task {id}"));
        Failure::not_found(format!("deploy task {deploy_task} has no {what}"))
    })
}

fn newest(sub_tasks: Vec<Value>) -> Option<Value> {
    let number = |sub_task: &Value| sub_task["task_id"].as_str().and_then(|id| id.parse::<u64>().ok());
    sub_tasks.into_iter().max_by_key(number)
}

fn address(sub_task: &SubTask, action: &str) -> String {
    format!("{}actions/{action}/", sub_task.address())
}

/// Pauses, resumes, promotes or refuses, or cancels as a whole.
pub(super) fn act(server: &Server, action: &Action, name: &str, json: bool) -> Result<()> {
    let found = find(server, &action.target)?;
    let sub_task = SubTask::from_detail(&found)?;
    server.post(&address(&sub_task, name), &json!({ "reason": action.reason }))?;
    done(&sub_task, name, json)
}

fn done(sub_task: &SubTask, name: &str, json: bool) -> Result<()> {
    if json {
        return output::json(&json!({ "sub_task": sub_task.name(), "action": name }));
    }
    output::line(&format!("{}: {name}", sub_task.name()))
}

/// What the sub-task says of these hosts.
fn on_hosts<'a>(found: &'a Value, hosts: &[String]) -> Result<Vec<&'a Value>> {
    let all = found["instances"].as_array().map_or(&[][..], Vec::as_slice);
    let of_host = |host: &String| {
        let known = || all.iter().take(20).map(|one| output::cell(one, "hostname")).collect::<Vec<_>>().join(", ");
        let instance = all.iter().find(|instance| instance["hostname"] == host.trim());
        instance.ok_or_else(|| Failure::usage(format!("the sub-task is not for {host}; it is for {}", known())))
    };
    hosts.iter().map(of_host).collect()
}

/// The instances on these hosts.
fn instances(found: &Value, hosts: &[String]) -> Result<Vec<Value>> {
    Ok(on_hosts(found, hosts)?.into_iter().map(|instance| json!({ "id": instance["id"] })).collect())
}

/// Ends a sub-task, or what it does on some hosts.
pub(super) fn cancel(server: &Server, cancel: &Cancel, json: bool) -> Result<()> {
    if cancel.hosts.is_empty() && cancel.execution.is_none() {
        return act(server, &cancel.action, "cancel", json);
    }
    let found = find(server, &cancel.action.target)?;
    let sub_task = SubTask::from_detail(&found)?;
    let of_hosts = on_hosts(&found, &cancel.hosts)?;
    let executions = of_hosts.iter().filter_map(|instance| instance["execution_id"].as_str());
    for id in executions.chain(cancel.execution.as_deref()) {
        let path = format!("{}executions/{id}/actions/cancel/", sub_task.address());
        server.post(&path, &json!({ "reason": cancel.action.reason }))?;
    }
    done(&sub_task, "cancel", json)
}

/// Takes hosts out before their turn.
pub(super) fn skip(server: &Server, skip: &Skip, json: bool) -> Result<()> {
    let found = find(server, &skip.action.target)?;
    let sub_task = SubTask::from_detail(&found)?;
    let body = json!({ "instances": instances(&found, &skip.hosts)?, "reason": skip.action.reason });
    server.post(&address(&sub_task, "skip"), &body)?;
    done(&sub_task, "skip", json)
}

/// Says what became of hosts of which nobody knows.
pub(super) fn answer(server: &Server, answer: &Answer, json: bool) -> Result<()> {
    let found = find(server, &answer.target)?;
    let sub_task = SubTask::from_detail(&found)?;
    let said = if answer.done { "done" } else { "give_up" };
    let instances = instances(&found, &answer.hosts)?;
    let body = json!({ "instances": instances, "answer": said, "reason": answer.reason });
    server.post(&address(&sub_task, "answer"), &body)?;
    done(&sub_task, "answer", json)
}

/// Gives a task another place in the queue.
pub(super) fn prioritise(server: &Server, prioritise: &Prioritise, json: bool) -> Result<()> {
    let sub_task = SubTask::from_detail(&find(server, &prioritise.action.target)?)?;
    let body = json!({ "priority": prioritise.priority, "reason": prioritise.action.reason });
    server.post(&address(&sub_task, "prioritise"), &body)?;
    done(&sub_task, "prioritise", json)
}

/// Tries again what failed, and follows it.
pub(super) fn retry(server: &Server, retry: &Retry, json: bool) -> Result<()> {
    let found = find(server, &retry.action.target)?;
    let sub_task = SubTask::from_detail(&found)?;
    let mut body = json!({ "reason": retry.action.reason, "from_failed_step": !retry.from_the_beginning });
    if !retry.hosts.is_empty() {
        body["instances"] = instances(&found, &retry.hosts)?.into();
    }
    if let Some(rollout) = retry.rollout.as_json() {
        body["rollout"] = rollout;
    }
    retry.place.add_to(&mut body);
    let receipt = server.post(&address(&sub_task, "retry"), &body)?;
    let made = receipt["task_id"].as_str().map(str::to_owned);
    let target = LogTarget { task: retry.action.target.task, sub_task: made };
    let again = SubTask::from_detail(&find(server, &target)?)?;
    if !retry.no_follow {
        return follow::follow(server, &again, 0, retry.wait, json);
    }
    if json { output::json(&again.as_json()) } else { output::line(&again.name()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_sub_task_has_the_highest_number() {
        let sub_tasks = ["9", "10", "2"].map(|id| json!({ "task_id": id }));
        assert_eq!(newest(sub_tasks.to_vec()).map(|sub_task| sub_task["task_id"].clone()), Some(json!("10")));
        assert_eq!(newest(Vec::new()), None);
    }
}
