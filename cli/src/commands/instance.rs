//! `instance list`, `instance start`, `instance stop`, `instance restart`; `instance logs` is elsewhere.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::instance_logs::{self, Logs};
use super::rollout::{self, Application};
use crate::api::Server;
use crate::arguments::{Following, Targets};
use crate::failure::{Failure, Result};
use crate::follow::SubTask;
use crate::output::{self, Column, cell};

/// Instances that are listed at most.
const LISTED_MAX: usize = 10_000;

const INSTANCES: &[Column] = &[
    ("ID", |instance| cell(instance, "id")),
    ("HOST", |instance| cell(instance, "hostname")),
    ("STATUS", |instance| cell(instance, "status")),
    ("VERSION", |instance| cell(instance, "version")),
    ("PROCESS", |instance| cell(&instance["process"], "state")),
    ("PID", |instance| cell(&instance["process"], "pid")),
    ("SINCE", |instance| cell(&instance["process"], "since_time")),
    ("REMARK", remark),
];

/// Commands on instances.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the instances of an application with their states
    List(List),
    /// Start instances
    Start(Operation),
    /// Stop instances
    Stop(Operation),
    /// Stop instances and start them again
    Restart(Operation),
    /// Show the end of an instance's log, and what comes next
    Logs(Logs),
}

/// Options of `instance list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Application, by id or full name
    application: String,
    /// Only those whose process is running, stopped, crashed or unknown
    #[arg(long, value_name = "STATE", value_parser = ["running", "stopped", "crashed", "unknown"])]
    process: Option<String>,
}

/// Options of what is done to instances.
#[derive(Debug, Args)]
pub(crate) struct Operation {
    /// Application, by id or full name
    application: String,
    #[command(flatten)]
    targets: Targets,
    /// Hosts at a time: a number, or a percentage such as 25%; all at once when left out
    #[arg(long, value_name = "N|N%")]
    batch: Option<String>,
    /// Seconds between batches
    #[arg(long, value_name = "SECONDS")]
    pause: Option<u32>,
    /// Failures after which nothing more starts: more than these
    #[arg(long, value_name = "N|N%")]
    max_failures: Option<String>,
    #[command(flatten)]
    following: Following,
}

pub(super) fn run(server: &Server, command: &Command, json: bool) -> Result<()> {
    match command {
        Command::List(list) => self::list(server, list, json),
        Command::Start(operation) => operate(server, "start", operation, json),
        Command::Stop(operation) => operate(server, "stop", operation, json),
        Command::Restart(operation) => operate(server, "restart", operation, json),
        Command::Logs(logs) => instance_logs::run(server, logs, json),
    }
}

fn list(server: &Server, list: &List, json: bool) -> Result<()> {
    let application = Application::find(server, &list.application)?;
    let filter = list.process.as_deref().map(|state| ("process", state));
    let path = format!("/applications/{}/instances/", application.id);
    let found = server.list(&path, filter.as_slice(), LISTED_MAX)?;
    if json {
        return output::json(&json!({ "results": found }));
    }
    output::table(INSTANCES, &found)
}

/// Why nobody can say how the process is, or what became of it.
fn remark(instance: &Value) -> String {
    let process = &instance["process"];
    let mut remark = cell(process, "reason");
    if let (Some(state), Some(time)) = (process["last_state"].as_str(), process["last_seen_time"].as_str()) {
        remark = format!("{remark}; {state} when last seen {time}");
    }
    remark
}

fn operate(server: &Server, action: &str, operation: &Operation, json: bool) -> Result<()> {
    let application = Application::find(server, &operation.application)?;
    let instances = application.instances(server, &operation.targets)?;
    let hosts = rollout::hosts(&instances);
    let question = format!("{} {} on {hosts}?", capital(action), application.full_name);
    rollout::confirm(&question, operation.following.yes, json)?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let timeout = operation.following.timeout.map(|seconds| seconds.to_string());
    let pause = operation.pause.map(|seconds| seconds.to_string());
    for (name, value) in [
        ("batch", &operation.batch),
        ("pause", &pause),
        ("max_failures", &operation.max_failures),
        ("timeout", &timeout),
    ] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    for (name, value) in operation.following.place.members() {
        query.append_pair(&name, value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str());
    }
    let path = format!("/applications/{}/instances/actions/{action}/?{}", application.id, query.finish());
    let ids: Vec<Value> = instances.iter().map(|instance| json!({ "id": instance.id })).collect();
    let receipt = server.post(&path, &ids.into())?;
    let id = receipt["task_id"].as_str();
    let id = id.ok_or_else(|| Failure::failed("the server made a task and did not say which"))?;
    let task = SubTask::from_detail(&server.get(&format!("/tasks/{id}/"))?)?;
    if !json {
        eprintln!("Task {} will {action} {} on {hosts}.", task.name(), application.full_name);
    }
    rollout::watch(server, &task, &operation.following, json)
}

fn capital(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    format!("{}{rest}", first.to_uppercase())
}
