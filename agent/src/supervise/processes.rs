//! The processes of one execution: how all of it is ended.
//!
//! With a writable cgroup v2 hierarchy an execution has a leaf of its own (`leaf.rs`), which no process can leave by forking,
//! detaching or changing its session. Some leave it all the same, because root may move them (`cgexec`, `systemd-run --scope`,
//! a session that PAM makes): those, and all where there is no leaf, are found by walking `/proc` (`members.rs`), for which the
//! supervisor is the subreaper of its descendants. Invariant: a verdict that calls itself certain came from the cgroup, and
//! nobody was seen outside of it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use drover_shared::message::ProcessVerdict;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::leaf;
pub use super::leaf::{PIDS_MAX_DEFAULT, cgroups_usable, pids_limited};
use super::members::{Found, Orphans, descendants, describe};
pub use super::members::{Session, forks};
use crate::clock;
use crate::spool::{Key, Started};

/// Time that killed processes get to disappear, in milliseconds.
const GONE_MS_MAX: u64 = 5_000;
/// Survivors named in a verdict.
const SURVIVORS_MAX: usize = 20;
/// Rounds of signalling while new processes keep appearing.
const ROUNDS_MAX: u32 = 100;

/// The tree of processes of an execution.
#[derive(Debug)]
pub struct Tree {
    cgroup: Option<PathBuf>,
    root: Root,
    /// Whether a process was seen that had left the cgroup.
    strayed: Cell<bool>,
}

/// How members are found that are in no cgroup.
#[derive(Debug)]
enum Root {
    /// Descendants of this process.
    Process(i32),
    /// For want of an ancestor.
    Orphans(Orphans),
}

impl Tree {
    /// Prepares for the processes of the execution called `name`, all of which this process is going to start: so many at a
    /// time where the kernel counts them.
    #[must_use]
    pub fn prepare(name: &str, pids_max: u64) -> Self {
        // Orphans come back to this process, so that none is lost from sight.
        let _ = nix::sys::prctl::set_child_subreaper(true);
        let root = Root::Process(nix::unistd::getpid().as_raw());
        Self { cgroup: leaf::make(name, pids_max), root, strayed: Cell::default() }
    }

    /// What a dead supervisor left behind.
    #[must_use]
    pub fn orphaned(started: &Started, key: &Key) -> Self {
        let cgroup = started.cgroup.clone().filter(|path| path.is_dir());
        Self { cgroup, root: Root::Orphans(Orphans::new(key, started.session)), strayed: Cell::default() }
    }

    /// How many processes are left.
    #[must_use]
    pub fn count(&self) -> usize {
        self.find().pids.len()
    }

    /// Folder of the cgroup.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// The folder of the cgroup, opened, for a process that is to be born in it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn folder(&self) -> io::Result<Option<File>> {
        self.cgroup.as_deref().map(File::open).transpose()
    }

    /// The file that a new process writes `0` to, to enter the tree.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn door(&self) -> io::Result<Option<File>> {
        self.cgroup.as_deref().map(|path| OpenOptions::new().write(true).open(path.join("cgroup.procs"))).transpose()
    }

    /// Whether any process is left.
    #[must_use]
    pub fn alive(&self) -> bool {
        !self.find().pids.is_empty()
    }

    /// Whether nobody can have been overlooked.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.cgroup.is_some() && !self.strayed.get()
    }

    /// Ends every process: TERM, grace, KILL. `pause` waits the given milliseconds at most and meanwhile reaps
    /// children and drains their output.
    pub fn end(&self, grace_ms: u64, pause: &mut dyn FnMut(u64)) -> ProcessVerdict {
        let mut ended = BTreeSet::new();
        let mut waited = 0;
        self.signal(Signal::SIGTERM, &mut ended);
        while waited < grace_ms && self.alive() {
            let step = 10.min(grace_ms - waited);
            pause(step);
            waited += step;
        }
        self.kill(&mut ended, pause);
        let survivors = self.find().pids;
        if survivors.is_empty() {
            self.close();
        }
        ProcessVerdict {
            ended: u32::try_from(ended.iter().filter(|pid| !survivors.contains(pid)).count()).unwrap_or(u32::MAX),
            survivors: survivors.iter().take(SURVIVORS_MAX).map(|pid| describe(*pid)).collect(),
            survivors_total: u32::try_from(survivors.len()).unwrap_or(u32::MAX),
            certain: self.is_certain(),
            left_running: false,
        }
    }

    /// Removes the empty cgroup.
    pub fn close(&self) {
        if let Some(path) = &self.cgroup {
            let _ = fs::remove_dir(path);
        }
    }

    fn kill(&self, ended: &mut BTreeSet<i32>, pause: &mut dyn FnMut(u64)) {
        if self.cgroup.is_none() && self.alive() {
            // Who is stopped makes no more processes while the others are looked for.
            self.signal(Signal::SIGSTOP, ended);
        }
        let until_ms = clock::monotonic_ms() + GONE_MS_MAX;
        while self.alive() && clock::monotonic_ms() < until_ms {
            self.signal(Signal::SIGKILL, ended);
            if let Some(path) = &self.cgroup {
                let _ = fs::write(path.join("cgroup.kill"), "1");
            }
            pause(5);
        }
    }

    /// Signals every process, and those that appear meanwhile, each once.
    fn signal(&self, signal: Signal, seen: &mut BTreeSet<i32>) {
        let mut signalled = BTreeSet::new();
        for round in 0..ROUNDS_MAX {
            // Looking through all processes takes long; who strays while this goes on is found by the next signal.
            let found = match &self.cgroup {
                Some(path) if round > 0 => Found { pids: cgroup_members(path), ..Found::default() },
                _ => self.find(),
            };
            let new: Vec<i32> = found.pids.difference(&signalled).copied().collect();
            if new.is_empty() {
                return;
            }
            // A whole group hears it at one moment: none of it makes a process that does not. Twice changes nothing here.
            for group in found.groups.iter().filter(|_| matches!(signal, Signal::SIGSTOP | Signal::SIGKILL)) {
                let _ = killpg(Pid::from_raw(*group), signal);
            }
            for pid in new {
                let _ = kill(Pid::from_raw(pid), signal);
                signalled.insert(pid);
                seen.insert(pid);
            }
        }
    }

    fn find(&self) -> Found {
        let mut found = match &self.root {
            Root::Process(pid) => descendants(*pid),
            Root::Orphans(orphans) => orphans.find(),
        };
        if let Some(path) = &self.cgroup {
            self.strayed.set(self.strayed.get() || found.pids.iter().any(|pid| is_outside(*pid, path)));
            found.pids.extend(cgroup_members(path));
        }
        found
    }
}

/// Whether a process lives elsewhere than in this cgroup and those below it.
fn is_outside(pid: i32, cgroup: &Path) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    let name = cgroup.file_name();
    own.is_some_and(|own| !Path::new(own).components().any(|part| Some(part.as_os_str()) == name))
}

fn cgroup_members(path: &Path) -> BTreeSet<i32> {
    let mut members = BTreeSet::new();
    let mut folders = vec![path.to_owned()];
    // A hook may have made cgroups below; the count keeps a loop in a broken hierarchy from lasting.
    for _ in 0..1_000 {
        let Some(folder) = folders.pop() else { break };
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        members.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(below.filter(|item| item.file_type().is_ok_and(|kind| kind.is_dir())).map(|item| item.path()));
    }
    members
}
