//! Whether the database takes changes: a small one is made again and again, and the last success counts.
//!
//! A database that only reads looks well to whoever only reads: an SQLite file that somebody has locked, one whose disk is
//! full, a PostgreSQL that may not write. Invariant: asking waits for nothing and writes nothing, however often it is done.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::audit::Audit;
use crate::kernel::Kernel;
use crate::{DEFAULT_ORGANISATION, Result, args, sql};

/// Pause between two changes, and after one that failed.
const BEAT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(1);

/// Time without a success after which it is told. One change waits for no longer than others do, which may be longer.
const SILENCE: Duration = Duration::from_secs(15);

/// What is known of the last changes.
#[derive(Debug, Default)]
pub(crate) struct Pulse(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    succeeded: Instant,
    failing: bool,
}

impl Pulse {
    fn note(&self, now: Instant, succeeded: bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *known {
            Some(known) if !succeeded => known.failing = true,
            // What was never tried has not failed yet.
            _ => *known = Some(Known { succeeded: now, failing: !succeeded }),
        }
    }

    /// Whether the database takes changes, once it is tried.
    ///
    /// # Errors
    /// A sentence for people.
    pub(crate) fn check(&self, now: Instant) -> std::result::Result<(), String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = &*known else { return Ok(()) };
        let silence = now.saturating_duration_since(known.succeeded);
        if known.failing || silence > SILENCE {
            return Err(format!("the database takes no changes, the last one was {} s ago", silence.as_secs()));
        }
        Ok(())
    }
}

/// Tries until the kernel stops whether the database takes changes.
pub async fn beat(kernel: Kernel) {
    let stop = kernel.stopping();
    kernel.pulse().note(Instant::now(), true);
    while !stop.is_cancelled() {
        let outcome = change(&kernel).await;
        kernel.pulse().note(Instant::now(), outcome.is_ok());
        let pause = if outcome.is_ok() { BEAT } else { AGAIN };
        if let Err(error) = outcome {
            tracing::warn!(%error, "the database takes no changes");
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Writes what stands there already: both engines carry it out as any other change.
async fn change(kernel: &Kernel) -> Result<()> {
    let mut tx = kernel.work().begin(DEFAULT_ORGANISATION).await?;
    tx.run(sql!("UPDATE schema_migrations SET applied_at = applied_at WHERE name = '0001_kernel'"), args![]).await?;
    tx.finish(Audit::none("a sign of life")).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_at_once_and_silence_after_a_while() {
        let (pulse, start) = (Pulse::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pulse.check(after(1000)), Ok(()), "nobody tries");
        pulse.note(start, true);
        assert_eq!(pulse.check(after(15)), Ok(()));
        assert!(pulse.check(after(16)).is_err_and(|said| said.contains("16 s ago")), "one that hangs");
        pulse.note(after(20), true);
        assert_eq!(pulse.check(after(20)), Ok(()));
        pulse.note(after(21), false);
        assert!(pulse.check(after(21)).is_err());
        pulse.note(after(22), true);
        assert_eq!(pulse.check(after(22)), Ok(()));
    }
}
