//! Whether a server was there to act: time in which none was does not count.
//!
//! Invariants: before anything is given up for lack of time, every deadline has moved by the time in which no server could
//! act, be it that none ran or that the database was away; no deadline moves to an earlier time, nor further than the time
//! allowed from the present. One server that is there is enough: whatever another one misses is no absence.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use drover_kernel::{Audit, DEFAULT_ORGANISATION, Kernel, Result, Time, args, caught, sql};

use super::Engine;
use crate::tasks::store as task_store;

/// Pause before it is noted again that this server is there, and before it is tried again.
const BEAT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(1);

/// Silence of a running server from which on it was not there. Less is left to the grace that tasks have anyhow.
const AWAY_MS: i64 = 15_000;

/// Time for agents to come back after an absence: their longest pause between two trials, and what they take to notice.
const RETURN: Duration = Duration::from_secs(60);

/// Tasks in whose output an absence is mentioned.
const TOLD_MAX: usize = 1_000;

/// What this server knows of its own presence.
#[derive(Default)]
pub(super) struct Attendance {
    /// When it last noted that it is there, in milliseconds since 1970; 0 before it began.
    noted_at: AtomicI64,
    /// How often it may have missed something.
    absences: AtomicU64,
}

impl Attendance {
    /// To be taken before reading what [`is_unbroken`](Self::is_unbroken) is asked about.
    pub(super) fn mark(&self) -> u64 {
        self.absences.load(Ordering::SeqCst)
    }

    /// Whether deadlines that were read since the mark was taken are true: this server was there all the time, if it notes
    /// that at all.
    pub(super) fn is_unbroken(&self, mark: u64, now: Time) -> bool {
        let noted_at = self.noted_at.load(Ordering::SeqCst);
        noted_at == 0 || (now.millis().saturating_sub(noted_at) <= AWAY_MS && self.mark() == mark)
    }

    fn note(&self, now: Time) {
        if now.millis().saturating_sub(self.noted_at.load(Ordering::SeqCst)) > AWAY_MS {
            self.absences.fetch_add(1, Ordering::SeqCst);
        }
        self.noted_at.store(now.millis().max(1), Ordering::SeqCst);
    }
}

/// Notes that this server is there, and moves every deadline if none was there for a while. At a server's start any while
/// counts: agents have to find it again.
///
/// # Errors
/// When the database is not available: then nobody is there.
pub async fn attend(kernel: &Kernel) -> Result<()> {
    let engine = kernel.part::<Engine>();
    let starts = engine.attendance.noted_at.load(Ordering::SeqCst) == 0;
    let mut tx = kernel.work().begin(DEFAULT_ORGANISATION).await?;
    // Held until the end: of several servers one moves deadlines.
    let held = sql!("UPDATE attendance SET seen_at = seen_at WHERE one = 1 RETURNING seen_at");
    let seen_at: i64 = tx.value(held, args![]).await?;
    let now = kernel.clock().now();
    let away_ms = if seen_at == 0 { 0 } else { now.millis().saturating_sub(seen_at).max(0) };
    if starts || away_ms > AWAY_MS {
        let moved = task_store::move_deadlines(&mut tx, away_ms, now, RETURN).await?;
        if away_ms > AWAY_MS && !moved.is_empty() {
            tx.after_commit(move |kernel| tell(kernel, moved, away_ms));
        }
    }
    tx.run_one(sql!("UPDATE attendance SET seen_at = $1 WHERE one = 1"), args![now]).await?;
    tx.finish(Audit::none("a server is there")).await?;
    engine.attendance.note(now);
    Ok(())
}

/// Says it in the output of the tasks that were not over.
fn tell(kernel: &Kernel, tasks: Vec<i64>, away_ms: i64) {
    let span = span(away_ms / 1000);
    tracing::warn!(tasks = tasks.len(), "no server was there for {span}: deadlines are moved");
    let owner = kernel.clone();
    kernel.spawn(async move {
        let text = format!("the server was away for {span}: that does not count");
        for task_id in tasks.into_iter().take(TOLD_MAX) {
            owner.part::<Engine>().notice(task_id, owner.clock().now(), &text).await;
        }
    });
}

fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200.. => format!("{} h", seconds / 3_600),
    }
}

/// Notes that this server is there until it stops, once it could do so for the first time: nothing is looked after before.
pub(super) async fn begin(kernel: &Kernel) {
    let stop = kernel.stopping();
    while !stop.is_cancelled() && !is_noted(kernel).await {
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = stop.cancelled() => {}
        }
    }
    let owner = kernel.clone();
    kernel.spawn(async move {
        let mut pause = BEAT;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            pause = if is_noted(&owner).await { BEAT } else { AGAIN };
        }
    });
}

async fn is_noted(kernel: &Kernel) -> bool {
    let noted = caught(attend(kernel)).await;
    noted.inspect_err(|error| tracing::warn!(%error, "cannot note that this server is there, trying again")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_or_during_an_absence_does_not_count() {
        let (attendance, at) = (Attendance::default(), |seconds: i64| Time::from_seconds(1_000 + seconds));
        assert!(attendance.is_unbroken(attendance.mark(), at(0)), "nobody notes it");
        attendance.note(at(0));
        let mark = attendance.mark();
        assert!(attendance.is_unbroken(mark, at(15)));
        assert!(!attendance.is_unbroken(mark, at(16)), "during it");
        attendance.note(at(10));
        assert!(attendance.is_unbroken(mark, at(25)));
        attendance.note(at(100));
        assert!(!attendance.is_unbroken(mark, at(100)), "what was read before it");
        assert!(attendance.is_unbroken(attendance.mark(), at(100)));
        attendance.note(at(50));
        assert!(attendance.is_unbroken(attendance.mark(), at(50)), "a clock that is put back is no absence");
    }

    #[test]
    fn spans_are_told_roughly() {
        assert_eq!([span(16), span(600), span(36_000)], ["16 s", "10 min", "10 h"]);
    }
}
