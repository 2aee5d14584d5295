//! Lists and details of sub-tasks.

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{reverts, upgrade, upgrades};
use crate::deploys::Shop;

fn numbers(page: &Value) -> Vec<&str> {
    page["results"].as_array().expect("results").iter().map(|task| task["task_id"].as_str().expect("text")).collect()
}

both_engines! {
    async fn lists_filter_and_page(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        let deploy_task = shop.started().await;
        let mut made = Vec::new();
        for at in 0..3 {
            made.push(upgrade(&shop, deploy_task, &shop.instances[at..=at]).await.to_string());
        }
        let over = sql!("UPDATE tasks SET phase = 'over', outcome = $2 WHERE id = $1");
        for (task, outcome) in [(&made[0], "failed"), (&made[1], "finished")] {
            server.run(over.clone(), args![task.parse::<i64>().expect("digits"), outcome]).await;
        }
        let path = upgrades(deploy_task);
        for (query, expected) in [
            ("", vec![&made[2], &made[1], &made[0]]),
            ("status=running", vec![&made[2]]),
            ("status=failed", vec![&made[0]]),
            ("status=finished", vec![&made[1]]),
            ("page_size=2&page=2", vec![&made[0]]),
            ("page=9", vec![]),
        ] {
            let page = shop.admin.get(&format!("{path}?{query}")).await.expect(200);
            assert_eq!(numbers(&page), expected, "{query}");
            assert!(page["results"].as_array().expect("results").iter().all(|task| task.get("output").is_none()));
        }
        for (query, field) in [("status=over", "status"), ("page=0", "page"), ("page_size=x", "page_size")] {
            let error = shop.admin.get(&format!("{path}?{query}")).await.expect_error(400, 10001);
            assert_eq!(error["field"], field);
        }
        // The deploy task shows them too, oldest first.
        let told = shop.read(deploy_task).await;
        let told = told["sub_tasks"].as_array().expect("an array");
        let shown: Vec<&str> = told.iter().filter_map(|task| task["task_id"].as_str()).collect();
        assert_eq!(shown, made);
    }

    async fn details_are_found_under_their_own_deploy_task_alone(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let (deploy_task, other) = (shop.started().await, shop.started().await);
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        for path in [
            format!("{}{task}/", upgrades(other)),
            format!("{}{task}/", reverts(deploy_task)),
            format!("{}4711/", upgrades(deploy_task)),
            format!("{}x/", upgrades(deploy_task)),
            format!("{}{task}/", upgrades(4711)),
            upgrades(4711),
            reverts(4711),
        ] {
            shop.admin.get(&path).await.expect_error(404, 10004);
        }
        let path = format!("/application/deploy-tasks/{deploy_task}/sub-upgrade-tasks/{task}");
        assert_eq!(shop.admin.get(&path).await.expect(200)["task_id"], task.to_string());
        let nothing = json!({"count": 0, "prev": null, "next": null, "results": []});
        assert_eq!(shop.admin.get(&reverts(deploy_task)).await.expect(200), nothing);
    }
}
