//! The artifact cache: archives by digest, downloaded once for all executions that need them.
//!
//! Invariant: a file without the ending `.part` is complete and had the right digest when it got its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use drover_shared::Digest;
use sha2::{Digest as _, Sha256};

use crate::spool::Key;
use crate::{describe, durable};

/// Artifacts kept that no execution needs.
const UNUSED_MAX: usize = 10;

/// All artifacts.
pub(super) struct Cache {
    folder: PathBuf,
    downloads: BTreeMap<Digest, Download>,
}

struct Download {
    file: File,
    hash: Sha256,
    written: u64,
    size: u64,
    waiting: BTreeSet<Key>,
}

/// What asking for an artifact gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It is there.
    Here,
    /// A download has to start from this offset.
    Start(u64),
    /// A download is under way.
    UnderWay,
}

/// What a piece of an artifact gives.
#[derive(Debug)]
pub(super) enum Progress {
    /// Written so far.
    Written(u64),
    /// Complete and verified: who waited.
    Complete(BTreeSet<Key>),
    /// Failed for these, and why.
    Failed(BTreeSet<Key>, String),
}

impl Cache {
    /// The cache of a data directory.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join("artifacts");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder, downloads: BTreeMap::new() })
    }

    /// Makes sure that an artifact is there or comes; `key` waits for it then.
    ///
    /// # Errors
    /// A sentence for people.
    pub(super) fn want(&mut self, digest: Digest, size: u64, key: &Key) -> Result<Wanted, String> {
        let path = self.folder.join(digest.to_string());
        if fs::metadata(&path).is_ok_and(|meta| meta.len() == size) {
            // The newest use keeps it longest.
            let _ = File::open(&path).and_then(|file| file.set_modified(now()));
            return Ok(Wanted::Here);
        }
        if let Some(download) = self.downloads.get_mut(&digest) {
            download.waiting.insert(key.clone());
            return Ok(Wanted::UnderWay);
        }
        let mut download = self.resume(digest, size).map_err(|error| describe(&error))?;
        download.waiting.insert(key.clone());
        let offset = download.written;
        self.downloads.insert(digest, download);
        Ok(Wanted::Start(offset))
    }

    fn resume(&self, digest: Digest, size: u64) -> io::Result<Download> {
        let path = self.part(digest);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if file.metadata()?.len() >= size {
            // Complete but for its name, or something else: cheaper to load again than to tell.
            file.set_len(0)?;
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut written = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                length => {
                    hash.update(&buffer[..length]);
                    written += length as u64;
                }
            }
        }
        Ok(Download { file, hash, written, size, waiting: BTreeSet::new() })
    }

    /// Writes a piece.
    pub(super) fn write(&mut self, digest: Digest, offset: u64, bytes: &[u8]) -> Option<Progress> {
        let download = self.downloads.get_mut(&digest)?;
        if offset != download.written {
            return Some(Progress::Written(download.written));
        }
        if offset + bytes.len() as u64 > download.size {
            let reason = format!("the artifact is longer than the {} bytes that the order says", download.size);
            return Some(self.fail(digest, reason));
        }
        if let Err(error) = download.file.write_all_at(bytes, offset) {
            return Some(self.fail(digest, describe(&error)));
        }
        download.hash.update(bytes);
        download.written += bytes.len() as u64;
        if download.written < download.size {
            return Some(Progress::Written(download.written));
        }
        Some(self.complete(digest))
    }

    fn complete(&mut self, digest: Digest) -> Progress {
        let Some(download) = self.downloads.get_mut(&digest) else { return Progress::Complete(BTreeSet::new()) };
        let found = Digest::from_bytes(download.hash.clone().finalize().into());
        if found != digest {
            return self.fail(digest, format!("the artifact has digest {found}, not {digest}"));
        }
        let placed = download.file.sync_all().and_then(|()| {
            fs::rename(self.folder.join(format!("{digest}.part")), self.folder.join(digest.to_string()))?;
            durable::sync_folder(&self.folder)
        });
        if let Err(error) = placed {
            return self.fail(digest, describe(&error));
        }
        Progress::Complete(self.downloads.remove(&digest).map(|download| download.waiting).unwrap_or_default())
    }

    /// Gives a download up.
    pub(super) fn fail(&mut self, digest: Digest, reason: String) -> Progress {
        let _ = fs::remove_file(self.part(digest));
        Progress::Failed(self.downloads.remove(&digest).map(|download| download.waiting).unwrap_or_default(), reason)
    }

    /// An execution no longer waits; gives the downloads that nobody waits for any more.
    pub(super) fn leave(&mut self, key: &Key) -> Vec<Digest> {
        let mut idle = Vec::new();
        self.downloads.retain(|digest, download| {
            download.waiting.remove(key);
            if download.waiting.is_empty() {
                idle.push(*digest);
            }
            !download.waiting.is_empty()
        });
        idle
    }

    /// Removes the oldest artifacts that none of `needed` names, beyond the few that are kept.
    pub(super) fn prune(&self, needed: &BTreeSet<Digest>) {
        let mut unused: Vec<(SystemTime, PathBuf)> = Vec::new();
        for item in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = item.file_name().to_string_lossy().into_owned();
            let Ok(digest) = name.trim_end_matches(".part").parse::<Digest>() else { continue };
            if !needed.contains(&digest) && !self.downloads.contains_key(&digest) {
                let modified = item.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                unused.push((modified, item.path()));
            }
        }
        unused.sort();
        let surplus = unused.len().saturating_sub(UNUSED_MAX);
        for (_, path) in unused.into_iter().take(surplus) {
            let _ = fs::remove_file(path);
        }
    }

    fn part(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}.part"))
    }
}

fn now() -> SystemTime {
    let wall_ms = u64::try_from(crate::clock::wall_ms()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(wall_ms)
}
