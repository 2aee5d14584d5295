//! Panics of background work: one piece of it must not end the loop that would do all others.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::{Error, Result};

/// Does something, and gives a panic in it as an error. What it shares with others must not be left half changed by a
/// panic, which holds for whatever is in the database and behind locks.
///
/// # Errors
/// What it says itself, or [`Error::Internal`].
pub async fn caught<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::internal(format!("a panic: {}", text.unwrap_or_else(|| "without a word".to_owned()))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_this_piece_of_work() {
        assert!(matches!(caught(async { Ok(7) }).await, Ok(7)));
        let outcome: Result<()> = caught(async { panic!("no {}", "room") }).await;
        assert!(matches!(outcome, Err(Error::Internal(detail)) if detail.contains("no room")));
    }
}
