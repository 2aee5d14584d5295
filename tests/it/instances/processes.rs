//! What agents are told to watch, and how what they say is shown.

use drover_kernel::{args, sql};
use drover_shared::instance::{FEATURE, Observation, ProcessState, Watched};
use drover_shared::message::{ToAgent, ToServer};
use drover_tests::stub_agent::{StubAgent, listen};
use drover_tests::{both_engines, wait_until};
use serde_json::{Value, json};

use crate::deploys::{Shop, id};

async fn set(shop: &Shop, change: Value) {
    shop.admin.patch(&format!("/applications/{}/", shop.application), change).await.expect(200);
}

/// What an agent is told to watch next.
async fn told(agent: &mut StubAgent) -> Vec<Watched> {
    loop {
        if let ToAgent::Watch { instances } = agent.hear().await {
            return instances;
        }
    }
}

fn watched(instance_id: i64, path: &str, user: Option<&str>) -> Watched {
    Watched { instance_id, pid_path: path.to_owned(), running_user: user.map(str::to_owned) }
}

fn seen(instance_id: i64, state: ProcessState) -> Observation {
    let is_running = state == ProcessState::Running;
    let reason = (state == ProcessState::Crashed).then(|| "process 42 is gone".to_owned());
    let since_ms = Some(1_714_564_800_000);
    Observation { instance_id, state, pid: is_running.then_some(42), since_ms, reason }
}

async fn say(agent: &mut StubAgent, instances: Vec<Observation>) {
    agent.say(&ToServer::Observed { instances }).await;
}

/// What is shown of the process of the shop's first instance.
async fn shown(shop: &Shop) -> Value {
    let path = format!("/applications/{}/instances/{}/", shop.application, shop.instances[0]);
    shop.admin.get(&path).await.expect(200)["process"].clone()
}

/// The same, once it has this state.
async fn shown_as(shop: &Shop, state: &str) -> Value {
    let mut process = Value::Null;
    wait_until("the state of a process", async || {
        process = shown(shop).await;
        process["state"] == state
    })
    .await;
    process
}

/// How many instances a list with this query has.
async fn count(shop: &Shop, query: &str) -> Value {
    let path = format!("/applications/{}/instances/{query}", shop.application);
    shop.admin.get(&path).await.expect(200)["count"].clone()
}

/// Carries out the next order with success, which saw `meanwhile` on its way.
async fn succeed(agent: &mut StubAgent, meanwhile: Observation) {
    let order = loop {
        if let ToAgent::Run { order, .. } = agent.hear().await {
            break order;
        }
    };
    let statement = serde_json::from_str(&order.statement).expect("a statement");
    agent.accept(&statement).await;
    say(agent, vec![meanwhile]).await;
    agent.succeed(&statement).await;
}

both_engines! {
    async fn what_a_host_saw_during_a_start_is_asked_for_again(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        set(&shop, json!({"pid_path": "/run/shop.pid", "startup_cmd": "start"})).await;
        let first = shop.instances[0];
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        told(&mut agent).await;
        say(&mut agent, vec![seen(first, ProcessState::Stopped)]).await;
        shown_as(&shop, "stopped").await;
        let path = format!("/applications/{}/instances/actions/start/", shop.application);
        shop.admin.post(&path, json!([first])).await.expect(200);
        // It starts and dies at once; that its start went well is taken in last.
        succeed(&mut agent, seen(first, ProcessState::Crashed)).await;
        assert_eq!(told(&mut agent).await, [watched(first, "/run/shop.pid", None)]);
        say(&mut agent, vec![seen(first, ProcessState::Crashed)]).await;
        assert_eq!(shown_as(&shop, "crashed").await["reason"], "process 42 is gone");
    }

    async fn what_a_host_says_is_shown_and_found(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let nothing = |reason: &str| json!({"state": "unknown", "pid": null, "since_time": null, "reason": reason,
            "last_state": null, "last_seen_time": null});
        assert_eq!(shown(&shop).await, nothing("the application has no pid_path"));
        set(&shop, json!({"pid_path": "/run/{{ host.name }}.pid", "run_user": "shop"})).await;
        assert_eq!(shown(&shop).await, nothing("the host has no agent"));
        let first = shop.instances[0];
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        assert_eq!(told(&mut agent).await, [watched(first, "/run/web-1.pid", Some("shop"))]);
        let reason = shown(&shop).await["reason"].clone();
        assert!(reason.as_str().is_some_and(|reason| reason.contains("has not said so far")), "{reason}");
        say(&mut agent, vec![seen(first, ProcessState::Running)]).await;
        assert_eq!(shown_as(&shop, "running").await, json!({"state": "running", "pid": 42,
            "since_time": "2024-05-01T12:00:00+00:00", "reason": null, "last_state": null, "last_seen_time": null}));
        for (query, expected) in [
            ("", 2), ("?process=running", 1), ("?process=unknown", 1), ("?process=crashed", 0), ("?process=stopped", 0),
            ("?status=stopped", 2), ("?status=stopped&process=running", 1), ("?status=running", 0),
        ] {
            assert_eq!(count(&shop, query).await, expected, "{query}");
        }
        let path = format!("/applications/{}/instances/", shop.application);
        for (query, field) in [("?process=dead", "process"), ("?status=dead", "status")] {
            assert_eq!(shop.admin.get(&format!("{path}{query}")).await.expect_error(400, 10001)["field"], field);
        }
        // What is left over after a stop is no crash; what was running is one.
        say(&mut agent, vec![seen(first, ProcessState::Crashed)]).await;
        assert_eq!(shown_as(&shop, "stopped").await["reason"], Value::Null);
        server.run(sql!("UPDATE instances SET status = 'running'"), args![]).await;
        assert_eq!(shown_as(&shop, "crashed").await["reason"], "process 42 is gone");
        assert_eq!((count(&shop, "?process=crashed").await, count(&shop, "?process=stopped").await), (json!(1), json!(0)));
    }

    async fn what_was_said_counts_as_long_as_the_session(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        set(&shop, json!({"pid_path": "/run/shop.pid"})).await;
        let (first, second) = (shop.instances[0], shop.instances[1]);
        let address = listen(&server).await;
        let mut agent = StubAgent::enrol(&server, address, "web-1", &[FEATURE]).await;
        told(&mut agent).await;
        // Of another host's instance, and of none, it may say what it likes.
        say(&mut agent, vec![seen(second, ProcessState::Crashed), seen(4711, ProcessState::Running), seen(first, ProcessState::Running)]).await;
        shown_as(&shop, "running").await;
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM instance_states"), args![]).await, 1);
        agent.leave();
        let process = shown_as(&shop, "unknown").await;
        assert_eq!((&process["reason"], &process["last_state"]), (&json!("the agent is not connected"), &json!("running")));
        assert!(process["last_seen_time"].is_string() && process["pid"].is_null(), "{process}");
        assert_eq!(count(&shop, "?process=running").await, 0);
        agent.come_back(vec![]).await;
        assert_eq!(told(&mut agent).await, [watched(first, "/run/shop.pid", None)], "a new session begins anew");
        assert_eq!(shown(&shop).await["state"], "unknown", "it has not said so in this session");
        say(&mut agent, vec![seen(first, ProcessState::Stopped)]).await;
        shown_as(&shop, "stopped").await;
        // One that does not know of it is told nothing.
        agent.leave();
        shown_as(&shop, "unknown").await;
        let mut old = StubAgent::enrol(&server, address, "web-1", &["inspect"]).await;
        let path = format!("/applications/{}/instances/{first}/variables/", shop.application);
        shop.admin.patch(&path, json!({"variables": {"a": 1}})).await.expect(200);
        wait_until("the session", async || shown(&shop).await["reason"].as_str().is_some_and(|why| why.contains("too old"))).await;
        assert!(old.heard().await.is_empty());
    }

    async fn a_host_is_told_again_when_something_changes(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let (host, first) = (shop.hosts[0], shop.instances[0]);
        server.kernel().spawn(drover_server::jobs().run(server.kernel().clone()));
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        set(&shop, json!({"pid_path": "{{ vars.run }}/{{ host.name }}.pid"})).await;
        let process = shown_as(&shop, "unknown").await;
        wait_until("the reason", async || shown(&shop).await["reason"].as_str().is_some_and(|why| why.contains("pid_path:"))).await;
        assert!(process["pid"].is_null());
        let run = |path: &str| json!({"variables": {"run": path}});
        for (path, value) in [
            ("/variables/".to_owned(), "/wide"),
            (format!("/applications/{}/variables/", shop.application), "/application"),
            (format!("/hosts/{host}/variables/"), "/host"),
            (format!("/applications/{}/instances/{first}/variables/", shop.application), "/instance"),
        ] {
            shop.admin.patch(&path, run(value)).await.expect(200);
            assert_eq!(told(&mut agent).await, [watched(first, &format!("{value}/web-1.pid"), None)]);
        }
        shop.set(json!({"lifecycle_hooks": {"running_user": "hooks"}, "deploy_path": "/srv/shop"})).await;
        assert_eq!(told(&mut agent).await, [watched(first, "/instance/web-1.pid", Some("hooks"))]);
        set(&shop, json!({"run_user": "shop", "pid_path": "{{ deploy_path }}/shared/{{ running_user }}.pid"})).await;
        assert_eq!(told(&mut agent).await, [watched(first, "/srv/shop/shared/shop.pid", Some("shop"))]);
        // A second application comes to the host, and goes.
        let other = id(&shop.admin.post("/applications/", json!({"name": "mail", "pid_path": "/run/mail.pid"})).await.expect(200));
        let path = format!("/applications/{other}/instances/");
        let second = id(&shop.admin.post(&path, json!([{"hostid": host}])).await.expect(200)[0]);
        let both = [watched(first, "/srv/shop/shared/shop.pid", Some("shop")), watched(second, "/run/mail.pid", None)];
        assert_eq!(told(&mut agent).await, both);
        shop.admin.delete(&format!("{path}?id={second}")).await.expect(200);
        say(&mut agent, vec![seen(second, ProcessState::Running)]).await;
        assert_eq!(told(&mut agent).await, both[..1], "what is said of nothing shows that it was not heard");
        // A path that leads nowhere in particular is none.
        set(&shop, json!({"pid_path": "run/shop.pid"})).await;
        assert_eq!(told(&mut agent).await, []);
        wait_until("the reason", async || shown(&shop).await["reason"].as_str().is_some_and(|why| why.contains("absolute"))).await;
        set(&shop, json!({"pid_path": "{{ secrets.TOKEN }}"})).await;
        wait_until("the reason", async || shown(&shop).await["reason"].as_str().is_some_and(|why| why.contains("TOKEN"))).await;
    }

    async fn a_path_that_never_ends_is_told_and_keeps_no_other_waiting(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        server.kernel().spawn(drover_server::jobs().run(server.kernel().clone()));
        let address = listen(&server).await;
        let mut first = StubAgent::enrol(&server, address, "web-1", &[FEATURE]).await;
        let mut second = StubAgent::enrol(&server, address, "web-2", &[FEATURE]).await;
        // Another application on the first host, which can be watched as ever.
        let body = json!({"name": "mail", "pid_path": "/run/mail.pid"});
        let other = id(&shop.admin.post("/applications/", body).await.expect(200));
        let path = format!("/applications/{other}/instances/");
        let mail = id(&shop.admin.post(&path, json!([{"hostid": shop.hosts[0]}])).await.expect(200)[0]);
        assert_eq!(told(&mut first).await, [watched(mail, "/run/mail.pid", None)]);
        for (text, deploy_path) in [
            ("/run/{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x.pid", "/srv/shop"),
            ("/run/{{ 'x' * 1000000000 }}.pid", "/srv/shop"),
            // Long before a script would be stopped.
            ("{% for a in range(9999) %}{% endfor %}/run/x.pid", "/srv/shop"),
            ("{{ deploy_path }}/x.pid", "/srv/{% for a in range(9999) %}{% endfor %}shop"),
        ] {
            shop.set(json!({"deploy_path": deploy_path})).await;
            set(&shop, json!({"pid_path": text})).await;
            wait_until("the reason", async || {
                let reason = shown(&shop).await["reason"].as_str().unwrap_or_default().to_owned();
                reason.contains("rendering the paths of an instance takes more than 2000 steps")
            })
            .await;
            shop.set(json!({"deploy_path": "/srv/shop"})).await;
            set(&shop, json!({"pid_path": "/run/shop.pid"})).await;
            let expected = watched(shop.instances[0], "/run/shop.pid", None);
            wait_until("the path", async || told(&mut first).await.contains(&expected)).await;
            say(&mut first, vec![seen(shop.instances[0], ProcessState::Stopped)]).await;
            shown_as(&shop, "stopped").await;
        }
        let expected = [watched(shop.instances[1], "/run/shop.pid", None)];
        wait_until("the path", async || told(&mut second).await == expected).await;
    }

    async fn what_crashed_may_be_started_and_what_runs_be_stopped(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        set(&shop, json!({"startup_cmd": "start", "stop_cmd": "stop", "pid_path": "/run/shop.pid"})).await;
        let first = shop.instances[0];
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        told(&mut agent).await;
        let act = async |action: &str| {
            let path = format!("/applications/{}/instances/actions/{action}/", shop.application);
            shop.admin.post(&path, json!([first])).await
        };
        act("stop").await.expect_error(409, 10006);
        say(&mut agent, vec![seen(first, ProcessState::Running)]).await;
        shown_as(&shop, "running").await;
        // Somebody else started it: it may be stopped, and started it is.
        let task = act("stop").await.expect(200)["task_id"].as_str().expect("a task").to_owned();
        assert!(matches!(agent.hear().await, ToAgent::Run { .. }));
        server.run(sql!("UPDATE executions SET state = 'succeeded', finished_at = 1"), args![]).await;
        server.run(sql!("UPDATE tasks SET phase = 'over', outcome = 'finished', finished_at = 1"), args![]).await;
        server.run(sql!("UPDATE instances SET status = 'running'"), args![]).await;
        assert!(!task.is_empty());
        act("start").await.expect_error(409, 10006);
        say(&mut agent, vec![seen(first, ProcessState::Crashed)]).await;
        shown_as(&shop, "crashed").await;
        act("start").await.expect(200);
    }
}
