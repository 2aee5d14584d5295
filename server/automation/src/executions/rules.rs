//! How an execution moves: pure.
//!
//! `golden/transitions/execution.txt` shows every state with every event. Invariant: a state that is over never moves,
//! but for `lost`, which says that nobody knows: the host's own word about how it ended takes its place, once.

use drover_kernel::api_words;
use drover_shared::words::ExecutionState as State;

drover_shared::words! {
    /// What can happen to an execution.
    pub enum Event {
        /// It is sent to the agent of its host.
        Sent = "sent",
        /// The agent says that it holds the order.
        Accepted = "accepted",
        /// The agent does not take the order; nothing was started.
        Rejected = "rejected",
        /// The agent has no room for the order at the time; nothing was started.
        PutBack = "put_back",
        /// The agent reports success.
        Succeeded = "succeeded",
        /// The agent reports a failed step.
        Failed = "failed",
        /// The agent reports that the time ran out, or it ran out before the order was sent.
        TimedOut = "timed_out",
        /// The agent reports that it was stopped, or it was stopped before it was sent.
        Cancelled = "cancelled",
        /// Nobody is there to say how it ended.
        Lost = "lost",
        /// The agent reports that the host cannot say how it ended.
        Unknown = "unknown",
        /// A person takes away what it has, whatever its host does.
        Broken = "broken",
    }
}

api_words! {
    /// What a person says of an execution of which nobody knows how it ended.
    pub enum Answer {
        /// It is tried again.
        Retry = "retry",
        /// It did what it was to do.
        Done = "done",
        /// It is as it is.
        GiveUp = "give_up",
    }
}

/// Why an event does not apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is over.
    Over,
    /// It has not been sent.
    NotSent,
    /// It was sent before: the agent answers for it.
    AlreadySent,
}

/// The state after an event.
///
/// # Errors
/// [`Refused`] says why the event does not apply.
pub fn step(state: State, event: Event) -> Result<State, Refused> {
    match (state, event) {
        (State::Queued, Event::Sent) => Ok(State::Dispatched),
        (State::Queued, Event::TimedOut) => Ok(State::TimedOut),
        (State::Queued, Event::Cancelled) => Ok(State::Cancelled),
        (
            State::Queued,
            Event::Accepted
            | Event::Rejected
            | Event::PutBack
            | Event::Succeeded
            | Event::Failed
            | Event::Lost
            | Event::Unknown
            | Event::Broken,
        ) => Err(Refused::NotSent),
        // The agent may finish before its acceptance is read, and a repeated acceptance changes nothing.
        (State::Dispatched | State::Running, Event::Accepted) => Ok(State::Running),
        (State::Dispatched, Event::Rejected) => Ok(State::Failed),
        (State::Dispatched, Event::PutBack) => Ok(State::Queued),
        // An agent that has accepted cannot turn the order down.
        (State::Running, Event::Rejected | Event::PutBack) => Err(Refused::AlreadySent),
        (State::Dispatched | State::Running, Event::Succeeded) => Ok(State::Succeeded),
        (State::Dispatched | State::Running, Event::Failed) => Ok(State::Failed),
        (State::Dispatched | State::Running, Event::TimedOut) => Ok(State::TimedOut),
        (State::Dispatched | State::Running, Event::Cancelled) => Ok(State::Cancelled),
        (State::Dispatched | State::Running, Event::Lost | Event::Unknown | Event::Broken) => Ok(State::Lost),
        (State::Dispatched | State::Running, Event::Sent) => Err(Refused::AlreadySent),
        // The host is back. What it still does or has done is the truth; that it goes on changes nothing yet.
        (State::Lost, Event::Accepted) => Ok(State::Lost),
        // What the host knows besides is kept.
        (State::Lost, Event::Unknown) => Ok(State::Lost),
        (State::Lost, Event::Succeeded) => Ok(State::Succeeded),
        (State::Lost, Event::Failed) => Ok(State::Failed),
        (State::Lost, Event::TimedOut) => Ok(State::TimedOut),
        (State::Lost, Event::Cancelled) => Ok(State::Cancelled),
        (State::Lost, Event::Sent | Event::Rejected | Event::PutBack | Event::Lost | Event::Broken)
        | (State::Succeeded | State::Failed | State::TimedOut | State::Cancelled, _) => Err(Refused::Over),
    }
}

/// The event that a reported final state stands for.
#[must_use]
pub fn reported(state: State) -> Option<Event> {
    match state {
        State::Succeeded => Some(Event::Succeeded),
        State::Failed => Some(Event::Failed),
        State::TimedOut => Some(Event::TimedOut),
        State::Cancelled => Some(Event::Cancelled),
        State::Lost => Some(Event::Unknown),
        State::Queued | State::Dispatched | State::Running => None,
    }
}

/// The table of `golden/transitions/execution.txt`.
#[must_use]
pub fn table() -> String {
    use drover_shared::words::Word as _;
    let mut text = String::new();
    for state in State::ALL {
        for event in Event::ALL {
            let after = match step(*state, *event) {
                Ok(after) => after.as_str().to_owned(),
                Err(why) => format!("refused: {why:?}"),
            };
            text.push_str(&format!("{:12} + {:10} -> {after}\n", state.as_str(), event.as_str()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use drover_shared::words::Word as _;

    use super::*;

    #[test]
    fn what_is_over_stays_over() {
        for state in State::ALL.iter().filter(|state| state.is_over() && **state != State::Lost) {
            for event in Event::ALL {
                assert_eq!(step(*state, *event), Err(Refused::Over), "{state} {event}");
            }
        }
    }

    #[test]
    fn only_the_host_says_how_a_lost_execution_ended() {
        for state in State::ALL {
            let Some(event) = reported(*state) else { continue };
            assert_eq!(step(State::Lost, event), Ok(*state));
        }
        assert_eq!(step(State::Lost, Event::Accepted), Ok(State::Lost), "that it still runs is no end");
        assert_eq!(step(State::Lost, Event::Lost), Err(Refused::Over), "to give it up again says nothing new");
        assert_eq!(step(State::Lost, Event::Sent), Err(Refused::Over), "it is not started again by itself");
    }

    #[test]
    fn only_a_queued_execution_is_sent() {
        for state in State::ALL {
            assert_eq!(step(*state, Event::Sent).is_ok(), *state == State::Queued, "{state}");
        }
    }
}
