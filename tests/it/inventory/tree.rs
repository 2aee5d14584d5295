//! The tree of applications: full names, moves and loops.

use drover_tests::{Client, both_engines};
use serde_json::json;

use super::{application, audited, id, ids, refused};

/// Full names of all applications, by id.
async fn names(client: &Client) -> Vec<String> {
    let page = client.get("/applications/?page_size=100").await.expect(200);
    let results = page["results"].as_array().expect("results").clone();
    results.iter().map(|result| result["full_name"].as_str().expect("a name").to_owned()).collect()
}

both_engines! {
    async fn full_names_follow(server: TestServer) {
        let admin = server.admin();
        let a = application(&admin, "a", None).await;
        let b = application(&admin, "b", Some(a)).await;
        let c = application(&admin, "é", Some(b)).await;
        // Names that begin alike or differ in case alone are others.
        application(&admin, "ab", None).await;
        let upper = application(&admin, "A", None).await;
        application(&admin, "b", Some(upper)).await;
        assert_eq!(names(&admin).await, ["a", "a.b", "a.b.é", "ab", "A", "A.b"]);
        admin.patch(&format!("/applications/{a}/"), json!({"name": "long_name"})).await.expect(200);
        assert_eq!(names(&admin).await, ["long_name", "long_name.b", "long_name.b.é", "ab", "A", "A.b"]);
        admin.patch(&format!("/applications/{b}/"), json!({"parent_app": null, "name": "x"})).await.expect(200);
        assert_eq!(names(&admin).await, ["long_name", "x", "x.é", "ab", "A", "A.b"]);
        admin.patch(&format!("/applications/{b}/"), json!({"parent_app": upper})).await.expect(200);
        assert_eq!(names(&admin).await, ["long_name", "A.x", "A.x.é", "ab", "A", "A.b"]);
        let parent = admin.get(&format!("/applications/{upper}/")).await.expect(200);
        assert_eq!((&parent["has_child"], parent["child_apps"].as_array().map(Vec::len)), (&json!(true), Some(2)));
        let last = audited(&server, "application", "update").await.pop().expect("an entry");
        assert_eq!(last, format!(r#"full_name: "x" → "A.x"; parent_app: null → {upper}"#));

        admin.delete(&format!("/applications/{b}/")).await.expect(200);
        assert_eq!(admin.get(&format!("/applications/{c}/")).await.expect(200)["parent_app"], json!(null));
        assert_eq!(names(&admin).await, ["long_name", "é", "ab", "A", "A.b"]);
    }

    async fn loops_and_siblings_of_one_name_are_refused(server: TestServer) {
        let admin = server.admin();
        let a = application(&admin, "a", None).await;
        let b = application(&admin, "b", Some(a)).await;
        let c = application(&admin, "c", Some(b)).await;
        let before = names(&admin).await;
        for (app, parent) in [(a, a), (a, b), (a, c), (b, c)] {
            refused(&admin, "PATCH", &format!("/applications/{app}/"), json!({"parent_app": parent}), "parent_app").await;
            refused(&admin, "POST", &format!("/applications/{parent}/child-apps/"), json!([{"id": app}]), "id").await;
            refused(&admin, "PATCH", &format!("/applications/{parent}/"), json!({"child_apps": [app]}), "child_apps").await;
        }
        let other = application(&admin, "b", None).await;
        admin.patch(&format!("/applications/{other}/"), json!({"parent_app": a})).await.expect_error(409, 10006);
        admin.patch(&format!("/applications/{b}/"), json!({"parent_app": 0})).await.expect_error(409, 10006);
        admin.post(&format!("/applications/{a}/child-apps/"), json!([{"id": other}])).await.expect_error(409, 10006);
        admin.post("/applications/", json!({"name": "c", "parent_app": b})).await.expect_error(409, 10006);
        admin.delete(&format!("/applications/{a}/")).await.expect_error(409, 10006);
        assert_eq!(names(&admin).await[..3], before[..]);
    }

    async fn the_tree_has_a_bottom(server: TestServer) {
        let admin = server.admin();
        let mut parent = None;
        for _ in 0..32 {
            parent = Some(application(&admin, "level", parent).await);
        }
        refused(&admin, "POST", "/applications/", json!({"name": "x", "parent_app": parent}), "parent_app").await;
        let root = application(&admin, "root", None).await;
        let first = ids(&admin.get("/applications/?name=level&has_parent=0").await.expect(200))[0];
        refused(&admin, "PATCH", &format!("/applications/{first}/"), json!({"parent_app": root}), "parent_app").await;
    }

    async fn children_come_and_go(server: TestServer) {
        let admin = server.admin();
        let (a, b, c) = (
            application(&admin, "a", None).await,
            application(&admin, "b", None).await,
            application(&admin, "c", None).await,
        );
        let path = format!("/applications/{a}/child-apps/");
        let added = admin.post(&path, json!([{"id": b}, {"id": format!("{c}")}])).await.expect(200);
        assert_eq!(ids(&added), [b, c]);
        assert_eq!((&added[0]["parent_app"], &added[0]["full_name"]), (&json!(a), &json!("a.b")));
        assert_eq!(ids(&admin.get(&path).await.expect(200)), [b, c]);
        assert_eq!(ids(&admin.get(&format!("{path}?name=B")).await.expect(200)), [b]);
        assert_eq!(ids(&admin.get(&format!("{path}?full_name=a.c")).await.expect(200)), [c]);
        assert_eq!(ids(&admin.get(&format!("{path}?user=nobody")).await.expect(200)), [0; 0]);
        refused(&admin, "POST", &path, json!([{"id": b}, {"id": 999}]), "id").await;
        refused(&admin, "POST", &path, json!([]), "id").await;
        refused(&admin, "DELETE", &path, json!(null), "id").await;
        refused(&admin, "DELETE", &path, json!([{"id": b}, {"id": a}]), "id").await;
        admin.delete_with(&path, json!([{"id": b}])).await.expect(200);
        assert_eq!(names(&admin).await, ["a", "b", "a.c"]);
        admin.delete(&format!("{path}?id={c}")).await.expect(200);
        assert_eq!(admin.get(&path).await.expect(200)["count"], 0);

        // A whole set at once, when an application is made or changed.
        let made = admin.post("/applications/", json!({"name": "d", "child_apps": [a, b]})).await.expect(200);
        assert_eq!(made["child_apps"], json!([a, b]));
        admin.patch(&format!("/applications/{}/", id(&made)), json!({"child_apps": [{"id": c}, b]})).await.expect(200);
        assert_eq!(names(&admin).await, ["a", "d.b", "d.c", "d"]);
    }

    async fn two_moves_at_once_close_no_loop(server: TestServer) {
        let admin = server.admin();
        let (a, b) = (application(&admin, "a", None).await, application(&admin, "b", None).await);
        let (below_b, below_a) = (json!({"parent_app": b}), json!({"parent_app": a}));
        let (first, second) = (format!("/applications/{a}/"), format!("/applications/{b}/"));
        let (one, other) = tokio::join!(admin.patch(&first, below_b), admin.patch(&second, below_a));
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400]);
    }
}
