//! Rollouts on real hosts: failures at chosen places, a canary, and the way back by itself.

use super::*;

/// Names of so many hosts.
fn hosts(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("web-{number:02}")).collect()
}

async fn shop(count: usize) -> Shop {
    let names = hosts(count);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let shop = Shop::with_versions(&names).await;
    // A hook that says on which host it ran, and fails where a file asks it to.
    let folder = shop.folder().display().to_string();
    let hook = format!(
        "echo \"$DROVER_ACTION $DROVER_VERSION $DROVER_HOST\" >> '{folder}/ran'\n\
         test ! -e '{folder}/fail-on-{{{{ host.name }}}}' -o \"$DROVER_ACTION\" = revert"
    );
    shop.hook("post_exec", "bash", &hook).await;
    shop
}

/// What the hooks said: lines that begin so, sorted.
fn ran(shop: &Shop, begin: &str) -> Vec<String> {
    let text = fs::read_to_string(shop.folder().join("ran")).unwrap_or_default();
    let mut lines: Vec<String> =
        text.lines().filter_map(|line| line.strip_prefix(begin)).map(|rest| rest.trim().to_owned()).collect();
    lines.sort();
    lines
}

async fn roll_out(shop: &Shop, version: &str, rollout: Value) -> SubTask {
    let task = shop.deploy_task(version).await;
    let mut body = shop.sub_task(version);
    body["rollout"] = rollout;
    shop.make("upgrade", task, body).await
}

async fn act(shop: &Shop, sub_task: &SubTask, action: &str) -> Value {
    shop.api().post(&format!("{}actions/{action}/", sub_task.path), json!({})).await.expect(200)
}

#[tokio::test]
async fn twenty_hosts_stop_at_the_second_failure() {
    let shop = shop(20).await;
    for host in ["web-03", "web-07", "web-12"] {
        fs::write(shop.folder().join(format!("fail-on-{host}")), "").expect("a file");
    }
    let sub_task =
        roll_out(&shop, "v1", json!({"canary": 1, "promote_after": 0, "batch": "20%", "max_failures": "5%"})).await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!((&detail["status"], &detail["error"]), (&json!("failed"), &json!("2 of 20 instances failed, 1 may")));
    // The canary, and batches of four: the second failure is in the third batch, whose four had started together.
    let mut expected: Vec<String> = hosts(9);
    assert_eq!(ran(&shop, "upgrade v1"), expected);
    expected.retain(|host| host != "web-03" && host != "web-07");
    for host in hosts(20) {
        let state = match () {
            () if expected.contains(&host) => "succeeded",
            () if host.as_str() <= "web-09" => "failed",
            () => "cancelled",
        };
        assert_eq!(on_host(&detail, &host)["status"], state, "{host}");
        let serves = shop.current(&host, "index.html");
        assert_eq!(serves.is_some(), state != "cancelled", "{host}");
    }

    // What is in the way goes away, and what failed is tried again: from the hook on, on these hosts alone.
    for host in ["web-03", "web-07"] {
        fs::remove_file(shop.folder().join(format!("fail-on-{host}"))).expect("the file");
    }
    let failed: Vec<Value> = shop
        .instances
        .iter()
        .filter(|(host, _)| host == "web-03" || host == "web-07")
        .map(|(_, id)| json!({"id": id}))
        .collect();
    let path = format!("{}actions/retry/", sub_task.path);
    let made = shop.api().post(&path, json!({"instances": failed})).await.expect(200);
    let base = sub_task.path.trim_end_matches('/').rsplit_once('/').expect("a path").0.to_owned();
    let again = SubTask { path: format!("{base}/{}/", text(&made["task_id"])), channel: text(&made["task_output"]) };
    let detail = shop.end_of(&again).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    let names: Vec<String> = steps(on_host(&detail, "web-03")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["switch", "post_exec", "prune"], "the switch tells which release it is, and has nothing to do");
    assert_eq!(ran(&shop, "upgrade v1").len(), 11);
}

#[tokio::test]
async fn a_failed_rollout_takes_back_what_it_changed() {
    let shop = shop(4).await;
    shop.deployed("v1").await;
    fs::write(shop.folder().join("fail-on-web-02"), "").expect("a file");
    let sub_task = roll_out(&shop, "v2", json!({"batch": 2, "auto_revert": true})).await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "failed", "{detail:#}");
    assert_eq!(ran(&shop, "upgrade v2"), ["web-01", "web-02"]);
    let told = shop.output(&sub_task, "").await.text;
    assert!(told.contains("takes web-01, web-02 back to v1"), "{told}");
    let entries = shop.api().get("/audit/entries/?page_size=100").await.expect(200)["results"].to_string();
    assert!(entries.contains("takes web-01, web-02 back to v1"), "a change of hosts is in the audit: {entries}");
    for host in hosts(4) {
        wait_until("the way back", async || {
            shop.instance(&host).await == ("running".to_owned(), Some("v1".to_owned()))
        })
        .await;
        assert_eq!(shop.current(&host, "index.html").as_deref(), Some("one\n"), "{host}");
    }
    assert_eq!(ran(&shop, "revert v1"), ["web-01", "web-02"], "the others were never touched");
}

#[tokio::test]
async fn a_canary_is_promoted_by_a_person_after_its_health_was_proved() {
    let shop = shop(3).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let health = json!({"tcp": format!("127.0.0.1:{port}"), "interval": 1, "retries": 2, "successes": 2});
    let sub_task = roll_out(&shop, "v1", json!({"canary": 1, "health": health})).await;
    let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
    viewer.until("somebody has to promote it").await;
    assert_eq!(ran(&shop, "upgrade v1"), ["web-01"]);
    act(&shop, &sub_task, "promote").await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(ran(&shop, "upgrade v1"), hosts(3));
    assert!(steps(on_host(&detail, "web-02")).contains(&("health".to_owned(), "succeeded".to_owned())));

    // Nobody listens any more: the canary of the next version is unhealthy and the others keep what they have.
    drop(listener);
    let health = json!({"tcp": format!("127.0.0.1:{port}"), "interval": 1, "retries": 2});
    let sub_task = roll_out(&shop, "v2", json!({"canary": 1, "health": health, "auto_revert": true})).await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!((&detail["status"], &detail["error"]), (&json!("failed"), &json!("a canary failed")), "{detail:#}");
    let reason = text(&on_host(&detail, "web-01")["error"]);
    assert!(reason.starts_with("health: not healthy after 2 questions") && reason.contains("refused"), "{reason}");
    wait_until("the way back", async || shop.instance("web-01").await.1.as_deref() == Some("v1")).await;
    assert_eq!(shop.current("web-01", "index.html").as_deref(), Some("one\n"));
    assert_eq!(ran(&shop, "upgrade v2"), ["web-01"]);
}

#[tokio::test]
async fn a_cancelled_sub_task_ends_its_hooks_with_all_their_processes() {
    let shop = Shop::with_versions(&["web-01", "web-02"]).await;
    let folder = shop.folder().display().to_string();
    let hook = format!("sleep 1000 &\necho $! > '{folder}/child'\necho started\nwait");
    shop.hook("pre_exec", "bash", &hook).await;
    let sub_task = roll_out(&shop, "v1", json!({"batch": 1})).await;
    let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
    viewer.until("started").await;
    act(&shop, &sub_task, "cancel").await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!((&detail["status"], &detail["error"]), (&json!("failed"), &json!("cancelled by admin")));
    let first = on_host(&detail, "web-01");
    assert_eq!(first["status"], "cancelled", "{first:#}");
    assert!(first["processes"]["ended"].as_u64().is_some_and(|ended| ended >= 2), "{first:#}");
    assert_eq!(on_host(&detail, "web-02")["status"], "cancelled");
    let child = fs::read_to_string(shop.folder().join("child")).expect("the child's number");
    assert!(!Path::new(&format!("/proc/{}", child.trim())).exists(), "the child is dead");
    assert_eq!(shop.current("web-01", "index.html"), None);
}

async fn retried(shop: &Shop, sub_task: &SubTask) -> Value {
    let made = shop.api().post(&format!("{}actions/retry/", sub_task.path), json!({})).await.expect(200);
    let base = sub_task.path.trim_end_matches('/').rsplit_once('/').expect("a path").0.to_owned();
    let again = SubTask { path: format!("{base}/{}/", text(&made["task_id"])), channel: text(&made["task_output"]) };
    shop.end_of(&again).await
}

#[tokio::test]
async fn a_retry_after_the_way_back_deploys_what_it_says() {
    let shop = shop(1).await;
    shop.deployed("v1").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let health = json!({"tcp": format!("127.0.0.1:{port}"), "interval": 1, "retries": 1});
    let sub_task = roll_out(&shop, "v2", json!({"health": health, "auto_revert": true})).await;
    assert_eq!(shop.end_of(&sub_task).await["status"], "failed");
    wait_until("the way back", async || {
        let (status, version) = shop.instance("web-01").await;
        !status.ends_with("ing") || status == "running" && version.as_deref() == Some("v1")
    })
    .await;
    wait_until("rest", async || !shop.instance("web-01").await.0.contains("reverting")).await;
    let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port");
    let detail = retried(&shop, &sub_task).await;
    let serves = shop.current("web-01", "index.html");
    let steps: Vec<String> = steps(on_host(&detail, "web-01")).into_iter().map(|(name, _)| name).collect();
    assert!(
        detail["status"] != "finished" || serves.as_deref() == Some("two\n"),
        "the sub-task of {} is {} with {steps:?}, and the host serves {serves:?}",
        detail["version"],
        detail["status"]
    );
}

#[tokio::test]
async fn a_retried_hook_has_its_environment() {
    let shop = Shop::with_versions(&["web-01"]).await;
    shop.deployed("v1").await;
    let folder = shop.folder().display().to_string();
    let hook = format!(
        "echo \"release=${{DROVER_RELEASE_PATH-unset}} previous=${{DROVER_PREVIOUS_RELEASE_PATH-unset}} in=$PWD\" >> '{folder}/told'\n\
         test ! -e '{folder}/fail'"
    );
    shop.hook("post_exec", "bash", &hook).await;
    fs::write(shop.folder().join("fail"), "").expect("a file");
    let sub_task = shop.deploy("v2").await;
    assert_eq!(shop.end_of(&sub_task).await["status"], "failed");
    fs::remove_file(shop.folder().join("fail")).expect("the file");
    assert_eq!(retried(&shop, &sub_task).await["status"], "finished");
    let told = fs::read_to_string(shop.folder().join("told")).expect("what it said");
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], lines[1]);
}
