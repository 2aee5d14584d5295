//! Environments: which hosts belong together, and the variables and secrets that hold for all of them.

use drover_inventory::secrets::{self, Place, TaskSecrets};
use drover_inventory::variables::TaskVariables;
use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{application, grant, host, instance, refused};

both_engines! {
    async fn they_are_made_changed_and_removed_once_they_are_empty(server: TestServer) {
        let admin = server.admin();
        let made = admin.post("/environments/", json!({"name": "staging", "description": "as live"})).await.expect(200);
        let id = made["id"].as_i64().expect("an id");
        let path = format!("/environments/{id}/");
        assert_eq!(admin.get(&path).await.expect(200), json!({"id": id, "name": "staging", "description": "as live"}));
        admin.post("/environments/", json!({"name": "staging"})).await.expect_error(409, 10006);
        for body in [json!({}), json!({"name": ""}), json!({"name": "a\nb"})] {
            refused(&admin, "POST", "/environments/", body, "name").await;
        }
        assert_eq!(admin.patch(&path, json!({"name": "test"})).await.expect(200)["description"], "as live");
        admin.post("/environments/", json!({"name": "live"})).await.expect(200);
        admin.patch(&path, json!({"name": "live"})).await.expect_error(409, 10006);
        assert_eq!(admin.get("/environments/?name=TES").await.expect(200)["results"], json!([{"id": id, "name": "test", "description": "as live"}]));

        let web = host(&admin, "web-1").await;
        let of_host = format!("/hosts/{web}/");
        assert_eq!(admin.get(&of_host).await.expect(200)["environment"], Value::Null);
        refused(&admin, "PATCH", &of_host, json!({"environment": 4711}), "environment").await;
        let changed = admin.patch(&of_host, json!({"environment": id})).await.expect(200);
        assert_eq!(changed["environment"], json!({"id": id, "name": "test"}));
        assert_eq!(admin.patch(&of_host, json!({"location": "here"})).await.expect(200)["environment"]["id"], id);
        let inside = json!({"name": "web-2", "host_type": "PHY_HOST", "environment": id});
        admin.post("/hosts/", inside).await.expect(200);
        assert_eq!(admin.get(&format!("/hosts/?environment={id}")).await.expect(200)["count"], 2);
        let error = admin.delete(&path).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.ends_with("has the hosts web-1, web-2")), "{error}");
        admin.patch(&format!("{path}variables/"), json!({"variables": {"a": 1}})).await.expect(200);
        admin.patch(&format!("{path}secrets/"), json!({"secrets": {"A": "bbbb"}})).await.expect(200);
        for found in admin.get("/hosts/").await.expect(200)["results"].as_array().expect("hosts") {
            admin.patch(&format!("/hosts/{}/", found["id"]), json!({"environment": null})).await.expect(200);
        }
        admin.delete(&path).await.expect(200);
        admin.get(&path).await.expect_error(404, 10004);
        for left in [sql!("SELECT COUNT(*) FROM variables"), sql!("SELECT COUNT(*) FROM secrets")] {
            assert_eq!(server.count(left, args![]).await, 0);
        }
        let audit = sql!("SELECT action FROM audit_entries WHERE object_type = 'environment' ORDER BY id");
        let audit: Vec<String> = server.read().await.values(audit, args![]).await.expect("the audit");
        assert_eq!(audit, ["add", "update", "add", "update", "update", "delete"]);
    }

    async fn administrators_alone_decide_which_hosts_are_in_them(server: TestServer) {
        let admin = server.admin();
        let id = admin.post("/environments/", json!({"name": "live"})).await.expect(200)["id"].clone();
        let web = host(&admin, "web-1").await;
        let user = server.user("ann").await;
        grant(&server, user.id, "host", web, json!({"view_host": true, "edit_host": true})).await;
        let of_host = format!("/hosts/{web}/");
        user.patch(&of_host, json!({"environment": id})).await.expect_error(403, 10003);
        admin.patch(&of_host, json!({"environment": id})).await.expect(200);
        user.patch(&of_host, json!({"environment": id, "location": "here"})).await.expect(200);
        user.patch(&of_host, json!({"environment": null})).await.expect_error(403, 10003);
        user.get("/environments/").await.expect(200);
        user.post("/environments/", json!({"name": "own"})).await.expect_error(403, 10003);
        for part in ["variables", "secrets"] {
            user.get(&format!("/environments/{id}/{part}/")).await.expect_error(403, 10003);
            admin.get(&format!("/environments/4711/{part}/")).await.expect_error(404, 10004);
            admin.patch(&format!("/environments/4711/{part}/"), json!({part: {}})).await.expect_error(404, 10004);
        }
    }

    async fn who_may_not_change_a_host_puts_nothing_where_it_keeps_secrets(server: TestServer) {
        let admin = server.admin();
        let live = admin.post("/environments/", json!({"name": "live"})).await.expect(200)["id"].clone();
        let (shop, web, db) =
            (application(&admin, "shop", None).await, host(&admin, "web-1").await, host(&admin, "db-1").await);
        let user = server.user("ann").await;
        grant(&server, user.id, "application", shop, json!({"view_app": true, "edit_app": true})).await;
        for host in [web, db] {
            grant(&server, user.id, "host", host, json!({"view_host": true})).await;
        }
        let instances = format!("/applications/{shop}/instances/");
        let path = format!("/hosts/{web}/secrets/");
        admin.patch(&path, json!({"secrets": {"OF_HOST": "bbbb"}})).await.expect(200);
        admin.patch(&format!("/hosts/{db}/"), json!({"environment": live})).await.expect(200);
        user.post(&instances, json!([{"hostid": web}])).await.expect_error(403, 10003);
        user.post(&instances, json!([{"hostid": db}])).await.expect(200);
        let put = admin.get(&instances).await.expect(200)["results"][0]["id"].clone();
        user.delete(&format!("{instances}?id={put}")).await.expect(200);

        let path = format!("/environments/{live}/secrets/");
        admin.patch(&path, json!({"secrets": {"OF_ALL": "bbbb"}})).await.expect(200);
        user.post(&instances, json!([{"hostid": db}])).await.expect_error(403, 10003);
        for host in [web, db] {
            grant(&server, user.id, "host", host, json!({"view_host": true, "edit_host": true})).await;
        }
        user.post(&instances, json!([{"hostid": web}, {"hostid": db}])).await.expect(200);
    }

    async fn they_stand_between_application_and_host(server: TestServer) {
        let admin = server.admin();
        let (shop, web, db) =
            (application(&admin, "shop", None).await, host(&admin, "web-1").await, host(&admin, "db-1").await);
        let (on_web, on_db) = (instance(&admin, shop, web).await, instance(&admin, shop, db).await);
        let id = admin.post("/environments/", json!({"name": "live"})).await.expect(200)["id"].as_i64().expect("an id");
        admin.patch(&format!("/hosts/{web}/"), json!({"environment": id})).await.expect(200);
        for (path, names) in [
            (format!("/applications/{shop}/"), &["A", "B", "C"][..]),
            (format!("/environments/{id}/"), &["B", "C", "E"]),
            (format!("/hosts/{web}/"), &["C"]),
        ] {
            let values: serde_json::Map<String, Value> =
                names.iter().map(|name| ((*name).to_owned(), json!(path))).collect();
            admin.patch(&format!("{path}variables/"), json!({"variables": values})).await.expect(200);
            admin.patch(&format!("{path}secrets/"), json!({"secrets": values})).await.expect(200);
        }
        let (own, live, host) = (format!("/applications/{shop}/"), format!("/environments/{id}/"), format!("/hosts/{web}/"));
        let on_web_expected = json!({"A": own, "B": live, "C": host, "E": live});
        let on_db_expected = json!({"A": own, "B": own, "C": own});
        let sealer = server.kernel().sealer();
        let mut read = server.read().await;
        let variables = TaskVariables::read(&mut read, shop, vec![web, db], vec![on_web, on_db]).await.expect("variables");
        let names = TaskSecrets::read(&mut read, (1, shop), vec![web, db], vec![on_web, on_db]).await.expect("names");
        assert_eq!(names.narrow(db, Some(on_db)).len(), 0);
        for (host_id, instance_id, expected) in [(web, on_web, &on_web_expected), (db, on_db, &on_db_expected)] {
            assert_eq!(&json!(variables.on(host_id, Some(instance_id))), expected);
            let offered: Vec<String> = names.wide().union(&names.narrow(host_id, Some(instance_id))).cloned().collect();
            let place = Place { organisation_id: 1, application_id: shop, host_id, instance_id: Some(instance_id) };
            let opened = secrets::open(&mut read, sealer, place, &offered).await.expect("all");
            let texts: serde_json::Map<String, Value> = opened
                .iter()
                .map(|(name, value)| (name.clone(), json!(std::str::from_utf8(value).expect("text"))))
                .collect();
            assert_eq!(&Value::Object(texts), expected);
        }
    }
}
