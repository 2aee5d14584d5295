//! Schedules, over HTTP, while no agent is connected: what they run waits, and is over when somebody cancels it.

mod deploying;
mod late;
mod refusing;
mod running;
mod scripts;

use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_tests::{TestServer, wait_until};
use serde_json::{Value, json};

use crate::deploys::{Shop, id};

const PATH: &str = "/schedules/";
const MINUTE: Duration = Duration::from_secs(60);

/// A shop whose instances can be started and stopped.
async fn shop(server: &TestServer, hosts: usize) -> Shop {
    let shop = Shop::new(server, hosts).await;
    let commands = json!({"startup_cmd": "start", "stop_cmd": "stop", "pid_path": ""});
    shop.admin.patch(&format!("/applications/{}/", shop.application), commands).await.expect(200);
    shop
}

/// The body of a schedule that restarts all instances every ten minutes.
fn body(shop: &Shop, more: Value) -> Value {
    let mut body = json!({"name": "nightly", "cron": "*/10 * * * *",
        "what": {"kind": "restart", "application_id": shop.application, "timeout": 86_400}});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// Makes such a schedule; its next moment is known.
async fn schedule(server: &TestServer, shop: &Shop, more: Value) -> i64 {
    let id = id(&shop.admin.post(PATH, body(shop, more)).await.expect(200));
    look(server).await;
    id
}

async fn look(server: &TestServer) {
    Box::pin(sweep_once(server.kernel(), false)).await.expect("a round");
}

/// Time passes, and somebody looks.
async fn pass(server: &TestServer, minutes: u32) {
    server.advance(MINUTE * minutes);
    look(server).await;
}

async fn runs(shop: &Shop, schedule: i64) -> Vec<Value> {
    let page = shop.admin.get(&format!("{PATH}{schedule}/runs/?page_size=100")).await.expect(200);
    page["results"].as_array().expect("a page").clone()
}

/// What became of each moment, the oldest first: its minute and its state.
async fn told(shop: &Shop, schedule: i64) -> Vec<String> {
    let told = |run: &Value| {
        let moment = run["moment"].as_str().expect("a time");
        format!("{} {}", &moment[11..16], run["state"].as_str().expect("a state"))
    };
    runs(shop, schedule).await.iter().rev().map(told).collect()
}

/// Waits until this has become of the moments, looking again and again.
async fn wait_for(server: &TestServer, shop: &Shop, schedule: i64, expected: &[&str]) {
    let seen = std::cell::RefCell::new(Vec::new());
    let done = async || {
        look(server).await;
        *seen.borrow_mut() = told(shop, schedule).await;
        *seen.borrow() == expected
    };
    wait_until(&format!("{expected:?}"), done).await;
}

/// The task of the newest moment.
async fn newest_task(shop: &Shop, schedule: i64) -> i64 {
    let runs = runs(shop, schedule).await;
    runs[0]["task_id"].as_str().expect("a task").parse().expect("digits")
}

/// Ends a task by hand.
async fn end(shop: &Shop, task: i64) {
    shop.admin.post(&format!("/tasks/{task}/actions/cancel/"), json!({})).await.expect(200);
    wait_until("the end of the task", async || {
        shop.admin.get(&format!("/tasks/{task}/")).await.expect(200)["status"] == "failed"
    })
    .await;
}
