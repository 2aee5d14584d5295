//! What is removed from the disk when nobody needs it, and what stays because somebody does.

use std::path::PathBuf;

use drover_automation::artifacts;
use drover_kernel::db::Sql;
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines};
use serde_json::json;

use super::deploying::{fetched, prepare, shop};
use super::*;

/// Where the artifact of an archive is.
fn file(server: &TestServer, archive: &Value) -> PathBuf {
    let digest = archive["artifact_digest"].as_str().expect("a digest");
    server.data_directory().join("artifacts").join(&digest[..2]).join(digest)
}

/// Ends every task as failed, as if its agent had said so.
async fn fail_all(server: &TestServer) {
    server.run(sql!("UPDATE executions SET state = 'failed'"), args![]).await;
    server.run(sql!("UPDATE tasks SET phase = 'over', outcome = 'failed'"), args![]).await;
    server.run(sql!("UPDATE instances SET status = 'stopped'"), args![]).await;
}

both_engines! {
    async fn an_archive_that_comes_while_its_twin_is_deleted_has_its_file(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let mut former = uploaded(&shop, "0", &content).await;
        for version in 1..=20 {
            let twin = Uploading::begin(&shop, &version.to_string(), &content).await;
            twin.send(0, &content[..512]).await.expect(204);
            let path = format!("/applications/{}/archives/{}/", shop.application, former["id"]);
            let deleting = shop.admin.delete(&path);
            let (sent, deleted) = tokio::join!(twin.send(512, &content[512..]), deleting);
            sent.expect(204);
            deleted.expect(204);
            former = twin.end().await;
            assert_eq!(former["state"], "ready", "{former}");
            assert!(file(&server, &former).is_file(), "round {version}");
        }
    }

    async fn a_retry_whose_archive_was_deleted_is_refused(server: TestServer) {
        let shop = shop(&server, 1).await;
        let content = tar(&[("index.html", b"one")]);
        let archive = uploaded(&shop, "1.0", &content).await;
        let (task, _) = prepare(&shop, "1.0", "").await;
        fail_all(&server).await;
        shop.admin.delete(&format!("/applications/{}/archives/{}/", shop.application, archive["id"])).await.expect(204);
        let retry = format!("{task}actions/retry/");
        let error = shop.admin.post(&retry, json!({})).await.expect_error(409, 10006);
        let message = error["message"].as_str().expect("a reason");
        assert!(message.contains("what version 1.0 was made of is no longer on this server"), "{error}");
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 1);
        uploaded(&shop, "1.0", &content).await;
        shop.admin.post(&retry, json!({})).await.expect(200);
    }

    async fn a_retry_of_what_was_never_fetched_needs_its_archive_as_well(server: TestServer) {
        let shop = shop(&server, 1).await;
        let archive = uploaded(&shop, "1.0", &tar(&[("index.html", b"one")])).await;
        let (task, told) = prepare(&shop, "1.0", "none").await;
        assert_eq!(told["status"], "failed");
        shop.admin.delete(&format!("/applications/{}/archives/{}/", shop.application, archive["id"])).await.expect(204);
        let error = shop.admin.post(&format!("{task}actions/retry/"), json!({})).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|why| why.contains("no archive of version 1.0")), "{error}");
    }

    async fn what_an_application_had_goes_with_it(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let (shared, own) = (tar(&[("index.html", b"one")]), tar(&[("index.html", b"two")]));
        let shared_one = uploaded(&shop, "1.0", &shared).await;
        let body = json!({"name": "other"});
        let other = crate::deploys::id(&shop.admin.post("/applications/", body).await.expect(200));
        let other = Shop { application: other, admin: server.admin(), hosts: Vec::new(), instances: Vec::new() };
        let own_one = uploaded(&other, "1.0", &own).await;
        uploaded(&other, "2.0", &shared).await;
        let unfinished = Uploading::begin(&other, "3.0", &own).await;
        unfinished.send(0, &own[..512]).await.expect(204);
        artifacts::sweep(server.kernel()).await.expect("a round");
        assert!(file(&server, &own_one).is_file() && file(&server, &shared_one).is_file());
        shop.admin.delete(&format!("/applications/{}/", other.application)).await.expect(200);
        artifacts::sweep(server.kernel()).await.expect("a round");
        drover_automation::engine::sweep_once(server.kernel(), true).await.expect("a round");
        assert!(!file(&server, &own_one).exists() && !file(&server, &own_one).with_extension("index").exists());
        assert!(file(&server, &shared_one).is_file(), "another application has the same");
        no_upload_is_kept(&server).await;
    }

    async fn what_a_task_installed_stays_for_a_revert(server: TestServer) {
        let shop = shop(&server, 1).await;
        let archive = uploaded(&shop, "1.0", &tar(&[("dist/index.html", b"one")])).await;
        prepare(&shop, "1.0", "dist").await;
        let part = fetched(&server).await["digest"].clone();
        fail_all(&server).await;
        artifacts::sweep(server.kernel()).await.expect("a round");
        assert!(file(&server, &json!({"artifact_digest": part})).is_file());
        assert!(file(&server, &archive).is_file());
    }

    async fn a_database_that_is_away_ends_no_task(server: TestServer) {
        let shop = shop(&server, 1).await;
        let archive = uploaded(&shop, "1.0", &tar(&[("index.html", b"one")])).await;
        let (task, _) = prepare(&shop, "1.0", "").await;
        server.run(sql!("ALTER TABLE archives RENAME TO archives_away"), args![]).await;
        let anew = sql!(
            "UPDATE tasks SET phase = 'preparing', plan_digest = NULL, artifact_digest = NULL, resolved_commit = NULL"
        );
        server.run(anew, args![]).await;
        let advanced = async || {
            drover_automation::engine::sweep_once(server.kernel(), true).await.expect("a round");
            shop.admin.get(&task).await.expect(200)
        };
        for _ in 0..5 {
            assert_eq!(advanced().await["phase"], "preparing");
        }
        // No statement that an engine can read while that table is not away.
        server.run(Sql::literal("ALTER TABLE archives_away RENAME TO archives"), args![]).await;
        wait_until("the source", async || advanced().await["phase"] != "preparing").await;
        assert_eq!(advanced().await["commit"], archive["sha256"]);
    }
}
