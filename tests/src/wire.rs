//! A wire between two programs that a test may cut or freeze.
//!
//! Invariants: bytes are passed on unchanged and in their order, or not at all; a frozen connection stays open on both
//! sides and says nothing; what is passed at a time is bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Bytes that were passed on, in both directions together, and after how many of them nothing more is.
struct Count {
    passed: AtomicU64,
    most: AtomicU64,
}

/// Listens in place of a server, and passes on what comes.
pub struct Wire {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    count: Arc<Count>,
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
        let count = Arc::new(Count { passed: AtomicU64::new(0), most: AtomicU64::new(u64::MAX) });
        let (of_connections, counted) = (Arc::clone(&state), Arc::clone(&count));
        let listening = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass_on(near, to, Arc::clone(&of_connections), Arc::clone(&counted)));
            }
        });
        Self { address, state, count, listening }
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

    /// Freezes by itself when so many more bytes have passed, but for what is just under way.
    pub fn freeze_after(&self, bytes: u64) {
        self.count.most.store(self.passed() + bytes, Ordering::SeqCst);
    }

    /// Bytes that were passed on so far, in both directions together.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.count.passed.load(Ordering::SeqCst)
    }

    /// Lets what waits go on.
    pub fn thaw(&self) {
        self.count.most.store(u64::MAX, Ordering::SeqCst);
        self.state.send_modify(|state| state.frozen = false);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn pass_on(near: TcpStream, to: SocketAddr, state: Arc<watch::Sender<State>>, count: Arc<Count>) {
    let born = state.borrow().generation;
    let Ok(far) = TcpStream::connect(to).await else { return };
    // Small frames are not kept back for larger ones.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let both = async {
        tokio::select! {
            () = one_way(near_read, far_write, &state, &count) => {}
            () = one_way(far_read, near_write, &state, &count) => {}
        }
    };
    tokio::select! {
        () = both => {}
        () = cut_after(state.subscribe(), born) => {}
    }
}

async fn cut_after(mut state: watch::Receiver<State>, born: u64) {
    let _ = state.wait_for(|state| state.generation > born).await;
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, owner: &watch::Sender<State>, counted: &Count) {
    let mut state = owner.subscribe();
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
        let before = counted.passed.fetch_add(count as u64, Ordering::SeqCst);
        if before + count as u64 >= counted.most.load(Ordering::SeqCst) {
            owner.send_modify(|state| state.frozen = true);
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

        assert_eq!(wire.passed(), 10);
        wire.freeze_after(3);
        near.write_all(b"again").await.expect("it takes bytes");
        far.read_exact(&mut seen).await.expect("what was under way arrives");
        near.write_all(b"later").await.expect("it takes bytes");
        wire.thaw();
        far.read_exact(&mut seen).await.expect("they arrive");
        assert_eq!((&seen, wire.passed()), (b"later", 20));

        wire.cut();
        assert_eq!(near.read(&mut seen).await.unwrap_or(0), 0, "it is over on both sides");
        assert_eq!(far.read(&mut seen).await.unwrap_or(0), 0, "it is over on both sides");
        TcpStream::connect(wire.address()).await.expect("new ones are taken");
    }
}
