//! Lists of deploy tasks.

use std::time::Duration;

use drover_tests::{Client, both_engines};
use serde_json::{Value, json};

use super::{PATH, Shop, action_path, grant, id};

async fn listed(client: &Client, query: &str) -> Vec<i64> {
    let page = client.get(&format!("{PATH}?{query}")).await.expect(200);
    page["results"].as_array().expect("results").iter().map(id).collect()
}

both_engines! {
    async fn filters_choose(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let other = id(&shop.admin.post("/applications/", json!({"name": "other"})).await.expect(200));
        let enable = format!("/applications/{other}/deploy-settings/actions/enable/");
        shop.admin.post(&enable, Value::Null).await.expect(200);
        let ada = server.user("ada").await;
        grant(&server, ada.id, shop.application, &["deploy_app"]).await;
        let first = shop.task().await;
        server.advance(Duration::from_secs(60));
        let mut body = shop.body();
        body["level"] = json!("S");
        body["version"] = json!("1.0.1");
        let second = id(&ada.post(PATH, body.clone()).await.expect(200));
        server.advance(Duration::from_secs(60));
        body["application_id"] = json!(other);
        let third = id(&shop.admin.post(PATH, body).await.expect(200));
        shop.act(second, "reject").await;
        let application = shop.application;
        for (query, expected) in [
            (String::new(), vec![third, second, first]),
            (format!("application_id={application}"), vec![second, first]),
            (format!("application={other}"), vec![third]),
            ("application_id=4711".to_owned(), vec![]),
            ("status=rejected".to_owned(), vec![second]),
            ("status=wait_review".to_owned(), vec![third, first]),
            ("creator=ada".to_owned(), vec![second]),
            ("creator=ad".to_owned(), vec![]),
            ("level=S".to_owned(), vec![third, second]),
            ("version=1.0".to_owned(), vec![first]),
            ("level=S&creator=admin".to_owned(), vec![third]),
            ("time__gt=2024-05-01T12:00:00Z".to_owned(), vec![third, second]),
            ("time__lt=2024-05-01T20:01:00%2B08:00".to_owned(), vec![first]),
            ("time__gt=1714564800&time__lt=1714564920".to_owned(), vec![second]),
            ("unknown=7&status=".to_owned(), vec![third, second, first]),
        ] {
            assert_eq!(listed(&shop.admin, &query).await, expected, "{query}");
        }
        for (query, field) in [
            ("application_id=shop", "application_id"),
            ("status=over", "status"),
            ("level=D", "level"),
            ("time__gt=soon", "time__gt"),
            ("time__lt=yesterday", "time__lt"),
            ("page=0", "page"),
            ("page=x", "page"),
            ("page_size=101", "page_size"),
            ("page_size=-1", "page_size"),
        ] {
            let error = shop.admin.get(&format!("{PATH}?{query}")).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{query}");
        }
    }

    async fn pages_follow_each_other_newest_first(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let mut made = Vec::new();
        for _ in 0..5 {
            made.push(shop.task().await);
        }
        made.reverse();
        let base = "/application/deploy-tasks/?level=A";
        let mut found = Vec::new();
        let mut next = Some(format!("{base}&page_size=2"));
        while let Some(path) = next {
            let page = shop.admin.get(&path).await.expect(200);
            assert_eq!(page["count"], 5);
            found.extend(page["results"].as_array().expect("results").iter().map(id));
            next = page["next"].as_str().map(|link| {
                let at = link.find("/application/").expect("a link keeps the path that was used");
                assert!(link.contains("level=A"), "a link keeps the filters: {link}");
                link[at..].to_owned()
            });
        }
        assert_eq!(found, made);
        let first = shop.admin.get(&format!("{base}&page_size=2")).await.expect(200);
        assert_eq!(first["prev"], Value::Null);
        assert!(first["results"][0].get("sub_tasks").is_none());
        for page in ["4", "4711", "9223372036854775807"] {
            let beyond = shop.admin.get(&format!("{base}&page_size=2&page={page}")).await.expect(200);
            assert_eq!((&beyond["count"], &beyond["results"], &beyond["next"]), (&json!(5), &json!([]), &Value::Null));
        }
        assert_eq!(listed(&shop.admin, "page_number=3&page_size=2").await, [made[4]]);
    }

    async fn only_what_one_may_see_is_listed(server: TestServer) {
        let shop = Shop::new(&server, 0).await;
        let (ada, eve) = (server.user("ada").await, server.user("eve").await);
        let (first, second) = (shop.task().await, shop.task().await);
        assert!(listed(&ada, "").await.is_empty());
        grant(&server, ada.id, shop.application, &["view_app"]).await;
        assert_eq!(listed(&ada, "").await, [second, first]);
        shop.admin.post(&action_path(first, "delegate"), json!({"user_id": eve.id})).await.expect(200);
        assert_eq!(listed(&eve, "").await, [first]);
        assert!(listed(&eve, "status=closed").await.is_empty());
        assert_eq!(listed(&eve, "status=wait_review").await, [first]);
    }
}
