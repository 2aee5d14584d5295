//! What nobody knows is asked of a person, and keeps its instance until somebody says something.

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_shared::message::{Holding, ToAgent};
use drover_shared::order::Statement;
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, finished};
use drover_tests::{both_engines, wait_until};
use serde_json::{Value, json};

use super::returning::{given_up, state};
use super::{detail, instances, references, upgrades};
use crate::deploys::{PATH, Shop, grant};

async fn act(shop: &Shop, deploy_task: i64, task: i64, action: &str, body: Value) -> drover_tests::Answer {
    shop.admin.post(&format!("{}{task}/actions/{action}/", upgrades(deploy_task)), body).await
}

fn said(shop: &Shop, answer: &str, reason: &str) -> Value {
    json!({"instances": references(&shop.instances), "answer": answer, "reason": reason})
}

/// Whether anything may be done to the instance.
async fn is_free(shop: &Shop, deploy_task: i64) -> bool {
    let body = json!({"instances": references(&shop.instances)});
    let path = format!("{}?dry_run=true", upgrades(deploy_task));
    shop.admin.post(&path, body.clone()).await.expect(200);
    let answer = shop.admin.post(&upgrades(deploy_task), body).await;
    if answer.status == 409 {
        let error = answer.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("nobody knows how sub-task")), "{error}");
        return false;
    }
    answer.expect(200);
    true
}

/// An execution in the spool of an agent that is still at it.
fn holding(statement: &Statement) -> Holding {
    let Statement { execution_id, attempt, .. } = statement.clone();
    Holding { execution_id, attempt, channel: 1, log_length: 0, finished: false, needs_order: false }
}

/// Waits until the agent is told to end an execution, before which it gets nothing to do.
async fn is_told_to_end(agent: &mut StubAgent, statement: &Statement) {
    loop {
        match agent.hear().await {
            ToAgent::Cancel { execution_id, .. } if execution_id == statement.execution_id => return,
            ToAgent::Run { .. } => panic!("two at a time"),
            _ => {}
        }
    }
}

both_engines! {
    async fn an_instance_waits_until_somebody_says_what_became_of_it(server: TestServer) {
        let (shop, _agent, _, deploy_task, task) = Box::pin(given_up(&server)).await;
        assert!(!is_free(&shop, deploy_task).await);
        let operate = format!("/applications/{}/instances/actions/start/", shop.application);
        shop.set(json!({"enabled": true})).await;
        let listed = shop.admin.get("/tasks/?unanswered=true").await.expect(200);
        assert_eq!((listed["count"].clone(), listed["results"][0]["task_id"].clone()), (json!(1), json!(task.to_string())));
        shop.admin.patch(&format!("/applications/{}/", shop.application), json!({"startup_cmd": "true"})).await.expect(200);
        shop.admin.post(&operate, references(&shop.instances)).await.expect_error(409, 10006);

        act(&shop, deploy_task, task, "answer", said(&shop, "give_up", "I looked")).await.expect(200);
        let told = detail(&shop, deploy_task, task).await;
        let answer = &told["instances"][0]["answer"];
        assert_eq!((&answer["answer"], &answer["by"], &answer["reason"]), (&json!("give_up"), &json!("admin"), &json!("I looked")));
        assert_eq!(told["instances"][0]["status"], "lost", "it stays true that nobody knows");
        assert_eq!(shop.admin.get("/tasks/?unanswered=true").await.expect(200)["count"], 0);
        assert!(is_free(&shop, deploy_task).await);
        let audit = sql!("SELECT detail FROM audit_entries WHERE action = 'answer'");
        let audit: Vec<String> = server.read().await.values(audit, args![]).await.expect("the audit");
        assert_eq!(audit, ["admin says that it is given up on web-1: I looked"]);
        wait_until("the remark in the output", async || {
            let text = detail(&shop, deploy_task, task).await["output"].clone();
            text.as_str().is_some_and(|text| text.contains("given up on web-1: I looked"))
        })
        .await;
    }

    async fn what_is_done_is_as_if_it_had_succeeded(server: TestServer) {
        let (shop, _agent, _, deploy_task, task) = Box::pin(given_up(&server)).await;
        let version = detail(&shop, deploy_task, task).await["version"].clone();
        act(&shop, deploy_task, task, "answer", said(&shop, "done", "it serves")).await.expect(200);
        let path = format!("/applications/{}/instances/{}/", shop.application, shop.instances[0]);
        let instance = shop.admin.get(&path).await.expect(200);
        assert_eq!((&instance["status"], &instance["version"]), (&json!("running"), &version));
        act(&shop, deploy_task, task, "answer", said(&shop, "give_up", "no")).await.expect_error(409, 10006);
    }

    async fn a_retry_is_an_answer_and_says_why(server: TestServer) {
        let (shop, _agent, _, deploy_task, task) = Box::pin(given_up(&server)).await;
        let mut body = json!({"instances": references(&shop.instances)});
        assert_eq!(act(&shop, deploy_task, task, "retry", body.clone()).await.expect(400)["field"], "reason");
        assert!(!is_free(&shop, deploy_task).await, "nothing was done");
        body["reason"] = "the host was rebooted".into();
        act(&shop, deploy_task, task, "retry", body).await.expect(200);
        let answer = detail(&shop, deploy_task, task).await["instances"][0]["answer"].clone();
        assert_eq!((&answer["answer"], &answer["reason"]), (&json!("retry"), &json!("the host was rebooted")));
        assert_eq!(instances(&shop).await, ["updating"]);
    }

    async fn the_hosts_own_word_answers_too(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(given_up(&server)).await;
        agent.succeed(&statement).await;
        wait_until("the word of the host", async || {
            detail(&shop, deploy_task, task).await["instances"][0]["status"] == "succeeded"
        })
        .await;
        act(&shop, deploy_task, task, "answer", said(&shop, "give_up", "too late")).await.expect_error(409, 10006);
        assert!(is_free(&shop, deploy_task).await);
    }

    async fn what_still_runs_is_ended_before_it_is_tried_again(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(given_up(&server)).await;
        agent.leave();
        let body = json!({"instances": references(&shop.instances), "reason": "the host does not answer"});
        let made = act(&shop, deploy_task, task, "retry", body).await.expect(200);
        let again: i64 = made["task_id"].as_str().expect("text").parse().expect("digits");
        agent.come_back(vec![holding(&statement)]).await;
        // It is told to end the old one, and gets nothing for that instance until it has.
        is_told_to_end(&mut agent, &statement).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(state(&shop, deploy_task, again).await, "queued");
        agent.succeed(&statement).await;
        let next = loop {
            if let ToAgent::Run { order, .. } = agent.hear().await {
                break serde_json::from_str::<Statement>(&order.statement).expect("a statement");
            }
        };
        assert_ne!(next.execution_id, statement.execution_id);
        assert_eq!(state(&shop, deploy_task, task).await, "succeeded", "what it had done is told");
        assert_eq!(instances(&shop).await, ["updating"], "and leaves the instance to the one that tries again");
    }

    async fn an_answer_ends_what_a_connected_host_still_runs(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(given_up(&server)).await;
        agent.come_back(vec![holding(&statement)]).await;
        let heard = agent.heard().await;
        assert!(!heard.iter().any(|message| matches!(message, ToAgent::Cancel { .. })), "nobody has said anything: {heard:?}");
        act(&shop, deploy_task, task, "answer", said(&shop, "give_up", "it sleeps")).await.expect(200);
        is_told_to_end(&mut agent, &statement).await;
        agent.end(finished(&statement, ExecutionState::Cancelled)).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "cancelled");
    }

    async fn a_retry_ends_what_a_connected_host_still_runs(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(given_up(&server)).await;
        agent.come_back(vec![holding(&statement)]).await;
        let body = json!({"instances": references(&shop.instances), "reason": "it sleeps"});
        act(&shop, deploy_task, task, "retry", body).await.expect(200);
        is_told_to_end(&mut agent, &statement).await;
        agent.end(finished(&statement, ExecutionState::Cancelled)).await;
        let next = loop {
            if let ToAgent::Run { order, .. } = agent.hear().await {
                break serde_json::from_str::<Statement>(&order.statement).expect("a statement");
            }
        };
        assert_ne!(next.execution_id, statement.execution_id);
    }

    async fn a_wrong_answer_changes_nothing(server: TestServer) {
        let (shop, _agent, _, deploy_task, task) = Box::pin(given_up(&server)).await;
        for (body, field) in [
            (json!({"instances": references(&shop.instances), "answer": "perhaps", "reason": "x"}), "answer"),
            (json!({"instances": references(&shop.instances), "answer": "done", "reason": " "}), "reason"),
            (json!({"instances": references(&shop.instances), "answer": "done"}), "reason"),
            (json!({"instances": [4711], "answer": "done", "reason": "x"}), "instances"),
            (json!({"instances": [], "answer": "done", "reason": "x"}), "instances"),
        ] {
            let refused = act(&shop, deploy_task, task, "answer", body).await.expect(400);
            assert_eq!(refused["field"], field, "{refused}");
        }
        let user = server.user("ann").await;
        grant(&server, user.id, shop.application, &["view_app"]).await;
        let path = format!("{}{task}/actions/answer/", upgrades(deploy_task));
        user.post(&path, said(&shop, "done", "x")).await.expect_error(403, 10003);
        assert!(!is_free(&shop, deploy_task).await);
        shop.admin.get(&format!("{PATH}{deploy_task}/")).await.expect(200);
    }
}
