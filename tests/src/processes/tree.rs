//! Finding and ending what a story left running.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest time of looking again and again: a process that forks while it is looked for is found in the next round.
const LOOKING: Duration = Duration::from_secs(5);

/// Ends everybody who has `folder` in command line or environment, with all descendants.
pub(super) fn end_all(folder: &Path) {
    let deadline = Instant::now() + LOOKING;
    while Instant::now() < deadline {
        let found = find(folder.as_os_str().as_bytes());
        if found.is_empty() {
            return;
        }
        for id in found {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

/// Ends everybody who has `folder` in command line or environment, with all descendants, at one moment: nobody sees another
/// one die.
pub(super) fn end_at_once(folder: &Path) {
    let mut stopped = BTreeSet::new();
    loop {
        let found = find(folder.as_os_str().as_bytes());
        if found.is_subset(&stopped) {
            break;
        }
        for id in found.difference(&stopped) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(*id), Signal::SIGSTOP);
        }
        stopped.extend(found);
    }
    for id in stopped {
        let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
    }
}

/// Whether a process lives; one that only waits to be asked how it ended does not.
#[must_use]
pub fn is_alive(id: i32) -> bool {
    parent(id).is_some()
}

/// Supervisors that work for the agent of a data directory.
pub(super) fn supervisors(data_dir: &Path) -> Vec<i32> {
    let needle = data_dir.as_os_str().as_bytes();
    let is_one = |command: &[u8]| {
        let mut words = command.split(|byte| *byte == 0);
        words.nth(1) == Some(b"supervise") && words.next().is_some_and(|folder| folder.starts_with(needle))
    };
    processes("cmdline", is_one)
}

/// Living processes that have this in their environment.
#[must_use]
pub fn with_environment(mark: &str) -> Vec<i32> {
    processes("environ", |environment| environment.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()))
}

/// Living processes whose `file` in `/proc` is as wanted.
fn processes(file: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<i32> {
    let mut found = Vec::new();
    for item in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(id) = item.file_name().to_string_lossy().parse::<i32>() else { continue };
        if is_alive(id) && fs::read(item.path().join(file)).is_ok_and(|text| wanted(&text)) {
            found.push(id);
        }
    }
    found
}

fn find(needle: &[u8]) -> BTreeSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut found = Vec::new();
    for item in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(id) = item.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Some(parent) = parent(id).filter(|_| id != own) else { continue };
        children.entry(parent).or_default().push(id);
        let holds = |file: &str| fs::read(item.path().join(file)).is_ok_and(|text| contains(&text, needle));
        if holds("cmdline") || holds("environ") {
            found.push(id);
        }
    }
    let mut all = BTreeSet::new();
    while let Some(id) = found.pop() {
        if all.insert(id) {
            found.extend(children.get(&id).into_iter().flatten());
        }
    }
    all
}

/// Parent of a living process.
fn parent(id: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}
