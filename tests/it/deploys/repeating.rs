//! Requests that are sent twice with one key are carried out once.

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
            match answer.status {
                200 => done.push(id(&answer.body)),
                // Another of them was at work.
                _ => _ = answer.expect_error(409, 10006),
            }
        }
        done.dedup();
        assert_eq!((done.len(), count(&server).await), (1, 1));
        assert_eq!(id(&keyed.post(PATH, shop.body()).await.expect(200)), done[0]);
    }
}
