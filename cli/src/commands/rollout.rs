//! What `deploy` and `revert` share: finding the application and its instances, making and following sub-tasks.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use serde_json::{Value, json};

use super::lock::Place;
use crate::api::Server;
use crate::arguments::{Following, Targets};
use crate::clock;
use crate::failure::{Failure, NOT_FOUND, Result};
use crate::follow::{self, Kind, SubTask};
use crate::output;

/// Applications and instances to look through at most.
const SEARCH_MAX: usize = 10_000;

/// Address of the deploy tasks.
pub(crate) const TASKS: &str = "/applications/deploy-tasks/";

/// An application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Application {
    pub(crate) id: u64,
    pub(crate) full_name: String,
}

/// An application on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) id: u64,
    pub(crate) host: String,
}

/// What to make a deploy task of.
pub(crate) struct NewTask<'a> {
    pub(crate) application: u64,
    pub(crate) version: &'a str,
    pub(crate) source: &'a str,
    pub(crate) level: &'a str,
    pub(crate) description: &'a str,
    /// The update that it carries, if it is to be approved with it.
    pub(crate) plan: Option<Value>,
    /// When it starts by itself, in seconds since 1970 UTC.
    pub(crate) at: Option<i64>,
}

impl Application {
    /// Reads the server's description.
    fn from_json(application: &Value) -> Result<Self> {
        let id = application["id"].as_u64();
        let id = id.ok_or_else(|| Failure::failed("the server described an application without an id"))?;
        Ok(Self { id, full_name: output::cell(application, "full_name") })
    }

    /// Finds an application by id or full name.
    pub(crate) fn find(server: &Server, wanted: &str) -> Result<Self> {
        if let Ok(id) = wanted.parse::<u64>() {
            match server.get(&format!("/applications/{id}/")) {
                Ok(application) => return Self::from_json(&application),
                // A name may be a number as well.
                Err(failure) if failure.code == NOT_FOUND => {}
                Err(failure) => return Err(failure),
            }
        }
        let found = server.list("/applications/", &[("full_name", wanted)], SEARCH_MAX)?;
        match found.iter().find(|application| application["full_name"] == wanted) {
            Some(application) => Self::from_json(application),
            None => {
                let like: Vec<String> = found.iter().take(5).map(|one| output::cell(one, "full_name")).collect();
                let hint = if like.is_empty() { String::new() } else { format!("; there is {}", like.join(", ")) };
                Err(Failure::not_found(format!("no application `{wanted}`{hint}")))
            }
        }
    }

    /// The instances on the wanted hosts; on all of them when none are named.
    pub(crate) fn instances(&self, server: &Server, targets: &Targets) -> Result<Vec<Instance>> {
        let found = server.list(&format!("/applications/{}/instances/", self.id), &[], SEARCH_MAX)?;
        let instance = |one: &Value| Some(Instance { id: one["id"].as_u64()?, host: output::cell(one, "hostname") });
        chosen(&self.full_name, found.iter().filter_map(instance).collect(), &targets.hosts)
    }
}

fn chosen(application: &str, all: Vec<Instance>, hosts: &[String]) -> Result<Vec<Instance>> {
    if all.is_empty() {
        return Err(Failure::usage(format!("{application} has no instances: add it to hosts first")));
    }
    let wanted: Vec<&str> = hosts.iter().map(|host| host.trim()).filter(|host| !host.is_empty()).collect();
    if hosts.is_empty() {
        return Ok(all);
    }
    if wanted.is_empty() {
        return Err(Failure::usage("--hosts names no host"));
    }
    let strange: Vec<&str> =
        wanted.iter().copied().filter(|host| !all.iter().any(|instance| instance.host == *host)).collect();
    if !strange.is_empty() {
        let known: Vec<&str> = all.iter().take(20).map(|instance| instance.host.as_str()).collect();
        return Err(Failure::usage(format!(
            "{application} is not on {}; it is on {}",
            strange.join(", "),
            known.join(", ")
        )));
    }
    Ok(all.into_iter().filter(|instance| wanted.contains(&instance.host.as_str())).collect())
}

/// Makes a deploy task and gives its id.
pub(crate) fn make_task(server: &Server, task: &NewTask<'_>) -> Result<u64> {
    let made = server.post(
        TASKS,
        &json!({
            "application_id": task.application,
            "version": task.version,
            "package_source": task.source,
            "level": task.level,
            "description": task.description,
            "planned_exec_time": task.at.map_or_else(|| json!(clock::now_seconds()), |at| json!(at)),
            "auto_start": task.at.is_some(),
            "plan": task.plan,
        }),
    )?;
    let id = made["id"].as_u64();
    id.ok_or_else(|| Failure::failed("the server made a deploy task and did not say which"))
}

/// Acts on a deploy task: `approve`, `reject`, `start`, `close`.
pub(crate) fn act(server: &Server, task: u64, action: &str) -> Result<()> {
    server.act(&format!("{TASKS}{task}/actions/{action}/")).map(drop)
}

/// Approves a deploy task, if its plan is still the one that was looked at.
pub(crate) fn approve(server: &Server, task: u64, plan: Option<&str>) -> Result<()> {
    let body = plan.map_or_else(|| json!({}), |digest| json!({ "plan_digest": digest }));
    server.post(&format!("{TASKS}{task}/actions/approve/"), &body).map(drop)
}

/// The update of these instances, as a deploy task carries it.
pub(crate) fn plan(instances: &[Instance], (timeout, rollout): (Option<u32>, Option<Value>)) -> Value {
    let ids: Vec<Value> = instances.iter().map(|instance| json!({ "id": instance.id })).collect();
    let mut plan = json!({ "instances": ids });
    if let Some(seconds) = timeout {
        plan["timeout"] = json!(seconds);
    }
    if let Some(rollout) = rollout {
        plan["rollout"] = rollout;
    }
    plan
}

/// Makes a sub-task.
pub(crate) fn make_sub_task(
    server: &Server,
    (kind, deploy_task): (Kind, u64),
    instances: &[Instance],
    version: &str,
    source: Option<&str>,
    (timeout, rollout, place): (Option<u32>, Option<Value>, &Place),
) -> Result<SubTask> {
    let mut body = plan(instances, (timeout, rollout));
    place.add_to(&mut body);
    body["version"] = json!(version);
    if kind == Kind::Upgrade {
        body["update_source"] = json!(source.unwrap_or_default());
    }
    let receipt = server.post(&kind.path(deploy_task), &body)?;
    let (Some(id), Some(task_output)) = (receipt["task_id"].as_str(), receipt["task_output"].as_str()) else {
        return Err(Failure::failed("the server made a sub-task and did not say which"));
    };
    Ok(SubTask {
        deploy_task: Some(deploy_task),
        id: id.to_owned(),
        kind,
        version: version.to_owned(),
        task_output: task_output.to_owned(),
        hosts: instances.iter().map(|instance| instance.host.clone()).collect(),
    })
}

/// Follows the sub-task, or says where it is to be found.
pub(crate) fn watch(server: &Server, sub_task: &SubTask, following: &Following, json: bool) -> Result<()> {
    if !following.no_follow {
        return follow::follow(server, sub_task, 0, following.wait, json);
    }
    if json {
        return output::json(&sub_task.as_json());
    }
    output::line(&sub_task.name())?;
    eprintln!("It runs; follow it with `drover logs -f {}`.", sub_task.name());
    Ok(())
}

/// Asks at a terminal whether to go on; elsewhere nobody could answer.
pub(crate) fn confirm(question: &str, yes: bool, json: bool) -> Result<()> {
    if yes || json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(());
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::usage(format!("cannot read the answer: {error}")))?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::usage("nothing was changed"))
}

/// Hosts in a sentence.
pub(crate) fn hosts(instances: &[Instance]) -> String {
    let names: Vec<&str> = instances.iter().take(8).map(|instance| instance.host.as_str()).collect();
    let more = instances.len() - names.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Instance> {
        ["a", "b"].into_iter().zip(1..).map(|(host, id)| Instance { id, host: host.to_owned() }).collect()
    }

    fn ids(hosts: &[&str]) -> Result<Vec<u64>> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        chosen("shop", all(), &hosts).map(|found| found.iter().map(|instance| instance.id).collect())
    }

    #[test]
    fn hosts_are_chosen_by_name() {
        assert_eq!(ids(&[]), Ok(vec![1, 2]));
        assert_eq!(ids(&["b", " a "]), Ok(vec![1, 2]));
        assert_eq!(ids(&["b", ""]), Ok(vec![2]));
    }

    #[test]
    fn hosts_that_are_none_are_named() {
        let failure = ids(&["b", "x", "y"]).expect_err("two are unknown");
        assert_eq!((failure.code, failure.message.as_str()), (2, "shop is not on x, y; it is on a, b"));
        assert_eq!(ids(&[""]).expect_err("none is named").code, 2);
        assert_eq!(chosen("shop", Vec::new(), &[]).expect_err("there are none").code, 2);
    }
}
