//! What was done by trying again is not done once more.

use drover_automation::engine::sweep_once;
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::json;

use super::rollouts::{act, report};
use super::{detail, references, upgrade};
use crate::deploys::Shop;

/// Writes how the hooks of a task that run once go, as their agents would report it.
async fn report_hooks(server: &TestServer, task: i64, state: &str) {
    let change = sql!(
        "UPDATE executions SET state = $2, finished_at = 1, dispatched_at = 1 WHERE task_id = $1 AND role <> 'instance'"
    );
    assert_eq!(server.run(change, args![task, state]).await, 1);
    sweep_once(server.kernel(), true).await.expect("a round");
}

async fn is_over(shop: &Shop, deploy_task: i64, task: i64) {
    wait_until("the end", async || detail(shop, deploy_task, task).await["status"] != "running").await;
}

/// Tries one instance of a task again.
async fn retry(shop: &Shop, deploy_task: i64, task: i64, instance: usize) -> i64 {
    let body = json!({"instances": references(&shop.instances[instance..=instance])});
    let made = act(shop, deploy_task, task, "retry", body).await.expect(200);
    made["task_id"].as_str().expect("text").parse().expect("digits")
}

async fn hooks(shop: &Shop, deploy_task: i64, task: i64) -> usize {
    detail(shop, deploy_task, task).await["global_hooks"].as_array().map_or(0, Vec::len)
}

/// A task whose two instances failed, and whose last hook did.
async fn failed(server: &TestServer) -> (Shop, i64, i64) {
    let shop = Shop::new(server, 2).await;
    shop.hook("global_post_exec", "true").await;
    let deploy_task = shop.started().await;
    let task = upgrade(&shop, deploy_task, &shop.instances).await;
    wait_until("its turn", async || detail(&shop, deploy_task, task).await["phase"] == "instances").await;
    report(server, task, "web-1", "failed").await;
    report(server, task, "web-2", "failed").await;
    report_hooks(server, task, "failed").await;
    is_over(&shop, deploy_task, task).await;
    (shop, deploy_task, task)
}

both_engines! {
    async fn a_last_hook_that_a_retry_did_is_not_done_again(server: TestServer) {
        let (shop, deploy_task, task) = Box::pin(failed(&server)).await;
        let first = retry(&shop, deploy_task, task, 0).await;
        assert_eq!(hooks(&shop, deploy_task, first).await, 1);
        report(&server, first, "web-1", "succeeded").await;
        report_hooks(&server, first, "succeeded").await;
        is_over(&shop, deploy_task, first).await;
        let second = retry(&shop, deploy_task, task, 1).await;
        assert_eq!(hooks(&shop, deploy_task, second).await, 0, "it runs once");
        report(&server, second, "web-2", "succeeded").await;
        is_over(&shop, deploy_task, second).await;
        assert_eq!(detail(&shop, deploy_task, second).await["status"], "finished");
    }

    async fn a_hook_that_failed_again_is_taken_along_until_one_did_it(server: TestServer) {
        let (shop, deploy_task, task) = Box::pin(failed(&server)).await;
        let first = retry(&shop, deploy_task, task, 0).await;
        report(&server, first, "web-1", "failed").await;
        report_hooks(&server, first, "failed").await;
        is_over(&shop, deploy_task, first).await;
        let second = retry(&shop, deploy_task, task, 1).await;
        assert_eq!(hooks(&shop, deploy_task, second).await, 1);
        act(&shop, deploy_task, second, "cancel", json!({})).await.expect(200);
        is_over(&shop, deploy_task, second).await;

        // While another one has it before it, or after a retry of the retry did it.
        let third = retry(&shop, deploy_task, first, 0).await;
        assert_eq!(hooks(&shop, deploy_task, third).await, 1);
        let fourth = retry(&shop, deploy_task, task, 1).await;
        assert_eq!(hooks(&shop, deploy_task, fourth).await, 0);
        act(&shop, deploy_task, fourth, "cancel", json!({})).await.expect(200);
        is_over(&shop, deploy_task, fourth).await;
        report(&server, third, "web-1", "succeeded").await;
        report_hooks(&server, third, "succeeded").await;
        is_over(&shop, deploy_task, third).await;
        let fifth = retry(&shop, deploy_task, task, 1).await;
        assert_eq!(hooks(&shop, deploy_task, fifth).await, 0);
    }

    async fn a_first_hook_that_a_retry_did_is_not_done_again(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        shop.hook("global_pre_exec", "true").await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        wait_until("its turn", async || detail(&shop, deploy_task, task).await["phase"] == "global_pre").await;
        report_hooks(&server, task, "failed").await;
        is_over(&shop, deploy_task, task).await;
        let first = retry(&shop, deploy_task, task, 0).await;
        report_hooks(&server, first, "succeeded").await;
        let second = retry(&shop, deploy_task, task, 1).await;
        let told = detail(&shop, deploy_task, second).await;
        assert_eq!((&told["global_hooks"], &told["phase"]), (&json!([]), &json!("instances")));
    }
}
