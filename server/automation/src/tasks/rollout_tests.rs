//! Rollouts played through with random rules, outcomes and orders.

use proptest::prelude::*;

use super::*;

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![(1_u32..30).prop_map(Share::Count), (1_u32..=100).prop_map(Share::Percent)]
}

prop_compose! {
    fn rollout()(
        canary in proptest::option::of(share()),
        promote_after in proptest::option::of(0_u32..100),
        batch in share(),
        growth in 100_u32..400,
        pause in 0_u32..100,
        max_failures in proptest::option::of(prop_oneof![
            (0_u32..10).prop_map(Share::Count),
            (0_u32..=100).prop_map(Share::Percent),
        ]),
    ) -> Rollout {
        let promote_after = canary.and(promote_after);
        Rollout { canary, promote_after, batch, growth, pause, max_failures, ..Rollout::default() }
    }
}

/// A rollout as the engine plays it: what is admitted starts and ends in any order.
struct Play {
    rollout: Rollout,
    admitted: i64,
    promoted: bool,
    now: Time,
    targets: Vec<Target>,
    started: usize,
}

impl Play {
    fn new(rollout: Rollout, instances: usize) -> Self {
        let target = |batch| Target { batch, state: State::Queued, excluded: false, finished_at: None };
        let targets = rollout.batches(instances).into_iter().map(target).collect();
        Self { rollout, admitted: 0, promoted: false, now: Time::from_seconds(1_000), targets, started: 0 }
    }

    fn next(&self) -> Move {
        let (admitted, promoted, now) = (self.admitted, self.promoted, self.now);
        let targets = self.targets.clone();
        next(&Facts { rollout: &self.rollout, admitted, promoted, held_at: None, targets, now })
    }

    fn failures(&self) -> usize {
        self.targets.iter().filter(|target| target.failed()).count()
    }

    fn may_start(&self) -> bool {
        let canary_failed =
            self.rollout.canary.is_some() && self.targets.iter().any(|target| target.batch == 0 && target.failed());
        !canary_failed && self.failures() <= self.rollout.allowed(self.targets.len())
    }

    /// Starts or ends one target that may; none is left to do so when this is false.
    fn work(&mut self, choice: usize, well: bool) -> bool {
        let admitted = self.admitted;
        let open = |target: &&mut Target| target.batch <= admitted && !target.state.is_over();
        let count = self.targets.iter_mut().filter(open).count();
        if count == 0 {
            return false;
        }
        let may_start = self.may_start();
        let now = self.now;
        let Some(target) = self.targets.iter_mut().filter(open).nth(choice % count) else { return false };
        if target.state == State::Queued {
            assert!(may_start, "a target starts after more failures than allowed");
            target.state = State::Running;
            self.started += 1;
        } else {
            target.state = if well { State::Succeeded } else { State::Failed };
            target.finished_at = Some(now);
        }
        true
    }
}

proptest! {
    #[test]
    fn every_instance_has_a_batch_and_batches_follow_each_other(rollout in rollout(), instances in 1_usize..300) {
        let batches = rollout.batches(instances);
        prop_assert_eq!(batches.len(), instances);
        prop_assert_eq!(batches[0], 0);
        prop_assert!(batches.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1));
    }

    #[test]
    fn after_the_allowed_failures_nothing_starts_and_every_rollout_ends(
        rollout in rollout(),
        instances in 1_usize..60,
        choices in proptest::collection::vec((any::<usize>(), proptest::bool::weighted(0.8)), 400),
    ) {
        prop_assert!(rollout.check().is_ok());
        let mut play = Play::new(rollout, instances);
        let mut stopped = false;
        let mut choices = choices.into_iter().cycle();
        for _ in 0..2_000 {
            match play.next() {
                Move::Stop(_) => {
                    prop_assert!(!play.may_start());
                    // What the engine does: nothing that has not started ever will.
                    let now = play.now;
                    for target in play.targets.iter_mut().filter(|target| target.state == State::Queued) {
                        target.state = State::Cancelled;
                        target.finished_at = Some(now);
                    }
                    stopped = true;
                }
                Move::Admit(batch) => {
                    prop_assert!(!stopped && play.may_start());
                    prop_assert!(play.targets.iter().all(|one| one.batch > play.admitted || one.state.is_over()));
                    prop_assert_eq!(batch, play.admitted + 1);
                    play.admitted = batch;
                }
                Move::AwaitPromotion => {
                    prop_assert!(play.admitted == 0 && play.rollout.promote_after.is_none());
                    play.promoted = true;
                }
                Move::Until(time) => {
                    prop_assert!(time > play.now);
                    play.now = time;
                }
                Move::Held => prop_assert!(false, "nobody holds it"),
                Move::Stay => {}
            }
            let (choice, well) = choices.next().unwrap_or((0, true));
            play.work(choice, well);
            if play.targets.iter().all(|target| target.state.is_over()) {
                break;
            }
        }
        prop_assert!(play.targets.iter().all(|target| target.state.is_over()), "it does not end");
        prop_assert!(stopped != play.may_start() || play.started == instances);
    }
}

fn targets(states: &[(i64, State)]) -> Vec<Target> {
    let target = |(batch, state): &(i64, State)| Target {
        batch: *batch,
        state: *state,
        excluded: false,
        finished_at: state.is_over().then(|| Time::from_seconds(100)),
    };
    states.iter().map(target).collect()
}

fn facts<'a>(rollout: &'a Rollout, admitted: i64, states: &[(i64, State)], now: i64) -> Facts<'a> {
    let now = Time::from_seconds(now);
    Facts { rollout, admitted, promoted: false, held_at: None, targets: targets(states), now }
}

#[test]
fn a_canary_waits_for_a_person_or_for_its_time() {
    use State::{Failed, Queued, Running, Succeeded};
    let mut rollout = Rollout { canary: Some(Share::Count(1)), ..Rollout::default() };
    let good = [(0, Succeeded), (1, Queued), (1, Queued)];
    assert_eq!(next(&facts(&rollout, 0, &[(0, Running), (1, Queued)], 100)), Move::Stay);
    assert_eq!(next(&facts(&rollout, 0, &good, 101)), Move::AwaitPromotion);
    assert_eq!(next(&Facts { promoted: true, ..facts(&rollout, 0, &good, 101) }), Move::Admit(1));
    assert!(matches!(next(&facts(&rollout, 0, &good, 100 + 8 * 86_400)), Move::Stop(_)));
    rollout.promote_after = Some(60);
    assert_eq!(next(&facts(&rollout, 0, &good, 101)), Move::Until(Time::from_seconds(160)));
    assert_eq!(next(&facts(&rollout, 0, &good, 160)), Move::Admit(1));
    rollout.max_failures = None;
    let bad = facts(&rollout, 0, &[(0, Failed), (1, Queued)], 200);
    assert_eq!(next(&bad), Move::Stop("a canary failed".to_owned()));
}

#[test]
fn what_a_person_took_out_is_no_failure() {
    let rollout = Rollout { batch: Share::Count(1), ..Rollout::default() };
    let mut facts = facts(&rollout, 1, &[(0, State::Succeeded), (1, State::Cancelled), (2, State::Queued)], 200);
    assert!(matches!(next(&facts), Move::Stop(_)));
    facts.targets[1].excluded = true;
    assert_eq!(next(&facts), Move::Admit(2));
    facts.held_at = Some(Time::from_seconds(150));
    assert_eq!(next(&facts), Move::Held);
}

#[test]
fn wrong_members_are_named() {
    let wrong = |text: &str| {
        let rollout: Rollout = serde_json::from_str(text).map_err(|error| error.to_string())?;
        rollout.check().map_err(|error| error.to_string())
    };
    for (text, reason) in [
        (r#"{"batch": 0}"#, "rollout.batch"),
        (r#"{"batch": "101%"}"#, "rollout.batch"),
        (r#"{"batch": "many"}"#, "25%"),
        (r#"{"canary": 0}"#, "rollout.canary"),
        (r#"{"promote_after": 5}"#, "rollout.promote_after"),
        (r#"{"growth": 99}"#, "rollout.growth"),
        (r#"{"pause": 86401}"#, "rollout.pause"),
        (r#"{"health": {}}"#, "rollout.health"),
        (r#"{"health": {"tcp": "x:1", "interval": 0}}"#, "rollout.health.interval"),
        (r#"{"speed": 1}"#, "speed"),
    ] {
        let told = wrong(text).expect_err(text);
        assert!(told.contains(reason), "{text}: {told}");
    }
    assert_eq!(wrong(r#"{"canary": 1, "batch": "25%", "max_failures": null, "health": {"tcp": "x:1"}}"#), Ok(()));
}
