//! From a commit to an archive: every member is checked, written anew with the same fields for everybody, compressed
//! and stored under its digest.
//!
//! Invariant: an archive in the store has only folders, files and links below its root, and no link leads out of it.
//! The same members give the same bytes.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Cursor, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};

use super::{Limits, SourceError};
use crate::artifacts::{ArtifactError, ArtifactStore, ArtifactWriter};

const COMPRESSION_LEVEL: i32 = 3;
const NAME_BYTES_MAX: usize = 4096;
/// Links that are followed before a chain counts as a loop.
const LINKS_MAX: usize = 40;
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// An archive that is written, but not yet in the store.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) artifact: ArtifactWriter,
    /// Files and links.
    pub(super) files: u64,
    /// First file that is only a pointer to Git LFS, and how many there are.
    pub(super) lfs: Option<(String, u64)>,
}

/// Packs the members of the tar stream `members`; `time` (seconds since 1970) is given to all of them.
pub(super) fn pack(
    mut members: impl Read,
    time: u64,
    limits: &Limits,
    store: &ArtifactStore,
) -> Result<Packed, SourceError> {
    let artifact = store.create(limits.artifact_bytes_max).map_err(SourceError::from)?;
    let encoder = zstd::stream::write::Encoder::new(artifact, COMPRESSION_LEVEL).map_err(write_failed)?;
    let mut packer = Packer {
        builder: Builder::new(encoder),
        time,
        limits,
        names: HashSet::new(),
        links: BTreeMap::new(),
        files: 0,
        bytes: 0,
        lfs: None,
    };
    let mut archive = Archive::new(&mut members);
    for member in archive.entries().map_err(read_failed)? {
        packer.add(member.map_err(read_failed)?)?;
    }
    // Padding follows the last member: its writer must not find the pipe closed.
    io::copy(&mut members, &mut io::sink()).map_err(read_failed)?;
    packer.check_links()?;
    let Packer { builder, files, lfs, .. } = packer;
    let encoder = builder.into_inner().map_err(write_failed)?;
    Ok(Packed { artifact: encoder.finish().map_err(write_failed)?, files, lfs })
}

fn read_failed(error: io::Error) -> SourceError {
    SourceError::Storage(format!("git gives no archive: {error}"))
}

fn write_failed(error: io::Error) -> SourceError {
    ArtifactWriter::explain(error).into()
}

impl From<ArtifactError> for SourceError {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::TooLarge(bytes) => Self::TooLarge { what: "packed", bytes },
            other => Self::Storage(other.to_string()),
        }
    }
}

struct Packer<'a, W: Write> {
    builder: Builder<W>,
    time: u64,
    limits: &'a Limits,
    names: HashSet<PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
    files: u64,
    bytes: u64,
    lfs: Option<(String, u64)>,
}

impl<W: Write> Packer<'_, W> {
    fn add(&mut self, mut member: tar::Entry<'_, impl Read>) -> Result<(), SourceError> {
        let kind = member.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let refuse = |reason| SourceError::Member { name: shown.clone(), reason };
        let path = clean(&member.path().map_err(|_| refuse("its name cannot be read"))?).map_err(refuse)?;
        if path.as_os_str().is_empty() {
            // The root itself.
            return Ok(());
        }
        if !self.names.insert(path.clone()) {
            return Err(refuse("it is there twice"));
        }
        if path.ancestors().skip(1).any(|folder| self.links.contains_key(folder)) {
            return Err(refuse("it lies behind a link"));
        }
        if self.names.len() as u64 > self.limits.members_max {
            return Err(SourceError::TooMany { members_max: self.limits.members_max });
        }
        let mut header = Header::new_gnu();
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(kind);
        match kind {
            EntryType::Directory => {
                header.set_mode(0o755);
                header.set_size(0);
                self.builder.append_data(&mut header, path.join(""), io::empty()).map_err(write_failed)
            }
            EntryType::Regular => {
                let executable = member.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
                header.set_mode(if executable { 0o755 } else { 0o644 });
                self.add_file(&mut member, header, &path, shown)
            }
            EntryType::Symlink => {
                let target = member.link_name().ok().flatten().ok_or_else(|| refuse("its target cannot be read"))?;
                if target.is_absolute() {
                    return Err(refuse("it is a link to an absolute path"));
                }
                self.files += 1;
                self.links.insert(path.clone(), target.to_path_buf());
                header.set_mode(0o777);
                header.set_size(0);
                self.builder.append_link(&mut header, path, target).map_err(write_failed)
            }
            _ => Err(refuse("it is no file, folder or symbolic link")),
        }
    }

    fn add_file(
        &mut self,
        member: &mut tar::Entry<'_, impl Read>,
        mut header: Header,
        path: &Path,
        shown: String,
    ) -> Result<(), SourceError> {
        let size = member.size();
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.unpacked_bytes_max {
            return Err(SourceError::TooLarge { what: "unpacked", bytes: self.limits.unpacked_bytes_max });
        }
        let mut start = Vec::with_capacity(LFS_POINTER.len());
        member.take(LFS_POINTER.len() as u64).read_to_end(&mut start).map_err(read_failed)?;
        if start == LFS_POINTER && size < 1024 {
            self.lfs.get_or_insert((shown, 0)).1 += 1;
        }
        header.set_size(size);
        // A failure here may be of either side; the side of the archive says so itself.
        self.builder.append_data(&mut header, path, Cursor::new(start).chain(member)).map_err(write_failed)
    }

    /// Refuses links that lead out, also by way of other links.
    fn check_links(&self) -> Result<(), SourceError> {
        for link in self.links.keys() {
            if self.leads_out(link) {
                let name = link.to_string_lossy().into_owned();
                return Err(SourceError::Member { name, reason: "it is a link that leads out of the archive" });
            }
        }
        Ok(())
    }

    /// Walks where the system would walk. A loop leads nowhere, so it does not lead out.
    fn leads_out(&self, link: &Path) -> bool {
        let mut here: PathBuf = link.parent().unwrap_or(Path::new("")).to_owned();
        let mut ahead: Vec<PathBuf> = parts_reversed(&self.links[link]);
        let mut followed = 1;
        while let Some(part) = ahead.pop() {
            if part == Path::new("..") {
                if !here.pop() {
                    return true;
                }
                continue;
            }
            let next = here.join(&part);
            match self.links.get(&next) {
                Some(target) => {
                    followed += 1;
                    if followed > LINKS_MAX {
                        return false;
                    }
                    ahead.extend(parts_reversed(target));
                }
                None => here = next,
            }
        }
        false
    }
}

fn parts_reversed(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().filter(|part| !matches!(part, Component::CurDir));
    let mut parts: Vec<PathBuf> = parts.map(|part| PathBuf::from(part.as_os_str())).collect();
    parts.reverse();
    parts
}

/// The member's path below the root.
fn clean(path: &Path) -> Result<PathBuf, &'static str> {
    if path.as_os_str().len() > NAME_BYTES_MAX {
        return Err("its name is too long");
    }
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => cleaned.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("its name holds `..`"),
            Component::RootDir | Component::Prefix(_) => return Err("its name is an absolute path"),
        }
    }
    Ok(cleaned)
}
