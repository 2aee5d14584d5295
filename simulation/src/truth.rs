//! What really happened, written down by those who did it, outside of everything that is being tried.

use std::collections::BTreeMap;

use drover_agent::spool::Key;
use drover_shared::Digest;
use drover_shared::message::Release;
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
    /// Whether a loss of power took some of it: the server may have more than was kept.
    pub torn: bool,
    /// What only one at a time may change, once it has begun.
    pub object: Option<String>,
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
    /// Those that began while somebody else was at the same thing.
    pub together: Vec<String>,
    /// What is installed, by instance.
    releases: BTreeMap<i64, Vec<Release>>,
}

impl Truth {
    /// An attempt begins to change something that only one at a time may change.
    pub(crate) fn begins(&mut self, key: &Key, object: String, processes: &[Key]) {
        let is_at_work = |of: &Key, deed: &Deed| match deed.unknown {
            None => deed.ended.is_none(),
            Some(_) => processes.contains(of),
        };
        let is_rival =
            |of: &Key, deed: &Deed| of != key && deed.object.as_ref() == Some(&object) && is_at_work(of, deed);
        if let Some((other, _)) = self.deeds.iter().find(|(of, deed)| is_rival(of, deed)) {
            self.together.push(format!("{key} began while {other} was at {object}"));
        }
        self.of(key).object = Some(object);
    }

    /// What an instance has once a version was put in place there, or was not.
    pub(crate) fn serves(&mut self, instance_id: i64, version: &str, well: bool) -> Vec<Release> {
        let releases = self.releases.entry(instance_id).or_default();
        if well {
            releases.retain(|one| one.version != version);
            releases.iter_mut().for_each(|one| one.current = false);
            let digest = Digest::of(version.as_bytes());
            let (name, version) = (version.to_owned(), version.to_owned());
            let (artifact_digest, tree_digest) = (digest, digest);
            releases.push(Release { name, version, artifact_digest, tree_digest, current: true, installed_ms: 0 });
        }
        releases.clone()
    }

    /// What is known of an attempt.
    pub(crate) fn of(&mut self, key: &Key) -> &mut Deed {
        self.deeds.entry(key.clone()).or_default()
    }
}
