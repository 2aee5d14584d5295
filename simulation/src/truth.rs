//! What really happened, written down by those who did it, outside of everything that is being tried.

use std::collections::BTreeMap;

use drover_agent::spool::Key;
use drover_shared::words::ExecutionState as State;

/// What became of one attempt of one execution on its host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deed {
    /// How often each hook was started.
    pub starts: BTreeMap<String, u32>,
    /// What its hooks said, in order.
    pub said: Vec<u8>,
    /// How much of it was in the spool when its supervisor died; none when it did not.
    pub kept: Option<usize>,
    /// How its supervisor said that it ended.
    pub ended: Option<State>,
    /// Why nobody may know how it ended.
    pub unknown: Option<&'static str>,
    /// Whether processes were left on purpose.
    pub left_running: bool,
}

/// Everything that happened on all hosts.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// By attempt.
    pub deeds: BTreeMap<Key, Deed>,
}

impl Truth {
    /// What is known of an attempt.
    pub(crate) fn of(&mut self, key: &Key) -> &mut Deed {
        self.deeds.entry(key.clone()).or_default()
    }
}
