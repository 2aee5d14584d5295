//! `schedule`: what runs by itself, and what became of it.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::lock::{List, found, shown};
use super::rollout::Application;
use super::run::parameter;
use crate::api::Server;
use crate::arguments::Limit;
use crate::failure::{Failure, Result};
use crate::output::{self, Column, cell};

/// Schedules and instances that are looked through at most.
const SEARCH_MAX: usize = 10_000;

/// What runs no script, and has none of its options.
const NOT_SCRIPTS: [&str; 4] = ["start", "stop", "restart", "deploy_task"];

const SCHEDULES: &[Column] = &[
    ("ID", |schedule| cell(schedule, "id")),
    ("NAME", |schedule| cell(schedule, "name")),
    ("APPLICATION", |schedule| cell(schedule, "application")),
    ("DOES", does),
    ("CRON", |schedule| cell(schedule, "cron")),
    ("ZONE", |schedule| cell(schedule, "zone")),
    ("OWNER", |schedule| cell(schedule, "owner")),
    ("NEXT", next),
];

const RUNS: &[Column] = &[
    ("MOMENT", |run| cell(run, "moment")),
    ("STATE", |run| cell(run, "state")),
    ("TASK", |run| cell(run, "task_id")),
    ("STATUS", |run| cell(run, "task_status")),
    ("ASKED BY", |run| cell(run, "asked_by")),
    ("REASON", |run| cell(run, "reason")),
];

/// Commands on schedules.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List schedules
    List(List),
    /// Make a schedule
    Create(Box<Create>),
    /// Show when a schedule comes next
    Next(Next),
    /// List what became of a schedule's moments, the newest first
    Runs(Runs),
    /// Hold a schedule: nothing of it begins until it is resumed
    Pause(Action),
    /// Let a held schedule go on from now
    Resume(Action),
    /// Run what a schedule names now
    Run(Action),
    /// Delete a schedule; what it began goes on
    Delete(One),
}

/// A schedule.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Schedule, by id or name
    schedule: String,
}

/// Options of what is done to a schedule.
#[derive(Debug, Args)]
pub(crate) struct Action {
    #[command(flatten)]
    one: One,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Options of `schedule next`.
#[derive(Debug, Args)]
pub(crate) struct Next {
    #[command(flatten)]
    one: One,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=100))]
    count: u8,
}

/// Options of `schedule runs`.
#[derive(Debug, Args)]
pub(crate) struct Runs {
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    limit: Limit,
}

/// Options of `schedule create`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("work").required(true).args(["start", "stop", "restart", "deploy_task", "script"]))]
pub(crate) struct Create {
    /// Name of the schedule
    name: String,
    /// When: minute, hour, day of the month, month and weekday, or @daily and the like
    #[arg(long, value_name = "FIELDS")]
    cron: String,
    /// Time zone, such as Europe/Berlin; the server's when left out
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Start instances of this application
    #[arg(long, value_name = "APPLICATION")]
    start: Option<String>,
    /// Stop instances of this application
    #[arg(long, value_name = "APPLICATION")]
    stop: Option<String>,
    /// Restart instances of this application
    #[arg(long, value_name = "APPLICATION")]
    restart: Option<String>,
    /// Carry out this deploy task, which was approved with its plan
    #[arg(long, value_name = "ID", conflicts_with_all = ["hosts", "timeout", "batch", "max_failures"])]
    deploy_task: Option<u64>,
    /// Run this stored script, by id or name, on --hosts, --on-app or --on-label
    #[arg(long, value_name = "SCRIPT", requires = "where")]
    script: Option<String>,
    /// Only on these hosts, with commas; on all that there are by then when left out
    #[arg(long, visible_alias = "on", value_name = "HOST,...", value_delimiter = ',', group = "where")]
    hosts: Vec<String>,
    /// Run the script on the hosts that this application has by then
    #[arg(long, value_name = "APPLICATION", conflicts_with_all = NOT_SCRIPTS, group = "where")]
    on_app: Option<String>,
    /// Run the script on the hosts that have this label by then
    #[arg(long, visible_alias = "label", value_name = "LABEL", conflicts_with_all = NOT_SCRIPTS, group = "where")]
    on_label: Option<String>,
    /// Value of a parameter of the script; once for each
    #[arg(long = "param", value_name = "NAME=VALUE", conflicts_with_all = NOT_SCRIPTS, value_parser = parameter)]
    parameters: Vec<(String, String)>,
    /// Run the script as this account in place of its own
    #[arg(long, value_name = "ACCOUNT", conflicts_with_all = NOT_SCRIPTS)]
    run_as: Option<String>,
    /// Seconds that it may take
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// Hosts at a time: a number, or a percentage such as 25%
    #[arg(long, value_name = "N")]
    batch: Option<String>,
    /// Failures that are allowed: a number, or a percentage
    #[arg(long, value_name = "N")]
    max_failures: Option<String>,
    /// What becomes of moments at which no server was there
    #[arg(long, value_name = "POLICY", value_parser = ["skip", "once", "all"])]
    missed: Option<String>,
    /// How many of them are made up for, with `--missed all`
    #[arg(long, value_name = "N")]
    missed_max: Option<u8>,
    /// What becomes of a moment that comes while the one before is at work
    #[arg(long, value_name = "POLICY", value_parser = ["skip", "queue", "cancel_old"])]
    overlap: Option<String>,
    /// If something is busy, make the task and have it wait in the queue; else it is tried again for an hour
    #[arg(long)]
    queue: bool,
    /// Seconds by which moments are spread at most
    #[arg(long, value_name = "SECONDS")]
    jitter: Option<u32>,
}

impl Create {
    /// What is to be run.
    fn work(&self, server: &Server) -> Result<Value> {
        if let Some(id) = self.deploy_task {
            return Ok(json!({ "kind": "deploy", "deploy_task_id": id }));
        }
        let mut work = match &self.script {
            Some(script) => self.run(script),
            None => self.operation(server)?,
        };
        if let Some(timeout) = self.timeout {
            work["timeout"] = timeout.into();
        }
        let rollout = [("batch", &self.batch), ("max_failures", &self.max_failures)];
        for (field, value) in rollout.iter().filter_map(|(field, value)| Some((*field, value.as_ref()?))) {
            work["rollout"][field] = value.as_str().into();
        }
        Ok(work)
    }

    fn operation(&self, server: &Server) -> Result<Value> {
        let kinds = [("start", &self.start), ("stop", &self.stop), ("restart", &self.restart)];
        let (kind, application) = kinds
            .iter()
            .find_map(|(kind, application)| Some((kind, application.as_ref()?)))
            .ok_or_else(|| Failure::failed("say what to run"))?;
        let application = Application::find(server, application)?;
        let mut work = json!({ "kind": kind, "application_id": application.id });
        if !self.hosts.is_empty() {
            work["instances"] = self.instances(server, &application)?;
        }
        Ok(work)
    }

    fn run(&self, script: &str) -> Value {
        let parameters: Map<String, Value> =
            self.parameters.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        let mut work = json!({ "kind": "script", "script": script, "parameters": parameters });
        if !self.hosts.is_empty() {
            work["hosts"] = self.hosts.iter().map(|host| host.trim().into()).collect::<Vec<Value>>().into();
        }
        for (field, value) in [("application", &self.on_app), ("label", &self.on_label), ("running_user", &self.run_as)]
        {
            if let Some(value) = value {
                work[field] = value.as_str().into();
            }
        }
        work
    }

    fn instances(&self, server: &Server, application: &Application) -> Result<Value> {
        let there = server.list(&format!("/applications/{}/instances/", application.id), &[], SEARCH_MAX)?;
        let on = |host: &String| {
            let instance = there.iter().find(|instance| instance["hostname"] == **host);
            let missing = || Failure::not_found(format!("{} is not on {host}", application.full_name));
            instance.map(|instance| instance["id"].clone()).ok_or_else(missing)
        };
        self.hosts.iter().map(on).collect()
    }

    fn body(&self, server: &Server) -> Result<Value> {
        let mut body = json!({ "name": self.name, "cron": self.cron, "what": self.work(server)? });
        let words = [("zone", &self.zone), ("missed", &self.missed), ("overlap", &self.overlap)];
        for (field, value) in words.iter().filter_map(|(field, value)| Some((*field, value.as_ref()?))) {
            body[field] = value.as_str().into();
        }
        if let Some(most) = self.missed_max {
            body["missed_max"] = most.into();
        }
        if self.queue {
            body["if_busy"] = "wait".into();
        }
        if let Some(jitter) = self.jitter {
            body["jitter"] = jitter.into();
        }
        Ok(body)
    }
}

impl One {
    /// Address and name of the schedule.
    fn find(&self, server: &Server) -> Result<(String, String)> {
        let address = |id: &str| format!("/schedules/{id}/");
        if self.schedule.parse::<u64>().is_ok() {
            let found = server.get(&address(&self.schedule))?;
            return Ok((address(&self.schedule), cell(&found, "name")));
        }
        let found = server.list("/schedules/", &[("name", &self.schedule)], SEARCH_MAX)?;
        let found = found.iter().find(|schedule| schedule["name"] == *self.schedule);
        let missing = || Failure::not_found(format!("there is no schedule {}", self.schedule));
        found.map(|found| (address(&cell(found, "id")), self.schedule.clone())).ok_or_else(missing)
    }
}

pub(super) fn run(server: &Server, command: &Command, json: bool) -> Result<()> {
    match command {
        Command::List(list) => shown(SCHEDULES, &found(server, "/schedules/", list, &[])?, json),
        Command::Create(wanted) => {
            let made = server.post("/schedules/", &wanted.body(server)?)?;
            if json {
                return output::json(&made);
            }
            output::line(&format!("schedule {} comes next at {}", cell(&made, "name"), next(&made)))
        }
        Command::Next(wanted) => {
            let (address, _) = wanted.one.find(server)?;
            let found = server.find(&format!("{address}next/"), &[("count", &wanted.count.to_string())])?;
            if json {
                return output::json(&found);
            }
            let mut moments = found["next"].as_array().into_iter().flatten().filter_map(Value::as_str);
            moments.try_for_each(output::line)
        }
        Command::Runs(wanted) => {
            let (address, _) = wanted.one.find(server)?;
            let runs = server.list(&format!("{address}runs/"), &[], wanted.limit.limit as usize)?;
            shown(RUNS, &runs, json)
        }
        Command::Pause(action) => act(server, action, "pause", "is held", json),
        Command::Resume(action) => act(server, action, "resume", "goes on", json),
        Command::Run(action) => act(server, action, "run", "runs now: see `drover schedule runs`", json),
        Command::Delete(one) => {
            let (address, name) = one.find(server)?;
            server.delete(&address)?;
            told(&name, "delete", "is deleted", json)
        }
    }
}

fn act(server: &Server, action: &Action, verb: &str, becomes: &str, json: bool) -> Result<()> {
    let (address, name) = action.one.find(server)?;
    server.post(&format!("{address}actions/{verb}/"), &json!({ "reason": action.reason }))?;
    told(&name, verb, becomes, json)
}

fn told(name: &str, verb: &str, becomes: &str, json: bool) -> Result<()> {
    if json {
        return output::json(&json!({ "schedule": name, "action": verb }));
    }
    output::line(&format!("schedule {name} {becomes}"))
}

/// What it runs, in short.
fn does(schedule: &Value) -> String {
    let what = &schedule["what"];
    if what["kind"] == "script" {
        let on = match what["hosts"].as_array() {
            Some(hosts) => format!("{} hosts", hosts.len()),
            None if what["label"].is_string() => format!("label {}", cell(what, "label")),
            None => format!("the hosts of {}", cell(what, "application")),
        };
        return format!("{} on {on}", cell(what, "script"));
    }
    match (what["deploy_task_id"].as_u64(), what["instances"].as_array()) {
        (Some(id), _) => format!("deploy task {id}"),
        (None, Some(instances)) => format!("{} {} instances", cell(what, "kind"), instances.len()),
        (None, None) => format!("{} all", cell(what, "kind")),
    }
}

/// When it comes next.
fn next(schedule: &Value) -> String {
    match (schedule["next"][0].as_str(), schedule["paused_by"].as_str()) {
        (_, Some(who)) => format!("held by {who}"),
        (next, None) => next.unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_is_run_and_when() {
        let all = json!({ "what": { "kind": "restart", "instances": null }, "next": ["2026-01-02T03:04:05+00:00"] });
        assert_eq!((does(&all), next(&all)), ("restart all".to_owned(), "2026-01-02T03:04:05+00:00".to_owned()));
        let some = json!({ "what": { "kind": "stop", "instances": [1, 2] }, "next": [], "paused_by": "ada" });
        assert_eq!((does(&some), next(&some)), ("stop 2 instances".to_owned(), "held by ada".to_owned()));
        let deploy = json!({ "what": { "kind": "deploy", "deploy_task_id": 7 } });
        assert_eq!(does(&deploy), "deploy task 7");
        for (targets, told) in [
            (json!({ "hosts": ["web-1", 7] }), "clean on 2 hosts"),
            (json!({ "application": "shop" }), "clean on the hosts of shop"),
            (json!({ "label": "db" }), "clean on label db"),
        ] {
            let mut what = json!({ "kind": "script", "script": "clean" });
            what.as_object_mut().expect("an object").extend(targets.as_object().expect("an object").clone());
            assert_eq!(does(&json!({ "what": what })), told);
        }
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn of(line: &str) -> std::result::Result<Create, clap::Error> {
        let words = ["create", "nightly", "--cron", "@daily"].into_iter().chain(line.split_whitespace());
        <Line as clap::Parser>::try_parse_from(words).map(|line| line.create)
    }

    #[test]
    fn a_script_is_asked_for_with_its_hosts_and_parameters() {
        let said = of("--script clean --label db --param days=7 --param path=a=b --run-as ada").expect("a line");
        let expected = json!({"kind": "script", "script": "clean", "label": "db", "running_user": "ada",
            "parameters": {"days": "7", "path": "a=b"}});
        assert_eq!(said.run("clean"), expected);
        let said = of("--script 7 --hosts web-1,web-2 --queue").expect("a line");
        assert!(said.queue);
        let expected = json!({"kind": "script", "script": "7", "hosts": ["web-1", "web-2"], "parameters": {}});
        assert_eq!(said.run("7"), expected);
        for line in [
            "--script clean",
            "--script clean --on a --on-label b",
            "--script clean --on a --param x",
            "--script clean --restart shop --on a",
            "--restart shop --on-label b",
            "--restart shop --param a=b",
            "",
        ] {
            assert_eq!(of(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
