//! Asking for a version to be deployed, and correcting what was asked.

use axum::http::Method;
use drover_kernel::Settings;
use drover_tests::{Engine, TestServer, both_engines, with_server};
use serde_json::{Value, json};

use super::{PATH, Shop, action_path, audited, count, grant, id};

both_engines! {
    async fn a_task_is_made_and_read(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let mut body = shop.body();
        body["description"] = json!("  the new shelf ");
        body["upgrade_checklist"] = json!("look");
        body["rollback_steps"] = json!(null);
        let made = shop.admin.post(PATH, body).await.expect(200);
        let task = id(&made);
        assert_eq!(made, json!({"message": "success", "id": task}));
        let expected = json!({
            "id": task, "application_id": shop.application,
            "application": {"id": shop.application, "name": "shop", "full_name": "shop"},
            "version": "1.0", "description": "the new shelf", "level": "A", "package_source": "dist",
            "planned_exec_time": 1_714_600_000, "upgrade_checklist": "look", "upgrade_steps": null,
            "rollback_steps": null, "creator": "admin", "assignee": null, "reviewer": null, "status": "wait_review",
            "status_reason": null, "plan": null, "plan_digest": null, "plan_commit": null, "auto_start": false,
            "created_time": "2024-05-01T12:00:00+00:00", "reviewed_time": null, "started_time": null,
            "closed_time": null, "sub_tasks": [],
        });
        assert_eq!(shop.read(task).await, expected);
        assert_eq!(audited(&server, task).await, ["create"]);
    }

    async fn every_spelling_is_taken(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let application = shop.application;
        for (path, extra) in [
            ("/application/deploy-tasks/", json!({"application_id": application, "package_source": "x"})),
            ("/application/deploy-tasks", json!({"application": application.to_string(), "deploy_source": "x"})),
            (PATH, json!({"application_id": application, "update_source": " x ", "level": "A", "unknown": [1]})),
        ] {
            let mut body = json!({"version": 2, "level": "A", "planned_exec_time": "1714600000"});
            body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            let task = shop.read(id(&shop.admin.post(path, body).await.expect(200))).await;
            assert_eq!((&task["version"], &task["package_source"]), (&json!("2"), &json!("x")), "{path}");
            assert_eq!(task["planned_exec_time"], 1_714_600_000, "{path}");
        }
        // No path is the whole tree.
        let body = json!({"application_id": application, "version": "3", "level": "I", "planned_exec_time": 0});
        let task = shop.read(id(&shop.admin.post(PATH, body).await.expect(200))).await;
        assert_eq!((&task["package_source"], &task["planned_exec_time"]), (&json!(""), &json!(0)));
    }

    async fn bad_tasks_are_refused_and_named(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        for field in ["application_id", "version", "level", "planned_exec_time"] {
            let mut body = shop.body();
            body.as_object_mut().expect("an object").remove(field);
            assert_eq!(shop.admin.post(PATH, body).await.expect_error(400, 10001)["field"], field);
        }
        let long = "x".repeat(20_001);
        for (field, value) in [
            ("application_id", json!("shop")),
            ("application_id", json!({"id": 1})),
            ("application_id", json!(1.5)),
            ("version", json!("")),
            ("version", json!("  ")),
            ("version", json!(null)),
            ("version", json!(["1"])),
            ("version", json!("x".repeat(201))),
            ("version", json!("a\u{0}b")),
            ("level", json!("D")),
            ("level", json!("")),
            ("level", json!(7)),
            ("package_source", json!("x".repeat(2001))),
            ("package_source", json!(true)),
            ("description", json!(long)),
            ("description", json!({})),
            ("planned_exec_time", json!("soon")),
            ("planned_exec_time", json!(-1)),
            ("planned_exec_time", json!(253_402_300_800_i64)),
            ("planned_exec_time", json!(1.5)),
            ("planned_exec_time", json!(null)),
            ("upgrade_checklist", json!(long)),
            ("upgrade_steps", json!([])),
            ("rollback_steps", json!(false)),
        ] {
            let mut body = shop.body();
            body[field] = value;
            let shown: String = body.to_string().chars().take(300).collect();
            assert_eq!(shop.admin.post(PATH, body).await.expect_error(400, 10001)["field"], field, "{shown}");
        }
        assert_eq!(count(&server).await, 0);
    }

    async fn what_is_no_body_is_refused(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let task = shop.task().await;
        for (path, text, field) in [
            (PATH.to_owned(), "{", "body"),
            (PATH.to_owned(), "{\"version\": \"1\",}", "body"),
            (PATH.to_owned(), "7", "body"),
            (PATH.to_owned(), "null", "body"),
            (PATH.to_owned(), "\"text\"", "body"),
            (PATH.to_owned(), "{}", "application_id"),
            (PATH.to_owned(), "", "application_id"),
            (action_path(task, "delegate"), "{}", "user_id"),
            (action_path(task, "delegate"), "{\"user_id\": {}}", "user_id"),
            (action_path(task, "delegate"), "nonsense", "body"),
        ] {
            let answer = shop.admin.send_text(Method::POST, &path, text.to_owned()).await;
            let error = answer.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{path} {text}: {error}");
        }
        let twice = format!("{} {{}}", shop.body());
        for text in ["[]", "[{\"version\": \"1\"}]", twice.as_str()] {
            shop.admin.send_text(Method::POST, PATH, text.to_owned()).await.expect_error(400, 10001);
        }
        assert_eq!(count(&server).await, 1);
    }

    async fn an_application_must_be_seen_deployable_and_enabled(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let user = server.user("ada").await;
        let mut unknown = shop.body();
        unknown["application_id"] = json!(4711);
        shop.admin.post(PATH, unknown).await.expect_error(404, 10004);
        user.post(PATH, shop.body()).await.expect_error(404, 10004);
        grant(&server, user.id, shop.application, &["view_app"]).await;
        user.post(PATH, shop.body()).await.expect_error(403, 10003);
        grant(&server, user.id, shop.application, &["deploy_app"]).await;
        let made = user.post(PATH, shop.body()).await.expect(200);
        assert_eq!(shop.read(id(&made)).await["creator"], "ada");
        shop.set(json!({"enabled": false})).await;
        user.post(PATH, shop.body()).await.expect_error(409, 10006);
        let other = id(&shop.admin.post("/applications/", json!({"name": "bare"})).await.expect(200));
        let mut bare = shop.body();
        bare["application_id"] = json!(other);
        shop.admin.post(PATH, bare).await.expect_error(409, 10006);
        assert_eq!(count(&server).await, 1);
    }

    async fn a_task_is_corrected_until_it_is_approved(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let task = shop.task().await;
        let path = format!("{PATH}{task}/");
        let before = shop.read(task).await;
        let mut expected = before.clone();
        expected.as_object_mut().expect("an object").remove("sub_tasks");
        assert_eq!(shop.admin.patch(&path, json!({})).await.expect(200), expected);
        let change = json!({"version": "1.1", "level": "S", "upgrade_steps": "one", "planned_exec_time": 5,
            "deploy_source": "other", "status": "running", "creator": "eve", "application_id": 4711});
        for (field, value) in [
            ("version", json!("1.1")),
            ("level", json!("S")),
            ("upgrade_steps", json!("one")),
            ("planned_exec_time", json!(5)),
            ("package_source", json!("other")),
        ] {
            expected[field] = value;
        }
        assert_eq!(shop.admin.patch(&path, change).await.expect(200), expected);
        expected["upgrade_steps"] = Value::Null;
        assert_eq!(shop.admin.patch(&path, json!({"upgrade_steps": null})).await.expect(200), expected);
        shop.act(task, "reject").await;
        let corrected = shop.admin.patch(&path, json!({"description": "better"})).await.expect(200);
        assert_eq!((&corrected["status"], &corrected["description"]), (&json!("wait_review"), &json!("better")));
        for (field, value) in [
            ("version", json!("")),
            ("level", json!("X")),
            ("planned_exec_time", json!(-1)),
            ("description", json!([])),
            ("package_source", json!({})),
        ] {
            let error = shop.admin.patch(&path, json!({field: value})).await.expect_error(400, 10001);
            assert_eq!(error["field"], field);
        }
        shop.act(task, "approve").await;
        shop.admin.patch(&path, json!({"version": "2"})).await.expect_error(409, 10006);
        assert_eq!(shop.read(task).await["version"], "1.1");
        let expected = ["create", "update", "update", "update", "reject", "update", "approve"];
        assert_eq!(audited(&server, task).await, expected);
    }
}

/// With a reserve that no disk has.
async fn check_full_disk(server: TestServer) {
    let shop = Shop::new(&server, 1).await;
    let error = shop.admin.post(PATH, shop.body()).await.expect_error(503, 10009);
    let message = error["message"].as_str().expect("a message");
    assert!(message.starts_with("nothing new is taken in: the disk of the data directory has "), "{message}");
    assert_eq!(count(&server).await, 0);
    // What there is can be read, and ended.
    shop.admin.get(PATH).await.expect(200);
    server.anonymous().get("//healthz").await.expect(200);
    let error = server.anonymous().get("//readyz").await.expect_error(503, 10009);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("kept in reserve")), "{error}");
}

#[tokio::test]
async fn nothing_new_is_taken_in_without_room() {
    let settings = Settings { disk_reserve_bytes: u64::MAX, ..Settings::default() };
    with_server(Engine::Sqlite, settings, check_full_disk).await;
}
