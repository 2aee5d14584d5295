//! Deploy tasks, over HTTP.

mod approving;
mod creating;
mod delegating;
mod listing;
mod moving;
mod repeating;
mod repository;

use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer};
use serde_json::{Value, json};

pub(crate) use self::repository::Repository;

/// Where deploy tasks live.
pub(crate) const PATH: &str = "/applications/deploy-tasks/";

/// An application that may be deployed, with an instance on each of its hosts. No agent runs anywhere.
pub(crate) struct Shop {
    /// The administrator.
    pub(crate) admin: Client,
    /// Id of the application.
    pub(crate) application: i64,
    /// Ids of the hosts `web-1`, `web-2` ….
    pub(crate) hosts: Vec<i64>,
    /// Ids of the instances, in the order of the hosts.
    pub(crate) instances: Vec<i64>,
}

/// The id of a new thing.
pub(crate) fn id(body: &Value) -> i64 {
    body["id"].as_i64().expect("an id")
}

impl Shop {
    /// The application `shop` with instances on this many hosts; its settings are switched on and say nothing else.
    pub(crate) async fn new(server: &TestServer, hosts: usize) -> Self {
        let admin = server.admin();
        let application = id(&admin.post("/applications/", json!({"name": "shop"})).await.expect(200));
        let mut shop = Self { admin, application, hosts: Vec::new(), instances: Vec::new() };
        for number in 1..=hosts {
            let body = json!({"name": format!("web-{number}"), "host_type": "PHY_HOST"});
            let host = id(&shop.admin.post("/hosts/", body).await.expect(200));
            let path = format!("/applications/{application}/instances/");
            let instances = shop.admin.post(&path, json!([{"hostid": host}])).await.expect(200);
            shop.hosts.push(host);
            shop.instances.push(id(&instances[0]));
        }
        shop.set(json!({"enabled": true})).await;
        shop
    }

    /// Changes the deploy settings.
    pub(crate) async fn set(&self, change: Value) {
        let path = format!("/applications/{}/deploy-settings/", self.application);
        self.admin.patch(&path, change).await.expect(200);
    }

    /// A script for this hook, which the settings then run.
    pub(crate) async fn hook(&self, hook: &str, content: &str) -> i64 {
        let body = json!({"name": format!("the {hook}"), "language": "bash", "content": content});
        let script = id(&self.admin.post("/applications/deploy-scripts/", body).await.expect(200));
        self.set(json!({"lifecycle_hooks": {hook: {"script": {"id": script}}}})).await;
        script
    }

    /// The body of a deploy task.
    pub(crate) fn body(&self) -> Value {
        json!({"application_id": self.application, "version": "1.0", "level": "A", "package_source": "dist",
            "planned_exec_time": 1_714_600_000})
    }

    /// A new deploy task, which waits for its review.
    pub(crate) async fn task(&self) -> i64 {
        id(&self.admin.post(PATH, self.body()).await.expect(200))
    }

    /// A new deploy task that was approved and started.
    pub(crate) async fn started(&self) -> i64 {
        let task = self.task().await;
        self.act(task, "approve").await;
        self.act(task, "start").await;
        task
    }

    /// Does something to a deploy task.
    pub(crate) async fn act(&self, task: i64, action: &str) {
        self.admin.post(&action_path(task, action), Value::Null).await.expect(200);
    }

    /// The detail of a deploy task.
    pub(crate) async fn read(&self, task: i64) -> Value {
        self.admin.get(&format!("{PATH}{task}/")).await.expect(200)
    }
}

/// Address of an action.
pub(crate) fn action_path(task: i64, action: &str) -> String {
    format!("{PATH}{task}/actions/{action}/")
}

/// Gives a user rights on an application.
pub(crate) async fn grant(server: &TestServer, user_id: i64, application: i64, rights: &[&str]) {
    let permission: serde_json::Map<String, Value> =
        rights.iter().map(|right| ((*right).to_owned(), json!(true))).collect();
    let body = json!({"authorizations": [{"id": application, "permission": permission}]});
    server.admin().post(&format!("/users/{user_id}/application/perms/"), body).await.expect(200);
}

/// Actions in the audit about one deploy task, oldest first.
async fn audited(server: &TestServer, task: i64) -> Vec<String> {
    let sql = sql!(
        "SELECT action FROM audit_entries WHERE object_type = 'deploy_task' AND object_id = $1 AND list = 'general' \
         ORDER BY id"
    );
    server.read().await.values(sql, args![task]).await.expect("the audit")
}

/// How many deploy tasks there are.
async fn count(server: &TestServer) -> i64 {
    server.count(sql!("SELECT COUNT(*) FROM deploy_tasks"), args![]).await
}
