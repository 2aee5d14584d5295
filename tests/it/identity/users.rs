//! Users: who may read and change whom, passwords, barring, the last administrator.

use drover_kernel::{args, sql};
use drover_tests::{ADMIN_PASSWORD, USER_PASSWORD, both_engines};
use serde_json::json;

use super::{application, audited, id, ids, module_rights, role};

both_engines! {
    async fn an_administrator_makes_and_finds_users(server: TestServer) {
        let admin = server.admin();
        let body = json!({"username": "ann", "password": "12345678", "email": "Ann@example.org", "phone": "0123"});
        let ann = admin.post("/users/", body).await.expect(200);
        let expected = json!({"id": ann["id"], "username": "ann", "name": "ann", "email": "Ann@example.org",
            "phone": "0123", "status": "enabled", "administrator": false});
        assert_eq!(ann, expected);
        let body = json!({"username": "bob@example.org", "name": "Bob", "status": "disabled", "administrator": "1"});
        let bob = admin.post("/users/", body).await.expect(200);
        assert_eq!((&bob["name"], &bob["administrator"]), (&json!("Bob"), &json!(true)));
        for (query, expected) in [
            ("username=ANN", vec![id(&ann)]),
            ("username=an", vec![]),
            ("email=ann%40EX", vec![id(&ann)]),
            ("phone=12", vec![id(&ann)]),
            ("status=disabled", vec![id(&bob)]),
            ("page_size=1&page=3", vec![id(&bob)]),
        ] {
            assert_eq!(ids(&admin.get(&format!("/users/?{query}")).await.expect(200)), expected, "{query}");
        }
        for (body, field) in [
            (json!({"password": "12345678"}), "username"),
            (json!({"username": "a b"}), "username"),
            (json!({"username": ""}), "username"),
            (json!({"username": "c", "password": "1234567"}), "password"),
            (json!({"username": "c", "status": "gone"}), "status"),
        ] {
            assert_eq!(admin.post("/users/", body).await.expect_error(400, 10001)["field"], field);
        }
        admin.post("/users/", json!({"username": "ANN"})).await.expect_error(409, 10006);
        assert_eq!(audited(&server, "general", "create").await, 4, "the first administrator with a token, and two");
    }

    async fn others_see_and_change_themselves_alone(server: TestServer) {
        let (ann, bob) = (server.user("ann").await, server.user("bob").await);
        let (own, other) = (format!("/users/{}/", ann.id), format!("/users/{}/", bob.id));
        let changed = ann.patch(&own, json!({"email": "a@example.org", "username": "x", "status": "disabled"})).await;
        let changed = changed.expect(200);
        assert_eq!(changed["email"], "a@example.org");
        assert_eq!((&changed["username"], &changed["status"]), (&json!("ann"), &json!("enabled")));
        assert_eq!(ann.get(&own).await.expect(200), changed);
        assert_eq!(ann.patch(&own, json!({"name": "Ann"})).await.expect(200)["name"], "Ann");
        assert_eq!(ann.patch(&own, json!({"name": " "})).await.expect(200)["name"], "ann");
        ann.patch(&own, json!({"administrator": true})).await.expect_error(403, 10003);
        ann.get(&other).await.expect_error(404, 10004);
        ann.patch(&other, json!({"email": "x"})).await.expect_error(404, 10004);
        for path in ["/users/", "/roles/", "/roles/1/", "/applications/1/authorization/users/"] {
            ann.get(path).await.expect_error(403, 10003);
        }
        ann.post("/users/", json!({"username": "eve"})).await.expect_error(403, 10003);
        ann.post(&format!("{other}actions/disable/"), json!(null)).await.expect_error(403, 10003);
        ann.post(&format!("{own}roles/"), json!([{"id": 1}])).await.expect_error(403, 10003);
        for list in ["roles/", "application/perms/", "host/perms/", "system/perms/"] {
            ann.get(&format!("{own}{list}")).await.expect(200);
            ann.get(&format!("{other}{list}")).await.expect_error(404, 10004);
        }
        server.admin().get("/users/99999/").await.expect_error(404, 10004);
        server.admin().get("/users/x/").await.expect_error(404, 10004);
    }

    async fn a_password_is_changed_by_who_knows_it(server: TestServer) {
        let ann = server.user("ann").await;
        let other_session = server.sign_in("ann", USER_PASSWORD).await;
        let path = format!("/users/{}/actions/change-password/", ann.id);
        let body = |present: &str, future: &str| json!({"original_password": present, "new_password": future});
        let wrong = ann.post(&path, body("wrong password", "another password")).await.expect_error(400, 300_001);
        assert_eq!(wrong["field"], "original_password");
        let short = ann.post(&path, body(USER_PASSWORD, "short")).await.expect_error(400, 10001);
        assert_eq!(short["field"], "new_password");
        ann.post(&path, json!({"new_password": "another password"})).await.expect_error(400, 10001);
        other_session.get("/users/me/").await.expect(200);
        ann.post(&path, body(USER_PASSWORD, " another password ")).await.expect(200);
        ann.get("/users/me/").await.expect(200);
        other_session.get("/users/me/").await.expect(401);
        server.sign_in("ann", " another password ").await;
        server.admin().post(&path, body("wrong password", "set by another")).await.expect_error(400, 300_001);
        server.admin().post(&path, json!({"new_password": "set by another"})).await.expect(200);
        ann.get("/users/me/").await.expect(401);
        server.sign_in("ann", "set by another").await;
        assert_eq!(audited(&server, "general", "change_password").await, 2);
    }

    async fn who_guesses_the_present_password_is_slowed_down(server: TestServer) {
        let ann = server.user("ann").await;
        let path = format!("/users/{}/actions/change-password/", ann.id);
        let body = json!({"original_password": "wrong password", "new_password": "another password"});
        for _ in 0..5 {
            ann.post(&path, body.clone()).await.expect_error(400, 300_001);
        }
        ann.post(&path, body).await.expect_error(429, 10008);
    }

    async fn barring_ends_what_is_open(server: TestServer) {
        let admin = server.admin();
        let ann = server.user("ann").await;
        let token = ann.post("/auth-tokens/", json!({"name": "t"})).await.expect(200);
        let by_token = server.anonymous().with_token(token["value"].as_str().expect("a value"));
        by_token.get("/users/me/").await.expect(200);
        let actions = format!("/users/{}/actions", ann.id);
        for _ in 0..2 {
            admin.post(&format!("{actions}/disable/"), json!(null)).await.expect(200);
        }
        ann.get("/users/me/").await.expect(401);
        by_token.get("/users/me/").await.expect(401);
        admin.post(&format!("{actions}/enable/"), json!(null)).await.expect(200);
        ann.get("/users/me/").await.expect(401);
        by_token.get("/users/me/").await.expect(401);
        server.sign_in("ann", USER_PASSWORD).await.get("/users/me/").await.expect(200);
        assert_eq!((audited(&server, "general", "disable").await, audited(&server, "general", "enable").await), (1, 1));
    }

    async fn the_last_administrator_stays(server: TestServer) {
        let admin = server.admin();
        let first = id(&admin.get("/users/me/").await.expect(200));
        let second = server.user("second").await;
        let second_path = format!("/users/{}/", second.id);
        admin.post(&format!("/users/{first}/actions/disable/"), json!(null)).await.expect_error(409, 10006);
        admin.patch(&format!("/users/{first}/"), json!({"administrator": false})).await.expect_error(409, 10006);
        admin.patch(&second_path, json!({"administrator": true})).await.expect(200);
        admin.post(&format!("{second_path}actions/disable/"), json!(null)).await.expect(200);
        admin.patch(&format!("/users/{first}/"), json!({"administrator": false})).await.expect_error(409, 10006);
        admin.post(&format!("{second_path}actions/enable/"), json!(null)).await.expect(200);
        admin.post(&format!("/users/{first}/actions/disable/"), json!(null)).await.expect(200);
        let second = server.sign_in("second", USER_PASSWORD).await;
        second.get("/users/").await.expect(200);
        second.post(&format!("{second_path}actions/disable/"), json!(null)).await.expect_error(409, 10006);
    }

    async fn two_administrators_cannot_bar_each_other(server: TestServer) {
        let (ann, bob) = (server.user("ann").await, server.user("bob").await);
        for user in [&ann, &bob] {
            server.admin().patch(&format!("/users/{}/", user.id), json!({"administrator": true})).await.expect(200);
        }
        let first = id(&server.admin().get("/users/me/").await.expect(200));
        server.admin().patch(&format!("/users/{first}/"), json!({"administrator": false})).await.expect(200);
        let (of_ann, of_bob) = (format!("/users/{}/actions/disable/", ann.id), format!("/users/{}/actions/disable/", bob.id));
        let (one, other) = tokio::join!(bob.post(&of_ann, json!(null)), ann.post(&of_bob, json!(null)));
        let (one, other) = (one.status.min(other.status), one.status.max(other.status));
        assert!(one == 200 && matches!(other, 401 | 409), "{one} {other}");
        let left = sql!("SELECT COUNT(*) FROM users WHERE administrator AND status = 'enabled'");
        assert_eq!(server.count(left, args![]).await, 1);
    }

    async fn another_organisation_is_another_world(server: TestServer) {
        let admin = server.admin();
        let (ann, bob) = (server.user("ann").await, server.user("bob").await);
        let shop = application(&admin, "shop").await;
        let ops = role(&server, "ops").await;
        let token = id(&bob.post("/auth-tokens/", json!({"name": "t"})).await.expect(200));
        server.run(sql!("INSERT INTO organisations (id, name, created_at) VALUES (2, 'other', 0)"), args![]).await;
        let sql = sql!("UPDATE users SET organisation_id = 2, administrator = TRUE WHERE id = $1");
        server.run(sql, args![ann.id]).await;
        assert_eq!(ids(&ann.get("/users/").await.expect(200)), [ann.id]);
        for list in ["/roles/", "/auth-tokens/", "/applications/"] {
            assert_eq!(ids(&ann.get(list).await.expect(200)), [0_i64; 0], "{list}");
        }
        let of_bob = format!("/users/{}", bob.id);
        for path in [
            format!("{of_bob}/"),
            format!("{of_bob}/roles/"),
            format!("{of_bob}/system/perms/"),
            format!("{of_bob}/application/perms/"),
            format!("/roles/{ops}/"),
            format!("/roles/{ops}/users/"),
            format!("/roles/{ops}/host/perms/"),
            format!("/auth-tokens/{token}/"),
            format!("/applications/{shop}/authorization/users/"),
        ] {
            ann.get(&path).await.expect_error(404, 10004);
        }
        let rights = json!([{"user": ann.id, "permission": {"view": true}}]);
        ann.patch(&format!("/applications/{shop}/authorization/users/"), rights).await.expect_error(404, 10004);
        let rights = json!({"authorizations": [{"id": shop, "permission": {"view": true}}]});
        ann.post(&format!("/users/{}/application/perms/", ann.id), rights).await.expect_error(400, 10001);
        ann.post(&format!("{of_bob}/actions/disable/"), json!(null)).await.expect_error(404, 10004);
        ann.post(&format!("{of_bob}/actions/change-password/"), json!({"new_password": "12345678"})).await.expect(404);
        ann.post(&format!("/users/{}/roles/", ann.id), json!([ops])).await.expect_error(400, 10001);
        let own = id(&ann.post("/roles/", json!({"name": "ops"})).await.expect(200));
        ann.post(&format!("/roles/{own}/users/"), json!([bob.id])).await.expect_error(400, 10001);
        ann.delete(&format!("/roles/{ops}/")).await.expect_error(404, 10004);
        ann.delete(&format!("/auth-tokens/{token}/")).await.expect_error(404, 10004);
    }

    async fn one_reads_oneself_with_all_one_may_do(server: TestServer) {
        let ann = server.user("ann").await;
        let role = role(&server, "deployers").await;
        server.admin().post(&format!("/roles/{role}/users/"), json!([{"id": ann.id}])).await.expect(200);
        module_rights(&server, &format!("roles/{role}"), "application", json!({"enable_app_mgmt": true})).await;
        module_rights(&server, &format!("users/{}", ann.id), "application", json!({"edit_app": true})).await;
        module_rights(&server, &format!("users/{}", ann.id), "host", json!({"edit_host": true})).await;
        let me = ann.get("/users/me/").await.expect(200);
        assert_eq!((&me["id"], &me["roles"][0]["name"]), (&json!(ann.id), &json!("deployers")));
        let module = |name: &str| {
            let modules = me["permissions"].as_array().expect("modules");
            modules.iter().find(|module| module["module_name"] == name).expect("the module")["permissions"].clone()
        };
        assert_eq!(me["permissions"].as_array().map(Vec::len), Some(7));
        assert_eq!(module("application")["edit_app"], true);
        assert_eq!(module("application")["view_app"], false);
        assert_eq!(module("host")["edit_host"], false, "without its flag a right has no effect");
        let admin = server.admin().get("/users/me/").await.expect(200);
        assert_eq!(admin["permissions"][0]["permissions"]["create_app"], true);
    }

    async fn there_is_one_first_administrator(server: TestServer) {
        let work = server.work();
        let made = drover_identity::ensure_administrator(&work, None).await.expect("no error");
        assert_eq!(made, None);
        server.run(sql!("DELETE FROM users"), args![]).await;
        let made = drover_identity::ensure_administrator(&work, None).await.expect("no error").expect("a password");
        server.sign_in("admin", &made).await.get("/users/").await.expect(200);
        assert!(drover_identity::ensure_administrator(&work, Some("short".to_owned())).await.is_err());
        assert!(drover_identity::create_token(&work, "nobody", "t").await.is_err());
        assert_ne!(made, ADMIN_PASSWORD);
    }
}
