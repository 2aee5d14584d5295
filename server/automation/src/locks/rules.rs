//! Who gets what is free, and when a holder is stuck: pure.
//!
//! Invariants: a task gets everything that it changes together or nothing, so no two wait for each other; one that stands
//! in line before another gets what both want first, whatever else is free; what stands in no line keeps nobody waiting; two
//! that wait never change places by waiting, and nobody stands behind one that came [`PASSED_AT_MOST`] later.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_kernel::Time;
use drover_shared::words::ExecutionState as State;

use crate::tasks::rules::Role;

/// What one task at a time may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// An instance.
    Instance(i64),
    /// A host.
    Host(i64),
}

impl Object {
    /// What an execution with this role has, if anything.
    #[must_use]
    pub fn of(role: Role, instance_id: Option<i64>, host_id: i64) -> Option<Self> {
        (role == Role::Instance).then(|| instance_id.map_or(Self::Host(host_id), Self::Instance))
    }
}

/// Priorities are -100 to 100.
pub const PRIORITY_MAX: i64 = 100;
/// So much waiting counts as one step of priority.
const STEP_MS: i64 = 600_000;
/// After so long a task stands before every newer one, whatever their priorities.
pub const PASSED_AT_MOST: Duration = Duration::from_millis((2 * PRIORITY_MAX * STEP_MS).unsigned_abs());

/// Where a task stands: the less the earlier. Statements say the same.
#[must_use]
pub fn rank(priority: i64, since: Time) -> i64 {
    since.millis() - priority * STEP_MS
}

/// What a priority has become by waiting.
#[must_use]
pub fn risen(priority: i64, since: Time, now: Time) -> i64 {
    priority + (now.millis() - since.millis()).max(0) / STEP_MS
}

/// A task in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// Its number.
    pub task_id: i64,
    /// See [`rank`]; of equal ones the lower number goes first.
    pub rank: i64,
    /// Whether it would begin. What is held, or goes after a task that has not ended, is passed by the others.
    pub ready: bool,
    /// What it changes, with whether that is taken.
    pub wants: Vec<(Object, bool)>,
}

/// What keeps a task from something that it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Somebody has it.
    Taken,
    /// A task that stands before it in the line wants it too.
    Wanted(i64),
}

/// A task in line, with what keeps it from beginning: nothing, when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InLine {
    /// Task.
    pub task_id: i64,
    /// What is in its way.
    pub obstacles: Vec<(Object, Obstacle)>,
    /// Whether it would begin.
    pub ready: bool,
}

impl InLine {
    /// Whether it begins now.
    #[must_use]
    pub fn begins(&self) -> bool {
        self.ready && self.obstacles.is_empty()
    }
}

/// The queue in its order. Whoever begins has taken what it wants as far as those behind it are
/// concerned.
#[must_use]
pub fn line(mut waiters: Vec<Waiter>) -> Vec<InLine> {
    waiters.sort_by_key(|waiter| (waiter.rank, waiter.task_id));
    let mut wanted: BTreeMap<Object, i64> = BTreeMap::new();
    let mut line = Vec::with_capacity(waiters.len());
    for waiter in waiters {
        let obstacle = |(object, taken): &(Object, bool)| match wanted.get(object) {
            _ if *taken => Some((*object, Obstacle::Taken)),
            Some(task_id) => Some((*object, Obstacle::Wanted(*task_id))),
            None => None,
        };
        let obstacles = waiter.wants.iter().filter_map(obstacle).collect();
        if waiter.ready {
            for (object, _) in &waiter.wants {
                wanted.entry(*object).or_insert(waiter.task_id);
            }
        }
        line.push(InLine { task_id: waiter.task_id, obstacles, ready: waiter.ready });
    }
    line
}

/// What is known of who holds something.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    /// State of its execution.
    pub state: State,
    /// Whether its turn has come: what waits for its batch has no time of its own yet.
    pub has_turn: bool,
    /// Until when it may take.
    pub deadline_at: Time,
    /// Who holds its task back, if somebody does.
    pub held_by: Option<&'a str>,
    /// Whether its host is connected.
    pub connected: bool,
}

/// Why somebody should look at a holder, if anything is not as it should be.
#[must_use]
pub fn stuck(holder: &Holder<'_>, now: Time) -> Option<String> {
    let is_out = matches!(holder.state, State::Dispatched | State::Running);
    if holder.state == State::Lost {
        return Some("nobody knows how it ended, and nobody has said".to_owned());
    }
    if let (Some(who), false) = (holder.held_by, is_out) {
        return Some(format!("{who} holds it"));
    }
    match (is_out || holder.has_turn, holder.connected) {
        (true, _) if now >= holder.deadline_at => Some("its time has run out".to_owned()),
        (true, false) => Some("its host is not connected".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
