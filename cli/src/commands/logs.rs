//! `logs`: the output of a sub-task, now or as it comes, searched or into a file.

use serde_json::Value;

use crate::api::Server;
use crate::arguments::Logs;
use crate::download;
use crate::failure::{Failure, Result};
use crate::follow::{self, SubTask};
use crate::output;

/// Answers that one search may take; each covers hundreds of megabytes or a thousand matches.
const ANSWERS_MAX: usize = 100_000;

pub(crate) fn run(server: &Server, logs: &Logs, json: bool) -> Result<()> {
    let found = super::sub_task::find(server, &logs.target)?;
    let sub_task = SubTask::from_detail(&found)?;
    if logs.follow {
        return follow::follow(server, &sub_task, logs.from, logs.wait, json);
    }
    if logs.grep.is_some() {
        return search(server, logs, &sub_task, json);
    }
    let path = address(&sub_task);
    let from = logs.from.to_string();
    let mut query: Vec<(&str, &str)> = logs.host.iter().map(|host| ("host", host.as_str())).collect();
    if json {
        query.push(("format", "json"));
    } else if logs.timestamps {
        query.push(("timestamps", "true"));
    }
    let is_plain = !json && !logs.timestamps;
    if !is_plain {
        query.push(("from", &from));
    }
    match &logs.download {
        Some(file) => {
            let ended = download::to_file(server, &path, &query, file, is_plain)?;
            download::told(file, ended, json)
        }
        None if json => download::print_records(server, &path, &query),
        None => download::print(server, &path, &query, if is_plain { logs.from } else { 0 }),
    }
}

/// Where the output of a sub-task is.
fn address(sub_task: &SubTask) -> String {
    format!("/tasks/{}/output/", sub_task.id)
}

/// Prints every line that matches; fails when there is none.
fn search(server: &Server, logs: &Logs, sub_task: &SubTask, json: bool) -> Result<()> {
    let path = format!("{}search/", address(sub_task));
    let pattern = logs.grep.as_deref().unwrap_or_default();
    let (context, mut from) = (logs.context.to_string(), logs.from.to_string());
    let mut any = false;
    for _ in 0..ANSWERS_MAX {
        let mut query = vec![("q", pattern), ("limit", "1000"), ("context", &context), ("from", &from)];
        query.extend(logs.host.iter().map(|host| ("host", host.as_str())));
        query.extend(logs.regex.then_some(("regex", "true")));
        query.extend(logs.ignore_case.then_some(("ignore_case", "true")));
        let mut answer = server.find(&path, &query)?;
        let Some(Value::Array(matches)) = answer.get_mut("matches").map(Value::take) else {
            return Err(Failure::failed(format!("the server's answer to {path} is no search")));
        };
        for found in matches {
            if json {
                output::json(&found)?;
            } else {
                show(&found, any && logs.context > 0, logs.timestamps)?;
            }
            any = true;
        }
        match answer["next"].as_str() {
            Some(next) => from = next.to_owned(),
            None if any => return Ok(()),
            None => return Err(Failure::failed(format!("nothing in the output of {} matches", sub_task.name()))),
        }
    }
    Err(Failure::failed("the search does not come to an end"))
}

fn show(found: &Value, is_apart: bool, timestamps: bool) -> Result<()> {
    if is_apart {
        output::line("--")?;
    }
    let around = |name: &str| found[name].as_array().cloned().unwrap_or_default();
    for line in around("before").iter().chain([found]).chain(&around("after")) {
        let time = line["time"].as_str().filter(|_| timestamps).map(|time| format!("{time} ")).unwrap_or_default();
        let host = line["host"].as_str().unwrap_or("drover");
        output::line(&format!("{time}{host} | {}", line["text"].as_str().unwrap_or_default()))?;
    }
    Ok(())
}
