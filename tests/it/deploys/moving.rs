//! Review, start and close: every state with every action.

use std::time::Duration;

use axum::http::Method;
use drover_kernel::{Settings, args, sql};
use drover_tests::{Engine, TestServer, both_engines, with_server};
use serde_json::{Value, json};

use super::{PATH, Shop, action_path, audited, grant};

const STATES: [&str; 5] = ["wait_review", "approved", "rejected", "running", "closed"];

/// The state after an action; none when it is refused. Written down here once more, apart from the rules.
fn after(state: &str, action: &str) -> Option<&'static str> {
    match (state, action) {
        ("wait_review", "approve") => Some("approved"),
        ("wait_review", "reject") => Some("rejected"),
        ("approved", "start") => Some("running"),
        ("wait_review" | "approved" | "rejected" | "running", "close") => Some("closed"),
        ("wait_review", "delegate") => Some("wait_review"),
        ("approved", "delegate") => Some("approved"),
        ("running", "delegate") => Some("running"),
        ("wait_review" | "rejected", "update") => Some("wait_review"),
        _ => None,
    }
}

/// A deploy task in this state.
async fn in_state(shop: &Shop, state: &str) -> i64 {
    let task = shop.task().await;
    let actions: &[&str] = match state {
        "approved" => &["approve"],
        "rejected" => &["reject"],
        "running" => &["approve", "start"],
        "closed" => &["close"],
        _ => &[],
    };
    for action in actions {
        shop.act(task, action).await;
    }
    task
}

both_engines! {
    async fn every_state_with_every_action(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let user = server.user("ada").await;
        for state in STATES {
            for action in ["approve", "reject", "start", "close", "delegate", "update"] {
                let task = in_state(&shop, state).await;
                let before = shop.read(task).await;
                let told = audited(&server, task).await.len();
                assert_eq!(before["status"], state);
                let (method, path, body) = match action {
                    "update" => (Method::PATCH, format!("{PATH}{task}/"), json!({"version": "2"})),
                    "delegate" => (Method::POST, action_path(task, action), json!({"user_id": user.id})),
                    _ => (Method::POST, action_path(task, action), Value::Null),
                };
                let answer = shop.admin.send(method, &path, body).await;
                let entries = audited(&server, task).await;
                match after(state, action) {
                    Some(next) => {
                        answer.expect(200);
                        assert_eq!(shop.read(task).await["status"], next, "{state} {action}");
                        assert_eq!(entries.last().map(String::as_str), Some(action), "{state}");
                    }
                    None => {
                        let error = answer.expect_error(409, 10006);
                        let message = error["message"].as_str().unwrap_or_default();
                        assert!(message.contains(state) && message.contains(action), "{message}");
                        assert_eq!(shop.read(task).await, before, "{state} {action}");
                        assert_eq!(entries.len(), told, "{state} {action}");
                    }
                }
            }
        }
    }

    async fn who_and_when_are_told(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let reviewer = server.user("ruth").await;
        grant(&server, reviewer.id, shop.application, &["review_app_deploy_task"]).await;
        let task = shop.task().await;
        server.advance(Duration::from_secs(60));
        reviewer.post(&action_path(task, "approve"), Value::Null).await.expect(200);
        server.advance(Duration::from_secs(60));
        shop.act(task, "start").await;
        server.advance(Duration::from_secs(60));
        shop.act(task, "close").await;
        let told = shop.read(task).await;
        assert_eq!((&told["creator"], &told["reviewer"]), (&json!("admin"), &json!("ruth")));
        assert_eq!(told["created_time"], "2024-05-01T12:00:00+00:00");
        assert_eq!(told["reviewed_time"], "2024-05-01T12:01:00+00:00");
        assert_eq!(told["started_time"], "2024-05-01T12:02:00+00:00");
        assert_eq!(told["closed_time"], "2024-05-01T12:03:00+00:00");
        let operators = sql!("SELECT operator FROM audit_entries WHERE object_type = 'deploy_task' ORDER BY id");
        let operators: Vec<String> = server.read().await.values(operators, args![]).await.expect("the audit");
        assert_eq!(operators, ["admin", "ruth", "admin", "admin"]);
    }

    async fn each_action_needs_its_right(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let user = server.user("ada").await;
        let task = shop.task().await;
        let actions = ["approve", "reject", "start", "close"];
        for action in actions {
            user.post(&action_path(task, action), Value::Null).await.expect_error(404, 10004);
        }
        user.get(&format!("{PATH}{task}/")).await.expect_error(404, 10004);
        grant(&server, user.id, shop.application, &["view_app"]).await;
        user.get(&format!("{PATH}{task}/")).await.expect(200);
        for action in actions {
            user.post(&action_path(task, action), Value::Null).await.expect_error(403, 10003);
        }
        user.patch(&format!("{PATH}{task}/"), json!({"version": "2"})).await.expect_error(403, 10003);
        user.post(&action_path(task, "delegate"), json!({"user_id": user.id})).await.expect_error(403, 10003);
        grant(&server, user.id, shop.application, &["deploy_app"]).await;
        user.post(&action_path(task, "approve"), Value::Null).await.expect_error(403, 10003);
        user.post(&action_path(task, "close"), Value::Null).await.expect(200);
        for unknown in ["4711", "x", "99999999999999999999", "-1"] {
            shop.admin.get(&format!("{PATH}{unknown}/")).await.expect_error(404, 10004);
            shop.admin.post(&format!("{PATH}{unknown}/actions/close/"), Value::Null).await.expect_error(404, 10004);
        }
        shop.admin.post(&action_path(task, "explode"), Value::Null).await.expect_error(404, 10004);
        shop.admin.get(&action_path(task, "close")).await.expect_error(405, 10005);
    }

    async fn an_application_may_ask_for_four_eyes(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        shop.set(json!({"four_eyes": true})).await;
        let reviewer = server.user("ruth").await;
        grant(&server, reviewer.id, shop.application, &["review_app_deploy_task"]).await;
        for action in ["approve", "reject"] {
            let task = shop.task().await;
            let path = action_path(task, action);
            let error = shop.admin.post(&path, Value::Null).await.expect_error(409, 10006);
            assert!(error["message"].as_str().is_some_and(|text| text.contains("four eyes")), "{error}");
            reviewer.post(&path, Value::Null).await.expect(200);
            assert_eq!(shop.read(task).await["reviewer"], "ruth");
        }
    }

    async fn who_changed_a_task_last_does_not_review_it(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        shop.set(json!({"four_eyes": true})).await;
        let editor = server.user("eve").await;
        grant(&server, editor.id, shop.application, &["deploy_app", "review_app_deploy_task"]).await;
        let task = shop.task().await;
        editor.patch(&format!("{PATH}{task}/"), json!({"version": "eves"})).await.expect(200);
        editor.post(&action_path(task, "approve"), Value::Null).await.expect_error(409, 10006);
        let reviewer = server.user("ruth").await;
        grant(&server, reviewer.id, shop.application, &["review_app_deploy_task"]).await;
        reviewer.post(&action_path(task, "approve"), Value::Null).await.expect(200);
    }
}

async fn check_four_eyes_of_the_server(server: TestServer) {
    let shop = Shop::new(&server, 0).await;
    let task = shop.task().await;
    shop.admin.post(&action_path(task, "approve"), Value::Null).await.expect_error(409, 10006);
    shop.act(task, "close").await;
}

mod the_server_may_ask_for_four_eyes {
    use super::*;

    fn four_eyes() -> Settings {
        Settings { four_eyes: true, ..Settings::default() }
    }

    #[tokio::test]
    async fn sqlite() {
        with_server(Engine::Sqlite, four_eyes(), check_four_eyes_of_the_server).await;
    }

    #[tokio::test]
    async fn postgres() {
        with_server(Engine::Postgres, four_eyes(), check_four_eyes_of_the_server).await;
    }
}
