//! Deploy templates, and what linking one means, over HTTP.

mod linking;

use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer, both_engines};
use serde_json::{Value, json};

use crate::deploys::id;

pub(crate) const PATH: &str = "/applications/deploy-templates/";

/// A template's body with what is required.
pub(crate) fn body(name: &str) -> Value {
    json!({"name": name, "repository": {"url": "https://git.example.com/shop.git"}, "deploy_path": "/srv/shop"})
}

pub(crate) async fn made(client: &Client, name: &str) -> i64 {
    id(&client.post(PATH, body(name)).await.expect(200))
}

async fn script(client: &Client, name: &str) -> i64 {
    let body = json!({"name": name, "language": "bash", "content": format!("echo {name}\n")});
    id(&client.post("/applications/deploy-scripts/", body).await.expect(200))
}

async fn application(client: &Client, name: &str) -> i64 {
    id(&client.post("/applications/", json!({"name": name})).await.expect(200))
}

/// Details in the audit of what was done to templates.
async fn details(server: &TestServer, action: &str) -> Vec<String> {
    let sql =
        sql!("SELECT detail FROM audit_entries WHERE object_type = 'deploy_template' AND action = $1 ORDER BY id");
    server.read().await.values(sql, args![action]).await.expect("the audit")
}

both_engines! {
    async fn a_template_is_made_read_and_changed(server: TestServer) {
        let admin = server.admin();
        let stop = script(&admin, "stop").await;
        let mut asked = body("web");
        asked["lifecyle_hooks"] = json!([{"running_user": "www-data", "glboal_post_exec": {"script": {"id": stop}}}]);
        asked["timeout"] = json!("300");
        let made = admin.post(PATH, asked).await.expect(200);
        let path = format!("{PATH}{}/", made["id"]);
        let expected = json!({
            "id": made["id"], "name": "web", "enabled": true, "creator": "admin", "applications": [],
            "repository": {"type": "GIT", "url": "https://git.example.com/shop.git", "branch": "main",
                "credential": null, "host_key": null, "ca_certificate": null},
            "deploy_path": "/srv/shop", "timeout": 300, "keep_backups": 5, "shared_paths": [],
            "lifecycle_hooks": {
                "running_user": "www-data", "global_pre_exec": null, "pre_exec": null, "post_exec": null,
                "global_post_exec": {"running_user": null, "timeout": null, "script": {
                    "id": stop, "name": "stop", "language": "bash", "content": "echo stop\n",
                    "template_engine": "jinja", "creator": "admin",
                }},
            },
        });
        assert_eq!(made, expected);
        assert_eq!(admin.get(&path).await.expect(200), expected);
        assert_eq!(admin.patch(&path, expected.clone()).await.expect(200), expected, "what was read can be sent back");
        let change = json!({"repository": {"branch": "next"}, "timeout": null, "enabled": false});
        let changed = admin.patch(&path, change).await.expect(200);
        assert_eq!(changed["repository"]["url"], expected["repository"]["url"]);
        assert_eq!((&changed["repository"]["branch"], &changed["timeout"]), (&json!("next"), &json!(120)));
        assert_eq!((&changed["enabled"], &changed["deploy_path"]), (&json!(false), &json!("/srv/shop")));
        let told = details(&server, "update").await;
        assert!(told.len() == 1 && told[0].contains("timeout: 300 → 120"), "{told:?}");
        for (action, expected) in [("enable", true), ("enable", true), ("disable", false)] {
            let answer = admin.post(&format!("{path}actions/{action}/"), Value::Null).await.expect(200);
            assert_eq!(answer, json!({"message": "success"}));
            assert_eq!(admin.get(&path).await.expect(200)["enabled"], expected);
        }
        assert_eq!(details(&server, "update").await[1..], ["enabled: false → true", "enabled: true → false"]);
        assert_eq!(admin.delete(&path).await.expect(200), json!({"message": "success"}));
        admin.get(&path).await.expect_error(404, 10004);
        assert_eq!((details(&server, "add").await.len(), details(&server, "delete").await.len()), (1, 1));
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM deploy_template_hooks"), args![]).await, 0);
    }

    async fn a_template_without_a_name_gets_one(server: TestServer) {
        let admin = server.admin();
        let mut asked = body("");
        assert_eq!(admin.post(PATH, asked.clone()).await.expect(200)["name"], "template-1");
        asked.as_object_mut().expect("an object").remove("name");
        let second = admin.post(PATH, asked).await.expect(200);
        assert_eq!(second["name"], format!("template-{}", second["id"]));
    }

    async fn bad_templates_are_refused_and_named(server: TestServer) {
        let admin = server.admin();
        let present = format!("{PATH}{}/", made(&admin, "web").await);
        let before = admin.get(&present).await.expect(200);
        for (member, value, field) in [
            ("name", json!("x".repeat(201)), "name"),
            ("name", json!("a\u{7}b"), "name"),
            ("repository", json!(null), "repository"),
            ("repository", json!({"url": "shop.git"}), "repository.url"),
            ("repository", json!({"url": "ftp://example.com/x"}), "repository.type"),
            ("repository", json!({"branch": "a..b"}), "repository.branch"),
            ("repository", json!({"host_key": "ssh-ed25519 AAAA"}), "repository.host_key"),
            ("repository", json!({"ca_certificate": "none"}), "repository.ca_certificate"),
            ("deploy_path", json!(null), "deploy_path"),
            ("deploy_path", json!("srv"), "deploy_path"),
            ("timeout", json!(0), "timeout"),
            ("keep_backups", json!(101), "keep_backups"),
            ("enabled", json!("maybe"), "enabled"),
            ("applications", json!([999]), "applications"),
            ("applications", json!(["x"]), "applications[0]"),
            ("lifecycle_hooks", json!({"pre_exec": {"script": 999}}), "lifecycle_hooks.pre_exec.script"),
            ("lifecycle_hooks", json!([{}, {}]), "lifecycle_hooks"),
        ] {
            let mut asked = body("other");
            match (&value, asked[member].is_object()) {
                (Value::Object(members), true) => asked[member].as_object_mut().expect("an object").extend(members.clone()),
                _ => asked[member] = value.clone(),
            }
            let error = admin.post(PATH, asked).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{member} {value}: {error}");
            let error = admin.patch(&present, json!({member: value.clone()})).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{member} {value}: {error}");
        }
        for member in ["repository", "deploy_path"] {
            let mut asked = body("other");
            asked.as_object_mut().expect("an object").remove(member);
            assert_eq!(admin.post(PATH, asked).await.expect_error(400, 10001)["field"], member);
        }
        assert_eq!(admin.get(&present).await.expect(200), before, "nothing was changed");
        assert_eq!(admin.get(PATH).await.expect(200)["count"], 1, "nothing was made");
        for answer in [
            admin.get(&format!("{PATH}999/")).await,
            admin.patch(&format!("{PATH}999/"), json!({})).await,
            admin.patch(&format!("{PATH}999/"), json!({"applications": []})).await,
            admin.post(&format!("{PATH}999/actions/enable/"), Value::Null).await,
            admin.delete(&format!("{PATH}999/")).await,
        ] {
            answer.expect_error(404, 10004);
        }
    }

    async fn templates_are_filtered(server: TestServer) {
        let admin = server.admin();
        let stop = script(&admin, "stop").await;
        made(&admin, "Web").await;
        let mut asked = body("api 100%");
        asked["lifecycle_hooks"] = json!({"pre_exec": {"script": stop}});
        admin.post(PATH, asked).await.expect(200);
        for (query, expected) in [
            (String::new(), &["Web", "api 100%"][..]),
            ("?name=we".to_owned(), &["Web"]),
            ("?name=0%25".to_owned(), &["api 100%"]),
            ("?creator=ADMIN".to_owned(), &["Web", "api 100%"]),
            ("?creator=adm".to_owned(), &[]),
            (format!("?script={stop}"), &["api 100%"]),
            ("?page_size=1&page=2".to_owned(), &["api 100%"]),
        ] {
            let page = admin.get(&format!("{PATH}{query}")).await.expect(200);
            let results = page["results"].as_array().expect("results");
            let names: Vec<&str> = results.iter().filter_map(|result| result["name"].as_str()).collect();
            assert_eq!(names, expected, "{query}");
        }
    }

    async fn templates_need_their_module(server: TestServer) {
        let template = made(&server.admin(), "web").await;
        let shop = application(&server.admin(), "shop").await;
        let user = server.user("ann").await;
        user.get(PATH).await.expect_error(403, 10003);
        user.post(PATH, body("own")).await.expect_error(403, 10003);
        for path in [format!("{PATH}{template}/"), format!("{PATH}999/")] {
            user.get(&path).await.expect_error(403, 10003);
            user.patch(&path, json!({})).await.expect_error(403, 10003);
            user.delete(&path).await.expect_error(403, 10003);
            user.post(&format!("{path}actions/disable/"), Value::Null).await.expect_error(403, 10003);
        }
        server.anonymous().get(PATH).await.expect_error(401, 10002);
        let flags = json!([{"module_name": "deploy_template", "permissions": {"enable_deploy_template_mgmt": true}}]);
        server.admin().post(&format!("/users/{}/system/perms/", user.id), flags).await.expect(200);
        assert_eq!(user.post(PATH, body("own")).await.expect(200)["creator"], "ann");

        // Naming applications needs the right to change how they are deployed.
        let path = format!("{PATH}{template}/");
        let asked = json!({"applications": [shop]});
        assert_eq!(user.patch(&path, asked.clone()).await.expect_error(400, 10001)["field"], "applications");
        crate::deploys::grant(&server, user.id, shop, &["view_app"]).await;
        user.patch(&path, asked.clone()).await.expect_error(403, 10003);
        crate::deploys::grant(&server, user.id, shop, &["edit_app"]).await;
        assert_eq!(user.patch(&path, asked).await.expect(200)["applications"], json!([shop]));
    }

    async fn a_script_that_a_template_uses_stays(server: TestServer) {
        let admin = server.admin();
        let (stop, own) = (script(&admin, "stop").await, script(&admin, "own").await);
        let shop = application(&admin, "shop").await;
        let mut asked = body("web");
        asked["lifecycle_hooks"] = json!({"pre_exec": {"script": stop}});
        let template = id(&admin.post(PATH, asked).await.expect(200));
        let script_path = format!("/applications/deploy-scripts/{stop}/");
        let users = async || admin.get(&format!("{script_path}applications/")).await.expect(200)["count"].clone();
        assert_eq!(users().await, 0);
        let error = admin.delete(&script_path).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.ends_with("the deploy template web")), "{error}");
        let link = format!("/applications/{shop}/deploy-settings/template/");
        admin.post(&link, json!({"id": template})).await.expect(200);
        assert_eq!(users().await, 1, "use through a linked template counts");
        let settings = format!("/applications/{shop}/deploy-settings/");
        admin.patch(&settings, json!({"lifecycle_hooks": {"pre_exec": {"script": own}}})).await.expect(200);
        assert_eq!(users().await, 0, "the application's own hook is used instead");
        admin.patch(&format!("{PATH}{template}/"), json!({"lifecycle_hooks": {"pre_exec": null}})).await.expect(200);
        admin.delete(&script_path).await.expect(200);
    }
}
