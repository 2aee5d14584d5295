//! `task`: deploy tasks and what people do with them.

use serde_json::{Value, json};

use super::plan;
use super::rollout::{self, Application, TASKS};
use crate::api::Server;
use crate::arguments::{Approve, Task, TaskList};
use crate::failure::Result;
use crate::output::{self, Column, cell};

const COLUMNS: &[Column] = &[
    ("ID", |task| cell(task, "id")),
    ("APPLICATION", |task| cell(&task["application"], "full_name")),
    ("VERSION", |task| cell(task, "version")),
    ("LEVEL", |task| cell(task, "level")),
    ("STATUS", |task| cell(task, "status")),
    ("CREATOR", |task| cell(task, "creator")),
    ("CREATED", |task| cell(task, "created_time")),
    ("DESCRIPTION", |task| cell(task, "description")),
];

const SUB_TASKS: &[Column] = &[
    ("SUB-TASK", |sub_task| cell(sub_task, "task_id")),
    ("KIND", |sub_task| cell(sub_task, "kind")),
    ("VERSION", |sub_task| cell(sub_task, "version")),
    ("STATUS", |sub_task| cell(sub_task, "status")),
    ("CREATOR", |sub_task| cell(sub_task, "creator")),
    ("STARTED", |sub_task| cell(sub_task, "created_time")),
    ("FINISHED", |sub_task| cell(sub_task, "finished_time")),
    ("HOSTS", instances),
];

pub(crate) fn run(server: &Server, task: &Task, json: bool) -> Result<()> {
    match task {
        Task::Show(id) => show(server, id.id, json),
        Task::List(list) => self::list(server, list, json),
        Task::Approve(approve) => self::approve(server, approve, json),
        Task::Reject(id) => act(server, id.id, ("reject", "rejected"), json),
        Task::Start(id) => act(server, id.id, ("start", "running"), json),
        Task::Close(id) => act(server, id.id, ("close", "closed"), json),
    }
}

/// Approves a deploy task.
pub(super) fn approve(server: &Server, approve: &Approve, json: bool) -> Result<()> {
    rollout::approve(server, approve.id, approve.plan.as_deref())?;
    said(approve.id, "approved", json)
}

fn show(server: &Server, id: u64, json: bool) -> Result<()> {
    let task = server.get(&format!("{TASKS}{id}/"))?;
    if json {
        return output::json(&task);
    }
    let planned = task["planned_exec_time"].as_i64().filter(|time| *time > 0).map(when);
    for (heading, value) in [
        ("task", cell(&task, "id")),
        ("application", cell(&task["application"], "full_name")),
        ("version", cell(&task, "version")),
        ("source", cell(&task, "package_source")),
        ("level", cell(&task, "level")),
        ("status", cell(&task, "status")),
        ("because", cell(&task, "status_reason")),
        ("plan", cell(&task, "plan_digest")),
        ("commit", cell(&task, "plan_commit")),
        ("description", cell(&task, "description")),
        ("creator", cell(&task, "creator")),
        ("created", cell(&task, "created_time")),
        ("planned for", planned.unwrap_or_default()),
        ("starts", if task["auto_start"] == true { "by itself".to_owned() } else { String::new() }),
        ("reviewer", cell(&task, "reviewer")),
        ("reviewed", cell(&task, "reviewed_time")),
        ("assignee", cell(&task["assignee"], "username")),
        ("started", cell(&task, "started_time")),
        ("closed", cell(&task, "closed_time")),
    ] {
        if !value.is_empty() {
            output::line(&format!("{heading:<12} {value}"))?;
        }
    }
    match task["sub_tasks"].as_array() {
        Some(sub_tasks) if !sub_tasks.is_empty() => {
            output::line("")?;
            output::table(SUB_TASKS, sub_tasks)
        }
        _ => Ok(()),
    }
}

/// Seconds since 1970 UTC as people read them; a time that no calendar knows stays a number.
fn when(seconds: i64) -> String {
    chrono::DateTime::from_timestamp(seconds, 0).map_or_else(|| seconds.to_string(), |time| time.to_rfc3339())
}

/// Hosts of a sub-task with their states.
fn instances(sub_task: &Value) -> String {
    if sub_task["phase"] == "waiting" {
        if sub_task["queued"] == true {
            return "waits in the queue (`drover queue`)".to_owned();
        }
        let first = sub_task["after"].as_array().into_iter().flatten().filter(|one| one["status"] != "finished");
        return format!("waits for {}", first.map(plan::first).collect::<Vec<_>>().join(", "));
    }
    let instances = sub_task["instances"].as_array().map_or(&[][..], Vec::as_slice);
    let shown = instances.iter().map(|instance| {
        let error = cell(instance, "error");
        let error = if error.is_empty() { error } else { format!(" ({error})") };
        let cut = if instance["output_truncated"] == true { " (output truncated)" } else { "" };
        format!("{} {}{error}{cut}", cell(instance, "hostname"), cell(instance, "status"))
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn list(server: &Server, list: &TaskList, json: bool) -> Result<()> {
    let application = list.application.as_deref().map(|wanted| Application::find(server, wanted)).transpose()?;
    let application = application.map(|application| application.id.to_string());
    let mut filters = Vec::new();
    filters.extend(application.as_deref().map(|id| ("application_id", id)));
    filters.extend(list.status.as_deref().map(|status| ("status", status)));
    let tasks = server.list(TASKS, &filters, list.limit.limit as usize)?;
    if json {
        return output::json(&json!({ "results": tasks }));
    }
    output::table(COLUMNS, &tasks)
}

fn act(server: &Server, id: u64, (action, status): (&str, &str), json: bool) -> Result<()> {
    rollout::act(server, id, action)?;
    said(id, status, json)
}

fn said(id: u64, status: &str, json: bool) -> Result<()> {
    if json {
        return output::json(&json!({ "deploy_task_id": id, "status": status }));
    }
    eprintln!("Task {id} is {status}.");
    Ok(())
}
