//! Schedules that run a stored script on hosts.

use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines};
use serde_json::{Value, json};

use super::{PATH, body, end, look, newest_task, pass, runs, schedule, wait_for};
use crate::deploys::{Shop, id};
use crate::scripts::running::grant_host;

const SCRIPTS: &str = "/applications/deploy-scripts/";
/// So many schedules come at once: more than one round of a look takes.
const CROWD: i64 = 130;

/// A script that takes two parameters.
async fn script(shop: &Shop) -> i64 {
    let body = json!({"name": "greet", "language": "bash", "running_user": "nobody", "content": "echo {{ params.greeting }}",
        "parameters": [{"name": "greeting", "type": "text"}, {"name": "times", "type": "number", "default": 1}]});
    id(&shop.admin.post(SCRIPTS, body).await.expect(200))
}

/// What runs it, with this in place of its label.
fn greets(more: &Value) -> Value {
    let mut what = json!({"kind": "script", "script": "greet", "parameters": {"greeting": "hi"}, "timeout": 86_400});
    what.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({"what": what})
}

fn on_label() -> Value {
    greets(&json!({"label": "web"}))
}

async fn label(shop: &Shop, host: usize, labels: &[&str]) {
    let path = format!("/hosts/{}/", shop.hosts[host]);
    shop.admin.patch(&path, json!({"labels": labels})).await.expect(200);
}

/// Ends the task of the newest moment and gives the hosts that it was for.
async fn ended(shop: &Shop, schedule: i64) -> Vec<String> {
    let task = newest_task(shop, schedule).await;
    end(shop, task).await;
    let told = shop.admin.get(&format!("/tasks/{task}/")).await.expect(200);
    let hosts = told["instances"].as_array().expect("hosts").iter();
    hosts.map(|host| host["hostname"].as_str().expect("a name").to_owned()).collect()
}

async fn reason(shop: &Shop, schedule: i64) -> String {
    runs(shop, schedule).await[0]["reason"].as_str().expect("a reason").to_owned()
}

async fn details(server: &TestServer, action: &str) -> Vec<String> {
    let audit = sql!("SELECT detail FROM audit_entries WHERE object_type = 'schedule' AND action = $1 ORDER BY id");
    server.read().await.values(audit, args![action]).await.expect("the audit")
}

both_engines! {
    async fn hosts_and_text_are_those_of_each_moment(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let script = script(&shop).await;
        label(&shop, 0, &["web"]).await;
        let id = schedule(&server, &shop, on_label()).await;
        let told = shop.admin.get(&format!("{PATH}{id}/")).await.expect(200);
        assert_eq!((&told["application_id"], &told["application"], &told["if_busy"]), (&Value::Null, &Value::Null, &json!("refuse")));
        let what = json!({"kind": "script", "script": "greet", "label": "web", "parameters": {"greeting": "hi"},
            "running_user": null, "timeout": 86_400, "rollout": null});
        assert_eq!(told["what"], what);
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started"]).await;
        let task = newest_task(&shop, id).await;
        let detail = shop.admin.get(&format!("/tasks/{task}/")).await.expect(200);
        assert_eq!((&detail["kind"], &detail["version"], &detail["creator"]), (&json!("script"), &json!("greet"), &json!("admin")));
        assert_eq!(ended(&shop, id).await, ["web-1"]);

        // A new host has the label, and the script became another one.
        label(&shop, 1, &["web"]).await;
        shop.admin.patch(&format!("{SCRIPTS}{script}/"), json!({"content": "echo other"})).await.expect(200);
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 started"]).await;
        assert_eq!(ended(&shop, id).await, ["web-1", "web-2"]);
        let runs = details(&server, "run").await;
        let digest = |text: &str| format!(", script greet with SHA-256 {}", drover_shared::Digest::of(text.as_bytes()));
        assert!(runs[0].ends_with(&digest("echo {{ params.greeting }}")) && runs[1].ends_with(&digest("echo other")), "{runs:?}");
        assert!(details(&server, "add").await[0].starts_with("script greet on label web, "), "no values of parameters");

        // Nothing is meant for once.
        for host in [0, 1] {
            label(&shop, host, &[]).await;
        }
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 started", "12:30 skipped"]).await;
        assert_eq!(reason(&shop, id).await, "no host has the label web");
        label(&shop, 1, &["web"]).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, id, &["12:10 started", "12:20 started", "12:30 skipped", "12:40 started"]).await;
        assert_eq!(ended(&shop, id).await, ["web-2"]);
    }

    async fn hosts_are_named_or_those_of_an_application(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        script(&shop).await;
        for (name, targets, expected) in [
            ("ids", json!({"hosts": [shop.hosts[1], "web-1"], "rollout": {"batch": 1}}), vec!["web-2", "web-1"]),
            ("application", json!({"application": "shop"}), vec!["web-1", "web-2", "web-3"]),
            ("its id", json!({"application_id": shop.application}), vec!["web-1", "web-2", "web-3"]),
        ] {
            let mut more = greets(&targets);
            more["name"] = name.into();
            let id = schedule(&server, &shop, more).await;
            shop.admin.post(&format!("{PATH}{id}/actions/run/"), json!({})).await.expect(200);
            drover_tests::wait_until("its task", async || {
                look(&server).await;
                runs(&shop, id).await[0]["state"] == "started"
            }).await;
            assert_eq!(ended(&shop, id).await, expected, "{name}");
            shop.admin.delete(&format!("{PATH}{id}/")).await.expect(200);
        }
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM schedule_targets"), args![]).await, 0);
    }

    async fn what_is_gone_or_wrong_by_then_is_said(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let script = script(&shop).await;
        let spare = id(&shop.admin.post("/hosts/", json!({"name": "spare", "host_type": "PHY_HOST"})).await.expect(200));
        let schedule_id = schedule(&server, &shop, greets(&json!({"hosts": ["spare", "web-1"]}))).await;
        shop.admin.delete(&format!("/hosts/{spare}/")).await.expect(200);
        pass(&server, 10).await;
        wait_for(&server, &shop, schedule_id, &["12:10 failed"]).await;
        assert_eq!(reason(&shop, schedule_id).await, "there is no host `spare`");
        // It can be mended.
        shop.admin.patch(&format!("{PATH}{schedule_id}/"), greets(&json!({"application": "shop"}))).await.expect(200);
        look(&server).await;
        let path = format!("{SCRIPTS}{script}/");
        let parameters = json!([{"name": "greeting", "type": "choice", "choices": ["hello", "bye"]}]);
        shop.admin.patch(&path, json!({"parameters": parameters})).await.expect(200);
        pass(&server, 10).await;
        wait_for(&server, &shop, schedule_id, &["12:10 failed", "12:20 failed"]).await;
        assert_eq!(reason(&shop, schedule_id).await, "parameters.greeting: must be one of: hello, bye");
        shop.admin.delete(&path).await.expect(200);
        pass(&server, 10).await;
        wait_for(&server, &shop, schedule_id, &["12:10 failed", "12:20 failed", "12:30 failed"]).await;
        assert_eq!(reason(&shop, schedule_id).await, "there is no deploy script `greet`");
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0);
    }

    async fn bad_scripts_are_refused_by_their_fields(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        script(&shop).await;
        label(&shop, 0, &["web"]).await;
        for (more, field) in [
            (json!({"script": null}), "what.script"),
            (json!({"script": true}), "what.script"),
            (json!({"label": null}), "what.hosts"),
            (json!({"hosts": ["web-1"]}), "what.hosts"),
            (json!({"label": null, "hosts": []}), "what.hosts"),
            (json!({"label": null, "hosts": [true]}), "what.hosts[0]"),
            (json!({"label": "nowhere"}), "what.label"),
            (json!({"label": null, "application": true}), "what.application"),
            (json!({"parameters": {}}), "what.parameters.greeting"),
            (json!({"parameters": {"greeting": "a", "times": "x"}}), "what.parameters.times"),
            (json!({"parameters": {"greeting": "a", "other": 1}}), "what.parameters.other"),
            (json!({"parameters": 7}), "what.parameters"),
            (json!({"running_user": "a b"}), "what.running_user"),
            (json!({"timeout": 0}), "what.timeout"),
            (json!({"rollout": {"batch": 0}}), "what.rollout.batch"),
            (json!({"rollout": {"auto_revert": true}}), "what.rollout.auto_revert"),
            (json!({"instances": [1]}), "what.instances"),
            (json!({"deploy_task_id": 1}), "what.deploy_task_id"),
            (json!({"surprise": 1}), "what"),
        ] {
            let mut wanted = on_label();
            wanted["what"].as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let refused = shop.admin.post(PATH, body(&shop, wanted)).await.expect(400);
            let told = refused["field"].as_str().expect("a field");
            assert!(told == field || field == "what" && told.starts_with("what"), "{more} {refused}");
        }
        for more in [json!({"script": "none"}), json!({"label": null, "hosts": ["none"]}), json!({"label": null, "application": "none"})] {
            let mut wanted = on_label();
            wanted["what"].as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            shop.admin.post(PATH, body(&shop, wanted)).await.expect_error(404, 10004);
        }
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM schedules"), args![]).await, 0);
    }

    async fn it_is_whose_its_hosts_are(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        script(&shop).await;
        label(&shop, 0, &["web"]).await;
        let (ada, ben) = (server.user("ada").await, server.user("ben").await);
        let wanted = body(&shop, on_label());
        ada.post(PATH, wanted.clone()).await.expect(403);
        grant_host(&server, ada.id, shop.hosts[0], &["view_host", "login_host"]).await;
        let mut as_root = wanted.clone();
        as_root["what"]["running_user"] = "root".into();
        ada.post(PATH, as_root).await.expect(403);
        let schedule_id = id(&ada.post(PATH, wanted).await.expect(200));
        look(&server).await;
        let one = format!("{PATH}{schedule_id}/");
        ben.get(&one).await.expect(404);
        assert_eq!(ben.get(PATH).await.expect(200)["count"], 0);
        grant_host(&server, ben.id, shop.hosts[0], &["view_host"]).await;
        ben.get(&one).await.expect(200);
        assert_eq!(ben.get(PATH).await.expect(200)["count"], 1);
        ben.post(&format!("{one}actions/pause/"), json!({})).await.expect(403);
        ben.delete(&one).await.expect(403);
        pass(&server, 10).await;
        wait_for(&server, &shop, schedule_id, &["12:10 started"]).await;
        assert_eq!(ended(&shop, schedule_id).await, ["web-1"]);

        // It comes to mean a host that is closed to its owner, who sees and may hold it all the same.
        label(&shop, 1, &["web"]).await;
        pass(&server, 10).await;
        wait_for(&server, &shop, schedule_id, &["12:10 started", "12:20 failed"]).await;
        assert_eq!(reason(&shop, schedule_id).await, "this needs the right login_host on each host; it is missing on 1 of them");
        ben.get(&one).await.expect(404);
        assert_eq!(ben.get(PATH).await.expect(200)["count"], 0);
        assert_eq!(ada.get(PATH).await.expect(200)["count"], 1);
        ada.post(&format!("{one}actions/pause/"), json!({})).await.expect(200);
        ada.post(&format!("{one}actions/resume/"), json!({})).await.expect(403);
        ada.patch(&one, json!({"jitter": 1})).await.expect(403);
        ada.patch(&one, greets(&json!({"hosts": ["web-1"]}))).await.expect(200);
        ben.get(&one).await.expect(200);
        grant_host(&server, ben.id, shop.hosts[0], &["view_host", "login_host"]).await;
        ben.post(&format!("{one}actions/resume/"), json!({})).await.expect(200);
        // Whoever changes it answers for it.
        assert_eq!(ben.patch(&one, json!({"jitter": 1})).await.expect(200)["owner"], "ben");
        ada.delete(&one).await.expect(200);
    }

    async fn what_is_busy_is_waited_for_as_the_schedule_says(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        script(&shop).await;
        label(&shop, 0, &["web"]).await;
        let by_hand = json!({"script": "greet", "label": "web", "parameters": {"greeting": "first"}, "timeout": 86_400});
        let receipt = shop.admin.post("/tasks/actions/run-script/", by_hand).await.expect(200);
        let first: i64 = receipt["task_id"].as_str().expect("a task").parse().expect("digits");
        let mut ids = Vec::new();
        for (name, more) in [
            ("tries", json!({})),
            ("waits", json!({"if_busy": "wait"})),
            ("queues", json!({"overlap": "queue"})),
            ("queues and tries", json!({"overlap": "queue", "if_busy": "refuse"})),
        ] {
            let mut wanted = on_label();
            wanted["name"] = name.into();
            wanted.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            ids.push(schedule(&server, &shop, wanted).await);
        }
        pass(&server, 10).await;
        for (at, state) in [(0, "12:10 waiting"), (1, "12:10 started"), (2, "12:10 started"), (3, "12:10 waiting")] {
            wait_for(&server, &shop, ids[at], &[state]).await;
        }
        let queue = shop.admin.get("/queue/").await.expect(200);
        assert_eq!(queue["count"], 2, "{queue}");
        // The next moment of the one that waits finds it at work, and of the one that queues waits behind it.
        pass(&server, 10).await;
        wait_for(&server, &shop, ids[1], &["12:10 started", "12:20 skipped"]).await;
        wait_for(&server, &shop, ids[2], &["12:10 started", "12:20 waiting"]).await;
        let (second, third) = (started(&shop, ids[1]).await, started(&shop, ids[2]).await);
        end(&shop, first).await;
        begun(&server, &shop, second.min(third)).await;
        end(&shop, second.min(third)).await;
        begun(&server, &shop, second.max(third)).await;
        end(&shop, second.max(third)).await;
    }

    async fn a_crowd_at_one_second_runs_each_once(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        script(&shop).await;
        label(&shop, 0, &["web"]).await;
        let first = schedule(&server, &shop, {
            let mut wanted = on_label();
            wanted["if_busy"] = "wait".into();
            wanted
        }).await;
        for number in 1..CROWD {
            let copy = sql!(
                "INSERT INTO schedules (organisation_id, name, what, cron, zone, missed, missed_max, overlap, if_busy, jitter_s, \
                 owner_id, owner, next_moment, next_at, created_at) SELECT organisation_id, CAST($2 AS TEXT), what, cron, zone, \
                 missed, missed_max, overlap, if_busy, jitter_s, owner_id, owner, next_moment, next_at, created_at \
                 FROM schedules WHERE id = $1"
            );
            server.run(copy, args![first, format!("copy {number}")]).await;
        }
        server.advance(crate::schedules::MINUTE * 10);
        futures_util::future::join_all((0..3).map(|_| look(&server))).await;
        let runs = async |state: &'static str| {
            server.count(sql!("SELECT COUNT(*) FROM schedule_runs WHERE state = $1"), args![state]).await
        };
        let noted = server.count(sql!("SELECT COUNT(*) FROM schedule_runs"), args![]).await;
        assert_eq!(noted, CROWD, "by one look");
        drover_tests::wait_within(std::time::Duration::from_secs(120), "all to begin", async || {
            look(&server).await;
            runs("started").await == CROWD
        }).await;
        assert_eq!(server.count(sql!("SELECT COUNT(DISTINCT task_id) FROM schedule_runs"), args![]).await, CROWD);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, CROWD);
    }

    async fn moments_that_a_server_missed_are_made_up_for_once(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        script(&shop).await;
        label(&shop, 0, &["web"]).await;
        let mut wanted = on_label();
        wanted["missed"] = "once".into();
        let id = schedule(&server, &shop, wanted).await;
        let Shop { application, hosts, instances, admin } = shop;
        drop(admin);
        let server = server.restarted().await;
        let shop = Shop { admin: server.admin(), application, hosts, instances };
        server.advance(std::time::Duration::from_secs(35 * 60));
        let looks = (0..20).map(|_| look(&server));
        futures_util::future::join_all(looks).await;
        wait_for(&server, &shop, id, &["12:20 missed", "12:30 started"]).await;
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 1);
    }
}

/// The task of the moment that began.
async fn started(shop: &Shop, schedule: i64) -> i64 {
    let runs = runs(shop, schedule).await;
    let run = runs.iter().find(|run| run["state"] == "started").expect("one that began");
    run["task_id"].as_str().expect("a task").parse().expect("digits")
}

/// Waits until a task has what it waited for.
async fn begun(server: &TestServer, shop: &Shop, task: i64) {
    drover_tests::wait_until("its turn", async || {
        look(server).await;
        shop.admin.get(&format!("/tasks/{task}/")).await.expect(200)["phase"] == "instances"
    })
    .await;
}
