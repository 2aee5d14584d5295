//! Sub-tasks of deploy tasks, over HTTP, while no agent is connected.

mod answering;
mod away;
mod blocked;
mod cancelling;
mod creating;
mod engine;
mod following;
mod large;
mod order;
mod output;
mod preparing;
mod previewing;
mod reading;
mod refusing;
mod rendering;
mod restarting;
mod retention;
mod retrying;
pub(crate) mod returning;
mod reverting;
pub(crate) mod rollouts;
mod secrets;
mod sessions;
mod troubled;
mod unanswered;
mod wake_ups;
mod walking;

use drover_kernel::{args, sql};
use drover_tests::TestServer;
use serde_json::{Value, json};

use crate::deploys::{PATH, Shop};

/// Where updates of a deploy task live.
pub(crate) fn upgrades(deploy_task: i64) -> String {
    format!("{PATH}{deploy_task}/sub-upgrade-tasks/")
}

/// Where reverts of a deploy task live.
fn reverts(deploy_task: i64) -> String {
    format!("{PATH}{deploy_task}/sub-revert-tasks/")
}

/// References to instances.
pub(crate) fn references(instances: &[i64]) -> Value {
    instances.iter().map(|id| json!({"id": id})).collect()
}

/// A new update of these instances; gives its number.
pub(crate) async fn upgrade(shop: &Shop, deploy_task: i64, instances: &[i64]) -> i64 {
    let receipt =
        shop.admin.post(&upgrades(deploy_task), json!({"instances": references(instances)})).await.expect(200);
    receipt["task_id"].as_str().expect("text").parse().expect("digits")
}

/// The detail of an update.
pub(crate) async fn detail(shop: &Shop, deploy_task: i64, task: i64) -> Value {
    shop.admin.get(&format!("{}{task}/", upgrades(deploy_task))).await.expect(200)
}

/// Status of every instance.
pub(crate) async fn instances(shop: &Shop) -> Vec<String> {
    let mut found = Vec::new();
    for instance in &shop.instances {
        let path = format!("/applications/{}/instances/{instance}/", shop.application);
        found.push(shop.admin.get(&path).await.expect(200)["status"].as_str().expect("a status").to_owned());
    }
    found
}

/// How many tasks, executions and audit entries there are.
async fn counts(server: &TestServer) -> [i64; 3] {
    [
        server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await,
        server.count(sql!("SELECT COUNT(*) FROM executions"), args![]).await,
        server.count(sql!("SELECT COUNT(*) FROM audit_entries"), args![]).await,
    ]
}

/// What each execution of a task would be told, in their order.
async fn entries(server: &TestServer, task: i64) -> Vec<Value> {
    let sql = sql!("SELECT entry FROM executions WHERE task_id = $1 ORDER BY ordinal");
    let texts: Vec<String> = server.read().await.values(sql, args![task]).await.expect("the executions");
    texts.iter().map(|text| serde_json::from_str(text).expect("an entry")).collect()
}
