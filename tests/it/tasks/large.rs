//! A sub-task of as many instances as are allowed at once: planned, made, looked at and cancelled.

use std::time::{Duration, Instant};

use drover_kernel::{args, sql};
use drover_tests::{both_engines, wait_within};
use serde_json::{Value, json};

use super::{counts, upgrades};
use crate::deploys::Shop;

/// Far longer than the plan takes on a slow machine, far shorter than one that grows with the square of its targets.
const LONGEST: Duration = Duration::from_secs(60);

both_engines! {
    async fn ten_thousand_instances_are_planned_in_one_request(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        shop.hook("pre_exec", "stop {{ host.name }}, one of {{ instances | length }}").await;
        shop.hook("post_exec", "start {{ host.name }}").await;
        let hosts = sql!(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) \
             INSERT INTO hosts (organisation_id, name, host_type, status, os_status, os_type, cpu, memory, location, \
             description, created_at) \
             SELECT 1, 'web-' || CAST(i AS TEXT), 'PHY_HOST', 'attached', 'running', '', 1, 1, '', '', 0 FROM n"
        );
        server.run(hosts, args![]).await;
        let instances = sql!(
            "INSERT INTO instances (organisation_id, application_id, host_id, status, created_at) \
             SELECT 1, $1, id, 'stopped', 0 FROM hosts"
        );
        server.run(instances, args![shop.application]).await;
        let ids: Vec<i64> =
            server.read().await.values(sql!("SELECT id FROM instances ORDER BY id"), args![]).await.expect("ids");
        let path = upgrades(shop.started().await);
        let started = Instant::now();
        shop.admin.post(&path, json!({"instances": ids})).await.expect(200);
        assert!(started.elapsed() < LONGEST, "planning took {:?}", started.elapsed());
        assert_eq!(counts(&server).await[..2], [1, 10_000]);
        let last = sql!("SELECT COUNT(*) FROM executions WHERE entry LIKE '%stop web-10000, one of 10000%'");
        assert_eq!(server.count(last, args![]).await, 1);

        // It is seen whole, alone and in lists, and ended in one go.
        let listed = shop.admin.get(&path).await.expect(200);
        assert_eq!((&listed["count"], listed["results"][0]["instances"].as_array().map(Vec::len)), (&json!(1), Some(10_000)));
        let task = listed["results"][0]["task_id"].as_str().expect("text").to_owned();
        let page = format!("/applications/{}/instances/?page=100&page_size=100", shop.application);
        let page = shop.admin.get(&page).await.expect(200);
        assert_eq!((&page["count"], page["results"].as_array().map(Vec::len)), (&json!(10_000), Some(100)));
        shop.admin.post(&format!("{path}{task}/actions/cancel/"), Value::Null).await.expect(200);
        wait_within(LONGEST, "the end", async || {
            shop.admin.get(&path).await.expect(200)["results"][0]["status"] == "failed"
        })
        .await;
        let left = sql!("SELECT COUNT(*) FROM executions WHERE state <> 'cancelled'");
        assert_eq!(server.count(left, args![]).await, 0);
        let busy = sql!("SELECT COUNT(*) FROM instances WHERE status <> 'stopped'");
        assert_eq!(server.count(busy, args![]).await, 0);
    }
}
