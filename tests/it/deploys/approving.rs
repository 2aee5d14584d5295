//! Approvals that are bound to a plan: what was approved is what runs, or nothing does.

use std::time::Duration;

use drover_automation::engine::{put_off, sweep_once};
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{PATH, Repository, Shop, action_path, audited, count, id};

/// Seconds from the test clock's beginning to the planned time.
const AHEAD_S: i64 = 3_600;

/// A new deploy task that carries an update of all instances.
async fn carried(shop: &Shop, more: Value) -> i64 {
    let instances: Value = shop.instances.iter().map(|id| json!({"id": id})).collect();
    let mut body = shop.body();
    let fields = body.as_object_mut().expect("an object");
    fields.insert("package_source".to_owned(), json!(""));
    fields.insert("plan".to_owned(), json!({"instances": instances, "rollout": {"batch": 1}}));
    fields.extend(more.as_object().expect("an object").clone());
    id(&shop.admin.post(PATH, body).await.expect(200))
}

/// The same, approved.
async fn approved(shop: &Shop, more: Value) -> i64 {
    let task = carried(shop, more).await;
    shop.act(task, "approve").await;
    task
}

/// A shop with a hook and a real repository.
async fn shop(server: &TestServer, hosts: usize) -> (Shop, Repository, i64) {
    let shop = Shop::new(server, hosts).await;
    let repository = Repository::new();
    shop.set(json!({"repository": repository.settings(), "deploy_path": "/srv/shop"})).await;
    let script = shop.hook("pre_exec", "echo {{ host.name }}").await;
    (shop, repository, script)
}

/// Plans for a time from now on and starts by itself.
fn by_itself(server: &TestServer) -> Value {
    json!({"auto_start": true, "planned_exec_time": server.clock().now().seconds() + AHEAD_S})
}

async fn plan(shop: &Shop, task: i64) -> Value {
    shop.admin.get(&format!("{PATH}{task}/plan/")).await.expect(200)
}

/// Whether a start is refused because the approval is void, and what is said of it.
async fn void(shop: &Shop, task: i64) -> String {
    let refused = shop.admin.post(&action_path(task, "start"), Value::Null).await.expect_error(409, 10006);
    let told = shop.read(task).await;
    assert_eq!((&told["status"], &told["plan_digest"]), (&json!("wait_review"), &Value::Null), "{refused}");
    let reason = told["status_reason"].as_str().expect("a reason").to_owned();
    let why = reason.strip_prefix("the approval is void: ").expect("a void approval");
    assert!(refused["message"].as_str().is_some_and(|message| message.ends_with(why)), "{refused}");
    reason
}

/// Waits until the deploy task is in this state.
async fn wait_for(server: &TestServer, shop: &Shop, task: i64, status: &str) {
    wait_until(status, async || {
        sweep_once(server.kernel(), false).await.expect("a round");
        shop.read(task).await["status"] == status
    })
    .await;
}

fn upgrades(task: i64) -> String {
    format!("{PATH}{task}/sub-upgrade-tasks/")
}

both_engines! {
    async fn what_was_approved_runs(server: TestServer) {
        let (shop, repository, _) = shop(&server, 2).await;
        let task = carried(&shop, json!({})).await;
        let looked_at = plan(&shop, task).await;
        assert_eq!(looked_at["batches"], json!([["web-1"], ["web-2"]]));
        let approval = json!({"plan_digest": looked_at["digest"]});
        shop.admin.post(&action_path(task, "approve"), approval).await.expect(200);
        let told = shop.read(task).await;
        assert_eq!((&told["plan_digest"], &told["plan_commit"]), (&looked_at["digest"], &looked_at["commit"]));
        assert_eq!(told["plan"]["instances"], json!(shop.instances));
        shop.act(task, "start").await;
        let body = json!({"instances": told["plan"]["instances"], "rollout": told["plan"]["rollout"]});
        shop.admin.post(&upgrades(task), body).await.expect(200);
        // The branch moves on; what was approved does not.
        repository.commit("index.html", "two\n");
        let commit = || async {
            let sql = sql!("SELECT resolved_commit FROM tasks WHERE resolved_commit IS NOT NULL");
            server.read().await.values::<String>(sql, args![]).await.expect("the task")
        };
        wait_until("the source", async || !commit().await.is_empty()).await;
        assert_eq!(json!(commit().await), json!([looked_at["commit"]]));
    }

    async fn whatever_changes_makes_an_approval_void_and_is_named(server: TestServer) {
        let (shop, repository, script) = shop(&server, 2).await;
        let changed = |what: &str| format!("the approval is void: {what} changed since it was approved");
        let task = approved(&shop, json!({})).await;
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "echo other"})).await.expect(200);
        assert_eq!(void(&shop, task).await, changed("the script of pre_exec"));
        shop.act(task, "approve").await;
        shop.set(json!({"keep_backups": 9})).await;
        assert_eq!(void(&shop, task).await, changed("the settings"));
        shop.act(task, "approve").await;
        shop.hook("post_exec", "true").await;
        repository.commit("index.html", "two\n");
        assert_eq!(void(&shop, task).await, changed("the commit and the script of post_exec"));
        shop.act(task, "approve").await;
        shop.set(json!({"repository": {"branch": "other"}})).await;
        shop.set(json!({"repository": {"branch": "main"}})).await;
        shop.admin.patch(&format!("/hosts/{}/", shop.hosts[1]), json!({"name": "web-9"})).await.expect(200);
        let reason = void(&shop, task).await;
        assert!(reason.contains("the targets"), "{reason}");
        shop.act(task, "approve").await;
        let path = format!("/applications/{}/instances/", shop.application);
        shop.admin.delete_with(&path, json!([shop.instances[1]])).await.expect(200);
        let reason = void(&shop, task).await;
        assert!(reason.contains("cannot be planned any more") && reason.contains("is no instance"), "{reason}");
        // What cannot be planned cannot be approved.
        let refused = shop.admin.post(&action_path(task, "approve"), Value::Null).await.expect(400);
        assert_eq!(refused["field"], "instances");
        assert_eq!(audited(&server, task).await, ["create", "approve", "void", "approve", "void", "approve", "void",
            "approve", "void", "approve", "void"]);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0);
    }

    async fn an_approval_is_of_what_was_looked_at(server: TestServer) {
        let (shop, repository, _) = shop(&server, 1).await;
        let task = carried(&shop, json!({})).await;
        let digest = json!({"plan_digest": plan(&shop, task).await["digest"]});
        repository.commit("index.html", "two\n");
        shop.admin.post(&action_path(task, "approve"), digest.clone()).await.expect_error(409, 10006);
        assert_eq!(shop.read(task).await["status"], "wait_review");
        let digest_now = json!({"plan_digest": plan(&shop, task).await["digest"]});
        shop.admin.post(&action_path(task, "approve"), digest_now).await.expect(200);
        let bare = shop.task().await;
        let refused = shop.admin.post(&action_path(bare, "approve"), digest).await.expect(400);
        assert_eq!(refused["field"], "plan_digest");
        shop.admin.get(&format!("{PATH}{bare}/plan/")).await.expect_error(409, 10006);
        // A change takes the approval's ground away as well.
        shop.admin.patch(&format!("{PATH}{task}/"), json!({"level": "S"})).await.expect_error(409, 10006);
    }

    async fn an_approval_is_of_the_time_that_was_looked_at(server: TestServer) {
        let (shop, _repository, _) = shop(&server, 1).await;
        let task = carried(&shop, by_itself(&server)).await;
        let later = json!({"planned_exec_time": server.clock().now().seconds() + 2 * AHEAD_S});
        for change in [later, json!({"auto_start": false})] {
            let digest = json!({"plan_digest": plan(&shop, task).await["digest"]});
            shop.admin.patch(&format!("{PATH}{task}/"), change).await.expect(200);
            shop.admin.post(&action_path(task, "approve"), digest).await.expect_error(409, 10006);
        }
        // What nobody starts by itself may be planned for whenever.
        let digest = json!({"plan_digest": plan(&shop, task).await["digest"]});
        shop.admin.patch(&format!("{PATH}{task}/"), json!({"planned_exec_time": 1_800_000_000})).await.expect(200);
        shop.admin.post(&action_path(task, "approve"), digest).await.expect(200);
    }

    async fn what_somebody_started_is_not_put_off(server: TestServer) {
        let (shop, _repository, _) = shop(&server, 1).await;
        let task = approved(&shop, by_itself(&server)).await;
        put_off(server.kernel(), 1, task, "an instance is busy").await.expect("the database");
        assert_eq!(shop.read(task).await["status_reason"], "it cannot start yet: an instance is busy");
        let started = approved(&shop, by_itself(&server)).await;
        shop.act(started, "start").await;
        // An attempt that was on its way meanwhile has nothing to say any more.
        put_off(server.kernel(), 1, started, "somebody else moved it").await.expect("the database");
        let told = shop.read(started).await;
        assert_eq!((&told["status"], &told["status_reason"]), (&json!("running"), &Value::Null));
        assert_eq!(audited(&server, started).await, ["create", "approve", "start"]);
    }

    async fn nothing_else_runs_under_an_approval(server: TestServer) {
        let (shop, _repository, script) = shop(&server, 2).await;
        let task = approved(&shop, json!({})).await;
        shop.act(task, "start").await;
        let first = json!({"instances": [shop.instances[0]], "rollout": {"batch": 1}});
        let refused = shop.admin.post(&upgrades(task), first).await.expect_error(409, 10006);
        let message = refused["message"].as_str().expect("text");
        assert!(message.starts_with("this is not what was approved: ") && message.contains("the targets"), "{message}");
        assert_eq!(shop.read(task).await["status"], "running", "asking for something else changes nothing");
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "echo other"})).await.expect(200);
        let all = json!({"instances": shop.instances, "rollout": {"batch": 1}});
        shop.admin.post(&upgrades(task), all.clone()).await.expect_error(409, 10006);
        let told = shop.read(task).await;
        assert_eq!((&told["status"], &told["sub_tasks"]), (&json!("wait_review"), &json!([])));
        shop.act(task, "approve").await;
        shop.act(task, "start").await;
        shop.admin.post(&upgrades(task), all).await.expect(200);
    }

    async fn it_starts_by_itself_at_its_time(server: TestServer) {
        let (shop, _repository, _) = shop(&server, 2).await;
        let unreviewed = carried(&shop, by_itself(&server)).await;
        let task = approved(&shop, by_itself(&server)).await;
        server.advance(Duration::from_secs(3_590));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(shop.read(task).await["status"], "approved");
        server.advance(Duration::from_secs(10));
        wait_for(&server, &shop, task, "running").await;
        let told = shop.read(task).await;
        assert_eq!(told["sub_tasks"].as_array().map(Vec::len), Some(1), "{told:#}");
        assert_eq!(told["sub_tasks"][0]["rollout"]["batch"], 1);
        assert_eq!(told["sub_tasks"][0]["creator"], "admin");
        assert_eq!(audited(&server, task).await, ["create", "approve", "start"]);
        assert_eq!(shop.read(unreviewed).await["status"], "wait_review");
        // Rounds that follow make nothing more.
        server.advance(Duration::from_secs(60));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 1);
    }

    async fn what_changed_before_its_time_does_not_start(server: TestServer) {
        let (shop, repository, _) = shop(&server, 1).await;
        let task = approved(&shop, by_itself(&server)).await;
        repository.commit("index.html", "two\n");
        server.advance(Duration::from_secs(3_601));
        wait_for(&server, &shop, task, "wait_review").await;
        assert_eq!(shop.read(task).await["status_reason"], "the approval is void: the commit changed since it was approved");
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0);
        // Approved anew it is due at once.
        shop.act(task, "approve").await;
        wait_for(&server, &shop, task, "running").await;
    }

    async fn what_cannot_start_yet_is_tried_again_for_an_hour(server: TestServer) {
        let (shop, _repository, _) = shop(&server, 1).await;
        let busy = sql!("UPDATE instances SET status = 'updating'");
        let task = approved(&shop, by_itself(&server)).await;
        let late = approved(&shop, by_itself(&server)).await;
        server.run(busy, args![]).await;
        server.advance(Duration::from_secs(3_601));
        wait_until("the reason", async || {
            sweep_once(server.kernel(), false).await.expect("a round");
            shop.read(task).await["status_reason"].as_str().is_some_and(|why| why.starts_with("it cannot start yet: "))
        })
        .await;
        // First this one, which would take the instance as soon as it is free.
        server.run(sql!("UPDATE deploy_tasks SET status = 'closed' WHERE id = $1"), args![late]).await;
        server.run(sql!("UPDATE instances SET status = 'running'"), args![]).await;
        server.advance(Duration::from_secs(31));
        wait_for(&server, &shop, task, "running").await;
        // A server that was away at the time and the hour after does not start it in broad daylight.
        server.run(sql!("UPDATE deploy_tasks SET status = 'approved' WHERE id = $1"), args![late]).await;
        server.advance(Duration::from_secs(3_700));
        wait_until("the end of it", async || {
            sweep_once(server.kernel(), false).await.expect("a round");
            shop.read(late).await["auto_start"] == false
        })
        .await;
        let told = shop.read(late).await;
        assert_eq!(told["status"], "approved");
        let reason = told["status_reason"].as_str().expect("a reason");
        assert!(reason.starts_with("it did not start by itself: its time passed"), "{reason}");
        // A person may still start it: what was approved is unchanged.
        server.run(sql!("UPDATE instances SET status = 'running'"), args![]).await;
        shop.act(late, "start").await;
    }

    async fn a_plan_that_makes_no_sense_is_refused(server: TestServer) {
        let (shop, _repository, _) = shop(&server, 1).await;
        let before = count(&server).await;
        for (more, field) in [
            (json!({"plan": {"instances": []}}), "plan.instances"),
            (json!({"plan": {"instances": [{"id": 1}], "timeout": 0}}), "plan.timeout"),
            (json!({"plan": {"instances": [{"id": 1}], "rollout": {"batch": 0}}}), "plan.rollout.batch"),
            (json!({"plan": {"instances": [{"id": 1}], "speed": 1}}), "plan.speed"),
            (json!({"plan": null, "auto_start": true}), "auto_start"),
        ] {
            let mut body = shop.body();
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            assert_eq!(shop.admin.post(PATH, body).await.expect(400)["field"], field);
        }
        assert_eq!(count(&server).await, before);
        let past = json!({"auto_start": true, "planned_exec_time": server.clock().now().seconds() - 3_700});
        let task = carried(&shop, past).await;
        shop.admin.post(&action_path(task, "approve"), Value::Null).await.expect_error(409, 10006);
        shop.admin.patch(&format!("{PATH}{task}/"), json!({"plan": null})).await.expect(400);
        let told = shop.admin.patch(&format!("{PATH}{task}/"), json!({"plan": null, "auto_start": false})).await.expect(200);
        assert_eq!((&told["plan"], &told["auto_start"]), (&Value::Null, &json!(false)));
        shop.act(task, "approve").await;
    }
}
