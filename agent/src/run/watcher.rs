//! Wakes the agent when a supervisor writes into its spool folder.
//!
//! Two things count: the log grows, and an outcome gets its name. Everything else that is written there wakes nobody.
//! Where the system has no watches left, the folders are listed as unwatched and somebody else has to look.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;

use crate::spool::{Folder, Key};

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
pub struct Watcher {
    inotify: Option<AsyncFd<Source>>,
    watched: HashMap<WatchDescriptor, (Key, Change)>,
    unwatched: BTreeSet<Key>,
}

/// What happened to an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// There is more output.
    Grew,
    /// A file got its name: it may be over.
    Named,
}

/// The watches of one execution.
#[derive(Debug)]
pub(super) struct Watches([WatchDescriptor; 2]);

impl Watcher {
    /// A watcher; without the system's help it watches nothing.
    #[must_use]
    pub(super) fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(std::io::Error::from)
            .and_then(|inotify| register(Source(inotify)))
            .inspect_err(|error| tracing::warn!(%error, "the spool cannot be watched; it is looked at often instead"))
            .ok();
        Self { inotify, ..Self::blind() }
    }

    /// One that watches nothing: every execution has to be looked at by the clock.
    #[must_use]
    pub fn blind() -> Self {
        Self { inotify: None, watched: HashMap::new(), unwatched: BTreeSet::new() }
    }

    /// Watches the folder of an execution.
    pub(super) fn add(&mut self, key: &Key, folder: &Folder) -> Option<Watches> {
        let watches = self.inotify.as_ref().and_then(|inotify| {
            let inotify = &inotify.get_ref().0;
            let log = inotify.add_watch(&folder.log(), AddWatchFlags::IN_MODIFY).ok()?;
            let Ok(names) = inotify.add_watch(folder.path(), AddWatchFlags::IN_MOVED_TO) else {
                let _ = inotify.rm_watch(log);
                return None;
            };
            Some(Watches([log, names]))
        });
        match &watches {
            Some(Watches([log, names])) => {
                self.watched.insert(*log, (key.clone(), Change::Grew));
                self.watched.insert(*names, (key.clone(), Change::Named));
            }
            None => {
                self.unwatched.insert(key.clone());
            }
        }
        watches
    }

    /// Stops watching.
    pub(super) fn remove(&mut self, key: &Key, watches: Option<Watches>) {
        self.unwatched.remove(key);
        for watch in watches.into_iter().flat_map(|watches| watches.0) {
            if self.watched.remove(&watch).is_some()
                && let Some(inotify) = &self.inotify
            {
                let _ = inotify.get_ref().0.rm_watch(watch);
            }
        }
    }

    /// Executions that have to be looked at by the clock.
    #[must_use]
    pub(super) fn unwatched(&self) -> Vec<Key> {
        self.unwatched.iter().cloned().collect()
    }

    /// Waits until something happens, and says to whom and what.
    pub(super) async fn changed(&self) -> BTreeMap<Key, Change> {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
            let read = ready.try_io(|inner| inner.get_ref().0.read_events().map_err(std::io::Error::from));
            if let Ok(Ok(events)) = read {
                let mut changes = BTreeMap::new();
                for (key, change) in events.iter().filter_map(|event| self.watched.get(&event.wd)) {
                    let known = changes.entry(key.clone()).or_insert(*change);
                    *known = (*known).max(*change);
                }
                return changes;
            }
        }
    }
}

#[expect(deprecated, reason = "the replacement is unsafe code; this descriptor is owned and never swapped")]
fn register(source: Source) -> std::io::Result<AsyncFd<Source>> {
    AsyncFd::new(source)
}
