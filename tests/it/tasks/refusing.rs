//! Orders that an agent does not take: for good, or for as long as it has no room.

use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_shared::message::{ToAgent, ToServer};
use drover_shared::order::Statement;
use drover_tests::stub_agent::StubAgent;
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::json;

use super::returning::state;
use super::{detail, instances, upgrade, upgrades};
use crate::deploys::Shop;

/// Longer than an order may be without an answer.
const UNANSWERED: Duration = Duration::from_secs(11);

async fn refuse(agent: &mut StubAgent, statement: &Statement, reason: &str, no_room: bool) {
    let Statement { execution_id, attempt, .. } = statement.clone();
    agent.say(&ToServer::Rejected { execution_id, attempt, reason: reason.to_owned(), no_room }).await;
}

/// An application on a host whose agent has got the order to update it.
async fn ordered(server: &TestServer) -> (Shop, StubAgent, Statement, i64, i64) {
    let shop = Shop::new(server, 1).await;
    shop.hook("pre_exec", "true").await;
    let mut agent = StubAgent::alone(server, "web-1").await;
    let deploy_task = shop.started().await;
    let task = upgrade(&shop, deploy_task, &shop.instances).await;
    let statement = agent.order().await;
    (shop, agent, statement, deploy_task, task)
}

fn is_order(message: &ToAgent) -> bool {
    matches!(message, ToAgent::Run { .. })
}

both_engines! {
    async fn an_order_for_which_there_is_no_room_waits_for_its_turn(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = ordered(&server).await;
        refuse(&mut agent, &statement, "its spool is full", true).await;
        wait_until("the order to be put back", async || state(&shop, deploy_task, task).await == "queued").await;
        assert_eq!(instances(&shop).await, ["updating"], "the task has it still");
        wait_until("a word in the output", async || {
            let told = detail(&shop, deploy_task, task).await;
            told["output"].as_str().is_some_and(|text| text.contains("web-1: waits, because the agent has no room: its spool is full"))
        })
        .await;
        // It is the same attempt: nothing was started.
        agent.come_back(Vec::new()).await;
        let again = agent.order().await;
        assert_eq!((&again.execution_id, again.attempt), (&statement.execution_id, statement.attempt));
        agent.accept(&again).await;
        agent.succeed(&again).await;
        agent.archived(&again).await;
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "finished").await;
        assert_eq!(instances(&shop).await, ["running"]);
    }

    async fn what_waits_for_room_can_be_cancelled(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = ordered(&server).await;
        refuse(&mut agent, &statement, "its spool is full", true).await;
        wait_until("the order to be put back", async || state(&shop, deploy_task, task).await == "queued").await;
        let path = format!("{}{task}/actions/cancel/", upgrades(deploy_task));
        shop.admin.post(&path, json!({})).await.expect(200);
        assert_eq!(state(&shop, deploy_task, task).await, "cancelled");
        assert_eq!(instances(&shop).await, ["stopped"], "it is as it was");
        agent.come_back(Vec::new()).await;
        assert!(!agent.heard().await.iter().any(is_order));
    }

    async fn what_was_cancelled_meanwhile_does_not_wait_for_room(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = ordered(&server).await;
        let path = format!("{}{task}/actions/cancel/", upgrades(deploy_task));
        shop.admin.post(&path, json!({})).await.expect(200);
        refuse(&mut agent, &statement, "its spool is full", true).await;
        wait_until("the end", async || state(&shop, deploy_task, task).await == "cancelled").await;
        assert_eq!(instances(&shop).await, ["stopped"], "it is as it was");
        sweep_once(server.kernel(), true).await.expect("a round");
        assert!(!agent.heard().await.iter().any(is_order));
    }

    /// An agent that takes its time has the order in front of it. Of two it could refuse the first, which ends the
    /// execution, and take the second.
    async fn an_order_is_not_sent_a_second_time_while_it_is_under_way(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = ordered(&server).await;
        server.advance(UNANSWERED);
        sweep_once(server.kernel(), true).await.expect("a round");
        assert!(!agent.heard().await.iter().any(is_order), "one is enough");
        refuse(&mut agent, &statement, "the order cannot be kept: the disk is full", false).await;
        wait_until("the end", async || state(&shop, deploy_task, task).await == "failed").await;
        server.advance(UNANSWERED);
        sweep_once(server.kernel(), true).await.expect("a round");
        assert!(!agent.heard().await.iter().any(is_order), "what was refused for good is over");
    }

    /// What takes its time here is the database: somebody else has the task. A second order, sent meanwhile, the agent could
    /// take, and it would run although it is about to fail.
    async fn an_order_is_not_sent_a_second_time_while_its_refusal_is_noted(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = ordered(&server).await;
        let mut held = server.work().begin(1).await.expect("a transaction");
        held.run(sql!("UPDATE tasks SET phase = phase WHERE id = $1"), args![task]).await.expect("the task");
        refuse(&mut agent, &statement, "the order cannot be kept: the disk is full", false).await;
        wait_until("the refusal to be heard", async || {
            let output = detail(&shop, deploy_task, task).await["output"].as_str().unwrap_or_default().to_owned();
            output.contains("not started: the agent refused")
        })
        .await;
        server.advance(UNANSWERED);
        sweep_once(server.kernel(), true).await.expect("a round");
        drop(held);
        wait_until("the end", async || state(&shop, deploy_task, task).await == "failed").await;
        assert!(!agent.heard().await.iter().any(is_order), "what was refused for good is over");
    }

    async fn an_order_whose_acceptance_was_not_kept_is_sent_again(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = ordered(&server).await;
        agent.accept(&statement).await;
        wait_until("the order to be taken", async || state(&shop, deploy_task, task).await == "running").await;
        server.run(sql!("UPDATE executions SET state = 'dispatched', started_at = NULL"), args![]).await;
        server.advance(UNANSWERED);
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(agent.order().await.execution_id, statement.execution_id);
        agent.accept(&statement).await;
        wait_until("the order to be taken", async || state(&shop, deploy_task, task).await == "running").await;
    }
}
