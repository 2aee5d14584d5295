//! Rollouts over HTTP: batches, canaries, holding, taking out, ending and trying again, while no agent is connected.
//!
//! What agents would report is written into the database, and the engine is asked to look.

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{counts, detail, entries, instances, references, upgrades};
use crate::deploys::Shop;

/// A running sub-task with this rollout on all instances.
pub(super) async fn roll_out(shop: &Shop, deploy_task: i64, rollout: Value) -> i64 {
    let body = json!({"instances": references(&shop.instances), "rollout": rollout});
    let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
    let task = receipt["task_id"].as_str().expect("text").parse().expect("digits");
    wait_until("the instances to have their turn", async || {
        detail(shop, deploy_task, task).await["phase"] == "instances"
    })
    .await;
    task
}

/// Writes how the execution on a host goes, as its agent would report it.
pub(super) async fn report(server: &TestServer, task: i64, host: &str, state: &str) {
    let over = matches!(state, "succeeded" | "failed" | "lost");
    let finished = over.then(|| server.clock().now());
    let change = sql!(
        "UPDATE executions SET state = $3, finished_at = $4, dispatched_at = 1 \
         WHERE task_id = $1 AND host_name = $2 AND role = 'instance'"
    );
    assert_eq!(server.run(change, args![task, host, state, finished]).await, 1, "{host}");
    if over {
        let status = if state == "succeeded" { "running" } else { "stopped" };
        let change = sql!(
            "UPDATE instances SET status = $3 WHERE id = (SELECT instance_id FROM executions WHERE task_id = $1 \
             AND host_name = $2 AND role = 'instance')"
        );
        server.run(change, args![task, host, status]).await;
    }
    sweep_once(server.kernel(), true).await.expect("a round");
}

pub(super) async fn act(shop: &Shop, deploy_task: i64, task: i64, action: &str, body: Value) -> drover_tests::Answer {
    shop.admin.post(&format!("{}{task}/actions/{action}/", upgrades(deploy_task)), body).await
}

/// The batch that has its turn, and why nothing more starts.
async fn at(shop: &Shop, deploy_task: i64, task: i64) -> (i64, Value) {
    let told = detail(shop, deploy_task, task).await;
    (told["batch"].as_i64().expect("a batch"), told["stop_reason"].clone())
}

/// States of the instances, in their order.
async fn states(shop: &Shop, deploy_task: i64, task: i64) -> Vec<String> {
    let told = detail(shop, deploy_task, task).await;
    let instances = told["instances"].as_array().expect("instances").iter();
    instances.map(|one| one["status"].as_str().expect("a state").to_owned()).collect()
}

both_engines! {
    async fn batches_follow_each_other_and_one_failure_too_many_ends_it(server: TestServer) {
        let shop = Shop::new(&server, 5).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 2, "max_failures": 1})).await;
        assert_eq!(at(&shop, deploy_task, task).await, (1, Value::Null));
        report(&server, task, "web-1", "succeeded").await;
        assert_eq!(at(&shop, deploy_task, task).await.0, 1, "the other one of the batch is not over");
        report(&server, task, "web-2", "failed").await;
        assert_eq!(at(&shop, deploy_task, task).await, (2, Value::Null), "one failure is allowed");
        report(&server, task, "web-3", "failed").await;
        let (batch, reason) = at(&shop, deploy_task, task).await;
        assert_eq!((batch, reason.as_str()), (2, Some("2 of 5 instances failed, 1 may")));
        // The fourth was in the same batch and had not been sent.
        assert_eq!(states(&shop, deploy_task, task).await, ["succeeded", "failed", "failed", "cancelled", "cancelled"]);
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["error"]), (&json!("failed"), &json!("2 of 5 instances failed, 1 may")));
        assert!(told["output"].as_str().is_some_and(|text| text.contains("batch 2 of 3: web-3, web-4")), "{told:#}");
        assert_eq!(instances(&shop).await, ["running", "stopped", "stopped", "stopped", "stopped"]);
    }

    async fn a_canary_waits_for_its_promotion(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"canary": 1})).await;
        act(&shop, deploy_task, task, "promote", json!({})).await.expect_error(409, 10006);
        report(&server, task, "web-1", "succeeded").await;
        server.advance(std::time::Duration::from_secs(3_600));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(at(&shop, deploy_task, task).await, (1, Value::Null), "the time allowed does not run while it waits");
        act(&shop, deploy_task, task, "promote", json!({"reason": "looks good"})).await.expect(200);
        wait_until("the others to have their turn", async || at(&shop, deploy_task, task).await.0 == 2).await;
        act(&shop, deploy_task, task, "promote", json!({})).await.expect_error(409, 10006);
        report(&server, task, "web-2", "succeeded").await;
        report(&server, task, "web-3", "succeeded").await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["promoted"]), (&json!("finished"), &json!(true)));
    }

    async fn a_refused_canary_leaves_the_others_alone(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"canary": 1})).await;
        report(&server, task, "web-1", "succeeded").await;
        act(&shop, deploy_task, task, "refuse", json!({"reason": "too slow"})).await.expect(200);
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;
        assert_eq!(at(&shop, deploy_task, task).await.1, "refused by admin: too slow");
        assert_eq!(states(&shop, deploy_task, task).await, ["succeeded", "cancelled", "cancelled"]);
        assert_eq!(instances(&shop).await, ["running", "stopped", "stopped"]);
    }

    async fn a_held_task_starts_nothing_more(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        act(&shop, deploy_task, task, "resume", json!({})).await.expect_error(409, 10006);
        act(&shop, deploy_task, task, "pause", Value::Null).await.expect(200);
        act(&shop, deploy_task, task, "pause", json!({})).await.expect_error(409, 10006);
        assert_eq!(detail(&shop, deploy_task, task).await["held_by"], "admin");
        report(&server, task, "web-1", "succeeded").await;
        server.advance(std::time::Duration::from_secs(3_600));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(at(&shop, deploy_task, task).await, (1, Value::Null));
        act(&shop, deploy_task, task, "resume", json!({})).await.expect(200);
        wait_until("the second batch", async || at(&shop, deploy_task, task).await.0 == 2).await;
        server.advance(std::time::Duration::from_secs(119));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(states(&shop, deploy_task, task).await, ["succeeded", "queued"], "it has the whole time allowed");
        report(&server, task, "web-2", "succeeded").await;
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "finished");
        act(&shop, deploy_task, task, "pause", json!({})).await.expect_error(409, 10006);
    }

    async fn what_is_taken_out_is_no_failure(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        let second = json!({"instances": references(&shop.instances[1..2]), "reason": "under repair"});
        act(&shop, deploy_task, task, "skip", second.clone()).await.expect(200);
        act(&shop, deploy_task, task, "skip", second).await.expect_error(409, 10006);
        assert_eq!(act(&shop, deploy_task, task, "skip", json!({"instances": [987]})).await.expect(400)["field"], "instances");
        report(&server, task, "web-1", "succeeded").await;
        report(&server, task, "web-3", "succeeded").await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["status"], "finished", "{told:#}");
        assert_eq!(told["instances"][1]["excluded"], true);
        assert_eq!(told["instances"][1]["error"], "taken out by admin: under repair");
    }

    async fn a_cancelled_task_ends_and_frees_its_instances(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("global_post_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        act(&shop, deploy_task, task, "cancel", json!({"reason": "wrong version"})).await.expect(200);
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["error"], "cancelled by admin: wrong version");
        assert_eq!(told["global_hooks"][0]["status"], "cancelled", "nothing more of it runs");
        assert_eq!(instances(&shop).await, ["stopped", "stopped"]);
        act(&shop, deploy_task, task, "cancel", json!({})).await.expect_error(409, 10006);
        let actions = sql!("SELECT action FROM audit_entries WHERE object_type = 'task' ORDER BY id");
        let actions: Vec<String> = server.read().await.values(actions, args![]).await.expect("the audit");
        assert_eq!(actions, ["upgrade", "cancel"]);
    }

    async fn what_failed_is_tried_again_from_the_failed_step_on(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "echo before").await;
        shop.hook("post_exec", "echo after").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"max_failures": null})).await;
        act(&shop, deploy_task, task, "retry", json!({})).await.expect_error(409, 10006);
        let steps = json!([{"name": "pre_exec", "state": "succeeded"}, {"name": "post_exec", "state": "failed"}]);
        server.run(sql!("UPDATE executions SET steps = $2 WHERE task_id = $1"), args![task, steps]).await;
        report(&server, task, "web-1", "succeeded").await;
        report(&server, task, "web-2", "failed").await;
        report(&server, task, "web-3", "lost").await;
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "failed");
        // The script is changed meanwhile: what is tried again is what was made then.
        shop.set(json!({"lifecycle_hooks": {"post_exec": null}})).await;
        let receipt = act(&shop, deploy_task, task, "retry", json!({"reason": "disk was full"})).await.expect(200);
        let again: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let told = detail(&shop, deploy_task, again).await;
        assert_eq!((&told["origin"], &told["origin_task_id"]), (&json!("retry"), &json!(task)));
        let drafts = entries(&server, again).await;
        assert_eq!(drafts.len(), 1, "the lost one is tried again only when it is named");
        assert_eq!(drafts[0]["host"], "web-2");
        let names: Vec<&str> =
            drafts[0]["steps"].as_array().expect("steps").iter().filter_map(|step| step["name"].as_str()).collect();
        assert_eq!(names, ["post_exec"]);
        let first = json!({"instances": references(&shop.instances[..1])});
        assert_eq!(act(&shop, deploy_task, task, "retry", first).await.expect(400)["field"], "instances");
        let lost = json!({"instances": references(&shop.instances[2..]), "from_failed_step": false});
        let receipt = act(&shop, deploy_task, task, "retry", lost).await.expect(200);
        let whole: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        assert_eq!(entries(&server, whole).await[0]["steps"].as_array().map(Vec::len), Some(2));
    }

    async fn a_wrong_rollout_changes_nothing(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let before = counts(&server).await;
        for (rollout, field) in [
            (json!({"batch": 0}), "rollout.batch"),
            (json!({"batch": "half"}), "rollout.batch"),
            (json!({"canary": "0%"}), "rollout.canary"),
            (json!({"velocity": 1}), "rollout.velocity"),
            (json!({"auto_revert": true}), "rollout.auto_revert"),
            (json!({"health": {"http": "ftp://x"}}), "rollout.health.http"),
            (json!({"health": {"command": "{{ nothing }}"}}), "rollout.health.command"),
        ] {
            let body = json!({"instances": references(&shop.instances), "rollout": rollout});
            assert_eq!(shop.admin.post(&upgrades(deploy_task), body).await.expect(400)["field"], field);
        }
        assert_eq!(counts(&server).await, before);
    }
}
