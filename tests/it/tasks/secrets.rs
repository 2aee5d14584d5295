//! Secrets of hooks: named in the plan, sent beside the order, and nowhere else.

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_shared::message::{Holding, SHARED_PATHS_FEATURE, ToAgent};
use drover_shared::order::{Order, Statement};
use drover_shared::secret::FEATURE;
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, finished, listen};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{detail, entries, instances, references, upgrade, upgrades};
use crate::deploys::Shop;

const VALUE: &str = "correct horse battery";
const SCRIPT: &str = "login {{ secrets.TOKEN | shell_quote }} \"$DROVER_SECRET_DB_PASSWORD\" {{ secrets.TOKEN }}";

async fn set(shop: &Shop, secrets: Value) {
    let path = format!("/applications/{}/secrets/", shop.application);
    shop.admin.patch(&path, json!({"secrets": secrets})).await.expect(200);
}

/// A shop whose hook needs the organisation's `TOKEN` and its own `DB_PASSWORD`.
async fn shop(server: &TestServer) -> Shop {
    let shop = Shop::new(server, 1).await;
    let wide = json!({"secrets": {"TOKEN": "everybody's", "DB_PASSWORD": "not this one", "UNUSED": "never sent"}});
    shop.admin.patch("/secrets/", wide).await.expect(200);
    set(&shop, json!({"DB_PASSWORD": VALUE})).await;
    shop.hook("pre_exec", SCRIPT).await;
    shop
}

/// The next order, with its secrets by name.
async fn order(agent: &mut StubAgent) -> (Statement, Order, Value) {
    let ToAgent::Run { order, secrets } = agent.hear().await else { panic!("no order") };
    let statement = serde_json::from_str(&order.statement).expect("a statement");
    (statement, order, serde_json::to_value(secrets).expect("secrets"))
}

/// Waits until a task is over and gives its instance's part.
async fn ended(shop: &Shop, deploy_task: i64, task: i64) -> Value {
    wait_until("the end", async || detail(shop, deploy_task, task).await["status"] != "running").await;
    detail(shop, deploy_task, task).await["instances"][0].clone()
}

/// What an agent says that holds an order whose secrets it no longer has.
fn holding(statement: &Statement) -> Holding {
    Holding {
        execution_id: statement.execution_id.clone(),
        attempt: statement.attempt,
        channel: 1,
        log_length: 0,
        finished: false,
        needs_order: true,
    }
}

both_engines! {
    async fn a_plan_names_its_secrets_and_holds_no_value(server: TestServer) {
        let shop = shop(&server).await;
        shop.hook("post_exec", "echo nothing").await;
        shop.hook("global_post_exec", "echo \"$DROVER_SECRET_TOKEN\"").await;
        let deploy_task = shop.started().await;
        let body = json!({"instances": references(&shop.instances)});
        let plan = shop.admin.post(&format!("{}?dry_run=true", upgrades(deploy_task)), body).await.expect(200);
        let shown = plan.to_string();
        assert!(shown.contains("@@drover-secret:TOKEN@@") && shown.contains("${DROVER_SECRET_TOKEN}"), "{shown}");
        assert_eq!(plan["targets"][0]["secrets"], json!(["DB_PASSWORD", "TOKEN"]), "{plan}");
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let entries = entries(&server, task).await;
        assert_eq!(entries[0]["secrets"], json!(["DB_PASSWORD", "TOKEN"]));
        assert_eq!(entries[1]["secrets"], json!(["TOKEN"]));
        let told = detail(&shop, deploy_task, task).await.to_string();
        for text in [shown, told, json!(entries).to_string()] {
            assert!(!text.contains("horse") && !text.contains("everybody"), "{text}");
        }
        for sql in [
            sql!("SELECT COUNT(*) FROM executions WHERE entry LIKE '%horse%'"),
            sql!("SELECT COUNT(*) FROM audit_entries WHERE detail LIKE '%horse%'"),
            sql!("SELECT COUNT(*) FROM secrets WHERE sealed LIKE '%horse%'"),
        ] {
            assert_eq!(server.count(sql, args![]).await, 0);
        }
    }

    async fn each_host_is_sent_what_it_resolves_to(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        set(&shop, json!({"TOKEN": "the application's"})).await;
        let own = json!({"secrets": {"TOKEN": "the first host's", "FIRST": "of the first host"}});
        shop.admin.patch(&format!("/hosts/{}/secrets/", shop.hosts[0]), own).await.expect(200);
        let path = format!("/applications/{}/instances/{}/secrets/", shop.application, shop.instances[1]);
        shop.admin.patch(&path, json!({"secrets": {"TOKEN": "the second's", "SECOND": "of the second"}})).await.expect(200);
        let script = shop.hook("pre_exec", "{% for name in secrets %}{{ secrets[name] }} {% endfor %}").await;
        shop.hook("global_pre_exec", "login \"$DROVER_SECRET_TOKEN\"").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let names: Vec<Value> = entries(&server, task).await.iter().map(|entry| entry["secrets"].clone()).collect();
        assert_eq!(names, [json!(["TOKEN"]), json!(["FIRST", "TOKEN"]), json!(["SECOND", "TOKEN"])]);
        let address = listen(&server).await;
        let mut first = StubAgent::enrol(&server, address, "web-1", &[FEATURE]).await;
        let mut second = StubAgent::enrol(&server, address, "web-2", &[FEATURE]).await;
        let (statement, _, secrets) = order(&mut first).await;
        assert_eq!(secrets, json!({"TOKEN": "the first host's"}), "a global hook sees its host's");
        first.end(finished(&statement, ExecutionState::Succeeded)).await;
        let archived = first.hear().await;
        assert!(matches!(archived, ToAgent::Archived { .. }), "{archived:?}");
        assert_eq!(order(&mut first).await.2, json!({"TOKEN": "the first host's", "FIRST": "of the first host"}));
        assert_eq!(order(&mut second).await.2, json!({"TOKEN": "the second's", "SECOND": "of the second"}));
        // What one target lacks refuses the plan as a whole.
        let path = format!("/applications/deploy-scripts/{script}/");
        shop.admin.patch(&path, json!({"content": "echo \"$DROVER_SECRET_FIRST\""})).await.expect(200);
        let other = Shop { instances: vec![shop.instances[1]], ..shop };
        let body = json!({"instances": references(&other.instances)});
        let error = other.admin.post(&format!("{}?dry_run=true", upgrades(deploy_task)), body).await.expect_error(400, 10001);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("no secret `FIRST`")), "{error}");
    }

    async fn a_secret_that_does_not_exist_refuses_the_plan(server: TestServer) {
        let shop = shop(&server).await;
        let script = shop.hook("post_exec", "true").await;
        let deploy_task = shop.started().await;
        for (content, part) in [
            ("echo {{ secrets.NOPE }}", "no secret `NOPE`"),
            ("echo \"$DROVER_SECRET_NOPE\"", "no secret `NOPE`"),
            ("echo @@drover-secret:NOPE@@", "no secret `NOPE`"),
            ("echo {{ secrets.TOKEN | lower }}", "no filter"),
        ] {
            let path = format!("/applications/deploy-scripts/{script}/");
            shop.admin.patch(&path, json!({"content": content})).await.expect(200);
            let body = json!({"instances": references(&shop.instances)});
            let error = shop.admin.post(&upgrades(deploy_task), body).await.expect_error(400, 10001);
            assert_eq!(error["field"], "lifecycle_hooks.post_exec.script", "{content}");
            let message = error["message"].as_str().expect("a message");
            assert!(message.contains(part), "{content}: {message}");
        }
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await, 0);
        shop.set(json!({"lifecycle_hooks": {"post_exec": null}, "deploy_path": "/srv/{{ secrets.TOKEN }}"})).await;
        let body = json!({"instances": references(&shop.instances)});
        let error = shop.admin.post(&upgrades(deploy_task), body.clone()).await.expect_error(400, 10001);
        assert_eq!(error["field"], "deploy_path", "{error}");
        shop.set(json!({"deploy_path": null})).await;
        for (health, member) in [
            (json!({"http": "http://127.0.0.1/{{ secrets.TOKEN }}"}), "rollout.health.http"),
            (json!({"command": "check {{ secrets.TOKEN }}"}), "rollout.health.command"),
        ] {
            let body = json!({"instances": references(&shop.instances), "rollout": {"health": health}});
            let error = shop.admin.post(&upgrades(deploy_task), body).await.expect_error(400, 10001);
            assert_eq!(error["field"], member, "{error}");
        }
    }

    async fn values_are_sent_as_they_are_when_the_order_is(server: TestServer) {
        let shop = shop(&server).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        set(&shop, json!({"DB_PASSWORD": "a newer value"})).await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        let (statement, sent, secrets) = order(&mut agent).await;
        let expected = json!({"TOKEN": "everybody's", "DB_PASSWORD": "a newer value"});
        assert_eq!(secrets, expected, "what the entry names, and no more");
        assert!(!sent.entry.contains("newer") && !sent.statement.contains("newer"));
        // The order that never arrived, and the one whose secrets went with the agent's memory.
        agent.come_back(Vec::new()).await;
        assert_eq!(order(&mut agent).await.2, expected);
        agent.accept(&statement).await;
        wait_until("the acceptance", async || {
            detail(&shop, deploy_task, task).await["instances"][0]["status"] == "running"
        })
        .await;
        agent.come_back(vec![holding(&statement)]).await;
        assert_eq!(order(&mut agent).await.2, expected);
        // It failed, and a retry needs them once more.
        agent.end(finished(&statement, ExecutionState::Failed)).await;
        assert_eq!(ended(&shop, deploy_task, task).await["status"], "failed");
        let path = format!("{}{task}/actions/retry/", upgrades(deploy_task));
        shop.admin.post(&path, json!({})).await.expect(200);
        let archived = agent.hear().await;
        assert!(matches!(archived, ToAgent::Archived { .. }), "{archived:?}");
        let (statement, _, secrets) = order(&mut agent).await;
        assert_eq!(secrets, expected);
        agent.end(finished(&statement, ExecutionState::Succeeded)).await;
        wait_until("the end", async || instances(&shop).await == ["running"]).await;
    }

    async fn an_order_whose_answer_was_not_kept_is_sent_again_with_its_secrets(server: TestServer) {
        let shop = shop(&server).await;
        let deploy_task = shop.started().await;
        upgrade(&shop, deploy_task, &shop.instances).await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        let first = order(&mut agent).await;
        agent.accept(&first.0).await;
        // As if what it said had met no database.
        wait_until("the order to be taken", async || {
            server.run(sql!("UPDATE executions SET state = 'dispatched' WHERE state = 'running'"), args![]).await == 1
        })
        .await;
        server.advance(std::time::Duration::from_secs(11));
        sweep_once(server.kernel(), true).await.expect("a round");
        let again = order(&mut agent).await;
        assert_eq!((first.0.execution_id, first.2), (again.0.execution_id, again.2));
    }

    async fn what_was_cancelled_while_it_waited_for_its_secrets_gets_none(server: TestServer) {
        let shop = shop(&server).await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let (statement, ..) = order(&mut agent).await;
        agent.accept(&statement).await;
        wait_until("the order to be taken", async || {
            detail(&shop, deploy_task, task).await["instances"][0]["status"] == "running"
        })
        .await;
        let told = |message: &ToAgent| matches!(message, ToAgent::Cancel { execution_id, .. } if *execution_id == statement.execution_id);
        let path = format!("{}{task}/actions/cancel/", upgrades(deploy_task));
        shop.admin.post(&path, json!({"reason": "wrong version"})).await.expect(200);
        while !told(&agent.hear().await) {}
        // Before it did anything its host is restarted.
        agent.come_back(vec![holding(&statement)]).await;
        let heard = agent.heard().await;
        assert!(!heard.iter().any(|message| matches!(message, ToAgent::Run { .. })), "{heard:?}");
        assert_eq!(heard.iter().filter(|message| told(message)).count(), 1, "{heard:?}");
        agent.end(finished(&statement, ExecutionState::Cancelled)).await;
        agent.archived(&statement).await;
        assert_eq!(ended(&shop, deploy_task, task).await["status"], "cancelled");
    }

    async fn an_agent_that_does_not_know_secrets_gets_no_such_order(server: TestServer) {
        let shop = shop(&server).await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &["something else"]).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let failed = ended(&shop, deploy_task, task).await;
        assert_eq!(failed["status"], "failed", "{failed}");
        let reason = failed["error"].as_str().expect("a reason");
        assert_eq!(reason, "the agent of web-1 is too old for hooks with secrets: update it");
        let output = detail(&shop, deploy_task, task).await["output"].clone();
        assert!(output.as_str().is_some_and(|text| text.contains(reason)), "{output}");
        assert_eq!(instances(&shop).await, ["stopped"], "it is as it was");
        // The next thing that it hears is an order without secrets.
        shop.set(json!({"lifecycle_hooks": {"pre_exec": null}})).await;
        shop.hook("post_exec", "true").await;
        upgrade(&shop, deploy_task, &shop.instances).await;
        let (_, sent, secrets) = order(&mut agent).await;
        assert_eq!(secrets, json!({}));
        assert!(sent.entry.contains("post_exec") && !sent.entry.contains("pre_exec"), "{}", sent.entry);
    }

    async fn an_agent_that_does_not_know_shared_paths_gets_no_such_order(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        shop.set(json!({"deploy_path": "/srv/shop", "shared_paths": ["uploads/"]})).await;
        let address = listen(&server).await;
        let mut agent = StubAgent::enrol(&server, address, "web-1", &[FEATURE]).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        assert_eq!(entries(&server, task).await[0]["shared_paths"], json!(["uploads/"]));
        let failed = ended(&shop, deploy_task, task).await;
        assert_eq!(failed["error"], "the agent of web-1 is too old for shared paths: update it");
        agent.leave();
        let mut agent = StubAgent::enrol(&server, address, "web-1", &[SHARED_PATHS_FEATURE]).await;
        upgrade(&shop, deploy_task, &shop.instances).await;
        assert!(order(&mut agent).await.1.entry.contains("uploads/"));
    }

    async fn a_secret_that_was_deleted_since_fails_the_execution_by_name(server: TestServer) {
        let shop = shop(&server).await;
        let address = listen(&server).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        shop.admin.patch("/secrets/", json!({"secrets": {"TOKEN": null}})).await.expect(200);
        let mut agent = StubAgent::enrol(&server, address, "web-1", &[FEATURE]).await;
        let failed = ended(&shop, deploy_task, task).await;
        assert_eq!(failed["status"], "failed", "{failed}");
        assert_eq!(failed["error"], "the secret `TOKEN` was deleted since the sub-task was made");
        assert_eq!(instances(&shop).await, ["stopped"]);
        // Held by an agent that lost its values: the agent is told to end it, and why.
        shop.admin.patch("/secrets/", json!({"secrets": {"TOKEN": "it is back"}})).await.expect(200);
        let path = format!("{}{task}/actions/retry/", upgrades(deploy_task));
        shop.admin.post(&path, json!({})).await.expect(200);
        let (statement, _, secrets) = order(&mut agent).await;
        assert_eq!(secrets["TOKEN"], "it is back");
        set(&shop, json!({"DB_PASSWORD": null})).await;
        shop.admin.patch("/secrets/", json!({"secrets": {"DB_PASSWORD": null}})).await.expect(200);
        agent.come_back(vec![holding(&statement)]).await;
        let ToAgent::Cancel { reason, timed_out, .. } = agent.hear().await else { panic!("no word to end it") };
        assert_eq!((reason.as_str(), timed_out), ("the secret `DB_PASSWORD` was deleted since the sub-task was made", false));
    }
}
