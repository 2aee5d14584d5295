//! The processes of one execution: what belongs to it, and how all of it is ended.
//!
//! With a writable cgroup v2 hierarchy an execution has a leaf of its own, which no process can leave by forking,
//! detaching or changing its session. Without one the supervisor is the subreaper of its descendants and walks
//! `/proc`. Invariant: a verdict that calls itself certain came from the cgroup.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use drover_shared::message::ProcessVerdict;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::spool::Key;

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
}

/// How members are found without a cgroup.
#[derive(Debug)]
enum Root {
    /// Descendants of this process.
    Process(i32),
    /// Processes whose environment names the execution, for want of an ancestor.
    Environment(Vec<Vec<u8>>),
}

impl Tree {
    /// Prepares for the processes of the execution called `name`, all of which this process is going to start.
    #[must_use]
    pub fn prepare(name: &str) -> Self {
        // Orphans come back to this process, so that none is lost from sight.
        let _ = nix::sys::prctl::set_child_subreaper(true);
        Self {
            cgroup: cgroup_parent().and_then(|parent| make_leaf(&parent, name)),
            root: Root::Process(nix::unistd::getpid().as_raw()),
        }
    }

    /// What a dead supervisor left behind.
    #[must_use]
    pub fn orphaned(cgroup: Option<PathBuf>, key: &Key) -> Self {
        let marks = [
            format!("DROVER_EXECUTION_ID={}", key.execution_id).into_bytes(),
            format!("DROVER_ATTEMPT={}", key.attempt).into_bytes(),
        ];
        Self { cgroup: cgroup.filter(|path| path.is_dir()), root: Root::Environment(marks.to_vec()) }
    }

    /// How many processes are left.
    #[must_use]
    pub fn count(&self) -> usize {
        self.members().len()
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
        !self.members().is_empty()
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
        let survivors = self.members();
        if survivors.is_empty() {
            self.close();
        }
        ProcessVerdict {
            ended: u32::try_from(ended.iter().filter(|pid| !survivors.contains(pid)).count()).unwrap_or(u32::MAX),
            survivors: survivors.iter().take(SURVIVORS_MAX).map(|pid| describe(*pid)).collect(),
            certain: self.cgroup.is_some(),
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
        let mut waited = 0;
        while waited < GONE_MS_MAX && self.alive() {
            self.signal(Signal::SIGKILL, ended);
            if let Some(path) = &self.cgroup {
                let _ = fs::write(path.join("cgroup.kill"), "1");
            }
            pause(5);
            waited += 5;
        }
    }

    /// Signals every process, and those that appear meanwhile, each once.
    fn signal(&self, signal: Signal, seen: &mut BTreeSet<i32>) {
        let mut signalled = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            let new: Vec<i32> = self.members().difference(&signalled).copied().collect();
            if new.is_empty() {
                return;
            }
            for pid in new {
                let _ = kill(Pid::from_raw(pid), signal);
                signalled.insert(pid);
                seen.insert(pid);
            }
        }
    }

    fn members(&self) -> BTreeSet<i32> {
        match (&self.cgroup, &self.root) {
            (Some(path), _) => cgroup_members(path),
            (None, Root::Process(pid)) => descendants(*pid),
            (None, Root::Environment(marks)) => marked(marks),
        }
    }
}

/// Whether executions get a cgroup of their own here.
#[must_use]
pub fn cgroups_usable() -> bool {
    let leaf = cgroup_parent().and_then(|parent| make_leaf(&parent, &format!("probe-{}", std::process::id())));
    leaf.is_some_and(|path| fs::remove_dir(path).is_ok())
}

/// The cgroup v2 folder of this process.
fn cgroup_parent() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4).map(str::to_owned))?
    })?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(&mount).join(path.trim_start_matches('/')))
}

fn make_leaf(parent: &Path, name: &str) -> Option<PathBuf> {
    let leaf = parent.join(format!("drover-{name}"));
    match fs::create_dir(&leaf) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(_) => return None,
    }
    let usable = leaf.join("cgroup.kill").exists()
        && OpenOptions::new().write(true).open(leaf.join("cgroup.procs")).is_ok()
        // Moving a process needs this right on the folder that it comes from, too.
        && OpenOptions::new().write(true).open(parent.join("cgroup.procs")).is_ok();
    if !usable {
        let _ = fs::remove_dir(&leaf);
        return None;
    }
    Some(leaf)
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

/// Living descendants of a process, by parent ids in `/proc`.
fn descendants(root: i32) -> BTreeSet<i32> {
    let mut parents = Vec::new();
    for item in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = item.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(item.path().join("stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(')') else { continue };
        let mut fields = fields.split_whitespace();
        let dead = matches!(fields.next(), Some("Z" | "X"));
        if let Some(parent) = fields.next().and_then(|field| field.parse::<i32>().ok()) {
            parents.push((pid, parent, dead));
        }
    }
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        for (pid, parent, _) in &parents {
            if found.contains(parent) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    found.remove(&root);
    for (pid, _, dead) in &parents {
        if *dead {
            found.remove(pid);
        }
    }
    found
}

/// Living processes whose environment has all the marks.
fn marked(marks: &[Vec<u8>]) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for item in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = item.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(environment) = fs::read(item.path().join("environ")) else { continue };
        let variables: BTreeSet<&[u8]> = environment.split(|byte| *byte == 0).collect();
        if marks.iter().all(|mark| variables.contains(mark.as_slice())) {
            found.insert(pid);
        }
    }
    found
}

fn describe(pid: i32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{pid} {}", command.trim())
}
