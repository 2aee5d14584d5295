//! Orders whose answer comes late: after they were given up, or after their lock was broken.

use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_shared::message::{ToAgent, ToServer};
use drover_shared::order::Statement;
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, finished};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::json;

use super::returning::state;
use super::rollouts::act;
use super::{detail, references, upgrade};
use crate::deploys::Shop;

/// A shop whose only host was sent an order and has not said a word about it.
async fn sent(server: &TestServer) -> (Shop, StubAgent, Statement, i64, i64) {
    let shop = Shop::new(server, 1).await;
    shop.hook("pre_exec", "true").await;
    let mut agent = StubAgent::alone(server, "web-1").await;
    let deploy_task = shop.started().await;
    let task = upgrade(&shop, deploy_task, &shop.instances).await;
    let statement = agent.order().await;
    (shop, agent, statement, deploy_task, task)
}

fn refusal(statement: &Statement) -> ToServer {
    let Statement { execution_id, attempt, .. } = statement.clone();
    ToServer::Rejected { execution_id, attempt, reason: "not now".to_owned(), no_room: false }
}

/// Tries again what was given up; gives the number of the new sub-task, of which nothing may be sent yet.
async fn tried_again(server: &TestServer, shop: &Shop, agent: &mut StubAgent, of: (i64, i64)) -> i64 {
    let body = json!({"instances": references(&shop.instances), "reason": "it does not answer"});
    let made = act(shop, of.0, of.1, "retry", body).await.expect(200);
    let again: i64 = made["task_id"].as_str().expect("text").parse().expect("digits");
    sweep_once(server.kernel(), true).await.expect("a round");
    assert_eq!(state(shop, of.0, again).await, "queued");
    let heard = agent.heard().await;
    assert!(!heard.iter().any(|message| matches!(message, ToAgent::Run { .. })), "two at a time: {heard:?}");
    again
}

async fn next_order(agent: &mut StubAgent, former: &Statement) {
    loop {
        if let ToAgent::Run { order, .. } = agent.hear().await {
            let next: Statement = serde_json::from_str(&order.statement).expect("a statement");
            assert_ne!(next.execution_id, former.execution_id);
            return;
        }
    }
}

both_engines! {
    async fn an_order_that_was_given_up_unanswered_is_ended_before_anything_else_is_sent(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(sent(&server)).await;
        server.advance(Duration::from_secs(700));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(state(&shop, deploy_task, task).await, "lost");
        // It had waited unread all the time.
        agent.accept(&statement).await;
        loop {
            match agent.hear().await {
                ToAgent::Cancel { execution_id, .. } if execution_id == statement.execution_id => break,
                ToAgent::Run { .. } => panic!("two at a time"),
                _ => {}
            }
        }
        tried_again(&server, &shop, &mut agent, (deploy_task, task)).await;
        agent.end(finished(&statement, ExecutionState::Cancelled)).await;
        next_order(&mut agent, &statement).await;
    }

    async fn an_order_that_was_given_up_and_is_refused_keeps_nothing_else_waiting(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(sent(&server)).await;
        server.advance(Duration::from_secs(700));
        sweep_once(server.kernel(), true).await.expect("a round");
        tried_again(&server, &shop, &mut agent, (deploy_task, task)).await;
        agent.say(&refusal(&statement)).await;
        next_order(&mut agent, &statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "lost");
    }

    async fn an_order_that_was_taken_away_and_is_refused_keeps_nothing_else_waiting(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(sent(&server)).await;
        let path = format!("/locks/instances/{}/actions/break/", shop.instances[0]);
        shop.admin.post(&path, json!({"reason": "it hangs"})).await.expect(200);
        assert_eq!(state(&shop, deploy_task, task).await, "lost");
        let next = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_until("its turn", async || detail(&shop, deploy_task, next).await["phase"] == "instances").await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(state(&shop, deploy_task, next).await, "queued");
        agent.say(&refusal(&statement)).await;
        next_order(&mut agent, &statement).await;
    }
}
