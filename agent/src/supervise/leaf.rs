//! The cgroup (v2) of an execution: where it is made, and how many processes it may have.
//!
//! Invariant: nothing is switched on in a cgroup that has processes of its own, unless it is the root of all: what is below
//! it could not be ended as a whole any more.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Processes and threads that an execution may have at a time, unless the agent was told otherwise.
pub const PIDS_MAX_DEFAULT: u64 = 4096;
/// The agent's own cgroup within one that was given to it: then executions have theirs beside it.
const OWN: &str = "drover-agent";

/// Makes the cgroup of the execution called `name`; none where that is not possible.
pub(super) fn make(name: &str, pids_max: u64) -> Option<PathBuf> {
    let parent = parent()?;
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
    limit(&parent, &leaf, pids_max);
    Some(leaf)
}

/// Whether executions get a cgroup of their own here.
#[must_use]
pub fn cgroups_usable() -> bool {
    probe("usable", |_| true)
}

/// Whether the kernel counts the processes of an execution here.
#[must_use]
pub fn pids_limited() -> bool {
    probe("limited", |leaf| leaf.join("pids.max").exists())
}

fn probe(what: &str, is_so: impl FnOnce(&Path) -> bool) -> bool {
    let leaf = make(&format!("probe-{what}-{}", std::process::id()), PIDS_MAX_DEFAULT);
    leaf.is_some_and(|path| is_so(&path) && fs::remove_dir(path).is_ok())
}

/// The folder in which executions have theirs: that of this process, or the one above it if that was given to the agent.
fn parent() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4).map(str::to_owned))?
    })?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let own = Path::new(&mount).join(path.trim_start_matches('/'));
    let above = own.parent().filter(|above| own.ends_with(OWN) && above.starts_with(&mount) && is_empty(above));
    Some(above.map(Path::to_owned).unwrap_or(own))
}

fn is_empty(folder: &Path) -> bool {
    fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
}

/// Where the kernel counts no processes an execution may have any number.
fn limit(parent: &Path, leaf: &Path, pids_max: u64) {
    let file = leaf.join("pids.max");
    // Only the root of all has no type.
    if !file.exists() && (is_empty(parent) || !parent.join("cgroup.type").exists()) {
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+pids");
    }
    if file.exists()
        && let Err(error) = fs::write(&file, pids_max.to_string())
    {
        tracing::warn!(leaf = %leaf.display(), %error, "the number of processes cannot be limited");
    }
}
