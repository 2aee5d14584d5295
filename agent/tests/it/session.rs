//! The session's state machine, without any input or output.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_agent::clock::Now;
use drover_agent::identity::AgentKey;
use drover_agent::session::{Output, Profile, Session};
use drover_agent::spool::Key;
use drover_shared::Digest;
use drover_shared::frame::{Header, Kind};
use drover_shared::message::{Abilities, Finished, HoldingAnswer, Part, ProcessVerdict, ToAgent, ToServer};
use drover_shared::order::{Order, canonical};
use drover_shared::record::{Record, Stream};
use drover_shared::words::ExecutionState;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use crate::bench::{bash, entry, execution_id, statement};
use crate::server::run;

fn at(monotonic_ms: u64) -> Now {
    Now { monotonic_ms, wall_ms: 1_700_000_000_000 }
}

fn server_key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
}

fn session() -> Session {
    session_speaking((1, 1))
}

fn session_speaking(versions: (u32, u32)) -> Session {
    Session::new(Profile {
        name: "web-1".to_owned(),
        secret: None,
        agent_id: Some("agent-1".to_owned()),
        key: AgentKey::generate().unwrap(),
        signing_key: BASE64.encode(server_key().public_key().as_ref()),
        boot_id: "boot".to_owned(),
        abilities: Abilities::default(),
        versions,
    })
}

fn outputs(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.next_output()).collect()
}

fn sent(session: &mut Session) -> Vec<ToServer> {
    let messages = outputs(session).into_iter().filter_map(|output| match output {
        Output::Send(message) | Output::SendAfterData(message) => Some(message),
        _ => None,
    });
    messages.collect()
}

fn challenge() -> ToAgent {
    challenge_of((1, 3))
}

fn challenge_of(versions: (u32, u32)) -> ToAgent {
    ToAgent::Challenge { nonce: "n".to_owned(), versions, time_ms: 0 }
}

fn welcome(window: u64, holdings: Vec<HoldingAnswer>) -> ToAgent {
    welcome_to(1, window, holdings)
}

fn welcome_to(version: u32, window: u64, holdings: Vec<HoldingAnswer>) -> ToAgent {
    let (heartbeat_ms, deadline_ms) = (1_000, 3_000);
    ToAgent::Welcome { version, epoch: 1, heartbeat_ms, deadline_ms, output_window_bytes: window, holdings }
}

fn open(session: &mut Session, window: u64, holdings: Vec<HoldingAnswer>) -> Vec<ToServer> {
    session.connected(at(0));
    session.handle_message(challenge(), at(0));
    session.handle_message(welcome(window, holdings), at(0));
    assert!(session.is_open());
    sent(session)
}

fn order(id: &str, agent: &str) -> Order {
    let entry = canonical(&entry(vec![bash("pre_exec", "true")]));
    Order::seal(&statement(id, agent, &entry, 1_000), entry, |bytes| server_key().sign(bytes).as_ref().to_vec())
}

fn log(records: usize) -> Vec<u8> {
    let mut log = Vec::new();
    for _ in 0..records {
        Record { time_ms: 1, step: 0, stream: Stream::Output, payload: &[b'x'; 1_000] }.encode(&mut log);
    }
    log
}

/// Ships all that may be shipped; gives offset and length of every frame.
fn ship(session: &mut Session, log: &[u8], now: Now) -> Vec<(u64, u32)> {
    let mut frames = Vec::new();
    while let Some(read) = session.next_read(now) {
        let from = usize::try_from(read.offset).unwrap();
        let to = (from + read.bytes_max).min(log.len());
        let Some(frame) = session.ship(&read, &log[from..to], now) else { continue };
        let (header, _) = Header::decode(&frame).unwrap();
        assert_eq!((header.kind, header.sequence as usize), (Kind::Output, frames.len()));
        frames.push((header.offset, header.raw_length));
    }
    frames
}

fn finished(key: &Key, log_length: u64) -> Finished {
    Finished {
        execution_id: key.execution_id.clone(),
        attempt: key.attempt,
        state: ExecutionState::Succeeded,
        reason: None,
        steps: Vec::new(),
        log_length,
        output_truncated: false,
        processes: ProcessVerdict::default(),
        releases: None,
    }
}

#[test]
fn an_order_is_handed_out_once_and_answered_twice() {
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    let id = execution_id();
    session.handle_message(run(order(&id, "agent-1")), at(1));
    let Some(Output::Run(new)) = session.next_output() else { panic!("no order") };
    session.accepted(&new.key);
    assert!(matches!(&sent(&mut session)[..], [ToServer::Accepted { channel: 1, .. }]));
    session.handle_message(run(order(&id, "agent-1")), at(2));
    assert!(matches!(&sent(&mut session)[..], [ToServer::Accepted { channel: 1, .. }]));

    session.finished(&new.key, finished(&new.key, 0));
    assert!(matches!(&sent(&mut session)[..], [ToServer::Finished(_)]));
    session.handle_message(run(order(&id, "agent-1")), at(3));
    assert!(matches!(&sent(&mut session)[..], [ToServer::Accepted { .. }, ToServer::Finished(_)]));
}

#[test]
fn an_order_that_does_not_agree_is_rejected() {
    let id = execution_id();
    let mut foreign = order(&id, "agent-1");
    foreign.signature = BASE64.encode([0; 64]);
    let mut changed = order(&id, "agent-1");
    changed.entry = changed.entry.replace("true", "rm -rf");
    let cases = [
        (foreign, "the signature is not the server's"),
        (changed, "the entry is not the one that was signed"),
        (order(&id, "agent-2"), "the order is for another agent"),
        (order("../../etc", "agent-1"), "the execution id is no UUID"),
    ];
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    for (order, expected) in cases {
        session.handle_message(run(order), at(1));
        let sent = sent(&mut session);
        assert!(matches!(&sent[..], [ToServer::Rejected { reason, .. }] if reason == expected), "{sent:?}");
    }
}

#[test]
fn output_goes_on_where_the_server_says_and_stays_in_the_window() {
    let mut session = session();
    let key = Key::new(&execution_id(), 1).unwrap();
    let log = log(500);
    session.hold(key.clone(), log.len() as u64, None);
    let offset = 1_016 * 10;
    let answer = HoldingAnswer { execution_id: key.execution_id, attempt: 1, wanted: true, offset };
    let hello = open(&mut session, 100_000, vec![answer]);
    let [ToServer::Hello(hello)] = &hello[..] else { panic!("{hello:?}") };
    assert_eq!((hello.holdings[0].log_length, hello.holdings[0].channel), (log.len() as u64, 1));

    let frames = ship(&mut session, &log, at(100));
    assert_eq!(frames[0].0, offset);
    let mut next = offset;
    for (start, length) in &frames {
        assert_eq!(*start, next);
        next += u64::from(*length);
    }
    assert!(next <= offset + 100_000 && next > offset + 100_000 - 1_016, "{next}");

    session.handle_message(ToAgent::OutputAck { channel: 1, offset: next }, at(200));
    let read = session.next_read(at(200)).expect("the window is open again");
    assert_eq!(read.offset, next);
    session.handle_message(ToAgent::OutputResume { channel: 1, offset }, at(200));
    assert_eq!(session.next_read(at(200)).unwrap().offset, offset);
}

#[test]
fn the_outcome_follows_the_last_byte_and_is_repeated_until_archived() {
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    let key = Key::new(&execution_id(), 1).unwrap();
    let log = log(3);
    session.accepted(&key);
    sent(&mut session);
    session.log_grew(&key, 1_016);
    assert_eq!(ship(&mut session, &log[..1_016], at(100)), [(0, 1_016)]);
    session.log_grew(&key, 2_032);
    assert_eq!(session.next_read(at(104)), None, "a short chunk waits a little");
    assert_eq!(session.next_timeout_ms(), Some(105));
    session.finished(&key, finished(&key, log.len() as u64));
    assert!(sent(&mut session).is_empty(), "output comes first");
    let Some(read) = session.next_read(at(110)) else { panic!("the end is sent at once") };
    session.ship(&read, &log[1_016..], at(110)).unwrap();
    assert!(matches!(&sent(&mut session)[..], [ToServer::Finished(_)]));

    session.disconnected();
    let answer =
        HoldingAnswer { execution_id: key.execution_id.clone(), attempt: 1, wanted: true, offset: log.len() as u64 };
    let again = open(&mut session, 1 << 20, vec![answer]);
    assert!(matches!(&again[..], [ToServer::Hello(_), ToServer::Finished(_)]), "{again:?}");
    session.handle_message(ToAgent::Archived { execution_id: key.execution_id.clone(), attempt: 1 }, at(1));
    assert!(matches!(&outputs(&mut session)[..], [Output::Forget(forgotten)] if *forgotten == key));
    session.removed(&key);
    assert_eq!(session.next_read(at(1_000)), None);
}

#[test]
fn executions_take_turns() {
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    let log = log(200);
    let keys: Vec<Key> = (0..3).map(|_| Key::new(&execution_id(), 1).unwrap()).collect();
    for key in &keys {
        session.accepted(key);
        session.log_grew(key, log.len() as u64);
    }
    let mut served = Vec::new();
    for _ in 0..6 {
        let read = session.next_read(at(100)).unwrap();
        let from = usize::try_from(read.offset).unwrap();
        session.ship(&read, &log[from..from + read.bytes_max], at(100)).unwrap();
        served.push(read.key);
    }
    assert_eq!(served[..3].iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    assert_eq!(served[..3], served[3..]);
}

#[test]
fn a_half_written_record_waits_without_spinning() {
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    let log = log(1);
    let key = Key::new(&execution_id(), 1).unwrap();
    session.accepted(&key);
    session.log_grew(&key, 500);
    let read = session.next_read(at(100)).unwrap();
    assert_eq!(session.ship(&read, &log[..500], at(100)), None);
    assert_eq!(session.next_read(at(200)), None);
    session.log_grew(&key, 1_016);
    assert_eq!(ship(&mut session, &log, at(200)), [(0, 1_016)]);
}

/// After a loss of power the server may have more of a log than the disk: where it goes on need not be where a record begins.
#[test]
fn an_end_that_is_no_whole_record_is_given_up_and_the_outcome_told() {
    let mut session = session();
    let key = Key::new(&execution_id(), 1).unwrap();
    let log = log(2);
    let length = log.len() as u64;
    session.hold(key.clone(), length, Some(finished(&key, length)));
    let offset = length - 10;
    let answer = HoldingAnswer { execution_id: key.execution_id, attempt: 1, wanted: true, offset };
    open(&mut session, 1 << 20, vec![answer]);
    assert_eq!(ship(&mut session, &log, at(100)), []);
    let told = sent(&mut session);
    let [ToServer::Finished(told)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((told.log_length, told.output_truncated), (offset, true));
}

#[test]
fn silence_heartbeats_and_strangers() {
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    session.handle_message(serde_json::from_str(r#"{"type":"teleport","to":"mars"}"#).unwrap(), at(1));
    session.handle_data(&[77; 64], at(1));
    assert!(outputs(&mut session).is_empty());
    session.handle_timeout(at(1_000));
    assert!(matches!(&sent(&mut session)[..], [ToServer::Heartbeat { .. }]));
    session.handle_message(ToAgent::HeartbeatAck {}, at(1_500));
    session.handle_timeout(at(4_499));
    assert!(session.is_open());
    session.handle_timeout(at(4_500));
    assert!(matches!(outputs(&mut session).last(), Some(Output::Close(_, true))));

    session.connected(at(0));
    session.handle_message(ToAgent::Refused { reason: "unknown agent".to_owned(), retry: false }, at(0));
    assert!(matches!(&outputs(&mut session)[..], [Output::Close(reason, false)] if reason.contains("unknown agent")));
    session.connected(at(0));
    session.handle_message(ToAgent::Challenge { nonce: "n".to_owned(), versions: (2, 3), time_ms: 0 }, at(0));
    assert!(
        matches!(&outputs(&mut session)[..], [Output::Close(reason, true)] if reason.contains("protocol versions 2 to 3"))
    );
}

#[test]
fn what_the_server_does_not_want_is_discarded() {
    let mut session = session();
    let key = Key::new(&execution_id(), 1).unwrap();
    session.hold(key.clone(), 1_016, None);
    let answer = HoldingAnswer { execution_id: key.execution_id.clone(), attempt: 1, wanted: false, offset: 0 };
    session.connected(at(0));
    session.handle_message(challenge(), at(0));
    session.handle_message(welcome(1 << 20, vec![answer]), at(0));
    assert!(outputs(&mut session).iter().any(|output| matches!(output, Output::Discard(unwanted) if *unwanted == key)));
    assert_eq!(session.next_read(at(1_000)), None);
}

#[test]
fn an_artifact_is_asked_for_again_after_a_gap_and_a_reconnect() {
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    let digest = Digest::of(b"artifact");
    session.fetch(digest, Part::Whole, 10, "e");
    let sent_first = sent(&mut session);
    assert!(matches!(&sent_first[..], [ToServer::Fetch { channel: 1, offset: 10, .. }]), "{sent_first:?}");
    let frame = |channel, offset, body: &[u8]| {
        let raw_length = u32::try_from(body.len()).unwrap();
        Header { kind: Kind::Artifact, flags: 0, channel, sequence: 0, offset, raw_length }.encode(body)
    };
    session.handle_data(&frame(1, 8, b"abcd"), at(1));
    let got = outputs(&mut session);
    assert!(matches!(&got[..], [Output::Artifact(_, 10, bytes)] if bytes == b"cd"), "{got:?}");
    session.artifact_written(digest, 12);
    assert!(matches!(&sent(&mut session)[..], [ToServer::FetchAck { channel: 1, offset: 12 }]));
    session.handle_data(&frame(1, 20, b"xy"), at(1));
    let again = sent(&mut session);
    assert!(matches!(&again[..], [ToServer::FetchDone { channel: 1 }, ToServer::Fetch { channel: 2, offset: 12, .. }]));
    session.disconnected();
    let reconnected = open(&mut session, 1 << 20, Vec::new());
    assert!(matches!(&reconnected[..], [ToServer::Hello(_), ToServer::Fetch { channel: 1, offset: 12, .. }]));
    session.fetch_done(digest);
    assert!(matches!(&sent(&mut session)[..], [ToServer::FetchDone { channel: 1 }]));
}

#[test]
fn a_damaged_log_does_not_keep_the_outcome_back() {
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    let mut log = log(3);
    log[1_016 + 10] = 99;
    let key = Key::new(&execution_id(), 1).unwrap();
    session.accepted(&key);
    sent(&mut session);
    session.finished(&key, finished(&key, log.len() as u64));
    assert!(ship(&mut session, &log, at(100)).is_empty());
    let outcome = sent(&mut session);
    assert!(matches!(&outcome[..], [ToServer::Finished(told)] if told.output_truncated), "{outcome:?}");
}

#[test]
fn the_highest_version_that_both_speak_is_used() {
    for (own, servers, expected) in [((1, 2), (1, 1), 1), ((1, 1), (1, 2), 1), ((1, 3), (2, 5), 3), ((2, 4), (1, 3), 3)]
    {
        let mut session = session_speaking(own);
        session.connected(at(0));
        session.handle_message(challenge_of(servers), at(0));
        let hello = sent(&mut session);
        let [ToServer::Hello(hello)] = &hello[..] else { panic!("{own:?} at {servers:?}: {hello:?}") };
        assert_eq!(hello.version, expected, "{own:?} at {servers:?}");
        session.handle_message(welcome_to(expected, 1 << 20, Vec::new()), at(0));
        assert!(session.is_open(), "{own:?} at {servers:?}");

        // Another one than was offered is not taken.
        session.connected(at(0));
        session.handle_message(challenge_of(servers), at(0));
        outputs(&mut session);
        session.handle_message(welcome_to(expected + 1, 1 << 20, Vec::new()), at(0));
        assert!(!session.is_open(), "{own:?} at {servers:?}");
    }
    for (own, servers) in [((1, 1), (2, 3)), ((3, 4), (1, 2))] {
        let mut session = session_speaking(own);
        session.connected(at(0));
        session.handle_message(challenge_of(servers), at(0));
        let answer = outputs(&mut session);
        let [Output::Close(reason, true)] = &answer[..] else { panic!("{own:?} at {servers:?}: {answer:?}") };
        let expected = format!(
            "the server speaks protocol versions {} to {}, this agent {} to {}",
            servers.0, servers.1, own.0, own.1
        );
        assert_eq!(*reason, expected);
    }
}

/// While the writer has no room, messages come in and nothing is carried out.
#[test]
fn a_cancel_counts_although_its_order_is_not_carried_out_yet() {
    let mut session = session();
    open(&mut session, 1 << 20, Vec::new());
    let id = execution_id();
    session.handle_message(run(order(&id, "agent-1")), at(1));
    session.handle_message(run(order(&id, "agent-1")), at(2));
    let reason = "cancelled by ada".to_owned();
    session.handle_message(
        ToAgent::Cancel { execution_id: id, attempt: 1, reason: reason.clone(), timed_out: false },
        at(3),
    );
    let outputs = outputs(&mut session);
    let [Output::Run(new), Output::Cancel(key, why, false)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((&new.key, why), (key, &reason));
}

/// The server may have given it up since: it sends again what it still wants.
#[test]
fn an_order_that_was_not_carried_out_in_its_session_is_not_carried_out_later() {
    let id = execution_id();
    let is_run = |output: &Output| matches!(output, Output::Run(_));
    let mut silent = session();
    open(&mut silent, 1 << 20, Vec::new());
    silent.handle_message(run(order(&id, "agent-1")), at(1));
    silent.handle_timeout(at(3_001));
    let left = outputs(&mut silent);
    assert!(!left.iter().any(is_run) && matches!(left.last(), Some(Output::Close(_, true))), "{left:?}");

    let mut cut = session();
    open(&mut cut, 1 << 20, Vec::new());
    cut.handle_message(run(order(&id, "agent-1")), at(1));
    cut.disconnected();
    open(&mut cut, 1 << 20, Vec::new());
    assert!(cut.next_output().is_none());
    cut.handle_message(run(order(&id, "agent-1")), at(2));
    assert!(cut.next_output().is_some_and(|output| is_run(&output)), "sent again it is a new one");
}
