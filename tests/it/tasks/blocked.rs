//! Hosts that still run what was given up: what has to wait for that keeps nobody else waiting.

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_shared::message::{Holding, ToAgent};
use drover_shared::order::Statement;
use drover_tests::both_engines;
use drover_tests::stub_agent::{StubAgent, listen};
use serde_json::json;

use super::returning::given_up;
use super::{references, upgrade, upgrades};
use crate::deploys::id;

/// More than are looked at in one turn.
const CROWD: i64 = 250;

both_engines! {
    async fn what_waits_for_its_host_to_end_something_keeps_no_other_host_waiting(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(given_up(&server)).await;
        agent.leave();
        let body = json!({"instances": references(&shop.instances), "reason": "the host does not answer"});
        let path = format!("{}{task}/actions/retry/", upgrades(deploy_task));
        let made = shop.admin.post(&path, body).await.expect(200);
        let again: i64 = made["task_id"].as_str().expect("text").parse().expect("digits");
        // As if there were so much of it on that host.
        let crowd = sql!(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $2) \
             INSERT INTO executions (id, organisation_id, task_id, ordinal, role, instance_id, host_id, host_name, attempt, \
             state, entry, entry_digest, output_truncated, created_at) \
             SELECT SUBSTR(e.id, 1, 32) || CAST(1000 + n.i AS TEXT), e.organisation_id, e.task_id, e.ordinal + n.i, e.role, \
             e.instance_id, e.host_id, e.host_name, e.attempt, e.state, e.entry, e.entry_digest, e.output_truncated, \
             e.created_at FROM executions e CROSS JOIN n WHERE e.task_id = $1"
        );
        assert_eq!(server.run(crowd, args![again, CROWD]).await, CROWD.unsigned_abs());
        let Statement { execution_id, attempt, .. } = statement.clone();
        let holding = Holding { execution_id, attempt, channel: 1, log_length: 0, finished: false, needs_order: false };
        agent.come_back(vec![holding]).await;

        // Another host has its turn, with what is younger than all of that.
        let host = id(&shop.admin.post("/hosts/", json!({"name": "web-2", "host_type": "PHY_HOST"})).await.expect(200));
        let path = format!("/applications/{}/instances/", shop.application);
        let instance = id(&shop.admin.post(&path, json!([{"hostid": host}])).await.expect(200)[0]);
        let mut other = StubAgent::enrol(&server, listen(&server).await, "web-2", &[]).await;
        upgrade(&shop, deploy_task, &[instance]).await;
        other.order().await;
        sweep_once(server.kernel(), true).await.expect("a round");
        let heard = agent.heard().await;
        assert!(!heard.iter().any(|message| matches!(message, ToAgent::Run { .. })), "two at a time: {heard:?}");

        // When the host is through it gets everything.
        agent.succeed(&statement).await;
        let mut orders = 0;
        while orders < CROWD + 1 {
            orders += i64::from(matches!(agent.hear().await, ToAgent::Run { .. }));
        }
    }
}
