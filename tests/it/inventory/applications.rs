//! The records of applications.

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{application, audited, grant, grant_module, host, id, ids, instance, refused};

both_engines! {
    async fn an_application_is_created_read_and_changed(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await;
        let base = application(&admin, "base", None).await;
        let body = json!({
            "name": "shop", "description": "sells", "application_type": 1, "run_users": "www-data", "directory": "/srv/shop",
            "startup_cmd": "start", "stop_cmd": "stop", "stdout_path": "/o", "stderr_path": "/e", "pid_path": "/p",
            "parent_app": 0, "production": null, "required_apps": [base], "response_persons": [ann.id], "unknown": 1,
        });
        let made = admin.post("/applications/", body).await.expect(200);
        let shop = id(&made);
        let path = format!("/applications/{shop}/");
        let expected = json!({
            "id": shop, "name": "shop", "full_name": "shop", "has_child": false, "production": null, "parent_app": null,
            "available_actions": {
                "view_app": true, "edit_app": true, "delete_app": true, "deploy_app": true, "review_app_deploy_task": true,
                "restart_app": true, "view_app_log": true, "view_app_monitor": true,
            },
            "description": "sells", "application_type": "1", "run_user": "www-data", "directory": "/srv/shop",
            "startup_cmd": "start", "stop_cmd": "stop", "stdout_path": "/o", "stderr_path": "/e", "pid_path": "/p",
            "child_apps": [], "required_apps": [base], "response_person": [ann.id],
        });
        assert_eq!(made, expected);
        assert_eq!(admin.get(&path).await.expect(200), expected);

        let answer = admin.patch(&path, json!({"description": "sells more"})).await.expect(200);
        assert_eq!(answer, json!({"message": "success"}));
        let mut changed = expected;
        changed["description"] = json!("sells more");
        assert_eq!(admin.get(&path).await.expect(200), changed, "what is absent stays");
        assert_eq!(audited(&server, "application", "update").await, [r#"description: "sells" → "sells more""#]);
        admin.patch(&path, json!({})).await.expect(200);
        assert_eq!(audited(&server, "application", "update").await.len(), 1);

        admin.patch(&path, json!({"required_apps": [], "response_person": []})).await.expect(200);
        let bare = admin.get(&path).await.expect(200);
        assert_eq!((&bare["required_apps"], &bare["response_person"]), (&json!([]), &json!([])));
        admin.delete(&path).await.expect(200);
        admin.get(&path).await.expect_error(404, 10004);
        assert_eq!(audited(&server, "application", "delete").await.len(), 1);
        let rights = sql!("SELECT COUNT(*) FROM resource_rights WHERE resource_id = $1");
        assert_eq!(server.count(rights, args![shop]).await, 0);
    }

    async fn bad_applications_are_refused_and_named(server: TestServer) {
        let admin = server.admin();
        let shop = application(&admin, "shop", None).await;
        let path = format!("/applications/{shop}/");
        for (body, field) in [
            (json!({"name": ""}), "name"),
            (json!({"name": "a.b"}), "name"),
            (json!({"name": {"a": 1}}), "name"),
            (json!({"name": "x".repeat(201)}), "name"),
            (json!({"name": "x", "run_user": "not a user"}), "run_user"),
            (json!({"name": "x", "run_user": "x".repeat(33)}), "run_user"),
            (json!({"name": "x", "directory": "x".repeat(2001)}), "directory"),
            (json!({"name": "x", "parent_app": 999}), "parent_app"),
            (json!({"name": "x", "parent_app": "none"}), "parent_app"),
            (json!({"name": "x", "production": 3}), "production"),
            (json!({"name": "x", "child_apps": [999]}), "child_apps"),
            (json!({"name": "x", "child_apps": [true]}), "child_apps[0]"),
            (json!({"name": "x", "required_apps": [shop, 999]}), "required_apps"),
            (json!({"name": "x", "response_person": [999]}), "response_person"),
            (json!({"name": "x", "response_person": [1, 1]}), "response_person"),
            (json!({"name": "x", "response_person": [{"id": 1, "type": "boss"}]}), "response_person[0]"),
        ] {
            refused(&admin, "POST", "/applications/", body.clone(), field).await;
            refused(&admin, "PATCH", &path, body, field).await;
        }
        refused(&admin, "POST", "/applications/", json!({"description": "no name"}), "name").await;
        refused(&admin, "PATCH", &path, json!({"required_apps": [shop]}), "required_apps").await;
        admin.post("/applications/", json!({"name": "shop"})).await.expect_error(409, 10006);
        let present = admin.get("/applications/").await.expect(200);
        assert_eq!(present["count"], 1, "nothing was made");
        assert_eq!(present["results"][0]["name"], "shop", "nothing was changed");
        admin.get("/applications/999/").await.expect_error(404, 10004);
        admin.send("PUT".parse().expect("a method"), &path, json!({})).await.expect_error(405, 10005);
    }

    async fn applications_are_filtered_and_paged(server: TestServer) {
        let admin = server.admin();
        let (ann, bob) = (server.user("ann").await, server.user("bob").await);
        let role = id(&admin.post("/roles/", json!({"name": "readers"})).await.expect(200));
        let shop = application(&admin, "Shop", None).await;
        let web = application(&admin, "web", Some(shop)).await;
        let mail = application(&admin, "mail_1", None).await;
        admin.patch(&format!("/applications/{web}/"), json!({"response_person": [ann.id]})).await.expect(200);
        admin.patch(&format!("/applications/{mail}/"), json!({"response_person": [bob.id, ann.id]})).await.expect(200);
        grant(&server, ann.id, "application", mail, json!({"view_app": true})).await;
        let body = json!({"authorizations": [{"id": shop, "permission": {"view_app": true}}]});
        admin.post(&format!("/roles/{role}/application/perms/"), body).await.expect(200);
        for (query, expected) in [
            (String::new(), vec![shop, web, mail]),
            ("?name=SHOP".into(), vec![shop]),
            ("?full_path=shop".into(), vec![shop, web]),
            ("?full_name=shop.w".into(), vec![web]),
            ("?name=_".into(), vec![mail]),
            ("?has_parent=1".into(), vec![web]),
            ("?has_parent=0".into(), vec![shop, mail]),
            (format!("?response_persons={}", ann.id), vec![web, mail]),
            (format!("?response_persons={},{}", bob.id, 999), vec![mail]),
            (format!("?response_persons={}&response_persons={}", bob.id, ann.id), vec![web, mail]),
            ("?user=ann".into(), vec![mail]),
            ("?user=admin".into(), vec![shop, web, mail]),
            ("?user=nobody".into(), vec![]),
            ("?role=readers".into(), vec![shop]),
            ("?role=none".into(), vec![]),
            (format!("?user=ann&response_persons={}", bob.id), vec![mail]),
            ("?page_size=1&page=2".into(), vec![web]),
        ] {
            let page = admin.get(&format!("/applications/{query}")).await.expect(200);
            assert_eq!(ids(&page), expected, "{query}");
        }
        let page = admin.get("/application/?page_size=1&name=a").await.expect(200);
        assert_eq!(page["next"], json!(null));
        let page = admin.get("/application/?page_size=1").await.expect(200);
        assert_eq!(page["next"], "/api/v1/application/?page=2&page_size=1");
        for (query, field) in [("?has_parent=2", "has_parent"), ("?response_persons=x", "response_persons"), ("?page=x", "page")] {
            refused(&admin, "GET", &format!("/applications/{query}"), json!(null), field).await;
        }
    }

    async fn what_is_in_use_stays(server: TestServer) {
        let admin = server.admin();
        let (shop, web) = (application(&admin, "shop", None).await, host(&admin, "web1").await);
        let path = format!("/applications/{shop}/");
        let instance_id = instance(&admin, shop, web).await;
        let error = admin.delete(&path).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("web1")), "{error}");
        admin.delete_with(&format!("{path}instances/"), json!([{"id": instance_id}])).await.expect(200);
        let insert = sql!(
            "INSERT INTO deploy_tasks (id, organisation_id, application_id, version, description, level, package_source, \
             planned_exec_at, creator_id, creator, status, created_at) \
             VALUES (77, 1, $1, '1', '', 'A', '', 0, 1, 'admin', 'approved', 0)"
        );
        server.run(insert, args![shop]).await;
        let error = admin.delete(&path).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("77")), "{error}");
        server.run(sql!("UPDATE deploy_tasks SET status = 'closed' WHERE id = $1"), args![77_i64]).await;
        admin.delete(&path).await.expect(200);
    }

    async fn rights_on_applications_decide(server: TestServer) {
        let admin = server.admin();
        let user = server.user("ann").await;
        let (seen, hidden) = (application(&admin, "seen", None).await, application(&admin, "hidden", None).await);
        user.post("/applications/", json!({"name": "own"})).await.expect_error(403, 10003);
        assert_eq!(user.get("/applications/").await.expect(200)["count"], 0);
        grant(&server, user.id, "application", seen, json!({"view": true, "deploy": true})).await;
        let page = user.get("/applications/").await.expect(200);
        assert_eq!(ids(&page), [seen]);
        let actions = &page["results"][0]["available_actions"];
        assert_eq!((&actions["view_app"], &actions["deploy_app"], &actions["edit_app"]), (&json!(true), &json!(true), &json!(false)));
        user.patch(&format!("/applications/{seen}/"), json!({"name": "x"})).await.expect_error(403, 10003);
        user.delete(&format!("/applications/{seen}/")).await.expect_error(403, 10003);
        user.get(&format!("/applications/{hidden}/")).await.expect_error(404, 10004);
        user.delete(&format!("/applications/{hidden}/")).await.expect_error(404, 10004);

        grant_module(&server, user.id, "application", json!({"enable_app_mgmt": true, "add_app": true})).await;
        let own = application(&user, "own", None).await;
        user.patch(&format!("/applications/{own}/"), json!({"description": "mine"})).await.expect(200);
        // What one may not see counts as missing, what one may not change stays where it is.
        let path = format!("/applications/{own}/");
        refused(&user, "PATCH", &path, json!({"parent_app": hidden}), "parent_app").await;
        refused(&user, "PATCH", &path, json!({"required_apps": [hidden]}), "required_apps").await;
        refused(&user, "PATCH", &path, json!({"child_apps": [hidden]}), "child_apps").await;
        user.patch(&path, json!({"parent_app": seen})).await.expect_error(403, 10003);
        user.patch(&path, json!({"child_apps": [seen]})).await.expect_error(403, 10003);
        user.patch(&path, json!({"required_apps": [seen]})).await.expect(200);
    }

    async fn each_user_has_own_applications(server: TestServer) {
        let admin = server.admin();
        let (ann, bob) = (server.user("ann").await, server.user("bob").await);
        let (shop, mail) = (application(&admin, "shop", None).await, application(&admin, "mail", None).await);
        grant(&server, ann.id, "application", shop, json!({"view_app": true})).await;
        let path = "/applications/get-by-users/";
        let answer = admin.post(path, json!([{"id": ann.id}, {"username": "bob"}, {"username": "admin"}])).await.expect(200);
        assert_eq!((&answer[0]["user_id"], &answer[1]["user_id"]), (&json!(ann.id), &json!(bob.id)));
        assert_eq!(ids(&answer[0]["applications"]), [shop]);
        assert_eq!(answer[0]["applications"][0]["available_actions"]["edit_app"], false, "the user's, not the caller's");
        assert_eq!(ids(&answer[1]["applications"]), [0; 0]);
        assert_eq!(ids(&answer[2]["applications"]), [shop, mail]);
        assert_eq!(ids(&ann.post(path, json!({"id": ann.id})).await.expect(200)[0]["applications"]), [shop]);
        ann.post(path, json!([{"id": bob.id}])).await.expect_error(403, 10003);
        ann.post(path, json!([{"id": 999}])).await.expect_error(403, 10003);
        for (body, field) in [
            (json!([]), "body"),
            (json!([{}]), "[0].id"),
            (json!([{"id": ann.id}, {"id": 999}]), "[1].id"),
            (json!([{"username": "nobody"}]), "[0].username"),
            (json!([{"id": "x"}]), "[0].id"),
            (Value::Array(vec![json!({"id": ann.id}); 101]), "body"),
        ] {
            refused(&admin, "POST", path, body, field).await;
        }
    }
}
