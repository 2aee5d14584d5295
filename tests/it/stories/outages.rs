//! The server goes on, as the same process, when what it stands on comes back: its database, and the way to its agents.
//!
//! What was acknowledged before and during an outage is there afterwards; readiness tells of it.

use std::time::{Duration, Instant};

use drover_tests::wait_within;
use drover_tests::wire::Wire;
use futures_util::future::join_all;
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use xtask::postgres::Postgres;

use super::steady::Story;
use super::*;

const HOSTS: [&str; 2] = ["web-1", "web-2"];

/// Longest wait for what has to be noticed or mended by itself.
pub(super) const OUTAGE: Duration = Duration::from_secs(90);

/// Waits until readiness has this status, and gives what it says.
pub(super) async fn readiness(shop: &Shop, status: u16) -> String {
    let mut said = String::new();
    wait_within(OUTAGE, &format!("readiness to say {status}"), async || {
        let Some(answer) = shop.api().readiness().await else { return false };
        said = answer.body["message"].as_str().unwrap_or_default().to_owned();
        answer.status == status
    })
    .await;
    said
}

/// Names of the applications that begin so, sorted.
pub(super) async fn applications(shop: &Shop, begin: &str) -> Vec<String> {
    let listed = shop.api().get("/applications/?page_size=100").await.expect(200);
    let names = listed["results"].as_array().expect("applications").iter().map(|one| text(&one["name"]));
    let mut names: Vec<String> = names.filter(|name| name.starts_with(begin)).collect();
    names.sort();
    names
}

#[tokio::test]
async fn sqlite_is_locked_for_longer_than_anybody_waits() {
    let mut story = Story::begin_in(Shop::open(Engine::Sqlite, &HOSTS).await, 600).await;
    let server = story.shop.processes.server_id();
    readiness(&story.shop, 200).await;

    let file = story.shop.folder().join("server/drover.db");
    let mut backup = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.expect("the database");
    wait_until("the lock", async || backup.execute("BEGIN EXCLUSIVE").await.is_ok()).await;
    // Each is answered, and none waits for all the others.
    let asked = (0..4).map(|number| {
        let api = story.shop.api().clone();
        async move { api.post("/applications/", json!({"name": format!("asked-{number}")})).await.expect(503) }
    });
    for refused in join_all(asked).await {
        assert_eq!(refused["message"], "the database is not available, try again", "{refused}");
    }
    let said = readiness(&story.shop, 503).await;
    assert!(said.contains("the database takes no changes"), "{said}");
    // What is there can be read, and what runs goes on and ends.
    story.shop.api().get(&story.sub_task.path).await.expect(200);
    story.goes_on().await;
    story.hook_is_done().await;
    backup.execute("ROLLBACK").await.expect("the lock is let go");

    readiness(&story.shop, 200).await;
    story.ends_well().await;
    assert_eq!(applications(&story.shop, "asked-").await, [""; 0], "what was refused was not done");
    story.shop.api().post("/applications/", json!({"name": "asked-again"})).await.expect(200);
    assert_eq!(story.shop.processes.server_id(), server);
}

#[tokio::test]
async fn postgres_is_killed_and_started_again() {
    let starting = tokio::task::spawn_blocking(|| Postgres::durable().expect("PostgreSQL starts"));
    let mut postgres = starting.await.expect("it starts");
    let processes = Processes::start_on(Some(postgres.url().to_owned())).await;
    let mut story = Story::begin_in(Shop::open_on(processes, &HOSTS).await, 600).await;
    let server = story.shop.processes.server_id();
    readiness(&story.shop, 200).await;

    for number in 0..5 {
        story.shop.api().post("/applications/", json!({"name": format!("asked-{number}")})).await.expect(200);
    }
    // Some of these are under way when it is killed; each is repeated until it is answered.
    let asking = join_all((5..10).map(|number| {
        let (api, name) = (story.shop.api().clone(), format!("asked-{number}"));
        async move {
            api.post_until_answered("/applications/", json!({"name": name}), &name, OUTAGE).await.expect(200);
        }
    }));
    let outage = async {
        postgres.kill().expect("PostgreSQL is killed");
        readiness(&story.shop, 503).await;
        story.goes_on().await;
        let starting = tokio::task::spawn_blocking(move || {
            postgres.start_again().expect("PostgreSQL comes back");
            postgres
        });
        let postgres = starting.await.expect("it comes back");
        readiness(&story.shop, 200).await;
        postgres
    };
    let (_, _postgres) = tokio::join!(asking, outage);
    story.goes_on().await;
    story.let_it_end();
    story.ends_well().await;
    let expected: Vec<String> = (0..10).map(|number| format!("asked-{number}")).collect();
    assert_eq!(applications(&story.shop, "asked-").await, expected, "what was acknowledged is there, once");
    assert_eq!(story.shop.processes.server_id(), server);
}

#[tokio::test]
async fn an_agent_that_goes_while_nothing_can_be_noted_is_told_to_be_away() {
    let mut shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    let file = shop.folder().join("server/drover.db");
    let mut backup = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.expect("the database");
    wait_until("the lock", async || backup.execute("BEGIN EXCLUSIVE").await.is_ok()).await;
    shop.processes.kill_agent("web-1").await;
    wait_within(OUTAGE, "noting to fail", async || shop.processes.server_log().contains("an agent has gone")).await;
    backup.execute("ROLLBACK").await.expect("the lock is let go");
    shop.processes.wait_for_connection("web-1", false).await;
}

/// Silence after which a peer counts as gone, and one round of heartbeats.
const NOTICED: Duration = Duration::from_secs(45 + 15);

#[tokio::test]
async fn a_host_whose_connection_is_silent_is_told_to_be_away() {
    let mut shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    let wire = Wire::to(shop.processes.agent_address()).await;
    shop.processes.stop_agent("web-1").await;
    shop.processes.redirect_agent("web-1", &wire);
    shop.processes.start_agent("web-1").await;
    let story = Story::begin_in(shop, 600).await;
    // Both ends keep the connection, and hear nothing.
    wire.freeze();
    let start = Instant::now();
    story.shop.processes.wait_for_connection_within("web-1", false, NOTICED).await;
    let noticed = start.elapsed();
    assert!(noticed < NOTICED, "noticed after {noticed:?}");
    story.goes_on().await;
    wire.thaw();
    story.shop.processes.wait_for_connection_within("web-1", true, OUTAGE).await;
    story.let_it_end();
    story.ends_well().await;
}
