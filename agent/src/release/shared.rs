//! Paths of a release that lead to `shared/`, so that every version sees the same content.
//!
//! What an archive has at such a path is left out; a link takes its place and is part of the manifest. Invariant: what
//! lies in `shared/` is never written or removed by a deployment, only folders that are missing are made.

use std::io;

use drover_shared::members::Kind;
use nix::sys::stat::SFlag;

use crate::accounts::Account;
use crate::describe;
use crate::release::archive::Contents;
use crate::release::place::{Place, kind};

/// Shared paths of one application.
const PATHS_MAX: usize = 100;
/// Length of one, in bytes.
const PATH_BYTES_MAX: usize = 1_000;

/// The shared paths of an order, checked.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Without a `/` at the end; whether it had one, and so is a folder.
    paths: Vec<(String, bool)>,
}

impl Shared {
    /// Reads the paths of an order.
    ///
    /// # Errors
    /// A sentence that names the path and what is wrong with it.
    pub(crate) fn parse(paths: &[String]) -> Result<Self, String> {
        if paths.len() > PATHS_MAX {
            return Err(format!("{} shared paths are given, {PATHS_MAX} are allowed", paths.len()));
        }
        let mut parsed: Vec<(String, bool)> = Vec::new();
        for path in paths {
            let (plain, folder) = path.strip_suffix('/').map_or((path.as_str(), false), |plain| (plain, true));
            let fine = plain.len() <= PATH_BYTES_MAX
                && plain.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && !plain.contains('\0');
            if !fine {
                return Err(format!("shared path `{path}` is not a plain path inside a release"));
            }
            if let Some((other, _)) = parsed.iter().find(|(other, _)| within(plain, other) || within(other, plain)) {
                return Err(format!("shared paths `{other}` and `{plain}` lie in each other"));
            }
            parsed.push((plain.to_owned(), folder));
        }
        Ok(Self { paths: parsed })
    }

    /// Whether a member lies at or below a shared path.
    #[must_use]
    pub(crate) fn covers(&self, member: &str) -> bool {
        self.paths.iter().any(|(path, _)| within(member, path))
    }

    /// Puts links in the place of what the archive has at the shared paths.
    ///
    /// # Errors
    /// A sentence that names the path and the member in its way.
    pub(crate) fn carve(&self, contents: &mut Contents) -> Result<(), String> {
        contents.members.retain(|member, _| !self.covers(member));
        for (member, kind) in &contents.members {
            if let Kind::HardLink(target) = kind
                && self.covers(target)
            {
                return Err(format!("member `{member}` is a hard link to `{target}`, which is a shared path"));
            }
        }
        for (path, _) in &self.paths {
            for (at, _) in path.match_indices('/') {
                if contents.members.get(&path[..at]).is_some_and(|above| *above != Kind::Folder) {
                    let above = &path[..at];
                    return Err(format!(
                        "shared path `{path}` lies below `{above}`, which is no folder of the archive"
                    ));
                }
            }
            let up = "../".repeat(path.matches('/').count() + 2);
            contents.members.insert(path.clone(), Kind::Symlink(format!("{up}shared/{path}")));
        }
        Ok(())
    }

    /// Makes the folders that are missing below `shared/`.
    ///
    /// # Errors
    /// A sentence that names the path.
    pub(crate) fn make(&self, shared: &Place, owner: &Account) -> Result<(), String> {
        for (path, folder) in &self.paths {
            make_one(shared, path, *folder, owner)
                .map_err(|error| format!("shared path `{path}` cannot be made: {}", describe(&error)))?;
        }
        Ok(())
    }
}

fn make_one(shared: &Place, path: &str, folder: bool, owner: &Account) -> io::Result<()> {
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut place = None;
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        let next = place.as_ref().unwrap_or(shared).folder_or_make(part, 0o755, Some(owner))?;
        place = Some(next);
    }
    let place = place.as_ref().unwrap_or(shared);
    match place.look(name)? {
        // The application may have put a link there, to a disk of its own for instance: that is its business.
        Some(stat) if folder && !matches!(kind(&stat), SFlag::S_IFDIR | SFlag::S_IFLNK) => {
            Err(io::Error::other("it is not a folder"))
        }
        None if folder => place.folder_or_make(name, 0o755, Some(owner)).map(drop),
        _ => Ok(()),
    }
}

fn within(member: &str, path: &str) -> bool {
    member.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
