//! Cancelling one execution at each moment: queued, while it is being sent, at work, over, and a second time.

use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_automation::executions::store::mark_sent;
use drover_kernel::{args, sql};
use drover_shared::message::{Holding, ToAgent};
use drover_shared::order::Statement;
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, finished, listen};
use drover_tests::{Answer, TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::rollouts::roll_out;
use super::{detail, instances, upgrade, upgrades};
use crate::deploys::{Shop, grant};

const NOBODYS: &str = "0190a5a0-0000-7000-8000-000000000001";

fn address(deploy_task: i64, task: i64, execution: &str) -> String {
    format!("{}{task}/executions/{execution}/actions/cancel/", upgrades(deploy_task))
}

/// Cancels what a sub-task does on an instance, or its hook.
async fn cancel(shop: &Shop, (deploy_task, task): (i64, i64), (list, at): (&str, usize)) -> Answer {
    let told = detail(shop, deploy_task, task).await;
    let id = told[list][at]["execution_id"].as_str().expect("an id").to_owned();
    shop.admin.post(&address(deploy_task, task, &id), json!({"reason": "not there"})).await
}

async fn state(shop: &Shop, (deploy_task, task): (i64, i64), at: usize) -> String {
    detail(shop, deploy_task, task).await["instances"][at]["status"].as_str().expect("a state").to_owned()
}

async fn is_over(shop: &Shop, (deploy_task, task): (i64, i64)) -> Value {
    wait_until("the end", async || detail(shop, deploy_task, task).await["status"] != "running").await;
    detail(shop, deploy_task, task).await
}

async fn succeed(agent: &mut StubAgent) {
    let statement = agent.order().await;
    agent.accept(&statement).await;
    agent.succeed(&statement).await;
    agent.archived(&statement).await;
}

/// Waits until the agent is told to end this, and gives why.
async fn told_to_end(agent: &mut StubAgent, statement: &Statement) -> String {
    loop {
        if let ToAgent::Cancel { execution_id, reason, timed_out, .. } = agent.hear().await {
            assert_eq!((execution_id, timed_out), (statement.execution_id.clone(), false));
            return reason;
        }
    }
}

async fn audited(server: &TestServer) -> Vec<String> {
    let sql = sql!("SELECT detail FROM audit_entries WHERE object_type = 'task' AND action = 'cancel' ORDER BY id");
    server.read().await.values(sql, args![]).await.expect("the audit")
}

both_engines! {
    async fn what_was_not_sent_never_is_and_the_others_go_on(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let of = (deploy_task, upgrade(&shop, deploy_task, &shop.instances).await);
        cancel(&shop, of, ("instances", 0)).await.expect(200);
        assert_eq!(instances(&shop).await, ["stopped", "updating"], "it is as it was, and free");
        cancel(&shop, of, ("instances", 0)).await.expect_error(409, 10006);
        shop.admin.post(&address(of.0, of.1, NOBODYS), json!({})).await.expect_error(404, 10004);
        let address = listen(&server).await;
        let mut first = StubAgent::enrol(&server, address, "web-1", &[]).await;
        succeed(&mut StubAgent::enrol(&server, address, "web-2", &[]).await).await;
        let told = is_over(&shop, of).await;
        assert_eq!(first.heard().await, []);
        assert_eq!(told["status"], "finished", "{told:#}");
        let one = &told["instances"][0];
        assert_eq!((&one["status"], &one["excluded"]), (&json!("cancelled"), &json!(true)));
        assert_eq!(one["error"], "cancelled by admin: not there");
        assert_eq!(audited(&server).await, ["admin cancels web-1: not there"], "what was refused is not told");
        cancel(&shop, of, ("instances", 1)).await.expect_error(409, 10006);
    }

    async fn who_may_only_look_cancels_nothing(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let told = detail(&shop, deploy_task, task).await;
        let path = address(deploy_task, task, told["instances"][0]["execution_id"].as_str().expect("an id"));
        let user = server.user("ann").await;
        grant(&server, user.id, shop.application, &["view_app"]).await;
        user.post(&path, json!({})).await.expect_error(403, 10003);
        assert_eq!(shop.admin.post(&path, json!({"why": "x"})).await.expect(400)["field"], "why");
        assert_eq!(state(&shop, (deploy_task, task), 0).await, "queued");
        grant(&server, user.id, shop.application, &["deploy_app"]).await;
        user.post(&path, json!({})).await.expect(200);
        let told = is_over(&shop, (deploy_task, task)).await;
        assert_eq!(told["instances"][0]["error"], "cancelled by ann");
        assert_eq!(told["status"], "failed", "nothing was done: nobody takes that for well done");
    }

    async fn what_runs_is_told_to_end_in_every_session_until_it_has(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let address = listen(&server).await;
        let mut first = StubAgent::enrol(&server, address, "web-1", &[]).await;
        let mut second = StubAgent::enrol(&server, address, "web-2", &[]).await;
        let deploy_task = shop.started().await;
        let of = (deploy_task, roll_out_one_by_one(&shop, deploy_task).await);
        let statement = first.order().await;
        first.accept(&statement).await;
        wait_until("the order to be taken", async || state(&shop, of, 0).await == "running").await;
        cancel(&shop, of, ("instances", 0)).await.expect(200);
        assert_eq!(told_to_end(&mut first, &statement).await, "cancelled by admin: not there");
        let told = detail(&shop, of.0, of.1).await;
        let one = &told["instances"][0];
        assert_eq!((&one["status"], &one["cancel_reason"]), (&json!("running"), &json!("cancelled by admin: not there")));
        // Once is enough in a session, however often somebody says so.
        cancel(&shop, of, ("instances", 0)).await.expect(200);
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(first.heard().await, []);
        let Statement { execution_id, attempt, .. } = statement.clone();
        first.come_back(vec![Holding { execution_id, attempt, channel: 1, log_length: 0, finished: false, needs_order: false }]).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(told_to_end(&mut first, &statement).await, "cancelled by admin: not there");
        assert_eq!(second.heard().await, [], "it is not over");
        first.end(finished(&statement, ExecutionState::Cancelled)).await;
        first.archived(&statement).await;
        // No failure is allowed, and this was none.
        succeed(&mut second).await;
        let told = is_over(&shop, of).await;
        assert_eq!((&told["status"], &told["stop_reason"]), (&json!("finished"), &Value::Null), "{told:#}");
        assert_eq!(told["instances"][0]["excluded"], true);
        assert_eq!(instances(&shop).await, ["stopped", "running"]);
    }

    async fn what_is_cancelled_while_it_is_being_sent_is_told_so_or_never_starts(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let of = (deploy_task, upgrade(&shop, deploy_task, &shop.instances).await);
        wait_until("its turn", async || detail(&shop, of.0, of.1).await["phase"] == "instances").await;
        // It counts as sent, and its connection broke before that: nobody knows whether it arrived.
        let id = detail(&shop, of.0, of.1).await["instances"][0]["execution_id"].as_str().expect("an id").to_owned();
        let mut tx = server.work().begin(1).await.expect("a transaction");
        assert_eq!(mark_sent(&mut tx, vec![id.clone()], [of.1].into()).await.expect("the database"), std::slice::from_ref(&id));
        tx.finish(drover_kernel::Audit::none("executions are sent")).await.expect("a commit");
        cancel(&shop, of, ("instances", 0)).await.expect(200);
        assert_eq!(state(&shop, of, 0).await, "dispatched");
        let mut agent = StubAgent::alone(&server, "web-1").await;
        let told = is_over(&shop, of).await;
        assert_eq!(told["instances"][0]["status"], "cancelled");
        assert_eq!(told["instances"][0]["error"], "cancelled by admin: not there");
        assert_eq!(agent.heard().await, [], "nothing is sent any more");
        assert_eq!(instances(&shop).await, ["stopped"]);
    }

    async fn what_was_done_before_it_heard_of_its_end_has_succeeded(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let mut agent = StubAgent::alone(&server, "web-1").await;
        let deploy_task = shop.started().await;
        let of = (deploy_task, upgrade(&shop, deploy_task, &shop.instances).await);
        let statement = agent.order().await;
        agent.accept(&statement).await;
        cancel(&shop, of, ("instances", 0)).await.expect(200);
        agent.succeed(&statement).await;
        let told = is_over(&shop, of).await;
        let one = &told["instances"][0];
        assert_eq!((&told["status"], &one["status"], &one["excluded"]), (&json!("finished"), &json!("succeeded"), &json!(false)));
        assert_eq!(instances(&shop).await, ["running"]);
    }

    async fn without_its_first_hook_nothing_starts(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("global_pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let of = (deploy_task, upgrade(&shop, deploy_task, &shop.instances).await);
        cancel(&shop, of, ("global_hooks", 0)).await.expect(200);
        let told = is_over(&shop, of).await;
        let hook = &told["global_hooks"][0];
        assert_eq!((&told["status"], &hook["status"], &hook["excluded"]), (&json!("failed"), &json!("cancelled"), &json!(false)));
        assert_eq!(told["instances"][0]["status"], "cancelled");
        assert_eq!(audited(&server).await, ["admin cancels global_pre on web-1: not there"]);
    }

    async fn what_a_cancelled_one_leaves_unsaid_is_lost_like_any_other(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let mut agent = StubAgent::alone(&server, "web-1").await;
        let deploy_task = shop.started().await;
        let of = (deploy_task, upgrade(&shop, deploy_task, &shop.instances).await);
        let statement = agent.order().await;
        agent.accept(&statement).await;
        wait_until("the order to be taken", async || state(&shop, of, 0).await == "running").await;
        cancel(&shop, of, ("instances", 0)).await.expect(200);
        agent.leave();
        server.advance(Duration::from_secs(700));
        sweep_once(server.kernel(), true).await.expect("a round");
        let told = is_over(&shop, of).await;
        let one = &told["instances"][0];
        assert_eq!((&one["status"], &one["excluded"]), (&json!("lost"), &json!(false)), "{told:#}");
    }
}

/// All instances, one after the other, and no failure.
async fn roll_out_one_by_one(shop: &Shop, deploy_task: i64) -> i64 {
    roll_out(shop, deploy_task, json!({"batch": 1, "max_failures": 0})).await
}
