//! Uploads that break off, are repeated, restarted, given up.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use bytes::Bytes;
use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_shared::Digest;
use drover_tests::{both_engines, wait_until};
use futures_util::stream;
use serde_json::json;

use super::*;

/// A body that gives some bytes and then breaks.
fn broken(bytes: &[u8]) -> Body {
    let pieces = [Ok(Bytes::copy_from_slice(bytes)), Err(std::io::Error::other("the line is cut"))];
    Body::from_stream(stream::iter(pieces))
}

/// A body that gives some bytes and then nothing, without an end.
fn silent(bytes: &[u8]) -> Body {
    let first: Result<Bytes, std::io::Error> = Ok(Bytes::copy_from_slice(bytes));
    Body::from_stream(futures_util::StreamExt::chain(stream::iter([first]), stream::pending()))
}

both_engines! {
    async fn an_upload_goes_on_where_it_broke_off(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", &[b'x'; 3000])]);
        let uploading = Uploading::begin(&shop, "1.0", &content).await;
        assert_eq!(uploading.offset().await, "0");
        let answer = uploading.at(0).send_bytes(Method::PATCH, &uploading.path, broken(&content[..1000])).await;
        answer.expect_error(400, 10001);
        assert_eq!(uploading.offset().await, "1000");
        // The wrong place is told, and nothing changes.
        let error = uploading.send(0, &content).await.expect_error(409, 10006);
        assert_eq!(error["message"], "this archive stands at offset 1000, not at 0");
        let answer = uploading.send(1000, &content[1000..2000]).await;
        assert_eq!((answer.status, answer.header("upload-offset")), (204, "2000".to_owned()));
        let told = uploading.read().await;
        assert_eq!((&told["state"], &told["offset"], &told["reason"]), (&json!("receiving"), &json!(2000), &json!(null)));
        assert!(told["expires_time"].is_string());
        uploading.send(2000, &content[2000..]).await.expect(204);
        let told = uploading.end().await;
        assert_eq!((&told["state"], &told["files"], &told["format"]), (&json!("ready"), &json!(1), &json!("tar")), "{told}");
        uploading.send(2000, b"more").await.expect_error(409, 10006);
        // What was uploaded is packed, and needed no more.
        no_upload_is_kept(&server).await;
        let actions: Vec<String> = server.read().await
            .values(sql!("SELECT action || ' ' || operator FROM audit_entries WHERE object_type = 'archive' ORDER BY id"), args![])
            .await.expect("the audit");
        assert_eq!(actions, ["add admin", "update system"]);
    }

    async fn a_later_request_takes_over_from_one_that_hangs(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", &[b'x'; 3000])]);
        let uploading = Uploading::begin(&shop, "1.0", &content).await;
        let (client, path, body) = (uploading.at(0), uploading.path.clone(), silent(&content[..700]));
        let hanging = tokio::spawn(async move { client.send_bytes(Method::PATCH, &path, body).await });
        // Either may come first: whoever comes later takes over, and goes on from what there is.
        wait_until("the second request", async || {
            let offset: usize = uploading.offset().await.parse().expect("a number");
            offset == content.len() || uploading.send(offset, &content[offset..]).await.status == 204
        })
        .await;
        let ended = hanging.await.expect("an answer").status;
        assert!(ended == 409 || ended == 400, "{ended}");
        assert_eq!(uploading.end().await["state"], "ready");
    }

    async fn a_restart_loses_nothing(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let uploading = Uploading::begin(&shop, "1.0", &content).await;
        uploading.send(0, &content[..600]).await.expect(204);
        let (path, application) = (uploading.path.clone(), shop.application);
        drop((shop, uploading));
        let server = server.restarted().await;
        let uploading = Uploading { client: server.admin().with_header("tus-resumable", "1.0.0"), path };
        assert_eq!(uploading.offset().await, "600");
        // As if the server had been killed after the last byte, and before it looked at them.
        std::fs::write(server.data_directory().join("uploads").join(uploading.path.split('/').nth(4).expect("an id")), &content)
            .expect("a file");
        server.run(sql!("UPDATE archives SET state = 'checking' WHERE application_id = $1"), args![application]).await;
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(uploading.end().await["state"], "ready");
    }

    async fn what_never_comes_whole_is_forgotten_and_files_of_nobody_as_well(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let uploading = Uploading::begin(&shop, "1.0", &content).await;
        uploading.send(0, &content[..600]).await.expect(204);
        let folder = server.data_directory().join("uploads");
        std::fs::write(folder.join("4711"), "nobody's").expect("a file");
        server.advance(Duration::from_secs(23 * 3600));
        sweep_once(server.kernel(), true).await.expect("a round");
        assert_eq!(uploading.offset().await, "600");
        assert!(!folder.join("4711").exists());
        server.advance(Duration::from_secs(2 * 3600));
        sweep_once(server.kernel(), true).await.expect("a round");
        uploading.client.get(&uploading.path).await.expect_error(404, 10004);
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0);
    }

    async fn an_upload_that_is_given_up_leaves_nothing(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let uploading = Uploading::begin(&shop, "1.0", &content).await;
        uploading.send(0, &content[..600]).await.expect(204);
        announce(&shop, content.len(), &metadata("1.0", &Digest::of(&content).to_string())).await.expect_error(409, 10006);
        let answer = uploading.client.send_bytes(Method::DELETE, &uploading.path, Vec::new()).await;
        assert_eq!((answer.status, answer.header("tus-resumable")), (204, "1.0.0".to_owned()));
        assert_eq!(std::fs::read_dir(server.data_directory().join("uploads")).expect("a folder").count(), 0);
        uploading.send(600, &content[600..]).await.expect_error(404, 10004);
        assert_eq!(uploaded(&shop, "1.0", &content).await["state"], "ready");
    }
}
