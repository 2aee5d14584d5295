//! When a schedule comes: five fields of crontab(5) on the clock of a time zone.
//!
//! The crate `cron` knows the calendar; this module gives its fields the meaning that crontab(5) gives them (weekdays
//! from 0, a Sunday; a day of the month or a weekday when both are given) and says what becomes of a moment when clocks
//! are put forward or back. Invariants: moments grow strictly; one that names its hour comes exactly once a day, also
//! when clocks change: after the gap in spring, and the first of the two in autumn; one of every hour follows time as it
//! passes.

use std::collections::BTreeSet;
use std::str::FromStr as _;

use chrono::{DateTime, LocalResult, NaiveDateTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use cron::Schedule;
use drover_kernel::Time;

/// Moments on the clock that are tried for one that comes: more than two hours of minutes, and changes of a zone.
const TRIES_MAX: usize = 1_000;
/// No zone's clock is put further than this.
const CHANGE_MAX: TimeDelta = TimeDelta::hours(26);

/// Names of the fields, and what an error says of each.
const FIELDS: [(&str, &str); 5] = [
    ("minute", "minutes are 0 to 59"),
    ("hour", "hours are 0 to 23"),
    ("day of the month", "days are 1 to 31"),
    ("month", "months are 1 to 12 or JAN to DEC"),
    ("weekday", "weekdays are 0 to 7, both ends a Sunday, or SUN to SAT"),
];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
/// What crontab(5) has names for.
const NAMED: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// An expression that was understood.
#[derive(Debug, Clone)]
pub(crate) struct Cron {
    /// It comes when any of these does: a day of the month and a weekday are two.
    either: Vec<Schedule>,
    every_hour: bool,
}

impl Cron {
    /// Reads an expression.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let named = NAMED.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, fields)| *fields);
        let fields: Vec<&str> = named.unwrap_or(text).split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!(
                "has {} fields and needs five: minute, hour, day of the month, month and weekday, as in 30 4 * * 1-5; \
                 or one of @hourly, @daily, @weekly, @monthly and @yearly",
                fields.len()
            ));
        };
        let weekdays = weekdays(weekday).ok_or_else(|| not_understood(4, weekday))?;
        for (at, field) in [minute, hour, day, month].into_iter().enumerate() {
            let mut alone = ["0", "*", "*", "*", "*", "*"];
            alone[at + 1] = field;
            let plain = |c: char| c.is_ascii_alphanumeric() || "*/,-".contains(c);
            if !field.chars().all(plain) || Schedule::from_str(&alone.join(" ")).is_err() {
                return Err(not_understood(at, field));
            }
        }
        let schedule = |day: &str, weekday: &str| {
            Schedule::from_str(&format!("0 {minute} {hour} {day} {month} {weekday}")).map_err(|error| error.to_string())
        };
        let either = if starts_with_star(day) || starts_with_star(weekday) {
            vec![schedule(day, &weekdays)?]
        } else {
            vec![schedule(day, "*")?, schedule("*", &weekdays)?]
        };
        let hours = Schedule::from_str(&format!("0 0 {hour} * * *")).map_err(|error| error.to_string())?;
        let every_hour = (0..24).all(|hour| cron::TimeUnitSpec::includes(hours.hours(), hour));
        let made = Self { either, every_hour };
        match made.on_the_clock_after(DateTime::UNIX_EPOCH.naive_utc() + TimeDelta::days(20_000)) {
            Some(_) => Ok(made),
            None => Err("names a day that never comes".to_owned()),
        }
    }

    /// The first moment after this one.
    pub(crate) fn next(&self, zone: Tz, after: Time) -> Option<Time> {
        let after = DateTime::from_timestamp_millis(after.millis())?;
        let next =
            if self.every_hour { self.next_as_time_passes(zone, after) } else { self.next_of_a_day(zone, after) };
        next.map(|time| Time::from_millis(time.timestamp_millis()))
    }

    /// The first moment after this one on a clock that nobody changes.
    fn on_the_clock_after(&self, clock: NaiveDateTime) -> Option<NaiveDateTime> {
        let after = clock.and_utc();
        self.either.iter().filter_map(|schedule| schedule.after(&after).next()).map(|time| time.naive_utc()).min()
    }

    /// Every moment of the clock counts, as often as the clock shows it.
    fn next_as_time_passes(&self, zone: Tz, mut after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        for _ in 0..TRIES_MAX {
            let local = shown(zone, after);
            let next = after + (self.on_the_clock_after(local)? - local);
            if shown(zone, next) - shown(zone, after) == next - after {
                return Some(next);
            }
            // The clock is changed before that: what comes is looked for anew from there on.
            let offset = shown(zone, after) - after.naive_utc();
            let change = first(after, next, |time| shown(zone, time) - time.naive_utc() != offset);
            let just_before = change - TimeDelta::milliseconds(1);
            let on_change = shown(zone, change);
            if self.on_the_clock_after(on_change - TimeDelta::milliseconds(1)) == Some(on_change) && change > after {
                return Some(change);
            }
            after = if just_before > after { change } else { after + TimeDelta::milliseconds(1) };
        }
        None
    }

    /// Every moment of the clock counts once, whether the clock shows it never, once or twice.
    fn next_of_a_day(&self, zone: Tz, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut clock = shown(zone, after);
        for _ in 0..TRIES_MAX {
            clock = self.on_the_clock_after(clock)?;
            let time = match zone.from_local_datetime(&clock) {
                LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => time.with_timezone(&Utc),
                LocalResult::None => {
                    let around = clock.and_utc();
                    first(around - CHANGE_MAX, around + CHANGE_MAX, |time| shown(zone, time) > clock)
                }
            };
            if time > after {
                return Some(time);
            }
        }
        None
    }
}

fn not_understood(at: usize, field: &str) -> String {
    let (name, what) = FIELDS[at];
    let field: String = field.chars().take(100).collect();
    format!("the {name} `{field}` is not understood: {what}, as in 5, 0-5, 1,3 or */2")
}

fn starts_with_star(field: &str) -> bool {
    field.starts_with('*')
}

/// What a clock in the zone shows.
fn shown(zone: Tz, time: DateTime<Utc>) -> NaiveDateTime {
    time.with_timezone(&zone).naive_local()
}

/// The first second after `from`, and not after `to`, of which something is so that stays so.
fn first(from: DateTime<Utc>, to: DateTime<Utc>, is_so: impl Fn(DateTime<Utc>) -> bool) -> DateTime<Utc> {
    let (mut before, mut so) = (from.timestamp(), to.timestamp());
    while before + 1 < so {
        let middle = before + (so - before) / 2;
        match DateTime::from_timestamp(middle, 0) {
            Some(time) if is_so(time) => so = middle,
            _ => before = middle,
        }
    }
    DateTime::from_timestamp(so, 0).unwrap_or(to)
}

/// A weekday field of crontab(5) in the words of the crate `cron`, whose numbers begin with 1 for a Sunday.
fn weekdays(field: &str) -> Option<String> {
    let day = |text: &str| match text.parse::<usize>() {
        Ok(number) => (text.len() == 1 && number <= 7).then_some(number),
        Err(_) => WEEKDAYS.iter().position(|name| text.eq_ignore_ascii_case(name)),
    };
    let mut days = BTreeSet::new();
    for part in field.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse::<usize>().ok().filter(|step| (1..=7).contains(step))?),
            None => (part, 1),
        };
        let (least, most) = match range.split_once('-') {
            _ if range == "*" => (0, 6),
            Some((least, most)) => {
                let (least, most) = (day(least)?, day(most)?);
                // FRI-SUN ends with the Sunday that follows.
                (least, if most == 0 && least > 0 { 7 } else { most })
            }
            None if part.contains('/') => return None,
            None => (day(range)?, day(range)?),
        };
        if least > most {
            return None;
        }
        days.extend((least..=most).step_by(step).map(|day| day % 7));
    }
    if days.len() == 7 {
        return Some("*".to_owned());
    }
    Some(days.iter().map(|day| (day + 1).to_string()).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
#[path = "cron_tests.rs"]
mod tests;
