//! A wire between two programs that a test may cut or freeze.
//!
//! Invariants: bytes are passed on unchanged and in their order, or not at all; a frozen connection stays open on both
//! sides and says nothing; what is passed at a time is bounded.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes that are passed on at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// What happens to the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// Connections of an older generation are cut.
    generation: u64,
    /// Nothing is passed on.
    frozen: bool,
}

/// Listens in place of a server, and passes on what comes.
pub struct Wire {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    listening: JoinHandle<()>,
}

impl Wire {
    /// A wire to the server at `to`.
    ///
    /// # Panics
    /// When there is no port left.
    pub async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(watch::Sender::new(State { generation: 0, frozen: false }));
        let of_connections = Arc::clone(&state);
        let listening = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass_on(near, to, of_connections.subscribe()));
            }
        });
        Self { address, state, listening }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection; new ones are taken.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Has every connection, also new ones, say nothing more until it is thawed.
    pub fn freeze(&self) {
        self.state.send_modify(|state| state.frozen = true);
    }

    /// Lets what waits go on.
    pub fn thaw(&self) {
        self.state.send_modify(|state| state.frozen = false);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn pass_on(near: TcpStream, to: SocketAddr, state: watch::Receiver<State>) {
    let born = state.borrow().generation;
    let Ok(far) = TcpStream::connect(to).await else { return };
    // Small frames are not kept back for larger ones.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let both = async {
        tokio::select! {
            () = one_way(near_read, far_write, state.clone()) => {}
            () = one_way(far_read, near_write, state.clone()) => {}
        }
    };
    tokio::select! {
        () = both => {}
        () = cut_after(state.clone(), born) => {}
    }
}

async fn cut_after(mut state: watch::Receiver<State>, born: u64) {
    let _ = state.wait_for(|state| state.generation > born).await;
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        if state.wait_for(|state| !state.frozen).await.is_err() {
            return;
        }
        let Ok(count) = from.read(&mut piece).await else { return };
        if count == 0 || state.wait_for(|state| !state.frozen).await.is_err() {
            return;
        }
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_until_it_is_cut() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let wire = Wire::to(server.local_addr().expect("an address")).await;
        let mut near = TcpStream::connect(wire.address()).await.expect("the wire listens");
        let (mut far, _) = server.accept().await.expect("a connection");
        near.write_all(b"hello").await.expect("it takes bytes");
        let mut seen = [0; 5];
        far.read_exact(&mut seen).await.expect("they arrive");
        assert_eq!(&seen, b"hello");

        wire.freeze();
        near.write_all(b"there").await.expect("it takes bytes");
        wire.thaw();
        far.read_exact(&mut seen).await.expect("they arrive");
        assert_eq!(&seen, b"there");

        wire.cut();
        assert_eq!(near.read(&mut seen).await.unwrap_or(0), 0, "it is over on both sides");
        assert_eq!(far.read(&mut seen).await.unwrap_or(0), 0, "it is over on both sides");
        TcpStream::connect(wire.address()).await.expect("new ones are taken");
    }
}
