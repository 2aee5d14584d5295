//! From an archive to a plan: settings that deploy what was uploaded.

use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines};
use serde_json::{Value, json};

use super::*;
use crate::deploys::PATH;

/// A shop that is deployed from archives.
pub(super) async fn shop(server: &TestServer, hosts: usize) -> Shop {
    let shop = Shop::new(server, hosts).await;
    shop.set(json!({"repository": {"type": "ARCHIVE"}, "deploy_path": "/srv/shop"})).await;
    shop
}

/// Makes a sub-task and waits until its source is there, or cannot be had; gives its address as well.
pub(super) async fn prepare(shop: &Shop, version: &str, path: &str) -> (String, Value) {
    let deploy_task = shop.started().await;
    let upgrades = format!("{PATH}{deploy_task}/sub-upgrade-tasks/");
    let body = json!({"instances": [{"id": shop.instances[0]}], "version": version, "update_source": path});
    let receipt = shop.admin.post(&upgrades, body).await.expect(200);
    let path = format!("{upgrades}{}/", receipt["task_id"].as_str().expect("an id"));
    let read = async || shop.admin.get(&path).await.expect(200);
    wait_until("the source", async || read().await["phase"] != "preparing").await;
    let told = read().await;
    (path, told)
}

async fn prepared(shop: &Shop, version: &str, path: &str) -> Value {
    prepare(shop, version, path).await.1
}

/// What the instance's agent will fetch.
pub(super) async fn fetched(server: &TestServer) -> Value {
    let sql = sql!("SELECT entry FROM executions ORDER BY id DESC LIMIT 1");
    let entry: String = server.read().await.value(sql, args![]).await.expect("an entry");
    serde_json::from_str::<Value>(&entry).expect("JSON")["steps"][0].clone()
}

both_engines! {
    async fn the_version_chooses_the_archive(server: TestServer) {
        let shop = shop(&server, 1).await;
        let content = tar(&[("dist/index.html", b"one"), ("README", b"all")]);
        let archive = uploaded(&shop, "1.0", &content).await;
        uploaded(&shop, "2.0", &tar(&[("index.html", b"two")])).await;
        let told = prepared(&shop, "1.0", "").await;
        assert_eq!(told["commit"], archive["sha256"], "{told}");
        assert_eq!(fetched(&server).await["digest"], archive["artifact_digest"]);
        // While a task is not over its archive stays.
        let path = format!("/applications/{}/archives/", shop.application);
        let archive_path = format!("{path}{}/", archive["id"]);
        shop.admin.delete(&archive_path).await.expect_error(409, 10006);
        server.run(sql!("UPDATE tasks SET phase = 'over', outcome = 'failed'"), args![]).await;
        shop.admin.delete(&archive_path).await.expect(204);
        let artifact = archive["artifact_digest"].as_str().expect("a digest");
        assert!(!server.data_directory().join("artifacts").join(&artifact[..2]).join(artifact).exists());
        assert_eq!(shop.admin.get(&path).await.expect(200)["count"], 1);
    }

    async fn a_path_inside_is_packed_for_itself(server: TestServer) {
        let shop = shop(&server, 1).await;
        let content = tar(&[("dist/index.html", b"one"), ("README", b"all")]);
        uploaded(&shop, "1.0", &content).await;
        // The same as an archive that has only that.
        let only = uploaded(&shop, "only", &tar(&[("index.html", b"one")])).await;
        prepared(&shop, "1.0", "/dist/").await;
        assert_eq!(fetched(&server).await["digest"], only["artifact_digest"]);
        server.run(sql!("UPDATE tasks SET phase = 'over', outcome = 'failed'"), args![]).await;
        server.run(sql!("UPDATE instances SET status = 'stopped'"), args![]).await;
        let told = prepared(&shop, "1.0", "none").await;
        assert_eq!(told["status"], "failed");
        assert!(told["error"].as_str().is_some_and(|why| why.contains("there is no `none`")), "{told}");
    }

    async fn what_was_not_uploaded_is_refused_at_once(server: TestServer) {
        let shop = shop(&server, 1).await;
        Uploading::begin(&shop, "1.0", &tar(&[("index.html", b"one")])).await;
        uploaded(&shop, "2.0", b"no archive").await;
        let deploy_task = shop.started().await;
        let upgrades = format!("{PATH}{deploy_task}/sub-upgrade-tasks/");
        for (version, expected) in [
            ("0.9", "no archive of version 0.9 was uploaded"),
            ("1.0", "has not come whole"),
            ("2.0", "the archive of version 2.0 was refused"),
        ] {
            let body = json!({"instances": [{"id": shop.instances[0]}], "version": version});
            let error = shop.admin.post(&upgrades, body).await.expect_error(409, 10006);
            assert!(error["message"].as_str().is_some_and(|why| why.contains(expected)), "{error}");
        }
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0);
    }

    async fn archives_have_no_address(server: TestServer) {
        let shop = shop(&server, 0).await;
        let path = format!("/applications/{}/deploy-settings/", shop.application);
        let told = shop.admin.get(&path).await.expect(200)["repository"].clone();
        assert_eq!((&told["type"], &told["url"], &told["credential"]), (&json!("ARCHIVE"), &json!(""), &json!(null)));
        for (member, value) in [
            ("url", json!("/srv/git")),
            ("host_key", json!("ssh-ed25519 AAAA")),
            ("credential", json!({"type": "PASSWORD", "username": "a", "password": "b"})),
        ] {
            let body = json!({"repository": {"type": "ARCHIVE", member: value}});
            let error = shop.admin.patch(&path, body).await.expect_error(400, 10001);
            assert_eq!(error["field"], format!("repository.{member}"));
        }
        // To a repository and back.
        let git = json!({"repository": {"type": "GIT", "url": "/srv/git/shop", "branch": "next"}});
        assert_eq!(shop.admin.patch(&path, git).await.expect(200)["repository"]["branch"], "next");
        let back = shop.admin.patch(&path, json!({"repository": {"type": "ARCHIVE"}})).await.expect(200);
        assert_eq!((&back["repository"]["url"], &back["repository"]["type"]), (&json!(""), &json!("ARCHIVE")));
    }
}
