//! Work that blocks: on threads of its own, or at once on the one thread that a simulation has.
//!
//! A simulation is replayed exactly only if nothing happens beside its thread: no other thread may wake a task. Invariants:
//! a thread that does everything at once starts none that anybody waits for asynchronously; once it was halted, nothing that
//! reaches beyond memory happens on it any more, as after `kill -9`.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::pending;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::{Error, Result};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Threads,
    AtOnce,
    Halted,
}

/// What becomes of bytes that a simulation writes into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// They are there.
    Whole,
    /// There is room for half of them.
    Full,
    /// The process ends in the middle.
    Torn,
}

/// The disk of a simulation: what it does with the next bytes, and how long they wait for it.
pub struct Disk {
    /// How long.
    pub delay: Box<dyn Fn() -> Duration>,
    /// What.
    pub write: Box<dyn Fn() -> Write>,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Threads) };
    static DISK: RefCell<Option<Rc<Disk>>> = const { RefCell::new(None) };
}

/// From now on what this thread writes goes to this disk; without one everything is written at once.
pub fn set_disk(disk: Option<Disk>) {
    DISK.set(disk.map(Rc::new));
}

fn disk() -> Option<Rc<Disk>> {
    DISK.with_borrow(Clone::clone).filter(|_| is_set())
}

/// Waits as long as the disk of a simulation lets one wait.
pub async fn disk_has_time() {
    let delay = disk().map_or(Duration::ZERO, |disk| (disk.delay)());
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    unless_halted().await;
}

/// Writes into a file, as the disk of a simulation lets it.
///
/// # Errors
/// Whatever the file system says; some of it may be written then.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let fate = disk().map_or(Write::Whole, |disk| (disk.write)());
    if fate == Write::Whole {
        return file.write_all_at(bytes, offset);
    }
    file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
    if fate == Write::Torn {
        halt();
    }
    Err(io::ErrorKind::StorageFull.into())
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
