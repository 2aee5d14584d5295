//! Executions whose end somebody missed: the agent's supervisor, or the server.

use drover_agent::spool::{Accepted, Folder, Key, Spool, Standing, Started, boot_id};
use drover_shared::Digest;
use drover_shared::limits::OUTPUT_IN_FLIGHT_BYTES_MAX;
use drover_shared::message::{ToAgent, ToServer};
use drover_shared::order::Step;
use drover_shared::words::{ExecutionState, StepState};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::{Bench, bash, entry, execution_id, process_lives, wait_until};
use crate::run::{Gathered, archive, fetch_request, finish, spool_is_empty};
use crate::server::{Server, agent, run, stop};

fn folder(bench: &Bench, id: &str) -> Folder {
    Folder::at(&bench.data_dir().join("spool").join(format!("{id}.1")))
}

#[tokio::test]
async fn when_agent_and_supervisor_die_together_the_next_agent_says_so_and_works_on() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let mut running = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let id = execution_id();
    let order = server.order(&id, &entry(vec![bash("pre_exec", "echo up; sleep 100")]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |so_far| so_far.text() == "up\n").await);
    running.kill().await.unwrap();
    drop(peer);
    kill(Pid::from_raw(folder(&bench, &id).supervisor().unwrap()), Signal::SIGKILL).unwrap();
    wait_until("the supervisor is gone", || matches!(folder(&bench, &id).standing(), Ok(Standing::Lost(_))));

    let _again = agent(&bench.data_dir(), None);
    let offset = gathered.log.len() as u64;
    let (mut peer, _) = server.open(|_| (true, offset)).await;
    assert!(gathered.gather(&mut peer, |_| false).await);
    let finished = gathered.finished.unwrap();
    assert_eq!((finished.state, finished.steps[0].state), (ExecutionState::Lost, StepState::Failed));
    assert!(finished.reason.as_ref().unwrap().contains("how it ended is not known"), "{:?}", finished.reason);
    archive(&mut peer, &finished).await;

    let order = server.order(&execution_id(), &entry(vec![bash("pre_exec", "echo next")]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!(gathered.text(), "next\n");
}

/// It hangs, say, and the hook says on until the pipe is full.
#[tokio::test]
async fn when_a_supervisor_is_killed_no_more_is_missing_than_is_told() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let id = execution_id();
    let hook = format!(
        "echo up; while [ ! -e {go} ]; do sleep 0.02; done
exec python3 -c 'if True:
  import os, time
  os.set_blocking(1, False)
  kept = open(\"{kept}\", \"wb\", buffering=0)
  try:
    while True: kept.write(b\"=\" * os.write(1, b\"=\" * 4096))
  except BlockingIOError: os.rename(\"{kept}\", \"{kept}.full\")
  time.sleep(100)'",
        go = bench.path("go").display(),
        kept = bench.path("kept").display()
    );
    peer.send(&run(server.order(&id, &entry(vec![bash("pre_exec", &hook)]), 60_000))).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |so_far| so_far.text() == "up\n").await);
    let supervisor = Pid::from_raw(folder(&bench, &id).supervisor().unwrap());
    kill(supervisor, Signal::SIGSTOP).unwrap();
    std::fs::write(bench.path("go"), "").unwrap();
    wait_until("the pipe is full", || bench.path("kept.full").exists());
    kill(supervisor, Signal::SIGKILL).unwrap();

    assert!(gathered.gather(&mut peer, |_| false).await);
    let (reason, text) = (gathered.finished.as_ref().unwrap().reason.clone().unwrap(), gathered.text());
    let told = text.lines().skip(1).map(str::len).sum::<usize>();
    let said = std::fs::metadata(bench.path("kept.full")).unwrap().len();
    let missing = usize::try_from(said).unwrap() - told;
    assert!(missing <= OUTPUT_IN_FLIGHT_BYTES_MAX, "{missing} bytes are missing");
    assert!(reason.contains("up to 192 KiB of its last output may be missing"), "{reason}");
}

/// The server gave an execution up while its agent was away. Whatever it then says it has, the rest follows, and the
/// outcome until it is archived.
#[tokio::test]
async fn what_ended_while_the_agent_was_away_is_told_for_as_long_as_the_server_wants_it() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let running = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let id = execution_id();
    let content = format!(
        "seq 1000; echo $$ > {0}.new; mv {0}.new {0}; while [ ! -e {1} ]; do sleep 0.02; done; seq 1000 2000",
        bench.path("up").display(),
        bench.path("go").display()
    );
    let order = server.order(&id, &entry(vec![bash("pre_exec", &content)]), 60_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |so_far| so_far.text().ends_with("\n1000\n")).await);
    wait_until("the hook has written", || bench.path("up").exists());
    stop(running).await;
    drop(peer);
    // It ends with nobody there.
    std::fs::write(bench.path("go"), "").unwrap();
    wait_until("it is over", || folder(&bench, &id).status().is_ok_and(|status| status.is_some()));
    let pid = std::fs::read_to_string(bench.path("up")).unwrap();
    assert!(!process_lives(pid.trim()));

    let whole: String = (1..=1000).chain(1000..=2000).map(|number| format!("{number}\n")).collect();
    let all = gathered.log.len();
    // The same again and again, from wherever the server says: nothing, a part, all that it had.
    for offset in [0, all, 0] {
        gathered.log.truncate(offset);
        gathered.finished = None;
        let again = agent(&bench.data_dir(), None);
        let (mut peer, hello) = server.open(|_| (true, offset as u64)).await;
        assert!(hello.holdings[0].finished);
        assert!(gathered.gather(&mut peer, |_| false).await);
        assert_eq!(gathered.text(), whole);
        let finished = gathered.finished.clone().unwrap();
        assert_eq!((finished.state, finished.reason), (ExecutionState::Succeeded, None));
        stop(again).await;
    }

    // Within one session the server may ask for output again as well.
    let _last = agent(&bench.data_dir(), None);
    let (mut peer, hello) = server.open(|_| (true, gathered.log.len() as u64)).await;
    assert!(matches!(peer.message().await, ToServer::Finished(_)));
    peer.send(&ToAgent::OutputResume { channel: hello.holdings[0].channel, offset: 0 }).await;
    let mut once_more = Gathered::default();
    assert!(once_more.gather(&mut peer, |_| false).await);
    assert_eq!(once_more.text(), whole);
    archive(&mut peer, &once_more.finished.unwrap()).await;
    wait_until("the spool is empty", || spool_is_empty(&bench));
}

/// Moves the supervisor's lock out of sight, so that every look at it fails.
fn hide_lock(folder: &Folder) {
    std::fs::rename(folder.path().join("lock"), folder.path().join("hidden")).unwrap();
    std::fs::create_dir(folder.path().join("lock")).unwrap();
}

fn show_lock(folder: &Folder) {
    std::fs::remove_dir(folder.path().join("lock")).unwrap();
    std::fs::rename(folder.path().join("hidden"), folder.path().join("lock")).unwrap();
}

/// A host that has no descriptor to spare, say: that is no reason to end a hook, nor to deny that it runs.
#[tokio::test]
async fn a_hook_goes_on_although_nobody_can_look_after_its_supervisor() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let running = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let (ends, cancelled) = (execution_id(), execution_id());
    let content = format!("echo up; while [ ! -e {} ]; do sleep 0.02; done; echo end", bench.path("go").display());
    peer.send(&run(server.order(&ends, &entry(vec![bash("pre_exec", &content)]), 60_000))).await;
    let mut first = Gathered::default();
    assert!(first.gather(&mut peer, |so_far| so_far.text() == "up\n").await);
    peer.send(&run(server.order(&cancelled, &entry(vec![bash("pre_exec", "echo up; sleep 100")]), 60_000))).await;
    let mut second = Gathered::default();
    assert!(second.gather(&mut peer, |so_far| so_far.text() == "up\n").await);
    stop(running).await;
    drop(peer);
    hide_lock(&folder(&bench, &ends));
    hide_lock(&folder(&bench, &cancelled));

    let _again = agent(&bench.data_dir(), None);
    let (first_length, second_length) = (first.log.len() as u64, second.log.len() as u64);
    let offset = |id: &str| (true, if id == ends { first_length } else { second_length });
    let (mut peer, hello) = server.open(offset).await;
    assert_eq!(hello.holdings.iter().filter(|holding| !holding.finished).count(), 2);
    let reason = "cancelled by ada".to_owned();
    peer.send(&ToAgent::Cancel { execution_id: cancelled.clone(), attempt: 1, reason, timed_out: false }).await;
    wait_until("the cancel is noted", || folder(&bench, &cancelled).cancel().is_some());
    show_lock(&folder(&bench, &cancelled));
    assert!(second.gather(&mut peer, |_| false).await);
    assert_eq!(second.finished.unwrap().state, ExecutionState::Cancelled);
    show_lock(&folder(&bench, &ends));
    std::fs::write(bench.path("go"), "").unwrap();
    assert!(first.gather(&mut peer, |_| false).await);
    assert_eq!((first.text().as_str(), first.finished.unwrap().state), ("up\nend\n", ExecutionState::Succeeded));
}

/// Two supervisors were started, by two agents one after the other: the second one is gone at once, and tells nothing.
#[tokio::test]
async fn the_death_of_the_supervisor_that_has_the_lock_is_noticed_although_another_was_started() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let id = execution_id();
    let (artifact, hook) = (b"artifact".as_slice(), bash("pre_exec", "echo no"));
    let fetch = Step::Fetch { digest: Digest::of(artifact), size_bytes: artifact.len() as u64, index: None };
    peer.send(&run(server.order(&id, &entry(vec![fetch, hook]), 60_000))).await;
    let mut gathered = Gathered::default();
    let channel = fetch_request(&mut peer, &mut gathered, 0).await;

    // The test is the first supervisor.
    let folder = folder(&bench, &id);
    let lock = folder.lock().unwrap().expect("nobody else has it");
    folder.write_started(&Started { boot_id: boot_id(), ..Started::default() }, true).unwrap();
    let looks = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    looks.add_watch(&folder.path().join("lock"), AddWatchFlags::IN_OPEN).unwrap();
    peer.send_artifact(channel, 0, artifact, true).await;
    let mut tries = 0;
    wait_until("the second supervisor has tried for the lock", || {
        tries += looks.read_events().map_or(0, |events| events.len());
        tries >= 10
    });
    wait_until("the second supervisor is gone", || !supervised_by_a_process(&folder));
    drop(lock);
    finish(&mut peer, &mut gathered).await;
    assert_eq!(gathered.finished.as_ref().map(|finished| finished.state), Some(ExecutionState::Lost));
    assert_eq!(gathered.text(), "");
}

fn supervised_by_a_process(folder: &Folder) -> bool {
    let named = folder.path().as_os_str().as_encoded_bytes();
    std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == named)
    })
}

/// The name of an order is written before it is durable, and nobody was told of it: a loss of power may leave it empty.
#[tokio::test]
async fn an_order_that_a_loss_of_power_tore_is_as_good_as_none_unless_it_was_started() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let running = agent(&bench.data_dir(), Some(&server.token));
    let (peer, _) = server.open(|_| (true, 0)).await;
    stop(running).await;
    drop(peer);
    let (torn, begun) = (execution_id(), execution_id());
    let order = server.order(&torn, &entry(vec![bash("pre_exec", "echo whole")]), 60_000);
    let spool = Spool::open(&bench.data_dir()).unwrap();
    for (id, order) in [(&torn, order.clone()), (&begun, server.order(&begun, &entry(vec![]), 60_000))] {
        let accepted = Accepted {
            order,
            wall_ms: 0,
            monotonic_ms: 0,
            boot_id: "an earlier boot".to_owned(),
            at_once: true,
            spool_bytes_max: None,
        };
        let folder = spool.accept(&Key::new(id, 1).unwrap(), &accepted).unwrap();
        std::fs::write(folder.path().join("order.json"), "").unwrap();
    }
    let earlier = Started { boot_id: "an earlier boot".to_owned(), ..Started::default() };
    folder(&bench, &begun).write_started(&earlier, true).unwrap();

    let _again = agent(&bench.data_dir(), None);
    let (mut peer, hello) = server.open(|_| (true, 0)).await;
    assert_eq!(hello.holdings.iter().map(|holding| &holding.execution_id).collect::<Vec<_>>(), [&begun]);
    let mut lost = Gathered::default();
    assert!(lost.gather(&mut peer, |_| false).await);
    let finished = lost.finished.unwrap();
    assert_eq!((finished.state, finished.execution_id.as_str()), (ExecutionState::Lost, begun.as_str()));
    assert!(finished.reason.as_ref().unwrap().starts_with("the host was restarted while this ran"), "{finished:?}");

    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!((gathered.text().as_str(), gathered.accepted), ("whole\n", 1));
}

/// An agent that stood still for a while finds an order in its socket that the server has given up since.
#[tokio::test]
async fn an_order_from_before_a_long_silence_is_not_taken() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    server.deadline_ms = 4_000;
    let running = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    peer.send(&run(server.order(&execution_id(), &entry(vec![]), 60_000))).await;
    let mut first = Gathered::default();
    assert!(first.gather(&mut peer, |_| false).await, "the session is open");
    archive(&mut peer, &first.finished.unwrap()).await;
    wait_until("the first one is forgotten", || spool_is_empty(&bench));
    let pid = Pid::from_raw(i32::try_from(running.id().unwrap()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let stopped = std::time::Instant::now();
    let hook = bash("pre_exec", &format!("touch {}", bench.path("ran").display()));
    peer.send(&run(server.order(&execution_id(), &entry(vec![hook]), 60_000))).await;
    wait_until("the server's patience is over", || stopped.elapsed().as_millis() > 4_100);
    kill(pid, Signal::SIGCONT).unwrap();
    let (_peer, hello) = server.open(|_| (true, 0)).await;
    assert!(hello.holdings.is_empty(), "{:?}", hello.holdings);
    assert!(!bench.path("ran").exists());
}
