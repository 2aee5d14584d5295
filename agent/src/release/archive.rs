//! What an archive may contain, checked before anything is created.
//!
//! Invariant: every member of a checked archive passed the rules of [`drover_shared::members`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

use drover_shared::members::{self, Kind};
use tar::{Archive, Entry, EntryType};

use crate::describe;

/// Members of one archive.
const MEMBERS_MAX: usize = 1_000_000;
/// Unpacked length of one archive, in bytes.
const UNPACKED_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// Bytes of a member that are passed over between two looks at whether to stop.
const PIECE_BYTES: u64 = 1024 * 1024;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

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
    let unreadable = |error: io::Error| format!("the artifact cannot be read: {}", describe(&error));
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
        let mut entry = entry.map_err(damaged)?;
        let Some((path, kind)) = member(&entry)? else {
            pass_over(&mut entry, stopped)?;
            continue;
        };
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
                return Err(refusal(&path, "it is there twice"));
            }
            _ => {}
        }
        if contents.members.len() > MEMBERS_MAX {
            return Err(format!("the archive has more than {MEMBERS_MAX} members"));
        }
        pass_over(&mut entry, stopped)?;
    }
    match members::misplaced(&contents.members) {
        Some((path, reason)) => Err(refusal(path, reason)),
        None => Ok(contents),
    }
}

/// Reads what is left of a member: to skip a long one takes minutes in which nobody could end it.
///
/// # Errors
/// A sentence for people; or it was told to stop.
pub(crate) fn pass_over(member: &mut impl Read, stopped: &mut dyn FnMut() -> bool) -> Result<(), String> {
    while io::copy(&mut member.by_ref().take(PIECE_BYTES), &mut io::sink()).map_err(damaged)? > 0 {
        if stopped() {
            return Err("stopped".to_owned());
        }
    }
    Ok(())
}

/// Path and kind of a member; none for what only describes other members or the root itself.
///
/// # Errors
/// A sentence that names the member and what is wrong with it.
pub(crate) fn member<R: Read>(entry: &Entry<'_, R>) -> Result<Option<(String, Kind)>, String> {
    let raw = entry.path_bytes();
    let shown = String::from_utf8_lossy(&raw);
    let refuse = |reason: &str| refusal(&shown, reason);
    let target = || entry.link_name_bytes().ok_or_else(|| refuse("it is a link to nothing"));
    let path = members::path(&raw).map_err(refuse)?;
    let kind = match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Folder,
        EntryType::Symlink => Kind::Symlink(members::target(&path, &target()?).map_err(refuse)?),
        EntryType::Link => {
            let target = members::path(&target()?);
            Kind::HardLink(target.map_err(|reason| refuse(&format!("it is a hard link, and of its target {reason}")))?)
        }
        EntryType::XGlobalHeader | EntryType::XHeader => return Ok(None),
        EntryType::Char | EntryType::Block => return Err(refuse("it is a device")),
        EntryType::Fifo => return Err(refuse("it is a named pipe")),
        other => return Err(refuse(&format!("it is of kind {:?}, which is not allowed", other.as_byte() as char))),
    };
    match kind {
        Kind::Folder if path.is_empty() => Ok(None),
        _ if path.is_empty() => Err(refuse("it has no name")),
        kind => Ok(Some((path, kind))),
    }
}

fn refusal(path: &str, reason: &str) -> String {
    let shown: String = path.chars().take(200).collect();
    format!("the archive is refused because of `{shown}`: {reason}")
}

pub(super) fn damaged(error: io::Error) -> String {
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
