//! Which moments of a schedule are run, and what happens when one comes while the one before is at work.
//!
//! Pure: the present time is passed in. Invariants: a moment is decided about once; no moment is run before it comes; of
//! those that nobody was there for as many are run as the policy says, at most `missed_max`, the newest; moments are run
//! in their order, and within [`TRIED`] of their turn or not at all.

use std::time::Duration;

use chrono_tz::Tz;
use drover_kernel::{Time, api_words};

use super::cron::Cron;

/// So long after its time a moment counts as missed.
pub(crate) const GRACE: Duration = Duration::from_secs(60);
/// So long after its turn came a moment is tried.
pub(crate) const TRIED: Duration = Duration::from_secs(3_600);
/// Moments that were missed longer ago are not made up for, and not counted.
const LOOK_BACK_MS: i64 = 7 * 24 * 3600 * 1000;
/// Most moments of a schedule that are made up for.
pub(crate) const MISSED_MAX: i64 = 100;
/// Most moments of a schedule that wait for the one before.
pub(crate) const WAITING_MAX: i64 = 10;

api_words! {
    /// What becomes of moments at which no server was there.
    pub enum Missed {
        /// They are left out.
        Skip = "skip",
        /// The newest is made up for, unless one comes right now.
        Once = "once",
        /// Each is made up for, up to a number.
        All = "all",
    }
}

api_words! {
    /// What becomes of a moment that comes while what the one before began is not over.
    pub enum Overlap {
        /// It is left out.
        Skip = "skip",
        /// It waits.
        Queue = "queue",
        /// The one before is cancelled, and the moment waits for its end.
        CancelOld = "cancel_old",
    }
}

api_words! {
    /// What became of a moment.
    pub enum RunState {
        /// It is to begin.
        Waiting = "waiting",
        /// Its task was made.
        Started = "started",
        /// It was left out, because of the one before or because somebody held the schedule.
        Skipped = "skipped",
        /// No server was there.
        Missed = "missed",
        /// It could not begin.
        Failed = "failed",
    }
}

/// What is decided about the moments of one schedule.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub id: i64,
    pub cron: Cron,
    pub zone: Tz,
    pub missed: Missed,
    pub missed_max: i64,
    pub jitter_s: i64,
}

/// Moments that nobody was there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MissedMoments {
    pub first: Time,
    pub last: Time,
    pub count: usize,
}

/// Moments that have come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Due {
    /// To be run, in their order.
    pub run: Vec<Time>,
    /// Left out.
    pub missed: Option<MissedMoments>,
    /// The first that has not come.
    pub next: Option<Time>,
}

impl Rule {
    /// When a moment is run: up to the jitter later, and always the same time later.
    pub(crate) fn run_at(&self, moment: Time) -> Time {
        let span = u64::try_from(self.jitter_s).unwrap_or(0).saturating_mul(1000);
        if span == 0 {
            return moment;
        }
        let mixed = mix(mix(self.id.unsigned_abs()) ^ moment.millis().unsigned_abs());
        moment.after(Duration::from_millis(mixed % (span + 1)))
    }

    /// What has come of the moments from `first` on.
    pub(crate) fn due(&self, first: Time, now: Time) -> Due {
        let oldest = Time::from_millis(now.millis() - LOOK_BACK_MS);
        let mut next = if first < oldest { self.cron.next(self.zone, oldest) } else { Some(first) };
        let (mut late, mut run) = (Vec::new(), Vec::new());
        while let Some(moment) = next.filter(|moment| self.run_at(*moment) <= now) {
            let in_time = now <= self.run_at(moment).after(GRACE);
            if in_time {
                run.push(moment)
            } else {
                late.push(moment)
            }
            next = self.cron.next(self.zone, moment);
        }
        let made_up = match self.missed {
            Missed::Skip => 0,
            Missed::Once => usize::from(run.is_empty()),
            Missed::All => usize::try_from(self.missed_max).unwrap_or(0),
        };
        let made_up = late.split_off(late.len() - made_up.min(late.len()));
        let missed = match (late.first(), late.last()) {
            (Some(first), Some(last)) => Some(MissedMoments { first: *first, last: *last, count: late.len() }),
            _ => None,
        };
        run.splice(0..0, made_up);
        Due { run, missed, next }
    }

    /// The first moments after one.
    pub(crate) fn coming(&self, mut after: Time, count: usize) -> Vec<Time> {
        let mut coming = Vec::with_capacity(count);
        while let Some(next) = (coming.len() < count).then(|| self.cron.next(self.zone, after)).flatten() {
            coming.push(next);
            after = next;
        }
        coming
    }

    /// Whether the jitter keeps each moment before the next one.
    pub(crate) fn jitter_fits(&self, now: Time) -> bool {
        let coming = self.coming(now, 100);
        coming.windows(2).all(|pair| pair[1].millis() - pair[0].millis() > self.jitter_s.saturating_mul(1000))
    }
}

/// SplitMix64's finalizer: spreads whatever it is given.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What to do with a moment whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Start,
    Wait,
    Skip,
    /// Cancel the one before, then wait.
    Cancel,
}

/// The turn of a moment; `former_over` says whether what the one before began is over.
pub(crate) fn turn(overlap: Overlap, former_over: bool) -> Turn {
    match overlap {
        _ if former_over => Turn::Start,
        Overlap::Skip => Turn::Skip,
        Overlap::Queue => Turn::Wait,
        Overlap::CancelOld => Turn::Cancel,
    }
}

/// What to do with a moment whose turn it has been for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// It is in time.
    Begin,
    /// It is made up for, and has its time anew.
    Anew,
    /// No server was there in time, and it is left out.
    Missed,
    /// It was tried for long enough.
    Failed,
}

/// Whether a moment may begin whose turn it is since a time; `tried` says whether anybody tried, `newest` whether no later
/// one waits.
pub(crate) fn late(missed: Missed, since: Time, now: Time, tried: bool, newest: bool) -> Late {
    match missed {
        _ if now < since.after(TRIED) => Late::Begin,
        _ if tried => Late::Failed,
        Missed::Once if newest => Late::Anew,
        Missed::All => Late::Anew,
        Missed::Skip | Missed::Once => Late::Missed,
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
