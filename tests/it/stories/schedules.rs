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

#[tokio::test]
async fn a_script_runs_once_on_the_hosts_of_the_moment_though_the_server_is_killed_twice() {
    let mut shop = Shop::open(Engine::Sqlite, &["web-1", "web-2", "web-3"]).await;
    let token = shop.api().token().to_owned();
    let (ran, go) = (shop.folder().join("ran"), shop.folder().join("go"));
    let content = format!(
        "echo \"{{{{ host.name }}}} $PARAM_WORD\" >> '{}'\nuntil [ -e '{}' ]; do sleep 0.05; done",
        ran.display(),
        go.display()
    );
    let script = json!({"name": "note", "language": "bash", "content": content,
        "parameters": [{"name": "word", "type": "text"}]});
    shop.api().post("/applications/deploy-scripts/", script).await.expect(200);
    let hosts = shop.api().get("/hosts/").await.expect(200)["results"].as_array().expect("hosts").clone();
    let label = async |shop: &Shop, name: &str, labels: &[&str]| {
        let host = hosts.iter().find(|host| host["name"] == name).expect("the host");
        shop.api().patch(&format!("/hosts/{}/", host["id"]), json!({"labels": labels})).await.expect(200);
    };
    label(&shop, "web-1", &["noted"]).await;
    let create = [
        "--token", &token, "schedule", "create", "notes", "--cron", "@yearly", "--script", "note", "--label", "noted",
        "--param", "word=a b", "--batch", "1",
    ];
    shop.says(0, &create).await;
    assert!(shop.says(0, &["--token", &token, "schedule", "list"]).await.contains("note on label noted"));
    shop.says(2, &["--token", &token, "schedule", "create", "x", "--cron", "@yearly", "--script", "note"]).await;

    // Hosts that get the label after that are meant as well.
    label(&shop, "web-3", &["noted"]).await;
    shop.says(0, &["--token", &token, "schedule", "run", "notes"]).await;
    shop.processes.kill_server().await;
    shop.processes.start_server().await;
    let lines = || fs::read_to_string(&ran).unwrap_or_default();
    wait_until("the first host to be at work", async || lines() == "web-1 a b\n").await;
    shop.processes.kill_server().await;
    fs::write(&go, "").expect("the word to go on");
    shop.processes.start_server().await;
    wait_until("the end", async || runs(&shop).await[0]["task_status"] == "finished").await;
    assert_eq!(lines(), "web-1 a b\nweb-3 a b\n", "each once, one after the other");
    assert_eq!(runs(&shop).await.len(), 1);
    assert_eq!(shop.api().get("/tasks/?kind=script").await.expect(200)["count"], 1);
}
