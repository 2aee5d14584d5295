//! From members to an archive: every member is checked, written anew with the same fields for everybody, compressed and
//! stored under its digest.
//!
//! Invariant: an archive in the store has only folders, files and links below its root, and no link leads out of it.
//! The same members give the same bytes.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use drover_shared::chunks::{Cutter, FrameWriter};
use tar::{Builder, EntryType, Header};

use super::{Limits, SourceError};
use crate::artifacts::{ArtifactError, ArtifactStore, ArtifactWriter};

/// Frames cannot learn from each other: they are worth more work than one stream.
const COMPRESSION_LEVEL: i32 = 6;
const NAME_BYTES_MAX: usize = 4096;
/// Names and targets of links together, which are kept until all members are there.
const DESCRIBED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What file systems allow.
const PART_BYTES_MAX: usize = 255;
/// Links that are followed before a chain counts as a loop.
const LINKS_MAX: usize = 40;
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
    Link(PathBuf),
    /// Something that no archive may hold, and why.
    Other(&'static str),
}

/// A member as it comes.
pub(super) struct Member<'a> {
    /// Name for people.
    pub(super) shown: String,
    pub(super) path: PathBuf,
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
    inside: Option<&'a Path>,
    /// Most bytes that the files have together, and the error when they have more.
    bytes_max: (u64, SourceError),
    /// The error of a member that cannot be read.
    unreadable: fn(io::Error) -> SourceError,
    names: HashSet<PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
    /// Bytes of both, which are kept until the end.
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
            names: HashSet::new(),
            links: BTreeMap::new(),
            described: 0,
            files: 0,
            bytes: 0,
            lfs: None,
        })
    }

    /// Packs only what is at this path, as if its folder were the root.
    pub(super) fn only(self, inside: Option<&'a Path>) -> Self {
        Self { inside, ..self }
    }

    /// Lets the files have at most `bytes` together, if that is less than the limit.
    pub(super) fn at_most(self, bytes: u64, error: SourceError) -> Self {
        if bytes < self.bytes_max.0 { Self { bytes_max: (bytes, error), ..self } } else { self }
    }

    /// How many members there are.
    pub(super) fn members(&self) -> usize {
        self.names.len()
    }

    /// Adds a member.
    pub(super) fn add(&mut self, member: Member<'_>) -> Result<(), SourceError> {
        let Member { shown, path, kind, size, time, content } = member;
        let refuse = |reason| SourceError::Member { name: shown.clone(), reason };
        let whole = clean(&path).map_err(refuse)?;
        let Some(path) = below(&whole, self.inside, kind == Kind::Folder) else { return Ok(()) };
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
        self.described += path.as_os_str().len();
        if self.described > DESCRIBED_BYTES_MAX {
            return Err(refuse("names and targets of links are longer than 64 MiB together"));
        }
        if self.names.len() as u64 > self.limits.members_max {
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
                let head = self.heads.append_data(&mut header, path.join(""), io::empty());
                self.write_head(head)
            }
            Kind::File { executable } => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(if executable { 0o755 } else { 0o644 });
                header.set_size(size);
                self.add_file(header, &path, shown, (size, content))
            }
            Kind::Link(target) => {
                if target.is_absolute() {
                    return Err(refuse("it is a link to an absolute path"));
                }
                let bytes = target.as_os_str().as_bytes();
                if bytes.is_empty() || bytes.contains(&0) {
                    return Err(refuse("it is a link without a target that could be"));
                }
                if bytes.len() > NAME_BYTES_MAX {
                    return Err(refuse("it is a link whose target is longer than 4096 bytes"));
                }
                self.described += bytes.len();
                self.files += 1;
                self.links.insert(path.clone(), target.clone());
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                let head = self.heads.append_link(&mut header, path, target);
                self.write_head(head)
            }
            Kind::Other(reason) => Err(refuse(reason)),
        }
    }

    fn add_file(
        &mut self,
        mut header: Header,
        path: &Path,
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
        self.check_links()?;
        self.out.glue(&[0; 2 * BLOCK]).map_err(write_failed)?;
        let Self { out, files, lfs, .. } = self;
        let (artifact, index) = out.finish().map_err(write_failed)?;
        Ok(Packed { artifact, index, files, lfs })
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

/// The path as it is below `inside`; none when it is elsewhere. What is no folder keeps its name.
fn below(path: &Path, inside: Option<&Path>, is_folder: bool) -> Option<PathBuf> {
    let Some(inside) = inside else { return Some(path.to_owned()) };
    let rest = path.strip_prefix(inside).ok()?;
    if rest.as_os_str().is_empty() && !is_folder { path.file_name().map(PathBuf::from) } else { Some(rest.to_owned()) }
}

/// The member's path below the root.
fn clean(path: &Path) -> Result<PathBuf, &'static str> {
    if path.as_os_str().len() > NAME_BYTES_MAX {
        return Err("its name is too long");
    }
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) if part.len() > PART_BYTES_MAX => return Err("a part of its name is too long"),
            Component::Normal(part) if part.as_encoded_bytes().contains(&0) => return Err("its name holds a NUL"),
            Component::Normal(part) => cleaned.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("its name holds `..`"),
            Component::RootDir | Component::Prefix(_) => return Err("its name is an absolute path"),
        }
    }
    Ok(cleaned)
}
