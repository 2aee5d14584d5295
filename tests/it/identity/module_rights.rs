//! Rights on whole modules, and what follows from them for every resource.

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{application, audited, host, id, module_rights, role};

/// The flags of a module in a list of grants.
fn flags<'a>(grants: &'a Value, module: &str) -> &'a Value {
    let grants = grants.as_array().expect("grants");
    &grants.iter().find(|grant| grant["module_name"] == module).expect("the module")["permissions"]
}

both_engines! {
    async fn every_spelling_is_stored_under_one_name(server: TestServer) {
        let admin = server.admin();
        let role = role(&server, "ops").await;
        let path = format!("/roles/{role}/system/perms/");
        let one = json!({"module_name": "application", "permission": {"add_app": true, "delte_app": true, "manage_app": true}});
        for _ in 0..2 {
            admin.post(&path, one.clone()).await.expect(200);
        }
        let several = json!([
            {"module_name": "business", "permissions": {"view_business": "true"}},
            {"module_name": "deploy_template", "permissions": {"enable_cdn_refresher": true}},
            {"module_name": "dns", "permissions": {"enable_dns_mgmt": null}},
        ]);
        admin.post(&path, several).await.expect(200);
        let grants = admin.get(&path).await.expect(200);
        assert_eq!(grants.as_array().map(Vec::len), Some(7));
        assert_eq!(
            flags(&grants, "application"),
            &json!({"create_app": true, "delete_app": true, "edit_app": true, "enable_app_mgmt": false, "view_app": false})
        );
        assert_eq!(flags(&grants, "host")["view_business"], true);
        assert_eq!(flags(&grants, "common_tools")["enable_cdn_refresher"], true);
        assert_eq!(flags(&grants, "deploy_template")["enable_cdn_refresher"], true);
        assert_eq!(audited(&server, "module_right", "enable").await, 5);
        admin.post(&path, json!([{"module_name": "application", "permissions": {"create_app": false}}])).await.expect(200);
        let sql = sql!(
            "SELECT COUNT(*) FROM audit_entries WHERE list = 'module_right' AND action = 'disable' \
             AND object_name = 'application' AND right_name = 'create_app' AND target_type = 'role' \
             AND target_name = 'ops'"
        );
        assert_eq!(server.count(sql, args![]).await, 1);
        let only = admin.get(&format!("{path}?module_name=application")).await.expect(200);
        assert_eq!((only.as_array().map(Vec::len), &only[0]["permissions"]["create_app"]), (Some(1), &json!(false)));
        admin.get(&format!("{path}?module_name=none")).await.expect_error(400, 10001);
    }

    async fn refusals_have_their_numbers(server: TestServer) {
        let ann = server.user("ann").await;
        let path = format!("/users/{}/system/perms/", ann.id);
        let body = json!([
            {"module_name": "application", "permissions": {"view_app": true}},
            {"module_name": "dns", "permissions": {"view_app": true}},
        ]);
        ann.post(&path, body.clone()).await.expect_error(400, 30002);
        let refused = server.admin().post(&path, body).await.expect_error(400, 30001);
        assert_eq!(refused["field"], "[1].permissions.view_app");
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM module_rights"), args![]).await, 0);
        for (body, field) in [
            (json!([{"module_name": "none", "permissions": {}}]), "[0].module_name"),
            (json!([{"module_name": "dns"}]), "[0].permissions"),
            (json!([{"permissions": {}}]), "[0].module_name"),
        ] {
            assert_eq!(server.admin().post(&path, body).await.expect_error(400, 10001)["field"], field);
        }
        server.admin().post("/users/99999/system/perms/", json!([])).await.expect_error(404, 10004);
        server.anonymous().post(&path, json!([])).await.expect_error(401, 10002);
    }

    async fn a_module_reaches_every_resource_when_it_is_on(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await;
        let subject = format!("users/{}", ann.id);
        let (web, shop) = (host(&admin, "web").await, application(&admin, "shop").await);
        let (web, shop) = (format!("/hosts/{web}/"), format!("/applications/{shop}/"));
        module_rights(&server, &subject, "host", json!({"manage_host": true, "edit_host": true})).await;
        ann.get(&web).await.expect_error(404, 10004);
        let ops = role(&server, "ops").await;
        module_rights(&server, &format!("roles/{ops}"), "host", json!({"enable_host_mgmt": true})).await;
        admin.post(&format!("/roles/{ops}/users/"), json!([ann.id])).await.expect(200);
        ann.get(&web).await.expect(200);
        ann.patch(&web, json!({"location": "Bern"})).await.expect(200);
        ann.delete(&web).await.expect_error(403, 10003);
        ann.post("/hosts/", json!({"name": "db", "host_type": "PHY_HOST"})).await.expect_error(403, 10003);
        ann.get(&shop).await.expect_error(404, 10004);
        let view = json!({"enable_app_mgmt": true, "view_app": true});
        module_rights(&server, &subject, "application", view).await;
        let shown = ann.get(&shop).await.expect(200);
        assert_eq!(shown["available_actions"]["view_app"], true);
        assert_eq!(shown["available_actions"]["edit_app"], false);
        ann.patch(&shop, json!({"description": "d"})).await.expect_error(403, 10003);
        let admin_sees = admin.get(&shop).await.expect(200);
        let actions = admin_sees["available_actions"].as_object().expect("actions");
        assert!(actions.values().all(|flag| flag == &json!(true)), "{actions:?}");
        assert_eq!(id(&shown), id(&admin_sees));
    }
}
