//! Moments that come, are missed, overlap, and are asked for by hand.

use drover_kernel::{args, sql};
use drover_tests::{both_engines, wait_until};
use serde_json::{Value, json};

use super::{PATH, body, end, look, newest_task, pass, runs, schedule, shop, told, wait_for};
use crate::deploys::grant;

both_engines! {
    async fn a_moment_is_run_when_it_comes(server: TestServer) {
        let shop = shop(&server, 2).await;
        let id = schedule(&server, &shop, json!({"what": {"kind": "restart", "application_id": shop.application,
            "timeout": 77, "rollout": {"batch": "50%"}}})).await;
        pass(&server, 9).await;
        assert_eq!(told(&shop, id).await, [""; 0], "not before its time");
        pass(&server, 1).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        let task = newest_task(&shop, id).await;
        let detail = shop.admin.get(&format!("/tasks/{task}/")).await.expect(200);
        assert_eq!((&detail["kind"], &detail["creator"]), (&json!("restart"), &json!("admin")));
        assert_eq!((&detail["timeout"], &detail["rollout"]["batch"]), (&json!(77), &json!("50%")));
        assert_eq!(detail["instances"].as_array().expect("instances").len(), 2, "all that there are");
        wait_until("what the output says", async || {
            let detail = shop.admin.get(&format!("/tasks/{task}/")).await.expect(200);
            detail["output"].as_str().is_some_and(|text| text.contains("by schedule nightly, moment 2024-05-01T12:10:00"))
        }).await;
        // However often somebody looks.
        let looks = (0..20).map(|_| look(&server));
        futures_util::future::join_all(looks).await;
        assert_eq!(told(&shop, id).await, ["12:10 started"]);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 1);
        let audit = sql!("SELECT action FROM audit_entries WHERE object_type = 'schedule' ORDER BY id");
        let audit: Vec<String> = server.read().await.values(audit, args![]).await.expect("the audit");
        assert_eq!(audit, ["add", "run"]);
    }

    async fn a_new_server_makes_up_for_what_was_missed_as_the_policy_says(server: TestServer) {
        let shop = shop(&server, 1).await;
        let (mut ids, policies) = (Vec::new(), ["skip", "once", "all"]);
        for missed in policies {
            let more = json!({"name": missed, "missed": missed, "missed_max": 2, "overlap": "queue"});
            ids.push(schedule(&server, &shop, more).await);
        }
        let crate::deploys::Shop { application, hosts, instances, admin } = shop;
        drop(admin);
        let server = server.restarted().await;
        let shop = crate::deploys::Shop { admin: server.admin(), application, hosts, instances };
        pass(&server, 45).await;
        // One instance: the first of them has it, and the others wait for that.
        let mut noted = Vec::new();
        for id in &ids {
            let runs = runs(&shop, *id).await;
            noted.push(runs.iter().rev().map(|run| run["moment"].as_str().expect("a time")[11..16].to_owned()).collect::<Vec<_>>());
        }
        assert_eq!(noted, [vec!["12:40"], vec!["12:30", "12:40"], vec!["12:20", "12:30", "12:40"]]);
        let missed = runs(&shop, ids[0]).await;
        assert_eq!(missed[0]["state"], "missed");
        let reason = missed[0]["reason"].as_str().expect("a reason");
        assert!(reason.contains("4 moments") && reason.contains("2024-05-01T12:10:00"), "{reason}");
        assert_eq!(runs(&shop, ids[1]).await[1]["state"], "missed");
        // The next one is in time.
        pass(&server, 5).await;
        assert_eq!(runs(&shop, ids[0]).await[0]["moment"].as_str().map(|time| &time[11..16]), Some("12:50"));
    }

    async fn a_moment_that_overlaps_is_left_out(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({})).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        let task = newest_task(&shop, id).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 skipped"]).await;
        assert_eq!(runs(&shop, id).await[0]["reason"], format!("task {task} is not over"));
        end(&shop, task).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 skipped", "12:30 started"]).await;
    }

    async fn moments_that_overlap_wait_in_their_order_up_to_a_number(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({"overlap": "queue"})).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        for _ in 0..11 {
            pass(&server, 10).await;
        }
        let states: Vec<Value> = runs(&shop, id).await.iter().rev().map(|run| run["state"].clone()).collect();
        assert_eq!(states.iter().filter(|state| **state == "waiting").count(), 10);
        assert_eq!(states[11], "skipped");
        end(&shop, newest_of(&shop, id).await).await;
        wait_until("the second", async || {
            look(&server).await;
            told(&shop, id).await[1] == "12:20 started"
        }).await;
        assert_eq!(told(&shop, id).await[2], "12:30 waiting");
    }

    async fn a_moment_cancels_the_one_before_and_follows_it(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({"overlap": "cancel_old"})).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        let first = newest_task(&shop, id).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 started"]).await;
        let detail = shop.admin.get(&format!("/tasks/{first}/")).await.expect(200);
        assert_eq!(detail["error"], "cancelled by schedule nightly: its next moment has come");
    }

    async fn what_cannot_begin_says_why_and_is_tried_again_for_an_hour(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({"cron": "0 */6 * * *"})).await;
        let by_hand = format!("/applications/{}/instances/actions/restart/?timeout=86400", shop.application);
        let receipt = shop.admin.post(&by_hand, json!(shop.instances)).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("a task").parse().expect("digits");
        server.advance(std::time::Duration::from_secs(6 * 3600));
        wait_until("a reason", async || {
            look(&server).await;
            let runs = runs(&shop, id).await;
            runs.first().is_some_and(|run| run["reason"].as_str().is_some_and(|why| why.starts_with("it cannot begin yet: ")))
        }).await;
        assert_eq!(told(&shop, id).await, ["18:00 waiting"]);
        end(&shop, task).await;
        pass(&server, 1).await;
        wait_for(&server, &shop, id, &["18:00 started"]).await;
        // Nobody ends this one.
        pass(&server, 59).await;
        let other = schedule(&server, &shop, json!({"name": "other", "cron": "30 */6 * * *"})).await;
        server.advance(std::time::Duration::from_secs(5 * 3600 + 1800));
        look(&server).await;
        wait_until("a reason", async || {
            look(&server).await;
            runs(&shop, other).await.first().is_some_and(|run| run["reason"] != Value::Null)
        }).await;
        pass(&server, 61).await;
        wait_until("the end of patience", async || {
            look(&server).await;
            runs(&shop, other).await[0]["state"] == "failed"
        }).await;
    }

    async fn whoever_loses_the_right_runs_nothing_any_more(server: TestServer) {
        let shop = shop(&server, 1).await;
        let ada = server.user("ada").await;
        grant(&server, ada.id, shop.application, &["view_app", "restart_app"]).await;
        let wanted = body(&shop, json!({}));
        let id = crate::deploys::id(&ada.post(PATH, wanted).await.expect(200));
        look(&server).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        let task = newest_task(&shop, id).await;
        assert_eq!(shop.admin.get(&format!("/tasks/{task}/")).await.expect(200)["creator"], "ada");
        end(&shop, task).await;
        let rights = json!({"authorizations": [{"id": shop.application, "permission": {"restart_app": false}}]});
        shop.admin.post(&format!("/users/{}/application/perms/", ada.id), rights).await.expect(200);
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 failed"]).await;
        let reason = runs(&shop, id).await[0]["reason"].as_str().expect("a reason").to_owned();
        assert!(reason.contains("restart_app"), "{reason}");
        // Whoever changes it answers for it.
        shop.admin.patch(&format!("{PATH}{id}/"), json!({"jitter": 0})).await.expect(200);
        look(&server).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 failed", "12:30 started"]).await;
        end(&shop, newest_task(&shop, id).await).await;
        shop.admin.patch(&format!("/users/{}/", ada.id), json!({"status": "disabled"})).await.expect(200);
        server.run(sql!("UPDATE schedules SET owner_id = $1"), args![ada.id]).await;
        pass(&server, 10).await;
        wait_until("a refusal", async || {
            look(&server).await;
            runs(&shop, id).await[0]["state"] == "failed"
        }).await;
    }

    async fn a_held_schedule_runs_nothing_and_goes_on_from_now(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({"missed": "all", "overlap": "queue"})).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        pass(&server, 10).await;
        let act = |action: &str| format!("{PATH}{id}/actions/{action}/");
        shop.admin.post(&act("pause"), json!({"reason": "a holiday"})).await.expect(200);
        assert_eq!(told(&shop, id).await, ["12:10 started", "12:20 skipped"]);
        let held = shop.admin.get(&format!("{PATH}{id}/")).await.expect(200);
        assert_eq!((&held["paused_by"], &held["next"]), (&json!("admin"), &json!([])));
        assert_eq!(shop.admin.get(&format!("{PATH}{id}/next/")).await.expect(200)["next"], json!([]));
        shop.admin.post(&act("pause"), json!({})).await.expect_error(409, 10006);
        shop.admin.post(&act("run"), json!({})).await.expect_error(409, 10006);
        end(&shop, shop.admin.get("/tasks/").await.expect(200)["results"][0]["task_id"].as_str().expect("a task").parse().expect("digits")).await;
        pass(&server, 60).await;
        assert_eq!(told(&shop, id).await.len(), 2);
        shop.admin.post(&act("resume"), json!({})).await.expect(200);
        shop.admin.post(&act("resume"), json!({})).await.expect_error(409, 10006);
        look(&server).await;
        assert_eq!(told(&shop, id).await.len(), 2, "what came while it was held is not made up for");
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 skipped", "13:30 started"]).await;
    }

    async fn it_is_run_by_hand_between_its_moments(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({})).await;
        pass(&server, 3).await;
        let act = format!("{PATH}{id}/actions/run/");
        let asked = shop.admin.post(&act, json!({"reason": "now"})).await.expect(200);
        assert_eq!((&asked["state"], &asked["asked_by"]), (&json!("waiting"), &json!("admin")));
        wait_for(&server, &shop, id, &["12:03 started"]).await;
        let refused = shop.admin.post(&act, json!({})).await.expect_error(409, 10006);
        assert!(refused["message"].as_str().is_some_and(|text| text.contains("is not over")), "{refused}");
        end(&shop, newest_task(&shop, id).await).await;
        pass(&server, 7).await;
        wait_for(&server, &shop, id, &["12:03 started", "12:10 started"]).await;
    }

    async fn what_is_so_already_is_left_out(server: TestServer) {
        let shop = shop(&server, 2).await;
        let stop = json!({"what": {"kind": "stop", "application_id": shop.application, "timeout": 86_400}});
        let id = schedule(&server, &shop, stop).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 skipped"]).await;
        assert_eq!(runs(&shop, id).await[0]["reason"], "every instance is so already");
        let one = sql!("UPDATE instances SET status = 'running' WHERE id = $1");
        server.run(one, args![shop.instances[1]]).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 skipped", "12:20 started"]).await;
        let task = newest_task(&shop, id).await;
        let detail = shop.admin.get(&format!("/tasks/{task}/")).await.expect(200);
        let hosts: Vec<&Value> = detail["instances"].as_array().expect("instances").iter().map(|one| &one["hostname"]).collect();
        assert_eq!(hosts.len(), 1, "{detail}");
    }

    async fn what_it_began_outlives_it(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({})).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        let task = newest_task(&shop, id).await;
        shop.admin.delete(&format!("{PATH}{id}/")).await.expect(200);
        shop.admin.get(&format!("{PATH}{id}/")).await.expect(404);
        assert_eq!(shop.admin.get(&format!("/tasks/{task}/")).await.expect(200)["status"], "running");
        pass(&server, 30).await;
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 1);
    }
}

/// The only task there is.
async fn newest_of(shop: &crate::deploys::Shop, schedule: i64) -> i64 {
    let runs = runs(shop, schedule).await;
    let started = runs.iter().find(|run| run["state"] == "started").expect("one that was started");
    started["task_id"].as_str().expect("a task").parse().expect("digits")
}
