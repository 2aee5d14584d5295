//! Plans: every script is rendered for every target when the sub-task is made, or nothing is made.

use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{counts, detail, entries, instances, references, upgrade, upgrades};
use crate::deploys::Shop;

/// Name, content and account of every script of an entry.
fn scripts(entry: &Value) -> Vec<(&str, &str, &Value)> {
    let steps = entry["steps"].as_array().expect("steps");
    let text = |step: &Value, member: &str| step[member].as_str().map(str::to_owned);
    assert!(steps.iter().all(|step| text(step, "content").is_some()), "{entry}");
    steps
        .iter()
        .map(|step| {
            let name = step["name"].as_str().expect("a name");
            (name, step["content"].as_str().expect("a content"), &step["running_user"])
        })
        .collect()
}

both_engines! {
    async fn each_target_has_its_own_text(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("global_pre_exec", "lock {{ application.full_name }} {{ instances | length }}\n").await;
        shop.hook("pre_exec", "stop on {{ host.name }} for {{ action }}\n").await;
        shop.hook("post_exec", "start {{ version }} as {{ running_user }}\n").await;
        shop.hook("global_post_exec", "unlock by {{ task.creator }}").await;
        shop.set(json!({"lifecycle_hooks": {"running_user": "shop", "post_exec": {"running_user": "root"}}})).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let entries = entries(&server, task).await;
        let shop_user = json!("shop");
        assert_eq!(scripts(&entries[0]), [("global_pre_exec", "lock shop 2\n", &shop_user)]);
        for (entry, host) in [(&entries[1], "web-1"), (&entries[2], "web-2")] {
            let stop = format!("stop on {host} for upgrade\n");
            let expected =
                [("pre_exec", stop.as_str(), &shop_user), ("post_exec", "start 1.0 as root\n", &json!("root"))];
            assert_eq!(scripts(entry), expected);
            assert_eq!((&entry["host"], &entry["task_id"]), (&json!(host), &json!(task)));
        }
        assert_eq!(scripts(&entries[3]), [("global_post_exec", "unlock by admin", &shop_user)]);
        let told = detail(&shop, deploy_task, task).await;
        let hooks = told["global_hooks"].as_array().expect("hooks");
        let roles: Vec<&str> = hooks.iter().filter_map(|hook| hook["role"].as_str()).collect();
        assert_eq!(roles, ["global_pre", "global_post"]);
    }

    async fn of_several_variables_the_narrowest_counts(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let (application, hosts, instances) = (shop.application, &shop.hosts, &shop.instances);
        for (path, variables) in [
            ("/variables/".to_owned(), json!({"a": "organisation", "b": "organisation", "c": "organisation", "d": 1})),
            (format!("/applications/{application}/variables/"), json!({"b": "application", "c": "application", "e": false})),
            (format!("/hosts/{}/variables/", hosts[0]), json!({"c": "host", "f": "host"})),
            (format!("/applications/{application}/instances/{}/variables/", instances[0]), json!({"f": "instance"})),
        ] {
            shop.admin.patch(&path, json!({"variables": variables})).await.expect(200);
        }
        let script = "{{ vars.a }} {{ vars.b }} {{ vars.c }} {{ vars.d + 1 }} {{ 'on' if vars.e else 'off' }} \
            {{ vars.f | default('none') }}";
        shop.hook("global_pre_exec", script).await;
        shop.hook("pre_exec", script).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let entries = entries(&server, task).await;
        let texts: Vec<&str> = entries.iter().map(|entry| scripts(entry)[0].1).collect();
        assert_eq!(texts, [
            "organisation application host 2 off host",
            "organisation application host 2 off instance",
            "organisation application application 2 off none",
        ]);
        shop.hook("post_exec", "{{ vars.missing }}").await;
        let body = json!({"instances": references(&shop.instances)});
        let other = shop.started().await;
        let error = shop.admin.post(&upgrades(other), body).await.expect_error(400, 10001);
        assert_eq!(error["field"], "lifecycle_hooks.post_exec.script", "{error}");
    }

    async fn what_was_rendered_stays(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let script = shop.hook("pre_exec", "first").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let before = (entries(&server, task).await, detail(&shop, deploy_task, task).await["plan_digest"].clone());
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "second"})).await.expect(200);
        shop.set(json!({"lifecycle_hooks": {"running_user": "other"}, "deploy_path": "/srv/other"})).await;
        let after = (entries(&server, task).await, detail(&shop, deploy_task, task).await["plan_digest"].clone());
        assert_eq!(after, before);
    }

    async fn the_digest_covers_what_is_run(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        let script = shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let mut digests = Vec::new();
        for (at, content) in ["true", "true", "false"].into_iter().enumerate() {
            let path = format!("/applications/deploy-scripts/{script}/");
            shop.admin.patch(&path, json!({"content": content})).await.expect(200);
            let task = upgrade(&shop, deploy_task, &shop.instances[at..=at]).await;
            digests.push(detail(&shop, deploy_task, task).await["plan_digest"].to_string());
        }
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 3);
    }

    async fn what_does_not_render_is_refused_as_a_whole(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let script = shop.hook("post_exec", "true").await;
        let deploy_task = shop.started().await;
        for (content, line, column, reason) in [
            ("echo a\necho {{ nope }}\n", 2, Some(9), "nope"),
            ("{{ host.nope }}", 1, None, "nope"),
            ("{% if true %}\necho", 1, None, "syntax error"),
            ("a\nb\n{{ 1 + }}", 3, None, "syntax error"),
            ("{% for a in range(100000000) %}{% endfor %}", 1, None, ""),
            ("{{ 1 / 0 }}", 1, None, ""),
            ("{% include 'x' %}", 1, None, "include"),
        ] {
            let path = format!("/applications/deploy-scripts/{script}/");
            let changed = shop.admin.patch(&path, json!({"content": content})).await;
            // A script that cannot be read at all may be refused when it is stored.
            if changed.status == 400 {
                assert_eq!(reason, "syntax error", "{content}: {}", changed.body);
                continue;
            }
            changed.expect(200);
            let before = counts(&server).await;
            let body = json!({"instances": references(&shop.instances)});
            let error = shop.admin.post(&upgrades(deploy_task), body).await.expect_error(400, 10001);
            let message = error["message"].as_str().expect("a message");
            assert_eq!(error["field"], "lifecycle_hooks.post_exec.script", "{content}");
            let place = match column {
                Some(column) => format!("the post_exec, line {line}, column {column}: "),
                None => format!("the post_exec, line {line}, column "),
            };
            assert!(message.contains(&place) && message.contains(reason), "{content}: {message}");
            assert_eq!(counts(&server).await, before, "{content}");
            assert_eq!(instances(&shop).await, ["stopped", "stopped"], "{content}");
        }
    }

    async fn a_folder_must_be_absolute_on_every_target(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        for path in ["{{ host.name }}/x", "/srv/{{ '..' }}/etc", "{{ '/' }}", "/srv/{{ nope }}", "/srv/{{ 'a\\nb' }}"] {
            let settings = format!("/applications/{}/deploy-settings/", shop.application);
            if shop.admin.patch(&settings, json!({"deploy_path": path})).await.status == 400 {
                continue;
            }
            let before = counts(&server).await;
            let body = json!({"instances": references(&shop.instances)});
            let error = shop.admin.post(&upgrades(deploy_task), body).await.expect_error(400, 10001);
            assert_eq!(error["field"], "deploy_path", "{path}");
            assert_eq!(counts(&server).await, before, "{path}");
        }
    }
}
