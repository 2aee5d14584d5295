//! Linking applications to a template, and letting go of it.

use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines};
use serde_json::{Value, json};

use super::{PATH, application, body, made, script};
use crate::deploys::{self, Shop, grant, id};

fn link_path(application: i64) -> String {
    format!("/applications/{application}/deploy-settings/template/")
}

fn settings_path(application: i64) -> String {
    format!("/applications/{application}/deploy-settings/")
}

async fn details(server: &TestServer) -> Vec<String> {
    let sql = sql!(
        "SELECT detail FROM audit_entries WHERE list = 'application' AND action = 'change_deploy_setting' ORDER BY id"
    );
    server.read().await.values(sql, args![]).await.expect("the audit")
}

both_engines! {
    async fn what_is_set_on_the_application_wins(server: TestServer) {
        let admin = server.admin();
        let (stop, start) = (script(&admin, "stop").await, script(&admin, "start").await);
        let shop = application(&admin, "shop").await;
        let settings = settings_path(shop);
        admin.patch(&settings, json!({"timeout": 30, "lifecycle_hooks": {"pre_exec": {"script": start}}})).await.expect(200);
        let mut asked = body("web");
        asked["timeout"] = json!(600);
        asked["keep_backups"] = json!(9);
        asked["shared_paths"] = json!(["uploads/"]);
        asked["lifecycle_hooks"] = json!({"running_user": "www-data", "pre_exec": {"script": stop, "running_user": "root"}, "post_exec": {"script": stop, "timeout": 7}});
        let template = id(&admin.post(PATH, asked).await.expect(200));
        assert_eq!(admin.post(&link_path(shop), json!({"id": template})).await.expect(200), json!({"message": "success"}));

        let seen = admin.get(&settings).await.expect(200);
        assert_eq!(seen["template"], json!({"id": template, "name": "web"}));
        assert_eq!((&seen["timeout"], &seen["keep_backups"], &seen["deploy_path"]), (&json!(30), &json!(9), &json!("/srv/shop")));
        assert_eq!((&seen["repository"]["url"], &seen["script_running_user"]), (&json!("https://git.example.com/shop.git"), &json!("www-data")));
        let hooks = &seen["lifecycle_hooks"];
        assert_eq!((&hooks["pre_exec"]["script"]["id"], &hooks["pre_exec"]["running_user"]), (&json!(start), &json!(null)));
        assert_eq!(hooks["post_exec"]["script"]["id"], stop);
        assert_eq!(seen["from_template"], json!(["repository", "deploy_path", "keep_backups", "shared_paths", "lifecycle_hooks.running_user", "lifecycle_hooks.post_exec"]));
        assert_eq!(admin.get(&format!("{PATH}{template}/")).await.expect(200)["applications"], json!([shop]));
        assert_eq!(seen["shared_paths"], json!(["uploads/"]));
        // An empty list is the application's own: it shares nothing.
        let none = admin.patch(&settings, json!({"shared_paths": []})).await.expect(200);
        assert_eq!(none["shared_paths"], json!([]));
        assert_eq!(admin.patch(&settings, json!({"shared_paths": null})).await.expect(200)["shared_paths"], json!(["uploads/"]));

        // A change of the template is seen; null gives an own value up; a part makes the whole value the application's own.
        admin.patch(&format!("{PATH}{template}/"), json!({"keep_backups": 3, "timeout": 700})).await.expect(200);
        let seen = admin.patch(&settings, json!({"timeout": null, "repository": {"branch": "next"}, "lifecycle_hooks": {"pre_exec": null, "post_exec": {"running_user": "app"}}})).await.expect(200);
        assert_eq!((&seen["timeout"], &seen["keep_backups"]), (&json!(700), &json!(3)));
        assert_eq!((&seen["repository"]["url"], &seen["repository"]["branch"]), (&json!("https://git.example.com/shop.git"), &json!("next")));
        assert_eq!((&seen["lifecycle_hooks"]["pre_exec"]["script"]["id"], &seen["lifecycle_hooks"]["pre_exec"]["running_user"]), (&json!(stop), &json!("root")));
        assert_eq!((&seen["lifecycle_hooks"]["post_exec"]["script"]["id"], &seen["lifecycle_hooks"]["post_exec"]["running_user"]), (&json!(stop), &json!("app")));
        assert_eq!(seen["lifecycle_hooks"]["post_exec"]["timeout"], 7, "a part that is not named stays the template's");
        admin.patch(&format!("{PATH}{template}/"), json!({"repository": {"url": "/srv/other"}})).await.expect(200);
        assert_eq!(admin.get(&settings).await.expect(200)["repository"], seen["repository"]);
        let told = details(&server).await;
        assert_eq!(told.len(), 5, "{told:?}");
        assert!(told[1].contains(&format!(r#"template: null → "web ({template})""#)) && told[1].contains("keep_backups: 5 → 9"), "{told:?}");
    }

    async fn unlinking_keeps_what_counted_or_wipes_it(server: TestServer) {
        let admin = server.admin();
        let stop = script(&admin, "stop").await;
        let mut asked = body("web");
        asked["lifecycle_hooks"] = json!({"post_exec": {"script": stop}});
        asked["timeout"] = json!(600);
        let template = id(&admin.post(PATH, asked).await.expect(200));
        let other = made(&admin, "other").await;
        let shop = application(&admin, "shop").await;
        let (settings, link) = (settings_path(shop), link_path(shop));
        admin.patch(&settings, json!({"enabled": true, "keep_backups": 1})).await.expect(200);
        admin.post(&link, json!({"id": template})).await.expect(200);
        let mut linked = admin.get(&settings).await.expect(200);

        for (asked, field) in [(json!({}), "id"), (json!({"id": other}), "id"), (json!({"id": 999}), "id"), (json!({"id": template, "clean": "perhaps"}), "clean")] {
            assert_eq!(admin.send("DELETE".parse().expect("a method"), &link, asked).await.expect_error(400, 10001)["field"], field);
        }
        let gone = admin.send("DELETE".parse().expect("a method"), &link, json!({"id": template})).await.expect(200);
        assert_eq!(gone, json!({"message": "success"}));
        linked["template"] = json!(null);
        linked["from_template"] = json!([]);
        assert_eq!(admin.get(&settings).await.expect(200), linked, "deployment goes on unchanged");
        admin.patch(&format!("{PATH}{template}/"), json!({"timeout": 5})).await.expect(200);
        assert_eq!(admin.get(&settings).await.expect(200), linked, "the values are the application's own");

        // Linking replaces an earlier link, and the query serves where a body is dropped.
        admin.post(&link, json!({"id": template})).await.expect(200);
        admin.post(&link, json!({"id": other})).await.expect(200);
        assert_eq!(admin.get(&settings).await.expect(200)["template"]["id"], other);
        admin.delete(&format!("{link}?id={other}&clean=true")).await.expect(200);
        let wiped = admin.get(&settings).await.expect(200);
        assert_eq!((&wiped["enabled"], &wiped["timeout"], &wiped["repository"]), (&json!(false), &json!(120), &json!(null)));
        assert_eq!((&wiped["template"], &wiped["lifecycle_hooks"]["post_exec"]), (&json!(null), &json!(null)));
        admin.delete(&format!("{link}?id={other}")).await.expect_error(400, 10001);
    }

    async fn a_template_links_and_unlinks_many(server: TestServer) {
        let admin = server.admin();
        let (one, two, three) = (application(&admin, "one").await, application(&admin, "two").await, application(&admin, "three").await);
        let mut asked = body("web");
        asked["applictions"] = json!([one, two.to_string(), one]);
        let made = admin.post(PATH, asked).await.expect(200);
        let path = format!("{PATH}{}/", made["id"]);
        assert_eq!(made["applications"], json!([one, two]));
        let error = admin.delete(&path).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.ends_with("linked to: one, two")), "{error}");
        // Who leaves keeps what the template said before the same change.
        let changed = admin.patch(&path, json!({"applications": [two, three], "deploy_path": "/srv/new"})).await.expect(200);
        assert_eq!(changed["applications"], json!([two, three]));
        let left = admin.get(&settings_path(one)).await.expect(200);
        assert_eq!((&left["deploy_path"], &left["template"]), (&json!("/srv/shop"), &json!(null)));
        assert_eq!(admin.get(&settings_path(three)).await.expect(200)["deploy_path"], "/srv/new");
        assert_eq!(details(&server).await.len(), 4, "one entry for each application that was linked or unlinked");
        admin.patch(&path, json!({"applications": []})).await.expect(200);
        admin.delete(&path).await.expect(200);
        admin.delete(&format!("/applications/{two}/")).await.expect(200);
    }

    async fn linking_needs_the_right_to_change_the_application(server: TestServer) {
        let admin = server.admin();
        let (template, shop) = (made(&admin, "web").await, application(&admin, "shop").await);
        let link = link_path(shop);
        let user = server.user("ann").await;
        user.post(&link, json!({"id": template})).await.expect_error(404, 10004);
        grant(&server, user.id, shop, &["view_app"]).await;
        user.post(&link, json!({"id": template})).await.expect_error(403, 10003);
        user.delete(&format!("{link}?id={template}")).await.expect_error(403, 10003);
        grant(&server, user.id, shop, &["edit_app"]).await;
        assert_eq!(user.post(&link, json!({"id": 999})).await.expect_error(400, 10001)["field"], "id");
        assert_eq!(user.post(&link, json!({})).await.expect_error(400, 10001)["field"], "id");
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM deploy_settings"), args![]).await, 0, "nothing was made");
        user.post(&link, json!({"id": template})).await.expect(200);
        admin.delete(&format!("/applications/{shop}/")).await.expect(200);
        admin.delete(&format!("{PATH}{template}/")).await.expect(200);
    }

    async fn a_disabled_template_is_neither_linked_nor_deployed(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let admin = &shop.admin;
        let template = made(admin, "web").await;
        let path = format!("{PATH}{template}/");
        admin.post(&format!("{path}actions/disable/"), Value::Null).await.expect(200);
        admin.post(&link_path(shop.application), json!({"id": template})).await.expect_error(409, 10006);
        admin.patch(&path, json!({"applications": [shop.application]})).await.expect_error(409, 10006);
        admin.post(&format!("{path}actions/enable/"), Value::Null).await.expect(200);
        admin.post(&link_path(shop.application), json!({"id": template})).await.expect(200);
        let task = shop.started().await;
        admin.patch(&path, json!({"enabled": false})).await.expect(200);
        let upgrades = format!("{}{task}/sub-upgrade-tasks/", deploys::PATH);
        let references = json!({"instances": [{"id": shop.instances[0]}]});
        let error = admin.post(&upgrades, references.clone()).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("template web")), "{error}");
        admin.post(deploys::PATH, shop.body()).await.expect_error(409, 10006);
        admin.patch(&path, json!({"enabled": true})).await.expect(200);
        admin.post(&upgrades, references).await.expect(200);
    }

    async fn a_plan_has_what_the_template_gives(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let admin = &shop.admin;
        let hook = script(admin, "say").await;
        admin.patch(&format!("/applications/deploy-scripts/{hook}/"), json!({"content": "echo {{ source.url }} {{ keep_backups }} {{ running_user }}\n"})).await.expect(200);
        let mut asked = body("web");
        asked["applications"] = json!([shop.application]);
        asked["keep_backups"] = json!(2);
        asked["timeout"] = json!(77);
        asked["lifecycle_hooks"] = json!({"running_user": "app", "pre_exec": {"script": hook}});
        admin.post(PATH, asked).await.expect(200);
        let task = shop.started().await;
        let upgrades = format!("{}{task}/sub-upgrade-tasks/", deploys::PATH);
        let receipt = admin.post(&upgrades, json!({"instances": [{"id": shop.instances[0]}]})).await.expect(200);
        let sub_task = receipt["task_id"].as_str().expect("an id");
        assert_eq!(admin.get(&format!("{upgrades}{sub_task}/")).await.expect(200)["timeout"], 77);
        let entry: Vec<String> = server.read().await.values(sql!("SELECT entry FROM executions"), args![]).await.expect("the plan");
        let entry: Value = serde_json::from_str(&entry[0]).expect("an entry");
        assert_eq!(entry["deploy_path"], "/srv/shop");
        let script = entry["steps"].as_array().expect("steps").iter().find(|step| step["name"] == "pre_exec").expect("the hook");
        assert_eq!((&script["content"], &script["running_user"]), (&json!("echo https://git.example.com/shop.git 2 app\n"), &json!("app")));
    }
}
