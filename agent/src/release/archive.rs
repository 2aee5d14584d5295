//! What an archive may contain, checked before anything is created.
//!
//! Invariant: a checked archive has relative paths without `..`, no member below anything but a folder, and no link
//! that leads outside, whatever the order in which its members are created.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Component, Path};

use tar::{Archive, Entry, EntryType};

use crate::describe;

/// Members of one archive.
const MEMBERS_MAX: usize = 1_000_000;
/// Unpacked length of one archive, in bytes.
const UNPACKED_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Length of a path, in bytes.
const PATH_BYTES_MAX: usize = 4_000;
/// Folders above a member.
const DEPTH_MAX: usize = 200;
/// Length of one part of a path, in bytes.
const NAME_BYTES_MAX: usize = 255;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Kind of a member, with where a link points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// A symbolic link and its text.
    Symlink(String),
    /// A hard link to a member.
    HardLink(String),
}

/// What the first pass found.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Every member by its path.
    pub(crate) members: BTreeMap<String, Kind>,
    /// Length of all files, in bytes.
    pub(crate) bytes: u64,
    /// Length of each file, in bytes.
    lengths: Vec<u64>,
}

impl Contents {
    /// Bytes of a disk that gives room in pieces of so many: a file takes whole ones, a folder or a link one.
    pub(crate) fn room(&self, piece: u64) -> u64 {
        let piece = piece.max(1);
        let others = (self.members.len() as u64).saturating_sub(self.lengths.len() as u64);
        let files = self.lengths.iter().map(|length| length.div_ceil(piece).saturating_mul(piece));
        files.fold(others.saturating_mul(piece), u64::saturating_add)
    }
}

/// Opens an archive: tar, compressed with zstd or not at all.
///
/// # Errors
/// A sentence for people.
pub(crate) fn open(path: &Path) -> Result<Archive<Box<dyn Read>>, String> {
    let unreadable = |error: std::io::Error| format!("the artifact cannot be read: {}", describe(&error));
    let mut file = BufReader::with_capacity(128 * 1024, File::open(path).map_err(unreadable)?);
    // What was put together on this host is a plain stream.
    if path.extension().is_some_and(|ending| ending == "tar") {
        return Ok(Archive::new(Box::new(file)));
    }
    if !file.fill_buf().map_err(unreadable)?.starts_with(&ZSTD_MAGIC) {
        return Err("the archive is damaged: it is not compressed with zstd".to_owned());
    }
    let decoder = zstd::Decoder::with_buffer(file).map_err(unreadable)?;
    Ok(Archive::new(Box::new(decoder)))
}

/// Reads the whole archive and refuses it if any member is not allowed; `stopped` ends the work early.
///
/// # Errors
/// A sentence that names the member and what is wrong with it.
pub(crate) fn check(path: &Path, stopped: &mut dyn FnMut() -> bool) -> Result<Contents, String> {
    let mut archive = open(path)?;
    let mut contents = Contents::default();
    for entry in archive.entries().map_err(damaged)? {
        if stopped() {
            return Err("stopped".to_owned());
        }
        let entry = entry.map_err(damaged)?;
        let Some((path, kind)) = member(&entry)? else { continue };
        let length = entry.header().entry_size().map_err(damaged)?;
        contents.bytes = contents.bytes.saturating_add(length);
        if kind == Kind::File {
            contents.lengths.push(length);
        }
        if contents.bytes > UNPACKED_BYTES_MAX {
            return Err(format!("the archive unpacks to more than {UNPACKED_BYTES_MAX} bytes"));
        }
        match contents.members.insert(path.clone(), kind.clone()) {
            Some(before) if before != Kind::Folder || kind != Kind::Folder => {
                return Err(refusal(&path, "appears twice"));
            }
            _ => {}
        }
        if contents.members.len() > MEMBERS_MAX {
            return Err(format!("the archive has more than {MEMBERS_MAX} members"));
        }
    }
    for (path, kind) in &contents.members {
        check_place(&contents.members, path, kind)?;
    }
    Ok(contents)
}

/// Path and kind of a member; none for what only describes other members or the root itself.
///
/// # Errors
/// A sentence that names the member and what is wrong with it.
pub(crate) fn member<R: Read>(entry: &Entry<'_, R>) -> Result<Option<(String, Kind)>, String> {
    let raw = entry.path_bytes();
    let shown = String::from_utf8_lossy(&raw).into_owned();
    let kind = match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Folder,
        EntryType::Symlink => Kind::Symlink(link_text(entry, &shown)?),
        EntryType::Link => Kind::HardLink(clean(&link_text(entry, &shown)?, &shown, "links to a path")?),
        EntryType::XGlobalHeader | EntryType::XHeader => return Ok(None),
        EntryType::Char | EntryType::Block => return Err(refusal(&shown, "is a device")),
        EntryType::Fifo => return Err(refusal(&shown, "is a named pipe")),
        other => {
            return Err(refusal(&shown, &format!("is of kind {:?}, which is not allowed", other.as_byte() as char)));
        }
    };
    let text = std::str::from_utf8(&raw).map_err(|_| refusal(&shown, "has a name that is not UTF-8"))?;
    let path = clean(text, &shown, "has a path")?;
    if path.is_empty() {
        return if kind == Kind::Folder { Ok(None) } else { Err(refusal(&shown, "has no name")) };
    }
    if let Kind::Symlink(target) = &kind {
        check_symlink(&path, target)?;
    }
    Ok(Some((path, kind)))
}

fn link_text<R: Read>(entry: &Entry<'_, R>, shown: &str) -> Result<String, String> {
    let target = entry.link_name_bytes().ok_or_else(|| refusal(shown, "is a link to nothing"))?;
    String::from_utf8(target.into_owned()).map_err(|_| refusal(shown, "links to a name that is not UTF-8"))
}

/// The path without `.` parts; refuses whatever is not plainly inside.
fn clean(text: &str, shown: &str, what: &str) -> Result<String, String> {
    if text.len() > PATH_BYTES_MAX || text.split('/').any(|part| part.len() > NAME_BYTES_MAX) {
        return Err(refusal(shown, &format!("{what} that is too long")));
    }
    let mut parts = Vec::new();
    for part in Path::new(text).components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy()),
            Component::CurDir => {}
            Component::ParentDir => return Err(refusal(shown, &format!("{what} with `..`"))),
            Component::RootDir | Component::Prefix(_) => {
                return Err(refusal(shown, &format!("{what} that is absolute")));
            }
        }
    }
    if parts.len() > DEPTH_MAX {
        return Err(refusal(shown, &format!("{what} that is more than {DEPTH_MAX} folders deep")));
    }
    Ok(parts.join("/"))
}

/// `..` may only lead the target, as many as the link is deep: folders above a link are real ones, so they cannot
/// lead outside, and neither can the rest.
fn check_symlink(path: &str, target: &str) -> Result<(), String> {
    if target.is_empty() || target.len() > PATH_BYTES_MAX {
        return Err(refusal(path, "is a link to nothing"));
    }
    let mut depth = path.matches('/').count();
    let mut leading = true;
    for part in Path::new(target).components() {
        match part {
            Component::RootDir | Component::Prefix(_) => return Err(refusal(path, "is a link to an absolute path")),
            Component::CurDir => {}
            Component::Normal(_) => leading = false,
            Component::ParentDir if leading && depth > 0 => depth -= 1,
            Component::ParentDir => return Err(refusal(path, "is a link that leads outside the release")),
        }
    }
    Ok(())
}

fn check_place(members: &BTreeMap<String, Kind>, path: &str, kind: &Kind) -> Result<(), String> {
    for (at, _) in path.match_indices('/') {
        if members.get(&path[..at]).is_some_and(|above| *above != Kind::Folder) {
            return Err(refusal(path, "lies below a member that is no folder"));
        }
    }
    match kind {
        Kind::HardLink(target) if members.get(target) != Some(&Kind::File) => {
            Err(refusal(path, &format!("is a hard link to `{target}`, which is no file of the archive")))
        }
        _ => Ok(()),
    }
}

fn refusal(path: &str, why: &str) -> String {
    let shown: String = path.chars().take(200).collect();
    format!("the archive is refused: member `{shown}` {why}")
}

pub(super) fn damaged(error: std::io::Error) -> String {
    format!("the archive is damaged: {}", describe(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_files_take_whole_pieces_of_a_disk() {
        let members = ["a", "b", "c", "d", "link"].map(|path| (path.to_owned(), Kind::File)).into();
        let contents = Contents { members, bytes: 4_098, lengths: vec![0, 1, 1, 4_096] };
        assert_eq!(contents.room(4_096), 4 * 4_096);
        assert_eq!(contents.room(1), 4_099);
        assert_eq!(contents.room(0), 4_099);
    }
}
