//! Hosts that come back: with the truth about what was given up, and in spite of what is broken or gone meanwhile.

use std::io::Write as _;
use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_automation::executions::store::mark_sent;
use drover_kernel::{args, sql};
use drover_shared::message::{Finished, Holding, StepOutcome};
use drover_shared::order::Statement;
use drover_shared::words::{ExecutionState, StepState};
use drover_tests::stub_agent::{StubAgent, finished, listen};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{detail, instances, upgrade, upgrades};
use crate::deploys::Shop;

/// A shop whose update is under way on its only host.
pub(crate) async fn at_work(server: &TestServer) -> (Shop, StubAgent, Statement, i64, i64) {
    let shop = Shop::new(server, 1).await;
    shop.hook("pre_exec", "true").await;
    let mut agent = StubAgent::alone(server, "web-1").await;
    let deploy_task = shop.started().await;
    let task = upgrade(&shop, deploy_task, &shop.instances).await;
    let statement = agent.order().await;
    agent.accept(&statement).await;
    wait_until("the order to be taken", async || state(&shop, deploy_task, task).await == "running").await;
    (shop, agent, statement, deploy_task, task)
}

/// A shop whose update was taken by its host and given up, because the host said nothing more.
pub(crate) async fn given_up(server: &TestServer) -> (Shop, StubAgent, Statement, i64, i64) {
    let (shop, agent, statement, deploy_task, task) = at_work(server).await;
    server.advance(Duration::from_secs(700));
    sweep_once(server.kernel(), true).await.expect("a round");
    assert_eq!(state(&shop, deploy_task, task).await, "lost");
    assert_eq!(instances(&shop).await, ["stopped"]);
    (shop, agent, statement, deploy_task, task)
}

pub(crate) async fn state(shop: &Shop, deploy_task: i64, task: i64) -> String {
    let told = detail(shop, deploy_task, task).await;
    told["instances"][0]["status"].as_str().expect("a state").to_owned()
}

both_engines! {
    async fn the_hosts_own_word_replaces_lost(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(given_up(&server)).await;
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "succeeded");
        let page = shop.admin.get(&format!("/applications/{}/instances/", shop.application)).await.expect(200);
        assert_eq!((&page["results"][0]["status"], &page["results"][0]["version"]), (&json!("running"), &json!("1.0")));
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "failed", "what was decided stays");
        wait_until("a word in the output", async || {
            let told = detail(&shop, deploy_task, task).await;
            told["output"].as_str().is_some_and(|text| text.contains("came back after it was given up as lost: succeeded"))
        })
        .await;
    }

    async fn an_instance_that_is_gone_meanwhile_disturbs_nobody(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(given_up(&server)).await;
        let path = format!("/applications/{}/instances/", shop.application);
        shop.admin.delete_with(&path, json!(shop.instances)).await.expect(200);
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "succeeded");
        // The host goes on to be of use, in the same session.
        let hosts = json!([{"hostid": shop.hosts[0]}]);
        let made = shop.admin.post(&path, hosts).await.expect(200);
        upgrade(&shop, deploy_task, &[made[0]["id"].as_i64().expect("an id")]).await;
        agent.order().await;
    }

    async fn a_damaged_file_of_output_keeps_no_host_from_its_other_work(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        // Another application is deployed to the same host after the server started anew over a broken file.
        let other = shop.admin.post("/applications/", json!({"name": "other"})).await.expect(200)["id"].as_i64().expect("an id");
        let path = format!("/applications/{other}/instances/");
        let made = shop.admin.post(&path, json!([{"hostid": shop.hosts[0]}])).await.expect(200);
        for action in ["pause", "resume"] {
            let path = format!("{}{task}/actions/{action}/", upgrades(deploy_task));
            shop.admin.post(&path, Value::Null).await.expect(200);
        }
        wait_until("a line of output", async || {
            detail(&shop, deploy_task, task).await["output"].as_str().is_some_and(|text| text.contains("resume"))
        })
        .await;
        let file = server.data_directory().join(format!("logs/{}/{task}.log", task / 1000));
        std::fs::OpenOptions::new().write(true).open(&file).expect("the output").write_all(&[0xFF; 16]).expect("room");
        let Shop { admin, hosts, .. } = shop;
        drop(admin);
        let server = server.restarted().await;
        let shop = Shop { admin: server.admin(), application: other, hosts, instances: vec![made[0]["id"].as_i64().expect("an id")] };
        shop.set(json!({"enabled": true})).await;
        let script = shop.admin.post("/applications/deploy-scripts/", json!({"name": "other", "language": "bash", "content": "true"})).await.expect(200);
        shop.set(json!({"lifecycle_hooks": {"pre_exec": {"script": {"id": script["id"]}}}})).await;
        let later = shop.started().await;
        upgrade(&shop, later, &shop.instances).await;
        agent.moves_to(listen(&server).await);
        let Statement { execution_id, attempt, .. } = statement.clone();
        let holding = Holding { execution_id, attempt, channel: 1, log_length: 0, finished: false, needs_order: false };
        agent.come_back(vec![holding]).await;
        let next = agent.order().await;
        assert_ne!(next.execution_id, statement.execution_id);
        drop(shop.admin);
    }

    async fn what_is_held_in_the_last_moment_is_not_sent(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_until("its turn", async || detail(&shop, deploy_task, task).await["phase"] == "instances").await;
        let ids: Vec<String> = server.read().await.values(sql!("SELECT id FROM executions"), args![]).await.expect("one");
        // Between reading what waits and marking it as sent a person holds the task.
        let path = format!("{}{task}/actions/pause/", upgrades(deploy_task));
        shop.admin.post(&path, Value::Null).await.expect(200);
        let mut tx = server.work().begin(1).await.expect("a transaction");
        let sent = mark_sent(&mut tx, ids.clone(), [task].into()).await.expect("the database");
        assert_eq!((ids.len(), sent), (1, vec![]));
    }
}

both_engines! {
    async fn what_never_arrived_does_not_start_after_the_stop(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let address = listen(&server).await;
        let mut good = StubAgent::enrol(&server, address, "web-1", &[]).await;
        let mut deaf = StubAgent::enrol(&server, address, "web-2", &[]).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": crate::tasks::references(&shop.instances), "rollout": {"max_failures": 0}});
        let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let statement = good.order().await;
        // The order of the other one is under way when its connection breaks: it never holds it.
        deaf.order().await;
        deaf.leave();
        good.accept(&statement).await;
        good.end(finished(&statement, ExecutionState::Failed)).await;
        wait_until("the stop", async || !detail(&shop, deploy_task, task).await["stop_reason"].is_null()).await;
        deaf.come_back(Vec::new()).await;
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;
        let told = detail(&shop, deploy_task, task).await;
        let states: Vec<&Value> = (0..2).map(|one| &told["instances"][one]["status"]).collect();
        assert_eq!(states, ["failed", "cancelled"], "a target starts after the allowed failures: {told:#}");
    }

    async fn a_failed_download_leaves_the_instance_as_it_was(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        server.run(sql!("UPDATE instances SET status = 'running', version = 'old'"), args![]).await;
        let mut agent = StubAgent::alone(&server, "web-1").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let statement = agent.order().await;
        agent.accept(&statement).await;
        let step = |name: &str, state| StepOutcome {
            name: name.to_owned(), state, exit_code: None, signal: None, error: None, started_ms: None, duration_ms: None,
            log_start: 0, log_end: 0,
        };
        let steps = vec![step("fetch", StepState::Failed), step("pre_exec", StepState::Skipped)];
        agent.end(Finished { steps, ..finished(&statement, ExecutionState::Failed) }).await;
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;
        assert_eq!(instances(&shop).await, ["running"], "nothing was stopped there");
    }
}
