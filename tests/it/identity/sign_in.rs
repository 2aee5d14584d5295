//! Signing in and out, sessions, cookies, and how guessing is slowed down.

use std::time::Duration;

use drover_kernel::proxies::{Proxies, ProxyHeader, network};
use drover_kernel::{Settings, args, sql};
use drover_tests::{ADMIN_PASSWORD, Answer, Client, Engine, TestServer, USER_PASSWORD, both_engines, with_server};
use serde_json::json;

async fn attempt(client: &Client, username: &str, password: &str) -> Answer {
    client.post("/users/actions/login/", json!({"username": username, "password": password})).await
}

both_engines! {
    async fn a_session_works_as_token_until_signing_out(server: TestServer) {
        let nobody = server.anonymous();
        let answer = attempt(&nobody, "ADMIN", ADMIN_PASSWORD).await.expect(200);
        assert_eq!(answer["user"]["username"], "admin");
        let client = nobody.with_token(answer["token"].as_str().expect("a token"));
        assert_eq!(client.get("/users/me/").await.expect(200)["username"], "admin");
        client.post("/users/actions/logout/", json!(null)).await.expect(200);
        client.get("/users/me/").await.expect_error(401, 10002);
        nobody.get("/users/me/").await.expect_error(401, 10002);
    }

    async fn a_cookie_changes_nothing_without_its_csrf_value(server: TestServer) {
        let answer = attempt(&server.anonymous(), "admin", ADMIN_PASSWORD).await;
        let set = answer.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok());
        let set: Vec<String> = set.map(str::to_owned).collect();
        assert!(set[0].starts_with("drover_session=") && set[0].contains("HttpOnly"), "{set:?}");
        assert!(set.iter().all(|cookie| cookie.contains("SameSite=Lax") && !cookie.contains("Secure")), "{set:?}");
        assert!(set[1].starts_with("drover_csrf=") && !set[1].contains("HttpOnly"), "{set:?}");
        let (session, csrf) = (answer.cookie("drover_session"), answer.cookie("drover_csrf").expect("a cookie"));
        assert_eq!(answer.body["csrf_token"], csrf);
        let cookie = format!("theme=dark; drover_session={}; other=1", session.expect("a cookie"));
        let client = server.anonymous().with_header("cookie", &cookie);
        client.get("/users/").await.expect(200);
        let refused = client.post("/roles/", json!({"name": "r"})).await.expect_error(403, 10003);
        assert!(refused["message"].as_str().is_some_and(|text| text.contains("x-csrf-token")), "{refused}");
        let wrong = client.with_header("x-csrf-token", &"0".repeat(64));
        wrong.post("/roles/", json!({"name": "r"})).await.expect_error(403, 10003);
        let right = client.with_header("x-csrf-token", &csrf);
        right.post("/roles/", json!({"name": "r"})).await.expect(200);
        let out = right.post("/users/actions/logout/", json!(null)).await;
        assert_eq!(out.cookie("drover_session").as_deref(), Some(""));
        client.get("/users/").await.expect(401);
    }

    async fn an_api_token_is_no_cookie(server: TestServer) {
        let token = drover_identity::create_token(&server.work(), "admin", "t").await.expect("a token");
        server.anonymous().with_token(&token).get("/users/").await.expect(200);
        server.anonymous().with_header("authorization", &format!("bearer {token}")).get("/users/").await.expect(200);
        let cookie = format!("drover_session={token}");
        server.anonymous().with_header("cookie", &cookie).get("/users/").await.expect(401);
        for value in ["Token", "Token ", "Basic x", "Token 00"] {
            server.anonymous().with_header("authorization", value).get("/users/").await.expect(401);
        }
    }

    async fn a_session_ends_by_itself(server: TestServer) {
        let user = server.user("ann").await;
        server.advance(Duration::from_secs(12 * 3600 - 1));
        user.get("/users/me/").await.expect(200);
        server.advance(Duration::from_secs(1));
        user.get("/users/me/").await.expect(401);
        server.sign_in("ann", USER_PASSWORD).await;
        let left = server.count(sql!("SELECT COUNT(*) FROM sessions WHERE user_id = $1"), args![user.id]).await;
        assert_eq!(left, 1, "what is over is removed");
    }

    async fn neither_names_nor_states_can_be_probed(server: TestServer) {
        let user = server.user("ann").await;
        server.admin().post("/users/", json!({"username": "bob"})).await.expect(200);
        server.admin().post(&format!("/users/{}/actions/disable/", user.id), json!(null)).await.expect(200);
        let mut answers = Vec::new();
        for (username, password) in [("ann", USER_PASSWORD), ("admin", "wrong"), ("nobody", "wrong"), ("bob", "")] {
            let mut body = attempt(&server.anonymous(), username, password).await.expect_error(401, 10002);
            body["request_id"] = json!(null);
            answers.push(body);
        }
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    }

    async fn guessing_gets_slower_and_slower(server: TestServer) {
        let nobody = server.anonymous();
        for _ in 0..5 {
            attempt(&nobody, "Admin", "wrong").await.expect(401);
        }
        let answer = attempt(&nobody, "admin", ADMIN_PASSWORD).await;
        assert_eq!((answer.status, answer.header("retry-after").as_str()), (429, "1"));
        // Another name is not slowed down, since nothing in process has an address.
        attempt(&nobody, "ann", "wrong").await.expect(401);
        server.advance(Duration::from_secs(1));
        attempt(&nobody, "admin", "wrong").await.expect(401);
        let answer = attempt(&nobody, "admin", ADMIN_PASSWORD).await;
        assert_eq!((answer.status, answer.header("retry-after").as_str()), (429, "2"));
        server.advance(Duration::from_secs(2));
        attempt(&nobody, "admin", ADMIN_PASSWORD).await.expect(200);
        for _ in 0..4 {
            attempt(&nobody, "admin", "wrong").await.expect(401);
        }
        attempt(&nobody, "admin", ADMIN_PASSWORD).await.expect(200);
        server.advance(Duration::from_secs(2 * 3600));
        attempt(&nobody, "admin", ADMIN_PASSWORD).await.expect(200);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM sign_in_failures"), args![]).await, 0, "what is old is removed");
    }

    async fn one_address_cannot_try_one_name_after_the_other(server: TestServer) {
        let (here, there) = (server.anonymous().at_address("192.0.2.7"), server.anonymous().at_address("192.0.2.8"));
        for number in 0..5 {
            attempt(&here, &format!("user{number}"), "wrong").await.expect(401);
        }
        attempt(&here, "admin", ADMIN_PASSWORD).await.expect_error(429, 10008);
        let failures = sql!("SELECT COUNT(*) FROM sign_in_failures WHERE subject = 'user admin'");
        assert_eq!(server.count(failures, args![]).await, 0, "who has to wait is not counted against the name");
        attempt(&there, "admin", ADMIN_PASSWORD).await.expect(200);
        server.advance(Duration::from_secs(1));
        attempt(&here, "admin", ADMIN_PASSWORD).await.expect(200);
    }

    async fn attempts_at_the_same_time_count_as_well(server: TestServer) {
        let nobody = server.anonymous();
        let attempts = (0..8).map(|_| {
            let nobody = nobody.clone();
            tokio::spawn(async move { attempt(&nobody, "admin", "wrong").await.status })
        });
        let attempts: Vec<_> = attempts.collect();
        let mut statuses = Vec::new();
        for attempt in attempts {
            statuses.push(attempt.await.expect("an answer"));
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429, 429]);
    }

    async fn stored_values_are_hashes(server: TestServer) {
        let answer = attempt(&server.anonymous(), "admin", ADMIN_PASSWORD).await.expect(200);
        let token = answer["token"].as_str().expect("a token");
        assert!(token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let sql = sql!("SELECT COUNT(*) FROM sessions WHERE token_hash = $1 OR csrf_hash = $1");
        assert_eq!(server.count(sql, args![token]).await, 0);
        let sql = sql!("SELECT COUNT(*) FROM users WHERE password_hash LIKE '$argon2id$%'");
        assert_eq!(server.count(sql, args![]).await, 1);
    }
}

#[tokio::test]
async fn cookies_are_secure_behind_tls() {
    let settings = Settings { secure: true, ..Settings::default() };
    with_server(Engine::Sqlite, settings, async |server: TestServer| {
        let answer = attempt(&server.anonymous(), "admin", ADMIN_PASSWORD).await;
        let set = answer.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok());
        assert_eq!(set.filter(|cookie| cookie.ends_with("; Secure")).count(), 2);
    })
    .await;
}

#[tokio::test]
async fn behind_a_proxy_each_client_is_throttled_alone() {
    let proxies = Proxies::new(vec![network("192.0.2.1").expect("an address")], ProxyHeader::XForwardedFor);
    with_server(Engine::Sqlite, Settings { proxies, ..Settings::default() }, async |server: TestServer| {
        let proxy = server.anonymous().at_address("192.0.2.1");
        let behind = |address: &str| proxy.with_header("x-forwarded-for", address);
        for number in 0..5 {
            attempt(&behind("198.51.100.7"), &format!("user{number}"), "wrong").await.expect(401);
        }
        attempt(&behind("198.51.100.7"), "admin", ADMIN_PASSWORD).await.expect_error(429, 10008);
        attempt(&behind("203.0.113.5, 198.51.100.7"), "admin", ADMIN_PASSWORD).await.expect_error(429, 10008);
        attempt(&behind("198.51.100.8"), "admin", ADMIN_PASSWORD).await.expect(200);
        // Whoever is no proxy is counted under the address that they come from, whatever they write.
        let liar = |number: usize| {
            let claimed = format!("203.0.113.{number}");
            server.anonymous().at_address("192.0.2.9").with_header("x-forwarded-for", &claimed)
        };
        for number in 0..5 {
            attempt(&liar(number), &format!("user{number}"), "wrong").await.expect(401);
        }
        attempt(&liar(6), "admin", ADMIN_PASSWORD).await.expect_error(429, 10008);
        attempt(&behind("203.0.113.1"), "admin", ADMIN_PASSWORD).await.expect(200);
    })
    .await;
}
