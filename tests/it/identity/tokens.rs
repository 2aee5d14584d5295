//! API tokens: shown once, kept as a hash, seen by their creator and administrators.

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::json;

use super::{audited, id, ids};

both_engines! {
    async fn a_value_is_shown_once(server: TestServer) {
        let ann = server.user("ann").await;
        let made = ann.post("/auth-tokens/", json!({"name": "ci", "description": "Builds"})).await.expect(200);
        let value = made["value"].as_str().expect("a value").to_owned();
        assert!(value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let shown = json!({"id": made["id"], "name": "ci", "value": "******", "description": "Builds", "creator": "ann"});
        let path = format!("/auth-tokens/{}/", id(&made));
        for client in [&*ann, &server.admin()] {
            assert_eq!(client.get(&path).await.expect(200), shown);
        }
        assert_eq!(ann.get(&format!("/auth-tokens/?value={value}")).await.expect(200)["results"], json!([shown]));
        assert_eq!(ids(&ann.get(&format!("/auth-tokens/?value={}", &value[..40])).await.expect(200)), [0_i64; 0]);
        assert_eq!(ids(&ann.get("/auth-tokens/?name=C&description=uild").await.expect(200)), [id(&made)]);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM auth_tokens WHERE token_hash = $1"), args![&value]).await, 0);
        let by_token = server.anonymous().with_token(&value);
        assert_eq!(by_token.get("/users/me/").await.expect(200)["username"], "ann");
        by_token.post("/users/actions/logout/", json!(null)).await.expect_error(409, 10006);
        ann.delete(&path).await.expect(200);
        by_token.get("/users/me/").await.expect(401);
        assert_eq!(audited(&server, "general", "delete").await, 1);
    }

    async fn tokens_are_their_creators_business(server: TestServer) {
        let (ann, bob) = (server.user("ann").await, server.user("bob").await);
        let of_ann = id(&ann.post("/auth-tokens/", json!({"name": "a"})).await.expect(200));
        let of_bob = id(&bob.post("/auth-tokens/", json!({"name": "b"})).await.expect(200));
        let path = format!("/auth-tokens/{of_ann}/");
        assert_eq!(ids(&bob.get("/auth-tokens/").await.expect(200)), [of_bob]);
        assert!(ids(&server.admin().get("/auth-tokens/").await.expect(200)).contains(&of_ann));
        bob.get(&path).await.expect_error(404, 10004);
        bob.patch(&path, json!({"name": "mine"})).await.expect_error(404, 10004);
        bob.patch("/auth-tokens/", json!({"id": of_ann, "name": "mine"})).await.expect_error(404, 10004);
        bob.delete(&path).await.expect_error(404, 10004);
        server.admin().delete(&path).await.expect(200);
        ann.get(&path).await.expect_error(404, 10004);
    }

    async fn a_change_finds_its_token_by_id_or_name(server: TestServer) {
        let ann = server.user("ann").await;
        let token = id(&ann.post("/auth-tokens/", json!({"name": "ci"})).await.expect(200));
        let path = format!("/auth-tokens/{token}/");
        let changed = ann.patch(&path, json!({"name": "builds", "value": "mine"})).await.expect(200);
        assert_eq!((&changed["name"], &changed["value"]), (&json!("builds"), &json!("******")));
        let changed = ann.patch("/auth-tokens/", json!({"id": token.to_string(), "name": "CI"})).await.expect(200);
        assert_eq!(changed["name"], "CI");
        let changed = ann.patch("/auth-tokens/", json!({"name": "CI", "description": "d"})).await.expect(200);
        assert_eq!((&changed["id"], &changed["description"]), (&json!(token), &json!("d")));
        let by_query = ann.patch(&format!("/auth-tokens/?id={token}"), json!({"description": "q"})).await.expect(200);
        assert_eq!(by_query["description"], "q");
        ann.post("/auth-tokens/", json!({"name": "CI"})).await.expect(200);
        for body in [json!({"name": "CI", "description": "x"}), json!({"name": "none"}), json!({"description": "x"})] {
            ann.patch("/auth-tokens/", body).await.expect_error(400, 10001);
        }
        ann.post("/auth-tokens/", json!({"name": ""})).await.expect_error(400, 10001);
    }
}
