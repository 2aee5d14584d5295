//! Who has what, who waits for it, and who takes it away, over HTTP.

mod breaking;
mod listing;
mod waiting;

use drover_tests::wait_until;
use serde_json::{Value, json};

use crate::deploys::Shop;
use crate::tasks::{detail, references, upgrades};

/// The number in a receipt.
fn number(receipt: &Value) -> i64 {
    receipt["task_id"].as_str().expect("text").parse().expect("digits")
}

/// A new update of these instances that waits if it has to, with a priority.
async fn waiting(shop: &Shop, deploy_task: i64, instances: &[i64], priority: i64) -> i64 {
    let body = json!({"instances": references(instances), "if_busy": "wait", "priority": priority});
    number(&shop.admin.post(&upgrades(deploy_task), body).await.expect(200))
}

/// Whether an update is in the queue.
async fn is_queued(shop: &Shop, deploy_task: i64, task: i64) -> bool {
    let told = detail(shop, deploy_task, task).await;
    let queued = told["queued"].as_bool().expect("true or false");
    assert_eq!(queued, told["phase"] == "waiting" && told["status"] == "running", "{told}");
    queued
}

/// Waits until an update has left the queue for its instances.
async fn begins(shop: &Shop, deploy_task: i64, task: i64) {
    wait_until("a task to begin", async || detail(shop, deploy_task, task).await["phase"] == "instances").await;
}

async fn act(shop: &Shop, deploy_task: i64, task: i64, action: &str, body: Value) -> drover_tests::Answer {
    shop.admin.post(&format!("{}{task}/actions/{action}/", upgrades(deploy_task)), body).await
}

/// The numbers of the tasks in the queue, in their order.
async fn queue(shop: &Shop) -> Vec<i64> {
    let told = shop.admin.get("/queue/?page_size=100").await.expect(200);
    told["results"].as_array().expect("a list").iter().map(number).collect()
}
