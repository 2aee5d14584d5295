//! Rollouts played through with random rules, outcomes and orders.

use proptest::prelude::*;

use super::*;
use crate::executions::rules::{Event, step};
use crate::tasks::rules::{self, Next, Outcome, Phase, Role};

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
        auto_revert in any::<bool>(),
    ) -> Rollout {
        let promote_after = canary.and(promote_after);
        Rollout { canary, promote_after, batch, growth, pause, max_failures, auto_revert, ..Rollout::default() }
    }
}

/// What a host really did with what it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    /// It began nothing.
    Nothing,
    /// It is at work.
    Works,
    /// It ended, and serves the new version if that went well.
    Ended { well: bool, touched: bool },
}

struct One {
    target: Target,
    sent: bool,
    truth: Truth,
    /// Whether a person gave it to a later task since then.
    changed_since: bool,
    has_former: bool,
}

/// A rollout as engine, hosts and persons play it, by the states of executions and the phases of tasks. What the hosts did
/// is kept apart from what is known of it.
struct Play {
    rollout: Rollout,
    admitted: i64,
    promoted: bool,
    held_at: Option<Time>,
    stop_reason: Option<String>,
    now: Time,
    all: Vec<One>,
    /// Whether there were more failures than allowed at any time.
    enough: bool,
}

impl Play {
    fn new(rollout: Rollout, instances: usize) -> Self {
        let target = |batch| Target { batch, state: State::Queued, excluded: false, finished_at: None };
        let one = |(batch, number): (i64, usize)| One {
            target: target(batch),
            sent: false,
            truth: Truth::Nothing,
            changed_since: false,
            has_former: number % 7 != 3,
        };
        let all = rollout.batches(instances).into_iter().zip(0..).map(one).collect();
        let now = Time::from_seconds(1_000);
        let (held_at, stop_reason) = (None, None);
        Self { rollout, admitted: 0, promoted: false, held_at, stop_reason, now, all, enough: false }
    }

    fn facts(&self) -> Facts<'_> {
        let targets = self.all.iter().map(|one| one.target).collect();
        let Self { rollout, admitted, promoted, held_at, now, .. } = self;
        Facts { rollout, admitted: *admitted, promoted: *promoted, held_at: *held_at, targets, now: *now }
    }

    /// Counted anew here, whatever the rule says.
    fn too_many_failed(&self) -> bool {
        let failed = |one: &&One| {
            let Target { state, excluded, .. } = one.target;
            !excluded && !matches!(state, State::Queued | State::Dispatched | State::Running | State::Succeeded)
        };
        let count = self.all.iter().filter(failed).count();
        let allowed = match self.rollout.max_failures {
            None => usize::MAX,
            Some(Share::Count(count)) => count as usize,
            Some(Share::Percent(percent)) => self.all.len() * percent as usize / 100,
        };
        let canary = self.rollout.canary.is_some() && self.all.iter().filter(failed).any(|one| one.target.batch == 0);
        canary || count > allowed
    }

    /// Something happens to an execution; false when its state does not allow that. A failure is settled at once.
    fn happens(&mut self, index: usize, event: Event) -> bool {
        let target = &mut self.all[index].target;
        let Ok(after) = step(target.state, event) else { return false };
        target.finished_at = after.is_over().then_some(self.now);
        target.state = after;
        if after.is_over() && after != State::Succeeded {
            self.enough |= self.stop_reason.is_none() && self.too_many_failed();
            self.settle();
        }
        true
    }

    fn settle(&mut self) {
        if self.stop_reason.is_none()
            && let Move::Stop(reason) = next(&self.facts())
        {
            self.stop(reason);
        }
    }

    /// What the engine does: nothing that has not been sent ever will be.
    fn stop(&mut self, reason: String) {
        self.stop_reason.get_or_insert(reason);
        for one in self.all.iter_mut().filter(|one| one.target.state == State::Queued) {
            one.target.state = State::Cancelled;
            one.target.finished_at = Some(self.now);
        }
    }

    /// The engine looks at it.
    fn turn(&mut self) {
        if self.stop_reason.is_some() {
            return;
        }
        match next(&self.facts()) {
            Move::Stop(reason) => self.stop(reason),
            Move::Admit(batch) => {
                let before = |one: &&One| one.target.batch < batch;
                assert!(self.held_at.is_none() && !self.enough, "a batch has its turn that must not");
                assert!(self.all.iter().filter(before).all(|one| one.target.state.is_over()), "it does not wait");
                assert!(batch > self.admitted);
                self.admitted = batch;
            }
            Move::AwaitPromotion => assert!(self.admitted == 0 && !self.promoted && self.held_at.is_none()),
            Move::Until(time) => assert!(time > self.now),
            Move::Held => assert!(self.held_at.is_some()),
            Move::Stay => {}
        }
    }

    /// Some execution for which this holds.
    fn some(&self, choice: usize, wanted: impl Fn(&One) -> bool) -> Option<usize> {
        let found: Vec<usize> = (0..self.all.len()).filter(|index| wanted(&self.all[*index])).collect();
        found.get(choice % found.len().max(1)).copied()
    }

    fn send(&mut self, choice: usize) {
        let (admitted, is_held) = (self.admitted, self.held_at.is_some());
        let waits = |one: &One| one.target.state == State::Queued && one.target.batch <= admitted && !is_held;
        if let Some(index) = self.some(choice, waits) {
            assert!(!self.enough && self.stop_reason.is_none(), "a target starts after more failures than allowed");
            assert!(!self.all[index].target.excluded, "what was taken out starts");
            assert!(self.happens(index, Event::Sent));
            self.all[index].sent = true;
        }
    }

    /// A host begins, turns the order down, or ends what it does. What it says may come after it was given up.
    fn host(&mut self, choice: usize, how: u8) {
        let sent = |one: &One| one.sent && !matches!(one.truth, Truth::Ended { .. });
        let Some(index) = self.some(choice, sent) else { return };
        let one = &mut self.all[index];
        let event = match (one.truth, how) {
            (Truth::Works, 0..60) => {
                one.truth = Truth::Ended { well: false, touched: how >= 20 };
                [Event::Failed, Event::TimedOut, Event::Cancelled][usize::from(how % 3)]
            }
            (Truth::Works, _) => {
                one.truth = Truth::Ended { well: true, touched: true };
                Event::Succeeded
            }
            (_, 0..20) => {
                one.truth = Truth::Ended { well: false, touched: false };
                Event::Rejected
            }
            _ => {
                one.truth = Truth::Works;
                Event::Accepted
            }
        };
        let was_lost = self.all[index].target.state == State::Lost;
        assert!(self.happens(index, event) || was_lost && event == Event::Rejected);
    }

    fn person(&mut self, choice: usize, how: u8) {
        match how {
            0..30 => self.held_at = self.held_at.xor(Some(self.now)),
            30..55 => {
                let over = |one: &One| one.target.batch > 0 || one.target.excluded || one.target.state.is_over();
                self.promoted |= self.rollout.canary.is_some() && self.admitted == 0 && self.all.iter().all(over);
            }
            55..85 => {
                let left = self.all.iter().filter(|one| !one.target.excluded).count();
                let waits = |one: &One| one.target.state == State::Queued;
                if let Some(index) = self.some(choice, waits).filter(|_| left > 1) {
                    // As the API does it: in one transaction with the mark that it was taken out.
                    self.all[index].target.excluded = true;
                    assert!(self.happens(index, Event::Cancelled));
                }
            }
            85..95 => {
                let index = choice % self.all.len();
                self.all[index].changed_since |= self.all[index].target.state.is_over();
            }
            _ => self.stop("refused".to_owned()),
        }
    }

    fn play(&mut self, (what, choice, how): (u8, usize, u8)) {
        match what {
            0..35 => self.send(choice),
            35..75 => self.host(choice, how),
            75..80 => self.person(choice, how),
            80..85 => {
                let out = |one: &One| matches!(one.target.state, State::Dispatched | State::Running);
                if let Some(index) = self.some(choice, out) {
                    assert!(self.happens(index, if how < 50 { Event::Lost } else { Event::Unknown }));
                }
            }
            85..90 => self.now = self.now.after(Duration::from_secs(u64::from(how))),
            _ => self.turn(),
        }
    }

    fn is_over(&self) -> bool {
        let all = self.all.iter().filter(|one| !one.target.excluded).map(|one| (Role::Instance, one.target.state));
        let facts = rules::Facts { phase: Phase::Instances, executions: all.collect() };
        match rules::next(&facts) {
            Next::Stay => false,
            Next::End(outcome) => {
                let well = facts.executions.iter().all(|(_, state)| *state == State::Succeeded);
                assert_eq!(outcome == Outcome::Finished, well);
                true
            }
            Next::Enter(_) => panic!("there is no other phase"),
        }
    }

    /// What taking it back does to an instance, if its rule asks for that.
    fn way_back(&self, one: &One) -> Option<WayBack> {
        let asked = self.rollout.auto_revert && self.stop_reason.is_some();
        let Target { state, excluded, .. } = one.target;
        let touched = state == State::Lost || matches!(one.truth, Truth::Ended { touched: true, .. });
        let One { changed_since, has_former, .. } = *one;
        let standing = Standing { state, touched, status: Some(InstanceStatus::Running), changed_since, has_former };
        (asked && one.sent && !excluded).then(|| way_back(standing))
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
    fn after_the_allowed_failures_nothing_starts_and_all_that_started_ended_as_is_told(
        rollout in rollout(),
        instances in 1_usize..40,
        choices in proptest::collection::vec((0_u8..100, any::<usize>(), 0_u8..100), 600),
    ) {
        prop_assert!(rollout.check().is_ok());
        let mut play = Play::new(rollout, instances);
        for choice in choices.iter().copied() {
            play.play(choice);
        }
        // In the end everybody does what is due: somebody lets go, hosts answer, a canary that went well is promoted.
        let mut choices = choices.into_iter().cycle();
        for _ in 0..2_000 {
            if play.is_over() {
                break;
            }
            play.held_at = None;
            play.promoted |= next(&play.facts()) == Move::AwaitPromotion;
            play.now = play.now.after(Duration::from_secs(10));
            let (_, choice, how) = choices.next().unwrap_or((0, 0, 99));
            play.turn();
            play.send(choice);
            play.host(choice, how);
        }
        prop_assert!(play.is_over(), "it does not end");
        for one in &play.all {
            let Target { state, excluded, .. } = one.target;
            let back = play.way_back(one);
            prop_assert!(!excluded || !one.sent);
            let is_true = match (one.sent, state, one.truth) {
                (false, State::Cancelled, Truth::Nothing) => true,
                (true, State::Succeeded, Truth::Ended { well, .. }) => well,
                (true, State::Failed | State::TimedOut | State::Cancelled, Truth::Ended { well, .. }) => !well,
                (true, State::Lost, _) => true,
                _ => false,
            };
            prop_assert!(is_true, "it is told as {state}, and is {:?}", one.truth);
            // What was touched goes back or is named, and nothing else is touched once more.
            let is_right = match (back, one.truth, state) {
                (None, ..) => true,
                (Some(WayBack::Untouched), Truth::Nothing | Truth::Ended { touched: false, .. }, state) => {
                    state != State::Lost
                }
                (Some(WayBack::Goes), Truth::Ended { touched, .. }, state) => {
                    touched && state != State::Lost && one.has_former && !one.changed_since
                }
                (Some(WayBack::Left(_)), _, state) => state == State::Lost || !one.has_former || one.changed_since,
                _ => false,
            };
            prop_assert!(is_right, "{back:?} of what is told as {state} and is {:?}", one.truth);
        }
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
fn batches_grow_as_they_are_told_to() {
    let cases: [(Rollout, usize, &[i64]); 7] = [
        (Rollout { batch: Share::Count(1), growth: 200, ..Rollout::default() }, 10, &[0, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
        // Halves count as whole instances: 2, 3, 5, 8.
        (
            Rollout { batch: Share::Count(2), growth: 150, ..Rollout::default() },
            18,
            &[0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3],
        ),
        // A canary is no batch that the next one grows from.
        (
            Rollout { canary: Some(Share::Count(3)), batch: Share::Count(1), growth: 300, ..Rollout::default() },
            8,
            &[0, 0, 0, 1, 2, 2, 2, 3],
        ),
        (
            Rollout { canary: Some(Share::Percent(10)), batch: Share::Percent(25), ..Rollout::default() },
            10,
            &[0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
        ),
        (
            Rollout { batch: Share::Percent(1), growth: 1_000, ..Rollout::default() },
            12,
            &[0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2],
        ),
        (Rollout { batch: Share::Count(2), ..Rollout::default() }, 5, &[0, 0, 1, 1, 2]),
        (Rollout::default(), 3, &[0, 0, 0]),
    ];
    for (rollout, instances, expected) in cases {
        assert_eq!(rollout.batches(instances), expected, "{rollout:?}");
    }
}

#[test]
fn a_pause_begins_when_the_last_of_a_batch_has_ended() {
    use State::{Failed, Queued, Running, Succeeded};
    let rollout = Rollout { batch: Share::Count(2), pause: 60, max_failures: None, ..Rollout::default() };
    let mut over = facts(&rollout, 0, &[(0, Failed), (0, Succeeded), (1, Queued)], 159);
    over.targets[0].finished_at = Some(Time::from_seconds(40));
    assert_eq!(next(&over), Move::Until(Time::from_seconds(160)));
    over.now = Time::from_seconds(160);
    assert_eq!(next(&over), Move::Admit(1));
    over.targets[0].state = Running;
    assert_eq!(next(&over), Move::Stay, "one of the batch is still at work");
    // The wait for a promotion is none: whoever promotes has waited.
    let canary = Rollout { canary: Some(Share::Count(1)), ..rollout };
    let promoted = Facts { promoted: true, ..facts(&canary, 0, &[(0, Succeeded), (1, Queued), (2, Queued)], 101) };
    assert_eq!(next(&promoted), Move::Admit(1));
    assert_eq!(
        next(&Facts { targets: targets(&[(0, Succeeded), (1, Succeeded), (2, Queued)]), admitted: 1, ..promoted }),
        Move::Until(Time::from_seconds(160))
    );
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
