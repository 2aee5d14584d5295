//! The audit lists, over HTTP.

use std::time::Duration;

use drover_kernel::{Audit, AuditEntry, AuditList, DEFAULT_ORGANISATION};
use drover_tests::{TestServer, both_engines};
use serde_json::{Value, json};

/// The results of a list.
async fn results(server: &TestServer, path: &str) -> Vec<Value> {
    let page = server.admin().get(path).await.expect(200);
    page["results"].as_array().expect("results").clone()
}

/// One member of each result.
fn column(results: &[Value], member: &str) -> Vec<String> {
    results.iter().map(|result| result[member].as_str().unwrap_or_default().to_owned()).collect()
}

/// Checks which results a list has with each query, told by one of their members.
async fn check(server: &TestServer, list: &str, member: &str, cases: &[(&str, &[&str])]) {
    for (query, expected) in cases {
        let found = column(&results(server, &format!("{list}{query}")).await, member);
        assert_eq!(found, *expected, "{list}{query}");
    }
}

both_engines! {
    async fn what_is_done_to_hosts_and_applications_is_listed(server: TestServer) {
        let admin = server.admin();
        let host = admin.post("/hosts/", json!({"name": "web1", "host_type": "PHY_HOST"})).await.expect(200)["id"].clone();
        server.advance(Duration::from_millis(60_500));
        let shop = admin.post("/applications/", json!({"name": "shop"})).await.expect(200)["id"].clone();
        let path = format!("/applications/{shop}/instances/");
        let added = admin.post(&path, json!([{"hostid": host}])).await.expect(200);
        server.advance(Duration::from_secs(60));
        admin.delete_with(&path, json!([{"id": added[0]["id"]}])).await.expect(200);
        admin.patch(&format!("/applications/{shop}/"), json!({"description": "100%_sure"})).await.expect(200);

        let hosts = results(&server, "/audit/host-operations/").await;
        assert_eq!(column(&hosts, "op_type"), ["deatach_app", "attach_app", "add"], "newest first");
        let oldest = hosts.last().expect("an entry");
        assert_eq!(oldest["op_time"], "2024-05-01T12:00:00+00:00");
        assert_eq!((&oldest["hostname"], &oldest["operator"]), (&json!("web1"), &json!("admin")));
        check(&server, "/audit/host-operations/", "op_type", &[
            ("?op_type=attach_app", &["attach_app"]),
            ("?op_type=detach_app", &["deatach_app"]),
            ("?hostname=WEB&op_type=add", &["add"]),
            ("?hostname=db", &[]),
            ("?operator=ADMIN&op_type=add", &["add"]),
            ("?operator=adm", &[]),
            ("?op_detail=Shop%20on", &["deatach_app", "attach_app"]),
            ("?op_time__lt=2024-05-01T12:00:00Z", &["add"]),
            ("?op_time__gt=2024-05-01T12:02:00Z", &["deatach_app"]),
            ("?op_time__gt=1714564860&op_time__lt=2024-05-01T20:01:00%2B08:00", &["attach_app"]),
            ("?page_size=1&page=3", &["add"]),
        ]).await;
        check(&server, "/audit/app-operations/", "op_type", &[
            ("", &["update", "deatach_host", "attach_host", "add"]),
            ("?op_type=detach_host", &["deatach_host"]),
            ("?op_type=change_deploy_settings", &[]),
            ("?app_name=SHO&op_type=add", &["add"]),
            ("?op_detail=100%25_", &["update"]),
        ]).await;
        for (query, field) in [("?op_type=explode", "op_type"), ("?op_time__lt=soon", "op_time__lt"), ("?op_time__gt=soon", "op_time__gt")] {
            let path = format!("/audit/host-operations/{query}");
            assert_eq!(admin.get(&path).await.expect_error(400, 10001)["field"], field, "{query}");
        }
    }

    async fn changes_of_rights_are_listed(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await;
        let role = admin.post("/roles/", json!({"name": "readers"})).await.expect(200)["id"].clone();
        let flags = json!([{"module_name": "application", "permissions": {"add_app": true}}]);
        admin.post(&format!("/users/{}/system/perms/", ann.id), flags).await.expect(200);
        let flags = json!([{"module_name": "host", "permissions": {"add_host": true}}]);
        admin.post(&format!("/roles/{role}/system/perms/"), flags).await.expect(200);
        let modules = "/audit/authorize-operations/modules/";
        let newest = &results(&server, modules).await[0];
        assert_eq!((&newest["module_name"], &newest["perm_name"], &newest["action"]), (&json!("host"), &json!("add_host"), &json!("enable")));
        assert_eq!((&newest["authorized_target_type"], &newest["authorized_target_name"]), (&json!("role"), &json!("readers")));
        check(&server, modules, "perm_name", &[
            ("", &["add_host", "create_app"]),
            ("?module_name=application", &["create_app"]),
            ("?module_name=%E5%BA%94%E7%94%A8%E7%AE%A1%E7%90%86", &["create_app"]),
            ("?perm_name=add_app", &["create_app"]),
            ("?action=disable", &[]),
            ("?authorized_target_type=user", &["create_app"]),
            ("?authorized_target_name=readers", &["add_host"]),
            ("?operator=ann", &[]),
        ]).await;
        admin.get(&format!("{modules}?action=maybe")).await.expect_error(400, 10001);

        let host = admin.post("/hosts/", json!({"name": "web1", "host_type": "PHY_HOST"})).await.expect(200)["id"].clone();
        let body = json!({"authorizations": [{"id": host, "permission": {"login": true}}]});
        admin.post(&format!("/users/{}/host/perms/", ann.id), body).await.expect(200);
        let resources = "/audit/authorize-operations/resources/";
        let to_ann = "&authorized_target_name=ann";
        let found = results(&server, &format!("{resources}?resource_type=host{to_ann}")).await;
        assert_eq!(found[0]["resource"], json!({"id": host, "name": "web1"}));
        assert_eq!((&found[0]["resource_id"], &found[0]["resource_type"]), (&host, &json!("host")));
        let of_host = format!("?resource_id={host}{to_ann}");
        let short_name = format!("?perm_name=login{to_ann}");
        check(&server, resources, "perm_name", &[
            (&of_host, &["login_host"]),
            (&short_name, &["login_host"]),
            ("?resource_type=business", &[]),
            ("?authorized_target_type=role", &[]),
        ]).await;
        admin.get(&format!("{resources}?resource_type=thing")).await.expect_error(400, 10001);
        admin.get(&format!("{resources}?resource_id=x")).await.expect_error(400, 10001);
    }

    async fn what_is_done_to_dns_is_listed(server: TestServer) {
        let tx = server.work().begin(DEFAULT_ORGANISATION).await.expect("a transaction");
        let entry = |action: &str, target: &str| AuditEntry::new(AuditList::Dns, action, target, 1, "example.com").detail(format!("{action} of it"));
        let entries = vec![entry("add", "domain"), entry("disable", "record")];
        tx.finish(Audit::all(entries)).await.expect("the commit");
        check(&server, "/audit/dns-operations/", "op_target", &[
            ("", &["record", "domain"]),
            ("?op_type=add", &["domain"]),
            ("?op_target=record", &["record"]),
            ("?op_target=server", &[]),
            ("?op_detail=DISABLE", &["record"]),
            ("?operator=system", &["record", "domain"]),
        ]).await;
        server.admin().get("/audit/dns-operations/?op_target=mail").await.expect_error(400, 10001);
    }

    async fn only_administrators_read_the_audit(server: TestServer) {
        let user = server.user("ann").await;
        for list in ["host-operations", "app-operations", "dns-operations", "authorize-operations/modules", "authorize-operations/resources"] {
            user.get(&format!("/audit/{list}/")).await.expect_error(403, 10003);
            server.anonymous().get(&format!("/audit/{list}/")).await.expect_error(401, 10002);
        }
    }

    async fn everything_that_was_done_is_listed(server: TestServer) {
        let admin = server.admin().with_header("x-request-id", "request-7");
        let ann = admin.post("/users/", json!({"username": "ann", "password": "12345678"})).await.expect(200)["id"].clone();
        server.advance(Duration::from_secs(60));
        admin.post("/applications/", json!({"name": "shop"})).await.expect(200);
        let list = "/audit/entries/";
        let user = &results(&server, &format!("{list}?object_type=user&op_type=create&object_name=ANN")).await[0];
        let expected = [("list", "general"), ("object_name", "ann"), ("operator", "admin"), ("request_id", "request-7")];
        for (member, value) in expected {
            assert_eq!(user[member], value, "{member}: {user}");
        }
        assert_eq!((&user["object_id"], &user["op_time"]), (&ann, &json!("2024-05-01T12:00:00+00:00")));
        assert!(!user.to_string().contains("12345678"), "{user}");
        check(&server, list, "object_type", &[
            (&format!("?list=general&object_type=user&object_id={ann}"), &["user"]),
            ("?list=application", &["application"]),
            ("?list=application&op_time__lt=2024-05-01T12:00:30Z", &[]),
            ("?list=application&op_time__gt=2024-05-01T12:01:00Z&operator=Admin", &["application"]),
            ("?op_type=add&op_detail=shop", &["application"]),
            ("?operator=nobody", &[]),
            ("?page_size=1&page=1&list=application", &["application"]),
        ]).await;
        admin.get(&format!("{list}?list=nothing")).await.expect_error(400, 10001);
        admin.get(&format!("{list}?object_id=x")).await.expect_error(400, 10001);
        server.user("eve").await.get(list).await.expect_error(403, 10003);
    }
}
