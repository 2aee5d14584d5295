//! Starting, stopping and restarting instances, over HTTP, while no agent is connected.

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use crate::deploys::{PATH, Shop, grant};

/// Where an action on instances lives.
fn actions(shop: &Shop, action: &str) -> String {
    format!("/applications/{}/instances/actions/{action}/", shop.application)
}

async fn set(shop: &Shop, change: Value) {
    shop.admin.patch(&format!("/applications/{}/", shop.application), change).await.expect(200);
}

/// A shop whose instances can be started and stopped.
async fn shop(server: &TestServer, hosts: usize) -> Shop {
    let shop = Shop::new(server, hosts).await;
    set(&shop, json!({"startup_cmd": "start {{ host.name }}", "stop_cmd": "stop", "pid_path": ""})).await;
    shop
}

async fn operate(shop: &Shop, action: &str, query: &str) -> i64 {
    let receipt =
        shop.admin.post(&format!("{}{query}", actions(shop, action)), json!(shop.instances)).await.expect(200);
    assert!(receipt["task_output"].as_str().is_some_and(|address| address.starts_with("ws")), "{receipt}");
    receipt["task_id"].as_str().expect("text").parse().expect("digits")
}

async fn detail(shop: &Shop, task: i64) -> Value {
    shop.admin.get(&format!("/tasks/{task}/")).await.expect(200)
}

async fn statuses(shop: &Shop) -> Vec<String> {
    let page = shop.admin.get(&format!("/applications/{}/instances/", shop.application)).await.expect(200);
    let instances = page["results"].as_array().expect("a page").iter();
    instances.map(|instance| instance["status"].as_str().expect("a status").to_owned()).collect()
}

both_engines! {
    async fn an_operation_is_a_task_of_its_own(server: TestServer) {
        let shop = shop(&server, 2).await;
        let task = operate(&shop, "start", "?batch=50%25&pause=5&timeout=77").await;
        assert_eq!(statuses(&shop).await, ["restarting", "restarting"]);
        let told = detail(&shop, task).await;
        assert_eq!((&told["kind"], &told["deploy_task_id"], &told["timeout"]), (&json!("start"), &Value::Null, &json!(77)));
        assert_eq!((&told["rollout"]["batch"], &told["rollout"]["pause"]), (&json!("50%"), &json!(5)));
        let entries = sql!("SELECT entry FROM executions WHERE task_id = $1 ORDER BY ordinal");
        let entries: Vec<String> = server.read().await.values(entries, args![task]).await.expect("the executions");
        assert!(entries[1].contains("start web-2"), "{}", entries[1]);
        // Nothing else happens to them meanwhile.
        for action in ["start", "stop", "restart"] {
            shop.admin.post(&actions(&shop, action), json!(shop.instances)).await.expect_error(409, 10006);
        }
        shop.admin.post(&format!("/tasks/{task}/actions/cancel/"), json!({"reason": "not now"})).await.expect(200);
        wait_until("the end", async || detail(&shop, task).await["status"] == "failed").await;
        assert_eq!(statuses(&shop).await, ["stopped", "stopped"], "they are as they were");
        assert_eq!(detail(&shop, task).await["error"], "cancelled by admin: not now");
        let page = shop.admin.get("/tasks/?kind=start&status=failed").await.expect(200);
        assert_eq!((&page["count"], &page["results"][0]["task_id"]), (&json!(1), &json!(task.to_string())));
        assert_eq!(shop.admin.get("/tasks/?kind=stop").await.expect(200)["count"], 0);
        assert_eq!(shop.admin.get("/tasks/?kind=dance").await.expect(400)["field"], "kind");
        let audit = sql!("SELECT action FROM audit_entries WHERE object_type = 'task' ORDER BY id");
        let audit: Vec<String> = server.read().await.values(audit, args![]).await.expect("the audit");
        assert_eq!(audit, ["start", "cancel"]);
    }

    async fn states_follow_what_happened(server: TestServer) {
        let shop = shop(&server, 1).await;
        shop.admin.post(&actions(&shop, "stop"), json!(shop.instances)).await.expect_error(409, 10006);
        let task = operate(&shop, "restart", "").await;
        wait_until("its turn", async || detail(&shop, task).await["phase"] == "instances").await;
        // Its time runs out before the agent comes: nothing was touched.
        server.advance(std::time::Duration::from_secs(301));
        sweep_once(server.kernel(), true).await.expect("a round");
        let told = detail(&shop, task).await;
        assert_eq!((&told["status"], &told["instances"][0]["status"]), (&json!("failed"), &json!("timed_out")));
        assert_eq!(statuses(&shop).await, ["stopped"]);
        server.run(sql!("UPDATE instances SET status = 'running'"), args![]).await;
        shop.admin.post(&actions(&shop, "start"), json!(shop.instances)).await.expect_error(409, 10006);
        operate(&shop, "stop", "").await;
    }

    async fn what_makes_no_sense_changes_nothing(server: TestServer) {
        let shop = shop(&server, 1).await;
        let other = Shop { admin: server.admin(), application: shop.application, hosts: vec![], instances: vec![999] };
        let refused = other.admin.post(&actions(&shop, "restart"), json!([{"id": 999}])).await.expect(400);
        assert_eq!(refused["field"], "id");
        for (query, field) in [("?batch=0", "batch"), ("?batch=some", "batch"), ("?timeout=0", "timeout"), ("?max_failures=-1", "max_failures"), ("?pause=-1", "pause")] {
            let refused = shop.admin.post(&format!("{}{query}", actions(&shop, "restart")), json!(shop.instances)).await;
            assert_eq!(refused.expect(400)["field"], field, "{query}");
        }
        set(&shop, json!({"startup_cmd": "echo {{ nothing }}"})).await;
        let refused = shop.admin.post(&actions(&shop, "start"), json!(shop.instances)).await.expect(400);
        assert_eq!(refused["field"], "startup_cmd");
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        for field in ["startup_cmd", "stop_cmd", "pid_path"] {
            let mut texts = json!({"startup_cmd": "true", "stop_cmd": "true", "pid_path": ""});
            texts[field] = endless.into();
            set(&shop, texts).await;
            let refused = shop.admin.post(&actions(&shop, "restart"), json!(shop.instances)).await.expect(400);
            assert_eq!(refused["field"], field);
            let reason = refused["message"].as_str().expect("a reason");
            assert!(reason.contains("rendering takes more than 500000 steps"), "{reason}");
        }
        set(&shop, json!({"startup_cmd": "", "stop_cmd": "", "pid_path": ""})).await;
        for action in ["start", "restart"] {
            let refused = shop.admin.post(&actions(&shop, action), json!(shop.instances)).await.expect_error(409, 10006);
            assert!(refused["message"].as_str().is_some_and(|text| text.contains("no startup_cmd")), "{refused}");
        }
        assert_eq!(statuses(&shop).await, ["stopped"]);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0);
    }

    async fn the_right_to_restart_is_one_of_its_own(server: TestServer) {
        let shop = shop(&server, 1).await;
        let user = server.user("ann").await;
        user.post(&actions(&shop, "restart"), json!(shop.instances)).await.expect(404);
        grant(&server, user.id, shop.application, &["view_app"]).await;
        user.post(&actions(&shop, "restart"), json!(shop.instances)).await.expect(403);
        grant(&server, user.id, shop.application, &["view_app", "restart_app"]).await;
        let receipt = user.post(&actions(&shop, "restart"), json!(shop.instances)).await.expect(200);
        let task = receipt["task_id"].as_str().expect("text").to_owned();
        user.post(&format!("/tasks/{task}/actions/cancel/"), json!({})).await.expect(200);
        wait_until("the end", async || {
            user.get(&format!("/tasks/{task}/")).await.expect(200)["status"] == "failed"
        })
        .await;
        assert_eq!(user.get("/tasks/").await.expect(200)["count"], 1);
        let stranger = server.user("eve").await;
        assert_eq!(stranger.get("/tasks/").await.expect(200)["count"], 0);
        stranger.get(&format!("/tasks/{task}/")).await.expect(404);
        // Who may restart does not hold updates.
        shop.hook("pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": shop.instances});
        let update = shop.admin.post(&format!("{PATH}{deploy_task}/sub-upgrade-tasks/"), body).await.expect(200);
        let update = update["task_id"].as_str().expect("text");
        user.post(&format!("/tasks/{update}/actions/cancel/"), json!({})).await.expect_error(409, 10006);
    }
}
