//! The engine in process: tasks whose time runs out, whose source cannot be had, and a server that starts anew.

use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{detail, entries, instances, upgrade, upgrades};
use crate::deploys::{PATH, Shop, action_path};

/// Moves the clock and has the engine look after everything.
async fn pass(server: &TestServer, seconds: u64) {
    server.advance(Duration::from_secs(seconds));
    sweep_once(server.kernel(), true).await.expect("a round");
}

/// State of each execution with the reason.
fn states(told: &Value, list: &str) -> Vec<(String, bool)> {
    let states = told[list].as_array().expect("an array").iter();
    states.map(|one| (one["status"].as_str().expect("a state").to_owned(), one["error"].is_string())).collect()
}

/// Waits until a task is at this phase.
async fn wait_for_phase(shop: &Shop, deploy_task: i64, task: i64, phase: &str) {
    wait_until(phase, async || detail(shop, deploy_task, task).await["phase"] == phase).await;
}

both_engines! {
    async fn a_task_waits_for_its_agent_until_its_time_is_over(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_for_phase(&shop, deploy_task, task, "instances").await;
        wait_until("the remark in the output", async || {
            let told = detail(&shop, deploy_task, task).await;
            told["output"].as_str().is_some_and(|text| text.contains("web-2: waiting"))
        })
        .await;
        pass(&server, 119).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], states(&told, "instances")[0].0.as_str()), (&json!("running"), "queued"));
        // While it runs nobody can close its deploy task.
        shop.admin.post(&action_path(deploy_task, "close"), Value::Null).await.expect_error(409, 10006);
        pass(&server, 2).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["phase"]), (&json!("failed"), &json!("over")));
        assert_eq!(told["finished_time"], "2024-05-01T12:02:01+00:00");
        assert_eq!(states(&told, "instances"), [("timed_out".to_owned(), true), ("timed_out".to_owned(), true)]);
        // Nothing was touched, and all is free again.
        assert_eq!(instances(&shop).await, ["stopped", "stopped"]);
        upgrade(&shop, deploy_task, &shop.instances).await;
        pass(&server, 121).await;
        shop.act(deploy_task, "close").await;
    }

    async fn an_agent_that_never_comes_back_leaves_a_lost_execution(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_for_phase(&shop, deploy_task, task, "instances").await;
        server.run(sql!("UPDATE executions SET state = 'running' WHERE task_id = $1"), args![task]).await;
        pass(&server, 150).await;
        // The agent may still come and say how it ended.
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "running");
        pass(&server, 60).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["status"], "failed");
        assert_eq!(states(&told, "instances"), [("lost".to_owned(), true)]);
        assert_eq!(instances(&shop).await, ["stopped"]);
    }

    async fn after_a_first_hook_that_never_ran_nothing_else_runs(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("global_pre_exec", "true").await;
        shop.hook("global_post_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_for_phase(&shop, deploy_task, task, "global_pre").await;
        pass(&server, 121).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["status"], "failed");
        let hooks: Vec<String> = states(&told, "global_hooks").into_iter().map(|(state, _)| state).collect();
        assert_eq!(hooks, ["timed_out", "cancelled"]);
        assert!(states(&told, "instances").iter().all(|(state, told)| state == "timed_out" && *told));
        assert_eq!(instances(&shop).await, ["stopped", "stopped"]);
    }

    async fn a_last_hook_is_not_waited_for_without_end(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("global_post_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_for_phase(&shop, deploy_task, task, "instances").await;
        pass(&server, 121).await;
        // The instances are over; the last hook gets its turn for a while longer.
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["phase"]), (&json!("running"), &json!("global_post")));
        pass(&server, 180).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["phase"]), (&json!("failed"), &json!("over")));
        assert_eq!(states(&told, "global_hooks"), [("timed_out".to_owned(), true)]);
        shop.act(deploy_task, "close").await;
    }

    async fn a_source_that_cannot_be_had_fails_the_task_with_its_reason(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let nowhere = tempfile::tempdir().expect("a folder");
        let url = format!("file://{}", nowhere.path().join("shop.git").display());
        shop.set(json!({"repository": {"type": "GIT", "url": url}, "deploy_path": "/srv/shop"})).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_for_phase(&shop, deploy_task, task, "over").await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["status"], "failed");
        let reason = told["error"].as_str().expect("a reason");
        assert!(!reason.is_empty() && told["output"].as_str().is_some_and(|text| text.contains(reason)), "{told}");
        assert_eq!(states(&told, "instances"), [("cancelled".to_owned(), true)]);
        assert_eq!(instances(&shop).await, ["stopped"]);
        assert_eq!(shop.read(deploy_task).await["sub_tasks"][0]["status"], "failed");
    }

    async fn a_server_that_starts_anew_goes_on(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "echo {{ host.name }}").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let before = entries(&server, task).await;
        let Shop { admin, application, hosts, instances: ids } = shop;
        drop(admin);
        let server = server.restarted().await;
        let shop = Shop { admin: server.admin(), application, hosts, instances: ids };
        sweep_once(server.kernel(), true).await.expect("a round");
        wait_for_phase(&shop, deploy_task, task, "instances").await;
        assert_eq!(entries(&server, task).await, before);
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "running");
        let server = {
            drop(shop.admin);
            server.restarted().await
        };
        let shop = Shop { admin: server.admin(), ..shop };
        pass(&server, 121).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["status"], "failed");
        assert_eq!(states(&told, "instances"), [("timed_out".to_owned(), true)]);
        assert_eq!(instances(&shop).await, ["stopped"]);
    }

    async fn many_rounds_change_nothing_more(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        pass(&server, 121).await;
        let over = detail(&shop, deploy_task, task).await;
        for _ in 0..3 {
            pass(&server, 3600).await;
        }
        assert_eq!(detail(&shop, deploy_task, task).await, over);
        let page = shop.admin.get(&format!("{}?status=failed", upgrades(deploy_task))).await.expect(200);
        assert_eq!(page["count"], 1);
        assert_eq!(shop.admin.get(&format!("{PATH}?status=running")).await.expect(200)["count"], 1);
    }
}
