//! The channel of a sub-task: who may follow, and what plain requests are told. Its frames need real sockets.

use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{references, upgrades};
use crate::deploys::{Shop, action_path, grant};

both_engines! {
    async fn following_needs_the_right_to_see(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&shop.instances)});
        let receipt = shop.admin.post(&upgrades(deploy_task), body).await.expect(200);
        let address = receipt["task_output"].as_str().expect("an address");
        let path = &address[address.find("/channel/").expect("a channel")..];
        server.anonymous().get(path).await.expect_error(401, 10002);
        let user = server.user("ada").await;
        user.get(path).await.expect_error(404, 10004);
        grant(&server, user.id, shop.application, &["restart_app"]).await;
        user.get(path).await.expect_error(403, 10003);
        // Whoever reviews what runs, or may see it, is told how to follow.
        for right in ["review_app_deploy_task", "view_app"] {
            grant(&server, user.id, shop.application, &[right]).await;
            let error = user.get(path).await.expect_error(400, 10001);
            assert_eq!(error["field"], "Upgrade", "{error}");
        }
        let taker = server.user("eve").await;
        taker.get(path).await.expect_error(404, 10004);
        shop.admin.post(&action_path(deploy_task, "delegate"), json!({"user_id": taker.id})).await.expect(200);
        taker.get(path).await.expect_error(400, 10001);
    }

    async fn bad_wishes_are_refused_and_named(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let body = json!({"instances": references(&shop.instances)});
        let receipt = shop.admin.post(&upgrades(shop.started().await), body).await.expect(200);
        let address = receipt["task_output"].as_str().expect("an address");
        let path = &address[address.find("/channel/").expect("a channel")..];
        for (query, field) in [("from=-1", "from"), ("from=x", "from"), ("format=xml", "format")] {
            let error = shop.admin.get(&format!("{path}?{query}")).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{query}");
        }
        for unknown in ["/channel/nothing", "/channel/0", "/channel/%00", "/channel/"] {
            shop.admin.get(unknown).await.expect_error(404, 10004);
        }
        shop.admin.post(path, Value::Null).await.expect_error(405, 10005);
    }
}
