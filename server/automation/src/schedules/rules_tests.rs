//! Which moments are run, left out and put off: tables, and every moment decided about once.

use super::*;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// A moment: so many minutes past an hour at which nothing is done to any clock.
fn minute(minutes: i64) -> Time {
    Time::from_millis(Time::parse("2026-07-01T12:00:00Z", chrono_tz::UTC).unwrap().millis() + minutes * MINUTE)
}

fn rule(cron: &str, missed: Missed, missed_max: i64, jitter_s: i64) -> Rule {
    Rule { id: 7, cron: Cron::parse(cron).unwrap(), zone: chrono_tz::UTC, missed, missed_max, jitter_s }
}

fn minutes(times: &[Time]) -> Vec<i64> {
    times.iter().map(|time| (time.millis() - minute(0).millis()) / MINUTE).collect()
}

#[test]
fn what_comes_in_time_is_run_whatever_the_policy_is() {
    for missed in [Missed::Skip, Missed::Once, Missed::All] {
        let rule = rule("*/10 * * * *", missed, 5, 0);
        let before = rule.due(minute(10), Time::from_millis(minute(10).millis() - 1));
        assert_eq!((before.run, before.missed, before.next), (vec![], None, Some(minute(10))));
        for late in [0, 1, 59_999, 60_000] {
            let due = rule.due(minute(10), Time::from_millis(minute(10).millis() + late));
            assert_eq!((minutes(&due.run), due.missed, due.next), (vec![10], None, Some(minute(20))), "{late}");
        }
    }
}

#[test]
fn what_was_missed_follows_the_policy() {
    // The server comes back in the 45th minute: 10, 20, 30 and 40 were missed.
    let missed = |first, last, count| Some(MissedMoments { first: minute(first), last: minute(last), count });
    for (policy, most, run, left_out) in [
        (Missed::Skip, 9, vec![], missed(10, 40, 4)),
        (Missed::Once, 9, vec![40], missed(10, 30, 3)),
        (Missed::All, 9, vec![10, 20, 30, 40], None),
        (Missed::All, 4, vec![10, 20, 30, 40], None),
        (Missed::All, 2, vec![30, 40], missed(10, 20, 2)),
    ] {
        let due = rule("*/10 * * * *", policy, most, 0).due(minute(10), minute(45));
        assert_eq!((minutes(&due.run), due.missed, due.next), (run, left_out, Some(minute(50))), "{policy:?} {most}");
    }
    // It comes back when one is in time.
    for (policy, run, left_out) in [
        (Missed::Skip, vec![40], missed(10, 30, 3)),
        (Missed::Once, vec![40], missed(10, 30, 3)),
        (Missed::All, vec![20, 30, 40], missed(10, 10, 1)),
    ] {
        let due = rule("*/10 * * * *", policy, 2, 0).due(minute(10), minute(40));
        assert_eq!((minutes(&due.run), due.missed), (run, left_out), "{policy:?}");
    }
}

#[test]
fn what_was_missed_longer_ago_than_a_week_is_not_looked_for() {
    let rule = rule("* * * * *", Missed::All, 3, 0);
    let year = 365 * 24 * 60;
    let due = rule.due(minute(-year), minute(5));
    assert_eq!(minutes(&due.run), [1, 2, 3, 4, 5], "three of them, and two in time");
    assert!(
        due.missed.is_some_and(|missed| missed.count <= 7 * 24 * 60 && missed.last == minute(0)),
        "{:?}",
        due.missed
    );
}

#[test]
fn a_clock_that_is_put_back_repeats_nothing() {
    let rule = rule("*/10 * * * *", Missed::All, 9, 0);
    let due = rule.due(minute(50), minute(12));
    assert_eq!(due, Due { run: vec![], missed: None, next: Some(minute(50)) });
}

#[test]
fn jitter_is_bounded_spread_and_the_same_each_time() {
    let rule = rule("0 * * * *", Missed::Skip, 0, 600);
    let mut seen = std::collections::BTreeSet::new();
    for hour in 0..200 {
        let moment = minute(hour * 60);
        let at = rule.run_at(moment);
        let later = at.millis() - moment.millis();
        assert!((0..=600_000).contains(&later));
        assert_eq!(at, rule.clone().run_at(moment));
        seen.insert(later / 60_000);
        // Not before it, and then at once.
        assert!(rule.due(moment, Time::from_millis(at.millis() - 1)).run.is_empty());
        assert_eq!(rule.due(moment, at).run, [moment]);
    }
    assert!(seen.len() >= 10, "{seen:?}");
    let other = Rule { id: 8, ..rule.clone() };
    assert!((0..200).any(|hour| other.run_at(minute(hour * 60)) != rule.run_at(minute(hour * 60))));
}

#[test]
fn jitter_has_to_be_shorter_than_what_is_between_two_moments() {
    assert!(rule("*/10 * * * *", Missed::Skip, 0, 599).jitter_fits(minute(0)));
    assert!(!rule("*/10 * * * *", Missed::Skip, 0, 600).jitter_fits(minute(0)));
    assert!(!rule("0,5 * * * *", Missed::Skip, 0, 300).jitter_fits(minute(0)));
}

#[test]
fn a_moment_has_its_turn_when_the_one_before_is_over() {
    for overlap in [Overlap::Skip, Overlap::Queue, Overlap::CancelOld] {
        assert_eq!(turn(overlap, true), Turn::Start);
    }
    assert_eq!(turn(Overlap::Skip, false), Turn::Skip);
    assert_eq!(turn(Overlap::Queue, false), Turn::Wait);
    assert_eq!(turn(Overlap::CancelOld, false), Turn::Cancel);
}

/// However often and whenever somebody looks: each moment is decided about once, in order, and none before its time.
#[test]
fn every_moment_is_decided_about_once() {
    let mut random = 11_u64;
    let mut below = |most: i64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from((random >> 33) % most.unsigned_abs()).unwrap()
    };
    for round in 0..300 {
        let missed = [Missed::Skip, Missed::Once, Missed::All][usize::try_from(below(3)).unwrap()];
        let rule = rule("*/7 * * * *", missed, below(5), below(200));
        let (mut first, mut now) = (minute(0), minute(0));
        let (mut run, mut left_out) = (Vec::new(), 0);
        while now < minute(24 * 60) {
            now = Time::from_millis(now.millis() + below(if round % 2 == 0 { 2 * HOUR } else { MINUTE }));
            let due = rule.due(first, now);
            for moment in &due.run {
                assert!(rule.run_at(*moment) <= now && run.last().is_none_or(|last| last < moment));
                run.push(*moment);
            }
            left_out += due.missed.map_or(0, |missed| missed.count);
            first = due.next.unwrap();
            assert!(rule.run_at(first) > now);
        }
        let all = rule.coming(Time::from_millis(minute(0).millis() - 1), 1000);
        let come = all.iter().filter(|moment| **moment < first).count();
        assert_eq!(run.len() + left_out, come, "{rule:?}");
    }
}

#[test]
fn a_moment_has_an_hour_from_its_turn_on() {
    let since = Time::from_millis(1_000_000);
    let (last, over) = (since.after(TRIED - Duration::from_millis(1)), since.after(TRIED));
    for missed in [Missed::Skip, Missed::Once, Missed::All] {
        for newest in [false, true] {
            assert_eq!(late(missed, since, last, false, newest), Late::Begin);
            assert_eq!(late(missed, since, last, true, newest), Late::Begin);
            assert_eq!(late(missed, since, over, true, newest), Late::Failed, "whatever the policy says");
        }
    }
    let untried = |missed, newest| late(missed, since, over, false, newest);
    assert_eq!([untried(Missed::Skip, true), untried(Missed::Once, false)], [Late::Missed; 2]);
    assert_eq!([untried(Missed::Once, true), untried(Missed::All, false)], [Late::Anew; 2]);
}
