//! A server, or its database, that was away for longer than tasks may take: what agents finished meanwhile is taken in, and
//! what waited has its time.

use std::time::Duration;

use drover_automation::engine::{attend, sweep, sweep_once};
use drover_kernel::{args, sql};
use drover_shared::message::Holding;
use drover_shared::order::Statement;
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, finished, listen};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::json;

use super::returning::{at_work, state};
use super::rollouts::{roll_out, set_rule};
use super::{detail, instances, upgrade};
use crate::deploys::Shop;

/// Far longer than any task may take.
const LONG: Duration = Duration::from_secs(36_000);
/// What is said of it.
const NOTICE: &str = "the server was away for 10 h: that does not count";

/// Has the server do what it does all the time, for so many seconds.
async fn pass(server: &TestServer, seconds: u64) {
    for _ in 0..seconds.div_ceil(5) {
        attend(server.kernel()).await.expect("the database is there");
        sweep_once(server.kernel(), true).await.expect("a round");
        server.advance(Duration::from_secs(5));
    }
}

/// The server is killed, and started again long afterwards; nobody is connected by then.
async fn away(server: TestServer, shop: Shop) -> (TestServer, Shop) {
    let Shop { admin, application, hosts, instances } = shop;
    drop(admin);
    server.advance(LONG);
    let server = server.restarted().await;
    let shop = Shop { admin: server.admin(), application, hosts, instances };
    (server, shop)
}

fn holding(statement: &Statement, finished: bool) -> Vec<Holding> {
    let Statement { execution_id, attempt, .. } = statement.clone();
    vec![Holding { execution_id, attempt, channel: 1, log_length: 0, finished, needs_order: false }]
}

async fn deadline(server: &TestServer, task: i64) -> i64 {
    server.count(sql!("SELECT deadline_at FROM tasks WHERE id = $1"), args![task]).await
}

both_engines! {
    async fn what_ended_while_the_server_was_away_is_taken_in_and_the_rollout_goes_on(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let address = listen(&server).await;
        let mut agents = Vec::new();
        for host in ["web-1", "web-2", "web-3"] {
            agents.push(StubAgent::enrol(&server, address, host, &[]).await);
        }
        pass(&server, 5).await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1, "max_failures": 0})).await;
        set_rule(&server, task, json!({"batch": 1, "max_failures": 0, "auto_revert": true})).await;
        let first = agents[0].order().await;
        agents[0].accept(&first).await;
        agents[0].succeed(&first).await;
        agents[0].archived(&first).await;
        let second = agents[1].order().await;
        agents[1].accept(&second).await;
        let running = async || detail(&shop, deploy_task, task).await["instances"][1]["status"] == "running";
        wait_until("the second one to be at work", running).await;
        pass(&server, 5).await;
        agents.iter_mut().for_each(StubAgent::leave);
        let (server, shop) = Box::pin(away(server, shop)).await;
        pass(&server, 20).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["stop_reason"]), (&json!("running"), &json!(null)), "{told:#}");
        wait_until("the notice", async || {
            detail(&shop, deploy_task, task).await["output"].as_str().is_some_and(|text| text.contains(NOTICE))
        })
        .await;
        let address = listen(&server).await;
        agents.iter_mut().for_each(|agent| agent.moves_to(address));
        agents[1].come_back(holding(&second, true)).await;
        agents[1].succeed(&second).await;
        agents[1].archived(&second).await;
        agents[2].come_back(Vec::new()).await;
        let third = agents[2].order().await;
        assert!(third.timeout_ms > 60_000, "with the time that it may have: {} ms", third.timeout_ms);
        agents[2].accept(&third).await;
        agents[2].succeed(&third).await;
        agents[2].archived(&third).await;
        wait_until("the end", async || detail(&shop, deploy_task, task).await["phase"] == "over").await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["stop_reason"]), (&json!("finished"), &json!(null)), "{told:#}");
        assert_eq!(instances(&shop).await, ["running"; 3]);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 1, "nothing is taken back");
        drop(shop.admin);
    }

    async fn what_was_queued_while_the_server_was_away_is_sent(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        pass(&server, 5).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_until("its turn", async || detail(&shop, deploy_task, task).await["phase"] == "instances").await;
        // Most of its time is over.
        pass(&server, 110).await;
        let (server, shop) = Box::pin(away(server, shop)).await;
        // As the server's program looks after everything.
        server.kernel().spawn(sweep(server.kernel().clone()));
        wait_until("the notice", async || {
            detail(&shop, deploy_task, task).await["output"].as_str().is_some_and(|text| text.contains(NOTICE))
        })
        .await;
        let mut agent = StubAgent::alone(&server, "web-1").await;
        let statement = agent.order().await;
        assert!(statement.timeout_ms >= 60_000, "{}", statement.timeout_ms);
        agent.accept(&statement).await;
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "succeeded");
        drop(shop.admin);
    }

    async fn an_agent_that_never_comes_back_is_given_up_in_the_end(server: TestServer) {
        let (shop, mut agent, _, deploy_task, task) = Box::pin(at_work(&server)).await;
        pass(&server, 5).await;
        agent.leave();
        let (server, shop) = Box::pin(away(server, shop)).await;
        pass(&server, 120).await;
        assert_eq!(state(&shop, deploy_task, task).await, "running");
        // Its time, what agents have to come back, and the grace for one that is absent.
        pass(&server, 140).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["instances"][0]["status"]), (&json!("failed"), &json!("lost")));
        let reason = "the time ran out and the host's agent is not connected to say how it ended";
        assert_eq!(told["instances"][0]["error"], reason);
        assert_eq!(instances(&shop).await, ["stopped"]);
        drop(shop.admin);
    }

    async fn while_the_database_was_away_nobodys_time_ran(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        pass(&server, 5).await;
        server.advance(LONG);
        // A round that meets the database before anybody has noted that it is back.
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(state(&shop, deploy_task, task).await, "running");
        pass(&server, 20).await;
        assert_eq!(state(&shop, deploy_task, task).await, "running");
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "succeeded");
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "finished").await;
        wait_until("the notice", async || {
            detail(&shop, deploy_task, task).await["output"].as_str().is_some_and(|text| text.contains(NOTICE))
        })
        .await;
    }

    async fn a_connected_agent_that_does_not_end_is_given_up_as_before(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        pass(&server, 5).await;
        server.advance(LONG);
        pass(&server, 400).await;
        assert_eq!(state(&shop, deploy_task, task).await, "lost");
        agent.end(finished(&statement, ExecutionState::TimedOut)).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "timed_out");
    }

    async fn where_one_server_was_there_another_moves_nothing(server: TestServer) {
        let (_shop, _agent, _, _, task) = Box::pin(at_work(&server)).await;
        attend(server.kernel()).await.expect("the database is there");
        let before = deadline(&server, task).await;
        server.advance(LONG);
        let now = server.clock().now();
        server.run(sql!("UPDATE attendance SET seen_at = $1"), args![now]).await;
        attend(server.kernel()).await.expect("the database is there");
        assert_eq!(deadline(&server, task).await, before);
    }

    async fn a_clock_that_jumps_moves_no_deadline_back_nor_beyond_the_time_allowed(server: TestServer) {
        let (_shop, _agent, _, _, task) = Box::pin(at_work(&server)).await;
        attend(server.kernel()).await.expect("the database is there");
        let before = deadline(&server, task).await;
        let now = server.clock().now().millis();
        // It was put back, by a year.
        server.run(sql!("UPDATE attendance SET seen_at = $1"), args![now + 31_536_000_000]).await;
        attend(server.kernel()).await.expect("the database is there");
        assert_eq!(deadline(&server, task).await, before);
        assert_eq!(server.count(sql!("SELECT seen_at FROM attendance"), args![]).await, now);
        // It was put forward, by half a century.
        server.run(sql!("UPDATE attendance SET seen_at = 1"), args![]).await;
        attend(server.kernel()).await.expect("the database is there");
        assert_eq!(deadline(&server, task).await, now + 180_000, "the time allowed, and a minute for agents to come back");
        // A server that is started again and again puts nothing off for ever.
        server.run(sql!("UPDATE attendance SET seen_at = 1"), args![]).await;
        attend(server.kernel()).await.expect("the database is there");
        assert_eq!(deadline(&server, task).await, now + 180_000);
    }
}
