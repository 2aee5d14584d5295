//! Changes of one thing at the same time: each sees what the other did, and neither is lost.

use drover_tests::{Client, both_engines};
use serde_json::{Value, json};

use crate::deploys::{PATH, Shop};

/// Rounds; of a race that is lost once in a few, some would be.
const ROUNDS: usize = 12;

/// Sends both changes at the same time; both have to be taken.
async fn both(client: &Client, path: &str, one: Value, other: Value) {
    let send = |change: Value| {
        let (client, path) = (client.clone(), path.to_owned());
        tokio::spawn(async move { client.patch(&path, change).await })
    };
    let (one, other) = (send(one), send(other));
    one.await.expect("an answer").expect(200);
    other.await.expect("an answer").expect(200);
}

/// Changes two fields again and again, each by a request of its own.
async fn both_fields(client: &Client, path: &str, (one, other): (&str, &str)) {
    for round in 0..ROUNDS {
        let text = format!("v{round}");
        both(client, path, json!({one: text}), json!({other: text})).await;
        let after = client.get(path).await.expect(200);
        assert_eq!((&after[one], &after[other]), (&json!(text), &json!(text)), "{path}, round {round}");
    }
}

both_engines! {
    async fn no_change_of_a_field_is_lost(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        both_fields(&shop.admin, &format!("/applications/{}/", shop.application), ("description", "directory")).await;
        let script = shop.hook("pre_exec", "true").await;
        both_fields(&shop.admin, &format!("/applications/deploy-scripts/{script}/"), ("content", "name")).await;
        let task = shop.task().await;
        both_fields(&shop.admin, &format!("{PATH}{task}/"), ("version", "description")).await;
    }

    async fn a_change_does_not_move_an_application_back(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let parent = shop.admin.post("/applications/", json!({"name": "parent"})).await.expect(200)["id"].clone();
        let path = format!("/applications/{}/", shop.application);
        for round in 0..ROUNDS {
            let target = if round % 2 == 0 { parent.clone() } else { Value::Null };
            both(&shop.admin, &path, json!({"parent_app": target}), json!({"description": format!("round {round}")})).await;
            assert_eq!(shop.admin.get(&path).await.expect(200)["parent_app"], target, "round {round}");
        }
    }

    async fn no_variable_is_lost(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let path = format!("/applications/{}/variables/", shop.application);
        for round in 0..ROUNDS {
            let (one, other) = (format!("one_{round}"), format!("other_{round}"));
            both(&shop.admin, &path, json!({"variables": {&one: 1}}), json!({"variables": {&other: 2}})).await;
        }
        let variables = shop.admin.get(&path).await.expect(200)["variables"].clone();
        assert_eq!(variables.as_object().map(serde_json::Map::len), Some(2 * ROUNDS), "{variables}");
    }
}
