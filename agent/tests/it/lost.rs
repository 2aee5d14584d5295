//! Executions whose end somebody missed: the agent's supervisor, or the server.

use drover_agent::spool::{Folder, Standing};
use drover_shared::message::{ToAgent, ToServer};
use drover_shared::words::{ExecutionState, StepState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::{Bench, bash, entry, execution_id, process_lives, wait_until};
use crate::run::{Gathered, archive, spool_is_empty};
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
