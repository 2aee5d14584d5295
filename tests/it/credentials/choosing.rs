//! Which credential a repository has, and who may say so.

use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines};
use serde_json::{Value, json};

use super::{KEY, PASSWORDS, key, password};
use crate::deploys::{grant, id};

const URL: &str = "https://git.example.com/shop.git";

/// Keys of a host; only their form matters here.
const HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const OTHER_HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

/// Another one each time.
fn certificate() -> String {
    rcgen::generate_simple_self_signed(vec!["git.example.com".to_owned()]).expect("a certificate").cert.pem()
}

async fn application(server: &TestServer, name: &str) -> (i64, String) {
    let shop = id(&server.admin().post("/applications/", json!({"name": name})).await.expect(200));
    (shop, format!("/applications/{shop}/deploy-settings/"))
}

async fn count(server: &TestServer) -> i64 {
    server.count(sql!("SELECT COUNT(*) FROM repository_credentials"), args![]).await
}

async fn sealed(server: &TestServer) -> Vec<String> {
    let sql = sql!("SELECT sealed_secret FROM repository_credentials ORDER BY id");
    server.read().await.values(sql, args![]).await.expect("the credentials")
}

both_engines! {
    async fn a_stored_credential_is_named_by_its_id(server: TestServer) {
        let admin = server.admin();
        let (one, two) = (password(&admin, "ci").await, key(&admin, "deploy").await);
        let (_, settings) = application(&server, "shop").await;
        for said in [json!(one), json!(one.to_string()), json!({"id": one, "type": "PASSWORD", "password": "******"})] {
            let body = json!({"repository": {"url": URL, "credential": said}});
            let seen = admin.patch(&settings, body).await.expect(200)["repository"]["credential"].clone();
            assert_eq!(seen, json!({"id": one, "name": "ci", "type": "PASSWORD", "username": "ada", "password": "******"}));
        }
        let seen = admin.get(&settings).await.expect(200);
        assert_eq!(admin.patch(&settings, seen.clone()).await.expect(200), seen, "what was read can be sent back");
        let moved = admin.patch(&settings, json!({"repository": {"url": "git@git.example.com:shop.git", "credential": two}})).await.expect(200);
        assert_eq!(moved["repository"]["credential"]["private_key"], "******");
        for (said, field) in [
            (json!(999), "repository.credential"),
            (json!("x"), "repository.credential"),
            (json!([one]), "repository.credential"),
            (json!({"id": 999}), "repository.credential"),
            (json!({"type": "PASSWORD", "username": "u"}), "repository.credential"),
            (json!({"type": "TOKEN"}), "repository.credential"),
            (json!({"type": "SSH_PRIVATE_KEY", "private_key": "key"}), "repository.credential.private_key"),
            (json!({"username": "a\nb", "password": "p"}), "repository.credential.username"),
            (json!({"username": "u", "password": "******"}), "repository.credential.password"),
        ] {
            let error = admin.patch(&settings, json!({"repository": {"credential": said}})).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{error}");
        }
        // A key opens nothing over https.
        let error = admin.patch(&settings, json!({"repository": {"url": URL}})).await.expect_error(400, 10001);
        assert_eq!(error["field"], "repository.credential");
        assert_eq!((count(&server).await, admin.get(&settings).await.expect(200)), (2, moved));
    }

    async fn a_credential_of_its_own_goes_with_the_repository(server: TestServer) {
        let admin = server.admin();
        let (shop, settings) = application(&server, "shop").await;
        let inline = json!({"type": "PASSWORD", "username": "bob", "password": "first-s3cret"});
        let seen = admin.patch(&settings, json!({"repository": {"url": URL, "credential": inline}})).await.expect(200);
        let expected = json!({"id": null, "name": null, "type": "PASSWORD", "username": "bob", "password": "******"});
        assert_eq!(seen["repository"]["credential"], expected);
        assert_eq!(admin.patch(&settings, seen.clone()).await.expect(200), seen, "what was read can be sent back");
        let before = sealed(&server).await;
        let change = json!({"repository": {"credential": {"username": "eve", "password": "******"}}});
        assert_eq!(admin.patch(&settings, change).await.expect(200)["repository"]["credential"]["username"], "eve");
        assert_eq!(sealed(&server).await, before, "the secret stays");
        let change = json!({"repository": {"credential": {"password": "second-s3cret"}}});
        assert_eq!(admin.patch(&settings, change).await.expect(200)["repository"]["credential"]["username"], "eve");
        assert_ne!(sealed(&server).await, before);
        let told: Vec<String> = server.read().await.values(sql!("SELECT detail FROM audit_entries ORDER BY id"), args![]).await.expect("the audit");
        assert!(told.iter().any(|detail| detail == "secret of the credential: changed"), "{told:?}");
        assert!(!told.join("\n").contains("s3cret"), "{told:?}");
        assert_eq!(admin.get(PASSWORDS).await.expect(200)["count"], 0, "it is nobody else's");
        let change = json!({"repository": {"url": "ssh://h/x", "credential": {"username": "git", "private_key": KEY}}});
        assert_eq!(admin.patch(&settings, change).await.expect(200)["repository"]["credential"]["type"], "SSH_PRIVATE_KEY");
        assert_eq!(count(&server).await, 1);
        admin.patch(&settings, json!({"repository": {"credential": null}})).await.expect(200);
        assert_eq!(count(&server).await, 0);
        admin.patch(&settings, json!({"repository": {"credential": {"username": "git", "private_key": KEY}}})).await.expect(200);
        admin.delete(&format!("/applications/{shop}/")).await.expect(200);
        assert_eq!(count(&server).await, 0);
    }

    async fn a_templates_own_credential_is_copied_to_who_leaves_it(server: TestServer) {
        let admin = server.admin();
        let (shop, settings) = application(&server, "shop").await;
        let template = json!({"deploy_path": "/srv", "applications": [shop],
            "repository": {"url": URL, "credential": {"username": "bob", "password": "s3cret"}}});
        let path = format!("/applications/deploy-templates/{}/", id(&admin.post("/applications/deploy-templates/", template).await.expect(200)));
        let seen = admin.get(&settings).await.expect(200)["repository"].clone();
        assert_eq!((&seen["credential"]["username"], &seen["credential"]["password"]), (&json!("bob"), &json!("******")));
        admin.patch(&path, json!({"applications": []})).await.expect(200);
        assert_eq!(admin.get(&settings).await.expect(200)["repository"], seen);
        assert_eq!(count(&server).await, 2);
        admin.delete(&path).await.expect(200);
        assert_eq!((count(&server).await, admin.get(&settings).await.expect(200)["repository"].clone()), (1, seen));
    }

    async fn nobody_sends_a_secret_where_they_want_that_they_could_not_read(server: TestServer) {
        let admin = server.admin();
        let number = password(&admin, "ci").await;
        let (shop, settings) = application(&server, "shop").await;
        let user = server.user("ann").await;
        grant(&server, user.id, shop, &["view_app", "edit_app"]).await;
        let elsewhere = "https://evil.example.com/x.git";
        let stored = json!({"repository": {"url": elsewhere, "credential": number}});
        user.patch(&settings, stored).await.expect_error(403, 10003);
        admin.patch(&settings, json!({"repository": {"url": URL, "credential": number}})).await.expect(200);
        // Another branch is fine, and so is what was read and is sent back; another place is not.
        let seen = user.patch(&settings, json!({"repository": {"branch": "next"}})).await.expect(200);
        assert_eq!(user.patch(&settings, seen.clone()).await.expect(200), seen);
        for repository in [
            json!({"url": elsewhere}),
            json!({"url": elsewhere, "credential": number}),
            json!({"url": elsewhere, "credential": seen["repository"]["credential"]}),
        ] {
            user.patch(&settings, json!({"repository": repository})).await.expect_error(403, 10003);
        }
        assert_eq!(admin.get(&settings).await.expect(200), seen, "nothing was changed");
        // Neither is another host that claims to be at that place.
        admin.patch(&settings, json!({"repository": {"ca_certificate": certificate()}})).await.expect(200);
        let seen = user.patch(&settings, json!({"repository": {"branch": "more"}})).await.expect(200);
        assert_eq!(user.patch(&settings, seen.clone()).await.expect(200), seen);
        for pin in [Value::Null, json!(certificate())] {
            let kept = json!({"repository": {"ca_certificate": pin}});
            user.patch(&settings, kept).await.expect_error(403, 10003);
            let named = json!({"repository": {"ca_certificate": pin, "credential": number}});
            user.patch(&settings, named).await.expect_error(403, 10003);
        }
        let ssh = json!({"repository": {"url": "ssh://git@git.example.com/x.git", "ca_certificate": null, "host_key": HOST_KEY,
            "credential": {"username": "git", "password": "s3cret"}}});
        admin.patch(&settings, ssh).await.expect(200);
        for key in [Value::Null, json!(OTHER_HOST_KEY)] {
            user.patch(&settings, json!({"repository": {"host_key": key}})).await.expect_error(403, 10003);
        }
        let own = json!({"repository": {"host_key": null, "credential": {"username": "git", "password": "own"}}});
        user.patch(&settings, own).await.expect(200);
        admin.patch(&settings, json!({"repository": {"url": URL, "host_key": null, "credential": number}})).await.expect(200);
        // With a secret of one's own, or with none.
        let own = json!({"repository": {"url": elsewhere, "credential": {"username": "ann", "password": "own"}}});
        user.patch(&settings, own).await.expect(200);
        let error = user.patch(&settings, json!({"repository": {"url": URL, "credential": {"username": "ann", "password": "******"}}})).await;
        error.expect_error(403, 10003);
        user.patch(&settings, json!({"repository": {"url": URL, "credential": null}})).await.expect(200);

        // Nor by way of a template: a part of its repository makes a copy, of the credential as well.
        let template = json!({"deploy_path": "/srv", "repository": {"url": URL, "credential": {"username": "bob", "password": "s3cret"}}});
        let template = id(&admin.post("/applications/deploy-templates/", template).await.expect(200));
        user.patch(&settings, json!({"repository": null})).await.expect(200);
        user.post(&format!("{settings}template/"), json!({"id": template})).await.expect(200);
        user.patch(&settings, json!({"repository": {"url": elsewhere}})).await.expect_error(403, 10003);
        let seen = user.patch(&settings, json!({"repository": {"branch": "next"}})).await.expect(200);
        assert_eq!(seen["repository"]["credential"]["username"], "bob");
        user.patch(&settings, json!({"repository": {"url": elsewhere}})).await.expect_error(403, 10003);
        user.delete(&format!("{settings}template/?id={template}")).await.expect(200);
        user.patch(&settings, json!({"repository": {"url": elsewhere}})).await.expect_error(403, 10003);
        assert_eq!(admin.get(&settings).await.expect(200)["repository"]["url"], Value::from(URL));
    }
}
