//! Who belongs to an execution, as far as `/proc` tells where there is no cgroup.
//!
//! Invariant: nobody is taken for a member because a number is his that somebody else had before him.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::{Deserialize, Serialize};

use crate::spool::Key;

/// Open files that are looked at of one process; a script's text has a low number.
const FILES_MAX: usize = 256;

/// The session of a supervisor, which is that of all that it starts unless they leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its number, which is the process id of the supervisor.
    pub id: i32,
    /// Processes that had been made since the boot when the supervisor began, if the system says.
    pub forks: Option<u64>,
}

impl Session {
    /// That of this process, if it leads one.
    #[must_use]
    pub fn own() -> Option<Self> {
        let own = nix::unistd::getpid();
        let leads = nix::unistd::getsid(None).is_ok_and(|session| session == own);
        leads.then(|| Self { id: own.as_raw(), forks: forks() })
    }

    /// Whether its number cannot have come round again: process ids are given in turn, up to the greatest.
    fn is_fresh(self) -> bool {
        let greatest =
            fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse::<u64>().ok());
        let (Some(then), Some(now), Some(greatest)) = (self.forks, forks(), greatest) else { return false };
        is_fresh(then, now, greatest)
    }
}

/// Whether so few processes were made since then that no number was given twice. Half of what there is is left out: some are
/// in use, and those below a few hundred are not given again.
fn is_fresh(then: u64, now: u64, greatest: u64) -> bool {
    now.checked_sub(then).is_some_and(|made| made < greatest / 2)
}

/// Processes and threads that were made since the boot.
#[must_use]
pub fn forks() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("processes "))?.trim().parse().ok()
}

/// A process, or what is left of one.
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// Clock ticks from the boot to its birth: with the number it is one process and no other.
    born: u64,
    dead: bool,
}

/// Members, and the process groups that have no others.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) pids: BTreeSet<i32>,
    pub(super) groups: BTreeSet<i32>,
}

impl Found {
    fn of(all: &[Process], is_member: impl Fn(&Process) -> bool) -> Self {
        let (members, others): (Vec<&Process>, Vec<&Process>) =
            all.iter().filter(|process| !process.dead).partition(|process| is_member(process));
        let mut groups: BTreeSet<i32> =
            members.iter().map(|process| process.group).filter(|group| *group > 1).collect();
        groups.remove(&nix::unistd::getpgrp().as_raw());
        for other in others {
            groups.remove(&other.group);
        }
        Self { pids: members.iter().map(|process| process.pid).collect(), groups }
    }
}

/// What `/proc/PID/stat` says: its letter of the state comes first.
fn fields(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn read(pid: i32) -> Option<Process> {
    let fields = fields(pid)?;
    let number = |at: usize| fields.get(at)?.parse::<i32>().ok();
    Some(Process {
        pid,
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        born: fields.get(19)?.parse().ok()?,
        dead: matches!(fields.first()?.as_str(), "Z" | "X"),
    })
}

fn all() -> Vec<Process> {
    let items = fs::read_dir("/proc").into_iter().flatten().flatten();
    items.filter_map(|item| read(item.file_name().to_str()?.parse().ok()?)).collect()
}

/// Whoever is in `found`, and the descendants of those.
fn with_descendants(mut found: BTreeSet<i32>, all: &[Process]) -> BTreeSet<i32> {
    loop {
        let before = found.len();
        for process in all {
            if found.contains(&process.parent) {
                found.insert(process.pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Living descendants of a process.
pub(super) fn descendants(root: i32) -> Found {
    let all = all();
    let family = with_descendants(BTreeSet::from([root]), &all);
    Found::of(&all, |process| process.pid != root && family.contains(&process.pid))
}

/// What a dead supervisor left: processes that carry the mark of the execution, in their environment or as the open text of
/// their script, or that are in the supervisor's session; and the descendants of all these. Who was found once stays found.
#[derive(Debug)]
pub(super) struct Orphans {
    environment: [Vec<u8>; 2],
    text: String,
    session: Option<Session>,
    /// By process id and birth: whether it belongs to the execution.
    known: RefCell<BTreeMap<(i32, u64), bool>>,
}

impl Orphans {
    pub(super) fn new(key: &Key, session: Option<Session>) -> Self {
        let environment = [
            format!("DROVER_EXECUTION_ID={}", key.execution_id).into_bytes(),
            format!("DROVER_ATTEMPT={}", key.attempt).into_bytes(),
        ];
        let text = format!("/memfd:{}", mark(&key.execution_id, key.attempt));
        Self { environment, text, session, known: RefCell::default() }
    }

    pub(super) fn find(&self) -> Found {
        let own = nix::unistd::getpid().as_raw();
        let all: Vec<Process> = all().into_iter().filter(|process| process.pid != own).collect();
        let mut known = self.known.borrow_mut();
        let present: BTreeSet<(i32, u64)> = all.iter().map(|process| (process.pid, process.born)).collect();
        known.retain(|process, _| present.contains(process));
        for process in all.iter().filter(|process| !process.dead) {
            known.entry((process.pid, process.born)).or_insert_with(|| self.is_marked(process.pid));
        }
        let is_known = |process: &Process| known.get(&(process.pid, process.born)) == Some(&true);
        let session = self.session_of(&all, is_known);
        let first = all.iter().filter(|process| is_known(process) || Some(process.session) == session);
        let family = with_descendants(first.map(|process| process.pid).collect(), &all);
        for process in all.iter().filter(|process| family.contains(&process.pid)) {
            known.insert((process.pid, process.born), true);
        }
        Found::of(&all, |process| family.contains(&process.pid))
    }

    /// The supervisor's session, if it can be no other by now: its number has not come round, or a marked process is in it.
    fn session_of(&self, all: &[Process], is_known: impl Fn(&Process) -> bool) -> Option<i32> {
        let session = self.session?;
        // The supervisor is dead: whoever leads a session of that number now is somebody else.
        let is_led = all.iter().any(|process| process.pid == session.id && !process.dead);
        let is_proved = || all.iter().any(|process| process.session == session.id && is_known(process));
        (!is_led && (session.is_fresh() || is_proved())).then_some(session.id)
    }

    fn is_marked(&self, pid: i32) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let variables: BTreeSet<&[u8]> = environment.split(|byte| *byte == 0).collect();
        if self.environment.iter().all(|mark| variables.contains(mark.as_slice())) {
            return true;
        }
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(FILES_MAX);
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
            let target = target.to_string_lossy();
            target.strip_suffix(" (deleted)").unwrap_or(&target) == self.text
        })
    }
}

/// Name of the nameless files that scripts are handed over in: whoever inherits one belongs to the execution.
pub(super) fn mark(execution_id: &str, attempt: u32) -> String {
    format!("drover:{execution_id}.{attempt}")
}

/// A process for people: `17 mount.nfs (D)`.
pub(super) fn describe(pid: i32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let state = fields(pid).and_then(|fields| fields.first().cloned()).unwrap_or_else(|| "?".to_owned());
    format!("{pid} {} ({state})", command.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_fresh_until_it_may_have_come_round() {
        assert!(is_fresh(5, 5, 32_768) && is_fresh(5, 16_388, 32_768));
        assert!(!is_fresh(5, 16_389, 32_768) && !is_fresh(5, 1_000_000, 32_768));
        assert!(!is_fresh(6, 5, 32_768), "it was counted from another boot");
    }

    #[test]
    fn this_process_is_read_as_it_is() {
        let own = read(nix::unistd::getpid().as_raw()).expect("this process");
        assert_eq!(own.parent, nix::unistd::getppid().as_raw());
        assert_eq!(own.group, nix::unistd::getpgrp().as_raw());
        assert_eq!(own.session, nix::unistd::getsid(None).expect("a session").as_raw());
        assert!(own.born > 0 && !own.dead);
        assert!(descendants(own.pid).groups.is_empty(), "its own group has others");
    }
}
