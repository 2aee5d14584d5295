//! Hosts that are restarted in the middle of something, and agents that merely come back.

use std::time::Duration;

use drover_kernel::{args, sql};
use drover_shared::message::{Finished, Holding};
use drover_shared::order::Statement;
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::finished;
use drover_tests::{both_engines, wait_until};
use serde_json::{Value, json};

use super::returning::at_work;
use super::{detail, upgrade};
use crate::deploys::Shop;

const LOST: &str = "the host was restarted while this ran: how it ended is not known";
const NOTICE: &str = "web-1: the host was restarted meanwhile";

fn holding(statement: &Statement, finished: bool) -> Vec<Holding> {
    let Statement { execution_id, attempt, .. } = statement.clone();
    vec![Holding { execution_id, attempt, channel: 1, log_length: 0, finished, needs_order: false }]
}

async fn agent_of(shop: &Shop) -> Value {
    shop.admin.get(&format!("/hosts/{}/", shop.hosts[0])).await.expect(200)["agent"].clone()
}

async fn output(shop: &Shop, (deploy_task, task): (i64, i64)) -> String {
    detail(shop, deploy_task, task).await["output"].as_str().unwrap_or_default().to_owned()
}

async fn first(shop: &Shop, (deploy_task, task): (i64, i64)) -> Value {
    detail(shop, deploy_task, task).await["instances"][0].clone()
}

both_engines! {
    async fn a_restart_of_the_host_is_told_where_it_interrupted_something(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        let of = (deploy_task, task);
        let told = agent_of(&shop).await;
        assert_eq!((&told["boot_id"], &told["restart_time"]), (&json!("boot"), &Value::Null));
        server.advance(Duration::from_secs(1));
        agent.restart();
        agent.come_back(holding(&statement, true)).await;
        wait_until("the notice", async || output(&shop, of).await.contains(NOTICE)).await;
        agent.end(Finished { reason: Some(LOST.to_owned()), ..finished(&statement, ExecutionState::Lost) }).await;
        agent.archived(&statement).await;
        let one = first(&shop, of).await;
        assert_eq!((&one["status"], &one["error"]), (&json!("lost"), &json!(LOST)));
        let told = agent_of(&shop).await;
        assert_eq!(told["boot_id"], "boot again");
        assert!(told["restart_time"].is_string(), "{told}");
        // It is remembered when it only comes back.
        agent.come_back(Vec::new()).await;
        assert_eq!(agent_of(&shop).await["restart_time"], told["restart_time"]);
        assert_eq!(output(&shop, of).await.matches(NOTICE).count(), 1);
    }

    async fn a_restart_is_told_although_the_first_session_after_it_did_not_last(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        let of = (deploy_task, task);
        server.advance(Duration::from_secs(1));
        agent.restart();
        // One that breaks right after it was opened leaves this, and nothing else.
        let now = server.clock().now();
        server.run(sql!("UPDATE agents SET boot_id = 'boot again', restarted_at = $1"), args![now]).await;
        agent.come_back(holding(&statement, true)).await;
        wait_until("the notice", async || output(&shop, of).await.contains(NOTICE)).await;
    }

    async fn what_was_sent_after_the_restart_was_not_interrupted_by_it(server: TestServer) {
        let (shop, mut agent, statement, ..) = Box::pin(at_work(&server)).await;
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        server.advance(Duration::from_secs(1));
        agent.restart();
        agent.come_back(Vec::new()).await;
        server.advance(Duration::from_secs(1));
        let deploy_task = shop.started().await;
        let of = (deploy_task, upgrade(&shop, deploy_task, &shop.instances).await);
        let statement = agent.order().await;
        agent.accept(&statement).await;
        wait_until("the order to be taken", async || first(&shop, of).await["status"] == "running").await;
        agent.come_back(holding(&statement, false)).await;
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert!(!output(&shop, of).await.contains(NOTICE));
    }

    async fn an_agent_that_only_comes_back_restarted_nothing(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        let of = (deploy_task, task);
        agent.come_back(holding(&statement, false)).await;
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert_eq!(first(&shop, of).await["status"], "succeeded");
        assert!(!output(&shop, of).await.contains("restarted"));
        assert_eq!(agent_of(&shop).await["restart_time"], Value::Null);
    }

    async fn what_did_not_outlive_the_restart_says_so(server: TestServer) {
        let (shop, mut agent, _, deploy_task, task) = Box::pin(at_work(&server)).await;
        let of = (deploy_task, task);
        server.advance(Duration::from_secs(1));
        agent.restart();
        agent.come_back(Vec::new()).await;
        wait_until("the outcome", async || first(&shop, of).await["status"] == "lost").await;
        let error = first(&shop, of).await["error"].as_str().expect("a reason").to_owned();
        assert!(error.starts_with("the host was restarted, and the agent no longer knows of it"), "{error}");
    }
}
