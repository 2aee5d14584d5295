//! Waiting for what happens by itself, with an end.

use std::time::{Duration, Instant};

/// Longest wait: far longer than anything takes on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Pause between two looks.
const TICK: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, looking again and again.
///
/// # Panics
/// When it does not hold within a minute; `what` says what was waited for.
pub async fn wait_until(what: &str, condition: impl AsyncFnMut() -> bool) {
    wait_within(DEADLINE, what, condition).await;
}

/// As [`wait_until`], for what takes its time.
///
/// # Panics
/// When it does not hold within `longest`.
pub async fn wait_within(longest: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + longest;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(TICK).await;
    }
}
