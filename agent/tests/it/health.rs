//! Questions that nobody answers end at their own time, long before that of the execution.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use drover_shared::message::Finished;
use drover_shared::order::{Probe, Step};
use drover_shared::words::ExecutionState;

use crate::bench::{Bench, bash, entry};

/// Connections that fill the queue of a listener nobody takes them from; the kernel's own bound is far lower.
const QUEUED_MAX: usize = 900;

/// Asks twice, a second each, within an execution that may take far longer.
fn asked(probe: Probe) -> Finished {
    let health =
        Step::Health { probe, interval_ms: 10, timeout_ms: 1_000, retries: 2, successes: 1, running_user: None };
    let (finished, _) = Bench::new().run(&entry(vec![bash("post_exec", "true"), health]));
    finished
}

fn is_unhealthy(finished: &Finished) {
    let reason = finished.reason.clone().unwrap_or_default();
    // Had the execution's time ended it, it would be called timed out.
    assert_eq!(finished.state, ExecutionState::Failed, "{reason}");
    assert!(reason.contains("not healthy after 2 questions"), "{reason}");
}

#[test]
fn a_command_that_hangs_is_ended() {
    let finished = asked(Probe::Command { content: "trap '' TERM\nwhile :; do sleep 1000; done".to_owned() });
    is_unhealthy(&finished);
}

#[test]
fn an_address_that_takes_connections_and_never_answers_is_unhealthy() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    is_unhealthy(&asked(Probe::Http { url: format!("http://{address}/health") }));
}

#[test]
fn a_port_that_does_not_even_take_connections_is_unhealthy() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address: SocketAddr = listener.local_addr().expect("an address");
    // Nobody accepts, so that the queue is full at some time and the next connection hangs.
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        queued.push(stream);
        assert!(queued.len() < QUEUED_MAX, "the queue has no end");
    }
    is_unhealthy(&asked(Probe::Tcp { address: address.to_string() }));
}
