//! Rollouts over HTTP: batches, canaries, holding, taking out, ending and trying again, while no agent is connected.
//!
//! What agents would report is written into the database, and the engine is asked to look.

use drover_automation::engine::sweep_once;
use drover_kernel::db::Sql;
use drover_kernel::{args, sql};
use drover_shared::message::ToServer;
use drover_shared::order::Statement;
use drover_tests::stub_agent::{StubAgent, listen};
use drover_tests::{Engine, TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{counts, detail, entries, instances, references, upgrade, upgrades};
use crate::deploys::Shop;

/// A template that never ends.
const ENDLESS: &str = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";

/// A running sub-task with this rollout on all instances.
pub(crate) async fn roll_out(shop: &Shop, deploy_task: i64, rollout: Value) -> i64 {
    let body = json!({"instances": references(&shop.instances), "rollout": rollout});
    let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
    let task = receipt["task_id"].as_str().expect("text").parse().expect("digits");
    wait_until("the instances to have their turn", async || {
        detail(shop, deploy_task, task).await["phase"] == "instances"
    })
    .await;
    task
}

/// Writes how the execution on a host goes, as its agent would report it.
pub(crate) async fn report(server: &TestServer, task: i64, host: &str, state: &str) {
    let over = matches!(state, "succeeded" | "failed" | "lost");
    let finished = over.then(|| server.clock().now());
    let change = sql!(
        "UPDATE executions SET state = $3, finished_at = $4, dispatched_at = 1 \
         WHERE task_id = $1 AND host_name = $2 AND role = 'instance'"
    );
    assert_eq!(server.run(change, args![task, host, state, finished]).await, 1, "{host}");
    if over {
        let status = if state == "succeeded" { "running" } else { "stopped" };
        let change = sql!(
            "UPDATE instances SET status = $3 WHERE id = (SELECT instance_id FROM executions WHERE task_id = $1 \
             AND host_name = $2 AND role = 'instance')"
        );
        server.run(change, args![task, host, status]).await;
    }
    sweep_once(server.kernel(), true).await.expect("a round");
}

pub(crate) async fn act(shop: &Shop, deploy_task: i64, task: i64, action: &str, body: Value) -> drover_tests::Answer {
    shop.admin.post(&format!("{}{task}/actions/{action}/", upgrades(deploy_task)), body).await
}

/// Says of everything that was done to tasks, by these actions, what the audit tells of it.
async fn audited(server: &TestServer, actions: &[&str]) -> Vec<String> {
    let mut told = Vec::new();
    for action in actions {
        let sql = sql!("SELECT detail FROM audit_entries WHERE object_type = 'task' AND action = $1 ORDER BY id");
        told.extend(server.read().await.values::<String>(sql, args![*action]).await.expect("the audit"));
    }
    told
}

/// The batch that has its turn, and why nothing more starts.
async fn at(shop: &Shop, deploy_task: i64, task: i64) -> (i64, Value) {
    let told = detail(shop, deploy_task, task).await;
    (told["batch"].as_i64().expect("a batch"), told["stop_reason"].clone())
}

/// States of the instances, in their order.
async fn states(shop: &Shop, deploy_task: i64, task: i64) -> Vec<String> {
    let told = detail(shop, deploy_task, task).await;
    let instances = told["instances"].as_array().expect("instances").iter();
    instances.map(|one| one["status"].as_str().expect("a state").to_owned()).collect()
}

both_engines! {
    async fn batches_follow_each_other_and_one_failure_too_many_ends_it(server: TestServer) {
        let shop = Shop::new(&server, 5).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 2, "max_failures": 1})).await;
        assert_eq!(at(&shop, deploy_task, task).await, (1, Value::Null));
        report(&server, task, "web-1", "succeeded").await;
        assert_eq!(at(&shop, deploy_task, task).await.0, 1, "the other one of the batch is not over");
        report(&server, task, "web-2", "failed").await;
        assert_eq!(at(&shop, deploy_task, task).await, (2, Value::Null), "one failure is allowed");
        report(&server, task, "web-3", "failed").await;
        let (batch, reason) = at(&shop, deploy_task, task).await;
        assert_eq!((batch, reason.as_str()), (2, Some("2 of 5 instances failed, 1 may")));
        // The fourth was in the same batch and had not been sent.
        assert_eq!(states(&shop, deploy_task, task).await, ["succeeded", "failed", "failed", "cancelled", "cancelled"]);
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["error"]), (&json!("failed"), &json!("2 of 5 instances failed, 1 may")));
        assert!(told["output"].as_str().is_some_and(|text| text.contains("batch 2 of 3: web-3, web-4")), "{told:#}");
        assert_eq!(instances(&shop).await, ["running", "stopped", "stopped", "stopped", "stopped"]);
    }

    async fn a_canary_waits_for_its_promotion(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"canary": 1})).await;
        act(&shop, deploy_task, task, "promote", json!({})).await.expect_error(409, 10006);
        report(&server, task, "web-1", "succeeded").await;
        server.advance(std::time::Duration::from_secs(3_600));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(at(&shop, deploy_task, task).await, (1, Value::Null), "the time allowed does not run while it waits");
        act(&shop, deploy_task, task, "promote", json!({"reason": "looks good"})).await.expect(200);
        wait_until("the others to have their turn", async || at(&shop, deploy_task, task).await.0 == 2).await;
        act(&shop, deploy_task, task, "promote", json!({})).await.expect_error(409, 10006);
        report(&server, task, "web-2", "succeeded").await;
        report(&server, task, "web-3", "succeeded").await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["status"], &told["promoted"]), (&json!("finished"), &json!(true)));
        assert_eq!(audited(&server, &["promote"]).await, ["admin says promote: looks good"], "what was refused is not told");
    }

    async fn a_refused_canary_leaves_the_others_alone(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"canary": 1})).await;
        report(&server, task, "web-1", "succeeded").await;
        act(&shop, deploy_task, task, "refuse", json!({"reason": "too slow"})).await.expect(200);
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;
        assert_eq!(at(&shop, deploy_task, task).await.1, "refused by admin: too slow");
        assert_eq!(states(&shop, deploy_task, task).await, ["succeeded", "cancelled", "cancelled"]);
        assert_eq!(instances(&shop).await, ["running", "stopped", "stopped"]);
        assert_eq!(audited(&server, &["refuse"]).await, ["admin says refuse: too slow"]);
    }

    async fn a_held_task_starts_nothing_more(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        act(&shop, deploy_task, task, "resume", json!({})).await.expect_error(409, 10006);
        act(&shop, deploy_task, task, "pause", Value::Null).await.expect(200);
        act(&shop, deploy_task, task, "pause", json!({})).await.expect_error(409, 10006);
        assert_eq!(detail(&shop, deploy_task, task).await["held_by"], "admin");
        report(&server, task, "web-1", "succeeded").await;
        server.advance(std::time::Duration::from_secs(3_600));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(at(&shop, deploy_task, task).await, (1, Value::Null));
        act(&shop, deploy_task, task, "resume", json!({"reason": "back from lunch"})).await.expect(200);
        assert_eq!(audited(&server, &["pause", "resume"]).await, ["admin says pause", "admin says resume: back from lunch"]);
        wait_until("the second batch", async || at(&shop, deploy_task, task).await.0 == 2).await;
        server.advance(std::time::Duration::from_secs(119));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(states(&shop, deploy_task, task).await, ["succeeded", "queued"], "it has the whole time allowed");
        report(&server, task, "web-2", "succeeded").await;
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "finished");
        act(&shop, deploy_task, task, "pause", json!({})).await.expect_error(409, 10006);
    }

    async fn while_a_task_is_held_no_agent_hears_of_it(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let address = listen(&server).await;
        let mut second = StubAgent::enrol(&server, address, "web-2", &[]).await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        act(&shop, deploy_task, task, "pause", json!({})).await.expect(200);
        // One that comes meanwhile is told nothing, neither at once nor by the sweep.
        let mut first = StubAgent::enrol(&server, address, "web-1", &[]).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(first.heard().await, []);
        act(&shop, deploy_task, task, "resume", json!({})).await.expect(200);
        let statement = first.order().await;
        // What has begun goes on; nobody follows.
        act(&shop, deploy_task, task, "pause", json!({})).await.expect(200);
        first.accept(&statement).await;
        first.succeed(&statement).await;
        first.archived(&statement).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(second.heard().await, []);
        assert_eq!(states(&shop, deploy_task, task).await, ["succeeded", "queued"]);
        act(&shop, deploy_task, task, "resume", json!({})).await.expect(200);
        let statement = second.order().await;
        second.accept(&statement).await;
        second.succeed(&statement).await;
        second.archived(&statement).await;
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "finished").await;
        assert_eq!((first.heard().await, second.heard().await), (vec![], vec![]), "one order for each");
    }

    async fn what_is_taken_out_is_no_failure(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        let second = json!({"instances": references(&shop.instances[1..2]), "reason": "under repair"});
        act(&shop, deploy_task, task, "skip", second.clone()).await.expect(200);
        act(&shop, deploy_task, task, "skip", second).await.expect_error(409, 10006);
        assert_eq!(act(&shop, deploy_task, task, "skip", json!({"instances": [987]})).await.expect(400)["field"], "instances");
        report(&server, task, "web-1", "succeeded").await;
        report(&server, task, "web-3", "succeeded").await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["status"], "finished", "{told:#}");
        assert_eq!(told["instances"][1]["excluded"], true);
        assert_eq!(told["instances"][1]["error"], "taken out by admin: under repair");
        assert_eq!(audited(&server, &["skip"]).await, ["admin takes out web-2: under repair"]);
    }

    async fn a_cancelled_task_ends_and_frees_its_instances(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("global_post_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        act(&shop, deploy_task, task, "cancel", json!({"reason": "wrong version"})).await.expect(200);
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "failed").await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["error"], "cancelled by admin: wrong version");
        assert_eq!(told["global_hooks"][0]["status"], "cancelled", "nothing more of it runs");
        assert_eq!(instances(&shop).await, ["stopped", "stopped"]);
        act(&shop, deploy_task, task, "cancel", json!({})).await.expect_error(409, 10006);
        let actions = sql!("SELECT action FROM audit_entries WHERE object_type = 'task' ORDER BY id");
        let actions: Vec<String> = server.read().await.values(actions, args![]).await.expect("the audit");
        assert_eq!(actions, ["upgrade", "cancel"]);
    }

    async fn what_failed_is_tried_again_from_the_failed_step_on(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "echo before").await;
        shop.hook("post_exec", "echo after").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"max_failures": null})).await;
        act(&shop, deploy_task, task, "retry", json!({})).await.expect_error(409, 10006);
        let steps = json!([{"name": "pre_exec", "state": "succeeded"}, {"name": "post_exec", "state": "failed"}]);
        server.run(sql!("UPDATE executions SET steps = $2 WHERE task_id = $1"), args![task, steps]).await;
        report(&server, task, "web-1", "succeeded").await;
        report(&server, task, "web-2", "failed").await;
        report(&server, task, "web-3", "lost").await;
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "failed");
        // The script is changed meanwhile: what is tried again is what was made then.
        shop.set(json!({"lifecycle_hooks": {"post_exec": null}})).await;
        let receipt = act(&shop, deploy_task, task, "retry", json!({"reason": "disk was full"})).await.expect(200);
        let again: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let audit = audited(&server, &["retry"]).await;
        assert_eq!(audit, [format!("tries again what failed in sub-task {task}: disk was full")]);
        let told = detail(&shop, deploy_task, again).await;
        assert_eq!((&told["origin"], &told["origin_task_id"]), (&json!("retry"), &json!(task)));
        let drafts = entries(&server, again).await;
        assert_eq!(drafts.len(), 1, "the lost one is tried again only when it is named");
        assert_eq!(drafts[0]["host"], "web-2");
        let names: Vec<&str> =
            drafts[0]["steps"].as_array().expect("steps").iter().filter_map(|step| step["name"].as_str()).collect();
        assert_eq!(names, ["post_exec"]);
        let first = json!({"instances": references(&shop.instances[..1])});
        assert_eq!(act(&shop, deploy_task, task, "retry", first).await.expect(400)["field"], "instances");
        let lost = json!({"instances": references(&shop.instances[2..]), "from_failed_step": false, "reason": "I looked"});
        let receipt = act(&shop, deploy_task, task, "retry", lost).await.expect(200);
        let whole: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        assert_eq!(entries(&server, whole).await[0]["steps"].as_array().map(Vec::len), Some(2));
    }

    async fn a_wrong_rollout_changes_nothing(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let before = counts(&server).await;
        for (rollout, field) in [
            (json!({"batch": 0}), "rollout.batch"),
            (json!({"batch": "half"}), "rollout.batch"),
            (json!({"canary": "0%"}), "rollout.canary"),
            (json!({"velocity": 1}), "rollout.velocity"),
            (json!({"auto_revert": true}), "rollout.auto_revert"),
            (json!({"health": {"http": "ftp://x"}}), "rollout.health.http"),
            (json!({"health": {"command": "{{ nothing }}"}}), "rollout.health.command"),
        ] {
            let body = json!({"instances": references(&shop.instances), "rollout": rollout});
            assert_eq!(shop.admin.post(&upgrades(deploy_task), body).await.expect(400)["field"], field);
        }
        for (member, text) in [
            ("command", ENDLESS.to_owned()),
            ("http", format!("http://localhost/{ENDLESS}")),
            ("tcp", "{{ 'x' * 1000000000 }}:80".to_owned()),
        ] {
            let rollout = json!({"health": {member: text}});
            let body = json!({"instances": references(&shop.instances), "rollout": rollout});
            let refused = shop.admin.post(&upgrades(deploy_task), body).await.expect(400);
            assert_eq!(refused["field"], format!("rollout.health.{member}"));
            assert!(refused["message"].as_str().is_some_and(|text| text.contains("takes more than")), "{refused}");
        }
        assert_eq!(counts(&server).await, before);
    }
}

/// Who waits for somebody's lock in PostgreSQL.
const WAITING: &str =
    "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Changes the rule of a task that is under way; what takes its instances back does what the task does.
pub(crate) async fn set_rule(server: &TestServer, task: i64, rollout: Value) {
    server.run(sql!("UPDATE tasks SET rollout = $2 WHERE id = $1"), args![task, rollout]).await;
    server
        .run(sql!("UPDATE executions SET revert_entry = entry WHERE task_id = $1 AND role = 'instance'"), args![task])
        .await;
}

/// Several rounds of the sweep, minutes apart.
async fn sweeps(server: &TestServer) {
    for _ in 0..5 {
        sweep_once(server.kernel(), true).await.expect("a round");
        server.advance(std::time::Duration::from_secs(600));
    }
}

both_engines! {
    async fn a_deleted_instance_keeps_no_task_from_its_end(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        set_rule(&server, task, json!({"batch": 1, "auto_revert": true})).await;
        report(&server, task, "web-1", "succeeded").await;
        let path = format!("/applications/{}/instances/", shop.application);
        shop.admin.delete_with(&path, json!([shop.instances[0]])).await.expect(200);
        report(&server, task, "web-2", "failed").await;
        sweeps(&server).await;
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "failed", "the task never ends");
    }

    async fn an_instance_in_other_hands_keeps_no_task_from_its_end(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        shop.admin.patch(&format!("/applications/{}/", shop.application), json!({"startup_cmd": "true", "stop_cmd": "true"})).await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"batch": 1})).await;
        set_rule(&server, task, json!({"batch": 1, "auto_revert": true})).await;
        report(&server, task, "web-1", "succeeded").await;
        // A second sub-task for the instance that has had its turn.
        upgrade(&shop, deploy_task, &shop.instances[..1]).await;
        report(&server, task, "web-2", "failed").await;
        sweep_once(server.kernel(), true).await.expect("a round");
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(detail(&shop, deploy_task, task).await["status"], "failed", "the task waits for another");
    }

    async fn what_never_began_is_not_taken_back(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let address = listen(&server).await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({})).await;
        set_rule(&server, task, json!({"auto_revert": true})).await;
        let mut first = StubAgent::enrol(&server, address, "web-1", &[]).await;
        let mut second = StubAgent::enrol(&server, address, "web-2", &[]).await;
        let (began, refused) = (first.order().await, second.order().await);
        first.accept(&began).await;
        first.succeed(&began).await;
        first.archived(&began).await;
        let (Statement { execution_id, attempt, .. }, reason) = (refused, "another one is at work".to_owned());
        second.say(&ToServer::Rejected { execution_id, attempt, reason, no_room: false }).await;
        // What the one did is taken back; the other one hears nothing more, and is as it was.
        first.order().await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(second.heard().await, []);
        assert_eq!(instances(&shop).await, ["reverting", "stopped"]);
    }

    async fn failures_that_are_allowed_take_nothing_back(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"max_failures": 1})).await;
        set_rule(&server, task, json!({"max_failures": 1, "auto_revert": true})).await;
        report(&server, task, "web-1", "succeeded").await;
        report(&server, task, "web-2", "failed").await;
        report(&server, task, "web-3", "succeeded").await;
        sweeps(&server).await;
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["stop_reason"], Value::Null);
        let back = server.count(sql!("SELECT COUNT(*) FROM executions e JOIN tasks t ON t.id = e.task_id WHERE t.origin = 'auto_revert'"), args![]).await;
        assert_eq!(back, 0, "instances that are taken back though the rollout was not stopped");
    }

    async fn a_retry_after_another_update_begins_anew(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "echo before").await;
        shop.hook("post_exec", "echo after").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({})).await;
        let steps = json!([{"name": "pre_exec", "state": "succeeded"}, {"name": "post_exec", "state": "failed"}]);
        server.run(sql!("UPDATE executions SET steps = $2 WHERE task_id = $1"), args![task, steps]).await;
        report(&server, task, "web-1", "failed").await;
        let other = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_until("its turn", async || detail(&shop, deploy_task, other).await["phase"] == "instances").await;
        report(&server, other, "web-1", "succeeded").await;
        let receipt = act(&shop, deploy_task, task, "retry", json!({})).await.expect(200);
        let again: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        assert_eq!(entries(&server, again).await[0]["steps"].as_array().map(Vec::len), Some(2), "steps whose work another task has undone");
    }

    async fn a_canary_that_was_taken_out_promotes_nobody(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({"canary": 1, "promote_after": 0})).await;
        act(&shop, deploy_task, task, "skip", json!({"instances": references(&shop.instances[..1])})).await.expect(200);
        sweeps(&server).await;
        assert_eq!(at(&shop, deploy_task, task).await.0, 1, "nothing was proved by anybody");
    }

    async fn what_is_refused_starts_no_first_hook(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("global_pre_exec", "true").await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&shop.instances), "rollout": {"batch": 1}});
        let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        wait_until("the hook to have its turn", async || detail(&shop, deploy_task, task).await["phase"] == "global_pre").await;
        act(&shop, deploy_task, task, "refuse", json!({})).await.expect(200);
        sweep_once(server.kernel(), true).await.expect("a round");
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!(told["global_hooks"][0]["status"], "cancelled", "it waits for its agent and will run");
    }

    async fn a_retry_shows_no_check_that_nobody_makes(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({})).await;
        report(&server, task, "web-1", "failed").await;
        for (member, value) in [("health", json!({"command": "false"})), ("auto_revert", json!(true))] {
            let answer = act(&shop, deploy_task, task, "retry", json!({"rollout": {member: value}})).await;
            assert_eq!(answer.expect(400)["field"], format!("rollout.{member}"));
        }
        act(&shop, deploy_task, task, "retry", json!({"instance": []})).await.expect(400);
        act(&shop, deploy_task, task, "retry", json!({"rollout": {"batch": 1}})).await.expect(200);
    }

    async fn a_cancel_beside_a_dispatch_is_carried_out(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({})).await;
        let ids: Vec<String> = server.read().await.values(sql!("SELECT id FROM executions ORDER BY ordinal"), args![]).await.expect("two");
        let mut tx = server.work().begin(1).await.expect("a transaction");
        let sent = drover_automation::executions::store::mark_sent(&mut tx, ids[1..].to_vec(), [task].into()).await.expect("the database");
        assert_eq!(sent.len(), 1);
        let cancel = act(&shop, deploy_task, task, "cancel", json!({}));
        let commit = async {
            if server.engine() == Engine::Postgres {
                wait_until("the cancel to wait", async || server.count(Sql::literal(WAITING), args![]).await > 0).await;
            }
            tx.finish(drover_kernel::Audit::none("executions are sent")).await.expect("a commit");
        };
        let (answer, ()) = tokio::join!(cancel, commit);
        answer.expect(200);
    }
}
