//! Going back to a release that is kept.

use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines};
use serde_json::{Value, json};

use super::{counts, entries, instances, references, reverts, upgrades};
use crate::deploys::Shop;

/// Says that an instance keeps this version.
async fn keep(server: &TestServer, instance: i64, version: &str, current: bool, installed_at: i64) {
    let digest = "c7c5c1d70c5dec4416ab6158afd0b223ef40c29b1dc1f97ed9428b94d4cadb1c";
    let sql = sql!(
        "INSERT INTO instance_releases (organisation_id, instance_id, release_name, version, artifact_digest, \
         tree_digest, is_current, installed_at) VALUES (1, $1, $2, $3, $4, $4, $5, $6)"
    );
    let name = format!("{version}-{installed_at}");
    server.run(sql, args![instance, name, version, digest, current, installed_at]).await;
}

both_engines! {
    async fn a_kept_version_is_switched_to_with_the_hooks(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "stop for {{ action }} from {{ source.path }}").await;
        shop.hook("post_exec", "start {{ release_path }}").await;
        shop.set(json!({"deploy_path": "/srv/shop"})).await;
        let instance = shop.instances[0];
        keep(&server, instance, "1.0", false, 1).await;
        keep(&server, instance, "1.0", false, 2).await;
        keep(&server, instance, "2.0", true, 3).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&[instance]), "version": "1.0"});
        let receipt = shop.admin.post(&reverts(deploy_task), body).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        assert_eq!(instances(&shop).await, ["reverting"]);
        let entry = &entries(&server, task).await[0];
        let steps = entry["steps"].as_array().expect("steps");
        let kinds: Vec<&str> = steps.iter().filter_map(|step| step["kind"].as_str()).collect();
        assert_eq!(kinds, ["verify", "script", "switch", "script"], "{entry}");
        assert_eq!((&entry["action"], &entry["steps"][2]["release"]), (&json!("revert"), &json!("1.0-2")));
        assert_eq!(entry["steps"][1]["content"], "stop for revert from dist");
        assert_eq!(entry["steps"][3]["content"], "start /srv/shop/releases/1.0-2");
        let told = shop.admin.get(&format!("{}{task}/", reverts(deploy_task))).await.expect(200);
        assert_eq!((&told["kind"], &told["version"]), (&json!("revert"), &json!("1.0")));
        assert_eq!(told["plan_digest"].as_str().map(str::len), Some(64));
        // It is no update, and the lists tell them apart.
        shop.admin.get(&format!("{}{task}/", upgrades(deploy_task))).await.expect_error(404, 10004);
        assert_eq!(shop.admin.get(&upgrades(deploy_task)).await.expect(200)["count"], 0);
        assert_eq!(shop.admin.get(&reverts(deploy_task)).await.expect(200)["count"], 1);
    }

    async fn a_version_that_is_not_kept_is_refused(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.set(json!({"deploy_path": "/srv/shop"})).await;
        keep(&server, shop.instances[0], "1.0", false, 1).await;
        keep(&server, shop.instances[0], "2.0", true, 2).await;
        keep(&server, shop.instances[1], "2.0", true, 2).await;
        let deploy_task = shop.started().await;
        let before = counts(&server).await;
        for (version, instances, parts) in [
            ("3.0", &shop.instances[..1], ["web-1", "1.0", "2.0"]),
            ("1.0", &shop.instances[..], ["web-2", "1.0", "2.0"]),
        ] {
            let body = json!({"instances": references(instances), "version": version});
            let error = shop.admin.post(&reverts(deploy_task), body).await.expect_error(409, 10006);
            let message = error["message"].as_str().unwrap_or_default();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        assert_eq!(counts(&server).await, before);
        assert_eq!(instances(&shop).await, ["stopped", "stopped"]);
    }

    async fn bad_reverts_are_refused_and_named(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        for (body, field) in [
            (json!({"instances": references(&shop.instances)}), "version"),
            (json!({"instances": references(&shop.instances), "version": ""}), "version"),
            (json!({"instances": references(&shop.instances), "version": null}), "version"),
            (json!({"version": "1"}), "instances"),
            (json!({"instances": [], "version": "1"}), "instances"),
            (json!({"instances": [4711], "version": "1"}), "instances"),
            (json!({"instances": references(&shop.instances), "version": "1", "timeout": 0}), "timeout"),
        ] {
            let error = shop.admin.post(&reverts(deploy_task), body.clone()).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{body}");
        }
        keep(&server, shop.instances[0], "1.0", true, 1).await;
        let body = json!({"instances": references(&shop.instances), "version": "1.0"});
        let error = shop.admin.post(&reverts(deploy_task), body).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("deploy_path")), "{error}");
        assert_eq!(shop.read(deploy_task).await["sub_tasks"], Value::Array(vec![]));
    }
}
