//! Waiting for what is busy, and taking it away from what died.

use super::*;

/// Version and folder: says that it began, and v1 stays until it is let go.
const HOOK: &str =
    "echo '{{ version }}' >> FOLDER/ran\nwhile [ {{ version }} = v1 ] && [ ! -e FOLDER/go ]; do sleep 0.1; done";

fn ran(shop: &Shop) -> Vec<String> {
    let text = fs::read_to_string(shop.folder().join("ran")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A shop with an agent, where v1 is at work and v2 waits for it.
async fn one_waits(engine: Engine) -> (Shop, SubTask, String) {
    let shop = Shop::open(engine, &["web-1"]).await;
    shop.commit("v1", &[("index.html", "one\n")]);
    shop.commit("v2", &[("index.html", "two\n")]);
    shop.hook("pre_exec", "bash", &HOOK.replace("FOLDER", &shop.folder().display().to_string())).await;
    let first = shop.deploy("v1").await;
    wait_until("the first one", async || ran(&shop) == ["v1"]).await;
    let token = shop.api().token().to_owned();
    shop.says(2, &["--token", &token, "deploy", "shop", "--version", "v2", "--yes"]).await;
    let words = ["--token", &token, "deploy", "shop", "--version", "v2", "--queue", "--no-follow", "--yes"];
    let made = shop.says(0, &words).await;
    let second = made.trim().rsplit_once('/').expect("two numbers").1.to_owned();
    (shop, first, second)
}

/// The lines of a table.
async fn table(shop: &Shop, words: &[&str]) -> String {
    let token = shop.api().token().to_owned();
    let words: Vec<&str> = ["--token", token.as_str()].into_iter().chain(words.iter().copied()).collect();
    shop.says(0, &words).await
}

async fn ends_well(shop: &Shop, task: &str) {
    let path = format!("/tasks/{task}/");
    wait_until("the second one", async || shop.api().get(&path).await.expect(200)["status"] == "finished").await;
    assert_eq!(ran(shop), ["v1", "v2"]);
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("two\n"));
}

/// The server is killed while one waits, ends the other when it is back, and lets begin what waits.
async fn one_begins_after_the_other(engine: Engine) {
    let (mut shop, first, second) = one_waits(engine).await;
    assert!(table(&shop, &["queue"]).await.contains("web-1 (task 1)"));
    shop.processes.kill_server().await;
    shop.processes.start_server().await;
    shop.processes.wait_for_connection("web-1", true).await;
    let waits = shop.api().get(&format!("/tasks/{second}/")).await.expect(200);
    assert_eq!((&waits["phase"], &waits["queued"]), (&json!("waiting"), &json!(true)));
    assert_eq!(ran(&shop), ["v1"]);
    // Whoever is killed once more right at the end of the first finds what waits all the same.
    fs::write(shop.folder().join("go"), "").expect("a file");
    shop.end_of(&first).await;
    shop.processes.kill_server().await;
    shop.processes.start_server().await;
    ends_well(&shop, &second).await;
}

#[tokio::test]
async fn one_begins_after_the_other_on_sqlite() {
    Box::pin(one_begins_after_the_other(Engine::Sqlite)).await;
}

#[tokio::test]
async fn one_begins_after_the_other_on_postgres() {
    Box::pin(one_begins_after_the_other(Engine::Postgres)).await;
}

#[tokio::test]
async fn what_died_is_seen_and_taken_away() {
    let (mut shop, first, second) = one_waits(Engine::Sqlite).await;
    // Agent and supervisor are killed: the host is away, and nobody can say what became of it.
    shop.processes.kill_agent("web-1").await;
    assert!(shop.processes.kill_a_supervisor("web-1", 0));
    wait_until("the holder to look stuck", async || {
        table(&shop, &["locks", "--wanted"]).await.contains("its host is not connected")
    })
    .await;
    assert!(table(&shop, &["queue"]).await.contains(&format!("/{second} ")));
    shop.processes.kill_server().await;
    shop.processes.start_server().await;
    let why = ["lock", "break", "shop", "--host", "web-1", "--reason", "the machine was replaced"];
    assert_eq!(table(&shop, &why).await, "shop on web-1: taken away\n");
    let told = shop.end_of(&first).await;
    let one = on_host(&told, "web-1");
    assert_eq!((&one["status"], &one["broken"], &one["host_said"]), (&json!("lost"), &json!(true), &Value::Null));
    assert!(text(&told["error"]).ends_with("takes web-1 away from this task: the machine was replaced"), "{told:#}");
    wait_until("the second one's turn", async || {
        shop.api().get(&format!("/tasks/{second}/")).await.expect(200)["phase"] == "instances"
    })
    .await;
    // The host comes back, ends what it finds of the first one, and does the second.
    shop.processes.start_agent("web-1").await;
    ends_well(&shop, &second).await;
    let told = shop.api().get(&first.path).await.expect(200);
    let one = on_host(&told, "web-1");
    assert_eq!((&one["status"], &one["host_said"]), (&json!("lost"), &json!("lost")), "its word is kept");
    assert_eq!(table(&shop, &["locks"]).await.lines().count(), 1, "nobody has anything any more");
}
