//! The load: people who deploy, cancel, hold and try again, with hooks that write down what they say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use drover_shared::Digest;
use serde_json::{Value, json};

use super::Chance;
use crate::processes::{Api, Processes};
use crate::waiting::wait_within;

/// Longest time until a call is answered, whatever happens to the server meanwhile.
const CALL: Duration = Duration::from_secs(120);
/// Longest time until a sub-task is over.
const TASK: Duration = Duration::from_secs(240);
/// Versions in the repository.
const VERSIONS: usize = 4;

/// Appends what it says to a file of its own before it says it. What it does follows from the execution's id.
const HOOK: &str = r#"
import os, random, subprocess, sys, time
name = os.environ["DROVER_EXECUTION_ID"] + "." + os.environ["DROVER_ATTEMPT"]
step = os.environ["DROVER_STEP"]
with open("FOLDER/starts/" + name + "." + step, "a") as starts:
    starts.write("started\n")
chance = random.Random(name + step)
kept = open("FOLDER/kept/" + name, "ab", buffering=0)
def say(data):
    kept.write(data)
    while data:
        data = data[os.write(1, data):]
kind = chance.random()
if kind < 0.3:
    family = "trap '' TERM; sleep 600 & (sleep 600 &); (setsid sleep 600 &); wait"
    nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(["setsid", "sh", "-c", family], **nothing)
lines = chance.randrange(1, 400)
pause = chance.choice([0, 0, 0.002, 0.01])
for number in range(lines):
    width = chance.choice([0, 7, 80, 80, 3000])
    say(("%s %06d \x1b[3%dm\U0001f600%s\x1b[0m\n" % (step, number, number % 8, "=" * width)).encode())
    if pause and number % 4 == 0:
        time.sleep(pause)
sys.exit(3 if kind > 0.93 else 0)
"#;

/// Applications on hosts, and where their hooks write.
pub(super) struct Fleet {
    api: Api,
    folder: PathBuf,
    applications: Vec<Application>,
}

struct Application {
    id: i64,
    instances: Vec<i64>,
}

/// A sub-task that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Its number.
    pub(super) id: String,
    /// Where it is acted on.
    path: String,
}

impl Asked {
    fn new(sub_tasks: &str, receipt: &Value) -> Self {
        let id = text(&receipt["task_id"]);
        Self { path: format!("{sub_tasks}{id}/"), id }
    }
}

impl Fleet {
    /// Makes everything that is to be deployed.
    pub(super) async fn prepare(processes: &Processes, hosts: &[i64], applications: usize) -> Self {
        let (api, folder) = (processes.api().clone(), processes.folder().to_owned());
        for name in ["starts", "kept", "repository"] {
            fs::create_dir(folder.join(name)).expect("a folder");
        }
        let repository = folder.join("repository");
        git(&repository, &["init", "--quiet", "--initial-branch=main"]);
        for version in 0..VERSIONS {
            fs::write(repository.join("page"), format!("v{version}\n")).expect("a file");
            fs::write(repository.join(format!("only-{version}")), vec![b'x'; 50_000 * version]).expect("a file");
            git(&repository, &["add", "--all"]);
            git(&repository, &["commit", "--quiet", "--message", "change"]);
            git(&repository, &["tag", &format!("v{version}")]);
        }
        let hook = HOOK.replace("FOLDER", &folder.display().to_string());
        let script = json!({"name": "hook", "language": "python", "content": hook});
        let script = &api.post("/applications/deploy-scripts/", script).await.expect(200)["id"];
        let mut made = Vec::new();
        for number in 0..applications {
            let name = format!("app-{number}");
            let id = api.post("/applications/", json!({"name": name})).await.expect(200)["id"].as_i64().expect("an id");
            let on: Vec<Value> = hosts.iter().map(|host| json!({"hostid": host})).collect();
            let instances = api.post(&format!("/applications/{id}/instances/"), on.into()).await.expect(200);
            let instances = instances.as_array().expect("instances").iter();
            let instances = instances.map(|one| one["id"].as_i64().expect("an id")).collect();
            let settings = json!({
                "enabled": true, "timeout": 120,
                "repository": {"type": "GIT", "url": repository, "branch": "main"},
                "deploy_path": format!("{}/apps/{{{{ host.name }}}}/{name}", folder.display()),
                "lifecycle_hooks": {"pre_exec": {"script": {"id": script}}, "post_exec": {"script": {"id": script}}},
            });
            api.patch(&format!("/applications/{id}/deploy-settings/"), settings).await.expect(200);
            made.push(Application { id, instances });
        }
        Self { api, folder, applications: made }
    }

    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    /// Where hooks write.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// One person's work until it is over. Gives what was asked for.
    pub(super) async fn deploy_again_and_again(
        &self,
        application: usize,
        mut chance: Chance,
        over: &AtomicBool,
    ) -> Vec<Asked> {
        let mut asked = Vec::new();
        let mut round = 0;
        while !over.load(Ordering::Relaxed) {
            round += 1;
            let key = format!("torture-{application}-{round}-{:016x}", chance.next());
            let Some((sub_tasks, sub_task)) = self.deploy(application, &mut chance, &key).await else {
                // What reverts by itself is at it: somebody else's turn.
                tokio::time::sleep(Duration::from_millis(300)).await;
                continue;
            };
            asked.push(sub_task.clone());
            tokio::time::sleep(chance.milliseconds(0, 1_500)).await;
            self.meddle(&sub_task, &mut chance, &key).await;
            let detail = self.end_of(&sub_task.id).await;
            self.answer(&sub_task, &detail, &mut chance, &key).await;
            if detail["status"] == "failed" && chance.percent(50) {
                let retried = self.post(&format!("{}actions/retry/", sub_task.path), json!({}), &key).await;
                if retried.0 == 200 {
                    let again = Asked::new(&sub_tasks, &retried.1);
                    let detail = self.end_of(&again.id).await;
                    self.answer(&again, &detail, &mut chance, &key).await;
                }
            }
        }
        asked
    }

    /// Asks for one sub-task; none while another change is at work.
    async fn deploy(&self, application: usize, chance: &mut Chance, key: &str) -> Option<(String, Asked)> {
        let version = format!("v{}", chance.below(u64::try_from(VERSIONS).expect("few")));
        let rollout = match chance.below(5) {
            0 | 1 => Value::Null,
            2 => json!({"batch": 1}),
            3 => json!({"batch": 1, "max_failures": 0, "auto_revert": true}),
            _ => json!({"batch": "50%", "max_failures": 1}),
        };
        let task = self.deploy_task(application, &version, key).await;
        let path = format!("/applications/deploy-tasks/{task}/sub-upgrade-tasks/");
        let instances: Vec<Value> =
            self.applications[application].instances.iter().map(|id| json!({"id": id})).collect();
        let body = json!({"instances": instances, "version": version, "rollout": rollout});
        let (status, made) = self.post(&path, body, key).await;
        match status {
            200 => {
                let asked = Asked::new(&path, &made);
                Some((path, asked))
            }
            409 => {
                // What takes back by itself leaves questions too.
                self.answer_all(key).await;
                None
            }
            _ => panic!("{status}: {made}"),
        }
    }

    /// Makes a deploy task, approves it and starts it.
    async fn deploy_task(&self, application: usize, version: &str, key: &str) -> i64 {
        let new = json!({
            "application_id": self.applications[application].id, "version": version, "level": "B",
            "package_source": "", "planned_exec_time": 1,
        });
        let made = self.post("/applications/deploy-tasks/", new, key).await;
        assert_eq!(made.0, 200, "{}", made.1);
        let task = made.1["id"].as_i64().expect("an id");
        for action in ["approve", "start"] {
            let path = format!("/applications/deploy-tasks/{task}/actions/{action}/");
            let answer = self.post(&path, Value::Null, key).await;
            assert_eq!(answer.0, 200, "{action}: {}", answer.1);
        }
        task
    }

    /// What people do to a sub-task that runs.
    async fn meddle(&self, sub_task: &Asked, chance: &mut Chance, key: &str) {
        let act = async |action: &str| {
            let (status, answer) = self.post(&format!("{}actions/{action}/", sub_task.path), json!({}), key).await;
            // Each may come too late.
            assert!(matches!(status, 200 | 409), "{action}: {status} {answer}");
        };
        if chance.percent(30) {
            act("cancel").await;
        } else if chance.percent(15) {
            act("pause").await;
            tokio::time::sleep(chance.milliseconds(0, 1_000)).await;
            act("resume").await;
        }
    }

    /// Says what became of what is lost, so that others may go on.
    async fn answer(&self, sub_task: &Asked, detail: &Value, chance: &mut Chance, key: &str) {
        let said = *chance.one_of(&["done", "give_up", "retry"]);
        let lost: Vec<Value> = lost(detail);
        if lost.is_empty() {
            return;
        }
        let mut body = json!({"instances": lost, "reason": "a supervisor was killed"});
        let action = if said == "retry" { "retry" } else { "answer" };
        if said != "retry" {
            body["answer"] = said.into();
        }
        let (status, answer) =
            self.post(&format!("{}actions/{action}/", sub_task.path), body, &format!("{key}-{said}")).await;
        assert!(matches!(status, 200 | 409), "{said}: {status} {answer}");
        if said == "retry" && status == 200 {
            self.end_of(&text(&answer["task_id"])).await;
        }
    }

    /// Gives up whatever is lost and was not answered.
    async fn answer_all(&self, key: &str) {
        let Some(open) = self.api.try_get("/tasks/?unanswered=true&page_size=100").await else { return };
        for task in open["results"].as_array().into_iter().flatten() {
            let kind = task["kind"].as_str().unwrap_or_default();
            let (id, of) = (text(&task["task_id"]), &task["deploy_task_id"]);
            let path = format!("/applications/deploy-tasks/{of}/sub-{kind}-tasks/{id}/actions/answer/");
            let body = json!({"instances": lost(task), "answer": "give_up", "reason": "a supervisor was killed"});
            // Its person may answer at the same time.
            let _ = self.post(&path, body, &format!("{key}-{id}")).await;
        }
    }

    /// The same request with the same key is the same request.
    async fn post(&self, path: &str, body: Value, key: &str) -> (u16, Value) {
        let key = format!("{key}-{}", Digest::of(path.as_bytes()).short());
        let answer = self.api.post_until_answered(path, body, &key, CALL).await;
        (answer.status, answer.body)
    }

    async fn end_of(&self, sub_task: &str) -> Value {
        let mut detail = Value::Null;
        wait_within(TASK, &format!("sub-task {sub_task} to end"), async || {
            detail = self.api.try_get(&format!("/tasks/{sub_task}/")).await.unwrap_or_default();
            !detail.is_null() && detail["status"] != "running"
        })
        .await;
        detail
    }

    /// Every sub-task that there is, also those that were made from others, once all of them are over.
    pub(super) async fn all(&self) -> Vec<Value> {
        let mut ids = BTreeSet::new();
        let mut page = 1;
        loop {
            let path = format!("/tasks/?page_size=100&page={page}");
            let listed = self.api.get(&path).await.expect(200);
            let results = listed["results"].as_array().expect("a list");
            ids.extend(results.iter().map(|one| text(&one["task_id"])));
            if listed["next"].is_null() {
                break;
            }
            page += 1;
        }
        let mut all = Vec::new();
        for id in ids {
            all.push(self.end_of(&id).await);
        }
        all
    }

    /// Deploys without anybody's chance, which has to go well.
    pub(super) async fn deploy_well(&self, application: usize) {
        let hooks = json!({"lifecycle_hooks": {"pre_exec": null, "post_exec": null}});
        let id = self.applications[application].id;
        self.answer_all("torture-last").await;
        self.api.patch(&format!("/applications/{id}/deploy-settings/"), hooks).await.expect(200);
        let key = format!("torture-last-{application}");
        let task = self.deploy_task(application, "v1", &key).await;
        let instances: Vec<Value> =
            self.applications[application].instances.iter().map(|id| json!({"id": id})).collect();
        let path = format!("/applications/deploy-tasks/{task}/sub-upgrade-tasks/");
        let made = self.api.post(&path, json!({"instances": instances, "version": "v1"})).await.expect(200);
        let detail = self.end_of(&text(&made["task_id"])).await;
        assert_eq!(detail["status"], "finished", "after all of it: {detail:#}");
    }
}

/// Instances of a sub-task that are lost, and about which nobody has said anything.
fn lost(detail: &Value) -> Vec<Value> {
    let instances = detail["instances"].as_array().into_iter().flatten();
    let open = instances.filter(|one| one["status"] == "lost" && one["answer"].is_null());
    open.map(|one| json!({"id": one["id"]})).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

fn git(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.current_dir(folder).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    command.args(["-c", "user.name=Torture", "-c", "user.email=torture@example.com", "-c", "commit.gpgSign=false"]);
    let output = command.args(arguments).output().expect("git starts");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
