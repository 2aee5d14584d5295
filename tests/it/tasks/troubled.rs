//! Troubles of one execution, or of one session, that nobody else may suffer from.

use std::time::Duration;

use drover_automation::engine::{Engine as Executive, sweep_once};
use drover_kernel::{Audit, args, sql};
use drover_shared::message::{Finished, Holding, ProcessVerdict};
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, finished, listen};
use drover_tests::{Engine, TestServer, both_engines, wait_until, with_server};
use serde_json::{Value, json};
use sqlx::Connection as _;

use super::returning::{at_work, given_up, state};
use super::{detail, instances, references, upgrade, upgrades};
use crate::deploys::Shop;

/// What is stored of the execution of an instance can no longer be read.
async fn spoil(server: &TestServer, instance: i64) {
    let entry = r#"{"secrets":["word"], torn"#;
    server.run(sql!("UPDATE executions SET entry = $2 WHERE instance_id = $1"), args![instance, entry]).await;
}

both_engines! {
    async fn one_execution_that_cannot_be_sent_keeps_no_other_from_being_sent(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let act = |action: &str| format!("{}{task}/actions/{action}/", upgrades(deploy_task));
        wait_until("its turn", async || detail(&shop, deploy_task, task).await["phase"] == "instances").await;
        shop.admin.post(&act("pause"), Value::Null).await.expect(200);
        let address = listen(&server).await;
        let _troubled = StubAgent::enrol(&server, address, "web-1", &[]).await;
        let mut other = StubAgent::enrol(&server, address, "web-2", &[]).await;
        spoil(&server, shop.instances[0]).await;
        shop.admin.post(&act("resume"), Value::Null).await.expect(200);
        let statement = other.order().await;
        wait_until("the other one to fail", async || state(&shop, deploy_task, task).await == "failed").await;
        let told = detail(&shop, deploy_task, task).await;
        let output = told["output"].as_str().expect("output");
        assert!(output.contains("web-1: not started: what is stored of it cannot be used"), "{output}");
        other.accept(&statement).await;
        other.succeed(&statement).await;
        other.archived(&statement).await;
    }

    async fn one_execution_that_cannot_be_sent_again_keeps_no_round_of_the_sweep_from_its_end(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let address = listen(&server).await;
        let mut agent = StubAgent::enrol(&server, address, "web-1", &[]).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances[..1]).await;
        let statement = agent.order().await;
        agent.accept(&statement).await;
        wait_until("the order to be taken", async || state(&shop, deploy_task, task).await == "running").await;
        // As if what it said had met no database.
        server.run(sql!("UPDATE executions SET state = 'dispatched'"), args![]).await;
        spoil(&server, shop.instances[0]).await;
        server.advance(Duration::from_secs(11));
        sweep_once(server.kernel(), true).await.expect("a whole round");
        // Whether the order arrived only a new session can say.
        wait_until("the end of the session", async || {
            server.kernel().part::<Executive>().hub.find(shop.hosts[0]).is_none()
        })
        .await;
        agent.come_back(Vec::new()).await;
        wait_until("the end", async || state(&shop, deploy_task, task).await == "failed").await;
    }

    async fn an_instance_that_was_changed_by_hand_meanwhile_disturbs_nobody(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let mut agent = StubAgent::alone(&server, "web-1").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let statement = agent.order().await;
        agent.accept(&statement).await;
        server.run(sql!("UPDATE instances SET status = 'stopped'"), args![]).await;
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "succeeded");
        assert_eq!(instances(&shop).await, ["stopped"], "who changed it knows better");
        wait_until("a word in the output", async || {
            let told = detail(&shop, deploy_task, task).await;
            told["output"].as_str().is_some_and(|text| text.contains("web-1: the instance was changed by somebody else"))
        })
        .await;
    }

    async fn what_the_host_knows_of_a_lost_execution_is_kept(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(given_up(&server)).await;
        let lost = Finished {
            reason: Some("the host was restarted while this ran".to_owned()),
            processes: ProcessVerdict { ended: 2, survivors: vec!["4711 sleep".to_owned()], ..ProcessVerdict::default() },
            ..finished(&statement, ExecutionState::Lost)
        };
        agent.end(lost).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "lost");
        let sql = sql!("SELECT COUNT(*) FROM executions WHERE reason = 'the host was restarted while this ran' AND processes IS NOT NULL");
        assert_eq!(server.count(sql, args![]).await, 1);
        // Nothing but how it ended takes its place.
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "succeeded");
    }

    async fn a_host_is_sent_no_more_than_it_can_hold(server: TestServer) {
        let (shop, mut agent, statement, _, _) = Box::pin(at_work(&server)).await;
        // So many more of the kind.
        let one = sql!("INSERT INTO executions (id, organisation_id, task_id, ordinal, role, instance_id, host_id, host_name, \
            attempt, state, entry, entry_digest, output_truncated, created_at) SELECT $2, organisation_id, \
            task_id, $3, role, instance_id, host_id, host_name, attempt, state, entry, entry_digest, output_truncated, \
            created_at FROM executions WHERE id = $1");
        let mut tx = server.work().begin(1).await.expect("a transaction");
        for ordinal in 1_001..=2_000_i64 {
            let (id, other) = (statement.execution_id.clone(), format!("{}-{ordinal}", statement.execution_id));
            tx.run(one.clone(), args![id, other, ordinal]).await.expect("one more");
        }
        tx.finish(Audit::none("a test prepares something")).await.expect("the commit");
        let other = shop.admin.post("/applications/", json!({"name": "other"})).await.expect(200);
        let application = other["id"].as_i64().expect("an id");
        let path = format!("/applications/{application}/instances/");
        let made = shop.admin.post(&path, json!([{"hostid": shop.hosts[0]}])).await.expect(200);
        let instances = vec![made[0]["id"].as_i64().expect("an id")];
        let shop = Shop { admin: shop.admin, application, hosts: shop.hosts, instances };
        shop.set(json!({"enabled": true})).await;
        let body = json!({"name": "other", "language": "bash", "content": "true"});
        let script = shop.admin.post("/applications/deploy-scripts/", body).await.expect(200);
        shop.set(json!({"lifecycle_hooks": {"pre_exec": {"script": {"id": script["id"]}}}})).await;
        let later = shop.started().await;
        let second = upgrade(&shop, later, &shop.instances).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(state(&shop, later, second).await, "queued", "it waits for its turn");
        server.run(sql!("UPDATE executions SET state = 'succeeded' WHERE ordinal > 1000"), args![]).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        let next = agent.order().await;
        assert_ne!(next.execution_id, statement.execution_id);
    }
}

/// How many statements wait for somebody else's lock.
async fn waiting_for_locks() -> i64 {
    let url = std::env::var("DROVER_TEST_POSTGRES_URL").expect("the tests' PostgreSQL");
    let mut connection = sqlx::PgConnection::connect(&url).await.expect("PostgreSQL answers");
    let text =
        "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE tasks SET phase%'";
    sqlx::query_scalar(text).fetch_one(&mut connection).await.expect("what it does")
}

/// A session that was late, because the database was, goes on with what its agent held long ago. Here a lock of the test
/// is what keeps it waiting.
async fn check_superseded(server: TestServer) {
    let shop = Shop::new(&server, 1).await;
    shop.hook("pre_exec", "true").await;
    let mut agent = StubAgent::alone(&server, "web-1").await;
    let deploy_task = shop.started().await;
    let body = json!({"instances": references(&shop.instances), "rollout": {"max_failures": 0}});
    let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
    let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
    let statement = agent.order().await;
    agent.accept(&statement).await;
    wait_until("the order to be taken", async || state(&shop, deploy_task, task).await == "running").await;

    let mut held = server.work().begin(1).await.expect("a transaction");
    held.run(sql!("UPDATE tasks SET phase = phase WHERE id = $1"), args![task]).await.expect("the lock");
    agent.come_back(Vec::new()).await;
    wait_until("the older session to wait", async || waiting_for_locks().await > 0).await;
    let (execution_id, attempt) = (statement.execution_id.clone(), statement.attempt);
    let holding = Holding { execution_id, attempt, channel: 1, log_length: 0, finished: false, needs_order: false };
    agent.come_back(vec![holding]).await;
    drop(held);
    wait_until("the older session to be through", async || waiting_for_locks().await == 0).await;
    assert_eq!(state(&shop, deploy_task, task).await, "running");
    agent.succeed(&statement).await;
    agent.archived(&statement).await;
    wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] != "running").await;
    assert_eq!(detail(&shop, deploy_task, task).await["status"], "finished");
}

#[tokio::test]
async fn what_an_older_session_misses_is_not_lost() {
    Box::pin(with_server(Engine::Postgres, Default::default(), check_superseded)).await;
}
