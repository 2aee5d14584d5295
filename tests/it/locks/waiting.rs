//! Tasks that wait until what they change is free.

use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_tests::{both_engines, wait_until};
use serde_json::json;

use super::{act, begins, is_queued, number, queue, waiting};
use crate::deploys::Shop;
use crate::tasks::returning::given_up;
use crate::tasks::rollouts::report;
use crate::tasks::{detail, instances, references, upgrade, upgrades};

both_engines! {
    async fn what_is_busy_is_refused_unless_it_may_wait(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let first = upgrade(&shop, deploy_task, &shop.instances).await;
        let body = json!({"instances": references(&shop.instances)});
        shop.admin.post(&upgrades(deploy_task), body.clone()).await.expect_error(409, 10006);
        let refuse = json!({"instances": references(&shop.instances), "if_busy": "refuse"});
        shop.admin.post(&upgrades(deploy_task), refuse).await.expect_error(409, 10006);

        let second = waiting(&shop, deploy_task, &shop.instances, 0).await;
        assert!(is_queued(&shop, deploy_task, second).await);
        wait_until("the remark", async || {
            let told = detail(&shop, deploy_task, second).await;
            let expected = format!("waits in the queue: task {first} has the instance on web-1");
            told["output"].as_str().is_some_and(|text| text.contains(&expected))
        })
        .await;
        // A person ends the first one: the other begins by itself, and knows what it goes back to.
        act(&shop, deploy_task, first, "cancel", json!({})).await.expect(200);
        begins(&shop, deploy_task, second).await;
        assert_eq!(instances(&shop).await, ["updating"]);
        assert!(!is_queued(&shop, deploy_task, second).await);
        act(&shop, deploy_task, second, "cancel", json!({})).await.expect(200);
        wait_until("the end", async || instances(&shop).await == ["stopped"]).await;
    }

    async fn the_order_is_by_priority_and_age_and_nobody_jumps_the_line(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let deploy_task = shop.started().await;
        let (one, two) = (&shop.instances[..1], &shop.instances[1..]);
        let holder = upgrade(&shop, deploy_task, one).await;
        let both = waiting(&shop, deploy_task, &shop.instances, 0).await;
        // The second instance is free, but somebody stands in line for it.
        let refused = shop.admin.post(&upgrades(deploy_task), json!({"instances": references(two)})).await;
        let refused = refused.expect_error(409, 10006)["message"].as_str().expect("a text").to_owned();
        assert!(refused.contains(&format!("task {both} waits for the instance on web-2 already")), "{refused}");
        let behind = waiting(&shop, deploy_task, two, 0).await;
        assert!(is_queued(&shop, deploy_task, behind).await);
        let urgent = waiting(&shop, deploy_task, two, 5).await;
        begins(&shop, deploy_task, urgent).await;
        assert_eq!(queue(&shop).await, [both, behind]);
        let last = waiting(&shop, deploy_task, one, -1).await;
        assert_eq!(queue(&shop).await, [both, behind, last]);
        act(&shop, deploy_task, last, "prioritise", json!({"priority": 1, "reason": "now"})).await.expect(200);
        assert_eq!(queue(&shop).await, [last, both, behind]);
        act(&shop, deploy_task, holder, "prioritise", json!({"priority": 1})).await.expect_error(409, 10006);

        report(&server, holder, "web-1", "succeeded").await;
        begins(&shop, deploy_task, last).await;
        report(&server, urgent, "web-2", "succeeded").await;
        report(&server, last, "web-1", "succeeded").await;
        begins(&shop, deploy_task, both).await;
        assert!(is_queued(&shop, deploy_task, behind).await);
        report(&server, both, "web-1", "succeeded").await;
        assert!(is_queued(&shop, deploy_task, behind).await, "the other instance is not free yet");
        report(&server, both, "web-2", "failed").await;
        begins(&shop, deploy_task, behind).await;
    }

    async fn who_waits_long_enough_stands_before_urgent_ones(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let long = json!({"instances": references(&shop.instances), "timeout": 86_400});
        let holder = number(&shop.admin.post(&upgrades(deploy_task), long).await.expect(200));
        let patient = waiting(&shop, deploy_task, &shop.instances, -2).await;
        server.advance(Duration::from_secs(29 * 60));
        let soon = waiting(&shop, deploy_task, &shop.instances, 1).await;
        assert_eq!(queue(&shop).await, [soon, patient]);
        server.advance(Duration::from_secs(60));
        let urgent = waiting(&shop, deploy_task, &shop.instances, 1).await;
        assert_eq!(queue(&shop).await, [soon, patient, urgent], "three steps in thirty minutes");
        let told = shop.admin.get("/queue/").await.expect(200);
        let member = |name: &str| told["results"].as_array().expect("a list").iter().map(|one| one[name].clone()).collect::<Vec<_>>();
        assert_eq!(member("position"), [1, 2, 3]);
        assert_eq!((member("priority"), member("effective_priority")), (vec![json!(1), json!(-2), json!(1)], vec![json!(1); 3]));
        act(&shop, deploy_task, soon, "cancel", json!({})).await.expect(200);
        report(&server, holder, "web-1", "succeeded").await;
        begins(&shop, deploy_task, patient).await;
        assert!(is_queued(&shop, deploy_task, urgent).await);
    }

    async fn what_is_held_is_passed_and_begins_when_it_may(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let holder = upgrade(&shop, deploy_task, &shop.instances).await;
        let held = waiting(&shop, deploy_task, &shop.instances, 9).await;
        let other = waiting(&shop, deploy_task, &shop.instances, 0).await;
        act(&shop, deploy_task, held, "pause", json!({})).await.expect(200);
        report(&server, holder, "web-1", "succeeded").await;
        begins(&shop, deploy_task, other).await;
        assert!(is_queued(&shop, deploy_task, held).await);
        report(&server, other, "web-1", "succeeded").await;
        assert!(is_queued(&shop, deploy_task, held).await);
        act(&shop, deploy_task, held, "resume", json!({})).await.expect(200);
        begins(&shop, deploy_task, held).await;
    }

    async fn what_is_ended_in_the_queue_leaves_the_holder_alone(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let deploy_task = shop.started().await;
        let holder = upgrade(&shop, deploy_task, &shop.instances[..1]).await;
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        let skipped = json!({"instances": references(&shop.instances[1..])});
        act(&shop, deploy_task, waits, "skip", skipped).await.expect(200);
        assert_eq!(instances(&shop).await, ["updating", "stopped"]);
        // What was taken out is wanted no more.
        let free = upgrade(&shop, deploy_task, &shop.instances[1..]).await;
        act(&shop, deploy_task, waits, "cancel", json!({"reason": "no"})).await.expect(200);
        wait_until("the end", async || detail(&shop, deploy_task, waits).await["status"] == "failed").await;
        assert_eq!(instances(&shop).await, ["updating", "updating"]);
        for task in [holder, free] {
            assert_eq!(detail(&shop, deploy_task, task).await["status"], "running");
        }
        assert!(queue(&shop).await.is_empty());
    }

    async fn what_everything_was_taken_out_of_leaves_the_queue(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let holder = upgrade(&shop, deploy_task, &shop.instances).await;
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        let told = detail(&shop, deploy_task, waits).await;
        let one = told["instances"][0]["execution_id"].as_str().expect("an id");
        let path = format!("{}{waits}/executions/{one}/actions/cancel/", upgrades(deploy_task));
        shop.admin.post(&path, json!({})).await.expect(200);
        wait_until("the end", async || detail(&shop, deploy_task, waits).await["status"] == "failed").await;
        let reason = detail(&shop, deploy_task, waits).await["stop_reason"].clone();
        assert_eq!(reason, "everything that it was to change was taken out of it");
        assert!(queue(&shop).await.is_empty());
        assert_eq!(detail(&shop, deploy_task, holder).await["status"], "running");
    }

    async fn its_time_begins_when_it_does(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&shop.instances), "timeout": 80_000});
        let holder = number(&shop.admin.post(&upgrades(deploy_task), body).await.expect(200));
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        server.advance(Duration::from_secs(50_000));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert!(is_queued(&shop, deploy_task, waits).await);
        act(&shop, deploy_task, holder, "cancel", json!({})).await.expect(200);
        begins(&shop, deploy_task, waits).await;
        server.advance(Duration::from_secs(30));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(detail(&shop, deploy_task, waits).await["status"], "running");
        server.advance(Duration::from_secs(8 * 24 * 3600));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(detail(&shop, deploy_task, waits).await["status"], "failed");
    }

    async fn nobody_waits_for_ever(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let deploy_task = shop.started().await;
        let holder = upgrade(&shop, deploy_task, &shop.instances).await;
        act(&shop, deploy_task, holder, "pause", json!({})).await.expect(200);
        let tired = waiting(&shop, deploy_task, &shop.instances[..1], 0).await;
        server.run(sql!("UPDATE tasks SET created_at = created_at - 700000000 WHERE id = $1"), args![tired]).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        let told = detail(&shop, deploy_task, tired).await;
        assert_eq!((&told["status"], &told["stop_reason"]), (&json!("failed"), &json!("it waited in the queue for a week")));
    }

    async fn an_instance_that_goes_takes_who_waits_for_it_along(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let deploy_task = shop.started().await;
        let holder = upgrade(&shop, deploy_task, &shop.instances[..1]).await;
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        let path = format!("/applications/{}/instances/", shop.application);
        shop.admin.delete_with(&path, json!([shop.instances[1]])).await.expect(200);
        sweep_once(server.kernel(), true).await.expect("a round");
        let told = detail(&shop, deploy_task, waits).await;
        let expected = "not there any more: the instance on web-2";
        assert_eq!((&told["status"], &told["stop_reason"]), (&json!("failed"), &json!(expected)));
        assert_eq!(detail(&shop, deploy_task, holder).await["status"], "running");
    }

    async fn a_start_anew_lets_begin_what_it_finds(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let holder = upgrade(&shop, deploy_task, &shop.instances).await;
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        // As if the server had died right after the commit that ended the holder.
        let over = sql!("UPDATE executions SET state = 'succeeded', finished_at = 1 WHERE task_id = $1");
        server.run(over, args![holder]).await;
        server.run(sql!("UPDATE instances SET status = 'running'"), args![]).await;
        let Shop { admin, application, hosts, instances: ids } = shop;
        drop(admin);
        let server = server.restarted().await;
        let shop = Shop { admin: server.admin(), application, hosts, instances: ids };
        sweep_once(server.kernel(), true).await.expect("a round");
        begins(&shop, deploy_task, waits).await;
        assert_eq!(instances(&shop).await, ["updating"]);
    }

    async fn what_is_lost_keeps_its_place_until_somebody_says_something(server: TestServer) {
        let (shop, _agent, _, deploy_task, task) = Box::pin(given_up(&server)).await;
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert!(is_queued(&shop, deploy_task, waits).await);
        let told = shop.admin.get("/locks/").await.expect(200);
        let lock = &told["results"][0];
        assert_eq!((&lock["status"], &lock["waiting"]), (&json!("lost"), &json!([waits.to_string()])));
        assert_eq!(lock["stuck"], "nobody knows how it ended, and nobody has said");
        let said = json!({"instances": references(&shop.instances), "answer": "give_up", "reason": "I looked"});
        act(&shop, deploy_task, task, "answer", said).await.expect(200);
        begins(&shop, deploy_task, waits).await;
    }

    async fn operations_and_retries_wait_as_well(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let failed = upgrade(&shop, deploy_task, &shop.instances).await;
        report(&server, failed, "web-1", "failed").await;
        let commands = json!({"startup_cmd": "true", "stop_cmd": "true"});
        shop.admin.patch(&format!("/applications/{}/", shop.application), commands).await.expect(200);
        let holder = upgrade(&shop, deploy_task, &shop.instances).await;
        let restart = format!("/applications/{}/instances/actions/restart/", shop.application);
        shop.admin.post(&restart, references(&shop.instances)).await.expect_error(409, 10006);
        let waits = format!("{restart}?if_busy=wait&priority=-3");
        let restarts = number(&shop.admin.post(&waits, references(&shop.instances)).await.expect(200));
        let again = act(&shop, deploy_task, failed, "retry", json!({"if_busy": "wait"})).await.expect(200);
        assert_eq!(queue(&shop).await, [number(&again), restarts]);
        // One that waits to try it again is enough.
        act(&shop, deploy_task, failed, "retry", json!({"if_busy": "wait"})).await.expect_error(409, 10006);
        report(&server, holder, "web-1", "succeeded").await;
        begins(&shop, deploy_task, number(&again)).await;
        report(&server, number(&again), "web-1", "succeeded").await;
        wait_until("the restart", async || instances(&shop).await == ["restarting"]).await;
    }

    async fn one_that_takes_back_does_not_wait(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        upgrade(&shop, deploy_task, &shop.instances).await;
        let body = json!({"instances": references(&shop.instances), "if_busy": "wait", "rollout": {"auto_revert": true}});
        let refused = shop.admin.post(&upgrades(deploy_task), body).await;
        assert!([400, 409].contains(&refused.status), "{refused:?}");
        assert!(queue(&shop).await.is_empty());
    }

    async fn what_goes_after_others_stands_in_no_line_before_they_ended(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let deploy_task = shop.started().await;
        let first = upgrade(&shop, deploy_task, &shop.instances[..1]).await;
        let second = upgrade(&shop, deploy_task, &shop.instances[1..]).await;
        let after = json!({"instances": references(&shop.instances[1..]), "if_busy": "wait", "priority": 50,
            "rollout": {"after_tasks": [first]}});
        let after = number(&shop.admin.post(&upgrades(deploy_task), after).await.expect(200));
        let other = waiting(&shop, deploy_task, &shop.instances[1..], 0).await;
        report(&server, second, "web-2", "succeeded").await;
        begins(&shop, deploy_task, other).await;
        report(&server, first, "web-1", "succeeded").await;
        assert!(is_queued(&shop, deploy_task, after).await);
        report(&server, other, "web-2", "succeeded").await;
        begins(&shop, deploy_task, after).await;
    }

    async fn bad_input_is_named_and_changes_nothing(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        upgrade(&shop, deploy_task, &shop.instances).await;
        let waits = waiting(&shop, deploy_task, &shop.instances, 0).await;
        for (body, field) in [
            (json!({"if_busy": "perhaps"}), "if_busy"),
            (json!({"if_busy": "wait", "priority": 101}), "priority"),
            (json!({"if_busy": "wait", "priority": "x"}), "priority"),
            (json!({"priority": 1}), "priority"),
        ] {
            let mut body = body;
            body["instances"] = references(&shop.instances);
            let refused = shop.admin.post(&upgrades(deploy_task), body).await.expect(400);
            assert_eq!(refused["field"], field, "{refused}");
        }
        let restart = format!("/applications/{}/instances/actions/restart/?priority=2", shop.application);
        assert_eq!(shop.admin.post(&restart, references(&shop.instances)).await.expect(400)["field"], "priority");
        for body in [json!({}), json!({"priority": -101})] {
            assert_eq!(act(&shop, deploy_task, waits, "prioritise", body).await.expect(400)["field"], "priority");
        }
        assert_eq!(queue(&shop).await, [waits]);
    }
}
