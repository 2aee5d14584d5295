//! From members to an archive: every member is checked, written anew with the same fields for everybody, compressed and
//! stored under its digest.
//!
//! Invariant: an archive in the store has only folders, files and links below its root, and every member passed the rules
//! by which agents unpack it ([`drover_shared::members`]).
//! The same members give the same bytes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;

use drover_shared::chunks::{Cutter, FrameWriter};
use drover_shared::members;
use tar::{Builder, EntryType, Header};

use super::{Limits, SourceError};
use crate::artifacts::{ArtifactError, ArtifactStore, ArtifactWriter};

/// Frames cannot learn from each other: they are worth more work than one stream.
const COMPRESSION_LEVEL: i32 = 6;
/// Names and targets of links together, which are kept until all members are there.
const DESCRIBED_BYTES_MAX: usize = 64 * 1024 * 1024;
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// What a tar stream is padded to.
const BLOCK: usize = 512;

/// An archive that is written, but not yet in the store.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) artifact: ArtifactWriter,
    /// What it is made of, unless that is too long to be worth it.
    pub(super) index: Option<Vec<u8>>,
    /// Files and links.
    pub(super) files: u64,
    /// First file that is only a pointer to Git LFS, and how many there are.
    pub(super) lfs: Option<(String, u64)>,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    /// A file, and whether it is a program.
    File {
        executable: bool,
    },
    /// A symbolic link and where it points.
    Link(Vec<u8>),
    /// Something that no archive may hold, and why.
    Other(&'static str),
}

/// A member as it comes.
pub(super) struct Member<'a> {
    /// Name for people.
    pub(super) shown: String,
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Length of a file.
    pub(super) size: u64,
    /// When it was changed, in seconds since 1970.
    pub(super) time: u64,
    pub(super) content: &'a mut dyn Read,
}

/// Writes an archive.
pub(super) struct Packer<'a> {
    out: FrameWriter<ArtifactWriter>,
    /// Makes the blocks that stand before a member's content.
    heads: Builder<Vec<u8>>,
    limits: &'a Limits,
    /// Path whose members are packed, as if it were the root; the others are left out.
    inside: Option<&'a str>,
    /// Most bytes that the files have together, and the error when they have more.
    bytes_max: (u64, SourceError),
    /// The error of a member that cannot be read.
    unreadable: fn(io::Error) -> SourceError,
    members: BTreeMap<String, members::Kind>,
    /// Bytes of their names and of what links say, which are kept until the end.
    described: usize,
    files: u64,
    bytes: u64,
    lfs: Option<(String, u64)>,
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

impl<'a> Packer<'a> {
    /// Begins an archive; `unreadable` says what it means that a member cannot be read.
    pub(super) fn new(
        limits: &'a Limits,
        store: &ArtifactStore,
        unreadable: fn(io::Error) -> SourceError,
    ) -> Result<Self, SourceError> {
        let artifact = store.create(limits.artifact_bytes_max).map_err(SourceError::from)?;
        let bytes = limits.unpacked_bytes_max;
        Ok(Self {
            out: FrameWriter::new(artifact, COMPRESSION_LEVEL).map_err(write_failed)?,
            heads: Builder::new(Vec::new()),
            limits,
            inside: None,
            bytes_max: (bytes, SourceError::TooLarge { what: "unpacked", bytes }),
            unreadable,
            members: BTreeMap::new(),
            described: 0,
            files: 0,
            bytes: 0,
            lfs: None,
        })
    }

    /// Packs only what is at this path, as if its folder were the root.
    pub(super) fn only(self, inside: Option<&'a str>) -> Self {
        Self { inside, ..self }
    }

    /// Lets the files have at most `bytes` together, if that is less than the limit.
    pub(super) fn at_most(self, bytes: u64, error: SourceError) -> Self {
        if bytes < self.bytes_max.0 { Self { bytes_max: (bytes, error), ..self } } else { self }
    }

    /// How many members there are.
    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    /// Adds a member.
    pub(super) fn add(&mut self, member: Member<'_>) -> Result<(), SourceError> {
        let Member { shown, path, kind, size, time, content } = member;
        let refuse = |reason| SourceError::Member { name: shown.clone(), reason };
        let whole = members::path(&path).map_err(refuse)?;
        let Some(path) = below(&whole, self.inside, kind == Kind::Folder) else { return Ok(()) };
        let kept = match &kind {
            // The root itself.
            Kind::Folder if path.is_empty() => return Ok(()),
            _ if path.is_empty() => return Err(refuse("it has no name")),
            Kind::Folder => members::Kind::Folder,
            Kind::File { .. } => members::Kind::File,
            Kind::Link(target) => members::Kind::Symlink(members::target(path, target).map_err(refuse)?),
            Kind::Other(reason) => return Err(refuse(reason)),
        };
        self.described += path.len();
        if let members::Kind::Symlink(target) = &kept {
            self.described += target.len();
        }
        if self.members.insert(path.to_owned(), kept).is_some() {
            return Err(refuse("it is there twice"));
        }
        if self.described > DESCRIBED_BYTES_MAX {
            return Err(refuse("names and targets of links are longer than 64 MiB together"));
        }
        if self.members.len() as u64 > self.limits.members_max {
            return Err(SourceError::TooMany { members_max: self.limits.members_max });
        }
        let mut header = Header::new_gnu();
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match kind {
            Kind::Folder => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                let head = self.heads.append_data(&mut header, format!("{path}/"), io::empty());
                self.write_head(head)
            }
            Kind::File { executable } => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(if executable { 0o755 } else { 0o644 });
                header.set_size(size);
                self.add_file(header, path, shown, (size, content))
            }
            Kind::Link(target) => {
                self.files += 1;
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                let head = self.heads.append_link(&mut header, path, OsStr::from_bytes(&target));
                self.write_head(head)
            }
            Kind::Other(reason) => Err(refuse(reason)),
        }
    }

    fn add_file(
        &mut self,
        mut header: Header,
        path: &str,
        shown: String,
        (size, content): (u64, &mut dyn Read),
    ) -> Result<(), SourceError> {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.bytes_max.0 {
            return Err(self.bytes_max.1.clone());
        }
        let head = self.heads.append_data(&mut header, path, io::empty());
        self.write_head(head)?;
        let (mut came, mut is_pointer) = (0, false);
        for chunk in Cutter::new((&mut *content).take(size), size) {
            let chunk = chunk.map_err(self.unreadable)?;
            is_pointer |= came == 0 && size < 1024 && chunk.starts_with(LFS_POINTER);
            came += chunk.len() as u64;
            self.out.chunk(&chunk).map_err(write_failed)?;
        }
        if came < size {
            return Err(SourceError::Member { name: shown, reason: "it breaks off in the middle" });
        }
        // What checks itself does so at its end.
        if content.read(&mut [0]).map_err(self.unreadable)? > 0 {
            return Err(SourceError::Member { name: shown, reason: "it is longer than it says" });
        }
        if is_pointer {
            self.lfs.get_or_insert((shown, 0)).1 += 1;
        }
        let padding = usize::try_from(size % BLOCK as u64).map_or(0, |rest| (BLOCK - rest) % BLOCK);
        self.out.glue(&[0; BLOCK][..padding]).map_err(write_failed)
    }

    /// Writes the blocks that were made for a member.
    fn write_head(&mut self, made: io::Result<()>) -> Result<(), SourceError> {
        made.map_err(write_failed)?;
        let head = std::mem::take(self.heads.get_mut());
        self.out.glue(&head).map_err(write_failed)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<Packed, SourceError> {
        if let Some((path, reason)) = members::misplaced(&self.members) {
            return Err(SourceError::Member { name: path.to_owned(), reason });
        }
        self.out.glue(&[0; 2 * BLOCK]).map_err(write_failed)?;
        let Self { out, files, lfs, .. } = self;
        let (artifact, index) = out.finish().map_err(write_failed)?;
        Ok(Packed { artifact, index, files, lfs })
    }
}

/// The path as it is below `inside`; none when it is elsewhere. What is no folder keeps its name.
fn below<'a>(path: &'a str, inside: Option<&str>, is_folder: bool) -> Option<&'a str> {
    let Some(inside) = inside else { return Some(path) };
    let rest = path.strip_prefix(inside)?;
    match rest.strip_prefix('/') {
        Some(rest) => Some(rest),
        None if !rest.is_empty() => None,
        None if is_folder => Some(""),
        None => path.rsplit('/').next(),
    }
}
