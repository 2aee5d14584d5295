//! Reading the archives that members come from: tar, plain or compressed, and zip.
//!
//! Invariant: whatever an archive says of itself, no more of it is kept in memory than [`DESCRIPTION_BYTES_MAX`] and one
//! piece, and no more of it is read than its limits allow.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::rc::Rc;

use drover_kernel::api_words;
use tar::{Archive, EntryType};
use tokio_util::sync::CancellationToken;
use zip::read::ZipReadOptions;
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;

use super::pack::{Kind, Member, Packed, Packer};
use super::{Limits, SourceError};
use crate::artifacts::ArtifactStore;

/// What may stand before a member to describe it, in bytes: long names, attributes.
const DESCRIPTION_BYTES_MAX: u64 = 1024 * 1024;
/// Where a link points, in bytes.
const TARGET_BYTES_MAX: u64 = 4096;
/// Bytes to which an archive may unpack whatever its own length, and how many times its length beyond that.
const UNSUSPICIOUS_BYTES: u64 = 1024 * 1024 * 1024;
const RATIO_MAX: u64 = 200;

const SPARSE: Kind = Kind::Other("it is a sparse file; make the archive without --sparse");

api_words! {
    /// Form of an archive.
    pub enum Format {
        /// tar.
        Tar = "tar",
        /// tar, compressed with gzip.
        TarGz = "tar.gz",
        /// tar, compressed with zstd.
        TarZst = "tar.zst",
        /// zip.
        Zip = "zip",
    }
}

/// A reader that gives so many bytes and then fails, and that ends when it is told to.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
    stop: CancellationToken,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the server stops"));
        }
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other("what describes a member is too long"));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - count as u64);
        Ok(count)
    }
}

fn damaged(error: io::Error) -> SourceError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SourceError::Damaged("it breaks off before its end".to_owned()),
        _ => SourceError::Damaged(error.to_string()),
    }
}

fn no_archive(error: io::Error) -> SourceError {
    SourceError::Storage(format!("git gives no archive: {error}"))
}

/// Packs the tar stream that git writes; `time` (seconds since 1970) is given to all members.
pub(super) fn pack_git(
    mut stream: impl Read,
    time: u64,
    limits: &Limits,
    store: &ArtifactStore,
) -> Result<Packed, SourceError> {
    let mut packer = Packer::new(limits, store, no_archive)?;
    add_tar(&mut packer, &mut stream, Some(time), &CancellationToken::new(), no_archive)?;
    // Padding follows the last member: its writer must not find the pipe closed.
    io::copy(&mut stream, &mut io::sink()).map_err(no_archive)?;
    packer.finish()
}

/// Packs what is at `inside` of an archive that is in the store already.
pub(super) fn pack_part(
    artifact: impl Read,
    inside: &str,
    limits: &Limits,
    store: &ArtifactStore,
    stop: &CancellationToken,
) -> Result<Option<Packed>, SourceError> {
    let mut packer = Packer::new(limits, store, damaged)?.only(Some(inside));
    add_tar(&mut packer, zstd::Decoder::new(artifact).map_err(damaged)?, None, stop, damaged)?;
    if packer.members() == 0 { Ok(None) } else { packer.finish().map(Some) }
}

/// Packs an archive that somebody uploaded, whatever its form.
pub(super) fn pack_upload(
    mut file: File,
    limits: &Limits,
    store: &ArtifactStore,
    stop: &CancellationToken,
) -> Result<(Packed, Format), SourceError> {
    let length = file.metadata().map_err(damaged)?.len();
    let most = UNSUSPICIOUS_BYTES.max(length.saturating_mul(RATIO_MAX));
    let mut packer = Packer::new(limits, store, damaged)?.at_most(most, SourceError::Bomb { ratio: RATIO_MAX });
    let format = format_of(&mut file)?;
    let stream = BufReader::with_capacity(128 * 1024, file.try_clone().map_err(damaged)?);
    match format {
        Format::Tar => add_tar(&mut packer, stream, None, stop, damaged)?,
        Format::TarGz => add_tar(&mut packer, flate2::bufread::MultiGzDecoder::new(stream), None, stop, damaged)?,
        Format::TarZst => {
            let decoder = zstd::Decoder::with_buffer(stream).map_err(damaged)?;
            add_tar(&mut packer, decoder, None, stop, damaged)?;
        }
        Format::Zip => add_zip(&mut packer, file, stop)?,
    }
    if packer.members() == 0 {
        return Err(SourceError::Damaged("it has no members".to_owned()));
    }
    Ok((packer.finish()?, format))
}

/// The form of an archive, by its first bytes, which are read anew afterwards.
fn format_of(file: &mut File) -> Result<Format, SourceError> {
    let mut start = Vec::with_capacity(512);
    file.seek(SeekFrom::Start(0)).map_err(damaged)?;
    (&mut *file).take(512).read_to_end(&mut start).map_err(damaged)?;
    file.seek(SeekFrom::Start(0)).map_err(damaged)?;
    let other = match start.as_slice() {
        [0x1f, 0x8b, ..] => return Ok(Format::TarGz),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return Ok(Format::TarZst),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => return Ok(Format::Zip),
        [b'B', b'Z', b'h', ..] => "bzip2",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [b'7', b'z', 0xbc, 0xaf, ..] => "7z",
        [b'R', b'a', b'r', b'!', ..] => "rar",
        block if is_tar(block) => return Ok(Format::Tar),
        _ => "no archive that is known here",
    };
    Err(SourceError::Damaged(format!("it is {other}; tar, tar.gz, tar.zst and zip are taken")))
}

/// Whether a block has the sum that the first one of a tar stream bears.
fn is_tar(block: &[u8]) -> bool {
    let Ok(bytes) = <&[u8; 512]>::try_from(block) else { return false };
    let sum = bytes.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) });
    let header = tar::Header::from_byte_slice(bytes);
    bytes[0] != 0 && header.cksum().is_ok_and(|noted| noted == sum.sum::<u32>())
}

/// Adds the members of a tar stream; all get `time` if it is given, else each has its own.
fn add_tar(
    packer: &mut Packer<'_>,
    stream: impl Read,
    time: Option<u64>,
    stop: &CancellationToken,
    unreadable: fn(io::Error) -> SourceError,
) -> Result<(), SourceError> {
    let left = Rc::new(Cell::new(DESCRIPTION_BYTES_MAX));
    let mut archive = Archive::new(Bounded { inner: stream, left: left.clone(), stop: stop.clone() });
    for member in archive.entries().map_err(unreadable)? {
        let mut member = member.map_err(unreadable)?;
        // Its content begins with a map of its holes, and its name is another one.
        let is_sparse = has_sparse_notes(&mut member).map_err(unreadable)?;
        let header = member.header();
        let kind = header.entry_type();
        if kind == EntryType::XGlobalHeader {
            left.set(DESCRIPTION_BYTES_MAX);
            continue;
        }
        let own_time = header.mtime().unwrap_or(0);
        let executable = header.mode().is_ok_and(|mode| mode & 0o100 != 0);
        let name = member.path_bytes().into_owned();
        let target = member.link_name_bytes().map(std::borrow::Cow::into_owned);
        let kind = match (kind, target) {
            _ if is_sparse => SPARSE,
            (EntryType::Directory, _) => Kind::Folder,
            (EntryType::Regular | EntryType::Continuous, _) => Kind::File { executable },
            (EntryType::Symlink, Some(target)) => Kind::Link(target),
            (EntryType::Symlink, None) => Kind::Other("its target cannot be read"),
            (EntryType::Link, _) => Kind::Other("it is a hard link; only files, folders and symbolic links are taken"),
            (EntryType::Char | EntryType::Block, _) => Kind::Other("it is a device"),
            (EntryType::Fifo, _) => Kind::Other("it is a named pipe"),
            (EntryType::GNUSparse, _) => SPARSE,
            _ => Kind::Other("it is no file, folder or symbolic link"),
        };
        let size = member.size();
        left.set(DESCRIPTION_BYTES_MAX.saturating_add(size));
        packer.add(Member {
            shown: String::from_utf8_lossy(&name).into_owned(),
            path: name,
            kind,
            size,
            time: time.unwrap_or(own_time),
            content: &mut member,
        })?;
        // What is not packed is read past here, while it counts as content.
        io::copy(&mut member, &mut io::sink()).map_err(unreadable)?;
        left.set(DESCRIPTION_BYTES_MAX);
    }
    Ok(())
}

/// Whether what stands before a member says that its content has holes, as `tar --sparse --format=posix` does.
fn has_sparse_notes<R: Read>(member: &mut tar::Entry<'_, R>) -> io::Result<bool> {
    for note in member.pax_extensions()?.into_iter().flatten() {
        if note?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Adds the members of a zip file, of which one at a time is looked at.
fn add_zip(packer: &mut Packer<'_>, file: File, stop: &CancellationToken) -> Result<(), SourceError> {
    let directory = BufReader::with_capacity(64 * 1024, reopened(&file).map_err(damaged)?);
    let mut archive = ZipIterable::try_new(directory, zip::read::Config::default()).map_err(not_zip)?;
    let mut content = BufReader::with_capacity(128 * 1024, file);
    for entry in archive.files().map_err(not_zip)? {
        let entry = entry.map_err(not_zip)?;
        let name = entry.name_raw().to_owned();
        let shown = String::from_utf8_lossy(&name).into_owned();
        let refuse = |reason| SourceError::Member { name: shown.clone(), reason };
        let (is_folder, is_link, size) = (entry.is_dir(), entry.is_symlink(), entry.size());
        let mode = entry.unix_mode().unwrap_or(0);
        if entry.encrypted() {
            return Err(refuse("it is encrypted"));
        }
        if name.contains(&b'\\') {
            return Err(refuse("its name has a backslash; parts of a name are divided by slashes"));
        }
        let time = entry.last_modified().and_then(|time| chrono::NaiveDateTime::try_from(time).ok());
        let time = time.and_then(|time| u64::try_from(time.and_utc().timestamp()).ok()).unwrap_or(0);
        let mut reader = entry.with_reader(&mut content, ZipReadOptions::new()).map_err(|error| match error {
            ZipError::CompressionMethodNotSupported(_) | ZipError::UnsupportedArchive(_) => {
                refuse("it is packed by a method other than deflate")
            }
            error => not_zip(error),
        })?;
        let left = Rc::new(Cell::new(size.saturating_add(TARGET_BYTES_MAX)));
        let mut reader = Bounded { inner: &mut reader, left, stop: stop.clone() };
        let kind = if is_folder {
            Kind::Folder
        } else if is_link {
            let mut target = Vec::new();
            (&mut reader).take(TARGET_BYTES_MAX + 1).read_to_end(&mut target).map_err(damaged)?;
            if target.len() as u64 > TARGET_BYTES_MAX {
                return Err(refuse("its target is too long"));
            }
            Kind::Link(target)
        } else if matches!(mode & 0o170_000, 0 | 0o100_000) {
            Kind::File { executable: mode & 0o100 != 0 }
        } else {
            Kind::Other("it is no file, folder or symbolic link")
        };
        packer.add(Member { shown, path: name, kind, size, time, content: &mut reader })?;
    }
    Ok(())
}

fn not_zip(error: ZipError) -> SourceError {
    match error {
        ZipError::Io(error) => damaged(error),
        error => SourceError::Damaged(error.to_string()),
    }
}

/// The same file with a place of its own.
fn reopened(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
