//! Wakes the agent when a supervisor writes into its spool folder.
//!
//! Where the system has no watches left, the folders are listed as unwatched and somebody else has to look.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;

use crate::spool::Key;

/// What the runtime needs to know of the descriptor.
struct Source(Inotify);

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches spool folders.
pub(super) struct Watcher {
    inotify: Option<AsyncFd<Source>>,
    watched: HashMap<WatchDescriptor, Key>,
    unwatched: BTreeSet<Key>,
}

impl Watcher {
    /// A watcher; without the system's help it watches nothing.
    #[must_use]
    pub(super) fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(std::io::Error::from)
            .and_then(|inotify| register(Source(inotify)))
            .inspect_err(|error| tracing::warn!(%error, "the spool cannot be watched; it is looked at often instead"))
            .ok();
        Self { inotify, watched: HashMap::new(), unwatched: BTreeSet::new() }
    }

    /// Watches the folder of an execution.
    pub(super) fn add(&mut self, key: &Key, folder: &Path) -> Option<WatchDescriptor> {
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_TO;
        let watch = self.inotify.as_ref().and_then(|inotify| inotify.get_ref().0.add_watch(folder, flags).ok());
        match watch {
            Some(watch) => {
                self.watched.insert(watch, key.clone());
            }
            None => {
                self.unwatched.insert(key.clone());
            }
        }
        watch
    }

    /// Stops watching.
    pub(super) fn remove(&mut self, key: &Key, watch: Option<WatchDescriptor>) {
        self.unwatched.remove(key);
        if let Some(watch) = watch
            && self.watched.remove(&watch).is_some()
            && let Some(inotify) = &self.inotify
        {
            let _ = inotify.get_ref().0.rm_watch(watch);
        }
    }

    /// Executions that have to be looked at by the clock.
    #[must_use]
    pub(super) fn unwatched(&self) -> Vec<Key> {
        self.unwatched.iter().cloned().collect()
    }

    /// Waits until something was written, and says by whom.
    pub(super) async fn changed(&self) -> BTreeSet<Key> {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
            let read = ready.try_io(|inner| inner.get_ref().0.read_events().map_err(std::io::Error::from));
            if let Ok(Ok(events)) = read {
                return events.iter().filter_map(|event| self.watched.get(&event.wd)).cloned().collect();
            }
        }
    }
}

#[expect(deprecated, reason = "the replacement is unsafe code; this descriptor is owned and never swapped")]
fn register(source: Source) -> std::io::Result<AsyncFd<Source>> {
    AsyncFd::new(source)
}
