//! The clocks of the host: the one place that reads them.
//!
//! Durations come from the clock that counts since the boot and goes on while the host is suspended: every process of
//! one boot shares it, so that agent and supervisor may compare its values, and the server's time went on meanwhile too.
//! The wall clock only dates things for people.

use std::cell::RefCell;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use tokio::task::JoinError;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of `CLOCK_BOOTTIME`.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970 UTC.
    pub wall_ms: i64,
}

thread_local! {
    /// What the clocks of this thread's simulated host show, and which boot of it this is.
    static TOLD: RefCell<Option<(Now, String)>> = const { RefCell::new(None) };
}

/// For simulations: from now on this thread is on a host whose clocks show this, in this boot.
pub fn tell(now: Now, boot_id: &str) {
    TOLD.set(Some((now, boot_id.to_owned())));
}

fn told<T>(read: impl FnOnce(&(Now, String)) -> T) -> Option<T> {
    TOLD.with_borrow(|told| told.as_ref().map(read))
}

/// Does something that blocks: on a thread for such work, or at once on a simulated host, where nothing else may happen
/// beside it.
///
/// # Errors
/// It panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if told(|_| ()).is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// The id of this boot of the host; empty when the system does not say.
#[must_use]
pub fn boot_id() -> String {
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    told(|(_, boot_id)| boot_id.clone()).unwrap_or_else(read)
}

/// Reads both clocks.
#[must_use]
pub fn now() -> Now {
    Now { monotonic_ms: monotonic_ms(), wall_ms: wall_ms() }
}

/// Milliseconds of `CLOCK_BOOTTIME`; 0 on a system without that clock.
#[must_use]
pub fn monotonic_ms() -> u64 {
    if let Some(told) = told(|(now, _)| now.monotonic_ms) {
        return told;
    }
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1000 + u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000_000
    })
}

/// Milliseconds since 1970 UTC; 0 before that.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the clock that everything else takes the time from")]
pub fn wall_ms() -> i64 {
    if let Some(told) = told(|(now, _)| now.wall_ms) {
        return told;
    }
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}
