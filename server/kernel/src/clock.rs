//! Time: one newtype for stored moments and one clock that is passed in.
//!
//! Invariant: nothing else in the server reads the wall clock, so a test decides what time it is.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, TimeZone, Utc};

/// A moment: milliseconds since 1970 UTC. Stored as such, shown in the server's zone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(i64);

impl Time {
    /// From milliseconds since 1970 UTC.
    #[must_use]
    pub const fn from_millis(milliseconds: i64) -> Self {
        Self(milliseconds)
    }

    /// From seconds since 1970 UTC.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Milliseconds since 1970 UTC.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970 UTC.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This moment and a span later; the last moment there is if that overflows.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// ISO 8601 with offset in the given zone, to the second: `2018-04-18T15:38:40+08:00`.
    #[must_use]
    pub fn show(self, zone: chrono_tz::Tz) -> String {
        match Utc.timestamp_millis_opt(self.0) {
            chrono::LocalResult::Single(time) => time.with_timezone(&zone).to_rfc3339_opts(SecondsFormat::Secs, false),
            _ => String::new(),
        }
    }

    /// As [`show`](Self::show), to the millisecond: `2018-04-18T15:38:40.123+08:00`.
    #[must_use]
    pub fn show_millis(self, zone: chrono_tz::Tz) -> String {
        match Utc.timestamp_millis_opt(self.0) {
            chrono::LocalResult::Single(time) => {
                time.with_timezone(&zone).to_rfc3339_opts(SecondsFormat::Millis, false)
            }
            _ => String::new(),
        }
    }

    /// Reads ISO 8601 with any offset or `Z`, blanks around it or in place of the `+` of an offset, or a number of
    /// seconds since 1970. A time without offset is taken in the given zone.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn parse(text: &str, zone: chrono_tz::Tz) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<i64>() {
            return Ok(Self::from_seconds(seconds));
        }
        // In a query an unescaped `+` arrives as a blank.
        let repaired = match text.rsplit_once(' ') {
            Some((time, offset)) if time.contains('T') && offset.len() == 5 && offset.contains(':') => {
                format!("{time}+{offset}")
            }
            _ => text.replacen(' ', "T", 1),
        };
        if let Ok(time) = DateTime::parse_from_rfc3339(&repaired) {
            return Ok(Self(time.timestamp_millis()));
        }
        NaiveDateTime::parse_from_str(&repaired, "%Y-%m-%dT%H:%M:%S")
            .ok()
            .and_then(|time| zone.from_local_datetime(&time).earliest())
            .map(|time| Self(time.timestamp_millis()))
            .ok_or_else(|| "a time is ISO 8601, such as 2018-04-18T15:38:40+08:00, or seconds since 1970".to_owned())
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show(chrono_tz::UTC))
    }
}

#[derive(Clone)]
enum Source {
    System,
    Fixed(Arc<AtomicI64>),
}

/// Where the present time comes from.
#[derive(Clone)]
pub struct Clock(Source);

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that moves only by [`advance`](Self::advance), for tests and simulations.
    #[must_use]
    pub fn fixed(start: Time) -> Self {
        Self(Source::Fixed(Arc::new(AtomicI64::new(start.millis()))))
    }

    /// The present time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock that is passed in")]
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::System => Time::from_millis(Utc::now().timestamp_millis()),
            Source::Fixed(millis) => Time::from_millis(millis.load(Ordering::SeqCst)),
        }
    }

    /// Moves a fixed clock forward; the machine's clock stays as it is.
    pub fn advance(&self, span: Duration) {
        if let Source::Fixed(millis) = &self.0 {
            millis.fetch_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_spelling() {
        let expected = Time::from_seconds(1_524_037_120);
        for text in [
            "2018-04-18T15:38:40+08:00",
            " 2018-04-18T07:38:40Z ",
            "1524037120",
            "2018-04-18T15:38:40 08:00",
            "2018-04-18 15:38:40",
        ] {
            assert_eq!(Time::parse(text, chrono_tz::Asia::Shanghai), Ok(expected), "{text}");
        }
        assert!(Time::parse("soon", chrono_tz::UTC).is_err());
        assert_eq!(expected.show(chrono_tz::Asia::Shanghai), "2018-04-18T15:38:40+08:00");
    }
}
