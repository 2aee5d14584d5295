//! Handing a deploy task over: the assignee may do on it what the giver might, and on nothing else.

use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{PATH, Shop, action_path, audited, grant};

both_engines! {
    async fn the_assignee_may_do_what_the_giver_might(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let (giver, taker) = (server.user("ada").await, server.user("eve").await);
        grant(&server, giver.id, shop.application, &["view_app", "deploy_app"]).await;
        let (task, other) = (shop.task().await, shop.task().await);
        giver.post(&action_path(task, "delegate"), json!({"user_id": taker.id})).await.expect(200);
        let told = taker.get(&format!("{PATH}{task}/")).await.expect(200);
        assert_eq!(told["assignee"], json!({"id": taker.id, "username": "eve"}));
        assert_eq!((&told["status"], &told["creator"]), (&json!("wait_review"), &json!("admin")));
        // The giver could not review, so the taker cannot.
        taker.post(&action_path(task, "approve"), Value::Null).await.expect_error(403, 10003);
        shop.act(task, "approve").await;
        taker.post(&action_path(task, "start"), Value::Null).await.expect(200);
        // Nothing else opens by it.
        taker.get(&format!("{PATH}{other}/")).await.expect_error(404, 10004);
        taker.post(&action_path(other, "close"), Value::Null).await.expect_error(404, 10004);
        taker.get(&format!("/applications/{}/", shop.application)).await.expect_error(404, 10004);
        taker.post(PATH, shop.body()).await.expect_error(404, 10004);
        // The taker may pass it on, and then has no more to say.
        let third = server.user("kim").await;
        taker.post(&action_path(task, "delegate"), json!({"user_id": third.id.to_string()})).await.expect(200);
        taker.get(&format!("{PATH}{task}/")).await.expect_error(404, 10004);
        third.post(&action_path(task, "close"), Value::Null).await.expect(200);
        // What was handed over ends with the task.
        third.get(&format!("{PATH}{task}/")).await.expect_error(404, 10004);
        assert_eq!(third.get(PATH).await.expect(200)["count"], 0);
        giver.get(&format!("{PATH}{task}/")).await.expect(200);
        assert_eq!(audited(&server, task).await, ["create", "delegate", "approve", "start", "delegate", "close"]);
    }

    async fn a_reviewer_may_hand_over_the_review(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let (giver, taker) = (server.user("ada").await, server.user("eve").await);
        grant(&server, giver.id, shop.application, &["review_app_deploy_task"]).await;
        let task = shop.task().await;
        let hand_over = json!({"user_id": taker.id});
        // A reviewer reads what is to be reviewed, and nothing else of the application.
        assert_eq!(giver.get(&format!("{PATH}{task}/")).await.expect(200)["version"], "1.0");
        giver.get(&format!("/applications/{}/", shop.application)).await.expect_error(403, 10003);
        giver.post(&action_path(task, "start"), Value::Null).await.expect_error(403, 10003);
        giver.post(&action_path(task, "delegate"), hand_over).await.expect(200);
        taker.get(&format!("{PATH}{task}/")).await.expect(200);
        taker.post(&action_path(task, "approve"), Value::Null).await.expect(200);
        assert_eq!(shop.read(task).await["reviewer"], "eve");
        taker.post(&action_path(task, "start"), Value::Null).await.expect_error(403, 10003);
    }

    async fn only_enabled_users_of_the_organisation_take_over(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let task = shop.task().await;
        let gone = server.user("gone").await;
        shop.admin.post(&format!("/users/{}/actions/disable/", gone.id), Value::Null).await.expect(200);
        for user_id in [json!(gone.id), json!(4711), json!(-1), json!("ada"), json!(null), json!([1])] {
            let body = json!({"user_id": user_id});
            let error = shop.admin.post(&action_path(task, "delegate"), body.clone()).await.expect_error(400, 10001);
            assert_eq!(error["field"], "user_id", "{body}");
        }
        let told = shop.read(task).await;
        assert_eq!((&told["assignee"], &told["status"]), (&Value::Null, &json!("wait_review")));
        assert_eq!(audited(&server, task).await, ["create"]);
        shop.act(task, "close").await;
        let user = server.user("ada").await;
        let answer = shop.admin.post(&action_path(task, "delegate"), json!({"user_id": user.id})).await;
        answer.expect_error(409, 10006);
    }
}
