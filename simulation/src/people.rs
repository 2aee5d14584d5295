//! People who deploy, restart, cancel, hold, promote and try again, each request until it has an answer.

use serde_json::{Value, json};

use crate::chance::Chance;
use crate::server::Server;

/// Requests that wait for an answer: as often as it takes, with the same key.
#[derive(Debug, Clone)]
struct Request {
    method: &'static str,
    path: String,
    body: Value,
    key: String,
    then: Then,
}

/// What is done with an answer.
#[derive(Debug, Clone)]
enum Then {
    /// Nothing.
    Nothing,
    /// A deploy task was made: it is approved, started, and this is asked of it.
    Approve(Value),
    Start(i64, Value),
    Ask(i64, Value),
    /// A sub-task was made.
    Made,
}

/// An application with its instances.
#[derive(Debug, Clone)]
pub(crate) struct Application {
    pub id: i64,
    pub instances: Vec<i64>,
}

/// Everybody who asks for something.
pub(crate) struct People {
    pub applications: Vec<Application>,
    hosts: Vec<i64>,
    /// The script that is run by itself.
    script: i64,
    waiting: Vec<Request>,
    /// Sub-tasks that were accepted.
    pub accepted: Vec<i64>,
    /// Executions that somebody cancelled alone, and was told so.
    pub cancelled: Vec<String>,
    number: u64,
}

/// Answers that are none: it is asked again.
fn is_no_answer(status: u16) -> bool {
    matches!(status, 503 | 500)
}

impl People {
    /// Makes everything that is to be deployed.
    pub(crate) fn prepare(server: &mut Server, now_ms: &mut u64, hosts: &[i64]) -> Self {
        let mut number = 0;
        let mut ask = |method, path: &str, body: Value| {
            number += 1;
            let answer = server.ask(now_ms, method, path, &body, &format!("prepare-{number}"));
            let (status, body) = answer.unwrap_or_else(|| panic!("{path} has no answer"));
            assert_eq!(status, 200, "{path}: {body}");
            body
        };
        let script = json!({"name": "look", "language": "bash", "content": "true"});
        let script = number_of(&ask("POST", "/applications/deploy-scripts/", script));
        let mut applications = Vec::new();
        for (name, hooks) in [("shop", &["pre_exec", "post_exec", "global_post_exec"][..]), ("blog", &["pre_exec"])] {
            let id = number_of(&ask("POST", "/applications/", json!({"name": name})));
            let mut instances = Vec::new();
            for host in hosts {
                let made = ask("POST", &format!("/applications/{id}/instances/"), json!([{"hostid": host}]));
                instances.push(number_of(&made[0]));
            }
            let mut set = serde_json::Map::new();
            for hook in hooks {
                let script = json!({"name": format!("{name} {hook}"), "language": "bash", "content": "true"});
                let script = number_of(&ask("POST", "/applications/deploy-scripts/", script));
                set.insert((*hook).to_owned(), json!({"script": {"id": script}}));
            }
            let settings = json!({"enabled": true, "timeout": 60, "lifecycle_hooks": set});
            ask("PATCH", &format!("/applications/{id}/deploy-settings/"), settings);
            applications.push(Application { id, instances });
        }
        let (hosts, waiting, accepted, cancelled) = (hosts.to_vec(), Vec::new(), Vec::new(), Vec::new());
        Self { applications, hosts, script, waiting, accepted, cancelled, number: 0 }
    }

    fn wait_for(&mut self, path: String, body: Value, then: Then) {
        self.number += 1;
        let key = format!("person-{}", self.number);
        self.waiting.push(Request { method: "POST", path, body, key, then });
    }

    /// Somebody wants something; everywhere at once, and nothing more after a failure, where all are in a hurry. Gives what.
    pub(crate) fn want(&mut self, chance: &mut Chance, hurry: bool) -> String {
        let application = chance.below(self.applications.len());
        let Application { id, instances } = self.applications[application].clone();
        let references: Vec<Value> = instances.iter().map(|id| json!({"id": id})).collect();
        let known = self.accepted.iter().rev().take(6).copied().collect::<Vec<_>>();
        let choice = if known.is_empty() { 0 } else { chance.weighed(&[40, 12, 10, 6, 10, 8, 12, 15, 10]) };
        let task = || known[0];
        match choice {
            0 => {
                let which = if hurry && chance.percent(70) { 5 } else { chance.below(12) };
                let rollout = match which {
                    0 => Value::Null,
                    1 => json!({"batch": 1}),
                    2 => json!({"batch": 1, "max_failures": 0, "auto_revert": true}),
                    3 => json!({"batch": 2, "max_failures": 1}),
                    4 => json!({"canary": 1, "max_failures": 0}),
                    5..9 => json!({"batch": "100%", "max_failures": 0}),
                    9 => json!({"batch": "100%", "max_failures": 1, "auto_revert": true}),
                    10 => json!({"batch": 2, "max_failures": 0, "auto_revert": true}),
                    _ => json!({"batch": 1, "max_failures": null}),
                };
                let takes_back = rollout["auto_revert"] == true;
                let mut body = json!({"instances": references, "rollout": rollout});
                if !takes_back {
                    wait_in_line(&mut body, chance);
                }
                let new = json!({"application_id": id, "version": format!("{}.0", self.number), "level": "B",
                    "package_source": "dist", "planned_exec_time": 1_714_600_000});
                self.wait_for("/applications/deploy-tasks/".to_owned(), new, Then::Approve(body));
                format!("deploy {application}")
            }
            1 => {
                let count = 1 + chance.below(self.hosts.len());
                let hosts: Vec<Value> = self.hosts.iter().take(count).map(|id| json!({"id": id})).collect();
                let mut body = json!({"script": {"id": self.script}, "hosts": hosts, "timeout": 60});
                if chance.percent(50) {
                    body["rollout"] = json!({"batch": 1, "max_failures": chance.below(2)});
                }
                wait_in_line(&mut body, chance);
                self.wait_for("/tasks/actions/run-script/".to_owned(), body, Then::Made);
                format!("run a script on {count}")
            }
            choice => {
                let task = if chance.percent(60) { task() } else { *chance.one_of(&known) };
                let (action, body) = match choice {
                    2 => ("cancel", json!({"reason": "changed their mind"})),
                    3 => ("pause", json!({})),
                    4 => ("resume", json!({})),
                    5 => ("promote", json!({})),
                    6 => ("retry", json!({})),
                    7 => {
                        let which = format!("cancel one {}", chance.below(self.hosts.len()));
                        self.act(task, &which, json!({"reason": "this one alone"}));
                        return format!("{which} of {task}");
                    }
                    _ => ("lost", Value::Null),
                };
                if action == "lost" {
                    return "answer what is lost".to_owned();
                }
                self.act(task, action, body);
                format!("{action} {task}")
            }
        }
    }

    /// Somebody does something to a sub-task.
    pub(crate) fn act(&mut self, task: i64, action: &str, body: Value) {
        let then = if action == "retry" { Then::Made } else { Then::Nothing };
        self.wait_for(format!("task {task} {action}"), body, then);
    }

    /// Whether anybody waits for an answer.
    pub(crate) fn is_quiet(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Asks what waits longest. Gives what was answered.
    pub(crate) fn ask(&mut self, server: &mut Server, now_ms: &mut u64) -> Option<String> {
        if self.waiting.is_empty() {
            return None;
        }
        let request = self.waiting.remove(0);
        let path = match self.path(&request.path, server, now_ms) {
            Some(path) => path,
            None => return Some(format!("{}: nothing of this kind", request.path)),
        };
        let answer = server.ask(now_ms, request.method, &path, &request.body, &request.key);
        let Some((status, body)) = answer.filter(|(status, _)| !is_no_answer(*status)) else {
            let said = format!("{}: no answer", request.path);
            self.waiting.push(request);
            return Some(said);
        };
        let said = format!("{}: {status}", request.path);
        // Somebody else was faster, or it is too late: that is an answer too.
        if status == 200 {
            let one = path.split_once("/executions/").and_then(|(_, rest)| rest.split_once('/'));
            self.cancelled.extend(one.map(|(id, _)| id.to_owned()));
            self.go_on(request.then, &body);
        } else {
            assert!(matches!(status, 409 | 400 | 404), "{path}: {status} {body}");
            if body.to_string().contains("Idempotency-Key") {
                self.waiting.push(request);
            }
        }
        Some(said)
    }

    fn go_on(&mut self, then: Then, body: &Value) {
        match then {
            Then::Nothing => {}
            Then::Approve(wanted) => {
                let id = number_of(body);
                let path = format!("/applications/deploy-tasks/{id}/actions/approve/");
                self.wait_for(path, Value::Null, Then::Start(id, wanted));
            }
            Then::Start(id, wanted) => {
                let path = format!("/applications/deploy-tasks/{id}/actions/start/");
                self.wait_for(path, Value::Null, Then::Ask(id, wanted));
            }
            Then::Ask(id, wanted) => {
                let path = format!("/applications/deploy-tasks/{id}/sub-upgrade-tasks/");
                self.wait_for(path, wanted, Then::Made);
            }
            Then::Made => self.accepted.extend(task_of(body)),
        }
    }

    /// Where a sub-task is acted on: that depends on what it is.
    fn path(&self, path: &str, server: &mut Server, now_ms: &mut u64) -> Option<String> {
        let Some((task, action)) = path.strip_prefix("task ").and_then(|rest| rest.split_once(' ')) else {
            return Some(path.to_owned());
        };
        let (_, detail) = server.ask(now_ms, "GET", &format!("/tasks/{task}/"), &Value::Null, "read")?;
        let kind = detail["kind"].as_str()?.to_owned();
        let of = match detail["deploy_task_id"].as_i64() {
            Some(of) => format!("/applications/deploy-tasks/{of}/sub-{kind}-tasks/{task}"),
            None => format!("/tasks/{task}"),
        };
        let Some(which) = action.strip_prefix("cancel one ") else { return Some(format!("{of}/actions/{action}/")) };
        let one = detail["instances"][which.parse::<usize>().ok()?]["execution_id"].as_str()?;
        Some(format!("{of}/executions/{one}/actions/cancel/"))
    }

    /// Somebody says what became of everything that is lost.
    pub(crate) fn answer_lost(&mut self, server: &mut Server, now_ms: &mut u64, chance: &mut Chance) {
        let list = server.ask(now_ms, "GET", "/tasks/?unanswered=true&page_size=100", &Value::Null, "read");
        let Some((200, open)) = list else { return };
        for task in open["results"].as_array().into_iter().flatten() {
            let Some(id) = task_of(task) else { continue };
            let instances = task["instances"].as_array().into_iter().flatten();
            let lost = instances.filter(|one| one["status"] == "lost" && one["answer"].is_null());
            let lost: Vec<Value> = lost.map(|one| json!({"id": one["id"]})).collect();
            let said = *chance.one_of(&["done", "give_up"]);
            self.act(id, "answer", json!({"instances": lost, "answer": said, "reason": "looked at it"}));
        }
    }
}

/// Half of all wait until what they change is free, some before others.
fn wait_in_line(body: &mut Value, chance: &mut Chance) {
    if chance.percent(50) {
        body["if_busy"] = json!("wait");
        body["priority"] = json!(chance.below(3));
    }
}

/// The number of a sub-task in an answer.
pub(crate) fn task_of(body: &Value) -> Option<i64> {
    body["task_id"].as_str()?.parse().ok()
}

fn number_of(body: &Value) -> i64 {
    body["id"].as_i64().unwrap_or_else(|| panic!("no id in {body}"))
}
