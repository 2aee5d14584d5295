//! Credentials of repositories, over HTTP.

mod choosing;

use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer, both_engines};
use serde_json::{Value, json};

use crate::deploys::id;

pub(crate) const PASSWORDS: &str = "/applications/repository-credentials/password/";
pub(crate) const KEYS: &str = "/applications/repository-credentials/ssh-private-key/";

/// A key that belongs to nobody; only its form matters here.
pub(crate) const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0LWtleQ==\n-----END EC PRIVATE KEY-----\n";

pub(crate) async fn password(client: &Client, name: &str) -> i64 {
    id(&client.post(PASSWORDS, json!({"name": name, "username": "ada", "password": "s3cret"})).await.expect(200))
}

pub(crate) async fn key(client: &Client, name: &str) -> i64 {
    id(&client.post(KEYS, json!({"name": name, "username": "git", "private_key": KEY})).await.expect(200))
}

async fn details(server: &TestServer, action: &str) -> Vec<String> {
    let sql = sql!(
        "SELECT detail FROM audit_entries WHERE object_type = 'repository_credential' AND action = $1 ORDER BY id"
    );
    server.read().await.values(sql, args![action]).await.expect("the audit")
}

async fn sealed(server: &TestServer, id: i64) -> String {
    let sql = sql!("SELECT sealed_secret FROM repository_credentials WHERE id = $1");
    server.read().await.value(sql, args![id]).await.expect("a credential")
}

both_engines! {
    async fn a_password_is_written_and_never_read(server: TestServer) {
        let admin = server.admin();
        let body = json!({"name": "ci", "username": "ada", "password": "s3cret"});
        let made = admin.post(PASSWORDS, body).await.expect(200);
        let number = id(&made);
        let path = format!("{PASSWORDS}{number}/");
        let expected = json!({"id": number, "name": "ci", "type": "PASSWORD", "username": "ada", "password": "******"});
        assert_eq!(made, expected);
        assert_eq!(admin.get(&path).await.expect(200), expected);
        let first = sealed(&server, number).await;
        assert!(!first.is_empty() && !first.contains("s3cret"));
        // What was read can be sent back: the secret stays.
        assert_eq!(admin.patch(&path, expected.clone()).await.expect(200), expected);
        assert_eq!((sealed(&server, number).await, details(&server, "update").await.len()), (first.clone(), 0));
        let changed = admin.patch(&path, json!({"username": "bob"})).await.expect(200);
        assert_eq!((&changed["username"], &changed["name"]), (&json!("bob"), &json!("ci")));
        assert_eq!(sealed(&server, number).await, first);
        admin.patch(&path, json!({"password": "other"})).await.expect(200);
        assert_ne!(sealed(&server, number).await, first);
        assert_eq!(details(&server, "update").await, [r#"username: "ada" → "bob""#, "password: changed"]);
        // Everything may be left out, and nothing is no secret.
        let empty = admin.post(PASSWORDS, json!({})).await.expect(200);
        assert_eq!((&empty["name"], &empty["username"], &empty["password"]), (&json!(null), &json!(""), &json!("")));
        admin.delete(&path).await.expect(200);
        admin.get(&path).await.expect_error(404, 10004);
        assert_eq!((details(&server, "add").await.len(), details(&server, "delete").await.len()), (2, 1));
    }

    async fn a_key_is_written_and_never_read(server: TestServer) {
        let admin = server.admin();
        let made = admin.post(KEYS, json!({"private_key": KEY})).await.expect(200);
        let path = format!("{KEYS}{}/", made["id"]);
        let expected =
            json!({"id": made["id"], "name": null, "type": "SSH_PRIVATE_KEY", "username": "", "private_key": "******"});
        assert_eq!(made, expected);
        assert_eq!(admin.patch(&path, expected.clone()).await.expect(200), expected);
        assert!(!sealed(&server, id(&made)).await.contains("c2VjcmV0"));
        let other = password(&admin, "ci").await;
        assert_ne!(json!(other), made["id"], "one row of numbers for both kinds");
        for wrong in [format!("{KEYS}{other}/"), format!("{PASSWORDS}{}/", made["id"]), format!("{KEYS}999/")] {
            admin.get(&wrong).await.expect_error(404, 10004);
            admin.patch(&wrong, json!({})).await.expect_error(404, 10004);
            admin.delete(&wrong).await.expect_error(404, 10004);
        }
        admin.delete(&path).await.expect(200);
    }

    async fn bad_credentials_are_refused_and_named(server: TestServer) {
        let admin = server.admin();
        for (path, member, value) in [
            (PASSWORDS, "name", json!("x".repeat(201))),
            (PASSWORDS, "name", json!("a\u{7}")),
            (PASSWORDS, "username", json!("a\nb")),
            (PASSWORDS, "password", json!("a\nb")),
            (PASSWORDS, "password", json!("x".repeat(4097))),
            (PASSWORDS, "password", json!(7)),
            (KEYS, "username", json!("a b")),
            (KEYS, "private_key", json!("")),
            (KEYS, "private_key", json!("ssh-ed25519 AAAA")),
            (KEYS, "private_key", json!(KEY.replace("EC", "ENCRYPTED"))),
            (KEYS, "private_key", json!("******")),
            (KEYS, "private_key", json!(null)),
        ] {
            let mut body = json!({"private_key": KEY});
            body[member] = value;
            let error = admin.post(path, body).await.expect_error(400, 10001);
            assert_eq!(error["field"], member, "{error}");
            assert!(!error.to_string().contains("c2Vj"), "{error}");
        }
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM repository_credentials"), args![]).await, 0);
    }

    async fn a_password_is_found_by_id_or_name_in_the_body(server: TestServer) {
        let admin = server.admin();
        let (one, _) = (password(&admin, "one").await, password(&admin, "two").await);
        password(&admin, "two").await;
        assert_eq!(admin.patch(PASSWORDS, json!({"id": one, "name": "first"})).await.expect(200)["name"], "first");
        let changed = admin.patch(PASSWORDS, json!({"name": "first", "username": "eve"})).await.expect(200);
        assert_eq!((&changed["id"], &changed["username"]), (&json!(one), &json!("eve")));
        assert_eq!(admin.patch(PASSWORDS, json!({"username": "x"})).await.expect_error(400, 10001)["field"], "id");
        let by_address = format!("{PASSWORDS}?id={one}");
        assert_eq!(admin.patch(&by_address, json!({"username": "kim"})).await.expect(200)["username"], "kim");
        assert_eq!(admin.patch(&by_address, json!({"id": one, "username": "lee"})).await.expect(200)["id"], one);
        let refused = admin.patch(&by_address, json!({"id": one + 1, "username": "x"})).await.expect_error(400, 10001);
        assert_eq!(refused["field"], "id");
        for name in ["two", "three"] {
            assert_eq!(admin.patch(PASSWORDS, json!({"name": name})).await.expect_error(400, 10001)["field"], "name");
        }
        admin.patch(PASSWORDS, json!({"id": 999})).await.expect_error(404, 10004);
    }

    async fn credentials_are_filtered(server: TestServer) {
        let admin = server.admin();
        password(&admin, "CI").await;
        password(&admin, "100%").await;
        key(&admin, "ci key").await;
        for (path, query, expected) in [
            (PASSWORDS, "", &["CI", "100%"][..]),
            (PASSWORDS, "?name=ci", &["CI"]),
            (PASSWORDS, "?name=%25", &["100%"]),
            (PASSWORDS, "?username=ADA", &["CI", "100%"]),
            (PASSWORDS, "?username=ad", &[]),
            (KEYS, "", &["ci key"]),
            (KEYS, "?username=git&page_size=1", &["ci key"]),
        ] {
            let page = admin.get(&format!("{path}{query}")).await.expect(200);
            let results = page["results"].as_array().expect("results");
            let names: Vec<&str> = results.iter().filter_map(|result| result["name"].as_str()).collect();
            assert_eq!(names, expected, "{path}{query}");
        }
    }

    async fn credentials_need_their_module(server: TestServer) {
        let admin = server.admin();
        let one = password(&admin, "ci").await;
        let user = server.user("ann").await;
        for path in [PASSWORDS, KEYS] {
            user.get(path).await.expect_error(403, 10003);
            user.post(path, json!({})).await.expect_error(403, 10003);
            for path in [format!("{path}{one}/"), format!("{path}999/")] {
                user.get(&path).await.expect_error(403, 10003);
                user.patch(&path, json!({})).await.expect_error(403, 10003);
                user.delete(&path).await.expect_error(403, 10003);
            }
        }
        user.patch(PASSWORDS, json!({"id": one})).await.expect_error(403, 10003);
        let flags = json!([{"module_name": "deploy_template", "permissions": {"enable_deploy_template_mgmt": true}}]);
        admin.post(&format!("/users/{}/system/perms/", user.id), flags).await.expect(200);
        assert_eq!(user.get(&format!("{PASSWORDS}{one}/")).await.expect(200)["password"], "******");
    }

    async fn a_credential_in_use_stays(server: TestServer) {
        let admin = server.admin();
        let number = password(&admin, "ci").await;
        let path = format!("{PASSWORDS}{number}/");
        let repository = json!({"url": "https://git.example.com/shop.git", "credential": number});
        let shop = id(&admin.post("/applications/", json!({"name": "shop"})).await.expect(200));
        let settings = format!("/applications/{shop}/deploy-settings/");
        admin.patch(&settings, json!({"repository": repository})).await.expect(200);
        let template = json!({"name": "web", "deploy_path": "/srv", "repository": repository});
        let template = id(&admin.post("/applications/deploy-templates/", template).await.expect(200));
        let error = admin.delete(&path).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.ends_with("of: shop, the deploy template web")), "{error}");
        let page = admin.get(&format!("/applications/deploy-templates/?credential={number}")).await.expect(200);
        assert_eq!((&page["count"], &page["results"][0]["id"]), (&json!(1), &json!(template)));
        admin.patch(&settings, json!({"repository": {"credential": null}})).await.expect(200);
        admin.delete(&format!("/applications/deploy-templates/{template}/")).await.expect(200);
        admin.delete(&path).await.expect(200);
        assert_eq!(admin.get(&settings).await.expect(200)["repository"]["credential"], Value::Null);
    }
}
