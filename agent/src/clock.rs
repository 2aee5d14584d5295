//! The clocks of the host: the one place that reads them.
//!
//! Durations come from the clock that counts since the boot and goes on while the host is suspended: every process of
//! one boot shares it, so that agent and supervisor may compare its values, and the server's time went on meanwhile too.
//! The wall clock only dates things for people.

use nix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of `CLOCK_BOOTTIME`.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970 UTC.
    pub wall_ms: i64,
}

/// Reads both clocks.
#[must_use]
pub fn now() -> Now {
    Now { monotonic_ms: monotonic_ms(), wall_ms: wall_ms() }
}

/// Milliseconds of `CLOCK_BOOTTIME`; 0 on a system without that clock.
#[must_use]
pub fn monotonic_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1000 + u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000_000
    })
}

/// Milliseconds since 1970 UTC; 0 before that.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the clock that everything else takes the time from")]
pub fn wall_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}
