//! `deploy`: from a version to its output.

use serde_json::{Value, json};

use super::rollout::{self, Application, Instance, NewTask, TASKS};
use super::together;
use crate::api::Server;
use crate::arguments::Deploy;
use crate::failure::{Answer, Failure, Result};
use crate::follow::Kind;
use crate::output;

/// A deploy task, made or found, and what it is for.
struct Job {
    task: u64,
    status: String,
    version: String,
    source: String,
    instances: Vec<Instance>,
    timeout: Option<u32>,
    rollout: Option<Value>,
}

pub(crate) fn run(server: &Server, deploy: &Deploy, json: bool) -> Result<()> {
    if !deploy.with.is_empty() {
        return together::run(server, deploy, json);
    }
    if deploy.following.place.queue && (deploy.no_approve || deploy.no_start || deploy.at.is_some()) {
        return Err(Failure::usage("--queue is for what is rolled out now"));
    }
    let job = match deploy.task {
        Some(task) => found(server, deploy, task, json)?,
        None => made(server, deploy, json)?,
    };
    let task = job.task;
    let mut status = job.status.as_str();
    if status == "wait_review" && !deploy.no_approve {
        rollout::act(server, task, "approve").map_err(|failure| left(failure, task, "waits for review"))?;
        status = "approved";
    }
    if status == "approved" && !deploy.no_start && deploy.at.is_none() {
        rollout::act(server, task, "start").map_err(|failure| left(failure, task, "is approved"))?;
        status = "running";
    }
    if status != "running" {
        return stopped(task, status, deploy.at.is_some(), json);
    }
    if deploy.no_start {
        return Err(Failure::usage(format!("task {task} has been started already")));
    }
    let source = deploy.source.as_deref().unwrap_or(&job.source);
    let sub_task = rollout::make_sub_task(
        server,
        (Kind::Upgrade, task),
        &job.instances,
        &job.version,
        Some(source),
        (job.timeout, job.rollout.clone(), &deploy.following.place),
    )
    .map_err(|failure| left(failure, task, "is started"))?;
    if !json {
        eprintln!("Task {} deploys version {} to {}.", sub_task.name(), job.version, rollout::hosts(&job.instances));
    }
    rollout::watch(server, &sub_task, &deploy.following, json)
}

/// Makes the deploy task that the options describe.
fn made(server: &Server, deploy: &Deploy, json: bool) -> Result<Job> {
    let (Some(application), Some(version)) = (&deploy.application, &deploy.version) else {
        return Err(Failure::usage("which application and which --version?"));
    };
    let application = Application::find(server, application)?;
    let instances = application.instances(server, &deploy.targets)?;
    let question = format!("Deploy {} {version} to {}?", application.full_name, rollout::hosts(&instances));
    rollout::confirm(&question, deploy.following.yes, json)?;
    let source = deploy.source.clone().unwrap_or_default();
    let (timeout, rollout) = (deploy.following.timeout, deploy.rollout.as_json());
    // What somebody else reviews, or what runs later, is bound to what it was when it was approved.
    let later = deploy.no_approve || deploy.no_start || deploy.at.is_some();
    let new = NewTask {
        application: application.id,
        version,
        source: &source,
        level: deploy.level.as_str(),
        description: &deploy.description,
        plan: later.then(|| rollout::plan(&instances, (timeout, rollout.clone()))),
        at: deploy.at,
    };
    let task = rollout::make_task(server, &new)?;
    Ok(Job { task, status: "wait_review".to_owned(), version: version.clone(), source, instances, timeout, rollout })
}

/// Finds the deploy task that somebody made before.
fn found(server: &Server, deploy: &Deploy, task: u64, json: bool) -> Result<Job> {
    let detail = server.get(&format!("{TASKS}{task}/"))?;
    let status = output::cell(&detail, "status");
    if !matches!(status.as_str(), "wait_review" | "approved" | "running") {
        return Err(Failure::usage(format!("task {task} is {status}: make a new one")));
    }
    let application = Application::find(server, &application_id(&detail)?.to_string())?;
    let mut instances = application.instances(server, &deploy.targets)?;
    let (mut timeout, mut rollout) = (deploy.following.timeout, deploy.rollout.as_json());
    let says_nothing = deploy.targets.hosts.is_empty() && timeout.is_none() && rollout.is_none();
    if let Some(ids) = detail["plan"]["instances"].as_array().filter(|_| says_nothing) {
        let place = |instance: &Instance| ids.iter().position(|id| id.as_u64() == Some(instance.id));
        instances.retain(|instance| place(instance).is_some());
        instances.sort_by_key(place);
        timeout = detail["plan"]["timeout"].as_u64().and_then(|seconds| u32::try_from(seconds).ok());
        rollout = Some(detail["plan"]["rollout"].clone()).filter(|rollout| !rollout.is_null());
    }
    let version = output::cell(&detail, "version");
    let question = format!("Deploy {} {version} to {}?", application.full_name, rollout::hosts(&instances));
    rollout::confirm(&question, deploy.following.yes, json)?;
    Ok(Job { task, status, version, source: output::cell(&detail, "package_source"), instances, timeout, rollout })
}

fn application_id(task: &Value) -> Result<u64> {
    let id = task["application_id"].as_u64();
    id.ok_or_else(|| Failure::failed("the server described a deploy task without its application"))
}

/// A task was made, but the server does not let the caller go on with it now, or alone.
fn left(failure: Failure, task: u64, state: &str) -> Failure {
    let Some(answer) = &failure.answer else { return failure };
    let name =
        |message: &str| format!("{message}; task {task} {state}: go on later with `drover deploy --task {task}`");
    let answer = Some(Answer { message: name(&answer.message), ..answer.clone() });
    let message = name(&failure.message);
    Failure { message, answer, ..failure }
}

/// The caller wanted no more than this.
fn stopped(task: u64, status: &str, by_itself: bool, json: bool) -> Result<()> {
    if json {
        return output::json(&json!({ "deploy_task_id": task, "status": status }));
    }
    output::line(&task.to_string())?;
    let next = if status == "wait_review" { "It waits for review" } else { "It is approved" };
    if by_itself {
        eprintln!("{next}; once approved it starts by itself at its time. See it with `drover plan {task}`.");
    } else {
        eprintln!("{next}; see it with `drover plan {task}`, go on with `drover deploy --task {task}`.");
    }
    Ok(())
}
