//! What of tasks that are over may go: pure.
//!
//! Invariants: nothing goes of a task with an execution of which nobody knows how it ended; a task stays as long as
//! something that stays needs it: a revert, a retry, a task that waits for it, a task that was made from it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use drover_kernel::Time;
use drover_kernel::retention::Retention;

/// Versions that every instance can be taken back to, whatever their age: those that it had last, its present one among
/// them.
pub const VERSIONS_KEPT: usize = 5;

/// How long output stays however large all of it is: what a host says late finds its place.
pub const OUTPUT_LEAST: Duration = Duration::from_hours(1);

/// What an instance has of tasks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Its newest task.
    pub task_id: i64,
    /// The last one of which something was sent to its host.
    pub sent_task_id: Option<i64>,
}

/// A version that an instance had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Had {
    /// Instance.
    pub instance_id: i64,
    /// The turn of the last task that ended with this version there, be it an update or a revert.
    pub last_turn: i64,
    /// The newest update to it: what a revert looks for that installs it again.
    pub update_task_id: Option<i64>,
}

/// Tasks that a plan, a revert or a retry needs: what every instance was given last, and the updates to the versions that it had
/// last.
#[must_use]
pub fn needed(newest: &[Newest], had: &[Had]) -> BTreeSet<i64> {
    let mut needed: BTreeSet<i64> = BTreeSet::new();
    for one in newest {
        needed.insert(one.task_id);
        needed.extend(one.sent_task_id);
    }
    let mut by_instance: BTreeMap<i64, Vec<&Had>> = BTreeMap::new();
    for one in had {
        by_instance.entry(one.instance_id).or_default().push(one);
    }
    for versions in by_instance.values_mut() {
        versions.sort_by_key(|one| Reverse(one.last_turn));
        needed.extend(versions.iter().take(VERSIONS_KEPT).filter_map(|one| one.update_task_id));
    }
    needed
}

/// A task that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Task.
    pub id: i64,
    /// When it ended.
    pub finished_at: Time,
    /// Whether nobody knows how one of its executions ended.
    pub lost: bool,
    /// Whether a task that is not over goes after it.
    pub awaited: bool,
}

/// Whether something ended so long ago.
fn is_past(finished_at: Time, kept: Option<Duration>, now: Time) -> bool {
    kept.is_some_and(|kept| finished_at.after(kept) <= now)
}

/// Which of these tasks of an application may go, given those beyond its newest ones. `made_from` has every task of the
/// application that was made from another one, with that one.
#[must_use]
pub fn tasks(
    ended: &[Ended],
    needed: &BTreeSet<i64>,
    made_from: &[(i64, i64)],
    retention: &Retention,
    now: Time,
) -> BTreeSet<i64> {
    let mut made: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (id, origin) in made_from {
        made.entry(*origin).or_default().push(*id);
    }
    let mut going: BTreeSet<i64> = BTreeSet::new();
    let mut ended: Vec<&Ended> = ended.iter().collect();
    // What was made from a task is newer: it is decided before.
    ended.sort_by_key(|task| Reverse(task.id));
    for task in ended {
        let origin_of_kept = made.get(&task.id).is_some_and(|made| made.iter().any(|id| !going.contains(id)));
        let wanted = task.lost || task.awaited || origin_of_kept || needed.contains(&task.id);
        if !wanted && is_past(task.finished_at, retention.tasks, now) {
            going.insert(task.id);
        }
    }
    going
}

/// Of which of these tasks the artifact may go.
#[must_use]
pub fn artifacts(ended: &[Ended], needed: &BTreeSet<i64>, retention: &Retention, now: Time) -> BTreeSet<i64> {
    let goes =
        |task: &&Ended| !task.lost && !needed.contains(&task.id) && is_past(task.finished_at, retention.artifacts, now);
    ended.iter().filter(goes).map(|task| task.id).collect()
}

/// A deploy task that was closed, or started, long ago and is not among the newest of its application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Deploy task.
    pub id: i64,
    /// Sub-tasks that it has.
    pub tasks: u64,
}

/// Which of these deploy tasks go: those that have no sub-task but ones that go, of which `going` says how many there are.
#[must_use]
pub fn deploy_tasks(old: &[Carried], going: &BTreeMap<i64, u64>) -> BTreeSet<i64> {
    let goes = |one: &&Carried| going.get(&one.id).copied().unwrap_or(0) >= one.tasks;
    old.iter().filter(goes).map(|one| one.id).collect()
}

/// Repositories that a task was fetched from which stays. `tasks` has how many were fetched from each, and `going` how many of
/// them go.
#[must_use]
pub fn fetched_from<'a>(tasks: &'a [(String, u64)], going: &BTreeMap<String, u64>) -> Vec<&'a str> {
    let stays = |(url, count): &&(String, u64)| going.get(url).copied().unwrap_or(0) < *count;
    tasks.iter().filter(stays).map(|(url, _)| url.as_str()).collect()
}

/// Decides of which tasks the output goes, one after another.
#[derive(Debug)]
pub struct Outputs<'a> {
    retention: &'a Retention,
    now: Time,
    /// Bytes of all output that stays, as far as it is decided.
    bytes: u64,
}

impl<'a> Outputs<'a> {
    /// Begins with what all output has together.
    #[must_use]
    pub fn new(retention: &'a Retention, now: Time, bytes: u64) -> Self {
        Self { retention, now, bytes }
    }

    /// Whether the output of a task that ended then may go, be it for its age or for the bytes of all: when it may not,
    /// that of a task that ended later may not either.
    #[must_use]
    pub fn reaches(&self, finished_at: Time) -> bool {
        let too_many = self.retention.output_bytes.is_some_and(|most| self.bytes > most);
        is_past(finished_at, self.retention.output, self.now)
            || (too_many && is_past(finished_at, Some(OUTPUT_LEAST), self.now))
    }

    /// Whether the output of this task goes, which has so many bytes. To be asked in the order in which tasks ended.
    pub fn goes(&mut self, task: &Ended, bytes: u64) -> bool {
        let goes = !task.lost && self.reaches(task.finished_at);
        if goes {
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        goes
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
