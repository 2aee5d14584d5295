//! Unpacking an artifact into a new release.
//!
//! Invariant: a release appears under its name whole and with its manifest, or not at all, and what `current` points at
//! stays as it is: where that is the release itself, changed since, the release gets a second folder. While it is being
//! unpacked its folder belongs to the agent alone and is reached through an open descriptor, so that nobody can put a
//! link in its place.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use drover_shared::Digest;
use drover_shared::members::Kind;
use drover_shared::order::canonical;
use nix::fcntl::OFlag;
use nix::sys::statvfs::{Statvfs, fstatvfs, statvfs};
use sha2::{Digest as _, Sha256};

use crate::accounts::Account;
use crate::release::archive::{self, Contents};
use crate::release::manifest::{self, About, Body};
use crate::release::place::Place;
use crate::release::shared::Shared;
use crate::release::site::{Site, manifest_name, second_name};
use crate::release::{Layout, check_name, verify};
use crate::{clock, describe};

/// What to unpack.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The artifact in the cache.
    pub archive: &'a Path,
    /// Its SHA-256.
    pub digest: Digest,
    /// Name of the release's folder.
    pub release: &'a str,
    /// Version.
    pub version: &'a str,
    /// Names the temporary folder.
    pub execution_id: &'a str,
    /// Paths that lead to `shared/`.
    pub shared_paths: &'a [String],
    /// Whom the files belong to.
    pub owner: &'a Account,
}

/// Checks before anything is stopped for it that an artifact can be unpacked: that it is acceptable, and that there is
/// room. Changes nothing.
///
/// # Errors
/// A sentence for people.
pub fn check(layout: &Layout, order: &Order<'_>, stopped: &mut dyn FnMut() -> bool) -> Result<(), String> {
    check_name(order.release)?;
    let mut contents = archive::check(order.archive, stopped)?;
    Shared::parse(order.shared_paths)?.carve(&mut contents)?;
    match layout.open()? {
        Some(site) if is_whole(&site, order, &site.standing(order.release), stopped) => Ok(()),
        Some(site) => check_space(fstatvfs(&site.releases), layout.root(), &contents),
        // Made later, on the file system of the folder that it will be in.
        None => {
            let above = layout.root().ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
            check_space(statvfs(above), layout.root(), &contents)
        }
    }
}

/// Unpacks an artifact; `stopped` ends the work early. Gives a line for people.
///
/// # Errors
/// A sentence for people; nothing is left behind then.
pub fn unpack(layout: &Layout, order: &Order<'_>, stopped: &mut dyn FnMut() -> bool) -> Result<String, String> {
    check_name(order.release)?;
    let shared = Shared::parse(order.shared_paths)?;
    let mut contents = archive::check(order.archive, stopped)?;
    shared.carve(&mut contents)?;
    let (site, shared_folder) = layout.prepare(order.owner)?;
    shared.make(&shared_folder, order.owner)?;
    let standing = site.standing(order.release);
    if is_whole(&site, order, &standing, stopped) {
        return Ok(format!("{standing} is here already, whole"));
    }
    check_space(fstatvfs(&site.releases), site.root(), &contents)?;
    let name = free_name(&site, order.release, standing);
    let temporary = format!(".{}.tmp-{}", order.release, order.execution_id);
    let outcome = Workplace::make(&site, &temporary, stopped).and_then(|workplace| {
        let members = workplace.fill(order, &contents, &shared, stopped)?;
        workplace.hand_over(order.owner)?;
        publish(&site, order, &name, &temporary, &members)?;
        Ok(format!("{name}: {} members, {} bytes", members.len(), contents.bytes))
    });
    // After success this is the release that was exchanged, or nothing.
    let _ = site.releases.remove_all(&temporary, &mut || false);
    outcome
}

/// The folder that a release is unpacked into: never the one that is in use.
fn free_name(site: &Site, release: &str, standing: String) -> String {
    if site.current_name().as_ref() != Some(&standing) {
        return standing;
    }
    if standing == release { second_name(release) } else { release.to_owned() }
}

/// Whether this folder holds the release that is wanted, as it was unpacked.
fn is_whole(site: &Site, order: &Order<'_>, name: &str, stopped: &mut dyn FnMut() -> bool) -> bool {
    let Ok(about) = manifest::about(&site.notes, &manifest_name(name)) else { return false };
    about.artifact_digest == order.digest
        && about.shared_paths == order.shared_paths
        && verify::verify_in(site, name, about.tree_digest, stopped).is_ok()
}

fn check_space(stat: nix::Result<Statvfs>, root: &Path, contents: &Contents) -> Result<(), String> {
    let Ok(stat) = stat else { return Ok(()) };
    let available = stat.blocks_available() * stat.fragment_size();
    let members = contents.members.len() as u64;
    let needed = contents.room(stat.fragment_size());
    if needed > available {
        return Err(format!(
            "the disk is full: {needed} bytes are needed below `{}`, {available} are free",
            root.display()
        ));
    }
    if stat.files() > 0 && members > stat.files_available() {
        return Err(format!("the disk is full: {members} files are needed, {} are free", stat.files_available()));
    }
    Ok(())
}

/// Writes the manifest and gives the folder its name; a damaged release of that name is exchanged in one step.
fn publish(
    site: &Site,
    order: &Order<'_>,
    name: &str,
    temporary: &str,
    members: &BTreeMap<String, Body>,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("the release cannot be put in place: {}", describe(&error));
    let (lines, tree_digest) = manifest::lines(members);
    let about = About {
        release: name.to_owned(),
        version: order.version.to_owned(),
        artifact_digest: order.digest,
        tree_digest,
        // The later one of a release's two folders counts, whatever became of the clock.
        installed_ms: site
            .installed_ms(&site.standing(order.release))
            .map_or(0, |before| before + 1)
            .max(clock::wall_ms()),
        shared_paths: order.shared_paths.to_vec(),
    };
    let text = format!("{}\n{lines}", canonical(&about));
    let exists = site.releases.look(name).map_err(failed)?.is_some();
    let manifest = manifest_name(name);
    site.notes.write_atomic(&manifest, text.as_bytes(), 0o644).map_err(failed)?;
    let placed = if exists { site.releases.exchange(temporary, name) } else { site.releases.rename(temporary, name) };
    if let Err(error) = placed {
        if !exists {
            let _ = site.notes.remove(&manifest);
        }
        return Err(failed(error));
    }
    site.releases.sync().map_err(failed)
}

/// The temporary folder, which nobody else may enter: paths below its descriptor are safe until it is handed over.
struct Workplace {
    folder: Place,
    base: PathBuf,
}

impl Workplace {
    fn make(site: &Site, name: &str, stopped: &mut dyn FnMut() -> bool) -> Result<Self, String> {
        // Whatever stands there is of an earlier start of this execution, or was put there to mislead.
        let made = site.releases.remove_all(name, stopped).and_then(|()| site.releases.make_private(name));
        let folder = made.map_err(|error| {
            format!("folder `{}/releases/{name}` cannot be made: {}", site.root().display(), describe(&error))
        })?;
        let base = PathBuf::from(format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()));
        Ok(Self { folder, base })
    }

    fn fill(
        &self,
        order: &Order<'_>,
        contents: &Contents,
        shared: &Shared,
        stopped: &mut dyn FnMut() -> bool,
    ) -> Result<BTreeMap<String, Body>, String> {
        let mut members = self.folders(contents, stopped)?;
        let mut modes = BTreeMap::new();
        let mut archive = archive::open(order.archive)?;
        for entry in archive.entries().map_err(archive::damaged)? {
            go_on(stopped)?;
            let mut entry = entry.map_err(archive::damaged)?;
            let wanted = archive::member(&entry)?.filter(|(path, _)| !shared.covers(path));
            let Some((path, kind)) = wanted else {
                archive::pass_over(&mut entry, stopped)?;
                continue;
            };
            if contents.members.get(&path) != Some(&kind) {
                return Err("the archive changed while it was read".to_owned());
            }
            let mode = entry.header().mode().map_err(archive::damaged)? & 0o777;
            if kind == Kind::Folder {
                modes.insert(path, mode | 0o700);
            } else if kind == Kind::File {
                let modified = entry.header().mtime().unwrap_or(0);
                let body = self.write_file(&path, mode | 0o400, modified, &mut entry, order.owner, stopped)?;
                members.insert(path, body);
            }
        }
        self.links(contents, order.owner, &mut members, stopped)?;
        self.finish_folders(&modes, &mut members, order.owner, stopped)?;
        Ok(members)
    }

    /// Makes every folder, those that are only implied too.
    fn folders(
        &self,
        contents: &Contents,
        stopped: &mut dyn FnMut() -> bool,
    ) -> Result<BTreeMap<String, Body>, String> {
        let mut folders = BTreeMap::new();
        for (path, kind) in &contents.members {
            let ancestors = path.match_indices('/').map(|(at, _)| &path[..at]);
            for folder in ancestors.chain((*kind == Kind::Folder).then_some(path.as_str())) {
                folders.entry(folder.to_owned()).or_insert(Body::Folder { mode: 0o755 });
            }
        }
        for path in folders.keys() {
            go_on(stopped)?;
            let made = fs::DirBuilder::new().mode(0o700).create(self.base.join(path));
            made.map_err(|error| failed(path, &error))?;
        }
        Ok(folders)
    }

    fn write_file(
        &self,
        path: &str,
        mode: u32,
        modified: u64,
        content: &mut impl Read,
        owner: &Account,
        stopped: &mut dyn FnMut() -> bool,
    ) -> Result<Body, String> {
        let mut copy = || -> io::Result<(u64, Digest)> {
            let flags = OFlag::O_NOFOLLOW.bits();
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(flags)
                .open(self.base.join(path))?;
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 64 * 1024];
            let mut size = 0;
            loop {
                let length = content.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                file.write_all(&buffer[..length])?;
                hash.update(&buffer[..length]);
                size += length as u64;
                if stopped() {
                    return Err(io::Error::other("stopped"));
                }
            }
            if owner.changes {
                std::os::unix::fs::fchown(&file, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
            }
            file.set_permissions(Permissions::from_mode(mode))?;
            file.set_modified(UNIX_EPOCH + Duration::from_secs(modified.min(1 << 40)))?;
            Ok((size, Digest::from_bytes(hash.finalize().into())))
        };
        let (size, sha256) = copy().map_err(|error| failed(path, &error))?;
        Ok(Body::File { mode, size, sha256 })
    }

    /// Makes the links, when nothing can be written through them any more.
    fn links(
        &self,
        contents: &Contents,
        owner: &Account,
        members: &mut BTreeMap<String, Body>,
        stopped: &mut dyn FnMut() -> bool,
    ) -> Result<(), String> {
        for (path, kind) in &contents.members {
            go_on(stopped)?;
            let place = self.base.join(path);
            match kind {
                Kind::Folder | Kind::File => {}
                Kind::HardLink(target) => {
                    fs::hard_link(self.base.join(target), &place).map_err(|error| failed(path, &error))?;
                    if let Some(body) = members.get(target).cloned() {
                        members.insert(path.clone(), body);
                    }
                }
                Kind::Symlink(target) => {
                    let made = std::os::unix::fs::symlink(target, &place).and_then(|()| give(&place, owner));
                    made.map_err(|error| failed(path, &error))?;
                    members.insert(path.clone(), Body::Link { target: target.clone() });
                }
            }
        }
        Ok(())
    }

    /// Gives folders their owner and mode, the deepest first.
    fn finish_folders(
        &self,
        modes: &BTreeMap<String, u32>,
        members: &mut BTreeMap<String, Body>,
        owner: &Account,
        stopped: &mut dyn FnMut() -> bool,
    ) -> Result<(), String> {
        for (path, body) in members.iter_mut().rev() {
            go_on(stopped)?;
            if let Body::Folder { mode } = body {
                *mode = modes.get(path).copied().unwrap_or(*mode);
                let place = self.base.join(path);
                let done =
                    give(&place, owner).and_then(|()| fs::set_permissions(&place, Permissions::from_mode(*mode)));
                done.map_err(|error| failed(path, &error))?;
            }
        }
        Ok(())
    }

    /// Makes everything durable and lets others in.
    fn hand_over(&self, owner: &Account) -> Result<(), String> {
        let done = || -> io::Result<()> {
            nix::unistd::syncfs(&self.folder)?;
            if owner.changes {
                nix::unistd::fchown(&self.folder, Some(owner.uid), Some(owner.gid))?;
            }
            self.folder.file().set_permissions(Permissions::from_mode(0o755))?;
            self.folder.sync()
        };
        done().map_err(|error| format!("the release cannot be made durable: {}", describe(&error)))
    }
}

fn go_on(stopped: &mut dyn FnMut() -> bool) -> Result<(), String> {
    if stopped() { Err("stopped".to_owned()) } else { Ok(()) }
}

fn give(path: &Path, owner: &Account) -> io::Result<()> {
    if owner.changes {
        std::os::unix::fs::lchown(path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
    }
    Ok(())
}

fn failed(path: &str, error: &io::Error) -> String {
    format!("member `{path}` cannot be unpacked: {}", describe(error))
}
