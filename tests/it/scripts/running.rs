//! Scripts that are run by themselves, over HTTP.

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_shared::message::SCRIPT_FEATURE;
use drover_tests::stub_agent::{StubAgent, listen};
use drover_tests::{Answer, Client, TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use crate::deploys::{Shop, grant, id};

const RUN: &str = "/tasks/actions/run-script/";

/// A script that greets.
async fn script(shop: &Shop) -> i64 {
    let body = json!({"name": "greet", "language": "bash", "running_user": "nobody",
        "content": "echo {{ params.greeting | shell_quote }} {{ host.name }} {{ params.times }} {{ action }}",
        "parameters": [{"name": "greeting", "type": "text"}, {"name": "times", "type": "number", "default": 1}]});
    id(&shop.admin.post("/applications/deploy-scripts/", body).await.expect(200))
}

fn on(hosts: &[i64]) -> Value {
    json!({"script": "greet", "hosts": hosts, "parameters": {"greeting": "hello"}})
}

fn number(receipt: &Value) -> i64 {
    receipt["task_id"].as_str().expect("text").parse().expect("digits")
}

async fn started(shop: &Shop, body: Value) -> i64 {
    number(&shop.admin.post(RUN, body).await.expect(200))
}

async fn detail(shop: &Shop, task: i64) -> Value {
    shop.admin.get(&format!("/tasks/{task}/")).await.expect(200)
}

async fn act(client: &Client, task: i64, action: &str, body: Value) -> Answer {
    client.post(&format!("/tasks/{task}/actions/{action}/"), body).await
}

/// Writes how the script ended on a host, as its agent would report it.
async fn report(server: &TestServer, task: i64, host: i64, state: &str) {
    let change = sql!(
        "UPDATE executions SET state = $3, finished_at = 1, dispatched_at = 1 WHERE task_id = $1 AND host_id = $2"
    );
    assert_eq!(server.run(change, args![task, host, state]).await, 1);
    sweep_once(server.kernel(), true).await.expect("a round");
}

pub(crate) async fn grant_host(server: &TestServer, user: i64, host: i64, rights: &[&str]) {
    let permission: serde_json::Map<String, Value> =
        rights.iter().map(|right| ((*right).to_owned(), json!(true))).collect();
    let body = json!({"authorizations": [{"id": host, "permission": permission}]});
    server.admin().post(&format!("/users/{user}/host/perms/"), body).await.expect(200);
}

both_engines! {
    async fn it_is_rendered_for_every_host_and_stored(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let script = script(&shop).await;
        let mut body = on(&shop.hosts);
        body["script"] = json!({"id": script});
        body["rollout"] = json!({"batch": 1});
        let planned = shop.admin.post(&format!("{RUN}?dry_run=true"), body.clone()).await.expect(200);
        assert_eq!((&planned["count"], &planned["running_user"]), (&json!(2), &json!("nobody")));
        assert_eq!(planned["content"], "echo 'hello' web-1 1 script");
        assert_eq!(planned["hosts"][1], json!({"id": shop.hosts[1], "hostname": "web-2", "batch": 2}));
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0, "nothing is stored");

        let task = started(&shop, body).await;
        let told = detail(&shop, task).await;
        assert_eq!((&told["kind"], &told["version"], &told["deploy_task_id"]), (&json!("script"), &json!("greet"), &Value::Null));
        let ids: Vec<&Value> = told["instances"].as_array().expect("hosts").iter().map(|one| &one["id"]).collect();
        assert_eq!(ids, [&json!(shop.hosts[0]), &json!(shop.hosts[1])], "hosts are named by their ids");
        let entries: Vec<String> = server.read().await
            .values(sql!("SELECT entry FROM executions WHERE task_id = $1 ORDER BY ordinal"), args![task]).await.expect("entries");
        let entry: Value = serde_json::from_str(&entries[1]).expect("an entry");
        assert_eq!(entry["steps"][0]["content"], "echo 'hello' web-2 1 script");
        assert_eq!(entry["environment"], json!({"PARAM_GREETING": "hello", "PARAM_TIMES": "1"}));
        assert_eq!((&entry["action"], &entry["steps"][0]["running_user"]), (&json!("script"), &json!("nobody")));
        assert_eq!(shop.admin.get("/tasks/?kind=script").await.expect(200)["count"], 1);
        let audit = sql!("SELECT detail FROM audit_entries WHERE action = 'script' AND object_id = $1");
        let audit: Vec<String> = server.read().await.values(audit, args![task]).await.expect("the audit");
        assert_eq!(audit, ["2 hosts: web-1, web-2"], "no values of parameters");

        // One after the other, and what failed again.
        wait_until("the first host's turn", async || detail(&shop, task).await["phase"] == "instances").await;
        report(&server, task, shop.hosts[0], "failed").await;
        wait_until("the end", async || detail(&shop, task).await["status"] == "failed").await;
        let again = act(&shop.admin, task, "retry", json!({"instances": [shop.hosts[0]]})).await.expect(200);
        let told = detail(&shop, number(&again)).await;
        assert_eq!((&told["instances"][0]["hostname"], told["instances"].as_array().map(Vec::len)), (&json!("web-1"), Some(1)));
    }

    async fn a_host_that_was_tried_again_is_tried_again_there(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        script(&shop).await;
        let task = started(&shop, on(&shop.hosts)).await;
        wait_until("its turn", async || detail(&shop, task).await["phase"] == "instances").await;
        report(&server, task, shop.hosts[0], "failed").await;
        report(&server, task, shop.hosts[1], "failed").await;
        let named = json!({"instances": [shop.hosts[0]]});
        let first = number(&act(&shop.admin, task, "retry", named.clone()).await.expect(200));
        report(&server, first, shop.hosts[0], "succeeded").await;
        wait_until("the end", async || detail(&shop, first).await["status"] == "finished").await;
        let refused = act(&shop.admin, task, "retry", named).await.expect_error(409, 10006);
        let expected = format!("web-1 was tried again already: retry sub-task {first} instead");
        assert!(refused["message"].as_str().is_some_and(|text| text.contains(&expected)), "{refused}");
        // What is left is the other host alone.
        let second = number(&act(&shop.admin, task, "retry", json!({})).await.expect(200));
        let told = detail(&shop, second).await;
        assert_eq!((&told["instances"][0]["hostname"], told["instances"].as_array().map(Vec::len)), (&json!("web-2"), Some(1)));
        act(&shop.admin, task, "retry", json!({})).await.expect_error(409, 10006);
        // What never began there may be tried again from here.
        act(&shop.admin, second, "cancel", json!({})).await.expect(200);
        wait_until("the end", async || detail(&shop, second).await["status"] == "failed").await;
        act(&shop.admin, task, "retry", json!({})).await.expect(200);
    }

    async fn hosts_are_chosen_by_names_applications_and_labels(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        script(&shop).await;
        let labels = json!({"labels": ["db", "rack=4", "db"]});
        let host = shop.admin.patch(&format!("/hosts/{}/", shop.hosts[2]), labels).await.expect(200);
        assert_eq!(host["labels"], json!(["db", "rack=4"]));
        assert_eq!(shop.admin.get("/hosts/?label=db").await.expect(200)["count"], 1);
        for (wanted, expected) in [
            (json!({"hosts": ["web-2", shop.hosts[0]]}), vec!["web-2", "web-1"]),
            (json!({"hosts": [{"id": shop.hosts[1]}]}), vec!["web-2"]),
            (json!({"application": "shop"}), vec!["web-1", "web-2", "web-3"]),
            (json!({"application": shop.application}), vec!["web-1", "web-2", "web-3"]),
            (json!({"label": "db"}), vec!["web-3"]),
        ] {
            let mut body = on(&[]);
            body.as_object_mut().expect("an object").remove("hosts");
            body.as_object_mut().expect("an object").extend(wanted.as_object().expect("an object").clone());
            let planned = shop.admin.post(&format!("{RUN}?dry_run=true"), body).await.expect(200);
            let names: Vec<&str> =
                planned["hosts"].as_array().expect("hosts").iter().filter_map(|host| host["hostname"].as_str()).collect();
            assert_eq!(names, expected, "{wanted}");
        }
        for labels in [json!(["a b"]), json!([""]), json!(["é"])] {
            let path = format!("/hosts/{}/", shop.hosts[0]);
            assert_eq!(shop.admin.patch(&path, json!({"labels": labels})).await.expect(400)["field"], "labels");
        }
    }

    async fn bad_input_is_named_and_makes_nothing(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        script(&shop).await;
        let good = on(&shop.hosts);
        for (change, field) in [
            (json!({"hosts": []}), "hosts"),
            (json!({"label": "db"}), "hosts"),
            (json!({"hosts": [true]}), "hosts[0]"),
            (json!({"script": true}), "script"),
            (json!({"parameters": {}}), "parameters.greeting"),
            (json!({"parameters": {"greeting": "x", "times": "many"}}), "parameters.times"),
            (json!({"parameters": {"greeting": "x", "other": 1}}), "parameters.other"),
            (json!({"timeout": 0}), "timeout"),
            (json!({"running_user": "a b"}), "running_user"),
            (json!({"rollout": {"auto_revert": true}}), "rollout.auto_revert"),
            (json!({"rollout": {"after_required": true}}), "rollout.after_required"),
            (json!({"rollout": {"batch": 0}}), "rollout.batch"),
            (json!({"if_busy": "x"}), "if_busy"),
        ] {
            let mut body = good.clone();
            body.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
            let refused = shop.admin.post(RUN, body).await.expect(400);
            assert_eq!(refused["field"], field, "{change}: {refused}");
        }
        for change in [json!({"hosts": ["nowhere"]}), json!({"hosts": [4711]}), json!({"script": "none"})] {
            let mut body = good.clone();
            body.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
            shop.admin.post(RUN, body).await.expect_error(404, 10004);
        }
        let wrong = json!({"name": "wrong", "language": "bash", "content": "echo {{ application.name }}"});
        shop.admin.post("/applications/deploy-scripts/", wrong).await.expect(200);
        let mut body = json!({"script": "wrong", "hosts": shop.hosts});
        assert_eq!(shop.admin.post(RUN, body.clone()).await.expect(400)["field"], "script");
        let wrong = json!({"name": "asks", "language": "bash", "content": "echo {{ secrets.NOPE }}"});
        shop.admin.post("/applications/deploy-scripts/", wrong).await.expect(200);
        body["script"] = "asks".into();
        assert_eq!(shop.admin.post(RUN, body).await.expect(400)["field"], "script");
        let described = json!({"name": "x", "language": "bash", "content": "x", "parameters": [{"name": "A", "type": "text"}]});
        let refused = shop.admin.post("/applications/deploy-scripts/", described).await.expect(400);
        assert_eq!(refused["field"], "parameters[0].name");
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0);
    }

    async fn a_secret_is_given_by_its_name_and_stored_as_that(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let body = json!({"name": "dump", "language": "bash", "content": "dump -p {{ params.password | shell_quote }}",
            "parameters": [{"name": "password", "type": "secret", "choices": ["DB", "REPLICA", "NOWHERE"]},
                {"name": "to", "type": "text", "default": "/tmp"}]});
        shop.admin.post("/applications/deploy-scripts/", body).await.expect(200);
        shop.admin.patch("/secrets/", json!({"secrets": {"DB": "hunter-two", "OTHER": "swordfish"}})).await.expect(200);
        let asks = |parameters: Value| json!({"script": "dump", "hosts": shop.hosts, "parameters": parameters});
        let task = started(&shop, asks(json!({"password": "DB"}))).await;
        let entries: Vec<String> = server.read().await
            .values(sql!("SELECT entry FROM executions WHERE task_id = $1"), args![task]).await.expect("entries");
        let entry: Value = serde_json::from_str(&entries[0]).expect("an entry");
        assert_eq!(entry["steps"][0]["content"], "dump -p \"${DROVER_SECRET_DB}\"");
        assert_eq!((&entry["secrets"], &entry["environment"]), (&json!(["DB"]), &json!({"PARAM_TO": "/tmp"})));
        assert!(!entries[0].contains("hunter-two"));
        // Neither what the script does not offer, nor what no host has, nor by way of another parameter.
        for (parameters, field) in [
            (json!({"password": "OTHER"}), "parameters.password"),
            (json!({"password": "hunter-two"}), "parameters.password"),
            (json!({"password": "NOWHERE"}), "parameters.password"),
            (json!({}), "parameters.password"),
            (json!({"password": "DB", "to": "@@drover-secret:OTHER@@"}), "parameters.to"),
            (json!({"password": "DB", "to": "$DROVER_SECRET_OTHER"}), "parameters.to"),
        ] {
            let refused = shop.admin.post(RUN, asks(parameters.clone())).await.expect(400);
            assert_eq!(refused["field"], field, "{parameters}: {refused}");
        }
    }

    async fn whoever_may_log_in_everywhere_may(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        script(&shop).await;
        let user = server.user("ann").await;
        user.post(RUN, on(&shop.hosts)).await.expect_error(404, 10004);
        grant_host(&server, user.id, shop.hosts[0], &["view_host", "login_host"]).await;
        grant_host(&server, user.id, shop.hosts[1], &["view_host"]).await;
        let refused = user.post(RUN, on(&shop.hosts)).await.expect_error(403, 10003);
        assert!(refused["message"].as_str().is_some_and(|text| text.ends_with("missing on web-2")), "{refused}");
        let one = number(&user.post(RUN, on(&shop.hosts[..1])).await.expect(200));
        let mut as_root = on(&shop.hosts[..1]);
        as_root["running_user"] = "root".into();
        user.post(RUN, as_root).await.expect_error(403, 10003);
        act(&user, one, "cancel", json!({})).await.expect(200);

        // Who sees all hosts sees the task; who may log in on all of them may end it.
        let both = started(&shop, on(&shop.hosts)).await;
        let path = format!("/tasks/{both}/");
        user.get(&path).await.expect(200);
        assert_eq!(user.get("/tasks/?kind=script").await.expect(200)["count"], 2);
        assert_eq!(user.get("/locks/").await.expect(200)["count"], 2);
        act(&user, both, "cancel", json!({})).await.expect_error(403, 10003);
        let other = server.user("ben").await;
        grant_host(&server, other.id, shop.hosts[0], &["view_host", "login_host"]).await;
        grant(&server, other.id, shop.application, &["view_app", "deploy_app", "restart_app"]).await;
        other.get(&path).await.expect_error(404, 10004);
        assert_eq!(other.get("/tasks/?kind=script").await.expect(200)["count"], 1);
        grant_host(&server, user.id, shop.hosts[1], &["view_host", "login_host"]).await;
        act(&user, both, "cancel", json!({})).await.expect(200);
    }

    async fn a_host_runs_one_at_a_time(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        script(&shop).await;
        let first = started(&shop, on(&shop.hosts[..1])).await;
        shop.admin.post(RUN, on(&shop.hosts)).await.expect_error(409, 10006);
        // Instances are something else.
        let deploy_task = shop.started().await;
        crate::tasks::upgrade(&shop, deploy_task, &shop.instances).await;
        let mut body = on(&shop.hosts);
        body["if_busy"] = "wait".into();
        let second = started(&shop, body).await;
        let refused = shop.admin.post(RUN, on(&shop.hosts[1..])).await.expect_error(409, 10006);
        assert!(refused["message"].as_str().is_some_and(|text| text.contains("waits for the host web-2 already")), "{refused}");
        let queue = shop.admin.get("/queue/").await.expect(200);
        assert_eq!(queue["results"][0]["waits_for"], json!([{"kind": "host", "id": shop.hosts[0], "hostname": "web-1",
            "why": "taken", "task_id": first.to_string()}]));
        assert_eq!(queue["results"][0]["application"], Value::Null);
        shop.admin.delete(&format!("/hosts/{}/", shop.hosts[0])).await.expect_error(409, 10006);
        report(&server, first, shop.hosts[0], "succeeded").await;
        wait_until("the second one", async || detail(&shop, second).await["phase"] == "instances").await;

        // Lost keeps the host until somebody says something.
        report(&server, second, shop.hosts[0], "lost").await;
        report(&server, second, shop.hosts[1], "succeeded").await;
        wait_until("the end", async || detail(&shop, second).await["status"] == "failed").await;
        shop.admin.post(RUN, on(&shop.hosts[..1])).await.expect_error(409, 10006);
        assert_eq!(shop.admin.get("/tasks/?unanswered=true").await.expect(200)["count"], 1);
        let said = json!({"instances": [shop.hosts[0]], "answer": "done", "reason": "I looked"});
        act(&shop.admin, second, "answer", said).await.expect(200);
        let third = started(&shop, on(&shop.hosts[..1])).await;
        let path = format!("/locks/hosts/{}/actions/break/", shop.hosts[0]);
        shop.admin.post(&path, json!({"reason": "it hangs"})).await.expect(200);
        wait_until("its end", async || detail(&shop, third).await["status"] == "failed").await;
        shop.admin.post(&path, json!({"reason": "again"})).await.expect_error(409, 10006);
    }

    async fn an_older_agent_is_sent_none(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        script(&shop).await;
        let address = listen(&server).await;
        let _old = StubAgent::enrol(&server, address, "web-1", &[]).await;
        let mut new = StubAgent::enrol(&server, address, "web-2", &[SCRIPT_FEATURE]).await;
        let task = started(&shop, on(&shop.hosts)).await;
        let statement = new.order().await;
        new.accept(&statement).await;
        new.succeed(&statement).await;
        wait_until("the end", async || detail(&shop, task).await["status"] == "failed").await;
        let told = detail(&shop, task).await;
        assert_eq!((&told["instances"][0]["status"], &told["instances"][1]["status"]), (&json!("failed"), &json!("succeeded")));
        assert!(told["instances"][0]["error"].as_str().is_some_and(|text| text.contains("too old")), "{told:#}");
    }
}
