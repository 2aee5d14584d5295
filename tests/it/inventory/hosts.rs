//! The records of hosts.

use drover_inventory::hosts::store::find_or_create;
use drover_kernel::{Audit, DEFAULT_ORGANISATION, args, sql};
use drover_tests::both_engines;
use serde_json::json;

use super::{application, audited, grant, grant_module, host, id, ids, instance, refused};

both_engines! {
    async fn a_host_is_registered_read_and_changed(server: TestServer) {
        let admin = server.admin();
        let body = json!({
            "name": " web1 ", "host_type": "ALI_ECS", "cpu": "4", "memory": 8192, "os_type": "Debian 13",
            "location": "rack 7", "description": "first",
            "ip_adress": [{"address": "10.0.0.7", "netmask": "255.0.0.0"}, {"address": "8.8.8.8", "is_virtual": 1, "owner": null}],
        });
        let made = admin.post("/hosts/", body).await.expect(200);
        let path = format!("/hosts/{}/", id(&made));
        assert_eq!(made["status"], "raw");
        assert_eq!(made["os_status"], "running");
        assert_eq!(made["cpu"], 4);
        assert_eq!(made["agent"], json!(null));
        let addresses = made["ip_address"].as_array().expect("addresses").clone();
        assert_eq!((&addresses[0]["addr_type"], &addresses[0]["owner"]), (&json!("PRIVATE"), &json!("HOST")));
        assert_eq!((&addresses[1]["addr_type"], &addresses[1]["owner"]), (&json!("PUBLIC"), &json!(null)));
        assert_eq!((&addresses[1]["is_virtual"], &addresses[0]["is_virtual"]), (&json!(true), &json!(false)));

        let changed = admin.patch(&path, json!({"cpu": 8, "ip_address": addresses, "status": "raw"})).await.expect(200);
        assert_eq!((&changed["cpu"], &changed["memory"], &changed["name"]), (&json!(8), &json!(8192), &json!("web1")));
        assert_eq!(changed["ip_address"], made["ip_address"], "the same addresses keep their ids");
        assert_eq!(audited(&server, "host", "update").await, ["cpu: 4 → 8"]);
        admin.patch(&path, json!({"cpu": 8})).await.expect(200);
        assert_eq!(audited(&server, "host", "update").await.len(), 1, "what changes nothing is no change");

        let single = admin.patch(&path, json!({"ip_address": {"address": "fd00::0001"}})).await.expect(200);
        assert_eq!(single["ip_address"][0]["address"], "fd00::1");
        assert_eq!(admin.get(&path).await.expect(200), single);
        assert_eq!(admin.get(&format!("/host/{}", id(&made))).await.expect(200), single);
        admin.delete(&path).await.expect(200);
        admin.get(&path).await.expect_error(404, 10004);
        assert_eq!(audited(&server, "host", "add").await.len(), 1);
        assert!(audited(&server, "host", "delete").await[0].contains("web1"));
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM ip_addresses"), args![]).await, 0);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM resource_rights"), args![]).await, 0);
    }

    async fn hosts_are_filtered_and_paged(server: TestServer) {
        let admin = server.admin();
        let mut made = Vec::new();
        for (name, kind, status) in [("Web-1", "PHY_HOST", "raw"), ("web_2", "ALI_ECS", "inited"), ("db%1", "PHY_HOST", "offline")] {
            let body = json!({"name": name, "host_type": kind, "status": status});
            made.push(id(&admin.post("/hosts/", body).await.expect(200)));
        }
        for (query, expected) in [
            ("", vec![0, 1, 2]),
            ("?name=WEB", vec![0, 1]),
            ("?name=_", vec![1]),
            ("?name=%25", vec![2]),
            ("?name=none", vec![]),
            ("?name=", vec![0, 1, 2]),
            ("?host_type=PHY_HOST", vec![0, 2]),
            ("?status=inited", vec![1]),
            ("?host_type=PHY_HOST&name=db", vec![2]),
            ("?page_size=2", vec![0, 1]),
            ("?page_size=2&page=2", vec![2]),
            ("?page=9", vec![]),
        ] {
            let page = admin.get(&format!("/hosts/{query}")).await.expect(200);
            let expected: Vec<i64> = expected.into_iter().map(|index: usize| made[index]).collect();
            assert_eq!(ids(&page), expected, "{query}");
        }
        for (query, field) in [("?host_type=TABLET", "host_type"), ("?status=gone", "status"), ("?page=0", "page"), ("?page_size=101", "page_size")] {
            refused(&admin, "GET", &format!("/hosts/{query}"), json!(null), field).await;
        }
    }

    async fn bad_hosts_are_refused_and_named(server: TestServer) {
        let admin = server.admin();
        let present = host(&admin, "web1").await;
        let good = json!({"name": "web2", "host_type": "PHY_HOST"});
        for (member, value, field) in [
            ("name", json!(null), "name"),
            ("name", json!(""), "name"),
            ("name", json!("a b"), "name"),
            ("name", json!(["x"]), "name"),
            ("name", json!("x".repeat(201)), "name"),
            ("host_type", json!(null), "host_type"),
            ("host_type", json!("phone"), "host_type"),
            ("status", json!("gone"), "status"),
            ("cpu", json!(-1), "cpu"),
            ("cpu", json!(1.5), "cpu"),
            ("memory", json!("many"), "memory"),
            ("description", json!("x".repeat(20_001)), "description"),
            ("location", json!("a\u{0}b"), "location"),
            ("ip_address", json!([{"address": "300.1.1.1"}]), "ip_address[0].address"),
            ("ip_address", json!([{"address": "::1"}, {"netmask": "x", "address": "::2"}]), "ip_address[1].netmask"),
            ("ip_address", json!(vec![json!({"address": "::1"}); 101]), "ip_address"),
        ] {
            let mut body = good.clone();
            body[member] = value;
            refused(&admin, "POST", "/hosts/", body, field).await;
        }
        refused(&admin, "POST", "/hosts/", json!({"host_type": "PHY_HOST"}), "name").await;
        refused(&admin, "POST", "/hosts/", json!([1]), "body").await;
        refused(&admin, "PATCH", &format!("/hosts/{present}/"), json!({"status": "offline"}), "status").await;
        let taken = admin.post("/hosts/", json!({"name": "web1", "host_type": "PHY_HOST"})).await.expect_error(409, 10006);
        assert!(taken["message"].as_str().is_some_and(|text| text.starts_with("name:")), "{taken}");
        let second = host(&admin, "web2").await;
        admin.patch(&format!("/hosts/{second}/"), json!({"name": "web1"})).await.expect_error(409, 10006);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM hosts"), args![]).await, 2);
        for path in ["/hosts/999/", "/hosts/x/"] {
            admin.get(path).await.expect_error(404, 10004);
            admin.patch(path, json!({})).await.expect_error(404, 10004);
            admin.delete(path).await.expect_error(404, 10004);
        }
    }

    async fn a_host_in_use_stays(server: TestServer) {
        let admin = server.admin();
        let (web, shop) = (host(&admin, "web1").await, application(&admin, "shop", None).await);
        let instance_id = instance(&admin, shop, web).await;
        let path = format!("/hosts/{web}/");
        let error = admin.delete(&path).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("shop")), "{error}");
        let applications = admin.get(&format!("{path}applications/")).await.expect(200);
        assert_eq!(ids(&applications), [shop]);
        admin.delete_with(&format!("/applications/{shop}/instances/"), json!([{"id": instance_id}])).await.expect(200);
        admin.delete(&path).await.expect(200);
    }

    async fn rights_on_hosts_decide(server: TestServer) {
        let admin = server.admin();
        let user = server.user("ann").await;
        let (seen, hidden) = (host(&admin, "seen").await, host(&admin, "hidden").await);
        user.post("/hosts/", json!({"name": "own", "host_type": "PHY_HOST"})).await.expect_error(403, 10003);
        assert_eq!(user.get("/hosts/").await.expect(200)["count"], 0);
        grant(&server, user.id, "host", seen, json!({"view_host": true})).await;
        assert_eq!(ids(&user.get("/hosts/").await.expect(200)), [seen]);
        user.get(&format!("/hosts/{seen}/")).await.expect(200);
        user.patch(&format!("/hosts/{seen}/"), json!({"cpu": 1})).await.expect_error(403, 10003);
        user.delete(&format!("/hosts/{seen}/")).await.expect_error(403, 10003);
        user.get(&format!("/hosts/{hidden}/")).await.expect_error(404, 10004);
        user.patch(&format!("/hosts/{hidden}/"), json!({"cpu": 1})).await.expect_error(404, 10004);
        server.anonymous().get("/hosts/").await.expect_error(401, 10002);

        // Applications that the caller may not see are not told.
        let shop = application(&admin, "shop", None).await;
        instance(&admin, shop, seen).await;
        let list = format!("/hosts/{seen}/applications/");
        assert_eq!(user.get(&list).await.expect(200)["count"], 0);
        grant(&server, user.id, "application", shop, json!({"view_app": true})).await;
        assert_eq!(ids(&user.get(&list).await.expect(200)), [shop]);

        // Who registers a host may do everything with it.
        grant_module(&server, user.id, "host", json!({"enable_host_mgmt": true, "add_host": true})).await;
        let own = host(&user, "own").await;
        user.patch(&format!("/hosts/{own}/"), json!({"cpu": 1})).await.expect(200);
        user.delete(&format!("/hosts/{own}/")).await.expect(200);
    }

    async fn an_agent_is_shown_with_its_host(server: TestServer) {
        let mut tx = server.work().begin(DEFAULT_ORGANISATION).await.expect("a transaction");
        let (enrolled, created) = find_or_create(&mut tx, "edge-1").await.expect("a host");
        let (again, made_again) = find_or_create(&mut tx, "edge-1").await.expect("a host");
        assert!(find_or_create(&mut tx, "a b").await.is_err());
        assert_eq!((created, again, made_again), (true, enrolled, false));
        let insert = sql!(
            "INSERT INTO agents (id, organisation_id, host_id, public_key, version, abilities, connected, epoch, \
             last_seen_at, clock_skew_ms, enrolled_at) VALUES ('a', 1, $1, 'k', '0.1.0', $2, $3, 1, $4, -12, 0)"
        );
        let seen_at = tx.now();
        tx.run(insert, args![enrolled, json!({"root": true}), true, seen_at]).await.expect("an agent");
        tx.finish(Audit::none("a test prepares something")).await.expect("the commit");
        let shown = server.admin().get(&format!("/hosts/{enrolled}/")).await.expect(200);
        assert_eq!((&shown["host_type"], &shown["status"]), (&json!("PHY_HOST"), &json!("raw")));
        let expected = json!({
            "version": "0.1.0", "connected": true, "last_seen_time": "2024-05-01T12:00:00+00:00",
            "clock_skew_ms": -12, "boot_id": null, "restart_time": null, "abilities": {"root": true},
        });
        assert_eq!(shown["agent"], expected);
        assert_eq!(server.admin().get("/hosts/").await.expect(200)["results"][0]["agent"], expected);
        server.admin().delete(&format!("/hosts/{enrolled}/")).await.expect(200);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM agents"), args![]).await, 0);
    }
}
