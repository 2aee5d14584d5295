//! Sub-tasks whose source is still being fetched: they can be ended and changed like any other.

use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{detail, entries, instances, references, upgrade, upgrades};
use crate::deploys::{Repository, Shop};

/// A shop whose repository takes connections and never answers, and an update that waits for it.
async fn waiting(server: &TestServer, hosts: usize) -> (TcpListener, Shop, i64, i64) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/shop.git", listener.local_addr().expect("an address"));
    let shop = Shop::new(server, hosts).await;
    shop.set(json!({"repository": {"type": "GIT", "url": url}, "deploy_path": "/srv/shop"})).await;
    let deploy_task = shop.started().await;
    let body = json!({"instances": references(&shop.instances), "rollout": {"batch": 1}});
    let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
    let task = receipt["task_id"].as_str().expect("text").parse().expect("digits");
    assert_eq!(detail(&shop, deploy_task, task).await["phase"], "preparing");
    (listener, shop, deploy_task, task)
}

async fn act(shop: &Shop, deploy_task: i64, task: i64, action: &str, body: Value) {
    shop.admin.post(&format!("{}{task}/actions/{action}/", upgrades(deploy_task)), body).await.expect(200);
}

/// What stopping leaves while the source is being fetched.
async fn stopped(server: &TestServer, action: &str, reason: &str) {
    let (listener, shop, deploy_task, task) = waiting(server, 1).await;
    let (mut connection, _) = listener.accept().await.expect("the fetch");
    act(&shop, deploy_task, task, action, json!({"reason": "wrong one"})).await;
    wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;
    let told = detail(&shop, deploy_task, task).await;
    assert_eq!((&told["error"], &told["instances"][0]["status"]), (&json!(reason), &json!("cancelled")));
    assert_eq!(instances(&shop).await, ["stopped"]);
    // The fetch is given up, and nobody asks again.
    tokio::io::copy(&mut connection, &mut tokio::io::sink()).await.expect("the end of the fetch");
    sweep_once(server.kernel(), true).await.expect("a round");
    assert_eq!(detail(&shop, deploy_task, task).await, told);
    shop.act(deploy_task, "close").await;
}

both_engines! {
    async fn a_cancelled_task_ends_without_its_source(server: TestServer) {
        Box::pin(stopped(&server, "cancel", "cancelled by admin: wrong one")).await;
    }

    async fn a_refused_task_ends_without_its_source(server: TestServer) {
        Box::pin(stopped(&server, "refuse", "refused by admin: wrong one")).await;
    }

    async fn what_is_taken_out_meanwhile_stays_out(server: TestServer) {
        let (listener, shop, deploy_task, task) = waiting(&server, 2).await;
        let second = json!({"instances": references(&shop.instances[1..])});
        act(&shop, deploy_task, task, "skip", second).await;
        let Shop { admin, application, hosts, instances: ids } = shop;
        drop(admin);
        // The repository answers after the server was started anew; until then it is there and says nothing: one that
        // hung up would end the task.
        let repository = Repository::new();
        let change = sql!("UPDATE tasks SET source = $2 WHERE id = $1");
        let source = json!({"url": repository.settings()["url"], "branch": "main", "version": "main", "path": ""});
        server.run(change, args![task, source]).await;
        let server = server.restarted().await;
        drop(listener);
        let shop = Shop { admin: server.admin(), application, hosts, instances: ids };
        wait_until("the instances", async || {
            sweep_once(server.kernel(), true).await.expect("a round");
            let told = detail(&shop, deploy_task, task).await;
            assert_ne!(told["phase"], "over", "{told:#}");
            told["phase"] == "instances"
        })
        .await;
        let told = detail(&shop, deploy_task, task).await;
        let states: Vec<&Value> = (0..2).map(|one| &told["instances"][one]["status"]).collect();
        assert_eq!(states, ["queued", "cancelled"], "{told:#}");
        let steps = entries(&server, task).await[1]["steps"].to_string();
        assert!(steps.contains("fetch"), "the plan is whole: {steps}");
        drop(shop.admin);
    }

    async fn what_was_there_before_goes_only_after_health_is_proved(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let repository = Repository::new();
        repository.commit("dist/index.html", "one\n");
        shop.set(json!({"repository": repository.settings(), "deploy_path": "/srv/shop", "keep_backups": 0})).await;
        shop.hook("pre_exec", "stop").await;
        shop.hook("post_exec", "start").await;
        let deploy_task = shop.started().await;
        let rollout = json!({"health": {"command": "true"}, "auto_revert": true});
        let body = json!({"instances": references(&shop.instances), "version": "main", "rollout": rollout});
        let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
        let task = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        wait_until("the plan", async || {
            sweep_once(server.kernel(), true).await.expect("a round");
            let told = detail(&shop, deploy_task, task).await;
            assert_ne!(told["phase"], "over", "{told:#}");
            told["phase"] == "instances"
        })
        .await;
        let entry = &entries(&server, task).await[0];
        let steps = entry["steps"].as_array().expect("steps");
        let kinds: Vec<&str> = steps.iter().filter_map(|step| step["kind"].as_str()).collect();
        assert_eq!(kinds, ["fetch", "script", "unpack", "switch", "script", "health", "prune"], "{entry}");
        assert_eq!((&steps[1]["name"], &steps[4]["name"]), (&json!("pre_exec"), &json!("post_exec")));
        assert_eq!(steps[6]["keep"], 0);
    }

    async fn nobody_holds_a_task_for_ever(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        act(&shop, deploy_task, task, "pause", json!({})).await;
        server.advance(Duration::from_secs(7 * 86_400 - 60));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "running");
        server.advance(Duration::from_secs(120));
        sweep_once(server.kernel(), true).await.expect("a round");
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["instances"][0]["status"]), (&json!("failed"), &json!("timed_out")));
        assert_eq!(told["instances"][0]["error"], "it was held for too long");
        assert_eq!(instances(&shop).await, ["stopped"]);
    }
}
