//! A cancel at each moment of an execution: while it waits, in each of its steps, when it is over, and a second time. What
//! comes before a supervisor is there is in `run.rs`, `fetching.rs` and `secrets.rs`.

use std::net::TcpListener;

use drover_agent::spool::{CancelNote, Folder};
use drover_shared::Digest;
use drover_shared::message::{Finished, ToAgent};
use drover_shared::order::{Probe, Step};
use drover_shared::record::Stream;
use drover_shared::words::{ExecutionState, StepState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tar::EntryType;

use crate::bench::{Bench, bash, entry, execution_id, start, stream, supervise, text, wait_until};
use crate::releases::{Site, archive};
use crate::run::{Gathered, fetch_request, finish};
use crate::server::{Server, agent, run};

const FILES: usize = 20_000;

fn note(reason: &str) -> CancelNote {
    CancelNote { reason: reason.to_owned(), timed_out: false }
}

fn tell(folder: &Folder, signal: Signal) {
    kill(Pid::from_raw(folder.supervisor().unwrap()), signal).unwrap();
}

/// Cancels while a step is at work, and gives what came of it.
fn cancelled_in(folder: &Folder, step: &str) -> Finished {
    let mut supervisor = start(folder);
    let begun = format!("\"step\":\"{step}\",\"state\":\"running\"");
    wait_until("the step has begun", || {
        folder.log().exists() && String::from_utf8(stream(folder, Stream::Event)).unwrap().contains(&begun)
    });
    folder.write_cancel(&note("cancelled by ada")).unwrap();
    tell(folder, Signal::SIGTERM);
    assert!(supervisor.wait().unwrap().success());
    let finished = folder.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
    finished
}

/// Which step was stopped; all before it went well, and none after it began.
fn check_stopped_at(finished: &Finished, at: usize) {
    for (index, step) in finished.steps.iter().enumerate() {
        let expected = match index.cmp(&at) {
            std::cmp::Ordering::Less => StepState::Succeeded,
            std::cmp::Ordering::Equal => StepState::Failed,
            std::cmp::Ordering::Greater => StepState::Skipped,
        };
        assert_eq!(step.state, expected, "{}: {finished:?}", step.name);
    }
    assert_eq!(finished.steps[at].error.as_deref(), Some("stopped: cancelled by ada"));
}

#[test]
fn in_each_hook() {
    for (at, name) in ["pre_exec", "post_exec"].into_iter().enumerate() {
        let bench = Bench::new();
        let script = |hook: &str| bash(hook, if hook == name { "sleep 1000" } else { "true" });
        let folder = bench.accept(&entry(vec![script("pre_exec"), script("post_exec"), bash("last", "true")]));
        let finished = cancelled_in(&folder, name);
        check_stopped_at(&finished, at);
        assert!(finished.processes.ended >= 1, "{finished:?}");
    }
}

#[test]
fn while_it_unpacks() {
    let site = Site::new();
    let names: Vec<String> = (0..FILES).map(|number| format!("file-{number}")).collect();
    let members: Vec<_> = names.iter().map(|name| (name.as_str(), EntryType::Regular, "", b"x".as_slice())).collect();
    let digest = site.cache(&archive(&members));
    let release = "1.0-abc".to_owned();
    let steps = vec![Step::Unpack { digest, release: release.clone() }, Step::Switch { release }, bash("last", "true")];
    let folder = site.bench.accept(&site.entry(steps));
    let finished = cancelled_in(&folder, "unpack");
    check_stopped_at(&finished, 0);
    assert_eq!(finished.releases.as_deref(), Some(&[][..]), "a part of a release is none");
    assert!(!site.layout().current().exists());
}

#[test]
fn while_it_asks_for_health_and_between_two_questions() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let hangs = Probe::Command { content: "sleep 1000".to_owned() };
    for (probe, successes) in [(hangs, 1), (Probe::Tcp { address }, 2)] {
        let bench = Bench::new();
        let (interval_ms, timeout_ms, retries) = (50_000, 50_000, 5);
        let health = Step::Health { probe, interval_ms, timeout_ms, retries, successes, running_user: None };
        let folder = bench.accept(&entry(vec![bash("post_exec", "true"), health, bash("last", "true")]));
        check_stopped_at(&cancelled_in(&folder, "health"), 1);
    }
}

#[test]
fn a_second_one_changes_nothing() {
    let bench = Bench::new();
    let hook = "trap 'echo told' TERM; echo up; while :; do sleep 0.05; done";
    let mut order = entry(vec![bash("pre_exec", hook)]);
    order.kill_grace_ms = 2_000;
    let folder = bench.accept(&order);
    let mut supervisor = start(&folder);
    wait_until("the hook starts", || text(&folder, Stream::Output) == "up\n");
    folder.write_cancel(&note("cancelled by ada")).unwrap();
    tell(&folder, Signal::SIGTERM);
    wait_until("it is told", || text(&folder, Stream::Output).contains("told"));
    folder.write_cancel(&note("cancelled by bob")).unwrap();
    tell(&folder, Signal::SIGTERM);
    assert!(supervisor.wait().unwrap().success());
    let finished = folder.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
}

#[test]
fn after_its_end_it_stays_as_it_was() {
    let bench = Bench::new();
    let (finished, folder) = bench.run(&entry(vec![bash("pre_exec", "true")]));
    folder.write_cancel(&note("too late")).unwrap();
    supervise(&folder);
    assert_eq!(finished.state, ExecutionState::Succeeded);
    assert_eq!(folder.status().unwrap(), Some(finished));
}

/// A host whose disk takes no note: whoever was told to end says that, and blames nobody else.
#[tokio::test]
async fn without_a_note_it_ends_all_the_same() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let cancel = |id: &str| {
        let reason = "cancelled by ada".to_owned();
        ToAgent::Cancel { execution_id: id.to_owned(), attempt: 1, reason, timed_out: false }
    };
    let folder = |id: &str| Folder::at(&bench.data_dir().join("spool").join(format!("{id}.1")));
    let spoil = |id: &str| std::fs::create_dir(folder(id).path().join("cancel")).unwrap();

    let id = execution_id();
    peer.send(&run(server.order(&id, &entry(vec![bash("pre_exec", "echo up; sleep 100")]), 60_000))).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |so_far| so_far.text() == "up\n").await);
    spoil(&id);
    peer.send(&cancel(&id)).await;
    assert!(gathered.gather(&mut peer, |_| false).await);
    let finished = gathered.finished.unwrap();
    assert_eq!(finished.state, ExecutionState::Cancelled);
    assert!(finished.reason.as_ref().unwrap().contains("could not write down"), "{:?}", finished.reason);

    // One that waits is not begun for want of a note.
    let id = execution_id();
    let fetch = Step::Fetch { digest: Digest::of(b"never"), size_bytes: 5, index: None };
    peer.send(&run(server.order(&id, &entry(vec![fetch, bash("pre_exec", "echo no")]), 60_000))).await;
    let mut gathered = Gathered::default();
    fetch_request(&mut peer, &mut gathered, 0).await;
    spoil(&id);
    peer.send(&cancel(&id)).await;
    finish(&mut peer, &mut gathered).await;
    assert_eq!(gathered.text(), "");
    let finished = gathered.finished.unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
    assert_eq!(finished.steps[1].state, StepState::Skipped, "{finished:?}");
}
