//! The queue's rule by tables and by chance.

use std::collections::BTreeSet;

use super::*;

fn waiter(task_id: i64, priority: i64, wants: &[i64], held: &[i64]) -> Waiter {
    let wants = wants.iter().map(|id| (Object::Instance(*id), held.contains(id))).collect();
    Waiter { task_id, rank: rank(priority, Time::from_millis(task_id)), ready: true, wants }
}

fn beginning(waiters: Vec<Waiter>) -> Vec<i64> {
    line(waiters).iter().filter(|one| one.begins()).map(|one| one.task_id).collect()
}

#[test]
fn who_begins() {
    for (why, waiters, expected) in [
        ("nobody waits", vec![], vec![]),
        ("it is free", vec![waiter(1, 0, &[1], &[])], vec![1]),
        ("it is taken", vec![waiter(1, 0, &[1], &[1])], vec![]),
        ("one of two is taken", vec![waiter(1, 0, &[1, 2], &[2])], vec![]),
        ("the older one first", vec![waiter(2, 0, &[1], &[]), waiter(1, 0, &[1], &[])], vec![1]),
        ("the more urgent one first", vec![waiter(1, 0, &[1], &[]), waiter(2, 5, &[1], &[])], vec![2]),
        ("others meet nobody", vec![waiter(1, 0, &[1], &[1]), waiter(2, 0, &[2], &[1])], vec![2]),
        ("nobody jumps the line", vec![waiter(1, 0, &[1, 2], &[1]), waiter(2, 0, &[2], &[1])], vec![]),
        ("both at once", vec![waiter(1, 0, &[1], &[]), waiter(2, 0, &[2], &[])], vec![1, 2]),
        ("nothing is left to change", vec![waiter(1, 0, &[], &[])], vec![1]),
    ] {
        assert_eq!(beginning(waiters), expected, "{why}");
    }
}

#[test]
fn what_stands_in_no_line_is_passed() {
    let held = Waiter { ready: false, ..waiter(1, 9, &[1], &[]) };
    assert_eq!(beginning(vec![held, waiter(2, 0, &[1], &[])]), [2]);
}

#[test]
fn what_is_in_the_way_is_told() {
    let line = line(vec![waiter(7, 0, &[1, 2], &[1]), waiter(8, 0, &[2, 3], &[1])]);
    assert_eq!(line[0].obstacles, [(Object::Instance(1), Obstacle::Taken)]);
    assert_eq!(line[1].obstacles, [(Object::Instance(2), Obstacle::Wanted(7))]);
}

#[test]
fn an_instance_is_not_the_host_of_the_same_number() {
    let on_host = Waiter { wants: vec![(Object::Host(1), false)], ..waiter(2, 0, &[], &[]) };
    assert_eq!(beginning(vec![waiter(1, 0, &[1], &[1]), on_host]), [2]);
}

/// However urgent those are that come later, who has waited long enough stands before them; and who stands before whom
/// is what their risen priorities say, at any time.
#[test]
fn nobody_is_passed_for_ever() {
    let mut chance = Chance(7);
    let longest = i64::try_from(PASSED_AT_MOST.as_millis()).expect("a span");
    for _ in 0..20_000 {
        let mut priority = || chance.below(2 * PRIORITY_MAX.unsigned_abs() + 1).cast_signed() - PRIORITY_MAX;
        let (one, other) = (priority(), priority());
        let came = Time::from_millis(chance.below(1 << 40).cast_signed());
        let later = came.after(Duration::from_millis(chance.below(2 * longest.unsigned_abs())));
        let is_before = rank(one, came) <= rank(other, later);
        if later.millis() - came.millis() >= longest {
            assert!(is_before, "{one} waits for {other}, which came {} ms later", later.millis() - came.millis());
        }
        let now = later.after(Duration::from_millis(chance.below(1 << 40)));
        let (risen, other_risen) = (risen(one, came, now), risen(other, later, now));
        assert!(if is_before { risen >= other_risen } else { risen <= other_risen }, "{risen} {other_risen}");
    }
    assert_eq!(risen(-100, Time::from_millis(0), Time::from_millis(longest)), 100);
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Tasks come, begin, and end at random: no two ever hold the same, nobody is passed by whom it stands before, and all have
/// had their turn in the end.
#[test]
fn whatever_comes_all_have_their_turn_in_order() {
    for seed in 0..300 {
        let mut chance = Chance(seed);
        let mut waiting: Vec<Waiter> = Vec::new();
        let mut holding: Vec<Waiter> = Vec::new();
        let (mut made, mut ended) = (0, 0);
        for _ in 0..2_000 {
            if made < 60 && chance.below(2) == 0 {
                made += 1;
                let wants: BTreeSet<u64> = (0..=chance.below(4)).map(|_| chance.below(8)).collect();
                let wants = wants.into_iter().map(|id| (Object::Instance(id.cast_signed()), false)).collect();
                let (rank, ready) = (rank(chance.below(3).cast_signed(), Time::from_millis(made)), chance.below(8) > 0);
                waiting.push(Waiter { task_id: made, rank, ready, wants });
            } else if !holding.is_empty() && chance.below(2) == 0 {
                let at = usize::try_from(chance.below(holding.len() as u64)).expect("a place");
                holding.swap_remove(at);
                ended += 1;
            } else if let Some(held) = waiting.iter_mut().find(|one| !one.ready) {
                held.ready = true;
            }
            let taken: BTreeSet<Object> =
                holding.iter().flat_map(|one| one.wants.iter().map(|(object, _)| *object)).collect();
            for one in &mut waiting {
                one.wants.iter_mut().for_each(|(object, held)| *held = taken.contains(object));
            }
            let begins = beginning(waiting.clone());
            let (begun, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|one| begins.contains(&one.task_id));
            waiting = rest;
            for one in &begun {
                let passed = waiting.iter().filter(|other| {
                    other.ready
                        && (other.rank, other.task_id) < (one.rank, one.task_id)
                        && other.wants.iter().any(|(object, _)| one.wants.iter().any(|(own, _)| own == object))
                });
                assert_eq!(passed.count(), 0, "seed {seed}: {} passed somebody", one.task_id);
            }
            holding.extend(begun);
            let all: Vec<Object> = holding.iter().flat_map(|one| one.wants.iter().map(|(object, _)| *object)).collect();
            let distinct: BTreeSet<Object> = all.iter().copied().collect();
            assert_eq!(all.len(), distinct.len(), "seed {seed}: two hold the same");
            assert!(!holding.is_empty() || waiting.iter().all(|one| !one.ready), "seed {seed}: all wait for nobody");
        }
        assert!(waiting.is_empty() && made == 60, "seed {seed}: {} wait for ever", waiting.len());
        assert_eq!(ended + holding.len(), 60);
    }
}

#[test]
fn who_is_stuck() {
    let now = Time::from_millis(1_000);
    let usual = Holder {
        state: State::Running,
        has_turn: true,
        deadline_at: Time::from_millis(2_000),
        held_by: None,
        connected: true,
    };
    let late = Time::from_millis(1_000);
    for (holder, expected) in [
        (usual, None),
        (Holder { state: State::Lost, ..usual }, Some("nobody knows how it ended, and nobody has said")),
        (Holder { connected: false, ..usual }, Some("its host is not connected")),
        (Holder { deadline_at: late, connected: false, ..usual }, Some("its time has run out")),
        (Holder { state: State::Queued, held_by: Some("ada"), ..usual }, Some("ada holds it")),
        (Holder { held_by: Some("ada"), ..usual }, None),
        (Holder { state: State::Queued, has_turn: false, connected: false, deadline_at: late, ..usual }, None),
        (Holder { state: State::Queued, connected: false, ..usual }, Some("its host is not connected")),
    ] {
        assert_eq!(stuck(&holder, now).as_deref(), expected, "{holder:?}");
    }
}
