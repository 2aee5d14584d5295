//! Asking a host what it keeps, over HTTP: who may, what is passed on, and what hosts may do wrong.

use drover_kernel::{args, sql};
use drover_shared::Digest;
use drover_shared::message::{
    Drift, INSPECT_FEATURE, Inspect, Inspected, InspectedRelease, Release, ToAgent, ToServer,
};
use drover_tests::stub_agent::{StubAgent, listen};
use drover_tests::{Client, TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use crate::deploys::{Shop, grant};

fn path(shop: &Shop, query: &str) -> String {
    format!("/applications/{}/instances/{}/releases/{query}", shop.application, shop.instances[0])
}

/// A shop whose instance was deployed to once, as its database says.
async fn deployed(server: &TestServer) -> Shop {
    let shop = Shop::new(server, 1).await;
    shop.set(json!({"deploy_path": "/srv/{{ host.name }}"})).await;
    shop.hook("pre_exec", "true").await;
    let deploy_task = shop.started().await;
    let body = json!({"instances": [{"id": shop.instances[0]}]});
    shop.admin.post(&format!("{}{deploy_task}/sub-upgrade-tasks/", crate::deploys::PATH), body).await.expect(200);
    server.run(sql!("UPDATE executions SET state = 'succeeded', dispatched_at = 1, finished_at = 1"), args![]).await;
    shop
}

/// Asks in the background, as its agent has to answer meanwhile.
fn ask(client: &Client, path: String) -> tokio::task::JoinHandle<drover_tests::Answer> {
    let client = client.clone();
    tokio::spawn(async move { client.get(&path).await })
}

async fn question(agent: &mut StubAgent) -> Inspect {
    let ToAgent::Inspect(inspect) = agent.hear().await else { panic!("no question") };
    inspect
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn answer(request: u64) -> Inspected {
    let release = Release {
        name: "1.0-abc".to_owned(),
        version: "1.0".to_owned(),
        artifact_digest: digest("artifact"),
        tree_digest: digest("tree"),
        current: true,
        installed_ms: 1_714_564_800_000,
    };
    let drift = Drift {
        manifest_damaged: true,
        changed: vec![("a".to_owned(), "has another content".to_owned())],
        missing: vec!["b".to_owned()],
        added: vec!["c".to_owned()],
        more: 7,
    };
    let release = InspectedRelease { release, previous: false, members: 3, disk_bytes: 4096, drift: Some(drift) };
    Inspected { request, reason: None, releases: vec![release], free_bytes: Some(1 << 40) }
}

both_engines! {
    async fn an_answer_is_passed_on(server: TestServer) {
        let shop = deployed(&server).await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[INSPECT_FEATURE]).await;
        let asked = ask(&shop.admin, path(&shop, "?compare=true&release=1.0-abc&timeout=7"));
        let inspect = question(&mut agent).await;
        assert_eq!((inspect.deploy_path.as_str(), inspect.compare, inspect.timeout_ms), ("/srv/web-1", true, 7_000));
        assert_eq!(inspect.release.as_deref(), Some("1.0-abc"));
        // An answer to what nobody asks any more changes nothing.
        agent.say(&ToServer::Inspected(Box::new(answer(inspect.request + 100)))).await;
        agent.say(&ToServer::Inspected(Box::new(answer(inspect.request)))).await;
        let told = asked.await.expect("no panic").expect(200);
        let expected = json!({
            "instance": shop.instances[0], "hostname": "web-1", "deploy_path": "/srv/web-1", "free_bytes": 1_u64 << 40,
            "used_bytes": 4096, "complete": true, "reason": null,
            "releases": [{
                "name": "1.0-abc", "version": "1.0", "artifact_digest": digest("artifact").to_string(),
                "tree_digest": digest("tree").to_string(), "installed_time": "2024-05-01T12:00:00+00:00",
                "current": true, "previous": false, "members": 3, "used_bytes": 4096,
                "drift": {
                    "count": 11, "changed": [{"path": "a", "difference": "has another content"}], "missing": ["b"],
                    "extra": ["c"], "unlisted": 7, "manifest_damaged": true,
                },
            }],
        });
        assert_eq!(told, expected);
        // What could not be looked at in time is said.
        let asked = ask(&shop.admin, path(&shop, ""));
        let request = question(&mut agent).await.request;
        let reason = Some("the time allowed ran out: the answer is not complete".to_owned());
        agent.say(&ToServer::Inspected(Box::new(Inspected { reason: reason.clone(), ..answer(request) }))).await;
        let told = asked.await.expect("no panic").expect(200);
        assert_eq!((&told["complete"], &told["reason"]), (&json!(false), &json!(reason)));
    }

    async fn who_cannot_be_asked_is_named(server: TestServer) {
        let shop = deployed(&server).await;
        let address = listen(&server).await;
        let error = shop.admin.get(&path(&shop, "")).await.expect_error(503, 10009);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("web-1 is not connected")), "{error}");
        let mut old = StubAgent::enrol(&server, address, "web-1", &["secrets"]).await;
        let error = shop.admin.get(&path(&shop, "")).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("too old")), "{error}");
        old.leave();
        let mut agent = StubAgent::enrol(&server, address, "web-1", &[INSPECT_FEATURE]).await;
        let asked = ask(&shop.admin, path(&shop, ""));
        let request = question(&mut agent).await.request;
        let reason = Some("deploy path is not a folder".to_owned());
        agent.say(&ToServer::Inspected(Box::new(Inspected { request, reason, releases: vec![], free_bytes: None }))).await;
        let error = asked.await.expect("no panic").expect_error(409, 10006);
        assert_eq!(error["message"], "web-1: deploy path is not a folder");
        // One that goes away in between leaves nobody waiting.
        let asked = ask(&shop.admin, path(&shop, ""));
        question(&mut agent).await;
        agent.leave();
        let error = asked.await.expect("no panic").expect_error(503, 10009);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("went away")), "{error}");
    }

    async fn a_crowd_and_a_silent_agent_have_bounds(server: TestServer) {
        let shop = deployed(&server).await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[INSPECT_FEATURE]).await;
        let asked: Vec<_> = (0..8).map(|_| ask(&shop.admin, path(&shop, "?timeout=1"))).collect();
        for _ in 0..8 {
            question(&mut agent).await;
        }
        let error = shop.admin.get(&path(&shop, "")).await.expect_error(503, 10009);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("too many")), "{error}");
        for one in asked {
            let error = one.await.expect("no panic").expect_error(503, 10009);
            assert!(error["message"].as_str().is_some_and(|text| text.contains("in time")), "{error}");
        }
    }

    async fn only_the_folder_of_an_order_is_looked_at_and_only_by_who_may(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.set(json!({"deploy_path": "/etc"})).await;
        let told = shop.admin.get(&path(&shop, "")).await.expect(200);
        assert_eq!((&told["deploy_path"], &told["releases"]), (&Value::Null, &json!([])));
        for query in ["?release=current", "?release=1.0-abc"] {
            shop.admin.get(&path(&shop, query)).await.expect_error(404, 10004);
        }
        for (query, field) in [("?timeout=0", "timeout"), ("?timeout=301", "timeout"), ("?compare=maybe", "compare")] {
            let error = shop.admin.get(&path(&shop, query)).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{query}");
        }
        shop.admin.get(&format!("/applications/{}/instances/4711/releases/", shop.application)).await.expect_error(404, 10004);
        let user = server.user("ann").await;
        user.get(&path(&shop, "")).await.expect_error(404, 10004);
        grant(&server, user.id, shop.application, &["edit_app"]).await;
        user.get(&path(&shop, "")).await.expect_error(403, 10003);
        grant(&server, user.id, shop.application, &["view_app"]).await;
        wait_until("the right", async || user.get(&path(&shop, "")).await.status == 200).await;
    }
}
