//! `revert`: back to a version that the hosts have kept.

use super::rollout::{self, Application, NewTask, TASKS};
use crate::api::Server;
use crate::arguments::Revert;
use crate::failure::{Failure, Result};
use crate::follow::Kind;

pub(crate) fn run(server: &Server, revert: &Revert, json: bool) -> Result<()> {
    let application = Application::find(server, &revert.application)?;
    let instances = application.instances(server, &revert.targets)?;
    let hosts = rollout::hosts(&instances);
    let question = format!("Revert {} to {} on {hosts}?", application.full_name, revert.version);
    rollout::confirm(&question, revert.following.yes, json)?;
    let task = match running(server, &application)? {
        Some(task) => task,
        None => started(server, &application, &revert.version)?,
    };
    let manner = (revert.following.timeout, None, &revert.following.place);
    let sub_task = rollout::make_sub_task(server, (Kind::Revert, task), &instances, &revert.version, None, manner)?;
    if !json {
        eprintln!("Task {} takes {hosts} back to version {}.", sub_task.name(), revert.version);
    }
    rollout::watch(server, &sub_task, &revert.following, json)
}

/// The application's newest deploy task that runs.
fn running(server: &Server, application: &Application) -> Result<Option<u64>> {
    let id = application.id.to_string();
    let found = server.list(TASKS, &[("application_id", &id), ("status", "running")], 1)?;
    let Some(task) = found.first() else { return Ok(None) };
    let id = task["id"].as_u64();
    id.map(Some).ok_or_else(|| Failure::failed("the server described a deploy task without an id"))
}

/// Makes a deploy task for the revert and starts it.
fn started(server: &Server, application: &Application, version: &str) -> Result<u64> {
    let description = format!("Revert to {version}");
    let new = NewTask {
        application: application.id,
        version,
        source: "",
        level: "C",
        description: &description,
        plan: None,
        at: None,
    };
    let task = rollout::make_task(server, &new)?;
    rollout::act(server, task, "approve")?;
    rollout::act(server, task, "start")?;
    Ok(task)
}
