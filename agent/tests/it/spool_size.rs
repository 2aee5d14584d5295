//! The bound of the whole spool, all executions together.

use drover_agent::spool::{Accepted, Folder, Key, Spool};
use drover_shared::message::ToServer;
use drover_shared::record::Stream;
use drover_shared::words::ExecutionState;

use crate::bench::{Bench, bash, entry, execution_id, stream, supervise, text, wait_until};
use crate::run::{Gathered, archive, spool_is_empty};
use crate::server::{Server, agent_under, run};

const MIB: usize = 1024 * 1024;

/// Output of hooks that run at a time, in a spool that has no room for all of it, and what is left out.
#[test]
fn a_full_spool_is_loud_and_ends_nothing() {
    let bench = Bench::new();
    let hook = |mebibytes: usize| bash("pre_exec", &format!("head -c {} /dev/zero; echo end >&2", mebibytes * MIB));
    let within = |folder: Folder| {
        let accepted = Accepted { spool_bytes_max: Some(4 * MIB as u64), ..folder.accepted().unwrap() };
        folder.remove().unwrap();
        let key = Key::new(&execution_id(), 1).unwrap();
        Spool::open(&bench.data_dir()).unwrap().accept(&key, &accepted).unwrap()
    };
    let (first, second) = (within(bench.accept(&entry(vec![hook(3)]))), within(bench.accept(&entry(vec![hook(3)]))));
    supervise(&first);
    let finished = first.status().unwrap().unwrap();
    assert!(!finished.output_truncated, "it has all that it wrote: {:?}", text(&first, Stream::Notice));
    supervise(&second);
    let finished = second.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.output_truncated), (ExecutionState::Succeeded, true));
    let kept = stream(&second, Stream::Output).len();
    // Its share, and no more than a few steps beyond.
    assert!((MIB / 2..MIB + MIB / 2).contains(&kept), "{kept}");
    let said = text(&second, Stream::Notice);
    assert_eq!(said.matches("the spool of this host is full, 4194304 bytes: the rest").count(), 1, "{said}");

    // A little is always taken in.
    let third = within(bench.accept(&entry(vec![bash("pre_exec", "echo hello")])));
    supervise(&third);
    assert_eq!(text(&third, Stream::Output), "hello\n");
}

#[tokio::test]
async fn an_order_beyond_the_size_of_the_spool_is_taken_later() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let sized = ["env", "DROVER_SPOOL_SIZE=1M"].map(str::to_owned);
    let _agent = agent_under(&sized, &bench.data_dir(), Some(&server.token));
    let (mut peer, hello) = server.open(|_| (true, 0)).await;
    assert_eq!(hello.abilities.spool_bytes_max, Some(MIB as u64), "it is told");

    let order = |server: &Server| server.order(&execution_id(), &entry(vec![bash("pre_exec", "echo room")]), 60_000);
    // What nobody has taken away yet keeps its place.
    let mut held = Vec::new();
    let refused = loop {
        let next = order(&server);
        peer.send(&run(next.clone())).await;
        match peer.message().await {
            ToServer::Accepted { .. } => {
                let mut gathered = Gathered::default();
                assert!(gathered.gather(&mut peer, |_| false).await);
                held.push(gathered.finished.unwrap());
            }
            ToServer::Rejected { reason, no_room, .. } => {
                assert!(no_room && reason.starts_with("its spool is full: "), "{reason}");
                break next;
            }
            other => panic!("unexpected {other:?}"),
        }
        assert!(held.len() < 100, "it never has enough");
    };
    assert!(held.len() > 2);
    for finished in &held {
        archive(&mut peer, finished).await;
    }
    wait_until("the spool is empty", || spool_is_empty(&bench));
    peer.send(&run(refused)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!(gathered.text(), "room\n");
}
