//! Secrets: set, never shown, sealed, and opened for the hooks of their application alone.

use drover_inventory::secrets;
use drover_kernel::{Error, args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{application, audited, grant, refused};

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
        let opened = secrets::open(&mut read, kernel.sealer(), 1, shop, &names(&["DB_PASSWORD", "KEY"])).await.expect("both");
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
        assert_eq!(secrets::secrets_for(&mut read, 1, shop).await.expect("names"), ["NARROW", "TOKEN", "WIDE"]);
        assert_eq!(secrets::secrets_for(&mut read, 1, other).await.expect("names"), ["TOKEN", "WIDE"]);
        for (application_id, expected) in [(shop, &b"its own"[..]), (other, b"everybody's")] {
            let opened = secrets::open(&mut read, sealer, 1, application_id, &["TOKEN".to_owned()]).await.expect("one");
            assert_eq!(&**opened["TOKEN"], expected);
        }
        let missing = secrets::open(&mut read, sealer, 1, other, &["NARROW".to_owned()]).await;
        assert!(matches!(missing, Err(Error::Invalid { field, .. }) if field == "NARROW"));
        drop(read);
        // A row that is copied over another one does not open.
        let copy = sql!("UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'WIDE') WHERE name = 'NARROW'");
        server.run(copy, args![]).await;
        let mut read = server.read().await;
        let moved = secrets::open(&mut read, sealer, 1, shop, &["NARROW".to_owned()]).await;
        assert!(matches!(moved, Err(Error::Internal(_))));
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
