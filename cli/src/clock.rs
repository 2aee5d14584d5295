//! The one place where the wall clock is read.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 UTC.
#[expect(clippy::disallowed_methods, reason = "the command line has no other clock to be given")]
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
