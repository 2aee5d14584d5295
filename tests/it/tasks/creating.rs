//! Making a sub-task: what it answers and what it refuses.

use axum::http::Method;
use drover_kernel::Settings;
use drover_tests::{Engine, TestServer, both_engines, with_server};
use serde_json::{Value, json};

use super::{counts, detail, entries, instances, references, reverts, upgrade, upgrades};
use crate::deploys::{Shop, action_path, grant, id};

both_engines! {
    async fn a_sub_task_is_made_and_read(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("pre_exec", "echo before\n").await;
        let deploy_task = shop.started().await;
        let before = instances(&shop).await;
        let instances_named = references(&shop.instances);
        let body = json!({"instances": instances_named, "update_source": "dist", "version": "1.0.1", "timeout": "30"});
        let client = shop.admin.with_header("host", "drover.example:8440");
        let receipt = client.post(&upgrades(deploy_task), body).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let address = receipt["task_output"].as_str().expect("an address");
        assert!(address.starts_with("ws://drover.example:8440/api/v1/channel/"), "{address}");
        assert_eq!(receipt.as_object().map(serde_json::Map::len), Some(2));
        assert_eq!(instances(&shop).await, ["updating", "updating"]);
        let told = client.get(&format!("{}{task}/", upgrades(deploy_task))).await.expect(200);
        for (member, value) in [
            ("task_id", json!(task.to_string())),
            ("kind", json!("upgrade")),
            ("deploy_task_id", json!(deploy_task)),
            ("version", json!("1.0.1")),
            ("timeout", json!(30)),
            ("status", json!("running")),
            ("error", Value::Null),
            ("creator", json!("admin")),
            ("created_time", json!("2024-05-01T12:00:00+00:00")),
            ("finished_time", Value::Null),
            ("task_output", json!(address)),
            ("global_hooks", json!([])),
            ("commit", Value::Null),
            ("artifact_digest", Value::Null),
        ] {
            assert_eq!(told[member], value, "{member}");
        }
        // Nothing has to be fetched, so the plan is complete from the start.
        assert_eq!(told["plan_digest"].as_str().map(str::len), Some(64));
        for (at, host) in ["web-1", "web-2"].into_iter().enumerate() {
            let told = &told["instances"][at];
            assert_eq!((&told["id"], &told["hostname"]), (&json!(shop.instances[at]), &json!(host)));
            assert_eq!((&told["status"], &told["role"]), (&json!("queued"), &json!("instance")));
            assert_eq!(told["attempt"], 1);
        }
        assert_eq!(before, ["stopped", "stopped"]);
    }

    async fn what_is_left_out_comes_from_deploy_task_and_settings(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let deploy_task = shop.started().await;
        let first = detail(&shop, deploy_task, upgrade(&shop, deploy_task, &shop.instances[..1]).await).await;
        assert_eq!((&first["version"], &first["timeout"]), (&json!("1.0"), &json!(120)));
        shop.set(json!({"timeout": 77})).await;
        // An id alone, one object for an array, and the same instance twice.
        let bare = json!({"instances": [shop.instances[1], {"id": shop.instances[1].to_string()}]});
        let receipt = shop.admin.post(&upgrades(deploy_task), bare).await.expect(200);
        let task = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let second = detail(&shop, deploy_task, task).await;
        assert_eq!(second["timeout"], 77);
        assert_eq!(second["instances"].as_array().map(Vec::len), Some(1));
    }

    async fn a_started_deploy_task_is_needed(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let body = json!({"instances": references(&shop.instances), "version": "1.0"});
        for actions in [&[][..], &["approve"], &["reject"], &["close"]] {
            let deploy_task = shop.task().await;
            for action in actions {
                shop.act(deploy_task, action).await;
            }
            shop.admin.post(&upgrades(deploy_task), body.clone()).await.expect_error(409, 10006);
            shop.admin.post(&reverts(deploy_task), body.clone()).await.expect_error(409, 10006);
        }
        let deploy_task = shop.started().await;
        shop.set(json!({"enabled": false})).await;
        shop.admin.post(&upgrades(deploy_task), body.clone()).await.expect_error(409, 10006);
        shop.admin.post(&upgrades(4711), body).await.expect_error(404, 10004);
        assert_eq!(counts(&server).await[..2], [0, 0]);
        assert_eq!(instances(&shop).await, ["stopped"]);
    }

    async fn bad_bodies_are_refused_and_named(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let path = upgrades(deploy_task);
        let before = counts(&server).await;
        let many: Value = (0..10_001).collect();
        for (member, value) in [
            ("instances", json!([])),
            ("instances", json!(null)),
            ("instances", json!(true)),
            ("instances", json!([4711])),
            ("instances", json!([-1])),
            ("instances", many),
            ("timeout", json!(0)),
            ("timeout", json!(-5)),
            ("timeout", json!(86_401)),
            ("timeout", json!("long")),
            ("timeout", json!(1.5)),
            ("version", json!("")),
            ("version", json!({})),
            ("version", json!("x".repeat(201))),
            ("update_source", json!("x".repeat(2001))),
            ("update_source", json!([1])),
        ] {
            let mut body = json!({"instances": references(&shop.instances), "version": "1", "timeout": 5});
            body[member] = value;
            let shown: String = body.to_string().chars().take(200).collect();
            let error = shop.admin.post(&path, body).await.expect_error(400, 10001);
            let field = error["field"].as_str().unwrap_or_default();
            assert!(field == member || field.starts_with(&format!("{member}[")), "{shown}: {error}");
        }
        for element in [json!("x"), json!({}), json!({"id": "x"}), json!(null), json!([1])] {
            let error = shop.admin.post(&path, json!({"instances": [element]})).await.expect_error(400, 10001);
            assert!(error["field"].as_str().is_some_and(|field| field.starts_with("instances")), "{element}: {error}");
        }
        assert_eq!(shop.admin.post(&path, json!({})).await.expect_error(400, 10001)["field"], "instances");
        for text in ["[]", "{", "7", "\u{0}"] {
            shop.admin.send_text(Method::POST, &path, text.to_owned()).await.expect_error(400, 10001);
        }
        assert_eq!(counts(&server).await, before);
        assert_eq!(instances(&shop).await, ["stopped"]);
    }

    async fn instances_must_be_the_applications_and_idle(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let other = id(&shop.admin.post("/applications/", json!({"name": "other"})).await.expect(200));
        let path = format!("/applications/{other}/instances/");
        let foreign = id(&shop.admin.post(&path, json!([{"hostid": shop.hosts[0]}])).await.expect(200)[0]);
        let deploy_task = shop.started().await;
        for wrong in [foreign, 4711] {
            let body = json!({"instances": references(&[shop.instances[0], wrong])});
            let error = shop.admin.post(&upgrades(deploy_task), body).await.expect_error(400, 10001);
            assert_eq!(error["field"], "instances");
            assert!(error["message"].as_str().is_some_and(|text| text.contains(&wrong.to_string())), "{error}");
        }
        upgrade(&shop, deploy_task, &shop.instances[..1]).await;
        let before = counts(&server).await;
        // From this deploy task and from another one.
        for deploy_task in [deploy_task, shop.started().await] {
            let body = json!({"instances": references(&shop.instances)});
            let error = shop.admin.post(&upgrades(deploy_task), body).await.expect_error(409, 10006);
            assert!(error["message"].as_str().is_some_and(|text| text.contains("web-1")), "{error}");
        }
        assert_eq!(counts(&server).await[..2], before[..2]);
        assert_eq!(instances(&shop).await, ["updating", "stopped"]);
        upgrade(&shop, deploy_task, &shop.instances[1..]).await;
    }

    async fn of_requests_at_the_same_time_one_gets_the_instance(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let path = upgrades(shop.started().await);
        let requests: Vec<_> = (0..6)
            .map(|_| {
                let (client, path) = (shop.admin.clone(), path.clone());
                let body = json!({"instances": references(&shop.instances)});
                tokio::spawn(async move { client.post(&path, body).await })
            })
            .collect();
        let mut made = 0;
        for request in requests {
            let answer = request.await.expect("an answer");
            if answer.status == 200 {
                made += 1;
            } else {
                answer.expect_error(409, 10006);
            }
        }
        assert_eq!((made, counts(&server).await[..2].to_vec()), (1, vec![1, 1]));
    }

    async fn a_repeated_request_makes_one_sub_task(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let path = upgrades(shop.started().await);
        let keyed = shop.admin.with_header("idempotency-key", "k");
        let body = json!({"instances": references(&shop.instances)});
        let first = keyed.post(&path, body.clone()).await.expect(200);
        assert_eq!(keyed.post(&path, body).await.expect(200), first);
        assert_eq!(counts(&server).await[..2], [1, 1]);
    }

    async fn the_right_to_deploy_is_needed(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        let user = server.user("ada").await;
        let body = json!({"instances": references(&shop.instances)});
        user.post(&upgrades(deploy_task), body.clone()).await.expect_error(404, 10004);
        grant(&server, user.id, shop.application, &["view_app"]).await;
        user.post(&upgrades(deploy_task), body.clone()).await.expect_error(403, 10003);
        user.get(&upgrades(deploy_task)).await.expect(200);
        // Whoever was handed the task may carry it out, without any right on the application.
        let taker = server.user("eve").await;
        shop.admin.post(&action_path(deploy_task, "delegate"), json!({"user_id": taker.id})).await.expect(200);
        let receipt = taker.post(&upgrades(deploy_task), body).await.expect(200);
        let task = receipt["task_id"].as_str().expect("text");
        let told = taker.get(&format!("{}{task}/", upgrades(deploy_task))).await.expect(200);
        assert_eq!(told["creator"], "eve");
    }

    async fn files_need_a_place(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.set(json!({"repository": {"type": "GIT", "url": "file:///nowhere/shop.git"}})).await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&shop.instances)});
        let error = shop.admin.post(&upgrades(deploy_task), body).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("deploy_path")), "{error}");
        assert_eq!(instances(&shop).await, ["stopped"]);
    }

    async fn the_plan_of_files_is_completed_later(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let repository = json!({"type": "GIT", "url": "file:///nowhere/shop.git"});
        shop.set(json!({"repository": repository, "deploy_path": "/srv/{{ application.name }}"})).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let entries = entries(&server, task).await;
        assert_eq!(entries[0]["deploy_path"], "/srv/shop");
        let told = detail(&shop, deploy_task, task).await;
        assert_eq!((&told["plan_digest"], &told["update_source"]), (&Value::Null, &json!("dist")));
    }
}

async fn check_secure_address(server: TestServer) {
    let shop = Shop::new(&server, 1).await;
    let client = shop.admin.with_header("host", "drover.example");
    let body = json!({"instances": references(&shop.instances)});
    let receipt = client.post(&upgrades(shop.started().await), body).await.expect(200);
    let address = receipt["task_output"].as_str().expect("an address");
    assert!(address.starts_with("wss://drover.example/api/v1/channel/"), "{address}");
}

mod behind_tls_the_address_is_secure {
    use super::*;

    fn secure() -> Settings {
        Settings { secure: true, ..Settings::default() }
    }

    #[tokio::test]
    async fn sqlite() {
        with_server(Engine::Sqlite, secure(), check_secure_address).await;
    }

    #[tokio::test]
    async fn postgres() {
        with_server(Engine::Postgres, secure(), check_secure_address).await;
    }
}
