//! Rights on single applications and hosts: granted, withdrawn, listed, and what they open.

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{application, audited, host, ids, module_rights, resource_rights, role};

fn true_ones(permission: &Value) -> Vec<String> {
    let flags = permission.as_object().expect("rights");
    flags.iter().filter(|(_, flag)| **flag == json!(true)).map(|(name, _)| name.clone()).collect()
}

both_engines! {
    async fn rights_are_granted_left_and_withdrawn(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await.id;
        let (shop, desk) = (application(&admin, "shop").await, application(&admin, "desk").await);
        let path = format!("/users/{ann}/application/perms/");
        let body = json!({"authorizations": [
            {"id": shop, "app_name": "shop", "permission": {"view": true, "deploy_app": true, "edit_app": false}},
            {"id": desk.to_string(), "permissions": {"check_deploy_task": "1"}},
        ]});
        let before = audited(&server, "resource_right", "enable").await;
        for _ in 0..2 {
            admin.post(&path, body.clone()).await.expect(200);
        }
        let page = admin.get(&path).await.expect(200);
        assert_eq!(ids(&page), [shop, desk]);
        let first = &page["results"][0];
        assert_eq!((&first["app_name"], first["permission"].as_object().map(serde_json::Map::len)), (&json!("shop"), Some(8)));
        assert_eq!(true_ones(&first["permission"]), ["deploy_app", "view_app"]);
        assert_eq!(true_ones(&page["results"][1]["permission"]), ["review_app_deploy_task"]);
        assert_eq!(audited(&server, "resource_right", "enable").await - before, 3, "one for each that changed");
        resource_rights(&server, &format!("users/{ann}"), "application", shop, json!({"view_app": false})).await;
        resource_rights(&server, &format!("users/{ann}"), "application", desk, json!({"check_deploy_task": false})).await;
        let page = admin.get(&format!("{path}?app_name=HO")).await.expect(200);
        assert_eq!((ids(&page), page["count"].clone()), (vec![shop], json!(1)));
        assert_eq!(true_ones(&page["results"][0]["permission"]), ["deploy_app"]);
        assert_eq!(ids(&admin.get(&path).await.expect(200)), [shop], "who holds nothing is not in the list");
        let sql = sql!(
            "SELECT COUNT(*) FROM audit_entries WHERE list = 'resource_right' AND action = 'disable' \
             AND object_type = 'application' AND object_name = 'shop' AND object_id = $1 AND right_name = 'view_app' \
             AND target_type = 'user' AND target_name = 'ann' AND operator = 'admin'"
        );
        assert_eq!(server.count(sql, args![shop]).await, 1);
    }

    async fn one_undefined_right_refuses_the_whole_call(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await.id;
        let (shop, web) = (application(&admin, "shop").await, host(&admin, "web").await);
        let path = format!("/users/{ann}/application/perms/");
        let body = json!({"authorizations": [
            {"id": shop, "permission": {"view_app": true}},
            {"id": shop, "permission": {"view_host": true}},
        ]});
        let refused = admin.post(&path, body).await.expect_error(400, 30001);
        assert_eq!(refused["field"], "authorizations[1].permission.view_host");
        let body = json!([{"user": {"id": ann}, "permission": {"init_host": true}}]);
        let on_shop = format!("/applications/{shop}/authorization/users/");
        let refused = admin.patch(&on_shop, body.clone()).await.expect_error(400, 30001);
        assert_eq!(refused["field"], "[0].permission.init_host");
        admin.patch(&format!("/hosts/{web}/authorization/users/"), body).await.expect(200);
        for (body, field) in [
            (json!({"authorizations": [{"id": shop}, {"id": 99999}]}), "authorizations[1].id"),
            (json!({"authorizations": [{"permission": {}}]}), "authorizations[0].id"),
            (json!({"authorizations": [{"id": shop, "permission": {"view": "x"}}]}), "authorizations[0].permission.view"),
            (json!({}), "authorizations"),
        ] {
            assert_eq!(admin.post(&path, body).await.expect_error(400, 10001)["field"], field);
        }
        let refused = admin.patch(&on_shop, json!([{"user": {"id": 99999}}])).await.expect_error(400, 10001);
        assert_eq!(refused["field"], "[0].user.id");
        admin.patch("/applications/99999/authorization/users/", json!([{"user": ann}])).await.expect_error(404, 10004);
        admin.get("/hosts/99999/authorization/roles/").await.expect_error(404, 10004);
        admin.post("/roles/99999/host/perms/", json!({"authorizations": []})).await.expect_error(404, 10004);
        assert_eq!(ids(&admin.get(&path).await.expect(200)), [0_i64; 0]);
    }

    async fn a_resource_lists_and_changes_its_own(server: TestServer) {
        let admin = server.admin();
        let (ann, bob) = (server.user("ann").await.id, server.user("bob").await.id);
        let ops = role(&server, "ops").await;
        let web = host(&admin, "web").await;
        let (users, roles) = (format!("/host/{web}/authorization/users"), format!("/host/{web}/authorization/roles/"));
        let body = json!([
            {"user": {"id": ann}, "permission": {"view_host": true, "login": true}, "action": "update"},
            {"user": {"id": bob}, "permissions": {"restart_host": true}},
        ]);
        admin.patch(&users, body).await.expect(200);
        admin.patch(&roles, json!({"role": {"id": ops}, "permission": {"edit_host": true}})).await.expect(200);
        let on = |page: &Value, who: &str, name: &str| -> Vec<String> {
            let entries = page["results"].as_array().expect("a page");
            entries.iter().find(|entry| entry[who][name] != json!(null) && entry[who][name] != "admin")
                .map(|entry| true_ones(&entry["permission"])).unwrap_or_default()
        };
        let page = admin.get(&users).await.expect(200);
        assert_eq!(on(&page, "user", "username"), ["login_host", "view_host"]);
        let page = admin.get(&roles).await.expect(200);
        assert_eq!(page["results"][0]["role"], json!({"id": ops, "name": "ops"}));
        assert_eq!(on(&page, "role", "name"), ["edit_host"]);
        let body = json!([{"user": {"id": ann}, "permission": {"view_host": true}, "action": "delete"}]);
        admin.patch(&users, body).await.expect(200);
        let left = server.count(sql!("SELECT COUNT(*) FROM resource_rights WHERE subject_type = 'user' AND subject_id = $1"), args![ann]);
        assert_eq!(left.await, 0);
        assert_eq!(audited(&server, "resource_right", "disable").await, 2);
        admin.patch(&users, json!([{"user": bob, "action": "drop"}])).await.expect_error(400, 10001);
        let entries = admin.get(&format!("/roles/{ops}/host/perms/?hostname=WE")).await.expect(200);
        assert_eq!((&entries["results"][0]["hostname"], entries["count"].clone()), (&json!("web"), json!(1)));
    }

    async fn what_one_may_do_is_the_union(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await;
        let (web, db) = (host(&admin, "web").await, host(&admin, "db").await);
        let path = format!("/hosts/{web}/");
        ann.get(&path).await.expect_error(404, 10004);
        let ops = role(&server, "ops").await;
        resource_rights(&server, &format!("roles/{ops}"), "host", web, json!({"edit_host": true})).await;
        ann.get(&path).await.expect_error(404, 10004);
        admin.post(&format!("/roles/{ops}/users/"), json!([ann.id])).await.expect(200);
        ann.get(&path).await.expect_error(403, 10003);
        ann.patch(&path, json!({"location": "Zürich"})).await.expect(200);
        resource_rights(&server, &format!("users/{}", ann.id), "host", web, json!({"view_host": true})).await;
        ann.get(&path).await.expect(200);
        ann.get(&format!("/hosts/{db}/")).await.expect_error(404, 10004);
        admin.delete_with(&format!("/roles/{ops}/users/"), json!([ann.id])).await.expect(200);
        ann.patch(&path, json!({"location": "Bern"})).await.expect_error(403, 10003);
    }

    async fn who_makes_a_thing_holds_it(server: TestServer) {
        let ann = server.user("ann").await;
        let subject = format!("users/{}", ann.id);
        module_rights(&server, &subject, "application", json!({"create_app": true})).await;
        ann.post("/applications/", json!({"name": "shop"})).await.expect_error(403, 10003);
        module_rights(&server, &subject, "application", json!({"enable_app_mgmt": true})).await;
        let shop = application(&ann, "shop").await;
        let path = format!("/applications/{shop}/");
        let page = ann.get(&format!("/{subject}/application/perms/")).await.expect(200);
        assert_eq!(true_ones(&page["results"][0]["permission"]).len(), 8);
        ann.get(&path).await.expect(200);
        // Rights on one resource do not need the module.
        module_rights(&server, &subject, "application", json!({"enable_app_mgmt": false})).await;
        ann.delete(&path).await.expect(200);
        let sql = sql!("SELECT COUNT(*) FROM resource_rights WHERE resource_type = 'application' AND resource_id = $1");
        assert_eq!(server.count(sql, args![shop]).await, 0, "they go with it");
    }
}
