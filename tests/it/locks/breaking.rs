//! Taking something away from a task that does not let go.

use drover_kernel::{args, sql};
use drover_shared::message::{Holding, ToAgent};
use drover_shared::order::Statement;
use drover_tests::stub_agent::{StubAgent, listen};
use drover_tests::{Answer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{begins, waiting};
use crate::deploys::{Shop, grant};
use crate::tasks::returning::{at_work, state};
use crate::tasks::{detail, instances, upgrade};

async fn take_away(shop: &Shop, body: Value) -> Answer {
    shop.admin.post(&format!("/locks/instances/{}/actions/break/", shop.instances[0]), body).await
}

/// The next order for another execution than this one; nothing else may be sent before `until` was done.
async fn next_order(agent: &mut StubAgent, former: &Statement) -> Statement {
    loop {
        if let ToAgent::Run { order, .. } = agent.hear().await {
            let next: Statement = serde_json::from_str(&order.statement).expect("a statement");
            assert_ne!(next.execution_id, former.execution_id);
            return next;
        }
    }
}

async fn is_told_to_end(agent: &mut StubAgent, statement: &Statement) {
    loop {
        match agent.hear().await {
            ToAgent::Cancel { execution_id, reason, .. } if execution_id == statement.execution_id => {
                assert!(reason.contains("it hangs") || reason.contains("somebody said meanwhile"), "{reason}");
                return;
            }
            ToAgent::Run { .. } => panic!("two at a time"),
            _ => {}
        }
    }
}

both_engines! {
    async fn who_waits_begins_and_the_late_word_moves_nothing(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        take_away(&shop, json!({"reason": "it hangs"})).await.expect(200);
        begins(&shop, deploy_task, waits).await;
        let told = detail(&shop, deploy_task, task).await;
        let one = &told["instances"][0];
        assert_eq!((&one["status"], &one["broken"], &one["host_said"]), (&json!("lost"), &json!(true), &Value::Null));
        let said = "admin takes web-1 away from this task: it hangs";
        assert_eq!((&one["error"], &one["answer"]["answer"]), (&json!(said), &json!("give_up")));
        assert_eq!((&one["answer"]["by"], &told["stop_reason"]), (&json!("admin"), &json!(said)));
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;

        // Its host is told to end it, and gets nothing else for the instance until it has.
        is_told_to_end(&mut agent, &statement).await;
        assert_eq!(state(&shop, deploy_task, waits).await, "queued");
        agent.succeed(&statement).await;
        next_order(&mut agent, &statement).await;
        let one = detail(&shop, deploy_task, task).await["instances"][0].clone();
        assert_eq!((&one["status"], &one["host_said"]), (&json!("lost"), &json!("succeeded")));
        assert_eq!(instances(&shop).await, ["updating"], "it is the next one's");
        wait_until("the remark", async || {
            let text = detail(&shop, deploy_task, task).await["output"].clone();
            text.as_str().is_some_and(|text| text.contains("says after its lock was broken how it ended: succeeded"))
        })
        .await;
        let audit = sql!("SELECT detail FROM audit_entries WHERE action = 'break_lock' AND object_id = $1");
        let audit: Vec<String> = server.read().await.values(audit, args![task]).await.expect("the audit");
        assert_eq!(audit, [format!("{said}; 1 given up")]);
    }

    async fn a_host_that_is_away_ends_it_when_it_is_back(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        agent.leave();
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        wait_until("the host to be missed", async || {
            let lock = shop.admin.get("/locks/?wanted=true").await.expect(200)["results"][0].clone();
            lock["stuck"] == "its host is not connected" && lock["task_id"] == json!(task.to_string())
        })
        .await;
        take_away(&shop, json!({"reason": "it hangs"})).await.expect(200);
        begins(&shop, deploy_task, waits).await;
        let Statement { execution_id, attempt, .. } = statement.clone();
        let holding = Holding { execution_id, attempt, channel: 1, log_length: 0, finished: false, needs_order: false };
        agent.come_back(vec![holding]).await;
        is_told_to_end(&mut agent, &statement).await;
        agent.succeed(&statement).await;
        let next = next_order(&mut agent, &statement).await;
        assert_eq!(detail(&shop, deploy_task, task).await["instances"][0]["host_said"], "succeeded");
        agent.succeed(&next).await;
        agent.archived(&next).await;
        assert_eq!(state(&shop, deploy_task, waits).await, "succeeded");
        assert_eq!(instances(&shop).await, ["running"]);
    }

    async fn it_takes_a_right_a_reason_and_a_holder(server: TestServer) {
        let (shop, _agent, _, deploy_task, task) = Box::pin(at_work(&server)).await;
        for (body, field) in [(json!({}), "reason"), (json!({"reason": " "}), "reason"), (json!({"reason": "x", "why": 1}), "why")] {
            let refused = take_away(&shop, body).await.expect(400);
            assert_eq!(refused["field"], field, "{refused}");
        }
        let path = format!("/locks/instances/{}/actions/break/", shop.instances[0]);
        let user = server.user("ann").await;
        user.post(&path, json!({"reason": "x"})).await.expect_error(404, 10004);
        grant(&server, user.id, shop.application, &["view_app", "restart_app"]).await;
        user.post(&path, json!({"reason": "x"})).await.expect_error(403, 10003);
        assert_eq!(state(&shop, deploy_task, task).await, "running");
        grant(&server, user.id, shop.application, &["view_app", "deploy_app"]).await;
        user.post(&path, json!({"reason": "x"})).await.expect(200);
        assert_eq!(state(&shop, deploy_task, task).await, "lost");
        take_away(&shop, json!({"reason": "again"})).await.expect_error(409, 10006);
        shop.admin.post("/locks/instances/4711/actions/break/", json!({"reason": "x"})).await.expect_error(404, 10004);
    }

    async fn what_was_not_sent_is_cancelled_and_the_rest_only_if_wanted(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let address = listen(&server).await;
        let mut agents = Vec::new();
        for host in ["web-1", "web-2"] {
            agents.push(StubAgent::enrol(&server, address, host, &[]).await);
        }
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        for agent in &mut agents {
            let statement = agent.order().await;
            agent.accept(&statement).await;
        }
        let states = async || {
            let told = detail(&shop, deploy_task, task).await;
            [told["instances"][0]["status"].clone(), told["instances"][1]["status"].clone()]
        };
        wait_until("both", async || states().await == ["running", "running"]).await;
        take_away(&shop, json!({"reason": "it hangs"})).await.expect(200);
        assert_eq!(states().await, ["lost", "running"], "the other host is told to end it, and says how it did");
        let path = format!("/locks/instances/{}/actions/break/", shop.instances[1]);
        shop.admin.post(&path, json!({"reason": "this one too", "whole_task": true})).await.expect(200);
        assert_eq!(states().await, ["lost", "lost"]);
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;

        // What waits for a host that is not there is not sent, and nobody has to wonder.
        agents.clear();
        let deploy_task = shop.started().await;
        let next = waiting(&shop, deploy_task, &shop.instances, 0).await;
        begins(&shop, deploy_task, next).await;
        take_away(&shop, json!({"reason": "it hangs"})).await.expect(200);
        wait_until("its end", async || detail(&shop, deploy_task, next).await["status"] == "failed").await;
        let told = detail(&shop, deploy_task, next).await;
        assert_eq!((&told["instances"][0]["status"], &told["instances"][0]["broken"]), (&json!("cancelled"), &json!(false)));
        assert_eq!(instances(&shop).await, ["stopped", "stopped"]);
    }
}
