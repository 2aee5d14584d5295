//! How a task goes from phase to phase: pure.
//!
//! The order is: prepare the source, the global hook before, all instances, the global hook after. Invariants: nothing
//! of a later phase starts before the earlier one is over; after a failed first hook no instance starts; the last hook
//! gets its turn whenever the first one succeeded or there is none.

use drover_kernel::api_words;
use drover_shared::words::ExecutionState as State;

api_words! {
    /// What a task is at.
    pub enum Phase {
        /// It goes after other tasks, which have not ended, or what it changes is not free. Nothing of it has started; stored
        /// as [`Phase::Preparing`].
        Waiting = "waiting",
        /// The source is fetched and the plan completed.
        Preparing = "preparing",
        /// The hook that runs once before.
        GlobalPre = "global_pre",
        /// All instances.
        Instances = "instances",
        /// The hook that runs once after.
        GlobalPost = "global_post",
        /// Nothing moves any more.
        Over = "over",
    }
}

api_words! {
    /// How a task ended.
    pub enum Outcome {
        /// All went well.
        Finished = "finished",
        /// Something failed; the executions say what.
        Failed = "failed",
    }
}

api_words! {
    /// What an execution is for within its task.
    pub enum Role {
        /// The hook that runs once before.
        GlobalPre = "global_pre",
        /// One instance.
        Instance = "instance",
        /// The hook that runs once after.
        GlobalPost = "global_post",
    }
}

/// What decides.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Present phase; not [`Phase::Preparing`] before the plan is complete.
    pub phase: Phase,
    /// Every execution.
    pub executions: Vec<(Role, State)>,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait for executions.
    Stay,
    /// Go on to this phase.
    Enter(Phase),
    /// The task is over; executions that never started are cancelled.
    End(Outcome),
}

impl Facts {
    fn states(&self, role: Role) -> impl Iterator<Item = State> {
        self.executions.iter().filter(move |(of, _)| *of == role).map(|(_, state)| *state)
    }

    fn over(&self, role: Role) -> bool {
        self.states(role).all(State::is_over)
    }

    fn succeeded(&self, role: Role) -> bool {
        self.states(role).all(|state| state == State::Succeeded)
    }

    fn has(&self, role: Role) -> bool {
        self.states(role).next().is_some()
    }

    fn outcome(&self) -> Outcome {
        let all = self.executions.iter().all(|(_, state)| *state == State::Succeeded);
        // Where every instance was taken out nothing was done: who goes after this task must not take that for well done.
        if all && self.has(Role::Instance) { Outcome::Finished } else { Outcome::Failed }
    }
}

/// What follows from the facts.
#[must_use]
pub fn next(facts: &Facts) -> Next {
    let after_instances =
        || if facts.has(Role::GlobalPost) { Next::Enter(Phase::GlobalPost) } else { Next::End(facts.outcome()) };
    match facts.phase {
        Phase::Waiting => Next::Stay,
        Phase::Preparing => Next::Enter(first_phase(facts.executions.iter().map(|(role, _)| *role))),
        Phase::GlobalPre if !facts.over(Role::GlobalPre) => Next::Stay,
        Phase::GlobalPre if facts.succeeded(Role::GlobalPre) => Next::Enter(Phase::Instances),
        Phase::GlobalPre => Next::End(Outcome::Failed),
        Phase::Instances if !facts.over(Role::Instance) => Next::Stay,
        Phase::Instances => after_instances(),
        Phase::GlobalPost if !facts.over(Role::GlobalPost) => Next::Stay,
        Phase::GlobalPost => Next::End(facts.outcome()),
        Phase::Over => Next::Stay,
    }
}

/// Where a task begins whose plan is complete.
#[must_use]
pub fn first_phase(mut roles: impl Iterator<Item = Role>) -> Phase {
    if roles.any(|role| role == Role::GlobalPre) { Phase::GlobalPre } else { Phase::Instances }
}

/// The role whose executions may be sent in a phase.
#[must_use]
pub fn active_role(phase: Phase) -> Option<Role> {
    match phase {
        Phase::GlobalPre => Some(Role::GlobalPre),
        Phase::Instances => Some(Role::Instance),
        Phase::GlobalPost => Some(Role::GlobalPost),
        Phase::Waiting | Phase::Preparing | Phase::Over => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(phase: Phase, pre: Option<State>, instances: &[State], post: Option<State>, expected: Next) {
        let mut executions: Vec<(Role, State)> = pre.map(|state| (Role::GlobalPre, state)).into_iter().collect();
        executions.extend(instances.iter().map(|state| (Role::Instance, *state)));
        executions.extend(post.map(|state| (Role::GlobalPost, state)));
        let facts = Facts { phase, executions };
        assert_eq!(next(&facts), expected, "{facts:?}");
    }

    #[test]
    fn phases_follow_each_other() {
        use State::{Cancelled, Failed, Queued, Running, Succeeded, TimedOut};
        let (pre, instances, post) = (Phase::GlobalPre, Phase::Instances, Phase::GlobalPost);
        let preparing = Phase::Preparing;
        check(Phase::Waiting, Some(Queued), &[Queued], None, Next::Stay);
        check(Phase::Waiting, None, &[Cancelled], None, Next::Stay);
        check(preparing, Some(Queued), &[Queued], None, Next::Enter(pre));
        check(preparing, None, &[Queued], None, Next::Enter(instances));
        check(pre, Some(Running), &[Queued], None, Next::Stay);
        check(pre, Some(Succeeded), &[Queued], None, Next::Enter(instances));
        check(pre, Some(TimedOut), &[Queued], Some(Queued), Next::End(Outcome::Failed));
        check(instances, None, &[Succeeded, Running], Some(Queued), Next::Stay);
        check(instances, None, &[Succeeded, Failed], Some(Queued), Next::Enter(post));
        check(instances, None, &[Succeeded, Failed], None, Next::End(Outcome::Failed));
        check(instances, None, &[Succeeded, Succeeded], None, Next::End(Outcome::Finished));
        check(post, Some(Succeeded), &[Succeeded], Some(Succeeded), Next::End(Outcome::Finished));
        check(post, Some(Succeeded), &[Cancelled], Some(Succeeded), Next::End(Outcome::Failed));
        check(instances, Some(Succeeded), &[], None, Next::End(Outcome::Failed));
        check(post, None, &[], Some(Succeeded), Next::End(Outcome::Failed));
    }
}
