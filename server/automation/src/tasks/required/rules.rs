//! When a task that goes after others may start, and in which order applications go: pure.
//!
//! Invariants: nothing starts before everything that it goes after has ended well; what cannot end well any more lets
//! nothing wait; an order is found for every graph without a circle, and a circle is named.

use std::collections::{BTreeMap, BTreeSet};

use crate::tasks::rules::Outcome;

/// A task that goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Required {
    /// Its number.
    pub task_id: i64,
    /// Where it stands.
    pub standing: Standing,
}

/// Where a task stands that goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has not ended: it waits itself, is held, prepared or at work.
    Open,
    /// All of it went well.
    Well,
    /// Something of it failed.
    Failed,
    /// A person ended it.
    Cancelled,
    /// It was deleted.
    Gone,
}

impl Standing {
    /// The standing of a task that is there.
    #[must_use]
    pub fn of(outcome: Option<Outcome>, cancelled: bool) -> Self {
        match outcome {
            None => Self::Open,
            Some(Outcome::Finished) => Self::Well,
            Some(Outcome::Failed) if cancelled => Self::Cancelled,
            Some(Outcome::Failed) => Self::Failed,
        }
    }

    /// What became of a task that will not end well any more.
    #[must_use]
    pub fn misfortune(self) -> Option<&'static str> {
        match self {
            Self::Open | Self::Well => None,
            Self::Failed => Some("failed"),
            Self::Cancelled => Some("was cancelled"),
            Self::Gone => Some("was deleted"),
        }
    }
}

/// What follows for a task that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Something that goes first has not ended.
    Wait,
    /// Everything that goes first has ended well.
    Go,
    /// It never starts; why.
    Stop(String),
}

/// What follows from what goes first. `stopped` is why a person ended the waiting, `tired` that it has lasted too long.
#[must_use]
pub fn next(required: &[Required], stopped: Option<&str>, tired: bool) -> Move {
    if let Some(reason) = stopped {
        return Move::Stop(reason.to_owned());
    }
    let failed = required.iter().find_map(|one| one.standing.misfortune().map(|how| (one.task_id, how)));
    if let Some((task_id, how)) = failed {
        return Move::Stop(format!("task {task_id}, which had to go first, {how}"));
    }
    let mut open = required.iter().filter(|one| one.standing == Standing::Open);
    match open.next() {
        None => Move::Go,
        Some(first) if tired => Move::Stop(format!("it waited for task {} for a week", first.task_id)),
        Some(_) => Move::Wait,
    }
}

/// Everything that `application` requires, directly or not, in an order in which each comes after what it requires
/// itself. `edges` are pairs of an application and one that it requires.
///
/// # Errors
/// A circle, as its applications one after the other, when some require each other.
pub fn order(application: i64, edges: &[(i64, i64)]) -> Result<Vec<i64>, Vec<i64>> {
    let mut requires: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    for (from, to) in edges {
        requires.entry(*from).or_default().insert(*to);
    }
    let nothing = BTreeSet::new();
    let of = |one: i64| requires.get(&one).unwrap_or(&nothing).iter().copied();
    let mut done: BTreeSet<i64> = BTreeSet::new();
    let mut ordered = Vec::new();
    // The way from the application to where the walk is, each with what is left to look at.
    let mut way = vec![(application, of(application))];
    while let Some((one, left)) = way.last_mut() {
        let one = *one;
        match left.next() {
            None => {
                way.pop();
                done.insert(one);
                ordered.push(one);
            }
            Some(required) if done.contains(&required) => {}
            Some(required) => {
                let circle = way.iter().position(|(on_the_way, _)| *on_the_way == required);
                if let Some(from) = circle {
                    return Err(way[from..].iter().map(|(on_the_way, _)| *on_the_way).collect());
                }
                way.push((required, of(required)));
            }
        }
    }
    ordered.pop();
    Ok(ordered)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
