//! Secrets: set, never shown, sealed, and opened for the hooks of their application alone.

use std::collections::BTreeMap;

use drover_inventory::secrets::{self, Place, TaskSecrets};
use drover_kernel::{Error, args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{application, audited, grant, host, instance, refused};

/// Where values are from that say so before the end of an address.
fn origins<V: std::ops::Deref<Target = Vec<u8>>>(opened: &BTreeMap<String, V>) -> Vec<String> {
    let texts = opened.values().map(|value| std::str::from_utf8(value).expect("text"));
    texts.map(|text| text.split("/secrets/").next().expect("a place").to_owned()).collect()
}

/// On no host in particular.
fn at(application_id: i64) -> Place {
    Place { organisation_id: 1, application_id, host_id: 0, instance_id: None }
}

both_engines! {
    async fn values_go_in_and_never_come_out(server: TestServer) {
        let admin = server.admin();
        let shop = application(&admin, "shop", None).await;
        let path = format!("/applications/{shop}/secrets/");
        let masked = json!({"secrets": {"DB_PASSWORD": "******", "KEY": "******"}});
        let set = json!({"secrets": {"DB_PASSWORD": "correct horse", "KEY": " battery\nstaple "}});
        assert_eq!(admin.patch(&path, set).await.expect(200), masked);
        assert_eq!(admin.get(&path).await.expect(200), masked);
        // What is shown may be sent back.
        assert_eq!(admin.patch(&path, masked.clone()).await.expect(200), masked);
        let names = |expected: &[&str]| expected.iter().map(|&name| name.to_owned()).collect::<Vec<String>>();
        let kernel = server.kernel();
        let mut read = server.read().await;
        let opened = secrets::open(&mut read, kernel.sealer(), at(shop), &names(&["DB_PASSWORD", "KEY"])).await.expect("both");
        assert_eq!(&**opened["DB_PASSWORD"], b"correct horse");
        assert_eq!(&**opened["KEY"], b" battery\nstaple ");
        drop(read);
        for sql in [
            sql!("SELECT COUNT(*) FROM secrets WHERE sealed LIKE '%horse%' OR sealed NOT LIKE 'v1.%'"),
            sql!("SELECT COUNT(*) FROM audit_entries WHERE detail LIKE '%horse%' OR detail LIKE '%staple%'"),
        ] {
            assert_eq!(server.count(sql, args![]).await, 0);
        }
        admin.patch(&path, json!({"secrets": {"DB_PASSWORD": "newer", "KEY": null, "none": null}})).await.expect(200);
        assert_eq!(admin.get(&path).await.expect(200), json!({"secrets": {"DB_PASSWORD": "******"}}));
        assert_eq!(
            audited(&server, "application", "update").await,
            ["secrets: DB_PASSWORD set, KEY set", "secrets: DB_PASSWORD changed, KEY removed"]
        );
        admin.delete(&format!("/applications/{shop}/")).await.expect(200);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM secrets"), args![]).await, 0);
    }

    async fn an_applications_own_comes_before_the_organisations(server: TestServer) {
        let admin = server.admin();
        let (shop, other) = (application(&admin, "shop", None).await, application(&admin, "other", None).await);
        admin.patch("/secrets/", json!({"secrets": {"TOKEN": "everybody's", "WIDE": "wide"}})).await.expect(200);
        admin.patch(&format!("/applications/{shop}/secrets/"), json!({"secrets": {"TOKEN": "its own", "NARROW": "narrow"}})).await.expect(200);
        let sealer = server.kernel().sealer();
        let mut read = server.read().await;
        for (application_id, expected) in [(shop, &["NARROW", "TOKEN", "WIDE"][..]), (other, &["TOKEN", "WIDE"])] {
            let names = TaskSecrets::read(&mut read, (1, application_id), vec![], vec![]).await.expect("names");
            assert!(names.wide().iter().eq(expected.iter()), "{names:?}");
        }
        for (application_id, expected) in [(shop, &b"its own"[..]), (other, b"everybody's")] {
            let opened = secrets::open(&mut read, sealer, at(application_id), &["TOKEN".to_owned()]).await.expect("one");
            assert_eq!(&**opened["TOKEN"], expected);
        }
        let missing = secrets::open(&mut read, sealer, at(other), &["NARROW".to_owned()]).await;
        assert!(matches!(missing, Err(Error::Invalid { field, .. }) if field == "NARROW"));
        drop(read);
        // A row that is copied over another one does not open.
        let copy = sql!("UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'WIDE') WHERE name = 'NARROW'");
        server.run(copy, args![]).await;
        let mut read = server.read().await;
        let moved = secrets::open(&mut read, sealer, at(shop), &["NARROW".to_owned()]).await;
        assert!(matches!(moved, Err(Error::Internal(_))));
    }

    async fn the_narrowest_counts_and_goes_with_its_object(server: TestServer) {
        let admin = server.admin();
        let (shop, web, db) =
            (application(&admin, "shop", None).await, host(&admin, "web-1").await, host(&admin, "db-1").await);
        let (on_web, on_db) = (instance(&admin, shop, web).await, instance(&admin, shop, db).await);
        let of_instance = format!("/applications/{shop}/instances/{on_web}/secrets/");
        for (path, names) in [
            ("/secrets/".to_owned(), &["A", "B", "C", "D"][..]),
            (format!("/applications/{shop}/secrets/"), &["B", "C", "D"]),
            (format!("/hosts/{web}/secrets/"), &["C", "D", "HOST"]),
            (of_instance.clone(), &["D", "INSTANCE"]),
        ] {
            let secrets: serde_json::Map<String, Value> =
                names.iter().map(|name| ((*name).to_owned(), json!(format!("{name} of {path}")))).collect();
            let masked: serde_json::Map<String, Value> =
                names.iter().map(|name| ((*name).to_owned(), json!("******"))).collect();
            assert_eq!(admin.patch(&path, json!({"secrets": secrets})).await.expect(200), json!({"secrets": masked}));
            assert_eq!(admin.get(&path).await.expect(200), json!({"secrets": masked}), "{path}");
        }
        let sealer = server.kernel().sealer();
        let mut read = server.read().await;
        let on = |host_id, instance_id| Place { host_id, instance_id, ..at(shop) };
        let names = ["A", "B", "C", "D"].map(str::to_owned);
        let (own, hosts) = (format!("of /applications/{shop}"), format!("of /hosts/{web}"));
        for (place, expected) in [
            (on(web, Some(on_web)), ["A of ".to_owned(), format!("B {own}"), format!("C {hosts}"), format!("D {own}/instances/{on_web}")]),
            // A global hook sees the host's.
            (on(web, None), ["A of ".to_owned(), format!("B {own}"), format!("C {hosts}"), format!("D {hosts}")]),
            (on(db, Some(on_db)), ["A of ".to_owned(), format!("B {own}"), format!("C {own}"), format!("D {own}")]),
        ] {
            assert_eq!(origins(&secrets::open(&mut read, sealer, place, &names).await.expect("all")), expected, "{place:?}");
        }
        let elsewhere = secrets::open(&mut read, sealer, on(db, Some(on_db)), &["A".to_owned(), "INSTANCE".to_owned()]).await;
        assert!(matches!(elsewhere, Err(Error::Invalid { field, .. }) if field == "INSTANCE"), "another instance's own");
        drop(read);
        // A value opens where it was set alone, even under the same number.
        let copy = sql!(
            "UPDATE secrets SET sealed = (SELECT s.sealed FROM secrets s WHERE s.scope = 'application' AND s.name = 'C') \
             WHERE scope = 'host' AND name = 'C'"
        );
        server.run(copy, args![]).await;
        let mut read = server.read().await;
        let moved = secrets::open(&mut read, sealer, on(web, None), &["C".to_owned()]).await;
        assert!(matches!(moved, Err(Error::Internal(_))));
        drop(read);
        assert_eq!(audited(&server, "host", "update").await, ["secrets: C set, D set, HOST set"]);
        assert!(audited(&server, "application", "update").await.contains(&"secrets: D set, INSTANCE set".to_owned()));
        // They go with what they belong to.
        let by_scope = sql!("SELECT scope FROM secrets GROUP BY scope ORDER BY scope");
        let scopes = async || server.read().await.values::<String>(by_scope.clone(), args![]).await.expect("scopes");
        admin.delete(&format!("/applications/{shop}/instances/?id={on_web}&id={on_db}")).await.expect(200);
        assert_eq!(scopes().await, ["application", "host", "organisation"]);
        admin.delete(&format!("/hosts/{web}/")).await.expect(200);
        admin.delete(&format!("/applications/{shop}/")).await.expect(200);
        assert_eq!(scopes().await, ["organisation"]);
        admin.get(&of_instance).await.expect_error(404, 10004);
    }

    async fn who_may_change_host_or_instance_may_change_their_secrets(server: TestServer) {
        let admin = server.admin();
        let (shop, other, web) =
            (application(&admin, "shop", None).await, application(&admin, "other", None).await, host(&admin, "web-1").await);
        let on = instance(&admin, shop, web).await;
        let user = server.user("ann").await;
        let set = json!({"secrets": {"A": "bbbb"}});
        let (of_instance, of_host) =
            (format!("/applications/{shop}/instances/{on}/secrets/"), format!("/hosts/{web}/secrets/"));
        for path in [&of_instance, &of_host] {
            user.get(path).await.expect_error(404, 10004);
            user.patch(path, set.clone()).await.expect_error(404, 10004);
        }
        grant(&server, user.id, "application", shop, json!({"view_app": true})).await;
        grant(&server, user.id, "host", web, json!({"view_host": true})).await;
        for path in [&of_instance, &of_host] {
            user.get(path).await.expect(200);
            user.patch(path, set.clone()).await.expect_error(403, 10003);
        }
        grant(&server, user.id, "application", shop, json!({"edit_app": true})).await;
        grant(&server, user.id, "host", web, json!({"edit_host": true})).await;
        for path in [&of_instance, &of_host] {
            user.patch(path, set.clone()).await.expect(200);
            refused(&user, "PATCH", path, json!({"secrets": {"lower": "xxxx"}}), "secrets.lower").await;
        }
        admin.get(&format!("/applications/{other}/instances/{on}/secrets/")).await.expect_error(404, 10004);
        admin.patch(&format!("/applications/{shop}/instances/4711/secrets/"), set).await.expect_error(404, 10004);
    }

    async fn rights_names_and_values_are_checked(server: TestServer) {
        let admin = server.admin();
        let shop = application(&admin, "shop", None).await;
        let path = format!("/applications/{shop}/secrets/");
        let user = server.user("ann").await;
        let set = json!({"secrets": {"A": "bbbb"}});
        user.get("/secrets/").await.expect_error(403, 10003);
        user.patch(&path, set.clone()).await.expect_error(404, 10004);
        grant(&server, user.id, "application", shop, json!({"view_app": true})).await;
        user.patch(&path, set.clone()).await.expect_error(403, 10003);
        user.get(&path).await.expect(200);
        grant(&server, user.id, "application", shop, json!({"edit_app": true})).await;
        user.patch(&path, set).await.expect(200);
        for (secrets, field) in [
            (json!({"A": "xxxx", "A-B": "xxxx"}), "secrets.A-B"),
            (json!({"lower": "xxxx"}), "secrets.lower"),
            (json!({"_A": "xxxx"}), "secrets._A"),
            (json!({"A": "xxx"}), "secrets.A"),
            (json!({"A": "xxxx", "NONE": "******"}), "secrets.NONE"),
            (json!({"A": ""}), "secrets.A"),
            (json!({"A": "a\u{0}bcd"}), "secrets.A"),
            (json!({"A": 5}), "secrets.A"),
            (json!({"A": "x".repeat(16 * 1024 + 1)}), "secrets.A"),
        ] {
            refused(&admin, "PATCH", &path, json!({"secrets": secrets}), field).await;
        }
        let many: serde_json::Map<String, Value> = (0..101).map(|number| (format!("V{number}"), json!("xxxx"))).collect();
        refused(&admin, "PATCH", "/secrets/", json!({"secrets": many}), "secrets").await;
        assert_eq!(admin.get(&path).await.expect(200), json!({"secrets": {"A": "******"}}), "nothing half done");
    }
}
