//! A deploy path whose folders are open: what is current, what is kept, switch and prune.
//!
//! Invariant: `.drover` belongs to the agent's account, so that what is read from it was written by an agent.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use drover_shared::message::Release;
use nix::sys::stat::SFlag;

use crate::describe;
use crate::release::place::{Place, kind};
use crate::release::{Layout, check_name, manifest};

/// Releases that are listed at most.
const RELEASES_MAX: usize = 1_000;
/// Names looked at below `releases/`.
const NAMES_MAX: usize = 100_000;
/// Length of the name of the previous release, in bytes.
const NAME_BYTES_MAX: u64 = 1_000;

/// The open folders of a deploy path.
#[derive(Debug)]
pub(crate) struct Site {
    layout: Layout,
    root: Place,
    pub(crate) releases: Place,
    pub(crate) notes: Place,
}

/// Name of a release's second folder, in which it is unpacked when its own one serves and is not whole.
#[must_use]
pub(crate) fn second_name(release: &str) -> String {
    format!("{release}.2")
}

/// Name of a release's manifest below `.drover`.
#[must_use]
pub(crate) fn manifest_name(release: &str) -> String {
    format!("{release}.json")
}

impl Site {
    /// Puts the open folders together.
    ///
    /// # Errors
    /// A sentence for people: `.drover` is not the agent's.
    pub(crate) fn new(layout: &Layout, root: Place, releases: Place, notes: Place) -> Result<Self, String> {
        let own = nix::unistd::geteuid().as_raw();
        if !notes.meta().is_ok_and(|meta| meta.uid() == own && meta.mode() & 0o022 == 0) {
            return Err(format!("folder `{}` does not belong to the agent's account alone", layout.notes().display()));
        }
        Ok(Self { layout: layout.clone(), root, releases, notes })
    }

    /// The deploy path in words.
    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Name of the release that `current` points at.
    #[must_use]
    pub(crate) fn current_name(&self) -> Option<String> {
        let target = self.root.link("current").ok()?;
        let absolute = self.layout.root().join(target);
        let name = absolute.strip_prefix(self.layout.releases()).ok()?.to_str()?;
        (!name.contains('/')).then(|| name.to_owned())
    }

    /// Name of the release that was current before the one that is now.
    #[must_use]
    pub(crate) fn previous_name(&self) -> Option<String> {
        use std::io::Read as _;
        let mut name = String::new();
        self.notes.file_at("previous").ok()?.take(NAME_BYTES_MAX).read_to_string(&mut name).ok()?;
        check_name(&name).ok().map(|()| name)
    }

    /// Whether there is a folder of this release.
    #[must_use]
    pub(crate) fn has(&self, release: &str) -> bool {
        self.releases.look(release).is_ok_and(|stat| stat.is_some_and(|stat| kind(&stat) == SFlag::S_IFDIR))
    }

    /// When the release of this folder was unpacked, milliseconds since 1970 UTC; none if it is no release.
    #[must_use]
    pub(crate) fn installed_ms(&self, name: &str) -> Option<i64> {
        let about = manifest::about(&self.notes, &manifest_name(name)).ok().filter(|_| self.has(name));
        about.map(|about| about.installed_ms)
    }

    /// Name of the folder that a release was unpacked into last: its own or its second one.
    #[must_use]
    pub(crate) fn standing(&self, release: &str) -> String {
        let second = second_name(release);
        if self.installed_ms(&second) > self.installed_ms(release) { second } else { release.to_owned() }
    }

    /// Every kept release, the newest first.
    #[must_use]
    pub(crate) fn list(&self) -> Vec<Release> {
        let current = self.current_name();
        let names = self.releases.names(NAMES_MAX).unwrap_or_default();
        let names = names.iter().filter_map(|name| name.to_str()).filter(|name| check_name(name).is_ok());
        let mut releases: Vec<Release> = names
            .filter_map(|name| {
                let about = manifest::about(&self.notes, &manifest_name(name)).ok()?;
                Some(Release {
                    current: current.as_deref() == Some(name),
                    name: name.to_owned(),
                    version: about.version,
                    artifact_digest: about.artifact_digest,
                    tree_digest: about.tree_digest,
                    installed_ms: about.installed_ms,
                })
            })
            .collect();
        releases.sort_by(|a, b| (b.installed_ms, &b.name).cmp(&(a.installed_ms, &a.name)));
        releases.truncate(RELEASES_MAX);
        releases
    }

    /// Makes `current` point at a release, in one rename. Gives a line for people.
    ///
    /// # Errors
    /// A sentence for people; `current` is then as it was.
    pub(crate) fn switch(&self, release: &str) -> Result<String, String> {
        if !self.has(release) {
            return Err(format!("release `{release}` is not on this host"));
        }
        if let Ok(Some(stat)) = self.root.look("current")
            && kind(&stat) != SFlag::S_IFLNK
        {
            let current = self.layout.current();
            return Err(format!("`{}` exists and is not a symbolic link: move it away first", current.display()));
        }
        let before = self.current_name();
        if before.as_deref() == Some(release) {
            return Ok(format!("current is {release} already"));
        }
        self.point_at(release, before.as_deref())
            .map_err(|error| format!("current cannot be replaced: {}", describe(&error)))?;
        Ok(match before {
            Some(before) => format!("current was {before}, is {release}"),
            None => format!("current is {release}"),
        })
    }

    fn point_at(&self, release: &str, before: Option<&str>) -> io::Result<()> {
        if let Some(before) = before {
            self.notes.write_atomic("previous", before.as_bytes(), 0o644)?;
        }
        let temporary = format!(".current-{}", std::process::id());
        self.root.remove(&temporary)?;
        self.root.make_link(&Path::new("releases").join(release), &temporary)?;
        if let Err(error) = self.root.rename(&temporary, "current") {
            let _ = self.root.remove(&temporary);
            return Err(error);
        }
        self.root.sync()
    }

    /// See [`Layout::prune`].
    ///
    /// # Errors
    /// A sentence for people.
    pub(crate) fn prune(
        &self,
        keep: u32,
        lives: &dyn Fn(&str) -> bool,
        stop: &mut dyn FnMut() -> bool,
        lines: &mut Vec<String>,
    ) -> Result<(), String> {
        let previous = self.previous_name();
        let others = self.list().into_iter().filter(|release| !release.current);
        for release in others.skip(keep as usize).filter(|release| Some(&release.name) != previous.as_ref()) {
            self.remove(&release.name, stop)
                .map_err(|error| format!("release `{}` cannot be removed: {}", release.name, describe(&error)))?;
            lines.push(format!("removed {}", release.name));
        }
        for name in self.releases.names(NAMES_MAX).unwrap_or_default() {
            if half_done(&name).is_some_and(|execution| !lives(execution))
                && self.releases.remove_all(&name, stop).is_ok()
            {
                lines.push(format!("removed half-done {}", name.to_string_lossy()));
            }
            if stop() {
                return Err("stopped".to_owned());
            }
        }
        Ok(())
    }

    fn remove(&self, release: &str, stop: &mut dyn FnMut() -> bool) -> io::Result<()> {
        // Renamed first, so that a half-removed folder never looks like a release.
        let doomed = format!(".{release}.tmp-removed");
        self.releases.remove_all(&doomed, stop)?;
        self.releases.rename(release, &doomed)?;
        self.notes.remove(manifest_name(release))?;
        self.releases.remove_all(&doomed, stop)
    }
}

/// The execution that a temporary folder belongs to.
fn half_done(name: &OsStr) -> Option<&str> {
    let (_, execution) = name.to_str()?.strip_prefix('.')?.rsplit_once(".tmp-")?;
    Some(execution)
}
