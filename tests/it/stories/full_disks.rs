//! A disk is full and has room again: nothing that was acknowledged is lost, it is said, and the same processes go on.

use drover_tests::processes::Shortage;
use drover_tests::wait_within;

use super::outages::{OUTAGE, applications, readiness};
use super::steady::Story;
use super::*;

const HOSTS: [&str; 2] = ["web-1", "web-2"];

/// Longest file that an agent may make where no file may become longer: enough for all but output.
const AGENT_FILE_BYTES: u32 = 32 * 1024;

async fn check_server(shortage: Shortage) {
    let processes = Processes::start_on_disk(shortage).await;
    let mut story = Story::begin_in(Shop::open_on(processes, &HOSTS).await, 600).await;
    let server = story.shop.processes.server_id();
    readiness(&story.shop, 200).await;

    story.shop.processes.fill_disk();
    readiness(&story.shop, 503).await;
    // What the database keeps by itself may have room for some of these.
    let mut acknowledged = Vec::new();
    for number in 0..8 {
        let name = format!("asked-{number}");
        let answer = story.shop.api().post("/applications/", json!({"name": name})).await;
        match answer.status {
            200 => acknowledged.push(name),
            _ => {
                let refused = answer.expect(503);
                assert_eq!(refused["message"], "the database is not available, try again", "{refused}");
            }
        }
    }
    // Far more than the server has seen, and the end of the hook.
    story.goes_on().await;
    story.hook_is_done().await;
    let detail = story.shop.api().get(&story.sub_task.path).await.expect(200);
    assert_eq!(detail["status"], "running", "an end that cannot be kept is not told: {detail:#}");
    story.shop.processes.free_disk();

    readiness(&story.shop, 200).await;
    story.ends_well().await;
    assert_eq!(applications(&story.shop, "asked-").await, acknowledged, "what was acknowledged is there, and no more");
    // Whatever wrote before writes again.
    story.shop.api().post("/applications/", json!({"name": "asked-again"})).await.expect(200);
    story.shop.commit("v2", &[("index.html", "two\n")]);
    story.shop.deployed("v2").await;
    assert_eq!(story.shop.current("web-2", "index.html").as_deref(), Some("two\n"));
    assert_eq!(story.shop.processes.server_id(), server);
}

#[tokio::test]
async fn the_disk_of_the_server_is_full() {
    check_server(Shortage::best()).await;
}

#[tokio::test]
async fn the_server_may_make_no_file_longer() {
    check_server(Shortage::Limit).await;
}

async fn check_agent(shortage: Shortage) {
    let mut processes = Processes::start(Engine::Sqlite).await;
    let host = processes.add_agent_on_disk("web-1", shortage).await;
    let story = Story::begin_in(Shop::open_with(processes, vec![host]).await, 600).await;
    let shop = &story.shop;
    let reason = match shortage {
        Shortage::Disk => "the disk is full",
        Shortage::Limit => "the file would be larger than this system allows",
    };

    shop.processes.fill_agent_disk("web-1", AGENT_FILE_BYTES);
    let detail = shop.end_of(&story.sub_task).await;
    let error = text(&on_host(&detail, "web-1")["error"]);
    assert!(error.contains(&format!("stopped because its output cannot be kept: {reason}")), "{error}");
    // What came is what the hook wrote, up to where it was ended.
    let output = shop.output(&story.sub_task, "?format=json").await;
    let (seen, kept) = (stdout_of(&output.records(), "web-1"), story.kept("web-1"));
    assert!(!seen.is_empty() && kept.starts_with(&seen), "{} bytes seen, {} written", seen.len(), kept.len());
    // Nothing ends well there, and the reason is told. A limit is the hook's as well.
    shop.processes.fill_agent_disk("web-1", AGENT_FILE_BYTES);
    let refused = shop.end_of(&shop.deploy("v1").await).await;
    let error = text(&on_host(&refused, "web-1")["error"]);
    assert!(shortage == Shortage::Limit || error.contains(reason), "{error}");

    shop.processes.free_agent_disk("web-1");
    story.let_it_end();
    let mut ended = Value::Null;
    wait_within(OUTAGE, "the agent to work again", async || {
        ended = shop.end_of(&shop.deploy("v1").await).await;
        ended["status"] == "finished"
    })
    .await;
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
}

#[tokio::test]
async fn the_disk_of_an_agent_is_full() {
    check_agent(Shortage::best()).await;
}

#[tokio::test]
async fn an_agent_may_make_no_file_longer() {
    check_agent(Shortage::Limit).await;
}
