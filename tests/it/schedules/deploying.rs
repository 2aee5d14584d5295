//! Schedules that carry out an approved deploy task.

use drover_kernel::{args, sql};
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, finished, listen};
use drover_tests::{both_engines, wait_until};
use serde_json::{Value, json};

use super::{PATH, body, look, newest_task, pass, runs, schedule, wait_for};
use crate::deploys::{PATH as DEPLOY_TASKS, Shop, grant, id};
use crate::tasks::rollouts::set_rule;
use crate::tasks::{detail, instances, references, upgrades};

/// A deploy task that carries an update of all instances.
async fn carried(shop: &Shop) -> i64 {
    let mut body = shop.body();
    let instances: Value = shop.instances.iter().map(|id| json!({"id": id})).collect();
    body["plan"] = json!({"instances": instances, "rollout": {"batch": 1}});
    id(&shop.admin.post(DEPLOY_TASKS, body).await.expect(200))
}

fn deploys(task: i64) -> Value {
    json!({"what": {"kind": "deploy", "deploy_task_id": task}})
}

/// Ends the update of a deploy task by hand.
async fn end_update(shop: &Shop, deploy_task: i64, task: i64) {
    let one = format!("{DEPLOY_TASKS}{deploy_task}/sub-upgrade-tasks/{task}/");
    shop.admin.post(&format!("{one}actions/cancel/"), json!({})).await.expect(200);
    wait_until("its end", async || shop.admin.get(&one).await.expect(200)["status"] == "failed").await;
}

/// Carries out the next order of an agent.
async fn done(agent: &mut StubAgent) {
    let order = agent.order().await;
    agent.accept(&order).await;
    agent.succeed(&order).await;
    agent.archived(&order).await;
}

both_engines! {
    async fn what_was_approved_is_carried_out_at_each_moment(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let script = shop.hook("pre_exec", "echo {{ host.name }}").await;
        let task = carried(&shop).await;
        let id = schedule(&server, &shop, deploys(task)).await;
        // Nobody has approved it yet.
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 failed"]).await;
        assert_eq!(shop.read(task).await["status"], "wait_review");
        shop.act(task, "approve").await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 failed", "12:20 started"]).await;
        assert_eq!(shop.read(task).await["status"], "running");
        let first = newest_task(&shop, id).await;
        end_update(&shop, task, first).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 failed", "12:20 started", "12:30 started"]).await;
        end_update(&shop, task, newest_task(&shop, id).await).await;
        // What would run has become something else.
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "echo other"})).await.expect(200);
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 failed", "12:20 started", "12:30 started", "12:40 failed"]).await;
        let reason = runs(&shop, id).await[0]["reason"].as_str().expect("a reason").to_owned();
        assert!(reason.contains("the approval of the deploy task is void: the script of pre_exec changed"), "{reason}");
        assert_eq!(shop.read(task).await["status"], "wait_review");
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 2);
    }

    async fn only_a_deploy_task_with_a_plan_and_for_who_may_deploy(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let bare = shop.task().await;
        let wanted = body(&shop, deploys(bare));
        assert_eq!(shop.admin.post(PATH, wanted).await.expect(400)["field"], "what.deploy_task_id");
        shop.admin.post(PATH, body(&shop, deploys(999_999))).await.expect(404);
        let task = carried(&shop).await;
        let ada = server.user("ada").await;
        grant(&server, ada.id, shop.application, &["view_app", "restart_app"]).await;
        ada.post(PATH, body(&shop, deploys(task))).await.expect(403);
        grant(&server, ada.id, shop.application, &["view_app", "deploy_app"]).await;
        ada.post(PATH, body(&shop, deploys(task))).await.expect(200);
        look(&server).await;
        // It goes with its application.
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM schedules"), args![]).await, 1);
    }

    async fn one_that_was_closed_is_not_carried_out(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let task = carried(&shop).await;
        shop.act(task, "approve").await;
        shop.act(task, "close").await;
        let id = schedule(&server, &shop, deploys(task)).await;
        pass(&server, 10).await;
        wait_until("a reason", async || {
            look(&server).await;
            runs(&shop, id).await.first().is_some_and(|run| run["reason"] != Value::Null)
        }).await;
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0);
    }

    async fn a_way_back_goes_before_what_waits_for_its_moment(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let direct = shop.started().await;
        let body = json!({"instances": references(&shop.instances), "rollout": {"batch": 1}, "timeout": 86_400});
        let receipt = shop.admin.post(&upgrades(direct), body).await.expect(200);
        let stopped: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        wait_until("its turn", async || detail(&shop, direct, stopped).await["phase"] == "instances").await;
        set_rule(&server, stopped, json!({"batch": 1, "auto_revert": true})).await;
        let address = listen(&server).await;
        let mut first = StubAgent::enrol(&server, address, "web-1", &[]).await;
        let mut second = StubAgent::enrol(&server, address, "web-2", &[]).await;
        done(&mut first).await;
        let fails = second.order().await;
        second.accept(&fails).await;

        let task = carried(&shop).await;
        shop.act(task, "approve").await;
        let mut wanted = deploys(task);
        wanted["if_busy"] = json!("wait");
        let id = schedule(&server, &shop, wanted).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        let waits = newest_task(&shop, id).await;
        let is_queued = async || detail(&shop, task, waits).await["queued"] == true;
        assert!(is_queued().await);

        // The rollout is stopped: what it changed goes back before anybody else has its turn.
        second.end(finished(&fails, ExecutionState::Failed)).await;
        second.archived(&fails).await;
        let back = first.order().await;
        let told = detail(&shop, direct, stopped).await;
        assert_eq!((&told["status"], &told["error"]), (&json!("failed"), &json!("1 of 2 instances failed, 0 may")));
        assert_eq!(instances(&shop).await, ["reverting", "reverting"]);
        assert!(is_queued().await);
        first.accept(&back).await;
        first.succeed(&back).await;
        first.archived(&back).await;
        assert!(is_queued().await, "it takes all that it changes together");
        let back = second.order().await;
        second.accept(&back).await;
        second.end(finished(&back, ExecutionState::Failed)).await;
        second.archived(&back).await;

        // However that ended, what waited has its turn, and ends as its own.
        done(&mut first).await;
        done(&mut second).await;
        wait_until("its end", async || detail(&shop, task, waits).await["status"] == "finished").await;
        let told = detail(&shop, direct, stopped).await;
        assert_eq!(told["status"], "failed");
        assert_eq!(instances(&shop).await, ["running", "running"]);
        wait_until("the remark", async || {
            let told = detail(&shop, direct, stopped).await;
            told["output"].as_str().is_some_and(|text| text.contains(" takes web-1, web-2 back to "))
        })
        .await;
    }
}
