//! The whole agent against a server.

use std::os::unix::fs::PermissionsExt as _;

use drover_shared::Digest;
use drover_shared::message::{Finished, ToAgent, ToServer};
use drover_shared::order::Step;
use drover_shared::record::{Stream, records};
use drover_shared::words::{ExecutionState, StepState};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};

use crate::bench::{Bench, bash, entry, execution_id, wait_until};
use crate::server::{Got, Peer, Server, agent, run, stop};

/// The log of one execution as a server gathers it.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) log: Vec<u8>,
    pub(crate) finished: Option<Finished>,
    pub(crate) accepted: u32,
}

impl Gathered {
    /// Takes what comes until the end of the execution, or until `enough`. False when the connection ended.
    pub(crate) async fn gather(&mut self, peer: &mut Peer, enough: impl Fn(&Self) -> bool) -> bool {
        while !enough(self) && !self.complete() {
            match peer.next().await {
                None => return false,
                Some(Got::Data(header, body)) => {
                    assert_eq!(header.offset, self.log.len() as u64, "output must join on");
                    self.log.extend_from_slice(&body);
                    let offset = self.log.len() as u64;
                    peer.send(&ToAgent::OutputAck { channel: header.channel, offset }).await;
                }
                Some(Got::Message(ToServer::Finished(finished))) => self.finished = Some(*finished),
                Some(Got::Message(ToServer::Accepted { .. })) => self.accepted += 1,
                Some(Got::Message(ToServer::Heartbeat { .. })) => {}
                Some(Got::Message(other)) => panic!("unexpected {other:?}"),
            }
        }
        true
    }

    pub(crate) fn complete(&self) -> bool {
        self.finished.as_ref().is_some_and(|finished| finished.log_length == self.log.len() as u64)
    }

    pub(crate) fn text(&self) -> String {
        let records = records(&self.log).map(Result::unwrap).filter(|record| record.stream == Stream::Output);
        String::from_utf8(records.flat_map(|record| record.payload.to_vec()).collect()).unwrap()
    }
}

pub(crate) async fn archive(peer: &mut Peer, finished: &Finished) {
    let (execution_id, attempt) = (finished.execution_id.clone(), finished.attempt);
    peer.send(&ToAgent::Archived { execution_id, attempt }).await;
}

pub(crate) fn spool_is_empty(bench: &Bench) -> bool {
    // Emptied folders wait there for other executions.
    let items = std::fs::read_dir(bench.data_dir().join("spool")).unwrap();
    items.flatten().all(|item| item.file_name().to_string_lossy().starts_with("spare-"))
}

#[tokio::test]
async fn it_enrols_runs_and_comes_back() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let first = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, hello) = server.open(|_| (true, 0)).await;
    assert_eq!((hello.agent_id.as_str(), hello.holdings.len(), hello.version), ("agent-1", 0, 1));
    assert!(!hello.boot_id.is_empty() && !hello.abilities.os.is_empty());
    let mode = std::fs::metadata(bench.data_dir().join("identity.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let id = execution_id();
    let order = server.order(&id, &entry(vec![bash("pre_exec", "echo hello; echo $DROVER_HOST")]), 10_000);
    peer.send(&run(order.clone())).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!((gathered.text().as_str(), gathered.accepted), ("hello\nweb-1\n", 1));
    let finished = gathered.finished.take().unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Succeeded, None));

    // A repeated order is answered and not run again.
    peer.send(&run(order)).await;
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!(gathered.accepted, 2);
    assert_eq!(gathered.finished.as_ref(), Some(&finished));

    // A second start needs no token, trusts the kept CA, and still holds what was not archived.
    stop(first).await;
    drop(peer);
    let _second = agent(&bench.data_dir(), None);
    let length = gathered.log.len() as u64;
    let (mut peer, hello) = server.open(|_| (true, length)).await;
    assert_eq!(hello.holdings.len(), 1);
    assert!(hello.holdings[0].finished);
    assert!(matches!(peer.message().await, ToServer::Finished(again) if *again == finished));
    archive(&mut peer, &finished).await;
    wait_until("the spool is empty", || spool_is_empty(&bench));
}

#[tokio::test]
async fn a_restart_in_the_middle_loses_and_doubles_nothing() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    server.window = 256 * 1024;
    let mut running = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let content = format!(
        "echo started >> {0}; for i in $(seq 40000); do echo \"line $i of the output\"; done; while [ ! -e {1} ]; do sleep 0.02; done; seq 40000",
        bench.path("starts").display(),
        bench.path("go").display()
    );
    let order = server.order(&execution_id(), &entry(vec![bash("pre_exec", &content)]), 60_000);
    peer.send(&run(order.clone())).await;
    let mut gathered = Gathered::default();
    for limit in [100_000, 300_000, 500_000] {
        assert!(gathered.gather(&mut peer, |so_far| so_far.log.len() > limit).await);
        if limit == 300_000 {
            running.kill().await.unwrap();
        } else {
            stop(running).await;
        }
        drop(peer);
        running = agent(&bench.data_dir(), None);
        let offset = gathered.log.len() as u64;
        peer = server.open(|_| (true, offset)).await.0;
        peer.send(&run(order.clone())).await;
    }
    std::fs::write(bench.path("go"), "").unwrap();
    assert!(gathered.gather(&mut peer, |_| false).await);
    let mut expected = String::new();
    for i in 1..=40_000 {
        expected.push_str(&format!("line {i} of the output\n"));
    }
    for i in 1..=40_000 {
        expected.push_str(&format!("{i}\n"));
    }
    assert!(gathered.text() == expected, "the output differs");
    assert_eq!(std::fs::read_to_string(bench.path("starts")).unwrap(), "started\n");
    let finished = gathered.finished.unwrap();
    assert_eq!(finished.state, ExecutionState::Succeeded);
    archive(&mut peer, &finished).await;
    wait_until("the spool is empty", || spool_is_empty(&bench));
}

#[tokio::test]
async fn a_wrong_fingerprint_is_refused() {
    let bench = Bench::new();
    let server = Server::start().await;
    let mut token = server.token.clone();
    token.ca_fingerprint = Digest::of(b"another CA");
    let mut running = agent(&bench.data_dir(), Some(&token));
    assert!(server.accept().await.is_none(), "the agent must not trust this server");
    let mut said = tokio::io::BufReader::new(running.stderr.take().unwrap()).lines();
    let expected = "does not present the CA that the join token names";
    while !said.next_line().await.unwrap().expect("the agent says why").contains(expected) {}
    assert!(!bench.data_dir().join("identity.json").exists());
}

#[tokio::test]
async fn a_refusal_ends_the_program_and_two_agents_do_not_share() {
    let bench = Bench::new();
    let server = Server::start().await;
    let mut running = agent(&bench.data_dir(), Some(&server.token));
    let mut peer = server.accept().await.unwrap();

    let output = agent(&bench.data_dir(), Some(&server.token)).wait_with_output().await.unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another agent works on data directory"));

    peer.send(&ToAgent::Challenge { nonce: "n".to_owned(), versions: (1, 1), time_ms: 0 }).await;
    assert!(matches!(peer.message().await, ToServer::Enrol { .. }));
    peer.send(&ToAgent::Refused { reason: "the join token is used up".to_owned(), retry: false }).await;
    assert!(!running.wait().await.unwrap().success());
    let mut said = String::new();
    running.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert!(said.contains("the server refused: the join token is used up"), "{said}");
    let output = agent(&bench.data_dir(), None).wait_with_output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("give a join token with --join"));
}

#[tokio::test]
async fn an_artifact_comes_in_pieces_over_a_restart() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let mut running = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let artifact: Vec<u8> = (0..600_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let digest = Digest::of(&artifact);
    let fetch = Step::Fetch { digest, size_bytes: artifact.len() as u64, index: None };
    let order = server.order(&execution_id(), &entry(vec![fetch.clone(), bash("pre_exec", "echo got it")]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    let channel = fetch_request(&mut peer, &mut gathered, 0).await;
    peer.send_artifact(channel, 0, &artifact[..200_000], false).await;
    while !matches!(peer.next().await, Some(Got::Message(ToServer::FetchAck { offset: 200_000, .. }))) {}
    running.kill().await.unwrap();
    drop(peer);
    let _again = agent(&bench.data_dir(), None);

    let (mut peer, _) = server.open(|_| (true, 0)).await;
    gathered.log.clear();
    let channel = fetch_request(&mut peer, &mut gathered, 200_000).await;
    peer.send_artifact(channel, 200_000, &artifact[200_000..400_000], false).await;
    peer.send_artifact(channel, 400_000, &artifact[400_000..], true).await;
    finish(&mut peer, &mut gathered).await;
    let finished = gathered.finished.take().unwrap();
    assert_eq!(finished.reason, None);
    assert_eq!(gathered.text(), "got it\n");
    assert_eq!(std::fs::read(bench.data_dir().join("artifacts").join(digest.to_string())).unwrap(), artifact);
    archive(&mut peer, &finished).await;

    // The next one finds it in the cache; one with another digest is refused.
    let order = server.order(&execution_id(), &entry(vec![fetch, bash("pre_exec", "true")]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!(gathered.finished.unwrap().reason, None);

    let wrong = Step::Fetch { digest: Digest::of(b"other"), size_bytes: 3, index: None };
    let order = server.order(&execution_id(), &entry(vec![wrong, bash("pre_exec", "true")]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    let channel = fetch_request(&mut peer, &mut gathered, 0).await;
    peer.send_artifact(channel, 0, b"bad", true).await;
    finish(&mut peer, &mut gathered).await;
    let finished = gathered.finished.unwrap();
    assert!(finished.reason.as_ref().unwrap().starts_with("fetch: the artifact has digest"), "{:?}", finished.reason);
    assert_eq!(
        finished.steps.iter().map(|step| step.state).collect::<Vec<_>>(),
        [StepState::Failed, StepState::Skipped]
    );
    assert_eq!(std::fs::read_dir(bench.data_dir().join("artifacts")).unwrap().count(), 1);
}

pub(crate) async fn fetch_request(peer: &mut Peer, gathered: &mut Gathered, expected: u64) -> u32 {
    loop {
        match peer.next().await.unwrap() {
            Got::Message(ToServer::Fetch { channel, offset, .. }) => {
                assert_eq!(offset, expected);
                return channel;
            }
            Got::Message(ToServer::Accepted { .. }) => {}
            Got::Data(header, body) => {
                assert_eq!(header.offset, gathered.log.len() as u64);
                gathered.log.extend_from_slice(&body);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub(crate) async fn finish(peer: &mut Peer, gathered: &mut Gathered) {
    while !gathered.complete() {
        match peer.next().await.unwrap() {
            Got::Data(header, body) => {
                assert_eq!(header.offset, gathered.log.len() as u64);
                gathered.log.extend_from_slice(&body);
            }
            Got::Message(ToServer::Finished(finished)) => gathered.finished = Some(*finished),
            Got::Message(ToServer::FetchAck { .. } | ToServer::FetchDone { .. } | ToServer::Heartbeat { .. }) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test]
async fn it_cancels_what_runs_and_what_waits_for_its_artifact() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let cancel = |execution_id: &str| {
        let reason = "cancelled by ada".to_owned();
        ToAgent::Cancel { execution_id: execution_id.to_owned(), attempt: 1, reason, timed_out: false }
    };

    let id = execution_id();
    let order = server.order(&id, &entry(vec![bash("pre_exec", "echo up; sleep 100")]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |so_far| so_far.text() == "up\n").await);
    peer.send(&cancel(&id)).await;
    assert!(gathered.gather(&mut peer, |_| false).await);
    let finished = gathered.finished.unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
    assert!(finished.processes.ended >= 1);

    let id = execution_id();
    let fetch = Step::Fetch { digest: Digest::of(b"never"), size_bytes: 5, index: None };
    let order = server.order(&id, &entry(vec![fetch.clone(), bash("pre_exec", "echo no")]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    fetch_request(&mut peer, &mut gathered, 0).await;
    peer.send(&cancel(&id)).await;
    finish(&mut peer, &mut gathered).await;
    let finished = gathered.finished.unwrap();
    assert_eq!(finished.state, ExecutionState::Cancelled);
    assert!(finished.steps.iter().all(|step| step.state == StepState::Skipped), "{finished:?}");

    // The time allowed counts while the artifact is under way, too.
    let order = server.order(&execution_id(), &entry(vec![fetch]), 300);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    fetch_request(&mut peer, &mut gathered, 0).await;
    finish(&mut peer, &mut gathered).await;
    assert_eq!(gathered.finished.unwrap().state, ExecutionState::TimedOut);
}

#[tokio::test]
async fn a_dead_supervisor_is_reported_and_an_unwanted_execution_ended() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let running = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let (lost, unwanted) = (execution_id(), execution_id());
    let pid_file = bench.path("pid");
    let order = server.order(&lost, &entry(vec![bash("pre_exec", "echo up; sleep 100")]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |so_far| so_far.text() == "up\n").await);
    let folder = drover_agent::spool::Folder::at(&bench.data_dir().join("spool").join(format!("{lost}.1")));
    let pid = nix::unistd::Pid::from_raw(folder.supervisor().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(gathered.gather(&mut peer, |_| false).await);
    let finished = gathered.finished.unwrap();
    assert_eq!(finished.state, ExecutionState::Lost);
    assert!(finished.reason.unwrap().contains("the supervisor died"));
    assert_eq!((finished.processes.ended, finished.steps[0].state), (2, StepState::Failed));

    let content = format!("echo $$ > {}.new; mv {0}.new {0}; sleep 100", pid_file.display());
    let order = server.order(&unwanted, &entry(vec![bash("pre_exec", &content)]), 60_000);
    peer.send(&run(order)).await;
    wait_until("the hook starts", || pid_file.exists());
    stop(running).await;
    drop(peer);
    let _second = agent(&bench.data_dir(), None);
    let (_peer, hello) = server.open(|_| (false, 0)).await;
    assert_eq!(hello.holdings.len(), 2);
    wait_until("the spool is empty", || spool_is_empty(&bench));
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(!crate::bench::process_lives(pid.trim()));
}

/// The server may have taken it in already: it has to know it again.
#[tokio::test]
async fn an_agent_that_dies_while_it_enrols_enrols_again_as_the_same() {
    let bench = Bench::new();
    let server = Server::start().await;
    let mut keys = Vec::new();
    for _ in 0..2 {
        let mut running = agent(&bench.data_dir(), Some(&server.token));
        let mut peer = server.accept().await.unwrap();
        peer.send(&ToAgent::Challenge { nonce: "n".to_owned(), versions: (1, 1), time_ms: 0 }).await;
        let ToServer::Enrol { public_key, .. } = peer.message().await else { panic!("it does not enrol") };
        keys.push(public_key);
        running.kill().await.unwrap();
    }
    assert_eq!(keys[0], keys[1]);
}
