//! Following a sub-task to its end.
//!
//! Invariant: the exit code comes from the sub-task's own state, read after the output is complete.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Server;
use crate::channel;
use crate::failure::{Failure, Result};
use crate::output;
use crate::screen::Screen;

/// How long a state may lag behind the end of the output.
const SETTLE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Upgrade,
    Revert,
    Start,
    Stop,
    Restart,
    Script,
}

const KINDS: [Kind; 6] = [Kind::Upgrade, Kind::Revert, Kind::Start, Kind::Stop, Kind::Restart, Kind::Script];

impl Kind {
    /// The kind with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.as_str() == name)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Revert => "revert",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Script => "script",
        }
    }

    /// Address of this kind's sub-tasks within a deploy task.
    pub(crate) fn path(self, deploy_task: u64) -> String {
        format!("/applications/deploy-tasks/{deploy_task}/sub-{}-tasks/", self.as_str())
    }
}

/// A task that runs or ran.
#[derive(Debug, Clone)]
pub(crate) struct SubTask {
    /// None when it starts, stops or restarts instances, or runs a script.
    pub(crate) deploy_task: Option<u64>,
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) version: String,
    pub(crate) task_output: String,
    pub(crate) hosts: Vec<String>,
}

impl SubTask {
    /// How `drover logs` names it.
    pub(crate) fn name(&self) -> String {
        let deploy_task = self.deploy_task.map(|id| id.to_string()).unwrap_or_default();
        format!("{deploy_task}/{}", self.id)
    }

    /// Where it is.
    pub(crate) fn address(&self) -> String {
        match self.deploy_task {
            Some(deploy_task) => format!("{}{}/", self.kind.path(deploy_task), self.id),
            None => format!("/tasks/{}/", self.id),
        }
    }

    /// What it does, in a sentence.
    fn what(&self) -> String {
        let to = match (self.kind, self.deploy_task) {
            (Kind::Script, _) => format!(" {}", self.version),
            (_, Some(_)) => format!(" to version {}", self.version),
            (_, None) => String::new(),
        };
        format!("{}{to} on {}", self.kind.as_str(), hosts(&self.hosts))
    }

    /// Reads its present state.
    pub(crate) fn detail(&self, server: &Server) -> Result<Value> {
        server.get(&self.address())
    }

    /// As an object for programs.
    pub(crate) fn as_json(&self) -> Value {
        json!({
            "deploy_task_id": self.deploy_task,
            "task_id": self.id,
            "kind": self.kind.as_str(),
            "version": self.version,
            "task_output": self.task_output,
            "status": "running",
        })
    }

    /// Makes a sub-task of the server's description.
    pub(crate) fn from_detail(detail: &Value) -> Result<Self> {
        let text = |name: &str| detail[name].as_str().map(str::to_owned);
        let kind = detail["kind"].as_str().and_then(Kind::named);
        let (Some(id), Some(kind), Some(task_output)) = (text("task_id"), kind, text("task_output")) else {
            return Err(Failure::failed("the server described a sub-task in a way that this version does not read"));
        };
        let instances = detail["instances"].as_array().map_or(&[][..], Vec::as_slice);
        let hosts = instances.iter().map(|instance| output::cell(instance, "hostname")).collect();
        let deploy_task = detail["deploy_task_id"].as_u64();
        Ok(Self { deploy_task, id, kind, version: text("version").unwrap_or_default(), task_output, hosts })
    }
}

/// Shows the sub-task until it ends; fails when it did.
pub(crate) fn follow(server: &Server, sub_task: &SubTask, from: u64, wait: Option<u32>, json: bool) -> Result<()> {
    let deadline = wait.map(|seconds| Instant::now() + Duration::from_secs(u64::from(seconds)));
    crate::interrupt::hint(format!("it goes on; come back with `drover logs -f {}`", sub_task.name()));
    let mut screen = Screen::new(json, &sub_task.hosts);
    let reason = channel::read(server, &sub_task.task_output, from, deadline, &mut screen);
    let reason = reason.map_err(|failure| Failure {
        message: format!("{}; come back with `drover logs -f {}`", failure.message, sub_task.name()),
        ..failure
    })?;
    let detail = settled(server, sub_task, &reason)?;
    screen.finish(&detail)?;
    let what = sub_task.what();
    if detail["status"] == "finished" {
        screen.say(&format!("{what}: finished"));
        return Ok(());
    }
    Err(Failure::failed(format!("{what}: {}", failures(&detail))))
}

fn hosts(names: &[String]) -> String {
    if names.len() == 1 { names[0].clone() } else { format!("{} hosts", names.len()) }
}

/// Which hosts failed, of how many.
fn failures(detail: &Value) -> String {
    let instances = detail["instances"].as_array().map_or(&[][..], Vec::as_slice);
    let failed: Vec<String> = instances
        .iter()
        .filter(|instance| !matches!(instance["status"].as_str(), Some("succeeded" | "finished")))
        .map(|instance| output::cell(instance, "hostname"))
        .collect();
    let error = output::cell(detail, "error");
    let why = if error.is_empty() { error } else { format!(": {error}") };
    match failed.len() {
        0 => format!("{}{why}", output::cell(detail, "status")),
        count => format!("failed on {count} of {} ({}){why}", instances.len(), failed.join(", ")),
    }
}

/// The sub-task's state once it is over; the channel's own words when the server does not answer any more.
fn settled(server: &Server, sub_task: &SubTask, reason: &str) -> Result<Value> {
    let end = Instant::now() + SETTLE;
    loop {
        match sub_task.detail(server) {
            Ok(detail) if detail["status"] != "running" => return Ok(detail),
            Err(failure) if Instant::now() >= end => {
                if reason.is_empty() {
                    return Err(failure);
                }
                return Ok(json!({
                    "task_id": sub_task.id,
                    "deploy_task_id": sub_task.deploy_task,
                    "kind": sub_task.kind.as_str(),
                    "version": sub_task.version,
                    "status": reason,
                    "instances": [],
                }));
            }
            Ok(_) if Instant::now() >= end => {
                return Err(Failure::failed(format!("its output ended with `{reason}`, yet the server says it runs")));
            }
            Ok(_) | Err(_) => thread::sleep(LOOK),
        }
    }
}
