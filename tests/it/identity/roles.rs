//! Roles and who holds them.

use drover_tests::both_engines;
use serde_json::json;

use super::{application, audited, id, ids, module_rights, resource_rights, role};

both_engines! {
    async fn roles_are_made_renamed_and_found(server: TestServer) {
        let admin = server.admin();
        let ops = admin.post("/roles/", json!({"name": "Operators"})).await.expect(200);
        assert_eq!(ops, json!({"id": ops["id"], "name": "Operators", "creator": "admin"}));
        let path = format!("/roles/{}/", id(&ops));
        role(&server, "testers").await;
        admin.post("/roles/", json!({"name": "testers"})).await.expect_error(409, 10006);
        admin.patch(&path, json!({"name": "testers"})).await.expect_error(409, 10006);
        admin.patch(&path, json!({"name": " "})).await.expect_error(400, 10001);
        assert_eq!(admin.patch(&path, json!({"name": "On call"})).await.expect(200)["name"], "On call");
        admin.patch(&path, json!({})).await.expect(200);
        assert_eq!(admin.get(&path).await.expect(200)["name"], "On call");
        assert_eq!(ids(&admin.get("/roles/?name=CALL").await.expect(200)), [id(&ops)]);
        admin.get("/roles/99999/").await.expect_error(404, 10004);
        assert_eq!(audited(&server, "general", "update").await, 1);
    }

    async fn membership_is_changed_from_either_side(server: TestServer) {
        let admin = server.admin();
        let (ann, bob) = (server.user("ann").await.id, server.user("bob").await.id);
        let (ops, qa) = (role(&server, "ops").await, role(&server, "qa").await);
        let of_ann = format!("/users/{ann}/roles/");
        for _ in 0..2 {
            admin.post(&of_ann, json!([{"id": ops}, {"id": qa}])).await.expect(200);
        }
        admin.post(&format!("/roles/{ops}/users/"), json!([ann, bob])).await.expect(200);
        assert_eq!(ids(&admin.get(&of_ann).await.expect(200)), [ops, qa]);
        assert_eq!(ids(&admin.get(&format!("/roles/{ops}/users/")).await.expect(200)), [ann, bob]);
        assert_eq!(audited(&server, "general", "add_role").await, 3, "one for each that was new");
        let refused = admin.post(&of_ann, json!([{"id": 99999}])).await.expect_error(400, 10001);
        assert_eq!(refused["field"], "id");
        admin.delete(&of_ann).await.expect_error(400, 10001);
        admin.delete_with(&of_ann, json!([{"id": ops}, {"id": 99999}])).await.expect_error(400, 10001);
        assert_eq!(ids(&admin.get(&of_ann).await.expect(200)), [ops, qa], "all or nothing");
        admin.delete_with(&of_ann, json!([{"id": ops}])).await.expect(200);
        admin.delete(&format!("/roles/{ops}/users/?id={ann}&id={bob}")).await.expect(200);
        assert_eq!(ids(&admin.get(&format!("/roles/{ops}/users/")).await.expect(200)), [0_i64; 0]);
        assert_eq!(audited(&server, "general", "remove_role").await, 2);
        for path in ["/users/99999/roles/", "/roles/99999/users/"] {
            admin.get(path).await.expect_error(404, 10004);
            admin.post(path, json!([{"id": ops}])).await.expect_error(404, 10004);
        }
    }

    async fn a_role_takes_its_rights_with_it(server: TestServer) {
        let ann = server.user("ann").await;
        let application = application(&server.admin(), "shop").await;
        let ops = role(&server, "ops").await;
        let subject = format!("roles/{ops}");
        resource_rights(&server, &subject, "application", application, json!({"edit_app": true, "view": true})).await;
        module_rights(&server, &subject, "dns", json!({"enable_dns_mgmt": true})).await;
        server.admin().post(&format!("/roles/{ops}/users/"), json!([{"id": ann.id}])).await.expect(200);
        ann.get(&format!("/applications/{application}/")).await.expect(200);
        server.admin().delete(&format!("/{subject}/")).await.expect(200);
        ann.get(&format!("/applications/{application}/")).await.expect_error(404, 10004);
        server.admin().delete(&format!("/{subject}/")).await.expect_error(404, 10004);
        let sql = drover_kernel::sql!(
            "SELECT (SELECT COUNT(*) FROM role_users) + (SELECT COUNT(*) FROM module_rights) \
             + (SELECT COUNT(*) FROM resource_rights WHERE subject_type = 'role')"
        );
        assert_eq!(server.count(sql, vec![]).await, 0);
        assert_eq!(audited(&server, "general", "delete").await, 1);
    }
}
