//! `?dry_run=true`: the plan of a sub-task, and nothing of it stored.

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::rollouts::{act, report, roll_out};
use super::{counts, instances, references, reverts, upgrade, upgrades};
use crate::deploys::{Repository, Shop};

/// What an update of all instances would do.
async fn look(shop: &Shop, deploy_task: i64, more: Value) -> Value {
    let mut body = json!({"instances": references(&shop.instances)});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    shop.admin.post(&format!("{}?dry_run=true", upgrades(deploy_task)), body).await.expect(200)
}

both_engines! {
    async fn a_plan_shows_every_script_and_stores_nothing(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        shop.hook("pre_exec", "echo {{ host.name }}").await;
        shop.hook("post_exec", "echo same").await;
        // It needs no approval: looking changes nothing.
        let deploy_task = shop.task().await;
        let before = counts(&server).await;
        let plan = look(&shop, deploy_task, json!({"rollout": {"canary": 1}, "timeout": 77})).await;
        assert_eq!(counts(&server).await, before);
        assert_eq!(instances(&shop).await, ["stopped", "stopped", "stopped"]);
        assert_eq!((&plan["kind"], &plan["version"], &plan["timeout"]), (&json!("upgrade"), &json!("1.0"), &json!(77)));
        assert_eq!(plan["commit"], Value::Null);
        assert_eq!(plan["batches"], json!([["web-1"], ["web-2", "web-3"]]));
        let targets = plan["targets"].as_array().expect("targets");
        let script = |target: &Value, step: usize| {
            let digest = target["steps"][step]["script"].as_str().expect("a digest").to_owned();
            plan["scripts"][&digest]["content"].as_str().expect("a text").to_owned()
        };
        let said: Vec<String> = targets.iter().map(|target| script(target, 0)).collect();
        assert_eq!(said, ["echo web-1", "echo web-2", "echo web-3"]);
        assert_eq!(plan["scripts"].as_object().map(serde_json::Map::len), Some(4), "equal texts are shown once");
        let changes = plan["changes"].as_array().expect("changes");
        let added = changes.iter().find(|change| change["step"] == "post_exec").expect("a change");
        assert_eq!((&added["kind"], &added["hostnames"]), (&json!("added"), &json!(["web-1", "web-2", "web-3"])));
        assert_eq!(plan, look(&shop, deploy_task, json!({"rollout": {"canary": 1}, "timeout": 77})).await);
        let other = look(&shop, deploy_task, json!({"rollout": {"canary": 2}, "timeout": 77})).await;
        assert_ne!(plan["digest"], other["digest"]);
    }

    async fn a_difference_is_against_what_last_ran(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let script = shop.hook("pre_exec", "echo first\necho kept\n").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        server.run(sql!("UPDATE executions SET state = 'succeeded', dispatched_at = 1 WHERE task_id = $1"), args![task]).await;
        assert_eq!(look(&shop, deploy_task, json!({})).await["changes"], json!([]));
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "echo second\necho kept\n"})).await.expect(200);
        let changes = look(&shop, deploy_task, json!({})).await["changes"].clone();
        assert_eq!(changes.as_array().map(Vec::len), Some(1), "{changes:#}");
        assert_eq!((&changes[0]["kind"], &changes[0]["hostnames"]), (&json!("changed"), &json!(["web-1", "web-2"])));
        let diff = changes[0]["diff"].as_str().expect("text");
        assert!(diff.contains("\n-echo first\n+echo second\n echo kept\n"), "{diff}");
    }

    async fn every_setting_that_the_digest_covers_is_a_difference(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let script = shop.hook("pre_exec", "echo same\n").await;
        shop.set(json!({"deploy_path": "/srv/shop", "shared_paths": ["uploads/"], "keep_backups": 4})).await;
        let health = |interval: i64| json!({"rollout": {"health": {"command": "true", "interval": interval}}});
        let deploy_task = shop.started().await;
        let mut body = json!({"instances": references(&shop.instances)});
        body.as_object_mut().expect("an object").extend(health(2).as_object().expect("an object").clone());
        let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        report(&server, task, "web-1", "succeeded").await;
        report(&server, task, "web-2", "succeeded").await;
        let same = look(&shop, deploy_task, health(2)).await;
        assert_eq!(same["changes"], json!([]));
        let settings = async |digest: &Value, more: Value, lines: &[&str]| {
            let plan = look(&shop, deploy_task, more).await;
            assert_ne!(&plan["digest"], digest, "{lines:?}");
            let changes = &plan["changes"];
            assert_eq!(changes.as_array().map(Vec::len), Some(1), "{lines:?}: {changes:#}");
            assert_eq!(changes[0]["step"], "settings");
            assert_eq!((&changes[0]["kind"], &changes[0]["hostnames"]), (&json!("changed"), &json!(["web-1", "web-2"])));
            let diff = changes[0]["diff"].as_str().expect("text");
            assert!(lines.iter().all(|line| diff.contains(&format!("\n{line}\n"))), "{lines:?} in {diff}");
            plan["digest"].clone()
        };
        let digest = settings(&same["digest"], health(3), &["-health: command, every 2000 ms, answered within 5000 ms, 1 good of 15",
            "+health: command, every 3000 ms, answered within 5000 ms, 1 good of 15"]).await;
        let mut late = health(2);
        late["timeout"] = json!(777);
        let digest = settings(&digest, late, &["+timeout: 777 s"]).await;
        shop.set(json!({"lifecycle_hooks": {"running_user": "app"}})).await;
        let digest = settings(&digest, health(2), &["+pre_exec: bash, as app"]).await;
        shop.set(json!({"lifecycle_hooks": {"pre_exec": {"timeout": 30}}})).await;
        let digest = settings(&digest, health(2), &["+pre_exec: bash, as app, within 30000 ms"]).await;
        let shown = look(&shop, deploy_task, health(2)).await;
        let steps = shown["targets"][0]["steps"].as_array().expect("steps");
        let of_hook = steps.iter().find(|step| step["name"] == "pre_exec").expect("the hook");
        assert_eq!(of_hook["timeout"], 30);
        shop.set(json!({"deploy_path": "/srv/other"})).await;
        let digest = settings(&digest, health(2), &["-deploy path: /srv/shop", "+deploy path: /srv/other"]).await;
        shop.set(json!({"shared_paths": ["cache/"]})).await;
        let digest = settings(&digest, health(2), &["-shared path: uploads/", "+shared path: cache/"]).await;
        shop.set(json!({"keep_backups": 1})).await;
        let digest = settings(&digest, health(2), &["-kept releases: 4", "+kept releases: 1"]).await;
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"language": "python"})).await.expect(200);
        let digest = settings(&digest, health(2), &["+pre_exec: python, as app, within 30000 ms"]).await;
        let mut other = health(2);
        other["version"] = json!("1.1");
        settings(&digest, other, &["-version: 1.0", "+version: 1.1"]).await;
    }

    async fn a_hook_that_runs_once_is_compared_too(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let script = shop.hook("global_pre_exec", "echo first\n").await;
        shop.hook("pre_exec", "echo same\n").await;
        let deploy_task = shop.started().await;
        let first = look(&shop, deploy_task, json!({})).await;
        assert_eq!((&first["changes"][0]["step"], &first["changes"][0]["kind"]), (&json!("global_pre_exec"), &json!("added")));
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        server.run(sql!("UPDATE executions SET state = 'succeeded', dispatched_at = 1 WHERE task_id = $1"), args![task]).await;
        assert_eq!(look(&shop, deploy_task, json!({})).await["changes"], json!([]));
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "echo second\n"})).await.expect(200);
        let changes = look(&shop, deploy_task, json!({})).await["changes"].clone();
        assert_eq!(changes.as_array().map(Vec::len), Some(1), "{changes:#}");
        let diff = changes[0]["diff"].as_str().expect("text");
        assert!(diff.contains("\n-echo first\n+echo second\n"), "{diff}");
        assert_eq!(changes[0]["hostnames"], json!(["web-1"]));
        shop.set(json!({"lifecycle_hooks": {"global_pre_exec": null}})).await;
        let changes = look(&shop, deploy_task, json!({})).await["changes"].clone();
        assert_eq!((&changes[0]["step"], &changes[0]["kind"]), (&json!("global_pre_exec"), &json!("removed")), "{changes:#}");
    }

    async fn a_plan_names_the_commit_that_it_would_fetch(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let repository = Repository::new();
        shop.set(json!({"repository": repository.settings(), "deploy_path": "/srv/shop"})).await;
        let deploy_task = shop.task().await;
        let more = json!({"version": "main", "update_source": ""});
        let first = look(&shop, deploy_task, more.clone()).await;
        let commit = repository.commit("index.html", "two\n");
        let second = look(&shop, deploy_task, more).await;
        assert_eq!(second["commit"], commit.as_str());
        assert_ne!((&first["commit"], &first["digest"]), (&second["commit"], &second["digest"]));
    }

    async fn a_new_commit_is_a_difference(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let repository = Repository::new();
        shop.set(json!({"repository": repository.settings(), "deploy_path": "/srv/shop"})).await;
        let deploy_task = shop.started().await;
        let more = json!({"version": "main", "update_source": ""});
        let first = look(&shop, deploy_task, more.clone()).await;
        assert_eq!(first["changes"][0]["step"], "fetch", "it was never deployed");
        let mut body = more.clone();
        body["instances"] = references(&shop.instances);
        let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let commit = first["commit"].as_str().expect("a commit");
        server.run(sql!("UPDATE tasks SET resolved_commit = $2 WHERE id = $1"), args![task, commit]).await;
        server.run(sql!("UPDATE executions SET state = 'succeeded', dispatched_at = 1 WHERE task_id = $1"), args![task]).await;
        assert_eq!(look(&shop, deploy_task, more.clone()).await["changes"], json!([]));
        let next = repository.commit("index.html", "two\n");
        let changes = look(&shop, deploy_task, more).await["changes"].clone();
        assert_eq!((&changes[0]["step"], &changes[0]["kind"]), (&json!("fetch"), &json!("changed")));
        let diff = changes[0]["diff"].as_str().expect("text");
        assert!(diff.contains(&format!("-commit {commit}\n+commit {next}\n")), "{diff}");
    }

    async fn every_difference_is_told_though_texts_are_left_out(server: TestServer) {
        let shop = Shop::new(&server, 40).await;
        let script = shop.hook("pre_exec", "# {{ host.name }}\n{{ \"x\" * 250000 }}\n").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        server.run(sql!("UPDATE executions SET state = 'succeeded', dispatched_at = 1 WHERE task_id = $1"), args![task]).await;
        let path = format!("/applications/deploy-scripts/{script}/");
        let content = "# {{ host.name }} new\n{{ \"x\" * 250000 }}\n";
        shop.admin.patch(&path, json!({"content": content})).await.expect(200);
        let plan = look(&shop, deploy_task, json!({})).await;
        assert_eq!((&plan["truncated"], plan["changes"].as_array().map(Vec::len)), (&json!(true), Some(40)));
    }

    async fn a_difference_after_a_retry_is_against_the_whole(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "echo before").await;
        shop.hook("post_exec", "echo after").await;
        let deploy_task = shop.started().await;
        let task = roll_out(&shop, deploy_task, json!({})).await;
        let steps = json!([{"name": "pre_exec", "state": "succeeded"}, {"name": "post_exec", "state": "failed"}]);
        server.run(sql!("UPDATE executions SET steps = $2 WHERE task_id = $1"), args![task, steps]).await;
        report(&server, task, "web-1", "failed").await;
        let mut failed = task;
        for end in ["failed", "succeeded"] {
            let receipt = act(&shop, deploy_task, failed, "retry", json!({})).await.expect(200);
            failed = receipt["task_id"].as_str().expect("text").parse().expect("digits");
            report(&server, failed, "web-1", end).await;
            let changes = look(&shop, deploy_task, json!({})).await["changes"].clone();
            assert_eq!(changes, json!([]), "both scripts are as they last ran");
        }
    }

    async fn a_retry_of_what_was_never_sent_is_what_last_ran(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let script = shop.hook("pre_exec", "echo first").await;
        let deploy_task = shop.started().await;
        let before = roll_out(&shop, deploy_task, json!({})).await;
        report(&server, before, "web-1", "succeeded").await;
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "echo second"})).await.expect(200);
        let task = roll_out(&shop, deploy_task, json!({})).await;
        report(&server, task, "web-1", "failed").await;
        server.run(sql!("UPDATE executions SET dispatched_at = NULL WHERE task_id = $1"), args![task]).await;
        let receipt = act(&shop, deploy_task, task, "retry", json!({})).await.expect(200);
        let again: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        report(&server, again, "web-1", "succeeded").await;
        assert_eq!(look(&shop, deploy_task, json!({})).await["changes"], json!([]));
    }

    async fn a_plan_shows_the_way_back(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "echo {{ action }} {{ version }}").await;
        let repository = Repository::new();
        shop.set(json!({"repository": repository.settings(), "deploy_path": "/srv/shop"})).await;
        let keep = sql!(
            "INSERT INTO instance_releases (organisation_id, instance_id, release_name, version, artifact_digest, \
             tree_digest, is_current, installed_at) VALUES (1, $1, 'old-1', 'old', $2, $2, TRUE, 1)"
        );
        server.run(keep, args![shop.instances[0], drover_shared::Digest::of(b"x")]).await;
        let deploy_task = shop.started().await;
        let plan = look(&shop, deploy_task, json!({"rollout": {"auto_revert": true}})).await;
        let back = &plan["way_back"][0];
        assert_eq!((&back["id"], &back["hostname"]), (&json!(shop.instances[0]), &json!("web-1")));
        let steps: Vec<&str> =
            back["steps"].as_array().expect("steps").iter().filter_map(|step| step["name"].as_str()).collect();
        assert_eq!(steps, ["verify", "pre_exec", "switch"]);
        let digest = back["steps"][1]["script"].as_str().expect("a digest");
        assert_eq!(plan["scripts"][digest]["content"], "echo revert old");
        assert_eq!(look(&shop, deploy_task, json!({"rollout": {}})).await["way_back"], json!([]));
    }

    async fn what_cannot_be_planned_is_refused_as_it_would_be(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "echo {{ nothing }}").await;
        let deploy_task = shop.started().await;
        let before = counts(&server).await;
        let body = json!({"instances": references(&shop.instances)});
        let made = shop.admin.post(&upgrades(deploy_task), body.clone()).await;
        let looked = shop.admin.post(&format!("{}?dry_run=true", upgrades(deploy_task)), body).await;
        assert_eq!((made.status, looked.status), (400, 400));
        assert_eq!((&made.body["field"], &made.body["message"]), (&looked.body["field"], &looked.body["message"]));
        let body = json!({"instances": references(&shop.instances), "version": "0.9"});
        shop.admin.post(&format!("{}?dry_run=true", reverts(deploy_task)), body).await.expect_error(409, 10006);
        assert_eq!(counts(&server).await, before);
    }
}
