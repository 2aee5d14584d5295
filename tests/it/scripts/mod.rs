//! Deploy scripts, over HTTP.

pub(crate) mod running;

use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer, both_engines};
use serde_json::{Value, json};

const PATH: &str = "/applications/deploy-scripts/";

fn script(name: &str) -> Value {
    json!({"name": name, "language": "bash", "content": "echo {{ application.name }}\n"})
}

async fn made(client: &Client, name: &str) -> i64 {
    client.post(PATH, script(name)).await.expect(200)["id"].as_i64().expect("an id")
}

async fn details(server: &TestServer, action: &str) -> Vec<String> {
    let sql = sql!("SELECT detail FROM audit_entries WHERE object_type = 'deploy_script' AND action = $1 ORDER BY id");
    server.read().await.values(sql, args![action]).await.expect("the audit")
}

both_engines! {
    async fn a_script_is_made_read_and_changed(server: TestServer) {
        let admin = server.admin();
        let content = "  #!/bin/bash\r\n\techo \"é😀\" \n\n";
        let body = json!({"name": " restart ", "language": "bash", "content": content, "creator": "somebody"});
        let made = admin.post(PATH, body).await.expect(200);
        let id = made["id"].clone();
        let expected = json!({
            "id": id, "name": "restart", "language": "bash", "content": content, "template_engine": "jinja", "creator": "admin",
        });
        assert_eq!(made, expected);
        let path = format!("{PATH}{id}/");
        assert_eq!(admin.get(&path).await.expect(200), expected);
        let mut changed = expected;
        changed["language"] = json!("python");
        let body = json!({"language": "python", "creator": "somebody", "name": "restart"});
        assert_eq!(admin.patch(&path, body).await.expect(200), changed);
        assert_eq!(details(&server, "update").await, [r#"language: "bash" → "python""#]);
        admin.patch(&path, json!({})).await.expect(200);
        admin.patch(&path, json!({"content": "secret"})).await.expect(200);
        let told = details(&server, "update").await;
        assert!(told.len() == 2 && told[1].contains("SHA-256") && !told[1].contains("secret"), "{told:?}");
        admin.delete(&path).await.expect(200);
        admin.get(&path).await.expect_error(404, 10004);
        assert_eq!((details(&server, "add").await.len(), details(&server, "delete").await.len()), (1, 1));
    }

    async fn bad_scripts_are_refused_and_named(server: TestServer) {
        let admin = server.admin();
        let present = made(&admin, "taken").await;
        let other = format!("{PATH}{}/", made(&admin, "other").await);
        for (member, value, status, code, field) in [
            ("name", json!("taken"), 500, 30001, "name"),
            ("language", json!("perl"), 500, 30002, "language"),
            ("template_engine", json!("mustache"), 500, 30003, "template_engine"),
            ("name", json!(""), 400, 10001, "name"),
            ("name", json!("x".repeat(201)), 400, 10001, "name"),
            ("name", json!([]), 400, 10001, "name"),
            ("content", json!(7), 400, 10001, "content"),
            ("content", json!(""), 400, 10001, "content"),
            ("content", json!("a\u{0}b"), 400, 10001, "content"),
            ("content", json!("x".repeat(200_001)), 400, 10001, "content"),
        ] {
            let mut body = script("third");
            body[member] = value.clone();
            let error = admin.post(PATH, body).await.expect_error(status, code);
            assert_eq!(error["field"], field, "{error}");
            let mut change = json!({});
            change[member] = value;
            let error = admin.patch(&other, change).await.expect_error(status, code);
            assert_eq!(error["field"], field, "{error}");
        }
        for member in ["name", "language", "content"] {
            let mut body = script("third");
            body.as_object_mut().expect("an object").remove(member);
            assert_eq!(admin.post(PATH, body).await.expect_error(400, 10001)["field"], member);
        }
        assert_eq!(admin.get(&other).await.expect(200)["name"], "other", "nothing was changed");
        assert_eq!(admin.get(PATH).await.expect(200)["count"], 2, "nothing was made");
        let long = json!({"name": "long", "language": "python", "content": "x".repeat(200_000)});
        admin.post(PATH, long).await.expect(200);
        admin.patch(&format!("{PATH}{present}/"), json!({"name": "taken"})).await.expect(200);
        admin.get(&format!("{PATH}999/")).await.expect_error(404, 10004);
        admin.patch(&format!("{PATH}999/"), json!({})).await.expect_error(404, 10004);
        admin.delete(&format!("{PATH}999/")).await.expect_error(404, 10004);
    }

    async fn scripts_are_filtered(server: TestServer) {
        let admin = server.admin();
        made(&admin, "Stop").await;
        admin.post(PATH, json!({"name": "start", "language": "python", "content": "print(100%)"})).await.expect(200);
        for (query, expected) in [
            ("", &["Stop", "start"][..]),
            ("?name=sto", &["Stop"]),
            ("?creator=admin&language=python", &["start"]),
            ("?creator=adm", &[]),
            ("?content=ECHO", &["Stop"]),
            ("?content=100%25)", &["start"]),
            ("?page_size=1&page=2", &["start"]),
        ] {
            let page = admin.get(&format!("{PATH}{query}")).await.expect(200);
            let names: Vec<&str> = page["results"].as_array().expect("results").iter().filter_map(|result| result["name"].as_str()).collect();
            assert_eq!(names, expected, "{query}");
        }
        admin.get(&format!("{PATH}?language=perl")).await.expect_error(400, 10001);
    }

    async fn a_script_in_use_stays(server: TestServer) {
        let admin = server.admin();
        let id = made(&admin, "restart").await;
        let path = format!("{PATH}{id}/");
        let shop = admin.post("/applications/", json!({"name": "shop"})).await.expect(200)["id"].clone();
        let settings = format!("/applications/{shop}/deploy-settings/");
        admin.patch(&settings, json!({"lifecycle_hooks": {"pre_exec": {"script": id}, "post_exec": {"script": id}}})).await.expect(200);
        let error = admin.delete(&path).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("shop")), "{error}");
        let page = admin.get(&format!("{path}applications/")).await.expect(200);
        assert_eq!((&page["count"], &page["results"][0]["id"]), (&json!(1), &shop));
        admin.get(&format!("{PATH}999/applications/")).await.expect_error(404, 10004);
        admin.patch(&settings, json!({"lifecycle_hooks": {"pre_exec": null, "post_exec": null}})).await.expect(200);
        admin.delete(&path).await.expect(200);
    }

    async fn scripts_need_their_module(server: TestServer) {
        let id = made(&server.admin(), "restart").await;
        let user = server.user("ann").await;
        user.get(PATH).await.expect_error(403, 10003);
        user.post(PATH, script("own")).await.expect_error(403, 10003);
        for path in [format!("{PATH}{id}/"), format!("{PATH}999/")] {
            user.get(&path).await.expect_error(403, 10003);
            user.patch(&path, json!({})).await.expect_error(403, 10003);
            user.delete(&path).await.expect_error(403, 10003);
        }
        server.anonymous().get(PATH).await.expect_error(401, 10002);
        let flags = json!([{"module_name": "deploy_template", "permissions": {"enable_deploy_template_mgmt": true}}]);
        server.admin().post(&format!("/users/{}/system/perms/", user.id), flags).await.expect(200);
        assert_eq!(user.post(PATH, script("own")).await.expect(200)["creator"], "ann");
    }
}
