//! Schedules with real programs: made, looked at and run by the command line, while the server is killed.

use super::*;

/// What `drover schedule runs` says.
async fn runs(shop: &Shop) -> Vec<Value> {
    let schedules = shop.api().get("/schedules/").await.expect(200);
    let path = format!("/schedules/{}/runs/", schedules["results"][0]["id"]);
    shop.api().get(&path).await.expect(200)["results"].as_array().expect("a page").clone()
}

#[tokio::test]
async fn a_schedule_runs_once_though_the_server_is_killed() {
    let mut shop = Shop::with_program(&["web-1", "web-2"]).await;
    shop.operated("start", "", "finished").await;
    let token = shop.api().token().to_owned();
    let words = |arguments: &[&'static str]| -> Vec<String> {
        ["--token", &token].iter().chain(arguments).map(|word| (*word).to_owned()).collect()
    };
    let says = async |shop: &Shop, code: i32, arguments: &[&'static str]| {
        let words = words(arguments);
        shop.says(code, &words.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let create = ["schedule", "create", "yearly", "--cron", "@yearly", "--restart", "shop", "--batch", "1"];
    let made = says(&shop, 0, &create).await;
    assert!(made.contains("schedule yearly comes next at ") && made.contains("-01-01T00:00:00"), "{made}");
    assert!(says(&shop, 0, &["schedule", "list"]).await.contains("restart all"));
    assert_eq!(says(&shop, 0, &["schedule", "next", "yearly", "--count", "3"]).await.lines().count(), 3);
    says(&shop, 2, &["schedule", "create", "yearly", "--cron", "@never", "--restart", "shop"]).await;

    let before = (shop.program_of("web-1"), shop.program_of("web-2"));
    says(&shop, 0, &["schedule", "run", "yearly", "--reason", "try"]).await;
    shop.processes.kill_server().await;
    shop.processes.start_server().await;
    wait_until("the task to end", async || runs(&shop).await[0]["task_status"] == "finished").await;
    let after = (shop.program_of("web-1"), shop.program_of("web-2"));
    assert!(
        after.0.is_some() && after.1.is_some() && after.0 != before.0 && after.1 != before.1,
        "{before:?} {after:?}"
    );
    assert_eq!(runs(&shop).await.len(), 1);
    let restarts = shop.api().get("/tasks/?kind=restart").await.expect(200);
    assert_eq!(restarts["count"], 1, "{restarts:#}");
    assert!(says(&shop, 0, &["schedule", "runs", "yearly"]).await.contains("finished"));

    says(&shop, 0, &["schedule", "pause", "yearly"]).await;
    assert!(says(&shop, 0, &["schedule", "list"]).await.contains("held by admin"));
    says(&shop, 2, &["schedule", "run", "yearly"]).await;
    says(&shop, 0, &["schedule", "resume", "yearly"]).await;
    says(&shop, 0, &["schedule", "delete", "yearly"]).await;
    says(&shop, 4, &["schedule", "runs", "yearly"]).await;
}
