//! From stored credentials to a commit: sub-tasks whose sources are behind real servers, over HTTP.

use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::Place;
use super::servers::PASSWORD;
use super::shell::{account, url};
use crate::deploys::{PATH, Shop, id};

const CREDENTIALS: &str = "/applications/repository-credentials/";

/// Makes a sub-task and waits until its source is there, or cannot be had; gives its detail.
async fn fetched(shop: &Shop, deploy_task: i64) -> Value {
    let upgrades = format!("{PATH}{deploy_task}/sub-upgrade-tasks/");
    let body = json!({"instances": [{"id": shop.instances[0]}], "version": "main", "update_source": "/"});
    let receipt = shop.admin.post(&upgrades, body).await.expect(200);
    let path = format!("{upgrades}{}/", receipt["task_id"].as_str().expect("an id"));
    let read = async || shop.admin.get(&path).await.expect(200);
    wait_until("the source", async || read().await["phase"] != "preparing").await;
    read().await
}

/// Everything that is written down about the work, for looking for what must not be there.
async fn written(server: &TestServer) -> String {
    let mut read = server.read().await;
    let mut texts: Vec<String> = Vec::new();
    for sql in [
        sql!("SELECT object_name || ' ' || detail FROM audit_entries"),
        sql!("SELECT entry FROM executions"),
        sql!("SELECT CAST(source AS TEXT) FROM tasks WHERE source IS NOT NULL"),
        sql!("SELECT COALESCE(reason, '') FROM tasks"),
        sql!("SELECT sealed_secret FROM repository_credentials"),
    ] {
        texts.extend(read.values::<String>(sql, args![]).await.expect("texts"));
    }
    texts.join("\n")
}

both_engines! {
    async fn a_stored_key_fetches_and_the_hosts_key_is_pinned(server: TestServer) {
        let place = Place::new();
        let first = place.key("host", &["-t", "ed25519"]);
        place.key("client", &["-t", "ed25519"]);
        std::fs::copy(place.path("client.pub"), place.path("authorized")).expect("a copy");
        let host = place.sshd("host").await;
        let shop = Shop::new(&server, 1).await;
        let body = json!({"name": "deploy key", "username": account(), "private_key": place.read("client")});
        let credential = id(&shop.admin.post(&format!("{CREDENTIALS}ssh-private-key/"), body).await.expect(200));
        let template = json!({"name": "web", "deploy_path": "/srv/shop", "applications": [shop.application],
            "repository": {"url": url(&place, host.port), "credential": credential}});
        let template = id(&shop.admin.post("/applications/deploy-templates/", template).await.expect(200));
        let task = shop.started().await;
        let told = fetched(&shop, task).await;
        assert_eq!(told["commit"], place.commit(), "{told}");
        assert!(told["output"].as_str().is_some_and(|text| text.contains("for the first time")), "{told}");
        let path = format!("/applications/deploy-templates/{template}/");
        assert_eq!(shop.admin.get(&path).await.expect(200)["repository"]["host_key"], first);
        let settings = format!("/applications/{}/deploy-settings/", shop.application);
        assert_eq!(shop.admin.get(&settings).await.expect(200)["repository"]["host_key"], first);
        let audited = sql!("SELECT COUNT(*) FROM audit_entries WHERE operator = 'system' AND object_type = 'deploy_template' AND detail LIKE '%SHA256:%'");
        assert_eq!(server.count(audited, args![]).await, 1);
        drop(host);

        // The same place with another key: nothing is fetched until somebody says that it is right.
        let second = place.key("another", &["-t", "ed25519"]);
        let host = place.sshd("another").await;
        let moved = json!({"repository": {"url": url(&place, host.port), "host_key": first}});
        shop.admin.patch(&path, moved).await.expect(200);
        let shop = Shop { instances: vec![another_instance(&shop).await], ..shop };
        let told = fetched(&shop, task).await;
        assert_eq!((&told["status"], &told["commit"]), (&json!("failed"), &json!(null)));
        assert!(told["error"].as_str().is_some_and(|text| text.contains("shows another key than the one that is pinned")), "{told}");
        shop.admin.patch(&path, json!({"repository": {"host_key": second}})).await.expect(200);
        assert_eq!(fetched(&shop, task).await["commit"], place.commit());
        let (written, secret) = (written(&server).await, place.read("client"));
        assert!(!written.contains(secret.lines().nth(1).expect("a line of the key")), "{written}");
    }

    async fn an_inline_password_fetches(server: TestServer) {
        let place = Place::new();
        let certificate = place.certificate("tls");
        let web = place.web("").await;
        let shop = Shop::new(&server, 1).await;
        let repository = json!({
            "url": format!("https://localhost:{}/git/shop/.git", web.port), "ca_certificate": certificate,
            "credential": {"type": "PASSWORD", "username": "ada", "password": PASSWORD},
        });
        shop.set(json!({"deploy_path": "/srv/shop", "repository": repository})).await;
        let task = shop.started().await;
        let told = fetched(&shop, task).await;
        assert_eq!(told["commit"], place.commit(), "{told}");
        assert!(!told.to_string().contains("s3cret"), "{told}");
        let written = written(&server).await;
        assert!(!written.contains("s3cret"), "{written}");
        assert!(!place.processes().contains("s3cret"));
    }
}

/// A further instance of the application, on a host of its own: the first is busy.
async fn another_instance(shop: &Shop) -> i64 {
    let body = json!({"name": "web-other", "host_type": "PHY_HOST"});
    let host = id(&shop.admin.post("/hosts/", body).await.expect(200));
    let path = format!("/applications/{}/instances/", shop.application);
    id(&shop.admin.post(&path, json!([{"hostid": host}])).await.expect(200)[0])
}
