//! Releases under a deploy path.
//!
//! | path | meaning |
//! |---|---|
//! | `releases/<release>/` | one unpacked version |
//! | `current` | symbolic link to the release in use, replaced by one rename |
//! | `shared/` | survives every version |
//! | `.drover/<release>.json` | manifest of a release; a folder without one is no release |
//! | `.drover/previous` | name of the release that `current` pointed at before |
//!
//! Invariants: `current` always points at a whole release or does not exist; neither the current nor the previous
//! release is ever removed.

mod archive;
pub mod manifest;
pub mod unpack;
pub mod verify;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use drover_shared::message::Release;
use drover_shared::order::{Entry, Step};

use crate::accounts::Account;
use crate::describe;
use crate::durable;

/// Releases that are listed at most.
const RELEASES_MAX: usize = 1_000;

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
        Step::Script { .. } | Step::Fetch { .. } | Step::Prune { .. } => None,
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

    /// The manifest of a release.
    #[must_use]
    pub fn manifest(&self, name: &str) -> PathBuf {
        self.notes().join(format!("{name}.json"))
    }

    fn notes(&self) -> PathBuf {
        self.root.join(".drover")
    }

    /// Name of the release that `current` points at.
    #[must_use]
    pub fn current_name(&self) -> Option<String> {
        let target = fs::read_link(self.current()).ok()?;
        let absolute = self.root.join(target);
        let name = absolute.strip_prefix(self.releases()).ok()?.to_str()?;
        (!name.contains('/')).then(|| name.to_owned())
    }

    /// Name of the release that was current before the one that is now.
    #[must_use]
    pub fn previous_name(&self) -> Option<String> {
        let name = fs::read_to_string(self.notes().join("previous")).ok()?;
        check_name(&name).ok().map(|()| name)
    }

    /// What a run that brings `new` calls the previous release: before the switch the current one, after it the
    /// one that was.
    #[must_use]
    pub fn previous_of(&self, new: Option<&str>) -> Option<String> {
        let current = self.current_name();
        if new.is_some() && current.as_deref() == new { self.previous_name() } else { current }
    }

    /// Every kept release, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Release> {
        let current = self.current_name();
        let items = fs::read_dir(self.releases()).into_iter().flatten().flatten();
        let names =
            items.filter_map(|item| item.file_name().into_string().ok()).filter(|name| check_name(name).is_ok());
        let mut releases: Vec<Release> = names
            .filter_map(|name| {
                let about = manifest::about(&self.manifest(&name)).ok()?;
                Some(Release {
                    current: current.as_deref() == Some(name.as_str()),
                    name,
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

    /// Makes the folders that are missing, the owner's where they are new.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn prepare(&self, owner: &Account) -> Result<(), String> {
        let make = |path: &Path| -> io::Result<()> {
            match fs::symlink_metadata(path) {
                Ok(meta) if meta.is_dir() => return Ok(()),
                Ok(_) if path == self.root && path.is_dir() => return Ok(()),
                Ok(_) => return Err(io::Error::other("it is not a folder")),
                Err(_) => fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?,
            }
            if owner.changes && path != self.notes() {
                std::os::unix::fs::lchown(path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
            }
            Ok(())
        };
        for path in [self.root.clone(), self.releases(), self.shared(), self.notes()] {
            make(&path).map_err(|error| format!("folder `{}` cannot be made: {}", path.display(), describe(&error)))?;
        }
        self.check_folders()
    }

    /// Refuses a link in the place of a folder: the owner of the deploy path could lead the agent elsewhere by it.
    fn check_folders(&self) -> Result<(), String> {
        for path in [self.releases(), self.notes()] {
            if !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                return Err(format!("`{}` is not a folder", path.display()));
            }
        }
        let own = nix::unistd::geteuid().as_raw();
        if fs::symlink_metadata(self.notes()).is_ok_and(|meta| meta.uid() == own) {
            return Ok(());
        }
        Err(format!("folder `{}` does not belong to the agent's account", self.notes().display()))
    }

    /// Makes `current` point at a release, in one rename. Gives a line for people.
    ///
    /// # Errors
    /// A sentence for people; `current` is then as it was.
    pub fn switch(&self, release: &str) -> Result<String, String> {
        check_name(release)?;
        let folder = self.release(release);
        if !fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir()) {
            return Err(format!("release `{release}` is not on this host"));
        }
        match fs::symlink_metadata(self.current()) {
            Ok(meta) if !meta.is_symlink() => {
                return Err(format!(
                    "`{}` exists and is not a symbolic link: move it away first",
                    self.current().display()
                ));
            }
            _ => {}
        }
        let before = self.current_name();
        if before.as_deref() == Some(release) {
            return Ok(format!("current is {release} already"));
        }
        self.check_folders()?;
        self.point_at(release, before.as_deref())
            .map_err(|error| format!("current cannot be replaced: {}", describe(&error)))?;
        Ok(match before {
            Some(before) => format!("current was {before}, is {release}"),
            None => format!("current is {release}"),
        })
    }

    fn point_at(&self, release: &str, before: Option<&str>) -> io::Result<()> {
        if let Some(before) = before {
            durable::write_atomic(&self.notes().join("previous"), before.as_bytes(), 0o644)?;
        }
        let temporary = self.root.join(format!(".current-{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        std::os::unix::fs::symlink(Path::new("releases").join(release), &temporary)?;
        if let Err(error) = fs::rename(&temporary, self.current()) {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        durable::sync_folder(&self.root)
    }

    /// Removes all but the current, the previous and the newest `keep` others, and what dead executions left
    /// half-done; `lives` says whether an execution is at work. Gives a line for each.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn prune(&self, keep: u32, lives: &dyn Fn(&str) -> bool) -> Result<Vec<String>, String> {
        self.check_folders()?;
        let mut lines = Vec::new();
        let previous = self.previous_name();
        let others = self.list().into_iter().filter(|release| !release.current);
        for release in others.skip(keep as usize).filter(|release| Some(&release.name) != previous.as_ref()) {
            self.remove(&release.name)
                .map_err(|error| format!("release `{}` cannot be removed: {}", release.name, describe(&error)))?;
            lines.push(format!("removed {}", release.name));
        }
        for item in fs::read_dir(self.releases()).into_iter().flatten().flatten() {
            let name = item.file_name().to_string_lossy().into_owned();
            let Some((_, execution)) = name.rsplit_once(".tmp-") else { continue };
            if name.starts_with('.') && !lives(execution) && fs::remove_dir_all(item.path()).is_ok() {
                lines.push(format!("removed half-done {name}"));
            }
        }
        Ok(lines)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        // Renamed first, so that a half-removed folder never looks like a release.
        let doomed = self.releases().join(format!(".{name}.tmp-removed"));
        let _ = fs::remove_dir_all(&doomed);
        fs::rename(self.release(name), &doomed)?;
        fs::remove_file(self.manifest(name))?;
        fs::remove_dir_all(&doomed)
    }
}
