//! Canaries on real hosts that somebody refuses, and health that never answers.

use super::*;

async fn roll_out(shop: &Shop, version: &str, rollout: Value) -> SubTask {
    let task = shop.deploy_task(version).await;
    let mut body = shop.sub_task(version);
    body["rollout"] = rollout;
    shop.make("upgrade", task, body).await
}

#[tokio::test]
async fn a_refused_canary_goes_back_and_nobody_follows() {
    let shop = Shop::with_versions(&["web-01", "web-02"]).await;
    shop.deployed("v1").await;
    let health = json!({"command": "cat > /dev/null\ntest -e \"$DROVER_CURRENT_PATH/index.html\""});
    let sub_task = roll_out(&shop, "v2", json!({"canary": 1, "health": health, "auto_revert": true})).await;
    let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
    viewer.until("somebody has to promote it").await;
    assert_eq!(shop.current("web-01", "index.html").as_deref(), Some("two\n"));
    let body = json!({"reason": "it looks odd"});
    shop.api().post(&format!("{}actions/refuse/", sub_task.path), body).await.expect(200);
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "failed", "{detail:#}");
    assert_eq!(on_host(&detail, "web-02")["status"], "cancelled");
    wait_until("the way back", async || shop.instance("web-01").await == ("running".to_owned(), Some("v1".to_owned())))
        .await;
    for host in ["web-01", "web-02"] {
        assert_eq!(shop.current(host, "index.html").as_deref(), Some("one\n"), "{host}");
    }
}

/// Versions whose releases are on a host's disk.
fn kept(shop: &Shop, host: &str) -> Vec<String> {
    let releases = fs::read_dir(shop.deploy_path(host).join("releases")).expect("the releases");
    let names = releases.map(|release| release.expect("a release").file_name().into_string().expect("text"));
    let mut versions: Vec<String> =
        names.filter_map(|name| name.rsplit_once('-').map(|(version, _)| version.to_owned())).collect();
    versions.sort();
    versions
}

#[tokio::test]
async fn an_unhealthy_version_leaves_the_one_before_on_the_disk() {
    let shop = Shop::with_versions(&["web-01"]).await;
    shop.commit("v3", &[("index.html", "three\n"), ("broken", "")]);
    shop.commit("v4", &[("index.html", "four\n")]);
    git(&shop.repository(), &["rm", "--quiet", "broken"]);
    shop.commit_all("v5");
    shop.set(json!({"keep_backups": 0})).await;
    let command = "cat > /dev/null\ntest ! -e \"$DROVER_CURRENT_PATH/broken\"";
    let rollout = json!({"health": {"command": command, "interval": 1, "retries": 2}});
    for version in ["v1", "v2"] {
        let sub_task = roll_out(&shop, version, rollout.clone()).await;
        assert_eq!(shop.end_of(&sub_task).await["status"], "finished");
    }
    assert_eq!(kept(&shop, "web-01"), ["v1", "v2"], "the one before is no backup");
    for version in ["v3", "v4"] {
        let sub_task = roll_out(&shop, version, rollout.clone()).await;
        let detail = shop.end_of(&sub_task).await;
        assert_eq!(detail["status"], "failed", "{detail:#}");
        let steps = steps(on_host(&detail, "web-01"));
        let last: Vec<(&str, &str)> =
            steps.iter().rev().take(2).map(|(name, state)| (name.as_str(), state.as_str())).collect();
        assert_eq!(last, [("prune", "skipped"), ("health", "failed")], "{version}");
    }
    assert_eq!(kept(&shop, "web-01"), ["v1", "v2", "v3", "v4"], "nothing goes before something is healthy");
    let revert = shop.revert("v2").await;
    assert_eq!(shop.end_of(&revert).await["status"], "finished");
    assert_eq!(shop.current("web-01", "index.html").as_deref(), Some("two\n"));
    // What is healthy ends that: what served before stays, and nothing else.
    let sub_task = roll_out(&shop, "v5", rollout).await;
    assert_eq!(shop.end_of(&sub_task).await["status"], "finished");
    assert_eq!(kept(&shop, "web-01"), ["v2", "v5"]);
}

#[tokio::test]
async fn a_health_check_that_hangs_fails_its_host_and_stops_the_rollout() {
    let shop = Shop::with_versions(&["web-01", "web-02"]).await;
    let health = json!({"command": "cat > /dev/null\nexec sleep 1000", "interval": 1, "timeout": 1, "retries": 2});
    let sub_task = roll_out(&shop, "v1", json!({"batch": 1, "health": health})).await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "failed", "{detail:#}");
    let reason = text(&on_host(&detail, "web-01")["error"]);
    assert!(reason.starts_with("health: not healthy after 2 questions: no answer within"), "{reason}");
    assert_eq!(on_host(&detail, "web-02")["status"], "cancelled");
}
