//! Secrets: they reach the hook, and nothing else.

use std::path::Path;

use drover_shared::Digest;
use drover_shared::message::{ToAgent, ToServer};
use drover_shared::order::{Entry, Order, Statement, Step};
use drover_shared::record::{Stream, records};
use drover_shared::secret::{Secrets, placeholder};
use drover_shared::words::{ExecutionState, Language};
use tokio::process::Child;

use crate::bench::{Bench, bash, entry, execution_id, process_lives, script, text};
use crate::run::{Gathered, fetch_request};
use crate::server::{Got, Peer, Server, agent};

const VALUE: &str = "s3cr3t/of \"web\" & \u{e4}ll";

fn secrets() -> Secrets {
    Secrets([("TOKEN".to_owned(), VALUE.to_owned())].into())
}

fn with_secrets(steps: Vec<Step>) -> Entry {
    let mut entry = entry(steps);
    entry.secrets = vec!["TOKEN".to_owned()];
    entry
}

/// Whether any file below a folder contains these bytes.
fn any_file_contains(folder: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|item| {
        let path = item.unwrap().path();
        if path.is_dir() {
            return any_file_contains(&path, bytes);
        }
        std::fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes)
    })
}

#[tokio::test]
async fn a_hook_gets_its_secrets_and_the_log_does_not() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, hello) = server.open(|_| (true, 0)).await;
    assert_eq!(hello.features, ["secrets", "inspect", "shared_paths", "instances", "scripts"]);
    let content = format!(
        r#"expected=$(cat <<'END'
{}
END
)
[ "$DROVER_SECRET_TOKEN" = "$expected" ] && echo the same
echo "plain $DROVER_SECRET_TOKEN."
echo "error $DROVER_SECRET_TOKEN." >&2
printf 'base64 %s.\n' "$(printf %s "$DROVER_SECRET_TOKEN" | base64 -w0)"
printf 'in pieces '; for ((i = 0; i < ${{#DROVER_SECRET_TOKEN}}; i++)); do printf %s "${{DROVER_SECRET_TOKEN:i:1}}"; sleep 0.002; done; echo .
tr '\0' '\n' < /proc/$PPID/cmdline | grep -F "$DROVER_SECRET_TOKEN" > /dev/null && echo on the command line
tr '\0' '\n' 2> /dev/null < /proc/$PPID/environ | grep -F "$DROVER_SECRET_TOKEN" > /dev/null && echo in the environment of the supervisor
head -c 64 /proc/$PPID/fd/0 2> /dev/null | grep -F TOKEN > /dev/null && echo the supervisor keeps it open
printf 'ends with the beginning of it s3cr3t'"#,
        placeholder("TOKEN")
    );
    let python = "import json, os, urllib.parse\nv = os.environ['DROVER_SECRET_TOKEN']\nprint('json', json.dumps(v), 'url', urllib.parse.quote(v, safe=''), 'form', urllib.parse.quote_plus(v))";
    let steps = vec![bash("pre_exec", &content), script("post_exec", Language::Python, python, None)];
    let order = server.order(&execution_id(), &with_secrets(steps), 60_000);
    assert!(!order.entry.contains(VALUE));
    peer.send(&ToAgent::Run { order, secrets: secrets() }).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!(gathered.finished.as_ref().unwrap().reason, None);
    assert_eq!(
        gathered.text(),
        "the same\nplain ******.\nbase64 ******.\nin pieces ******.\nends with the beginning of it s3cr3tjson \"******\" url ****** form ******\n"
    );
    let errors: Vec<u8> = records(&gathered.log)
        .map(Result::unwrap)
        .filter(|record| record.stream == Stream::Error)
        .flat_map(|record| record.payload.to_vec())
        .collect();
    assert_eq!(String::from_utf8_lossy(&errors), "error ******.\n");
    assert!(!any_file_contains(&bench.data_dir(), VALUE.as_bytes()));
    assert!(any_file_contains(&bench.data_dir(), b"@@drover-secret:TOKEN@@"));
}

#[tokio::test]
async fn an_order_whose_secrets_do_not_agree_is_rejected() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let named = with_secrets(vec![bash("pre_exec", "true")]);
    let unnamed = entry(vec![bash("pre_exec", &format!("echo {}", placeholder("TOKEN")))]);
    for (entry, secrets, expected) in [
        (&named, Secrets::default(), "secrets: the value of `TOKEN` did not come with the order"),
        (&unnamed, secrets(), "secrets: `TOKEN` is not named in the order"),
        (&unnamed, Secrets::default(), "pre_exec asks for secret `TOKEN`, which the order does not name"),
    ] {
        let order = server.order(&execution_id(), entry, 60_000);
        peer.send(&ToAgent::Run { order, secrets }).await;
        let ToServer::Rejected { reason, .. } = peer.message().await else { panic!("not rejected") };
        assert_eq!(reason, expected);
    }
    assert!(std::fs::read_dir(bench.data_dir().join("spool")).unwrap().next().is_none());
}

#[tokio::test]
async fn a_script_gets_the_secrets_that_it_asks_for_alone() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let asks = "env | grep -c ^DROVER_SECRET_; test -n \"$DROVER_SECRET_TOKEN\"";
    let steps = vec![bash("pre_exec", asks), bash("post_exec", "env | grep -c ^DROVER_SECRET_; true")];
    let order = server.order(&execution_id(), &with_secrets(steps), 60_000);
    peer.send(&ToAgent::Run { order, secrets: secrets() }).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!(gathered.finished.as_ref().unwrap().reason, None);
    assert_eq!(gathered.text(), "1\n0\n");
}

#[tokio::test]
async fn what_a_hook_leaves_running_does_not_hold_its_text() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    // The environment of the daemon is its own business; its script's text is not.
    let content = format!(
        ": <<'END'\n{}\nEND\nenv -i sleep 600 > /dev/null 2>&1 &\necho $! > '{}'",
        placeholder("TOKEN"),
        bench.path("pid").display()
    );
    let order = server.order(&execution_id(), &with_secrets(vec![bash("pre_exec", &content)]), 60_000);
    peer.send(&ToAgent::Run { order, secrets: secrets() }).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!(gathered.finished.as_ref().unwrap().reason, None);
    let pid = std::fs::read_to_string(bench.path("pid")).unwrap().trim().to_owned();
    assert!(process_lives(&pid));
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|item| item.unwrap().path()).collect();
    let texts: Vec<_> = open
        .iter()
        .filter(|file| std::fs::read_link(file).is_ok_and(|to| to.to_string_lossy().contains("memfd:")))
        .map(|file| std::fs::read(file).unwrap())
        .collect();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    assert!(texts.iter().all(Vec::is_empty), "{} descriptors are open, one has a text", open.len());
}

#[test]
fn no_other_process_of_its_account_may_look_into_a_supervisor() {
    let bench = Bench::new();
    // What the kernel keeps from others belongs to root.
    let look = bash("pre_exec", "stat -c %u /proc/$PPID/environ; stat -c %u /proc/$$/environ; id -u");
    let (finished, folder) = bench.run_without_root(&entry(vec![look]));
    assert_eq!(finished.reason, None);
    let told = text(&folder, Stream::Output);
    let [supervisor, own, id] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    assert_eq!((supervisor, own), ("0", id), "a hook is as any other program");
}

/// An execution whose agent died while its artifact was under way: the server, the connection of the next agent, the
/// order, and the channel of the artifact.
async fn restarted(bench: &Bench) -> (Server, Peer, Order, Child) {
    let mut server = Server::start().await;
    let mut running = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let fetch = Step::Fetch { digest: Digest::of(b"artifact"), size_bytes: 8, index: None };
    let content =
        format!("echo \"$DROVER_SECRET_TOKEN\" >> {}; echo \"$DROVER_SECRET_TOKEN\"", bench.path("out").display());
    let order = server.order(&execution_id(), &with_secrets(vec![fetch, bash("pre_exec", &content)]), 60_000);
    peer.send(&ToAgent::Run { order: order.clone(), secrets: secrets() }).await;
    fetch_request(&mut peer, &mut Gathered::default(), 0).await;
    running.kill().await.unwrap();
    drop(peer);
    let again = agent(&bench.data_dir(), None);
    let (mut peer, hello) = server.open(|_| (true, 0)).await;
    assert!(hello.holdings[0].needs_order);
    let channel = fetch_request(&mut peer, &mut Gathered::default(), 0).await;
    peer.send_artifact(channel, 0, b"artifact", true).await;
    (server, peer, order, again)
}

#[tokio::test]
async fn after_a_restart_the_hook_waits_for_its_secrets() {
    let bench = Bench::new();
    let (_server, mut peer, order, _agent) = restarted(&bench).await;
    while !matches!(peer.next().await, Some(Got::Message(ToServer::FetchDone { .. }))) {}
    assert!(!bench.path("out").exists());
    // A value that is missing still is an error, and the right ones start the hook once.
    peer.send(&ToAgent::Run { order: order.clone(), secrets: Secrets::default() }).await;
    while !matches!(peer.next().await, Some(Got::Message(ToServer::Rejected { .. }))) {}
    for _ in 0..2 {
        peer.send(&ToAgent::Run { order: order.clone(), secrets: secrets() }).await;
    }
    let state = outcome(&mut peer).await;
    assert_eq!(state, ExecutionState::Succeeded);
    assert_eq!(std::fs::read_to_string(bench.path("out")).unwrap(), format!("{VALUE}\n"));
}

#[tokio::test]
async fn one_that_waits_for_its_secrets_can_be_cancelled() {
    let bench = Bench::new();
    let (_server, mut peer, order, _agent) = restarted(&bench).await;
    let statement: Statement = serde_json::from_str(&order.statement).unwrap();
    let (execution_id, reason) = (statement.execution_id, "cancelled by ada".to_owned());
    while !matches!(peer.next().await, Some(Got::Message(ToServer::FetchDone { .. }))) {}
    peer.send(&ToAgent::Cancel { execution_id, attempt: 1, reason, timed_out: false }).await;
    assert_eq!(outcome(&mut peer).await, ExecutionState::Cancelled);
    assert!(!bench.path("out").exists());
}

async fn outcome(peer: &mut Peer) -> ExecutionState {
    loop {
        match peer.next().await.expect("the agent hung up") {
            Got::Message(ToServer::Finished(finished)) => return finished.state,
            Got::Data(header, body) => {
                let offset = header.offset + body.len() as u64;
                peer.send(&ToAgent::OutputAck { channel: header.channel, offset }).await;
            }
            Got::Message(_) => {}
        }
    }
}
