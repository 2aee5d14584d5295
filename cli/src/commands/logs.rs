//! `logs`: the output of a sub-task, now or as it comes.

use serde_json::{Value, json};

use super::rollout::TASKS;
use crate::api::Server;
use crate::arguments::Logs;
use crate::failure::{Failure, Result};
use crate::follow::{self, SubTask};
use crate::output;

pub(crate) fn run(server: &Server, logs: &Logs, json: bool) -> Result<()> {
    let task = server.get(&format!("{TASKS}{}/", logs.target.task))?;
    let sub_tasks = task["sub_tasks"].as_array().map_or(&[][..], Vec::as_slice);
    let found = match &logs.target.sub_task {
        Some(id) => sub_tasks.iter().find(|sub_task| sub_task["task_id"] == id.as_str()),
        None => newest(sub_tasks),
    };
    let Some(found) = found else {
        let what = logs.target.sub_task.as_ref().map_or("sub-tasks yet".to_owned(), |id| format!("sub-task {id}"));
        return Err(Failure::not_found(format!("deploy task {} has no {what}", logs.target.task)));
    };
    let sub_task = SubTask::from_detail(logs.target.task, found)?;
    if logs.follow {
        return follow::follow(server, &sub_task, logs.from, logs.wait, json);
    }
    let detail = sub_task.detail(server)?;
    let output = from(detail["output"].as_str().unwrap_or_default(), logs.from);
    if json {
        let status = &detail["status"];
        return output::json(&json!({
            "deploy_task_id": logs.target.task,
            "task_id": sub_task.id,
            "status": status,
            "from": logs.from,
            "output": output,
        }));
    }
    output::text(output)
}

fn newest(sub_tasks: &[Value]) -> Option<&Value> {
    let number = |sub_task: &&Value| sub_task["task_id"].as_str().and_then(|id| id.parse::<u64>().ok());
    sub_tasks.iter().max_by_key(number)
}

/// What stands behind the offset, beginning with a whole character.
fn from(output: &str, offset: u64) -> &str {
    let mut at = usize::try_from(offset).unwrap_or(usize::MAX).min(output.len());
    while !output.is_char_boundary(at) {
        at += 1;
    }
    &output[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_bytes_and_characters_stay_whole() {
        assert_eq!(["aé", "é", "", "", ""], [0, 1, 2, 3, 9].map(|offset| from("aé", offset)));
    }

    #[test]
    fn the_newest_sub_task_has_the_highest_number() {
        let sub_tasks = ["9", "10", "2"].map(|id| json!({ "task_id": id }));
        assert_eq!(newest(&sub_tasks).map(|sub_task| &sub_task["task_id"]), Some(&json!("10")));
        assert_eq!(newest(&[]), None);
    }
}
