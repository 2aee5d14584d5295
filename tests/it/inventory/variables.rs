//! Variables: who reads and changes them, what they may be, and when they go.

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{application, audited, grant, host, instance, refused};

both_engines! {
    async fn each_object_has_its_own(server: TestServer) {
        let admin = server.admin();
        let (shop, web) = (application(&admin, "shop", None).await, host(&admin, "web-1").await);
        let on = instance(&admin, shop, web).await;
        let paths = [
            "/variables/".to_owned(),
            format!("/applications/{shop}/variables/"),
            format!("/hosts/{web}/variables/"),
            format!("/applications/{shop}/instances/{on}/variables/"),
        ];
        for (number, path) in paths.iter().enumerate() {
            assert_eq!(admin.get(path).await.expect(200), json!({"variables": {}}), "{path}");
            let set = json!({"variables": {"number": number, "debug": true, "text": "a b\n"}});
            assert_eq!(admin.patch(path, set.clone()).await.expect(200), set, "{path}");
        }
        for (number, path) in paths.iter().enumerate() {
            assert_eq!(admin.get(path).await.expect(200)["variables"]["number"], number, "{path}");
            let changed = admin.patch(path, json!({"variables": {"debug": null, "text": "c", "more": 1.5}})).await.expect(200);
            assert_eq!(changed["variables"], json!({"number": number, "text": "c", "more": 1.5}), "{path}");
            let replaced = admin.patch(path, json!({"variables": {"only": "this"}, "replace": true})).await.expect(200);
            assert_eq!(replaced["variables"], json!({"only": "this"}), "{path}");
            let entries = sql!("SELECT COUNT(*) FROM audit_entries WHERE detail LIKE 'variables: %'");
            let before = server.count(entries.clone(), args![]).await;
            admin.patch(path, json!({"variables": {"only": "this"}})).await.expect(200);
            assert_eq!(server.count(entries, args![]).await, before, "what changes nothing is not told");
        }
        assert!(audited(&server, "host", "update").await.contains(
            &"variables: more: null → 1.5; text: \"a b\\n\" → \"c\"; debug: true → null".to_owned()
        ));
        // They go with what they belong to.
        admin.delete(&format!("/applications/{shop}/instances/?id={on}")).await.expect(200);
        admin.delete(&format!("/hosts/{web}/")).await.expect(200);
        admin.delete(&format!("/applications/{shop}/")).await.expect(200);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM variables"), args![]).await, 1);
    }

    async fn who_may_change_the_object_may_change_them(server: TestServer) {
        let admin = server.admin();
        let (shop, other, web) =
            (application(&admin, "shop", None).await, application(&admin, "other", None).await, host(&admin, "web-1").await);
        let on = instance(&admin, shop, web).await;
        let user = server.user("ann").await;
        let change = json!({"variables": {"a": 1}});
        let of_application = format!("/applications/{shop}/variables/");
        let of_instance = format!("/applications/{shop}/instances/{on}/variables/");
        let of_host = format!("/hosts/{web}/variables/");
        for path in [&of_application, &of_instance, &of_host] {
            user.get(path).await.expect_error(404, 10004);
            user.patch(path, change.clone()).await.expect_error(404, 10004);
        }
        user.get("/variables/").await.expect_error(403, 10003);
        grant(&server, user.id, "application", shop, json!({"view_app": true})).await;
        grant(&server, user.id, "host", web, json!({"view_host": true})).await;
        for path in [&of_application, &of_instance, &of_host] {
            user.get(path).await.expect(200);
            user.patch(path, change.clone()).await.expect_error(403, 10003);
        }
        grant(&server, user.id, "application", shop, json!({"edit_app": true})).await;
        user.patch(&of_application, change.clone()).await.expect(200);
        user.patch(&of_instance, change.clone()).await.expect(200);
        // An instance is found under its own application alone.
        admin.get(&format!("/applications/{other}/instances/{on}/variables/")).await.expect_error(404, 10004);
        admin.patch(&format!("/applications/{shop}/instances/4711/variables/"), change).await.expect_error(404, 10004);
    }

    async fn what_cannot_be_one_is_refused_as_a_whole(server: TestServer) {
        let admin = server.admin();
        for (variables, field) in [
            (json!({"good": 1, "9": 1}), "variables.9"),
            (json!({"a b": 1}), "variables.a b"),
            (json!({"a": [1]}), "variables.a"),
            (json!({"a": {"b": 1}}), "variables.a"),
            (json!({"a": "\u{0}"}), "variables.a"),
            (json!({"a": "x".repeat(9000)}), "variables.a"),
            (json!([1]), "variables"),
        ] {
            refused(&admin, "PATCH", "/variables/", json!({"variables": variables}), field).await;
        }
        let many: serde_json::Map<String, Value> = (0..201).map(|number| (format!("v{number}"), json!(1))).collect();
        refused(&admin, "PATCH", "/variables/", json!({"variables": many}), "variables").await;
        assert_eq!(admin.get("/variables/").await.expect(200), json!({"variables": {}}));
    }
}
