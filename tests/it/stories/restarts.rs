//! Server and agent stop, are killed, and come back in the middle of a deploy.
//!
//! Each story makes sure that the hook went on while the other side was away.

use std::time::{Duration, Instant};

use drover_tests::wait_within;

use super::steady::Story;
use super::*;

#[tokio::test]
async fn the_server_stops_and_starts() {
    let mut story = Story::begin(Engine::Sqlite).await;
    let mut viewer = Viewer::open(&story.sub_task.channel, story.shop.api().token()).await;
    let watching = tokio::spawn(async move { viewer.rest().await });
    story.shop.processes.stop_server().await;
    let (seen, closing) = watching.await.expect("the viewer does not panic");
    assert_eq!(closing.code, 1012, "viewers are told that the server restarts: {closing:?}");
    story.goes_on().await;
    story.shop.processes.start_server().await;
    story.shop.processes.wait_for_connection("web-1", true).await;
    story.goes_on().await;
    story.let_it_end();
    // The viewer comes back where it was.
    let rest = story.shop.output(&story.sub_task, &format!("?from={}", seen.len())).await;
    let whole = story.shop.output(&story.sub_task, "").await;
    assert!(seen + &rest.text == whole.text, "nothing is missing or doubled for who comes back");
    story.ends_well().await;
}

mod the_server_is_killed {
    use super::*;

    #[tokio::test]
    async fn sqlite() {
        Box::pin(the_server_is_killed(Engine::Sqlite)).await;
    }

    #[tokio::test]
    async fn postgres() {
        Box::pin(the_server_is_killed(Engine::Postgres)).await;
    }
}

async fn the_server_is_killed(engine: Engine) {
    let mut story = Story::begin(engine).await;
    story.shop.processes.kill_server().await;
    story.goes_on().await;
    story.shop.processes.start_server().await;
    story.goes_on().await;
    story.let_it_end();
    story.ends_well().await;
}

#[tokio::test]
async fn the_hook_ends_while_the_server_is_away() {
    let mut story = Story::begin(Engine::Sqlite).await;
    story.shop.processes.kill_server().await;
    story.hook_is_done().await;
    story.shop.processes.start_server().await;
    story.ends_well().await;
}

/// What waits for a host when the server is killed is sent when both are back, although all of its time has passed by then.
#[tokio::test]
async fn the_server_is_away_for_longer_than_a_deploy_may_take() {
    const ALLOWED: Duration = Duration::from_secs(20);
    let mut shop = Shop::with_versions(&["web-1"]).await;
    shop.set(json!({"timeout": ALLOWED.as_secs()})).await;
    shop.processes.kill_agent("web-1").await;
    let sub_task = shop.deploy("v1").await;
    let made = Instant::now();
    let has_its_turn = async || shop.api().get(&sub_task.path).await.expect(200)["phase"] == "instances";
    wait_until("its turn", has_its_turn).await;
    shop.processes.kill_server().await;
    tokio::time::sleep_until((made + ALLOWED + Duration::from_secs(1)).into()).await;
    shop.processes.start_server().await;
    shop.processes.start_agent("web-1").await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
}

#[tokio::test]
async fn the_agent_stops_and_starts() {
    let mut story = Story::begin(Engine::Sqlite).await;
    story.shop.processes.stop_agent("web-1").await;
    story.goes_on().await;
    story.shop.processes.start_agent("web-1").await;
    story.goes_on().await;
    story.let_it_end();
    story.ends_well().await;
}

#[tokio::test]
async fn the_agent_is_killed() {
    let mut story = Story::begin(Engine::Sqlite).await;
    story.shop.processes.kill_agent("web-1").await;
    story.goes_on().await;
    story.shop.processes.start_agent("web-1").await;
    story.goes_on().await;
    story.let_it_end();
    story.ends_well().await;
}

#[tokio::test]
async fn everything_but_the_supervisor_is_killed() {
    let mut story = Story::begin(Engine::Sqlite).await;
    for _ in 0..3 {
        story.shop.processes.kill_agent("web-1").await;
        story.shop.processes.kill_server().await;
        story.goes_on().await;
        story.shop.processes.start_server().await;
        story.shop.processes.start_agent("web-1").await;
        story.goes_on().await;
    }
    story.let_it_end();
    story.ends_well().await;
}

#[tokio::test]
async fn the_hook_ends_while_the_agent_is_away() {
    let mut story = Story::begin(Engine::Sqlite).await;
    story.shop.processes.kill_agent("web-1").await;
    story.hook_is_done().await;
    story.shop.processes.start_agent("web-1").await;
    story.ends_well().await;
}

#[tokio::test]
async fn a_task_waits_for_an_agent_that_is_not_connected() {
    let mut shop = Shop::with_versions(&["web-1", "web-2"]).await;
    shop.processes.stop_agent("web-2").await;
    shop.processes.wait_for_connection("web-2", false).await;
    let sub_task = shop.deploy("v1").await;
    let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
    viewer.until("web-2: waiting for the agent of this host to connect").await;
    let mut detail = Value::Null;
    wait_until("the other host", async || {
        detail = shop.api().get(&sub_task.path).await.expect(200);
        on_host(&detail, "web-1")["status"] == "succeeded"
    })
    .await;
    assert_eq!((&detail["status"], &on_host(&detail, "web-2")["status"]), (&json!("running"), &json!("queued")));
    shop.processes.start_agent("web-2").await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(shop.current("web-2", "index.html").as_deref(), Some("one\n"));
}

/// Longer than a host may stay away after the time allowed before it is given up.
const GIVEN_UP: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_host_that_was_given_up_comes_back_with_the_truth() {
    let mut story = Story::begin_within(Engine::Sqlite, 30).await;
    story.shop.processes.kill_agent("web-1").await;
    story.hook_is_done().await;
    let mut detail = Value::Null;
    wait_within(GIVEN_UP, "the host to be given up", async || {
        detail = story.shop.api().get(&story.sub_task.path).await.expect(200);
        detail["status"] == "failed"
    })
    .await;
    assert_eq!(on_host(&detail, "web-1")["status"], "lost", "{detail:#}");
    assert_eq!(story.shop.instance("web-1").await.0, "stopped");
    story.shop.processes.start_agent("web-1").await;
    wait_until("the host's own word", async || {
        detail = story.shop.api().get(&story.sub_task.path).await.expect(200);
        on_host(&detail, "web-1")["status"] == "succeeded"
    })
    .await;
    assert_eq!(detail["status"], "failed", "what was decided meanwhile stays");
    assert_eq!(story.shop.instance("web-1").await, ("running".to_owned(), Some("v1".to_owned())));
    let output = story.shop.output(&story.sub_task, "?format=json").await;
    let seen = stdout_of(&output.records(), "web-1");
    assert!(seen == story.kept("web-1"), "{} bytes seen, {} written", seen.len(), story.kept("web-1").len());
    assert!(output.text.contains("came back after it was given up as lost: succeeded"), "it is said");
}
