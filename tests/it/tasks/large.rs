//! A sub-task of as many instances as are allowed at once.

use std::time::{Duration, Instant};

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::json;

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
    }
}
