//! Nobody gets in who does not belong.

use drover_shared::Digest;
use drover_shared::token::JoinToken;

use super::*;

/// Starts an agent that has to be turned away for good, and gives its log.
async fn refused(processes: &mut Processes, host: &str, arguments: &[&str]) -> String {
    processes.spawn_agent(host, arguments);
    let status = processes.wait_for_agent_to_end(host).await;
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(!processes.agent_folder(host).join("identity.json").exists());
    processes.agent_log(host)
}

async fn hosts(processes: &Processes) -> Vec<String> {
    let hosts = processes.api().get("/hosts/").await.expect(200);
    hosts["results"].as_array().expect("hosts").iter().map(|host| text(&host["name"])).collect()
}

#[tokio::test]
async fn a_token_that_is_used_up_or_for_another_host_is_refused() {
    let mut processes = Processes::start(Engine::Sqlite).await;
    let token = processes.join_token("web-1");
    let log = refused(&mut processes, "web-2", &["--join", &token, "--name", "web-2"]).await;
    assert!(log.contains("the join token is for another host"), "{log}");
    assert_eq!(hosts(&processes).await, Vec::<String>::new());

    // Being refused did not use it up.
    processes.spawn_agent("web-1", &["--join", &token, "--name", "web-1"]);
    processes.wait_for_connection("web-1", true).await;
    let log = refused(&mut processes, "again", &["--join", &token, "--name", "web-1"]).await;
    assert!(log.contains("the join token is unknown, used up or too old"), "{log}");

    // A token for any host takes over none that is enrolled.
    let open = processes.administer(&["join-token", "create", "--uses", "2"]);
    let log = refused(&mut processes, "thief", &["--join", &open, "--name", "web-1"]).await;
    assert!(log.contains("web-1 is enrolled already"), "{log}");
    processes.spawn_agent("web-3", &["--join", &open, "--name", "web-3"]);
    processes.wait_for_connection("web-3", true).await;
    processes.wait_for_connection("web-1", true).await;
    let mut names = hosts(&processes).await;
    names.sort();
    assert_eq!(names, ["web-1", "web-3"]);
}

#[tokio::test]
async fn a_server_with_another_fingerprint_is_refused() {
    let mut processes = Processes::start(Engine::Sqlite).await;
    let mut token = JoinToken::decode(&processes.join_token("web-1")).expect("a join token");
    let right = token.encode();
    token.ca_fingerprint = Digest::of(b"somebody else's CA");
    processes.spawn_agent("web-1", &["--join", &token.encode(), "--name", "web-1"]);
    wait_until("the agent to refuse the server", async || {
        processes.agent_log("web-1").contains("the server does not present the CA that the join token names")
    })
    .await;
    processes.stop_agent("web-1").await;
    assert_eq!(hosts(&processes).await, Vec::<String>::new());
    // The secret never left the agent: the token still works.
    processes.spawn_agent("web-1", &["--join", &right, "--name", "web-1"]);
    processes.wait_for_connection("web-1", true).await;
}

#[tokio::test]
async fn a_host_that_is_enrolled_anew_has_one_agent_the_new_one() {
    let mut shop = Shop::with_versions(&["web-1"]).await;
    shop.deployed("v1").await;
    let before = shop.processes.wait_for_connection("web-1", true).await;
    let token = shop.processes.join_token("web-1");
    shop.processes.spawn_agent("anew", &["--join", &token, "--name", "web-1"]);
    // The old one is told that it is nobody any more, and ends.
    let status = shop.processes.wait_for_agent_to_end("web-1").await;
    assert_eq!(status.code(), Some(1), "{status}");
    let log = shop.processes.agent_log("web-1");
    assert!(log.contains("this agent is not enrolled here"), "{log}");
    let after = shop.processes.wait_for_connection("web-1", true).await;
    assert_eq!(before, after, "it is the same host");
    shop.deployed("v2").await;
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("two\n"));

    // It does not come back, and does not disturb the new one.
    shop.processes.spawn_agent("web-1", &[]);
    let status = shop.processes.wait_for_agent_to_end("web-1").await;
    assert_eq!(status.code(), Some(1), "{status}");
    shop.deployed("v1").await;
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
    let enrolled = shop.processes.audit().await.into_iter().filter(|entry| entry.starts_with("enrol agent")).count();
    assert_eq!(enrolled, 2, "both enrolments are in the audit");
}

#[tokio::test]
async fn version_clock_and_last_sign_of_life_of_an_agent_are_shown() {
    let mut processes = Processes::start(Engine::Sqlite).await;
    let host = processes.add_agent("web-1").await;
    let path = format!("/hosts/{host}/");
    let agent = processes.api().get(&path).await.expect(200)["agent"].take();
    let version = Command::new(processes.program("drover-agent").get_program()).arg("--version").output();
    let version = String::from_utf8(version.expect("the agent says its version").stdout).expect("text");
    assert_eq!(Some(version.trim()), agent["version"].as_str().map(|own| format!("drover-agent {own}")).as_deref());
    assert_eq!(agent["connected"], true);
    let skew = agent["clock_skew_ms"].as_i64().expect("a skew");
    assert!(skew.abs() < 60_000, "both have one clock, yet {skew} ms");
    let seen = text(&agent["last_seen_time"]);
    assert!(seen.len() == "2018-04-18T15:38:40+00:00".len() && seen.contains('T'), "{seen}");

    processes.stop_agent("web-1").await;
    processes.wait_for_connection("web-1", false).await;
    let agent = processes.api().get(&path).await.expect(200)["agent"].take();
    assert!(text(&agent["last_seen_time"]) >= seen, "{agent}");
    assert_eq!(agent["version"], version.trim().trim_start_matches("drover-agent "));
}
