//! Bugs put in on purpose: each breaks a promise, and the simulation has to find it.
//!
//! Invariant: what is built with optimisation, as everything that is shipped is, has none of them; elsewhere there is one
//! only on a thread that asked for it.

use std::cell::Cell;

crate::words! {
    /// A bug that can be put in.
    pub enum Bug {
        /// An agent that finds an execution whose supervisor died starts it once more.
        LostIsTriedAgain = "lost_is_tried_again",
        /// An agent takes an execution whose supervisor died for one that never began.
        LostIsUnbegun = "lost_is_unbegun",
        /// The server has an agent forget an execution before it has taken its outcome in.
        ForgottenTooEarly = "forgotten_too_early",
        /// The server keeps output that comes again once more.
        OutputDoubled = "output_doubled",
        /// The server believes that it has what the agent has.
        OutputOnTrust = "output_on_trust",
        /// What a dead supervisor left is not ended.
        OrphansLiveOn = "orphans_live_on",
        /// A rollout goes on after one failure more than it allows.
        OneFailureMore = "one_failure_more",
        /// A failure is not heard in the transaction that takes it in.
        FailureUnheard = "failure_unheard",
        /// What was taken out, or cancelled alone, counts as a failure.
        TakenOutIsFailed = "taken_out_is_failed",
        /// What an older session concludes counts.
        NoFence = "no_fence",
    }
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Puts a bug in on this thread, or takes it out.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is in.
#[must_use]
#[inline]
pub fn has(bug: Bug) -> bool {
    cfg!(debug_assertions) && PLANTED.get() == Some(bug)
}
