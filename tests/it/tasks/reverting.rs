//! Going back to a release that is kept.

use std::io::Write as _;

use drover_automation::engine::Engine;
use drover_kernel::{Audit, args, sql};
use drover_shared::Digest;
use drover_tests::{TestServer, both_engines, wait_until};
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

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Puts an archive into the server's store.
pub(super) fn store_artifact(server: &TestServer, bytes: &[u8]) -> Digest {
    let mut writer = server.kernel().part::<Engine>().artifacts.create(1_000).expect("a writer");
    writer.write_all(bytes).expect("room");
    writer.commit().expect("the archive").digest
}

/// Says that an update installed this version on these instances.
pub(super) async fn installed(
    server: &TestServer,
    shop: &Shop,
    instances: &[i64],
    version: &str,
    artifact: Digest,
) -> i64 {
    let deploy_task = shop.started().await;
    let source = json!({"url": "/nowhere/shop.git", "branch": "main", "version": version, "path": "dist"});
    let task = sql!(
        "INSERT INTO tasks (organisation_id, deploy_task_id, application_id, kind, channel, version, timeout_s, \
         keep_backups, phase, outcome, source, resolved_commit, artifact_digest, plan_digest, creator, created_at, \
         deadline_at, finished_at, taken, taken_at) VALUES (1, $1, $2, 'upgrade', $3, $4, 1, 1, 'over', 'finished', $5, \
         $6, $7, $7, 'admin', 0, 0, 0, (SELECT COALESCE(MAX(taken), 0) + 1 FROM tasks), 0) RETURNING id"
    );
    let channel = format!("channel-{deploy_task}");
    let mut tx = server.work().begin(1).await.expect("a transaction");
    let arguments = args![deploy_task, shop.application, channel, version, source, COMMIT, artifact];
    let task: i64 = tx.value(task, arguments).await.expect("a task");
    for (instance, ordinal) in instances.iter().zip(1_i64..) {
        let execution = sql!(
            "INSERT INTO executions (id, organisation_id, task_id, ordinal, role, instance_id, host_id, host_name, \
             attempt, state, entry, entry_digest, output_truncated, created_at, batch) \
             VALUES ($1, 1, $2, $3, 'instance', $4, $5, 'web', 1, 'succeeded', '{}', $6, FALSE, 0, 0)"
        );
        let at = shop.instances.iter().position(|one| one == instance).expect("an instance");
        let id = format!("{task}-{ordinal}");
        tx.run(execution, args![id, task, ordinal, *instance, shop.hosts[at], artifact]).await.expect("an execution");
    }
    tx.finish(Audit::none("a test prepares something")).await.expect("the commit");
    task
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

    async fn a_plan_to_go_back_shows_release_and_scripts_and_stores_nothing(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let script = shop.hook("pre_exec", "stop\nfor {{ action }}\n").await;
        shop.set(json!({"deploy_path": "/srv/shop"})).await;
        let instance = shop.instances[0];
        keep(&server, instance, "1.0", false, 1).await;
        keep(&server, instance, "2.0", true, 2).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&[instance]), "version": "1.0"});
        let dry_run = format!("{}?dry_run=true", reverts(deploy_task));
        let before = counts(&server).await;
        let plan = shop.admin.post(&dry_run, body.clone()).await.expect(200);
        assert_eq!(counts(&server).await, before);
        assert_eq!(instances(&shop).await, ["stopped"]);
        assert_eq!((&plan["kind"], &plan["version"]), (&json!("revert"), &json!("1.0")));
        let step = &plan["targets"][0]["steps"][1];
        let text = &plan["scripts"][step["script"].as_str().expect("a digest")]["content"];
        assert_eq!((&step["name"], text.as_str().map(str::trim_end)), (&json!("pre_exec"), Some("stop\nfor revert")));
        let steps = |plan: &Value| -> Vec<Value> {
            plan["changes"].as_array().expect("changes").iter().map(|change| change["step"].clone()).collect()
        };
        assert_eq!(steps(&plan), ["pre_exec", "switch"]);
        let diff = plan["changes"][1]["diff"].as_str().expect("text");
        assert!(diff.contains("\n-release 2.0-2\n+release 1.0-1\n"), "{diff}");
        // After it ran and was superseded, the same scripts are no difference; where it leads is one again.
        let receipt = shop.admin.post(&reverts(deploy_task), body.clone()).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        server.run(sql!("UPDATE executions SET state = 'succeeded', dispatched_at = 1 WHERE task_id = $1"), args![task]).await;
        assert_eq!(steps(&shop.admin.post(&dry_run, body.clone()).await.expect(200)), ["switch"]);
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "halt\nfor {{ action }}\n"})).await.expect(200);
        let plan = shop.admin.post(&dry_run, body.clone()).await.expect(200);
        let diff = plan["changes"][0]["diff"].as_str().expect("text");
        assert!(diff.contains("\n-stop\n+halt\n for revert"), "{diff}");
        let there = sql!("UPDATE instance_releases SET is_current = (version = '1.0') WHERE instance_id = $1");
        server.run(there, args![instance]).await;
        assert_eq!(steps(&shop.admin.post(&dry_run, body).await.expect(200)), ["pre_exec"]);
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

    async fn what_is_not_kept_is_fetched_again_where_it_was(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "stop").await;
        shop.hook("post_exec", "start {{ release_path }}").await;
        shop.set(json!({"deploy_path": "/srv/shop", "keep_backups": 3})).await;
        let artifact = store_artifact(&server, b"the archive of 1.0");
        let short = artifact.short();
        installed(&server, &shop, &shop.instances, "1.0", artifact).await;
        // One host keeps it, the other does not.
        keep(&server, shop.instances[0], "1.0", false, 1).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&shop.instances), "version": "1.0"});
        let plan = shop.admin.post(&format!("{}?dry_run=true", reverts(deploy_task)), body.clone()).await.expect(200);
        assert_eq!(plan["commit"], COMMIT, "{plan}");
        let receipt = shop.admin.post(&reverts(deploy_task), body.clone()).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let path = format!("{}{task}/", reverts(deploy_task));
        wait_until("the plan", async || shop.admin.get(&path).await.expect(200)["plan_digest"].is_string()).await;
        let entries = entries(&server, task).await;
        let kinds = |entry: &Value| -> Vec<String> {
            let steps = entry["steps"].as_array().expect("steps").iter();
            steps.map(|step| step["kind"].as_str().expect("a kind").to_owned()).collect()
        };
        assert_eq!(kinds(&entries[0]), ["verify", "script", "switch", "script"]);
        assert_eq!(kinds(&entries[1]), ["fetch", "script", "unpack", "switch", "script", "prune"]);
        let steps = &entries[1]["steps"];
        assert_eq!((&steps[0]["digest"], &steps[0]["size_bytes"]), (&json!(artifact.to_string()), &json!(18)));
        assert_eq!(steps[2]["release"], format!("1.0-{short}"));
        assert_eq!(steps[4]["content"], format!("start /srv/shop/releases/1.0-{short}"));
        assert_eq!(entries[0]["steps"][3]["content"], "start /srv/shop/releases/1.0-1");
        assert_eq!(shop.admin.get(&path).await.expect(200)["commit"], COMMIT);
        // What a revert changes nobody takes back by itself.
        let other = shop.started().await;
        let error = shop.admin.post(&reverts(other), json!({"instances": references(&shop.instances), "version": "1.0",
            "rollout": {"auto_revert": true}})).await.expect_error(400, 10001);
        assert_eq!(error["field"], "rollout.auto_revert");
    }

    async fn a_revert_that_installs_again_is_tried_again(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.set(json!({"deploy_path": "/srv/shop"})).await;
        let artifact = store_artifact(&server, b"the archive of 1.0");
        installed(&server, &shop, &shop.instances, "1.0", artifact).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&shop.instances), "version": "1.0"});
        let receipt = shop.admin.post(&reverts(deploy_task), body).await.expect(200);
        let path = format!("{}{}/", reverts(deploy_task), receipt["task_id"].as_str().expect("text"));
        wait_until("the plan", async || shop.admin.get(&path).await.expect(200)["plan_digest"].is_string()).await;
        shop.admin.post(&format!("{path}actions/cancel/"), json!({})).await.expect(200);
        wait_until("the end", async || shop.admin.get(&path).await.expect(200)["status"] == "failed").await;
        let made = shop.admin.post(&format!("{path}actions/retry/"), json!({})).await.expect(200);
        let again = format!("{}{}/", reverts(deploy_task), made["task_id"].as_str().expect("text"));
        let told = shop.admin.get(&again).await.expect(200);
        assert_eq!((&told["kind"], &told["version"], &told["commit"]), (&json!("revert"), &json!("1.0"), &json!(COMMIT)));
        assert_eq!(instances(&shop).await, ["reverting"]);
    }

    async fn what_cannot_be_had_again_is_refused(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.set(json!({"deploy_path": "/srv/shop"})).await;
        let gone = Digest::of(b"no longer stored");
        installed(&server, &shop, &shop.instances, "1.0", gone).await;
        let deploy_task = shop.started().await;
        for query in ["", "?dry_run=true"] {
            let body = json!({"instances": references(&shop.instances), "version": "1.0"});
            let error = shop.admin.post(&format!("{}{query}", reverts(deploy_task)), body).await.expect_error(409, 10006);
            let message = error["message"].as_str().expect("a message");
            assert!(message.contains("there is no repository at /nowhere/shop.git"), "{message}");
        }
        // Two archives of one name, as of a branch, are no one version to go back to together.
        let stored = store_artifact(&server, b"another archive of 1.0");
        installed(&server, &shop, &shop.instances[..1], "1.0", stored).await;
        let body = json!({"instances": references(&shop.instances), "version": "1.0"});
        let error = shop.admin.post(&reverts(deploy_task), body).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("one after another")), "{error}");
        // What another instance had is not what this one had.
        let body = json!({"instances": references(&shop.instances[1..]), "version": "2.0"});
        installed(&server, &shop, &shop.instances[..1], "2.0", stored).await;
        let error = shop.admin.post(&reverts(deploy_task), body).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("web-2 keeps; it keeps nothing")), "{error}");
        let made = sql!("SELECT COUNT(*) FROM tasks WHERE kind = 'revert'");
        assert_eq!(server.count(made, args![]).await, 0, "nothing was made");
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
