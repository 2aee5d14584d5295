//! `queue`, `locks` and `lock break`: who has what, who waits for it, and taking it away.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::rollout::Application;
use crate::api::Server;
use crate::arguments::Limit;
use crate::failure::{Failure, Result};
use crate::output::{self, Column, cell};

/// Instances that are looked through at most.
const SEARCH_MAX: usize = 10_000;

const QUEUE: &[Column] = &[
    ("PLACE", |task| cell(task, "position")),
    ("TASK", name),
    ("KIND", |task| cell(task, "kind")),
    ("APPLICATION", |task| cell(task, "application")),
    ("VERSION", |task| cell(task, "version")),
    ("PRIORITY", |task| cell(task, "priority")),
    ("CREATOR", |task| cell(task, "creator")),
    ("SINCE", |task| cell(task, "created_time")),
    ("WAITS FOR", waits_for),
];

const LOCKS: &[Column] = &[
    ("KIND", |lock| cell(lock, "kind")),
    ("HOST", |lock| cell(lock, "hostname")),
    ("APPLICATION", |lock| cell(lock, "application")),
    ("TASK", name),
    ("DOES", |lock| cell(lock, "task_kind")),
    ("STATUS", |lock| cell(lock, "status")),
    ("CREATOR", |lock| cell(lock, "creator")),
    ("SINCE", |lock| cell(lock, "since_time")),
    ("WAITING", waiting),
    ("STUCK", |lock| cell(lock, "stuck")),
];

/// Whether to wait for what is busy, and where in the queue.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Place {
    /// If something is busy, wait in the queue and begin when all is free; else that is an error
    #[arg(long)]
    pub(crate) queue: bool,
    /// Place in the queue, -100 to 100: the more the earlier
    #[arg(long, value_name = "N", requires = "queue", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-100..=100))]
    pub(crate) priority: Option<i64>,
}

impl Place {
    /// The members of a body that say so.
    pub(crate) fn members(&self) -> Map<String, Value> {
        let mut members = Map::new();
        if self.queue {
            members.insert("if_busy".to_owned(), "wait".into());
        }
        if let Some(priority) = self.priority {
            members.insert("priority".to_owned(), priority.into());
        }
        members
    }

    /// Adds them to a body.
    pub(crate) fn add_to(&self, body: &mut Value) {
        if let Some(body) = body.as_object_mut() {
            body.extend(self.members());
        }
    }
}

/// Options of both lists.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only of this application, by id or full name
    #[arg(long = "app", value_name = "APPLICATION")]
    application: Option<String>,
    #[command(flatten)]
    limit: Limit,
}

/// Options of `locks`.
#[derive(Debug, Args)]
pub(crate) struct Locks {
    #[command(flatten)]
    list: List,
    /// Only what somebody waits for
    #[arg(long)]
    wanted: bool,
}

/// Commands on locks.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take an instance, or a host, away from the task that has it: that is cancelled, and what is under way there given up
    Break(Break),
}

/// Options of `lock break`.
#[derive(Debug, Args)]
pub(crate) struct Break {
    /// Application whose instance it is, by id or full name; the host itself, which runs a script, when left out
    application: Option<String>,
    /// On this host
    #[arg(long, value_name = "HOST")]
    host: String,
    /// Why; shown in the output and the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Give up everything else, too, that the same task has under way
    #[arg(long)]
    whole_task: bool,
}

pub(super) fn found(server: &Server, path: &str, list: &List, more: &[(&str, &str)]) -> Result<Vec<Value>> {
    let application = list.application.as_deref().map(|wanted| Application::find(server, wanted)).transpose()?;
    let application = application.map(|application| application.id.to_string());
    let mut filters: Vec<(&str, &str)> = application.as_deref().map(|id| ("application_id", id)).into_iter().collect();
    filters.extend(more);
    server.list(path, &filters, list.limit.limit as usize)
}

pub(super) fn shown(columns: &[Column], rows: &[Value], json: bool) -> Result<()> {
    if json { output::json(&json!({ "results": rows })) } else { output::table(columns, rows) }
}

pub(super) fn queue(server: &Server, list: &List, json: bool) -> Result<()> {
    shown(QUEUE, &found(server, "/queue/", list, &[])?, json)
}

pub(super) fn locks(server: &Server, locks: &Locks, json: bool) -> Result<()> {
    let more: &[(&str, &str)] = if locks.wanted { &[("wanted", "true")] } else { &[] };
    shown(LOCKS, &found(server, "/locks/", &locks.list, more)?, json)
}

pub(super) fn run(server: &Server, command: &Command, json: bool) -> Result<()> {
    let Command::Break(wanted) = command;
    let body = json!({ "reason": wanted.reason, "whole_task": wanted.whole_task });
    let Some(application) = &wanted.application else {
        let hosts = server.list("/hosts/", &[("name", &wanted.host)], SEARCH_MAX)?;
        let host = hosts.iter().find(|one| one["name"] == wanted.host.as_str());
        let host = host.ok_or_else(|| Failure::not_found(format!("no host `{}`", wanted.host)))?;
        server.post(&format!("/locks/hosts/{}/actions/break/", host["id"]), &body)?;
        if json {
            return output::json(&json!({ "host": host["id"], "action": "break" }));
        }
        return output::line(&format!("{}: taken away", wanted.host));
    };
    let application = Application::find(server, application)?;
    let path = format!("/applications/{}/instances/", application.id);
    let instances = server.list(&path, &[], SEARCH_MAX)?;
    let instance = instances.iter().find(|one| one["hostname"] == wanted.host);
    let name = &application.full_name;
    let instance = instance.ok_or_else(|| Failure::not_found(format!("{name} is not on {}", wanted.host)))?;
    server.post(&format!("/locks/instances/{}/actions/break/", instance["id"]), &body)?;
    if json {
        return output::json(&json!({ "instance": instance["id"], "action": "break" }));
    }
    output::line(&format!("{name} on {}: taken away", wanted.host))
}

/// A task as `drover logs` names it.
fn name(row: &Value) -> String {
    format!("{}/{}", cell(row, "deploy_task_id"), cell(row, "task_id"))
}

/// Who waits for it, in their order.
fn waiting(lock: &Value) -> String {
    let tasks: Vec<&str> = lock["waiting"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    cut(tasks.join(", "), tasks.len(), &lock["waiting_count"])
}

/// What a task waits for.
fn waits_for(task: &Value) -> String {
    if let Some(who) = task["held_by"].as_str() {
        return format!("{who}, who holds it");
    }
    if task["goes_after_others"] == true {
        return "tasks that go first".to_owned();
    }
    let one = |one: &Value| {
        let host = cell(one, "hostname");
        match one["task_id"].as_str() {
            Some(task) => format!("{host} (task {task})"),
            None => host,
        }
    };
    let things: Vec<String> = task["waits_for"].as_array().into_iter().flatten().map(one).collect();
    let count = things.len();
    cut(things.join(", "), count, &task["waits_for_count"])
}

/// Says that there are more than are named.
fn cut(text: String, named: usize, count: &Value) -> String {
    let more = count.as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0).saturating_sub(named);
    if more == 0 { text } else { format!("{text} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_a_sentence() {
        let one = json!({ "waits_for_count": 3, "waits_for": [{ "hostname": "web-1", "task_id": "7" },
            { "hostname": "web-2", "task_id": null }] });
        assert_eq!(waits_for(&one), "web-1 (task 7), web-2 and 1 more");
        assert_eq!(waits_for(&json!({ "held_by": "ada" })), "ada, who holds it");
        assert_eq!(waits_for(&json!({ "goes_after_others": true })), "tasks that go first");
        assert_eq!(waiting(&json!({ "waiting": ["3", "4"], "waiting_count": 2 })), "3, 4");
        assert_eq!(name(&json!({ "task_id": "4", "deploy_task_id": null })), "/4");
    }

    #[test]
    fn only_what_is_said_is_asked_for() {
        assert!(Place::default().members().is_empty());
        let mut body = json!({});
        Place { queue: true, priority: Some(-3) }.add_to(&mut body);
        assert_eq!(body, json!({ "if_busy": "wait", "priority": -3 }));
    }
}
