//! Channels whose output or outcome cannot be kept at the time: when they are asked for again.
//!
//! Invariant: what is held back is asked for once, after a pause that grows from time to time until something is kept.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// The first pause and the longest: once there is room again nobody waits for longer than that. What is sent in vain is a
/// window of each channel at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));

struct Channel<T> {
    what: T,
    pause: Duration,
    /// When it is asked for; none when it was, and nothing was kept or refused since.
    due: Option<Instant>,
}

/// Channels that are held back, each with what it takes to ask for the rest. Bounded by the channels of a session.
pub(super) struct HeldBack<T>(BTreeMap<u32, Channel<T>>);

impl<T> Default for HeldBack<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Clone> HeldBack<T> {
    /// Something of this channel could not be kept. True when it was not held back already.
    pub(super) fn refused(&mut self, channel: u32, what: T, now: Instant) -> bool {
        let known = self.0.get(&channel);
        if known.is_some_and(|known| known.due.is_some()) {
            return false;
        }
        let pause = known.map_or(PAUSE.0, |known| (known.pause * 2).min(PAUSE.1));
        self.0.insert(channel, Channel { what, pause, due: Some(now + pause) });
        true
    }

    /// Something of this channel was kept.
    pub(super) fn kept(&mut self, channel: u32) {
        self.0.remove(&channel);
    }

    /// Whether nothing of this channel is asked for until its pause is over.
    pub(super) fn is_held(&self, channel: u32) -> bool {
        self.0.get(&channel).is_some_and(|known| known.due.is_some())
    }

    /// When [`HeldBack::due`] has something.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|known| known.due).min()
    }

    /// Channels that are to be asked for now, once each.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(u32, T)> {
        let due = self.0.iter_mut().filter(|(_, known)| known.due.is_some_and(|at| at <= now));
        due.map(|(channel, known)| {
            known.due = None;
            (*channel, known.what.clone())
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_asked_for_after_growing_pauses_until_it_is_kept() {
        let mut held = HeldBack::default();
        let mut now = Instant::now();
        for seconds in [1, 2, 4, 4] {
            assert!(held.refused(7, "rest", now));
            assert!(!held.refused(7, "rest", now), "once is enough");
            assert!(held.is_held(7));
            let pause = Duration::from_secs(seconds);
            assert_eq!(held.next(), Some(now + pause));
            assert!(held.due(now + pause / 2).is_empty());
            now += pause;
            assert_eq!(held.due(now), [(7, "rest")]);
            assert!(!held.is_held(7) && held.next().is_none() && held.due(now).is_empty());
        }
        held.kept(7);
        assert!(held.refused(7, "rest", now));
        assert_eq!(held.next(), Some(now + PAUSE.0), "it begins from the start");
        assert!(!held.is_held(8), "others go on");
    }
}
