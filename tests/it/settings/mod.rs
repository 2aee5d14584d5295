//! Deploy settings, over HTTP.

use drover_automation::settings::rules::HookName;
use drover_automation::settings::store;
use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer, both_engines};
use serde_json::{Value, json};

async fn application(client: &Client) -> (i64, String) {
    let id = client.post("/applications/", json!({"name": "shop"})).await.expect(200)["id"].as_i64().expect("an id");
    (id, format!("/applications/{id}/deploy-settings/"))
}

async fn script(client: &Client, name: &str) -> i64 {
    let body = json!({"name": name, "language": "bash", "content": format!("echo {name}\n")});
    client.post("/applications/deploy-scripts/", body).await.expect(200)["id"].as_i64().expect("an id")
}

async fn details(server: &TestServer) -> Vec<String> {
    let sql = sql!(
        "SELECT detail FROM audit_entries WHERE list = 'application' AND action = 'change_deploy_setting' ORDER BY id"
    );
    server.read().await.values(sql, args![]).await.expect("the audit")
}

fn defaults(application: i64) -> Value {
    json!({
        "id": 0, "enabled": false, "creator": null, "application": application, "repository": null, "deploy_path": null,
        "timeout": 120, "keep_backups": 5, "shared_paths": [], "template": null, "script_running_user": null, "four_eyes": false,
        "from_template": [],
        "lifecycle_hooks": {
            "running_user": null, "global_pre_exec": null, "pre_exec": null, "post_exec": null, "global_post_exec": null,
        },
    })
}

both_engines! {
    async fn settings_begin_as_defaults_and_keep_what_is_not_named(server: TestServer) {
        let admin = server.admin();
        let (id, path) = application(&admin).await;
        assert_eq!(admin.get(&path).await.expect(200), defaults(id));
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM deploy_settings"), args![]).await, 0, "reading makes nothing");
        let body = json!({
            "applications": [7], "repository": {"url": "file:///srv/git/shop", "credential": null}, "deploy_path": "/srv/{{ application.name }}",
            "timeout": "300", "keep_backups": 2, "enabled": true, "unknown": [],
        });
        let changed = admin.patch(&path, body).await.expect(200);
        let mut expected = defaults(id);
        expected["id"] = changed["id"].clone();
        assert_ne!(changed["id"], 0);
        for (member, value) in [
            ("enabled", json!(true)),
            ("creator", json!("admin")),
            ("repository", json!({"type": "GIT", "url": "file:///srv/git/shop", "branch": "main", "credential": null, "host_key": null, "ca_certificate": null})),
            ("deploy_path", json!("/srv/{{ application.name }}")),
            ("timeout", json!(300)),
            ("keep_backups", json!(2)),
        ] {
            expected[member] = value;
        }
        assert_eq!(changed, expected);
        assert_eq!(admin.get(&path).await.expect(200), expected);

        // Members of the repository that are left out stay as well; null takes the default.
        admin.patch(&path, json!({"repository": {"branch": "release/1"}})).await.expect(200);
        let moved = admin.patch(&path, json!({"repository": {"url": "https://example.com/shop.git"}})).await.expect(200);
        assert_eq!(moved["repository"]["branch"], "release/1");
        let reset = admin.patch(&path, json!({"repository": {"branch": null}, "timeout": null, "keep_backups": null, "deploy_path": null})).await.expect(200);
        assert_eq!((&reset["repository"]["branch"], &reset["timeout"], &reset["keep_backups"], &reset["deploy_path"]), (&json!("main"), &json!(120), &json!(5), &json!(null)));
        // What was read can be sent back.
        assert_eq!(admin.patch(&path, reset.clone()).await.expect(200), reset);
        assert_eq!(admin.patch(&path, json!({"repository": null})).await.expect(200)["repository"], json!(null));
        let told = details(&server).await;
        assert_eq!(told.len(), 5, "{told:?}");
        assert!(told[0].contains("enabled: false → true") && told[0].contains("timeout: 120 → 300"), "{told:?}");
    }

    async fn hooks_are_set_one_by_one(server: TestServer) {
        let admin = server.admin();
        let (id, path) = application(&admin).await;
        let (stop, start) = (script(&admin, "stop").await, script(&admin, "start").await);
        let body = json!({"lifecyle_hooks": [{
            "running_user": "www-data", "pre_exec": {"script": {"id": stop, "content": "ignored"}, "running_user": "root"},
            "glboal_post_exec": {"script": start},
        }]});
        let hooks = admin.patch(&path, body).await.expect(200)["lifecycle_hooks"].clone();
        assert_eq!(hooks["running_user"], "www-data");
        assert_eq!(hooks["pre_exec"], json!({"running_user": "root", "timeout": null, "script": {
            "id": stop, "name": "stop", "language": "bash", "content": "echo stop\n", "template_engine": "jinja", "creator": "admin",
        }}));
        assert_eq!(hooks["global_post_exec"]["script"]["id"], start);
        assert_eq!((&hooks["post_exec"], &hooks["global_pre_exec"]), (&json!(null), &json!(null)));

        let body = json!({"lifecycle_hooks": {"running_user": null, "pre_exec": {"running_user": ""}, "global_post_exec": null, "post_exec": {"script": start}}});
        let changed = admin.patch(&path, body).await.expect(200);
        let hooks = &changed["lifecycle_hooks"];
        assert_eq!(changed["script_running_user"], json!(null));
        assert_eq!((&hooks["pre_exec"]["script"]["id"], &hooks["pre_exec"]["running_user"]), (&json!(stop), &json!(null)));
        assert_eq!((&hooks["post_exec"]["script"]["id"], &hooks["global_post_exec"]), (&json!(start), &json!(null)));
        assert_eq!(admin.patch(&path, changed.clone()).await.expect(200), changed, "what was read can be sent back");
        let told = details(&server).await;
        assert_eq!(told.len(), 2);
        assert!(told[1].contains(&format!(r#"pre_exec: "stop ({stop}) as root" → "stop ({stop})""#)), "{told:?}");

        let loaded = store::load(&mut server.read().await, id).await.expect("a database").expect("settings");
        // A time of its own is kept until somebody says otherwise, and told.
        let hook = async |body: Value| admin.patch(&path, json!({"lifecycle_hooks": {"pre_exec": body}})).await;
        assert_eq!(hook(json!({"timeout": "30"})).await.expect(200)["lifecycle_hooks"]["pre_exec"]["timeout"], 30);
        assert_eq!(hook(json!({"running_user": "app"})).await.expect(200)["lifecycle_hooks"]["pre_exec"]["timeout"], 30);
        assert_eq!(hook(json!({"timeout": 0})).await.expect(400)["field"], "lifecycle_hooks.pre_exec.timeout");
        assert_eq!(hook(json!({"timeout": null})).await.expect(200)["lifecycle_hooks"]["pre_exec"]["timeout"], json!(null));
        let told = details(&server).await;
        assert!(told[2].contains(&format!("stop ({stop}) within 30 s")), "{told:?}");
        let names: Vec<HookName> = loaded.hooks.iter().map(|hook| hook.hook).collect();
        assert_eq!(names, [HookName::PreExec, HookName::PostExec]);
        assert_eq!(loaded.hooks[1].content, "echo start\n");
        admin.delete(&format!("/applications/{id}/")).await.expect(200);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM deploy_hooks"), args![]).await, 0, "settings go with the application");
    }

    async fn bad_settings_are_refused_and_named(server: TestServer) {
        let admin = server.admin();
        let (_, path) = application(&admin).await;
        let check = async |body: Value, field: &str| {
            let shown = body.to_string();
            let error = admin.patch(&path, body).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{shown}: {error}");
        };
        for (url, field) in [
            ("ssh://git:secret@example.com/x", "repository.url"),
            ("git@-example.com:x.git", "repository.url"),
            ("shop.git", "repository.url"),
            ("https://u:p@example.com/x", "repository.url"),
            ("", "repository.url"),
            ("ftp://example.com/x", "repository.type"),
        ] {
            check(json!({"repository": {"url": url}}), field).await;
        }
        for (repository, field) in [
            (json!({"branch": "main"}), "repository.url"),
            (json!({"url": "/x", "branch": "a..b"}), "repository.branch"),
            (json!({"url": "/x", "branch": ["main"]}), "repository.branch"),
            (json!({"url": "/x", "type": "SVN"}), "repository.type"),
            (json!({"url": "/x", "type": "FTP"}), "repository.type"),
            (json!({"url": "/x", "credential": 3}), "repository.credential"),
            (json!({"url": "/x", "credential": "none"}), "repository.credential"),
        ] {
            check(json!({"repository": repository}), field).await;
        }
        for (member, value) in [
            ("timeout", json!(0)), ("timeout", json!(86_401)), ("timeout", json!("soon")),
            ("keep_backups", json!(-1)), ("keep_backups", json!(101)),
            ("deploy_path", json!("srv/shop")), ("deploy_path", json!("/srv/../etc")), ("deploy_path", json!("/")), ("deploy_path", json!("/x".repeat(1001))),
            ("shared_paths[0]", json!(["/etc"])), ("shared_paths[1]", json!(["a", "b/../c"])), ("shared_paths[1]", json!(["a/", "a/b"])),
            ("shared_paths[0]", json!([""])), ("shared_paths", json!(vec!["x"; 101])), ("shared_paths", json!({"a": 1})),
            ("enabled", json!("maybe")), ("four_eyes", json!(2)), ("lifecycle_hooks", json!([{}, {}])),
        ] {
            check(json!({member.split('[').next().expect("a member"): value}), member).await;
        }
        for name in ["global_pre_exec", "pre_exec", "post_exec", "global_post_exec"] {
            let field = format!("lifecycle_hooks.{name}.script");
            check(json!({"lifecycle_hooks": {name: {"script": 999}}}), &field).await;
            check(json!({"lifecycle_hooks": {name: {"running_user": "root"}}}), &field).await;
            let body = json!({"lifecycle_hooks": {name: {"script": 1, "running_user": "a b"}}});
            check(body, &format!("lifecycle_hooks.{name}.running_user")).await;
        }
        check(json!({"lifecycle_hooks": {"running_user": "Root"}}), "lifecycle_hooks.running_user").await;
        admin.patch(&path, json!({"lifecycle_hooks": {"pre_exec": {"script": "x"}}})).await.expect_error(400, 10001);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM deploy_settings"), args![]).await, 0, "nothing was made");
        assert!(details(&server).await.is_empty());
    }

    async fn shared_paths_are_set_as_a_whole_and_go_into_plans(server: TestServer) {
        let admin = server.admin();
        let (_, path) = application(&admin).await;
        let set = async |paths: Value| admin.patch(&path, json!({"shared_paths": paths})).await.expect(200)["shared_paths"].clone();
        assert_eq!(set(json!(["uploads/", "conf/local.toml"])).await, json!(["uploads/", "conf/local.toml"]));
        assert_eq!(admin.patch(&path, json!({"timeout": 60})).await.expect(200)["shared_paths"], json!(["uploads/", "conf/local.toml"]));
        assert_eq!(set(json!(["data"])).await, json!(["data"]));
        assert_eq!(set(json!([])).await, json!([]));
        assert_eq!(set(json!(["data"])).await, json!(["data"]));
        assert_eq!(set(json!(null)).await, json!([]));
        let told = details(&server).await;
        assert!(told[0].contains("shared_paths: ") && told[0].contains("conf/local.toml"), "{told:?}");
    }

    async fn deployment_is_switched(server: TestServer) {
        let admin = server.admin();
        let user = server.user("ann").await;
        let (id, path) = application(&admin).await;
        for (action, expected) in [("enable", true), ("enable", true), ("disable", false)] {
            let answer = admin.post(&format!("{path}actions/{action}/"), json!(null)).await.expect(200);
            assert_eq!(answer, json!({"message": "success"}));
            assert_eq!(admin.get(&path).await.expect(200)["enabled"], expected);
        }
        assert_eq!(details(&server).await, ["enabled: false → true", "enabled: true → false"]);
        assert_eq!(admin.patch(&path, json!({"four_eyes": 1})).await.expect(200)["four_eyes"], true);

        user.get(&path).await.expect_error(404, 10004);
        let body = json!({"authorizations": [{"id": id, "permission": {"view_app": true}}]});
        admin.post(&format!("/users/{}/application/perms/", user.id), body).await.expect(200);
        user.get(&path).await.expect(200);
        user.patch(&path, json!({"enabled": true})).await.expect_error(403, 10003);
        user.post(&format!("{path}actions/enable/"), json!(null)).await.expect_error(403, 10003);
        admin.get("/applications/999/deploy-settings/").await.expect_error(404, 10004);
        admin.patch("/applications/999/deploy-settings/", json!({})).await.expect_error(404, 10004);
    }
}
