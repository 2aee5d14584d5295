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
