//! Uploads that are not taken, each with its reason.

use axum::http::Method;
use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::json;

use super::*;
use crate::deploys::grant;

both_engines! {
    async fn a_wrong_digest_is_told_with_both(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let announced = Digest::of(b"something else").to_string();
        let answer = announce(&shop, content.len(), &metadata("1.0", &announced)).await;
        let path = answer.header("location").trim_start_matches("/api/v1").to_owned();
        let uploading = Uploading { client: shop.admin.clone(), path };
        uploading.send(0, &content).await.expect(204);
        let told = uploading.end().await;
        let reason = told["reason"].as_str().expect("a reason");
        assert!(told["state"] == "refused" && reason.contains(&announced), "{told}");
        assert!(reason.contains(&Digest::of(&content).to_string()), "{told}");
        no_upload_is_kept(&server).await;
        // The version is free again.
        assert_eq!(uploaded(&shop, "1.0", &content).await["state"], "ready");
        let list = shop.admin.get(&format!("/applications/{}/archives/?state=ready", shop.application)).await.expect(200);
        assert_eq!((&list["count"], &list["results"][0]["version"]), (&json!(1), &json!("1.0")));
    }

    async fn a_piece_with_a_wrong_checksum_is_not_kept(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let uploading = Uploading::begin(&shop, "1.0", &content).await;
        uploading.send(0, &content[..512]).await.expect(204);
        let checksum = |bytes: &[u8]| {
            let digest = hex::decode(Digest::of(bytes).to_string()).expect("digits");
            format!("sha256 {}", BASE64.encode(digest))
        };
        let sent = async |bytes: &[u8], checksum: &str| {
            let client = uploading.at(512).with_header("upload-checksum", checksum);
            client.send_bytes(Method::PATCH, &uploading.path, bytes.to_vec()).await
        };
        assert_eq!(sent(b"spoiled", &checksum(b"sent")).await.status, 460);
        assert_eq!(uploading.offset().await, "512");
        sent(b"x", "md5 abc").await.expect_error(400, 10001);
        sent(&content[512..], &checksum(&content[512..])).await.expect(204);
        assert_eq!(uploading.end().await["state"], "ready");
    }

    async fn headers_that_make_no_sense(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let digest = Digest::of(&content).to_string();
        for (length, metadata, field) in [
            (0, metadata("1.0", &digest), "Upload-Length"),
            (usize::MAX, metadata("1.0", &digest), "Upload-Length"),
            (9, "version".to_owned(), "Upload-Metadata.version"),
            (9, metadata("1.0", "abc"), "Upload-Metadata.sha256"),
        ] {
            let answer = announce(&shop, length, &metadata).await;
            assert!(matches!(answer.status, 400 | 413) && answer.body["field"] == field, "{}", answer.body);
        }
        let uploading = Uploading::begin(&shop, "1.0", &content).await;
        let (client, path) = (&uploading.client, &uploading.path);
        let kind = client.with_header("content-type", "application/offset+octet-stream");
        assert_eq!(kind.send_bytes(Method::PATCH, path, vec![0]).await.expect_error(400, 10001)["field"], "Upload-Offset");
        let kind = client.with_header("content-type", "application/json").with_header("upload-offset", "0");
        assert_eq!(kind.send_bytes(Method::PATCH, path, vec![0]).await.status, 415);
        let old = uploading.at(0).with_header("tus-resumable", "0.2.2");
        assert_eq!(old.send_bytes(Method::PATCH, path, vec![0]).await.status, 412);
        let longer = [&content[..], b"more"].concat();
        assert_eq!(uploading.send(0, &longer).await.status, 413);
        let here: usize = uploading.offset().await.parse().expect("a number");
        uploading.send(here, &content[here..]).await.expect(204);
        assert_eq!(uploading.end().await["state"], "ready");
    }

    async fn eight_gibibytes_are_taken_and_no_byte_more(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let digest = Digest::of(b"").to_string();
        let error = announce(&shop, (8 << 30) + 1, &metadata("1.0", &digest)).await.expect_error(413, 10007);
        assert_eq!(error["field"], "Upload-Length", "{error}");
        assert!(error["message"].as_str().is_some_and(|why| why.contains("at most 8589934592 bytes")), "{error}");
        let answer = announce(&shop, 8 << 30, &metadata("1.0", &digest)).await;
        if answer.status == 503 {
            // This machine has no room for it, and says so before anything comes.
            assert!(answer.body["message"].as_str().is_some_and(|why| why.contains("disk")), "{}", answer.body);
            return;
        }
        answer.expect(201);
        let found = shop.admin.get(&format!("/applications/{}/archives/", shop.application)).await.expect(200);
        assert_eq!((&found["results"][0]["size_bytes"], &found["results"][0]["offset"]), (&json!(8_i64 << 30), &json!(0)));
    }

    async fn there_are_so_many_unfinished_ones_and_no_more(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        for number in 0..5 {
            Uploading::begin(&shop, &number.to_string(), &content).await;
        }
        let answer = announce(&shop, content.len(), &metadata("5", &Digest::of(&content).to_string())).await;
        answer.expect_error(409, 10006);
        let huge = announce(&shop, 8 << 30, &metadata("huge", &Digest::of(b"").to_string())).await;
        assert!(matches!(huge.status, 409 | 503), "{}", huge.body);
    }

    async fn one_organisation_that_announces_a_lot_keeps_no_other_from_it(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let uploading = Uploading::begin(&shop, "0", &content).await;
        server.run(sql!("INSERT INTO organisations (id, name, created_at) VALUES (4711, 'other', 0)"), args![]).await;
        let another = || sql!(
            "INSERT INTO archives (organisation_id, application_id, version, name, state, size_bytes, sha256, creator, \
             created_at, touched_at) SELECT 4711, application_id, 'other ' || CAST($1 AS TEXT), name, state, $2, sha256, \
             creator, created_at, touched_at FROM archives WHERE version = '0'"
        );
        for number in 0..100 {
            server.run(another(), args![number, 8_i64 << 30]).await;
        }
        // They are another's: of this application there is one.
        let other = crate::deploys::id(&shop.admin.post("/applications/", json!({"name": "other"})).await.expect(200));
        server.run(sql!("UPDATE archives SET application_id = $1 WHERE organisation_id = 4711"), args![other]).await;
        let answer = announce(&shop, content.len(), &metadata("1", &Digest::of(&content).to_string())).await;
        answer.expect(201);
        server.run(sql!("UPDATE archives SET organisation_id = 1"), args![]).await;
        let answer = announce(&shop, content.len(), &metadata("2", &Digest::of(&content).to_string())).await;
        let error = answer.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|why| why.contains("uploads of this organisation")), "{error}");
        drop(uploading);
    }

    async fn a_key_that_was_used_for_another_upload_is_refused(server: TestServer) {
        let mut shop = Shop::new(&server, 0).await;
        let content = tar(&[("index.html", b"one")]);
        let digest = Digest::of(&content).to_string();
        shop.admin = shop.admin.with_header("idempotency-key", "one");
        let first = announce(&shop, content.len(), &metadata("1", &digest)).await.expect(201);
        // The same again is the same upload.
        assert_eq!(announce(&shop, content.len(), &metadata("1", &digest)).await.expect(200)["id"], first["id"]);
        for (length, version) in [(content.len(), "2"), (content.len() + 1, "1")] {
            let error = announce(&shop, length, &metadata(version, &digest)).await.expect_error(400, 10001);
            assert_eq!(error["field"], "Idempotency-Key");
        }
    }

    async fn members_that_no_archive_may_have(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let special = |name: &str, kind: tar::EntryType, target: &str| {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_mode(0o644);
            header.set_cksum();
            [header.as_bytes().as_slice(), &[0; 1024]].concat()
        };
        let whole = tar(&[("index.html", &[b'x'; 3000])]);
        let cases = [
            (special("/etc/passwd", tar::EntryType::Regular, ""), "`/etc/passwd`: its name is an absolute path"),
            (special("a/../../b", tar::EntryType::Regular, ""), "`a/../../b`: its name holds `..`"),
            (special("null", tar::EntryType::Char, ""), "`null`: it is a device"),
            (special("out", tar::EntryType::Symlink, "../x"), "`out`: it is a link that leads out of the archive"),
            (special("hard", tar::EntryType::Link, "x"), "`hard`: it is a hard link"),
            (special("a/b", tar::EntryType::Symlink, "c/../d"), "`a/b`: it is a link with `..` behind a name"),
            (tar(&[(&"a/".repeat(201), b"deep")]), "its name has more than 200 parts"),
            (whole[..1500].to_vec(), "it breaks off in the middle"),
            (b"MZ no archive at all".repeat(100), "it is no archive that is known here"),
            (vec![0; 2048], "it is no archive that is known here"),
        ];
        for (number, (content, expected)) in cases.iter().enumerate() {
            let told = uploaded(&shop, &format!("1.{number}"), content).await;
            assert!(told["state"] == "refused" && told["reason"].as_str().is_some_and(|why| why.contains(expected)), "{told}");
        }
        let kept = server.count(sql!("SELECT COUNT(*) FROM archives WHERE artifact_digest IS NOT NULL"), args![]).await;
        assert_eq!(kept, 0);
    }

    async fn who_may_only_look_uploads_nothing(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let eve = server.user("eve").await;
        grant(&server, eve.id, shop.application, &["view_app"]).await;
        let content = tar(&[("index.html", b"one")]);
        let uploading = Uploading::begin(&shop, "1.0", &content).await;
        let path = format!("/applications/{}/archives/", shop.application);
        assert_eq!(eve.get(&path).await.expect(200)["count"], 1);
        eve.post(&path, json!({})).await.expect_error(403, 10003);
        eve.delete(&uploading.path).await.expect_error(403, 10003);
        eve.patch(&uploading.path, json!({})).await.expect_error(403, 10003);
        // An archive of one application is none of another's.
        let other = crate::deploys::id(&shop.admin.post("/applications/", json!({"name": "other"})).await.expect(200));
        let moved = uploading.path.replacen(&format!("/{}/", shop.application), &format!("/{other}/"), 1);
        shop.admin.get(&moved).await.expect_error(404, 10004);
        shop.admin.delete(&moved).await.expect_error(404, 10004);
    }
}
