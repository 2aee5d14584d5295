//! Probes, the API's description, and what every request meets whatever its address.

use std::time::Duration;

use axum::http::Method;
use drover_kernel::http::{ReadyCheck, service};
use drover_tests::{Client, both_engines, wait_until};
use serde_json::{Value, json};
use tokio::time::timeout;

both_engines! {
    async fn probes_answer_everybody(server: TestServer) {
        let nobody = server.anonymous();
        assert_eq!(nobody.get("//healthz").await.expect(200), "alive\n");
        assert_eq!(nobody.get("//readyz").await.expect(200), "ready\n");
        nobody.get("/users/me/").await.expect_error(401, 10002);
        let metrics = nobody.get("//metrics").await;
        assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
        let text = metrics.expect(200);
        let text = text.as_str().expect("text");
        assert!(text.contains("/api/v1/users/me/") && text.contains("401") && text.ends_with("# EOF\n"), "{text}");
        // A server that stops wants no more work, but lives.
        server.kernel().stopping().cancel();
        nobody.get("//healthz").await.expect(200);
        nobody.get("//readyz").await.expect_error(503, 10009);
    }

    async fn a_server_without_its_database_is_alive_and_not_ready(server: TestServer) {
        server.kernel().stop(std::time::Duration::from_secs(5)).await;
        server.anonymous().get("//healthz").await.expect(200);
        server.anonymous().get("//readyz").await.expect_error(503, 10009);
    }

    async fn a_part_that_gives_no_answer_is_not_ready(server: TestServer) {
        let stuck = ReadyCheck::of("some part", std::future::pending);
        let stuck = service(server.kernel(), server.routes(), "test", vec![stuck]);
        let said = Client::anonymous(stuck).get("//readyz").await.expect_error(503, 10009);
        assert_eq!(said["message"], "some part gives no answer within 2 s");
        // Others have every connection.
        let (mut taken, mut said) = (Vec::new(), Value::Null);
        wait_until("every connection to be taken", async || {
            while let Ok(read) = timeout(Duration::from_millis(200), server.work().read()).await {
                taken.push(read.expect("a connection"));
            }
            said = server.anonymous().get("//readyz").await.body;
            said["error_code"] == 10009
        })
        .await;
        assert_eq!(said["message"], "the database gives no answer within 2 s");
        drop(taken);
        server.anonymous().get("//readyz").await.expect(200);
    }

    async fn the_api_describes_itself(server: TestServer) {
        let nobody = server.anonymous();
        let described = nobody.get("/openapi.json").await.expect(200);
        assert_eq!((&described["openapi"], &described["info"]["version"]), (&json!("3.1.0"), &json!("test")));
        let operations = described["paths"].as_object().expect("paths").values();
        let operations: usize = operations.map(|path| path.as_object().map_or(0, serde_json::Map::len)).sum();
        assert_eq!(operations, server.routes().all().len());
        let page = nobody.get("/docs/").await;
        assert!(page.header("content-type").starts_with("text/html"));
        assert!(page.expect(200).as_str().is_some_and(|text| text.contains("openapi.json")));
        nobody.get("/docs").await.expect(200);
    }

    async fn unknown_addresses_and_methods_are_told(server: TestServer) {
        for client in [server.anonymous(), server.admin()] {
            for path in ["/nothing/", "//", "//nothing", "/", "/users/1/nothing/"] {
                let answer = client.get(path).await;
                assert!(answer.header("content-type").starts_with("application/json"), "{path}: {}", answer.body);
                answer.expect_error(404, 10004);
            }
            for (method, path) in [
                (Method::PUT, "/users/"),
                (Method::DELETE, "/users/"),
                (Method::PATCH, "/application/deploy-tasks"),
                (Method::POST, "/users/me/"),
                (Method::POST, "/openapi.json"),
            ] {
                client.send(method, path, Value::Null).await.expect_error(405, 10005);
            }
        }
    }

    async fn request_ids_come_back(server: TestServer) {
        let admin = server.admin();
        let given = admin.with_header("x-request-id", "abc-123");
        assert_eq!(given.get("/users/me/").await.header("x-request-id"), "abc-123");
        let error = given.get("/users/4711/").await;
        assert_eq!(error.header("x-request-id"), "abc-123");
        assert_eq!(error.expect_error(404, 10004)["request_id"], "abc-123");
        let (first, second) = (admin.get("/users/me/").await, admin.get("/users/me/").await);
        assert_eq!(first.header("x-request-id").len(), 36);
        assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
        for bad in ["", "two words", "x".repeat(201).as_str()] {
            let made = admin.with_header("x-request-id", bad).get("/users/me/").await.header("x-request-id");
            assert_eq!(made.len(), 36, "{bad}");
        }
        assert_eq!(first.header("x-content-type-options"), "nosniff");
        assert_eq!(first.header("cache-control"), "no-store");
    }

    async fn a_body_has_a_limit(server: TestServer) {
        let admin = server.admin();
        let body = json!({"name": "x".repeat(9 * 1024 * 1024)});
        admin.post("/applications/", body.clone()).await.expect_error(413, 10007);
        admin.with_header("idempotency-key", "k").post("/applications/", body.clone()).await.expect_error(413, 10007);
        // Whoever is not signed in is not read at all.
        server.anonymous().post("/applications/", body).await.expect_error(401, 10002);
        assert_eq!(admin.get("/applications/").await.expect(200)["count"], 0);
    }
}
