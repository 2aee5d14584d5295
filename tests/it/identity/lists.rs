//! Lists show what their reader may see; filters by user and role show what others may see.

use drover_kernel::call::Caller;
use drover_kernel::db::Condition;
use drover_kernel::{DEFAULT_ORGANISATION, args, sql};
use drover_tests::{TestServer, both_engines};
use serde_json::json;

use super::{application, host, ids, module_rights, resource_rights, role};

async fn applications(server: &TestServer, condition: Condition) -> Vec<i64> {
    let mut arguments = args![DEFAULT_ORGANISATION];
    let sql = sql!("SELECT a.id FROM applications a WHERE a.organisation_id = $1/* filters */ ORDER BY a.id");
    let sql = sql.filtered(&[condition], &mut arguments);
    server.read().await.values(sql, arguments).await.expect("applications")
}

async fn hosts(server: &TestServer, condition: Condition) -> Vec<i64> {
    let mut arguments = args![DEFAULT_ORGANISATION];
    let sql = sql!("SELECT h.id FROM hosts h WHERE h.organisation_id = $1/* filters */ ORDER BY h.id");
    let sql = sql.filtered(&[condition], &mut arguments);
    server.read().await.values(sql, arguments).await.expect("hosts")
}

async fn caller(server: &TestServer, user_id: i64) -> Caller {
    let mut read = server.read().await;
    let found = drover_identity::caller_of(&mut read, DEFAULT_ORGANISATION, user_id).await.expect("no error");
    found.expect("a user")
}

both_engines! {
    async fn lists_and_addresses_agree(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await;
        let subject = format!("users/{}", ann.id);
        let (shop, desk) = (application(&admin, "shop").await, application(&admin, "desk").await);
        let (web, db) = (host(&admin, "web").await, host(&admin, "db").await);
        for list in ["/applications/", "/hosts/"] {
            assert_eq!(ids(&ann.get(list).await.expect(200)), [0_i64; 0]);
        }
        resource_rights(&server, &subject, "application", shop, json!({"deploy_app": true})).await;
        let ops = role(&server, "ops").await;
        resource_rights(&server, &format!("roles/{ops}"), "host", db, json!({"view_host": true})).await;
        admin.post(&format!("/roles/{ops}/users/"), json!([ann.id])).await.expect(200);
        assert_eq!(ids(&ann.get("/applications/").await.expect(200)), [shop]);
        assert_eq!(ids(&ann.get("/hosts/").await.expect(200)), [db]);
        ann.get(&format!("/applications/{shop}/")).await.expect_error(403, 10003);
        ann.get(&format!("/applications/{desk}/")).await.expect_error(404, 10004);
        module_rights(&server, &subject, "host", json!({"enable_host_mgmt": true, "edit_host": true})).await;
        assert_eq!(ids(&ann.get("/hosts/").await.expect(200)), [web, db]);
        assert_eq!(ids(&admin.get("/applications/").await.expect(200)), [shop, desk]);
    }

    async fn filters_name_a_user_or_role(server: TestServer) {
        let admin = server.admin();
        let (ann, bob) = (server.user("ann").await, server.user("bob").await);
        let ops = role(&server, "ops").await;
        admin.post(&format!("/roles/{ops}/users/"), json!([bob.id])).await.expect(200);
        let (shop, desk) = (application(&admin, "shop").await, application(&admin, "desk").await);
        let (web, db) = (host(&admin, "web").await, host(&admin, "db").await);
        resource_rights(&server, &format!("users/{}", ann.id), "application", shop, json!({"view": true})).await;
        resource_rights(&server, &format!("roles/{ops}"), "application", desk, json!({"view": true})).await;
        resource_rights(&server, &format!("roles/{ops}"), "host", web, json!({"view_host": true})).await;
        assert_eq!(applications(&server, drover_identity::applications_of_user("ANN")).await, [shop]);
        assert_eq!(applications(&server, drover_identity::applications_of_user("bob")).await, [desk]);
        assert_eq!(applications(&server, drover_identity::applications_of_role("ops")).await, [desk]);
        assert_eq!(applications(&server, drover_identity::applications_of_user("an")).await, [0_i64; 0]);
        assert_eq!(applications(&server, drover_identity::applications_of_user("admin")).await, [shop, desk]);
        assert_eq!(hosts(&server, drover_identity::hosts_of_user("bob")).await, [web]);
        assert_eq!(hosts(&server, drover_identity::hosts_of_role("ops")).await, [web]);
        assert_eq!(hosts(&server, drover_identity::hosts_of_user("admin")).await, [web, db]);
        // Through the module: the right of the user has effect by the flag of the role.
        module_rights(&server, &format!("users/{}", bob.id), "application", json!({"view_app": true})).await;
        module_rights(&server, &format!("users/{}", bob.id), "host", json!({"edit_host": true})).await;
        assert_eq!(applications(&server, drover_identity::applications_of_user("bob")).await, [desk]);
        let flags = json!({"enable_app_mgmt": true, "create_app": true});
        module_rights(&server, &format!("roles/{ops}"), "application", flags).await;
        module_rights(&server, &format!("roles/{ops}"), "host", json!({"enable_host_mgmt": true})).await;
        assert_eq!(applications(&server, drover_identity::applications_of_user("bob")).await, [shop, desk]);
        assert_eq!(applications(&server, drover_identity::applications_of_role("ops")).await, [desk]);
        assert_eq!(hosts(&server, drover_identity::hosts_of_user("bob")).await, [web, db]);
        module_rights(&server, &format!("roles/{ops}"), "application", json!({"edit_app": true})).await;
        assert_eq!(applications(&server, drover_identity::applications_of_role("ops")).await, [shop, desk]);
    }

    async fn rights_of_others_are_read_for_many_at_once(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await;
        let (shop, desk) = (application(&admin, "shop").await, application(&admin, "desk").await);
        resource_rights(&server, &format!("users/{}", ann.id), "application", shop, json!({"deploy": true})).await;
        let flags = json!({"enable_app_mgmt": true, "edit_app": true});
        module_rights(&server, &format!("users/{}", ann.id), "application", flags).await;
        let caller = caller(&server, ann.id).await;
        let mut read = server.read().await;
        let many = drover_identity::rights_on_many(&mut read, &caller, "application", &[shop, desk]).await.expect("rights");
        let of = |id: i64| many[&id].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((of(shop), of(desk)), (vec!["deploy_app", "edit_app", "view_app"], vec!["edit_app", "view_app"]));
        assert!(drover_identity::rights_on_many(&mut read, &caller, "production", &[1]).await.is_err());
        let elsewhere = drover_identity::caller_of(&mut read, DEFAULT_ORGANISATION + 1, ann.id).await.expect("no error");
        assert!(elsewhere.is_none());
    }
}
