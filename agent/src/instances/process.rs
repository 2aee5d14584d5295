//! A process as `/proc` shows it.

use std::fs;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::clock;

/// A living process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    /// When it began, in ticks since the boot: with its number, this is the process and no other.
    pub(crate) started_ticks: u64,
    /// The account that it runs as.
    pub(crate) uid: u32,
}

/// When the process of this number began, in ticks since the boot, unless it is dead or none.
pub(crate) fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The process of this number, unless it is dead or none.
pub(crate) fn find(pid: u32) -> Option<Process> {
    let started_ticks = started(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let uid = uids.split_whitespace().nth(1)?.parse().ok()?;
    Some(Process { started_ticks, uid })
}

/// When a process began by the wall clock as it stands now, in milliseconds since 1970 UTC.
pub(crate) fn started_ms(process: Process) -> i64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let started = process.started_ticks.saturating_mul(1_000) / per_second.unwrap_or(100).max(1);
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| time.tv_sec().saturating_mul(1_000).saturating_add(time.tv_nsec() / 1_000_000));
    clock::wall_ms() - (boot - i64::try_from(started).unwrap_or(i64::MAX)).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_began_a_moment_ago() {
        let own = find(std::process::id()).unwrap();
        assert_eq!(own.uid, nix::unistd::geteuid().as_raw());
        let age = clock::wall_ms() - started_ms(own);
        assert!((0..3_600_000).contains(&age), "{age}");
        assert_eq!(find(u32::MAX), None);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while find(child.id()).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
