//! Moments by the calendar and by the clock of a zone: what crontab(5) says, and what happens when clocks change.

use super::*;
use chrono_tz::{Africa, America, Antarctica, Asia, Australia, Europe, Pacific};

fn at(text: &str) -> Time {
    Time::parse(text, chrono_tz::UTC).unwrap()
}

/// The next moments after one, as a clock in the zone shows them.
fn next(cron: &str, zone: Tz, after: &str, count: usize) -> Vec<String> {
    let cron = Cron::parse(cron).unwrap();
    let mut time = at(after);
    let mut shown = Vec::new();
    for _ in 0..count {
        time = cron.next(zone, time).unwrap();
        shown.push(time.show(zone));
    }
    shown
}

#[test]
fn the_five_fields_mean_what_crontab_says() {
    let utc = chrono_tz::UTC;
    let wednesday = "2026-07-01T12:00:00Z";
    for (cron, expected) in [
        ("* * * * *", "2026-07-01T12:01:00+00:00"),
        ("0 * * * *", "2026-07-01T13:00:00+00:00"),
        ("*/15 * * * *", "2026-07-01T12:15:00+00:00"),
        ("30 4 * * *", "2026-07-02T04:30:00+00:00"),
        // 2026-07-05 is a Sunday.
        ("0 0 * * 0", "2026-07-05T00:00:00+00:00"),
        ("0 0 * * 7", "2026-07-05T00:00:00+00:00"),
        ("0 0 * * 1", "2026-07-06T00:00:00+00:00"),
        ("0 0 * * mon", "2026-07-06T00:00:00+00:00"),
        ("0 0 * * 6-7", "2026-07-04T00:00:00+00:00"),
        ("0 0 * * SAT-SUN", "2026-07-04T00:00:00+00:00"),
        ("0 0 * * 1-5", "2026-07-02T00:00:00+00:00"),
        ("0 0 1 * *", "2026-08-01T00:00:00+00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00+00:00"),
        // Either of the two days.
        ("0 0 13 * 5", "2026-07-03T00:00:00+00:00"),
        ("0 0 2 * 5", "2026-07-02T00:00:00+00:00"),
        // Both, if one of them is written with a star.
        ("0 0 */2 * 5", "2026-07-03T00:00:00+00:00"),
        ("@hourly", "2026-07-01T13:00:00+00:00"),
        ("@daily", "2026-07-02T00:00:00+00:00"),
        ("@weekly", "2026-07-05T00:00:00+00:00"),
        ("@monthly", "2026-08-01T00:00:00+00:00"),
        ("@yearly", "2027-01-01T00:00:00+00:00"),
    ] {
        assert_eq!(next(cron, utc, wednesday, 1), [expected], "{cron}");
    }
}

#[test]
fn what_is_wrong_is_said_by_its_field() {
    for (cron, said) in [
        ("", "has 0 fields"),
        ("0 4 * *", "has 4 fields"),
        ("0 0 4 * * *", "has 6 fields"),
        ("60 4 * * *", "the minute `60`"),
        ("x 4 * * *", "the minute `x`"),
        ("0 24 * * *", "the hour `24`"),
        ("0 4 0 * *", "the day of the month `0`"),
        ("0 4 32 * *", "the day of the month `32`"),
        ("0 4 L * *", "the day of the month `L`"),
        ("0 4 ? * *", "the day of the month `?`"),
        ("0 4 * 13 *", "the month `13`"),
        ("0 4 * * 8", "the weekday `8`"),
        ("0 4 * * 5-1", "the weekday `5-1`"),
        ("0 4 * * */0", "the weekday `*/0`"),
        ("0 4 * * funday", "the weekday `funday`"),
        ("*/0 4 * * *", "the minute `*/0`"),
        ("0 0 30 2 *", "never comes"),
        ("@never", "has 1 fields"),
    ] {
        let error = Cron::parse(cron).unwrap_err();
        assert!(error.contains(said), "{cron}: {error}");
    }
}

#[test]
fn in_spring_what_falls_into_the_gap_comes_right_after_it() {
    // 2026-03-29, 02:00 becomes 03:00.
    assert_eq!(
        next("30 2 * * *", Europe::Berlin, "2026-03-28T00:00:00Z", 3),
        ["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    );
    // All that the gap swallows comes once.
    assert_eq!(
        next("*/15 2 * * *", Europe::Berlin, "2026-03-28T01:50:00Z", 2),
        ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]
    );
    assert_eq!(
        next("0 2,3 * * *", Europe::Berlin, "2026-03-29T00:00:00Z", 2),
        ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]
    );
    // 2026-03-08, 02:00 becomes 03:00.
    assert_eq!(
        next("30 2 * * *", America::New_York, "2026-03-08T06:00:00Z", 2),
        ["2026-03-08T03:00:00-04:00", "2026-03-09T02:30:00-04:00"]
    );
    // 2026-10-04, 02:00 becomes 02:30: half an hour.
    assert_eq!(
        next("15 2 * * *", Australia::Lord_Howe, "2026-10-03T12:00:00Z", 2),
        ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"]
    );
    // Midnight itself: 2026-04-24, 00:00 becomes 01:00.
    assert_eq!(
        next("0 0 * * *", Africa::Cairo, "2026-04-23T12:00:00Z", 2),
        ["2026-04-24T01:00:00+03:00", "2026-04-25T00:00:00+03:00"]
    );
    // 2026-03-29, 01:00 becomes 03:00: two hours.
    assert_eq!(
        next("30 1 * * *", Antarctica::Troll, "2026-03-28T12:00:00Z", 2),
        ["2026-03-29T03:00:00+02:00", "2026-03-30T01:30:00+02:00"]
    );
}

#[test]
fn in_autumn_what_the_clock_shows_twice_comes_the_first_time() {
    // 2026-10-25, 03:00 becomes 02:00.
    assert_eq!(
        next("30 2 * * *", Europe::Berlin, "2026-10-24T22:00:00Z", 2),
        ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    );
    // Asked in the second of the two hours.
    assert_eq!(next("45 2 * * *", Europe::Berlin, "2026-10-25T01:30:00Z", 1), ["2026-10-26T02:45:00+01:00"]);
    // 2026-11-01, 02:00 becomes 01:00.
    assert_eq!(
        next("30 1 * * *", America::New_York, "2026-11-01T04:00:00Z", 2),
        ["2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"]
    );
    // 2026-04-05, 02:00 becomes 01:30.
    assert_eq!(
        next("45 1 * * *", Australia::Lord_Howe, "2026-04-04T13:00:00Z", 2),
        ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"]
    );
}

#[test]
fn what_comes_every_hour_follows_time_as_it_passes() {
    assert_eq!(
        next("30 * * * *", Europe::Berlin, "2026-03-29T00:00:00Z", 3),
        ["2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00", "2026-03-29T04:30:00+02:00"]
    );
    assert_eq!(
        next("30 * * * *", Europe::Berlin, "2026-10-25T00:00:00Z", 3),
        ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00", "2026-10-25T03:30:00+01:00"]
    );
    assert_eq!(
        next("0 * * * *", Europe::Berlin, "2026-03-29T00:30:00Z", 2),
        ["2026-03-29T03:00:00+02:00", "2026-03-29T04:00:00+02:00"]
    );
    assert_eq!(
        next("0 * * * *", Europe::Berlin, "2026-10-25T00:30:00Z", 2),
        ["2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00"]
    );
    assert_eq!(
        next("*/15 * * * *", Australia::Lord_Howe, "2026-04-04T14:40:00Z", 4),
        [
            "2026-04-05T01:45:00+11:00",
            "2026-04-05T01:30:00+10:30",
            "2026-04-05T01:45:00+10:30",
            "2026-04-05T02:00:00+10:30"
        ]
    );
}

#[test]
fn zones_without_such_changes_have_none() {
    for zone in [chrono_tz::UTC, Asia::Shanghai, Asia::Kolkata, Pacific::Kiritimati] {
        let cron = Cron::parse("30 2 * * *").unwrap();
        let mut time = at("2026-01-01T00:00:00Z");
        for _ in 0..730 {
            let later = cron.next(zone, time).unwrap();
            assert!(later.millis() - time.millis() <= 86_400_000);
            assert!(later.show(zone).contains("T02:30:00"));
            time = later;
        }
    }
}

/// Every day has exactly one moment of a schedule that names its hour, in every zone and over every change.
#[test]
fn a_day_has_one_moment_in_every_zone() {
    let mut random = 7_u64;
    for zone in chrono_tz::TZ_VARIANTS.iter().copied() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (hour, minute) = ((random >> 33) % 24, (random >> 40) % 60);
        let cron = Cron::parse(&format!("{minute} {hour} * * *")).unwrap();
        let mut time = at("2026-01-01T00:00:00Z");
        let mut days = BTreeSet::new();
        for _ in 0..400 {
            let later = cron.next(zone, time).unwrap();
            assert!(later > time, "{zone} {hour}:{minute}");
            let shown = later.show(zone);
            assert!(days.insert(shown[..10].to_owned()), "{zone} {hour}:{minute}: twice on {shown}");
            time = later;
        }
    }
}

/// What comes every so many minutes does so by the time that passes, in every zone whose clock is put by whole quarters.
#[test]
fn quarters_are_quarters_in_every_zone() {
    let cron = Cron::parse("*/15 * * * *").unwrap();
    for zone in [Europe::Berlin, America::New_York, Australia::Lord_Howe, Antarctica::Troll, Africa::Cairo] {
        let mut time = at("2026-01-01T00:00:00Z");
        while time < at("2027-01-01T00:00:00Z") {
            let later = cron.next(zone, time).unwrap();
            assert_eq!(later.millis() - time.millis(), 900_000, "{zone} after {time:?}");
            time = later;
        }
    }
}
