//! Who gets what is free, and when a holder is stuck: pure.
//!
//! Invariants: a task gets everything that it changes together or nothing, so no two wait for each other; one that stands
//! in line before another gets what both want first, whatever else is free; what stands in no line keeps nobody waiting.

use std::cmp::Reverse;
use std::collections::BTreeMap;

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

/// A task in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// Its number, which is its age.
    pub task_id: i64,
    /// The more the earlier.
    pub priority: i64,
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

/// The queue in its order: by priority, then by age. Whoever begins has taken what it wants as far as those behind it are
/// concerned.
#[must_use]
pub fn line(mut waiters: Vec<Waiter>) -> Vec<InLine> {
    waiters.sort_by_key(|waiter| (Reverse(waiter.priority), waiter.task_id));
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
