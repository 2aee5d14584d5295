//! Work that blocks: on threads of its own, or at once on the one thread that a simulation has.
//!
//! A simulation is replayed exactly only if nothing happens beside its thread: no other thread may wake a task. Invariants:
//! a thread that does everything at once starts none that anybody waits for asynchronously; once it was halted, nothing that
//! reaches beyond memory happens on it any more, as after `kill -9`.

use std::cell::Cell;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use crate::{Error, Result};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Threads,
    AtOnce,
    Halted,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Threads) };
}

/// From now on this thread does everything at once. What it does so counts from the start again after a halt.
pub fn begin() {
    MODE.set(Mode::AtOnce);
}

/// From now on nothing that reaches beyond memory happens on this thread: whoever asks for it waits for ever.
pub fn halt() {
    MODE.set(Mode::Halted);
}

/// Whether this thread does everything at once.
#[must_use]
pub fn is_set() -> bool {
    MODE.get() != Mode::Threads
}

/// Whether this thread was halted.
#[must_use]
pub fn is_halted() -> bool {
    MODE.get() == Mode::Halted
}

/// Returns at once, and never on a thread that was halted.
pub async fn unless_halted() {
    if is_halted() {
        pending::<()>().await;
    }
}

/// Does something that blocks: on a thread for such work, or at once.
///
/// # Errors
/// [`Error::Internal`] when it panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    if is_set() {
        unless_halted().await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)
}

/// Stands still until another thread has answered; nothing else happens on this one meanwhile.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        thread::park();
    }
}
