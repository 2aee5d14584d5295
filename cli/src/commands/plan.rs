//! `plan`: what a deploy task would do now, and how that differs from what last ran.

use serde_json::Value;

use super::rollout::{self, Application, TASKS};
use crate::api::Server;
use crate::arguments::Plan;
use crate::failure::{Failure, Result};
use crate::follow::Kind;
use crate::output;

pub(super) fn run(server: &Server, plan: &Plan, json: bool) -> Result<()> {
    let task = server.get(&format!("{TASKS}{}/", plan.task))?;
    let rule = plan.rollout.as_json();
    let says_nothing = plan.targets.hosts.is_empty() && !plan.targets.all && rule.is_none();
    let told = if says_nothing && task["plan"].is_object() {
        server.get(&format!("{TASKS}{}/plan/", plan.task))?
    } else {
        let application = Application::find(server, &output::cell(&task, "application_id"))?;
        let instances = application.instances(server, &plan.targets)?;
        let body = rollout::plan(&instances, (None, rule));
        server.post(&format!("{}?dry_run=true", Kind::Upgrade.path(plan.task)), &body)?
    };
    if json {
        output::json(&told)?;
    } else {
        show(&told)?;
    }
    match told["changes"].as_array().map_or(0, Vec::len) {
        0 if told["truncated"] == true => Err(Failure::differs("not everything was compared")),
        0 => Ok(()),
        1 => Err(Failure::differs("1 change")),
        changes => Err(Failure::differs(format!("{changes} changes"))),
    }
}

fn texts(list: &Value) -> String {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.collect::<Vec<_>>().join(", ")
}

/// A task that goes first, in a few words.
pub(super) fn first(task: &Value) -> String {
    let cell = |name: &str| output::cell(task, name);
    let what = match task["application"].as_str() {
        Some(application) => format!("the {} of {application}, task {}", cell("kind"), cell("task_id")),
        None => format!("task {}", cell("task_id")),
    };
    match task["status"].as_str() {
        Some("running") => what,
        status => format!("{what} ({})", status.unwrap_or("deleted")),
    }
}

/// Each script of the way back once, with the hosts that it is for.
fn way_back(plan: &Value) -> Vec<(String, Vec<String>, String)> {
    let mut scripts: Vec<(String, Vec<String>, String)> = Vec::new();
    for target in plan["way_back"].as_array().into_iter().flatten() {
        for step in target["steps"].as_array().into_iter().flatten() {
            let Some(content) = plan["scripts"][output::cell(step, "script")]["content"].as_str() else { continue };
            let (name, host) = (output::cell(step, "name"), output::cell(target, "hostname"));
            match scripts.iter_mut().find(|(step, _, known)| *step == name && known == content) {
                Some((_, hosts, _)) => hosts.push(host),
                None => scripts.push((name, vec![host], content.to_owned())),
            }
        }
    }
    scripts
}

fn show(plan: &Value) -> Result<()> {
    let commit = plan["commit"].as_str().map(|commit| format!(", commit {commit}")).unwrap_or_default();
    output::line(&format!("version {}{commit}", output::cell(plan, "version")))?;
    let after = &plan["after"];
    if let Some(first) = after["applications"].as_array().filter(|first| !first.is_empty()) {
        output::line(&format!("order: {}, then this", texts(&first.clone().into())))?;
    }
    for task in after["tasks"].as_array().into_iter().flatten() {
        output::line(&format!("waits for {}", first(task)))?;
    }
    for (batch, number) in plan["batches"].as_array().into_iter().flatten().zip(1..) {
        output::line(&format!("batch {number}: {}", texts(batch)))?;
    }
    for change in plan["changes"].as_array().into_iter().flatten() {
        output::line("")?;
        let (step, kind) = (output::cell(change, "step"), output::cell(change, "kind"));
        output::line(&format!("{step} {kind} on {}", texts(&change["hostnames"])))?;
        output::line(change["diff"].as_str().unwrap_or_default().trim_end())?;
    }
    let back: Vec<String> =
        plan["way_back"].as_array().into_iter().flatten().map(|target| output::cell(target, "hostname")).collect();
    if !back.is_empty() {
        output::line(&format!("\nif it is stopped: {} go back", back.join(", ")))?;
        for (step, hosts, content) in way_back(plan) {
            output::line(&format!("\n{step} on the way back, on {}", hosts.join(", ")))?;
            output::line(content.trim_end())?;
        }
    }
    if plan["truncated"] == true {
        output::line("some scripts or differences are left out: there are too many")?;
    }
    output::line(&format!("\nplan {}", output::cell(plan, "digest")))
}
