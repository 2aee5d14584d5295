//! Releases under a deploy path.
//!
//! | path | meaning |
//! |---|---|
//! | `releases/<release>/` | one unpacked version |
//! | `releases/<release>.2/` | the same, unpacked while the folder above was in use and not whole |
//! | `current` | symbolic link to the release in use, replaced by one rename |
//! | `shared/` | survives every version |
//! | `.drover/<release>.json` | manifest of a release; a folder without one is no release |
//! | `.drover/previous` | name of the release that `current` pointed at before |
//!
//! The application's account may own all of it but `.drover`, and may change any of it while the agent, often root,
//! works there. Invariants: `current` always points at a whole release or does not exist; neither the current nor the
//! previous release is ever removed, and the current one is never exchanged; whatever the agent reads, writes or removes here it reaches through descriptors
//! ([`place`]), never through a link that somebody else could have put in the way.

mod archive;
pub mod inspect;
pub(crate) mod kept;
pub mod manifest;
mod place;
mod shared;
mod site;
pub mod unpack;
pub mod verify;

use std::io;
use std::path::{Path, PathBuf};

use drover_shared::message::Release;
use drover_shared::order::{Entry, Step};
use drover_shared::words::Action;

use crate::accounts::Account;
use crate::describe;
use place::Place;
pub(crate) use site::Site;

/// The places under a deploy path.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

/// The release that an entry installs or returns to.
#[must_use]
pub fn of_entry(entry: &Entry) -> Option<&str> {
    entry.steps.iter().find_map(|step| match step {
        Step::Unpack { release, .. } | Step::Verify { release, .. } | Step::Switch { release } => {
            Some(release.as_str())
        }
        Step::Script { .. } | Step::Fetch { .. } | Step::Health { .. } | Step::Prune { .. } => None,
    })
}

/// Whether this may be the name of a release's folder.
///
/// # Errors
/// A sentence for people.
pub fn check_name(release: &str) -> Result<(), String> {
    let fine = !release.is_empty()
        && release.len() <= 200
        && !release.starts_with('.')
        && release.chars().all(|letter| letter != '/' && !letter.is_control());
    if fine { Ok(()) } else { Err(format!("`{release}` cannot be the name of a release's folder")) }
}

/// Whether this may be a deploy path.
///
/// # Errors
/// A sentence for people.
pub fn check_path(deploy_path: &str) -> Result<(), String> {
    if deploy_path.starts_with('/') && deploy_path.split('/').all(|part| part != "..") && !deploy_path.contains('\0') {
        return Ok(());
    }
    Err(format!("deploy path `{deploy_path}` is not an absolute path without `..`"))
}

impl Layout {
    /// The layout under `deploy_path`.
    #[must_use]
    pub fn new(deploy_path: impl AsRef<Path>) -> Self {
        Self { root: deploy_path.as_ref().to_owned() }
    }

    /// The deploy path itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of all releases.
    #[must_use]
    pub fn releases(&self) -> PathBuf {
        self.root.join("releases")
    }

    /// The folder of one release.
    #[must_use]
    pub fn release(&self, name: &str) -> PathBuf {
        self.releases().join(name)
    }

    /// The link to the release in use.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    /// What survives every version.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// The folder with the agent's own notes.
    #[must_use]
    pub fn notes(&self) -> PathBuf {
        self.root.join(".drover")
    }

    /// Name of the release that `current` points at.
    #[must_use]
    pub fn current_name(&self) -> Option<String> {
        self.open().ok()??.current_name()
    }

    /// Name of the release that was current before the one that is now.
    #[must_use]
    pub fn previous_name(&self) -> Option<String> {
        self.open().ok()??.previous_name()
    }

    /// Name of the folder that holds the release which an entry installs or returns to.
    #[must_use]
    pub fn folder_of(&self, entry: &Entry) -> Option<String> {
        let release = of_entry(entry)?;
        let unpacks = entry.steps.iter().any(|step| matches!(step, Step::Unpack { .. }));
        // A release that is kept is gone back to by the name of its folder.
        if entry.action == Action::Revert && !unpacks {
            return Some(release.to_owned());
        }
        Some(self.open().ok().flatten().map_or_else(|| release.to_owned(), |site| site.standing(release)))
    }

    /// What a run that brings `new` calls the previous release: before the switch the current one, after it the
    /// one that was.
    #[must_use]
    pub fn previous_of(&self, new: Option<&str>) -> Option<String> {
        let site = self.open().ok()??;
        let current = site.current_name();
        if new.is_some() && current.as_deref() == new { site.previous_name() } else { current }
    }

    /// Every kept release, the newest first; none when the folders cannot be read or trusted.
    #[must_use]
    pub fn list(&self) -> Option<Vec<Release>> {
        Some(self.open().ok()?.map_or_else(Vec::new, |site| site.list()))
    }

    /// Opens the folders; none when one of them was never made.
    ///
    /// # Errors
    /// A sentence for people.
    pub(crate) fn open(&self) -> Result<Option<Site>, String> {
        let open = |outcome: io::Result<Place>, path: &Path| match outcome {
            Ok(place) => Ok(Some(place)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("folder `{}` cannot be used: {}", path.display(), describe(&error))),
        };
        let Some(root) = open(Place::at(&self.root), &self.root)? else { return Ok(None) };
        let Some(releases) = open(root.folder("releases"), &self.releases())? else { return Ok(None) };
        let Some(notes) = open(root.folder(".drover"), &self.notes())? else { return Ok(None) };
        Site::new(self, root, releases, notes).map(Some)
    }

    /// Makes the folders that are missing, the owner's where they are new, and opens them; `shared/` comes second.
    ///
    /// # Errors
    /// A sentence for people.
    pub(crate) fn prepare(&self, owner: &Account) -> Result<(Site, Place), String> {
        let made = |outcome: io::Result<Place>, path: &Path| {
            outcome.map_err(|error| format!("folder `{}` cannot be made: {}", path.display(), describe(&error)))
        };
        let root = made(Place::at_or_make(&self.root, owner), &self.root)?;
        let notes = made(root.folder_or_make(".drover", 0o755, None), &self.notes())?;
        let releases = made(root.folder_or_make("releases", 0o755, Some(owner)), &self.releases())?;
        let shared = made(root.folder_or_make("shared", 0o755, Some(owner)), &self.shared())?;
        Ok((Site::new(self, root, releases, notes)?, shared))
    }

    /// Makes `current` point at a release, in one rename. Gives a line for people.
    ///
    /// # Errors
    /// A sentence for people; `current` is then as it was.
    pub fn switch(&self, release: &str) -> Result<String, String> {
        check_name(release)?;
        let site = self.open()?.ok_or_else(|| format!("release `{release}` is not on this host"))?;
        site.switch(release)
    }

    /// Removes all but the current, the previous and the newest `keep` others, and what dead executions left
    /// half-done; `lives` says whether an execution is at work, `stop` whether to end early. A line for each that went
    /// comes to `lines`, whatever becomes of the next.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn prune(
        &self,
        keep: u32,
        lives: &dyn Fn(&str) -> bool,
        stop: &mut dyn FnMut() -> bool,
        lines: &mut Vec<String>,
    ) -> Result<(), String> {
        self.open()?.map_or(Ok(()), |site| site.prune(keep, lives, stop, lines))
    }
}
