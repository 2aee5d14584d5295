//! Many artifacts at once, and what ends one that waits for its turn.

use std::collections::BTreeMap;

use drover_shared::Digest;
use drover_shared::message::{Finished, ToAgent, ToServer};
use drover_shared::order::Step;
use drover_shared::words::{ExecutionState, StepState};

use crate::bench::{Bench, bash, entry, execution_id};
use crate::server::{Got, Peer, Server, agent, agent_under, run};
use crate::spool::limited;

/// Requests of an agent that nobody has answered yet, and outcomes, as they come.
#[derive(Default)]
struct Seen {
    /// Channel and offset by digest.
    asked: BTreeMap<Digest, (u32, u64)>,
    /// Executions that the requests named.
    on_behalf: BTreeMap<Digest, String>,
    finished: BTreeMap<String, Finished>,
    under_way_most: usize,
    log: Vec<u8>,
}

impl Seen {
    async fn until(&mut self, peer: &mut Peer, enough: impl Fn(&Self) -> bool) {
        while !enough(self) {
            match peer.next().await.expect("the agent hung up") {
                Got::Message(ToServer::Fetch { channel, digest, offset, execution_id, .. }) => {
                    self.asked.insert(digest, (channel, offset));
                    self.on_behalf.insert(digest, execution_id);
                    self.under_way_most = self.under_way_most.max(self.asked.len());
                }
                Got::Message(ToServer::FetchDone { channel }) => self.asked.retain(|_, (at, _)| *at != channel),
                Got::Message(ToServer::Finished(finished)) => {
                    self.finished.insert(finished.execution_id.clone(), *finished);
                }
                Got::Data(header, body) => {
                    let offset = header.offset + body.len() as u64;
                    self.log.extend(body);
                    peer.send(&ToAgent::OutputAck { channel: header.channel, offset }).await;
                }
                Got::Message(_) => {}
            }
        }
    }
}

fn artifact(number: usize) -> Vec<u8> {
    format!("artifact number {number}").into_bytes()
}

async fn order(server: &Server, peer: &mut Peer, content: &[u8], timeout_ms: u64) -> String {
    let id = execution_id();
    let fetch = Step::Fetch { digest: Digest::of(content), size_bytes: content.len() as u64, index: None };
    let order = server.order(&id, &entry(vec![fetch, bash("pre_exec", "true")]), timeout_ms);
    peer.send(&run(order)).await;
    id
}

#[tokio::test]
async fn forty_artifacts_are_fetched_a_few_at_a_time() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let artifacts: BTreeMap<Digest, Vec<u8>> = (0..40).map(artifact).map(|one| (Digest::of(&one), one)).collect();
    for content in artifacts.values() {
        order(&server, &mut peer, content, 60_000).await;
    }
    let mut seen = Seen::default();
    // Nothing is answered until as many are asked for as the agent wants at once.
    seen.until(&mut peer, |seen| seen.asked.len() == 8).await;
    while seen.finished.len() < artifacts.len() {
        for (digest, (channel, offset)) in std::mem::take(&mut seen.asked) {
            assert_eq!(offset, 0);
            peer.send_artifact(channel, 0, &artifacts[&digest], true).await;
        }
        seen.until(&mut peer, |seen| !seen.asked.is_empty() || seen.finished.len() == artifacts.len()).await;
    }
    assert!(seen.under_way_most <= 8, "{}", seen.under_way_most);
    assert!(seen.finished.values().all(|finished| finished.state == ExecutionState::Succeeded));
}

#[tokio::test]
async fn one_that_waits_for_its_turn_can_be_cancelled_and_times_out() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let mut first = Vec::new();
    for number in 0..8 {
        first.push(order(&server, &mut peer, &artifact(number), 60_000).await);
    }
    let mut seen = Seen::default();
    seen.until(&mut peer, |seen| seen.asked.len() == 8).await;
    let cancelled = order(&server, &mut peer, &artifact(8), 60_000).await;
    let late = order(&server, &mut peer, &artifact(9), 300).await;
    let last = order(&server, &mut peer, &artifact(10), 60_000).await;
    let cancel = |id: &str| {
        let reason = "cancelled by ada".to_owned();
        ToAgent::Cancel { execution_id: id.to_owned(), attempt: 1, reason, timed_out: false }
    };
    peer.send(&cancel(&cancelled)).await;
    seen.until(&mut peer, |seen| seen.finished.contains_key(&cancelled) && seen.finished.contains_key(&late)).await;
    assert_eq!(seen.finished[&cancelled].state, ExecutionState::Cancelled);
    assert_eq!(seen.finished[&late].state, ExecutionState::TimedOut);
    assert_eq!(seen.asked.len(), 8);

    // One that was under way makes room for the last, and for nobody else.
    peer.send(&cancel(&first[0])).await;
    let wanted = Digest::of(&artifact(10));
    seen.until(&mut peer, |seen| seen.asked.contains_key(&wanted)).await;
    peer.send_artifact(seen.asked[&wanted].0, 0, &artifact(10), true).await;
    seen.until(&mut peer, |seen| seen.finished.contains_key(&last)).await;
    assert_eq!(seen.finished[&last].state, ExecutionState::Succeeded);
    for number in [8, 9] {
        assert!(!seen.on_behalf.contains_key(&Digest::of(&artifact(number))), "{number} was asked for");
    }
}

#[tokio::test]
async fn a_download_goes_on_for_those_who_still_wait() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let content = artifact(0);
    let digest = Digest::of(&content);
    let mut ids = vec![order(&server, &mut peer, &content, 60_000).await];
    ids.push(order(&server, &mut peer, &content, 60_000).await);
    let mut seen = Seen::default();
    seen.until(&mut peer, |seen| seen.asked.len() == 1).await;
    let asking = seen.on_behalf[&digest].clone();
    let other = ids.iter().find(|id| **id != asking).unwrap().clone();
    let reason = "cancelled by ada".to_owned();
    peer.send(&ToAgent::Cancel { execution_id: asking.clone(), attempt: 1, reason, timed_out: false }).await;
    seen.until(&mut peer, |seen| seen.finished.contains_key(&asking)).await;
    peer.send(&ToAgent::Archived { execution_id: asking.clone(), attempt: 1 }).await;
    drop(peer);
    // After a reconnect it is asked for on behalf of the one that is left: the server knows no reason else.
    let (mut peer, hello) = server.open(|_| (true, 0)).await;
    assert!(hello.holdings.iter().any(|holding| holding.execution_id == other));
    let mut seen = Seen::default();
    seen.until(&mut peer, |seen| seen.asked.len() == 1).await;
    assert_eq!(seen.on_behalf[&digest], other);
    peer.send_artifact(seen.asked[&digest].0, 0, &content, true).await;
    seen.until(&mut peer, |seen| seen.finished.contains_key(&other)).await;
    assert_eq!(seen.finished[&other].state, ExecutionState::Succeeded);
}

#[tokio::test]
async fn a_download_that_runs_out_of_room_fails_with_that_reason() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent_under(&limited(128 * 1024), &bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let big: Vec<u8> = (0..256 * 1024_u32).flat_map(u32::to_be_bytes).take(256 * 1024).collect();
    let id = order(&server, &mut peer, &big, 60_000).await;
    let mut seen = Seen::default();
    seen.until(&mut peer, |seen| seen.asked.len() == 1).await;
    let channel = seen.asked[&Digest::of(&big)].0;
    for (number, piece) in big.chunks(64 * 1024).enumerate() {
        peer.send_artifact(channel, number as u64 * 64 * 1024, piece, false).await;
    }
    seen.until(&mut peer, |seen| seen.finished.contains_key(&id)).await;
    let finished = &seen.finished[&id];
    assert_eq!((finished.state, finished.steps[0].state), (ExecutionState::Failed, StepState::Failed));
    assert_eq!(finished.steps[1].state, StepState::Skipped);
    let reason = finished.reason.as_deref().unwrap();
    assert_eq!(reason, "fetch: the file would be larger than this system allows");
    assert!(std::fs::read_dir(bench.data_dir().join("artifacts")).unwrap().next().is_none(), "a part is left");
    let log = String::from_utf8_lossy(&seen.log).into_owned();
    assert!(log.contains("fetch: the file would be larger than this system allows\n"), "{log}");

    // Nothing of it stands in the way of a smaller one.
    let id = order(&server, &mut peer, &artifact(1), 60_000).await;
    let wanted = Digest::of(&artifact(1));
    seen.until(&mut peer, |seen| seen.asked.contains_key(&wanted)).await;
    peer.send_artifact(seen.asked[&wanted].0, 0, &artifact(1), true).await;
    seen.until(&mut peer, |seen| seen.finished.contains_key(&id)).await;
    assert_eq!(seen.finished[&id].state, ExecutionState::Succeeded);
}

#[tokio::test]
async fn a_fetch_whose_outcome_cannot_be_kept_fails_with_that_reason() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let id = order(&server, &mut peer, &artifact(2), 60_000).await;
    let mut seen = Seen::default();
    seen.until(&mut peer, |seen| seen.asked.len() == 1 && !seen.log.is_empty()).await;
    let log = bench.data_dir().join("spool").join(format!("{id}.1")).join("log");
    std::fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let (channel, _) = seen.asked[&Digest::of(&artifact(2))];
    peer.send_artifact(channel, 0, &artifact(2), true).await;
    seen.until(&mut peer, |seen| seen.finished.contains_key(&id)).await;
    let finished = &seen.finished[&id];
    let states: Vec<StepState> = finished.steps.iter().map(|step| step.state).collect();
    assert_eq!(states, [StepState::Failed, StepState::Skipped]);
    assert_eq!(finished.state, ExecutionState::Failed);
    assert_eq!(finished.reason.as_deref(), Some("fetch: the disk is full"));
    assert_eq!(finished.steps[0].error.as_deref(), Some("the disk is full"));
}
