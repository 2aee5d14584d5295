//! How an instance moves between its states.
//!
//! Invariant: a change begins only from rest and ends only where one is under way, so at most one is under way.

use drover_kernel::api_words;

api_words! {
    /// What an instance is doing.
    pub enum InstanceStatus {
        /// On its way down and up again.
        Restarting = "restarting",
        /// Up.
        Running = "running",
        /// Down.
        Stopped = "stopped",
        /// A new version is being installed.
        Updating = "updating",
        /// A kept version is being switched back to.
        Reverting = "reverting",
    }
}

/// What happens to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A change begins; the state says which.
    Begin(InstanceStatus),
    /// The change under way is over and leaves the instance in this state.
    Finish(InstanceStatus),
}

/// Why an instance does not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A change is under way.
    Busy,
    /// No change is under way.
    Idle,
    /// The event does not lead to such a state.
    Nonsense,
}

impl InstanceStatus {
    /// Whether a change is under way.
    #[must_use]
    pub fn is_busy(self) -> bool {
        match self {
            Self::Restarting | Self::Updating | Self::Reverting => true,
            Self::Running | Self::Stopped => false,
        }
    }
}

/// The state after an event.
///
/// # Errors
/// Why it does not move.
pub fn step(status: InstanceStatus, event: Event) -> Result<InstanceStatus, Refused> {
    match event {
        Event::Begin(to) if !to.is_busy() => Err(Refused::Nonsense),
        Event::Finish(to) if to.is_busy() => Err(Refused::Nonsense),
        Event::Begin(_) if status.is_busy() => Err(Refused::Busy),
        Event::Finish(_) if !status.is_busy() => Err(Refused::Idle),
        Event::Begin(to) | Event::Finish(to) => Ok(to),
    }
}

/// The states from which an event is possible.
#[must_use]
pub fn sources(event: Event) -> Vec<InstanceStatus> {
    use drover_shared::words::Word as _;
    InstanceStatus::ALL.iter().copied().filter(|status| step(*status, event).is_ok()).collect()
}

#[cfg(test)]
mod tests {
    use drover_shared::words::Word as _;

    use super::*;

    /// Every state with every event: where it leads, or why not.
    #[test]
    fn every_move() {
        let mut table = String::new();
        for status in InstanceStatus::ALL {
            for (name, event) in [("begin", Event::Begin as fn(_) -> _), ("finish", Event::Finish)] {
                for to in InstanceStatus::ALL {
                    let outcome = match step(*status, event(*to)) {
                        Ok(next) => next.to_string(),
                        Err(Refused::Nonsense) => continue,
                        Err(why) => format!("{why:?}"),
                    };
                    table.push_str(&format!("{status} {name} {to}: {outcome}\n"));
                }
            }
        }
        let mut expected = String::new();
        for status in ["restarting", "running", "stopped", "updating", "reverting"] {
            let rests = ["running", "stopped"].contains(&status);
            for to in ["restarting", "updating", "reverting"] {
                expected.push_str(&format!("{status} begin {to}: {}\n", if rests { to } else { "Busy" }));
            }
            for to in ["running", "stopped"] {
                expected.push_str(&format!("{status} finish {to}: {}\n", if rests { "Idle" } else { to }));
            }
        }
        assert_eq!(table, expected);
    }

    #[test]
    fn nonsense_is_possible_from_nowhere() {
        assert!(sources(Event::Begin(InstanceStatus::Running)).is_empty());
        assert!(sources(Event::Finish(InstanceStatus::Updating)).is_empty());
        assert_eq!(sources(Event::Begin(InstanceStatus::Updating)), [InstanceStatus::Running, InstanceStatus::Stopped]);
    }
}
