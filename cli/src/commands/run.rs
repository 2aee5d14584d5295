//! `run`: a stored script on hosts.

use clap::Args;
use serde_json::{Map, Value, json};

use super::rollout;
use crate::api::Server;
use crate::arguments::Following;
use crate::failure::{Failure, Result};
use crate::follow::SubTask;
use crate::output::{self, cell};

/// Options of `run`.
#[derive(Debug, Args)]
#[group(id = "where", required = true, multiple = false, args = ["on", "on_app", "on_label"])]
pub(crate) struct Run {
    /// Stored script, by id or name
    script: String,
    /// On these hosts, by id or name, separated by commas
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    on: Vec<String>,
    /// On the hosts of this application's instances
    #[arg(long, value_name = "APPLICATION")]
    on_app: Option<String>,
    /// On the hosts that have this label
    #[arg(long, value_name = "LABEL")]
    on_label: Option<String>,
    /// Value of a parameter; once for each
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    parameters: Vec<(String, String)>,
    /// Run as this account in place of the script's own
    #[arg(long, value_name = "ACCOUNT")]
    run_as: Option<String>,
    /// Hosts at a time: a number, or a percentage such as 25%; all at once when left out
    #[arg(long, value_name = "N|N%")]
    batch: Option<String>,
    /// Seconds between batches
    #[arg(long, value_name = "SECONDS")]
    pause: Option<u32>,
    /// Failures after which nothing more starts: more than these; `any` stops at nothing
    #[arg(long, value_name = "N|N%|any")]
    max_failures: Option<String>,
    /// Show where it would run, and what, in place of running it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    following: Following,
}

/// `NAME=VALUE`.
pub(super) fn parameter(text: &str) -> std::result::Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    parts.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "write it as NAME=VALUE".to_owned())
}

fn body(run: &Run) -> Value {
    let parameters: Map<String, Value> =
        run.parameters.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let mut body = json!({ "script": run.script, "parameters": parameters });
    let mut rollout = Map::new();
    if let Some(batch) = &run.batch {
        rollout.insert("batch".to_owned(), batch.as_str().into());
    }
    if let Some(pause) = run.pause {
        rollout.insert("pause".to_owned(), pause.into());
    }
    match run.max_failures.as_deref() {
        Some("any") => _ = rollout.insert("max_failures".to_owned(), Value::Null),
        Some(most) => _ = rollout.insert("max_failures".to_owned(), most.into()),
        None => {}
    }
    if !rollout.is_empty() {
        body["rollout"] = rollout.into();
    }
    if !run.on.is_empty() {
        body["hosts"] = run.on.iter().map(|host| host.trim().into()).collect::<Vec<Value>>().into();
    }
    for (name, value) in [("application", &run.on_app), ("label", &run.on_label), ("running_user", &run.run_as)] {
        if let Some(value) = value {
            body[name] = value.as_str().into();
        }
    }
    if let Some(seconds) = run.following.timeout {
        body["timeout"] = seconds.into();
    }
    run.following.place.add_to(&mut body);
    body
}

pub(super) fn run(server: &Server, run: &Run, json: bool) -> Result<()> {
    let body = body(run);
    let plan = server.post("/tasks/actions/run-script/?dry_run=true", &body)?;
    if run.dry_run {
        return shown(&plan, json);
    }
    let hosts = hosts(&plan);
    let script = cell(&plan, "script");
    rollout::confirm(&format!("Run {script} on {hosts}?"), run.following.yes, json)?;
    let receipt = server.post("/tasks/actions/run-script/", &body)?;
    let id = receipt["task_id"].as_str();
    let id = id.ok_or_else(|| Failure::failed("the server made a task and did not say which"))?;
    let task = SubTask::from_detail(&server.get(&format!("/tasks/{id}/"))?)?;
    if !json {
        eprintln!("Task {} runs {script} on {hosts}.", task.name());
    }
    rollout::watch(server, &task, &run.following, json)
}

/// Hosts in a sentence.
fn hosts(plan: &Value) -> String {
    let names: Vec<String> =
        plan["hosts"].as_array().into_iter().flatten().take(8).map(|host| cell(host, "hostname")).collect();
    let count = plan["count"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let more = count.saturating_sub(names.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", names.join(", "))
}

fn shown(plan: &Value, json: bool) -> Result<()> {
    if json {
        return output::json(plan);
    }
    let account = plan["running_user"].as_str().unwrap_or("the agent's own account");
    output::line(&format!("{} on {} as {account}:", cell(plan, "script"), hosts(plan)))?;
    output::line(plan["content"].as_str().unwrap_or_default().trim_end())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn of(line: &str) -> std::result::Result<Value, clap::Error> {
        Line::try_parse_from(line.split_whitespace()).map(|line| body(&line.run))
    }

    #[test]
    fn only_what_is_said_is_asked_for() {
        let said = of("run clean --on web-1,web-2 --param days=7 --param path=a=b --batch 1 --queue").expect("a line");
        let expected = json!({"script": "clean", "hosts": ["web-1", "web-2"], "parameters": {"days": "7", "path": "a=b"},
            "rollout": {"batch": "1"}, "if_busy": "wait"});
        assert_eq!(said, expected);
        let said = of("run clean --on-label db --max-failures any --timeout 5 --run-as ada").expect("a line");
        let expected = json!({"script": "clean", "label": "db", "parameters": {}, "rollout": {"max_failures": null},
            "timeout": 5, "running_user": "ada"});
        assert_eq!(said, expected);
    }

    #[test]
    fn where_it_runs_is_said_once() {
        for line in
            ["run clean", "run clean --on a --on-label b", "run clean --on a --param x", "run clean --on a --param =x"]
        {
            assert_eq!(of(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
