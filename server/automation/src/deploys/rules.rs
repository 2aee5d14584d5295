//! How a deploy task moves: pure.
//!
//! `golden/transitions/deploy_task.txt` shows every state with every event.

use drover_kernel::{Error, api_words};

api_words! {
    /// Where a deploy task stands.
    pub enum Status {
        /// Waits for a reviewer.
        WaitReview = "wait_review",
        /// May be started.
        Approved = "approved",
        /// Turned down; may be corrected.
        Rejected = "rejected",
        /// Started; sub-tasks may be made.
        Running = "running",
        /// Over.
        Closed = "closed",
    }
}

drover_shared::words! {
    /// What a person can do to a deploy task.
    pub enum Event {
        /// Approve.
        Approve = "approve",
        /// Reject.
        Reject = "reject",
        /// Start.
        Start = "start",
        /// Close.
        Close = "close",
        /// Hand over to another user.
        Delegate = "delegate",
        /// Correct.
        Update = "update",
        /// Make a sub-task.
        MakeSubTask = "make_sub_task",
        /// Take the approval back, because what was approved is not what would run.
        Void = "void",
    }
}

/// Why an event does not apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The state does not allow it.
    State(Status, Event),
    /// A sub-task runs.
    Busy,
    /// The reviewer made the task, and two persons are asked for.
    FourEyes,
}

impl From<Refused> for Error {
    fn from(why: Refused) -> Self {
        match why {
            Refused::State(status, event) => {
                Self::conflict(format!("a deploy task in state {status} does not allow to {event} it"))
            }
            Refused::Busy => Self::conflict("a sub-task of this deploy task is running"),
            Refused::FourEyes => Self::conflict(
                "this application asks for four eyes: somebody else than who wrote the task has to review it",
            ),
        }
    }
}

/// What an event needs to know besides the state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// Whether a sub-task is running.
    pub busy: bool,
    /// Whether the acting user made the task and two persons are asked for.
    pub lacks_second_person: bool,
}

/// The state after an event.
///
/// # Errors
/// [`Refused`] says why the event does not apply.
pub fn step(status: Status, event: Event, facts: Facts) -> Result<Status, Refused> {
    use Status::{Approved, Closed, Rejected, Running, WaitReview};
    match (status, event) {
        (WaitReview, Event::Approve | Event::Reject) if facts.lacks_second_person => Err(Refused::FourEyes),
        (WaitReview, Event::Approve) => Ok(Approved),
        (WaitReview, Event::Reject) => Ok(Rejected),
        (Approved, Event::Start) => Ok(Running),
        (WaitReview | Approved | Rejected | Running, Event::Close) if facts.busy => Err(Refused::Busy),
        (WaitReview | Approved | Rejected | Running, Event::Close) => Ok(Closed),
        (WaitReview | Approved | Running, Event::Delegate) => Ok(status),
        (WaitReview | Rejected, Event::Update) => Ok(WaitReview),
        (Running, Event::MakeSubTask) => Ok(Running),
        (Approved | Running, Event::Void) if facts.busy => Err(Refused::Busy),
        (Approved | Running, Event::Void) => Ok(WaitReview),
        (WaitReview, Event::Start | Event::MakeSubTask | Event::Void)
        | (Approved, Event::Approve | Event::Reject | Event::Update | Event::MakeSubTask)
        | (
            Rejected,
            Event::Approve | Event::Reject | Event::Start | Event::Delegate | Event::MakeSubTask | Event::Void,
        )
        | (Running, Event::Approve | Event::Reject | Event::Start | Event::Update)
        | (
            Closed,
            Event::Approve
            | Event::Reject
            | Event::Start
            | Event::Close
            | Event::Delegate
            | Event::Update
            | Event::MakeSubTask
            | Event::Void,
        ) => Err(Refused::State(status, event)),
    }
}

/// The table of `golden/transitions/deploy_task.txt`.
#[must_use]
pub fn table() -> String {
    use drover_shared::words::Word as _;
    let mut text = String::new();
    for status in Status::ALL {
        for event in Event::ALL {
            let after = match step(*status, *event, Facts::default()) {
                Ok(after) => after.as_str().to_owned(),
                Err(_) => "refused".to_owned(),
            };
            text.push_str(&format!("{:12} + {:14} -> {after}\n", status.as_str(), event.as_str()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use drover_shared::words::Word as _;

    use super::*;

    #[test]
    fn two_persons_and_running_sub_tasks_are_respected() {
        let alone = Facts { lacks_second_person: true, ..Facts::default() };
        assert_eq!(step(Status::WaitReview, Event::Approve, alone), Err(Refused::FourEyes));
        let busy = Facts { busy: true, ..Facts::default() };
        assert_eq!(step(Status::Running, Event::Close, busy), Err(Refused::Busy));
        for event in Event::ALL {
            assert!(step(Status::Closed, *event, Facts::default()).is_err(), "{event}");
        }
    }
}
