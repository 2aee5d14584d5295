//! What applications depend on, and who is responsible for them.

use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{application, audited, grant, ids, refused};

both_engines! {
    async fn dependencies_come_and_go(server: TestServer) {
        let admin = server.admin();
        let user = server.user("ann").await;
        let (a, b, c) = (
            application(&admin, "a", None).await,
            application(&admin, "b", None).await,
            application(&admin, "c", None).await,
        );
        let path = format!("/applications/{a}/required-apps/");
        assert_eq!(ids(&admin.post(&path, json!([{"id": b}, {"id": c}])).await.expect(200)), [b, c]);
        admin.post(&path, json!({"id": b})).await.expect(200);
        assert_eq!(audited(&server, "application", "update").await, [format!("required_apps: [] → [{b},{c}]")]);
        assert_eq!(ids(&admin.get(&path).await.expect(200)), [b, c]);
        assert_eq!(ids(&admin.get(&format!("{path}?name=c")).await.expect(200)), [c]);
        // Longer loops are allowed, from oneself to oneself is not.
        admin.post(&format!("/applications/{b}/required-apps/"), json!([a])).await.expect(200);
        refused(&admin, "POST", &path, json!([{"id": a}]), "id").await;
        refused(&admin, "POST", &path, json!([{"id": 999}]), "id").await;
        refused(&admin, "POST", &path, json!([{"id": [1]}]), "[0]").await;
        refused(&admin, "DELETE", &path, json!([{"id": a}]), "id").await;
        let mirror = format!("/applications/{b}/required-by-apps/");
        assert_eq!(ids(&admin.get(&mirror).await.expect(200)), [a]);
        admin.post(&mirror, json!([{"id": c}])).await.expect_error(405, 10005);

        grant(&server, user.id, "application", a, json!({"view_app": true, "edit_app": true})).await;
        grant(&server, user.id, "application", c, json!({"view_app": true})).await;
        assert_eq!(ids(&user.get(&path).await.expect(200)), [c], "what may not be seen is left out");
        refused(&user, "POST", &path, json!([{"id": b}]), "id").await;
        user.get(&mirror).await.expect_error(404, 10004);
        admin.delete(&format!("{path}?id={b}&id={c}")).await.expect(200);
        assert_eq!(admin.get(&path).await.expect(200)["count"], 0);
        admin.post(&path, json!([{"id": b}])).await.expect(200);
        admin.delete(&format!("/applications/{b}/")).await.expect(200);
        assert_eq!(admin.get(&path).await.expect(200)["count"], 0, "links go with the application");
    }

    async fn persons_come_and_go(server: TestServer) {
        let admin = server.admin();
        let (ann, bob) = (server.user("ann").await, server.user("bob").await);
        admin.patch(&format!("/users/{}/", ann.id), json!({"email": "ann@example.com", "phone": "+49 170-1"})).await.expect(200);
        let shop = application(&admin, "shop", None).await;
        let (app, path) = (format!("/applications/{shop}/"), format!("/applications/{shop}/response-person/"));
        let added = admin.post(&path, json!([{"id": ann.id, "type": "ops"}, {"id": bob.id, "type": "dev"}])).await.expect(200);
        let expected =
            json!({"id": ann.id, "name": "ann", "email": "ann@example.com", "type": "ops", "mobile": 49_1701});
        assert_eq!(added[0], expected);
        assert_eq!(added[1]["mobile"], json!(null));
        let page = admin.get(&path).await.expect(200);
        assert_eq!((&page["count"], &page["results"]), (&json!(2), &added));
        // One row for a person: adding again changes the capacity; bare ids keep it.
        admin.post(&path, json!({"id": bob.id, "type": "qa"})).await.expect(200);
        admin.patch(&app, json!({"response_person": [bob.id]})).await.expect(200);
        let kept = admin.get(&path).await.expect(200)["results"].clone();
        assert_eq!((kept.as_array().map(Vec::len), &kept[0]["type"]), (Some(1), &json!("qa")));
        admin.patch(&app, json!({"response_person": [{"id": ann.id, "type": "pm"}, bob.id, 1]})).await.expect(200);
        let types: Vec<_> = admin.get(&path).await.expect(200)["results"].as_array().expect("persons").iter().map(|person| person["type"].clone()).collect();
        assert_eq!(types, ["dev", "pm", "qa"]);

        for (method, body, field) in [
            ("POST", json!([]), "id"),
            ("POST", json!([{"id": ann.id}]), "[0].type"),
            ("POST", json!([{"id": ann.id, "type": "boss"}]), "[0].type"),
            ("POST", json!([{"id": ann.id, "type": "qa"}, {"id": 999, "type": "qa"}]), "id"),
            ("POST", json!([{"id": ann.id, "type": "qa"}, {"id": ann.id, "type": "pm"}]), "id"),
            ("DELETE", json!([{"id": ann.id}, {"id": 999}]), "id"),
            ("DELETE", json!(null), "id"),
        ] {
            refused(&admin, method, &path, body, field).await;
        }
        assert_eq!(admin.get(&path).await.expect(200)["count"], 3, "nothing was changed");
        admin.delete_with(&path, json!([{"id": ann.id}, {"id": 1}])).await.expect(200);
        assert_eq!(ids(&admin.get(&path).await.expect(200)), [bob.id]);
        ann.get(&path).await.expect_error(404, 10004);
        grant(&server, ann.id, "application", shop, json!({"view_app": true})).await;
        ann.post(&path, json!([{"id": ann.id, "type": "dev"}])).await.expect_error(403, 10003);
    }

    async fn links_to_what_may_not_be_seen_are_hidden_and_kept(server: TestServer) {
        let admin = server.admin();
        let user = server.user("ann").await;
        let top = application(&admin, "top", None).await;
        let (open, hidden) = (application(&admin, "open", Some(top)).await, application(&admin, "hidden", Some(top)).await);
        admin.post(&format!("/applications/{top}/required-apps/"), json!([open, hidden])).await.expect(200);
        grant(&server, user.id, "application", top, json!({"view_app": true, "edit_app": true})).await;
        grant(&server, user.id, "application", open, json!({"view_app": true})).await;
        let path = format!("/applications/{top}/");
        let links = |told: &Value| (told["child_apps"].clone(), told["required_apps"].clone(), told["has_child"].clone());
        let seen = (json!([open]), json!([open]), json!(true));
        assert_eq!(links(&user.get(&path).await.expect(200)), seen);
        let listed = user.get("/applications/?name=top").await.expect(200);
        assert_eq!(links(&listed["results"][0]), seen);
        assert_eq!(links(&admin.get(&path).await.expect(200)), (json!([open, hidden]), json!([open, hidden]), json!(true)));
        refused(&user, "DELETE", &format!("{path}child-apps/"), json!([{"id": hidden}]), "id").await;
        refused(&user, "DELETE", &format!("{path}required-apps/"), json!([{"id": hidden}]), "id").await;
        // Who sends back what they were shown, or less, drops nothing that they were not.
        user.patch(&path, json!({"child_apps": [{"id": open}], "required_apps": []})).await.expect(200);
        let kept = (json!([open, hidden]), json!([hidden]), json!(true));
        assert_eq!(links(&admin.get(&path).await.expect(200)), kept);
    }
}
