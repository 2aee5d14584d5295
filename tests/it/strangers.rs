//! Peers on the agents' port that are no agents.

use std::net::SocketAddr;
use std::time::Duration;

use drover_automation::link::Patience;
use drover_shared::message::ToAgent;
use drover_tests::both_engines;
use drover_tests::stub_agent::{StubAgent, listen, listen_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Longer than any test lasts.
const NEVER: Duration = Duration::from_secs(3600);
/// Far longer than anything takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// More than shake hands at a time.
const CROWD: usize = 300;
/// How TLS begins.
const FIRST_BYTE: [u8; 1] = [22];

/// Connects many peers from an address of this machine, each of which says this and no more.
async fn crowd(from: [u8; 4], to: SocketAddr, words: &[u8]) -> Vec<TcpStream> {
    let mut peers = Vec::with_capacity(CROWD);
    for _ in 0..CROWD {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((from, 0))).expect("an address");
        let connected = timeout(DEADLINE, socket.connect(to)).await.expect("the listener's queue has room");
        let mut peer = connected.expect("a connection");
        peer.write_all(words).await.expect("the first bytes");
        peers.push(peer);
    }
    peers
}

/// Every peer is hung up on.
async fn check_turned_away(peers: Vec<TcpStream>) {
    for mut peer in peers {
        let end = timeout(DEADLINE, peer.read(&mut [0; 1])).await.expect("the end of the connection");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}

both_engines! {
    async fn an_agent_that_did_not_hear_that_it_was_enrolled_enrols_again(server: TestServer) {
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[]).await;
        let known = agent.id().to_owned();
        for _ in 0..2 {
            let answer = agent.enrol_again("web-1", false).await;
            assert!(matches!(&answer, ToAgent::Enrolled { agent_id, .. } if *agent_id == known), "{answer:?}");
        }
        // The token is used up for everybody else, and the host keeps its agent.
        for (host, as_another) in [("web-1", true), ("web-2", true), ("web-2", false)] {
            let answer = agent.enrol_again(host, as_another).await;
            let ToAgent::Refused { reason, .. } = answer else { panic!("{answer:?}") };
            assert_eq!(reason, "the join token is unknown, used up or too old");
        }
        agent.come_back(Vec::new()).await;
    }

    async fn silent_peers_keep_no_agent_out(server: TestServer) {
        let address = listen_with(&server, Patience { first_byte: NEVER, handshake: NEVER }).await;
        let peers = crowd([127, 0, 0, 1], address, &[]).await;
        let enrolled = timeout(DEADLINE, StubAgent::enrol(&server, address, "web-1", &[])).await;
        let _agent = enrolled.expect("the agent gets in");
        drop(peers);
    }

    async fn peers_of_one_address_that_begin_and_stop_keep_no_other_out(server: TestServer) {
        let address = listen_with(&server, Patience { first_byte: NEVER, handshake: NEVER }).await;
        let peers = crowd([127, 0, 0, 2], address, &FIRST_BYTE).await;
        let enrolled = timeout(DEADLINE, StubAgent::enrol(&server, address, "web-1", &[])).await;
        let _agent = enrolled.expect("the agent gets in");
        drop(peers);
    }

    async fn who_says_nothing_and_who_does_not_go_on_are_turned_away(server: TestServer) {
        let soon = Duration::from_millis(50);
        let address = listen_with(&server, Patience { first_byte: soon, handshake: NEVER }).await;
        check_turned_away(crowd([127, 0, 0, 2], address, &[]).await).await;
        let address = listen_with(&server, Patience { first_byte: NEVER, handshake: soon }).await;
        check_turned_away(crowd([127, 0, 0, 2], address, &FIRST_BYTE).await).await;
    }

    async fn a_server_that_stops_waits_for_no_stranger(server: TestServer) {
        let address = listen_with(&server, Patience { first_byte: NEVER, handshake: NEVER }).await;
        let mut peers = crowd([127, 0, 0, 2], address, &FIRST_BYTE).await;
        peers.extend(crowd([127, 0, 0, 2], address, &[]).await);
        timeout(DEADLINE, server.kernel().stop(NEVER)).await.expect("the server stops");
        check_turned_away(peers).await;
    }
}
