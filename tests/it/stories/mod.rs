//! Stories with real programs: what a person relies on, from the API down to the files on a host.
//!
//! Each story has a server, agents, a repository and folders of its own, and waits for what it expects to happen.

mod archives;
mod backup;
mod canaries;
mod command_line;
mod crowds;
mod deploying;
mod enrolment;
mod failures;
mod full_disks;
mod instances;
mod interruptions;
mod operations;
mod order;
mod outages;
mod output;
mod queue;
mod reboots;
mod releases;
mod restarts;
mod retention;
mod reverting;
mod rollouts;
mod schedules;
mod scripts;
mod secrets;
mod shared;
mod sources;
mod steady;
mod torture;
mod viewers;
mod volume;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use drover_tests::processes::{Api, Closing, Processes, Viewer};
use drover_tests::{Engine, wait_until};
use serde_json::{Value, json};

/// An application on hosts of this machine, deployed from a repository of its own.
struct Shop {
    processes: Processes,
    application: i64,
    /// Host and instance.
    instances: Vec<(String, i64)>,
}

/// A sub-task that was made.
struct SubTask {
    path: String,
    /// Address of its output.
    channel: String,
}

/// What watching from the beginning to the end gives.
struct Output {
    text: String,
    closing: Closing,
}

impl Shop {
    /// A server, an agent for each host, and an application `shop` that is deployed from an empty repository.
    async fn open(engine: Engine, hosts: &[&str]) -> Self {
        Self::open_on(Processes::start(engine).await, hosts).await
    }

    /// As [`Shop::open`], on a server that runs already.
    async fn open_on(mut processes: Processes, hosts: &[&str]) -> Self {
        let mut host_ids = Vec::new();
        for host in hosts {
            host_ids.push(processes.add_agent(host).await);
        }
        Self::open_with(processes, host_ids).await
    }

    /// As [`Shop::open`], on a server whose agents are connected.
    async fn open_with(processes: Processes, host_ids: Vec<i64>) -> Self {
        let api = processes.api();
        let application = id(&api.post("/applications/", json!({"name": "shop"})).await.expect(200));
        let wanted: Vec<Value> = host_ids.iter().map(|id| json!({"hostid": id})).collect();
        let made = api.post(&format!("/applications/{application}/instances/"), wanted.into()).await.expect(200);
        let instances = made.as_array().expect("instances").iter();
        let instances = instances.map(|instance| (text(&instance["hostname"]), id(instance))).collect();
        let shop = Self { processes, application, instances };
        fs::create_dir(shop.repository()).expect("a folder");
        git(&shop.repository(), &["init", "--quiet", "--initial-branch=main"]);
        let deploy_path = format!("{}/apps/{{{{ host.name }}}}/shop", shop.folder().display());
        let repository = json!({"type": "GIT", "url": shop.repository(), "branch": "main"});
        shop.set(json!({"enabled": true, "repository": repository, "deploy_path": deploy_path})).await;
        shop
    }

    /// As [`Shop::open`], on SQLite, with the versions `v1` and `v2` of a page.
    async fn with_versions(hosts: &[&str]) -> Self {
        let shop = Self::open(Engine::Sqlite, hosts).await;
        shop.commit("v1", &[("index.html", "one\n")]);
        shop.commit("v2", &[("index.html", "two\n")]);
        shop
    }

    fn api(&self) -> &Api {
        self.processes.api()
    }

    fn folder(&self) -> &Path {
        self.processes.folder()
    }

    fn repository(&self) -> PathBuf {
        self.folder().join("repository")
    }

    fn deploy_path(&self, host: &str) -> PathBuf {
        self.folder().join("apps").join(host).join("shop")
    }

    /// A file of the release in use.
    fn current(&self, host: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.deploy_path(host).join("current").join(file)).ok()
    }

    /// Writes files into the repository, commits everything and names it.
    fn commit(&self, version: &str, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = self.repository().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, content).expect("a file");
        }
        self.commit_all(version);
    }

    fn commit_all(&self, version: &str) {
        git(&self.repository(), &["add", "--all"]);
        git(&self.repository(), &["commit", "--quiet", "--message", version]);
        git(&self.repository(), &["tag", version]);
    }

    /// Changes the deploy settings.
    async fn set(&self, change: Value) {
        self.api().patch(&format!("/applications/{}/deploy-settings/", self.application), change).await.expect(200);
    }

    /// Makes a script and hangs it up as this hook.
    async fn hook(&self, name: &str, language: &str, content: &str) {
        let script = json!({"name": name, "language": language, "content": content});
        let script = id(&self.api().post("/applications/deploy-scripts/", script).await.expect(200));
        self.set(json!({"lifecycle_hooks": {name: {"script": {"id": script}}}})).await;
    }

    /// Makes a deploy task, approves it and starts it.
    async fn deploy_task(&self, version: &str) -> i64 {
        let new = json!({
            "application_id": self.application, "version": version, "level": "B", "package_source": "",
            "planned_exec_time": 1,
        });
        let task = id(&self.api().post("/applications/deploy-tasks/", new).await.expect(200));
        for action in ["approve", "start"] {
            let path = format!("/applications/deploy-tasks/{task}/actions/{action}/");
            self.api().post(&path, Value::Null).await.expect(200);
        }
        task
    }

    /// What a sub-task on all instances asks for.
    fn sub_task(&self, version: &str) -> Value {
        let instances: Vec<Value> = self.instances.iter().map(|(_, id)| json!({"id": id})).collect();
        json!({"instances": instances, "version": version})
    }

    async fn make(&self, kind: &str, task: i64, body: Value) -> SubTask {
        let path = format!("/applications/deploy-tasks/{task}/sub-{kind}-tasks/");
        let made = self.api().post(&path, body).await.expect(200);
        SubTask { path: format!("{path}{}/", text(&made["task_id"])), channel: text(&made["task_output"]) }
    }

    /// Begins to deploy a version to all instances.
    async fn deploy(&self, version: &str) -> SubTask {
        let task = self.deploy_task(version).await;
        self.make("upgrade", task, self.sub_task(version)).await
    }

    /// Begins to take all instances back to a version.
    async fn revert(&self, version: &str) -> SubTask {
        let task = self.deploy_task(version).await;
        self.make("revert", task, self.sub_task(version)).await
    }

    /// Waits until a sub-task is over and gives its detail.
    async fn end_of(&self, sub_task: &SubTask) -> Value {
        let mut detail = Value::Null;
        wait_until("a sub-task to end", async || {
            detail = self.api().try_get(&sub_task.path).await.unwrap_or_default();
            !detail.is_null() && detail["status"] != "running"
        })
        .await;
        detail
    }

    /// Deploys a version to all instances, which has to go well.
    async fn deployed(&self, version: &str) -> SubTask {
        let sub_task = self.deploy(version).await;
        let detail = self.end_of(&sub_task).await;
        assert_eq!(detail["status"], "finished", "{detail:#}");
        sub_task
    }

    /// Watches all of a sub-task's output; `query` begins with `?` or is empty.
    async fn output(&self, sub_task: &SubTask, query: &str) -> Output {
        let mut viewer = Viewer::open(&format!("{}{query}", sub_task.channel), self.api().token()).await;
        let (text, closing) = viewer.rest().await;
        Output { text, closing }
    }

    /// Status and version of a host's instance.
    async fn instance(&self, host: &str) -> (String, Option<String>) {
        let (_, id) = self.instances.iter().find(|(name, _)| name == host).expect("an instance");
        let path = format!("/applications/{}/instances/{id}/", self.application);
        let instance = self.api().get(&path).await.expect(200);
        (text(&instance["status"]), instance["version"].as_str().map(str::to_owned))
    }
}

impl Output {
    /// The records of a view in JSON.
    fn records(&self) -> Vec<Value> {
        self.text.lines().map(|line| serde_json::from_str(line).expect("a JSON record")).collect()
    }
}

/// What scripts wrote to standard output on a host, of a view in JSON.
fn stdout_of(records: &[Value], host: &str) -> String {
    let of_host = records.iter().filter(|record| record["host"] == host && record["stream"] == "stdout");
    of_host.map(|record| text(&record["text"])).collect()
}

/// The part of a sub-task's detail that is about a host.
fn on_host<'a>(detail: &'a Value, host: &str) -> &'a Value {
    let instances = detail["instances"].as_array().expect("instances");
    instances.iter().find(|instance| instance["hostname"] == host).expect("an instance")
}

/// Names and states of the steps of an execution.
fn steps(execution: &Value) -> Vec<(String, String)> {
    let steps = execution["steps"].as_array().cloned().unwrap_or_default();
    steps.iter().map(|step| (text(&step["name"]), text(&step["state"]))).collect()
}

fn id(object: &Value) -> i64 {
    object["id"].as_i64().unwrap_or_else(|| panic!("no id in {object}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Runs git in a folder, whatever the machine's own settings are, and gives what it says.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(folder).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    command.args(["-c", "user.name=Story", "-c", "user.email=story@example.com", "-c", "commit.gpgSign=false"]);
    command.args(["-c", "safe.directory=*"]);
    let output = command.args(arguments).output().expect("git starts");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}
