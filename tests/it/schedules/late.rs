//! Moments that were noted, and that nobody was there to begin for a long time.

use std::time::Duration;

use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{end, look, newest_task, pass, runs, schedule, shop, told, wait_for};
use crate::deploys::Shop;

/// Dies behind the transaction that noted a moment, and is back after some time.
async fn dies(server: TestServer, shop: Shop, away: Duration) -> (TestServer, Shop) {
    let Shop { admin, application, hosts, instances } = shop;
    drop(admin);
    let server = server.restarted().await;
    server.advance(away);
    let admin = server.admin();
    (server, Shop { admin, application, hosts, instances })
}

/// As if nobody had tried the newest moment, which came at present.
async fn not_tried(server: &TestServer, schedule: i64) {
    let now = server.clock().now();
    let sql = sql!(
        "INSERT INTO schedule_runs (organisation_id, schedule_id, moment, state, created_at) VALUES (1, $1, $2, 'waiting', $2)"
    );
    assert_eq!(server.run(sql, args![schedule, now]).await, 1);
}

both_engines! {
    async fn what_could_not_begin_before_a_downtime_does_not_begin_hours_later(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({"cron": "30 4 * * *", "missed": "all"})).await;
        let by_hand = format!("/applications/{}/instances/actions/restart/?timeout=86400", shop.application);
        server.advance(Duration::from_secs(16 * 3600));
        let receipt = shop.admin.post(&by_hand, json!(shop.instances)).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("a task").parse().expect("digits");
        pass(&server, 30).await;
        cannot_begin(&server, &shop, id, 0).await;
        assert_eq!(told(&shop, id).await, ["04:30 waiting"]);
        end(&shop, task).await;
        let (server, shop) = dies(server, shop, Duration::from_secs(9 * 3600)).await;
        wait_for(&server, &shop, id, &["04:30 failed"]).await;
        let reason = runs(&shop, id).await[0]["reason"].as_str().expect("a reason").to_owned();
        assert!(reason.starts_with("it could not begin for an hour: ") && reason.contains("web-1"), "{reason}");
    }

    async fn what_nobody_tried_in_time_is_missed_or_made_up_for(server: TestServer) {
        let shop = shop(&server, 1).await;
        let rare = |name: &str, more: Value| {
            let mut body = json!({"name": name, "cron": "0 0 1 1 *", "overlap": "queue", "if_busy": "wait"});
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            body
        };
        let skips = schedule(&server, &shop, rare("skips", json!({}))).await;
        let once = schedule(&server, &shop, rare("once", json!({"missed": "once"}))).await;
        let all = schedule(&server, &shop, rare("all", json!({"missed": "all"}))).await;
        for id in [skips, once, all] {
            not_tried(&server, id).await;
        }
        server.advance(Duration::from_secs(60));
        not_tried(&server, once).await;
        let (server, shop) = dies(server, shop, Duration::from_secs(9 * 3600)).await;
        wait_for(&server, &shop, skips, &["12:00 missed"]).await;
        assert_eq!(runs(&shop, skips).await[0]["reason"], "no server could begin it within an hour");
        wait_for(&server, &shop, once, &["12:00 missed", "12:01 started"]).await;
        wait_for(&server, &shop, all, &["12:00 started"]).await;
    }

    async fn what_nobody_tried_for_a_while_still_begins(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({"cron": "0 0 1 1 *"})).await;
        not_tried(&server, id).await;
        let (server, shop) = dies(server, shop, Duration::from_secs(3_000)).await;
        wait_for(&server, &shop, id, &["12:00 started"]).await;
    }

    async fn what_waits_for_the_one_before_has_an_hour_of_its_own(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({"cron": "0 0 1 1 *", "overlap": "queue", "if_busy": "refuse"})).await;
        not_tried(&server, id).await;
        wait_for(&server, &shop, id, &["12:00 started"]).await;
        let task = newest_task(&shop, id).await;
        for _ in 0..2 {
            pass(&server, 10).await;
            not_tried(&server, id).await;
        }
        pass(&server, 5 * 60).await;
        assert_eq!(told(&shop, id).await, ["12:00 started", "12:10 waiting", "12:20 waiting"]);
        // Somebody else is faster, and stays for long.
        let by_hand = format!("/applications/{}/instances/actions/restart/?timeout=86400&if_busy=wait", shop.application);
        let receipt = shop.admin.post(&by_hand, json!(shop.instances)).await.expect(200);
        let other: i64 = receipt["task_id"].as_str().expect("a task").parse().expect("digits");
        end(&shop, task).await;
        cannot_begin(&server, &shop, id, 1).await;
        assert_eq!(told(&shop, id).await, ["12:00 started", "12:10 waiting", "12:20 waiting"]);
        pass(&server, 61).await;
        wait_for(&server, &shop, id, &["12:00 started", "12:10 failed", "12:20 waiting"]).await;
        cannot_begin(&server, &shop, id, 0).await;
        pass(&server, 50).await;
        assert_eq!(told(&shop, id).await, ["12:00 started", "12:10 failed", "12:20 waiting"]);
        end(&shop, other).await;
        pass(&server, 1).await;
        wait_for(&server, &shop, id, &["12:00 started", "12:10 failed", "12:20 started"]).await;
    }
}

/// Waits until a moment, counted from the newest, says that it cannot begin.
async fn cannot_begin(server: &TestServer, shop: &Shop, schedule: i64, newest: usize) {
    wait_until("a reason", async || {
        look(server).await;
        let runs = runs(shop, schedule).await;
        runs[newest]["reason"].as_str().is_some_and(|why| why.starts_with("it cannot begin yet: "))
    })
    .await;
}
