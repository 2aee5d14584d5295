//! Tasks that go after others, over HTTP: of applications that one requires, and named ones.

use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::rollouts::report;
use super::{counts, detail, instances, references, upgrades};
use crate::deploys::{PATH, Shop, action_path, grant, id};

/// `shop` requires `api`, which requires `db`; each has an instance on the one host.
struct Three {
    shop: Shop,
    api: Shop,
    db: Shop,
}

impl Three {
    async fn new(server: &TestServer) -> Self {
        let shop = Shop::new(server, 1).await;
        shop.hook("global_pre_exec", "true").await;
        shop.hook("pre_exec", "true").await;
        let api = beside(server, &shop, "api").await;
        let db = beside(server, &shop, "db").await;
        require(&shop, api.application).await;
        require(&api, db.application).await;
        Self { shop, api, db }
    }
}

/// Another application on the same hosts.
async fn beside(server: &TestServer, shop: &Shop, name: &str) -> Shop {
    let admin = server.admin();
    let application = id(&admin.post("/applications/", json!({"name": name})).await.expect(200));
    let wanted: Vec<Value> = shop.hosts.iter().map(|host| json!({"hostid": host})).collect();
    let made = admin.post(&format!("/applications/{application}/instances/"), wanted.into()).await.expect(200);
    let instances = made.as_array().expect("instances").iter().map(id).collect();
    let script = json!({"name": format!("the hook of {name}"), "language": "bash", "content": "true"});
    let script = id(&admin.post("/applications/deploy-scripts/", script).await.expect(200));
    let other = Shop { admin, application, hosts: shop.hosts.clone(), instances };
    other.set(json!({"enabled": true, "lifecycle_hooks": {"pre_exec": {"script": {"id": script}}}})).await;
    other
}

async fn require(shop: &Shop, other: i64) {
    let path = format!("/applications/{}/required-apps/", shop.application);
    shop.admin.post(&path, json!([{"id": other}])).await.expect(200);
}

/// A sub-task that was made.
#[derive(Clone, Copy)]
struct Made {
    deploy_task: i64,
    task: i64,
}

async fn asked(shop: &Shop, deploy_task: i64, rollout: Value) -> drover_tests::Answer {
    let body = json!({"instances": references(&shop.instances), "rollout": rollout});
    shop.admin.post(&upgrades(deploy_task), body).await
}

async fn upgrade(shop: &Shop, rollout: Value) -> Made {
    let deploy_task = shop.started().await;
    let receipt = asked(shop, deploy_task, rollout).await.expect(200);
    Made { deploy_task, task: receipt["task_id"].as_str().expect("text").parse().expect("digits") }
}

async fn read(shop: &Shop, made: Made) -> Value {
    detail(shop, made.deploy_task, made.task).await
}

async fn is_at(shop: &Shop, made: Made, phase: &str) {
    wait_until(phase, async || read(shop, made).await["phase"] == phase).await;
}

async fn act(shop: &Shop, made: Made, action: &str) -> drover_tests::Answer {
    shop.admin.post(&format!("{}{}/actions/{action}/", upgrades(made.deploy_task), made.task), json!({})).await
}

/// Numbers of the tasks that one goes after, with their states.
fn after(told: &Value) -> Vec<(i64, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let one = |one: &Value| (text(&one["task_id"]).parse().expect("digits"), text(&one["status"]));
    told["after"].as_array().expect("a list").iter().map(one).collect()
}

both_engines! {
    async fn many_that_wait_for_one_start_together(server: TestServer) {
        let Three { shop, db, .. } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        let mut waiting = Vec::new();
        // More than the connections for reading that there are.
        for number in 0..20 {
            let other = beside(&server, &shop, &format!("other-{number}")).await;
            let made = upgrade(&other, json!({"after_tasks": [first.task]})).await;
            waiting.push((other, made));
        }
        is_at(&db, first, "instances").await;
        report(&server, first.task, "web-1", "succeeded").await;
        for (other, made) in &waiting {
            is_at(other, *made, "instances").await;
        }
    }

    async fn each_starts_when_all_that_it_requires_has_ended_well(server: TestServer) {
        let Three { shop, api, db } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        let second = upgrade(&api, json!({"after_required": true})).await;
        let third = upgrade(&shop, json!({"after_required": true})).await;
        is_at(&db, first, "instances").await;
        let told = read(&shop, third).await;
        assert_eq!((&told["status"], &told["phase"]), (&json!("running"), &json!("waiting")), "{told:#}");
        assert_eq!(after(&told), [(first.task, "running".to_owned()), (second.task, "running".to_owned())]);
        assert_eq!((&told["after"][1]["application"], &told["after"][1]["kind"]), (&json!("api"), &json!("upgrade")));
        wait_until("the remark in the output", async || {
            let said = format!("waits for tasks {}, {} to end well", first.task, second.task);
            read(&shop, third).await["output"].as_str().is_some_and(|text| text.contains(&said))
        })
        .await;
        // Its own time has not begun.
        server.advance(Duration::from_secs(100));
        sweep_once(server.kernel(), true).await.expect("a round");
        report(&server, first.task, "web-1", "running").await;
        server.advance(Duration::from_secs(10));
        report(&server, first.task, "web-1", "succeeded").await;
        is_at(&api, second, "instances").await;
        assert_eq!(read(&shop, third).await["phase"], "waiting", "one of the two has not ended");
        assert_eq!(instances(&shop).await, ["updating"]);
        server.advance(Duration::from_secs(110));
        report(&server, second.task, "web-1", "succeeded").await;
        is_at(&shop, third, "global_pre").await;
        server.advance(Duration::from_secs(110));
        sweep_once(server.kernel(), true).await.expect("a round");
        let told = read(&shop, third).await;
        assert_eq!(told["status"], "running", "it has the whole time allowed: {told:#}");
        assert_eq!(after(&told), [(first.task, "finished".to_owned()), (second.task, "finished".to_owned())]);
        let hook = sql!("UPDATE executions SET state = 'succeeded', finished_at = 1 WHERE task_id = $1 AND role = 'global_pre'");
        server.run(hook, args![third.task]).await;
        report(&server, third.task, "web-1", "succeeded").await;
        report(&server, third.task, "web-1", "succeeded").await;
        assert_eq!(read(&shop, third).await["status"], "finished");
    }

    async fn what_cannot_start_any_more_ends_and_says_why(server: TestServer) {
        let Three { shop, api, db } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        let second = upgrade(&api, json!({"after_tasks": [first.task.to_string()]})).await;
        let third = upgrade(&shop, json!({"after_tasks": [second.task]})).await;
        is_at(&db, first, "instances").await;
        report(&server, first.task, "web-1", "failed").await;
        is_at(&shop, third, "over").await;
        for (shop, made, before) in [(&api, second, first), (&shop, third, second)] {
            let told = read(shop, made).await;
            let reason = format!("task {}, which had to go first, failed", before.task);
            assert_eq!((&told["status"], &told["error"], &told["stop_reason"]), (&json!("failed"), &json!(reason), &json!(reason)));
            assert_eq!(told["instances"][0]["status"], "cancelled", "{told:#}");
            assert_eq!(instances(shop).await, ["stopped"], "it is as it was");
            shop.act(made.deploy_task, "close").await;
        }
        let dispatched = sql!("SELECT COUNT(*) FROM executions WHERE task_id <> $1 AND dispatched_at IS NOT NULL");
        assert_eq!(server.count(dispatched, args![first.task]).await, 0);
    }

    async fn a_cancelled_or_deleted_task_lets_nothing_wait(server: TestServer) {
        let Three { shop, api, db } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        let second = upgrade(&api, json!({"after_required": true})).await;
        is_at(&db, first, "instances").await;
        act(&db, first, "cancel").await.expect(200);
        is_at(&api, second, "over").await;
        let reason = format!("task {}, which had to go first, was cancelled", first.task);
        assert_eq!(read(&api, second).await["error"], reason);
        let again = act(&api, second, "retry").await.expect(200);
        let again = again["task_id"].as_str().expect("text").parse().expect("digits");
        let again = Made { task: again, ..second };
        is_at(&api, again, "instances").await;
        let third = upgrade(&shop, json!({"after_required": true})).await;
        server.run(sql!("DELETE FROM tasks WHERE id = $1"), args![again.task]).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        is_at(&shop, third, "over").await;
        let told = read(&shop, third).await;
        assert_eq!(told["error"], format!("task {}, which had to go first, was deleted", again.task));
        assert_eq!(told["after"][0]["status"], Value::Null);
    }

    async fn a_person_lets_it_start_all_the_same_or_ends_it(server: TestServer) {
        let Three { shop, api, db } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        act(&db, first, "proceed").await.expect_error(409, 10006);
        let second = upgrade(&api, json!({"after_required": true})).await;
        is_at(&api, second, "waiting").await;
        act(&api, second, "proceed").await.expect(200);
        is_at(&api, second, "instances").await;
        act(&api, second, "proceed").await.expect_error(409, 10006);
        let third = upgrade(&shop, json!({"after_required": true})).await;
        act(&shop, third, "cancel").await.expect(200);
        is_at(&shop, third, "over").await;
        let told = read(&shop, third).await;
        assert_eq!((&told["error"], &told["global_hooks"][0]["status"]), (&json!("cancelled by admin"), &json!("cancelled")));
        assert_eq!(read(&api, second).await["status"], "running", "what went first goes on");
        // A held one stays held when its turn comes.
        let held = upgrade(&shop, json!({"after_required": true})).await;
        act(&shop, held, "pause").await.expect(200);
        report(&server, first.task, "web-1", "succeeded").await;
        report(&server, second.task, "web-1", "succeeded").await;
        is_at(&shop, held, "global_pre").await;
        assert_eq!(read(&shop, held).await["held_by"], "admin");
        act(&shop, held, "resume").await.expect(200);
        act(&shop, held, "refuse").await.expect(200);
        let actions = sql!("SELECT action FROM audit_entries WHERE object_type = 'task' AND object_id = $1 ORDER BY id");
        let actions: Vec<String> =
            server.read().await.values(actions, args![second.task]).await.expect("the audit");
        assert_eq!(actions, ["upgrade", "proceed"]);
    }

    async fn a_retry_goes_after_what_tries_again_what_failed_before_it(server: TestServer) {
        let Three { api, db, .. } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        is_at(&db, first, "instances").await;
        let second = upgrade(&api, json!({"after_tasks": [first.task]})).await;
        report(&server, first.task, "web-1", "failed").await;
        is_at(&api, second, "over").await;
        let error = act(&api, second, "retry").await.expect_error(409, 10006);
        let text = format!("task {}, which has to go first, failed", first.task);
        assert!(error["message"].as_str().is_some_and(|message| message.contains(&text)), "{error}");
        let task = |receipt: &Value| receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let again = Made { task: task(&act(&db, first, "retry").await.expect(200)), ..first };
        let after_it = Made { task: task(&act(&api, second, "retry").await.expect(200)), ..second };
        is_at(&api, after_it, "waiting").await;
        assert_eq!(after(&read(&api, after_it).await)[0].0, again.task);
        is_at(&db, again, "instances").await;
        report(&server, again.task, "web-1", "succeeded").await;
        is_at(&api, after_it, "instances").await;
    }

    async fn nobody_takes_out_all_that_there_is_to_do(server: TestServer) {
        let Three { api, db, .. } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        act(&db, first, "pause").await.expect(200);
        let second = upgrade(&api, json!({"after_tasks": [first.task]})).await;
        is_at(&api, second, "waiting").await;
        let body = json!({"instances": references(&api.instances)});
        let path = format!("{}{}/actions/skip/", upgrades(second.deploy_task), second.task);
        let error = api.admin.post(&path, body).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("cancel the task")), "{error}");
        assert_eq!(read(&api, second).await["instances"][0]["excluded"], false, "nothing was taken out");
    }

    async fn a_lost_wake_up_is_found_by_the_sweep(server: TestServer) {
        let Three { api, db, .. } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        is_at(&db, first, "instances").await;
        let second = upgrade(&api, json!({"after_tasks": [first.task]})).await;
        is_at(&api, second, "waiting").await;
        let over = sql!("UPDATE tasks SET phase = 'over', outcome = 'finished', finished_at = 1 WHERE id = $1");
        server.run(over, args![first.task]).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        is_at(&api, second, "instances").await;
    }

    async fn nobody_waits_longer_than_a_week(server: TestServer) {
        let Three { api, db, .. } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        act(&db, first, "pause").await.expect(200);
        let second = upgrade(&api, json!({"after_tasks": [first.task]})).await;
        server.advance(Duration::from_secs(6 * 86_400));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(read(&api, second).await["phase"], "waiting");
        server.advance(Duration::from_secs(86_400));
        sweep_once(server.kernel(), true).await.expect("a round");
        is_at(&api, second, "over").await;
        let reason = read(&api, second).await["error"].as_str().expect("a reason").to_owned();
        assert!(reason.contains("for a week") || reason.contains("failed"), "{reason}");
    }

    async fn a_wrong_order_changes_nothing(server: TestServer) {
        let Three { shop, api, db } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        act(&db, first, "cancel").await.expect(200);
        is_at(&db, first, "over").await;
        let deploy_task = shop.started().await;
        let before = counts(&server).await;
        for (rollout, field, word) in [
            (json!({"after_tasks": [987_654]}), "rollout.after_tasks", "there is no task 987654"),
            (json!({"after_tasks": [first.task]}), "rollout.after_tasks", "was cancelled"),
            (json!({"after_tasks": (1..=101).collect::<Vec<i64>>()}), "rollout.after_tasks", "at most 100"),
        ] {
            let told = asked(&shop, deploy_task, rollout).await.expect(400);
            assert_eq!(told["field"], field, "{told}");
            assert!(told["message"].as_str().is_some_and(|text| text.contains(word)), "{told}");
        }
        require(&db, shop.application).await;
        let before_circle = counts(&server).await;
        let told = asked(&shop, deploy_task, json!({"after_required": true})).await.expect(400);
        assert_eq!(told["field"], "rollout.after_required");
        let reason = told["message"].as_str().expect("a reason");
        assert!(reason.contains("shop → api → db → shop"), "{reason}");
        assert_eq!(counts(&server).await, before_circle);
        assert_eq!(counts(&server).await[..2], before[..2]);
        // Nobody learns of tasks that they may not see.
        let running = upgrade(&api, Value::Null).await;
        let user = server.user("ann").await;
        grant(&server, user.id, shop.application, &["view_app", "deploy_app"]).await;
        let body = json!({"instances": references(&shop.instances), "rollout": {"after_tasks": [running.task]}});
        let told = user.post(&upgrades(deploy_task), body).await.expect(400);
        assert_eq!((&told["field"], told["message"].as_str().is_some_and(|text| text.contains("there is no task"))),
            (&json!("rollout.after_tasks"), true), "{told}");
    }

    async fn the_order_is_shown_before_and_bound_by_an_approval(server: TestServer) {
        let Three { shop, db, .. } = Three::new(&server).await;
        let first = upgrade(&db, Value::Null).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&shop.instances), "rollout": {"after_required": true}});
        let plan = shop.admin.post(&format!("{}?dry_run=true", upgrades(deploy_task)), body).await.expect(200);
        assert_eq!(plan["after"]["applications"], json!(["db", "api"]));
        assert_eq!(plan["after"]["tasks"][0]["task_id"], first.task.to_string());
        let mut digests = Vec::new();
        for rollout in [json!({"after_required": true}), json!({"after_tasks": [first.task]}), json!({})] {
            let mut body = shop.body();
            body["plan"] = json!({"instances": references(&shop.instances), "rollout": rollout});
            let task = id(&shop.admin.post(PATH, body).await.expect(200));
            let plan = shop.admin.get(&format!("{PATH}{task}/plan/")).await.expect(200);
            digests.push(plan["digest"].as_str().expect("a digest").to_owned());
        }
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 3);
        let mut body = shop.body();
        body["plan"] = json!({"instances": references(&shop.instances), "rollout": {"after_required": true}});
        let task = id(&shop.admin.post(PATH, body).await.expect(200));
        shop.admin.post(&action_path(task, "approve"), json!({})).await.expect(200);
        shop.act(task, "start").await;
        // What was approved goes after others; the same without that was not approved.
        asked(&shop, task, Value::Null).await.expect_error(409, 10006);
        let receipt = asked(&shop, task, json!({"after_required": true})).await.expect(200);
        let made = Made { deploy_task: task, task: receipt["task_id"].as_str().expect("text").parse().expect("digits") };
        assert_eq!(read(&shop, made).await["phase"], "waiting");
    }
}
