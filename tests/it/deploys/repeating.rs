//! Requests that are sent twice with one key are carried out once.

use drover_kernel::sql;
use drover_shared::Digest;
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{PATH, Shop, action_path, audited, count, grant, id};

both_engines! {
    async fn the_first_answer_is_given_again(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let keyed = shop.admin.with_header("idempotency-key", "k-1");
        let first = keyed.post(PATH, shop.body()).await;
        assert_eq!(first.header("idempotency-replayed"), "");
        let again = keyed.post(PATH, shop.body()).await;
        assert_eq!(again.header("idempotency-replayed"), "true");
        let task = id(&first.body);
        assert_eq!((again.expect(200), count(&server).await), (first.expect(200), 1));
        assert_eq!(audited(&server, task).await, ["create"]);
        // An action as well, though its state would not allow it any more.
        let keyed = shop.admin.with_header("idempotency-key", "k-2");
        for _ in 0..2 {
            keyed.post(&action_path(task, "approve"), Value::Null).await.expect(200);
        }
        assert_eq!(audited(&server, task).await, ["create", "approve"]);
    }

    async fn a_key_belongs_to_one_request_of_one_user(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let keyed = shop.admin.with_header("idempotency-key", "k");
        keyed.post(PATH, shop.body()).await.expect(200);
        let mut other = shop.body();
        other["version"] = json!("2");
        let error = keyed.post(PATH, other).await.expect_error(400, 10001);
        assert_eq!(error["field"], "Idempotency-Key");
        let user = server.user("ada").await;
        grant(&server, user.id, shop.application, &["deploy_app"]).await;
        user.with_header("idempotency-key", "k").post(PATH, shop.body()).await.expect(200);
        assert_eq!(count(&server).await, 2);
        for key in ["", " ", "x".repeat(201).as_str()] {
            let error = shop.admin.with_header("idempotency-key", key).post(PATH, shop.body()).await;
            assert_eq!(error.expect_error(400, 10001)["field"], "Idempotency-Key", "{key}");
        }
    }

    async fn a_refused_request_may_be_corrected(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let keyed = shop.admin.with_header("idempotency-key", "k");
        shop.set(json!({"enabled": false})).await;
        keyed.post(PATH, shop.body()).await.expect_error(409, 10006);
        shop.set(json!({"enabled": true})).await;
        keyed.post(PATH, shop.body()).await.expect(200);
        assert_eq!(count(&server).await, 1);
    }

    async fn nothing_can_be_guessed_from_what_is_kept_of_a_request(server: TestServer) {
        let admin = server.admin().with_header("idempotency-key", "k");
        let body = json!({"username": "ann", "password": "12345678"});
        admin.post("/users/", body.clone()).await.expect(200);
        let kept: String = server.read().await.value(sql!("SELECT request FROM idempotency_keys"), vec![]).await.expect("one");
        let plain = Digest::of(format!("POST /api/v1/users/\n{body}").as_bytes()).to_string();
        assert!(kept.len() > plain.len() && !kept.contains(&plain), "{kept}");
        assert!(!kept.contains(&Digest::of(body.to_string().as_bytes()).to_string()), "{kept}");
    }

    async fn requests_at_the_same_time_are_carried_out_once(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let keyed = shop.admin.with_header("idempotency-key", "k");
        let requests: Vec<_> = (0..8)
            .map(|_| {
                let (client, body) = (keyed.clone(), shop.body());
                tokio::spawn(async move { client.post(PATH, body).await })
            })
            .collect();
        let mut done = Vec::new();
        for request in requests {
            let answer = request.await.expect("an answer");
            done.push(id(&answer.expect(200)));
        }
        done.dedup();
        assert_eq!((done.len(), count(&server).await), (1, 1), "each gets the first one's answer");
        assert_eq!(id(&keyed.post(PATH, shop.body()).await.expect(200)), done[0]);
    }
}
