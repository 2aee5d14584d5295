//! The artifact store: files named by their SHA-256.
//!
//! `<folder>/<first two digits>/<digest>` holds an artifact, `….index` beside it what it is made of, `<folder>/incoming/`
//! what is being written. Invariant: a file
//! under its final name is whole, durable and never changes. The functions block: call them where blocking is allowed.

mod needed;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use drover_kernel::room::Room;
use drover_shared::Digest;
use drover_shared::order::IndexOf;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

pub use needed::sweep;
pub(crate) use needed::{Naming, remove_unneeded, unneeded};

/// Most bytes that one [`ArtifactFile::read_at`] gives.
pub const READ_BYTES_MAX: usize = 1024 * 1024;

/// How far ahead of an artifact that is written room is looked for, in bytes.
const ROOM_BYTES: u64 = 4 * 1024 * 1024;

/// Why an artifact is not stored or not read.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// It is longer than its limit. Nothing of it is kept.
    #[error("the artifact is larger than {0} bytes")]
    TooLarge(u64),
    /// No room on the disk. Nothing of it is kept.
    #[error("the disk that holds the artifacts is full")]
    Full,
    /// What is left of the disk is kept in reserve. Nothing of it is kept.
    #[error("the artifact is not stored: {0}")]
    Reserved(String),
    /// The store has none of this digest.
    #[error("there is no artifact {0}")]
    Missing(Digest),
    /// The file system refuses.
    #[error("cannot {doing}: {error}")]
    Storage {
        /// What was tried.
        doing: String,
        /// What the system says.
        #[source]
        error: io::Error,
    },
}

impl ArtifactError {
    fn storage(doing: String) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.kind() {
            io::ErrorKind::StorageFull if error.get_ref().is_some() => Self::Reserved(error.to_string()),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::FileTooLarge => {
                match error.get_ref().and_then(|inner| inner.downcast_ref::<BeyondLimit>()) {
                    Some(limit) => Self::TooLarge(limit.0),
                    None => Self::Full,
                }
            }
            _ => Self::Storage { doing, error },
        }
    }
}

/// Travels inside an `io::Error`, because a writer can give no other.
#[derive(Debug, thiserror::Error)]
#[error("the artifact is larger than {0} bytes")]
struct BeyondLimit(u64);

/// What is stored under a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
}

/// The artifacts of this server.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    folder: PathBuf,
    /// What looks whether there is room for so many more bytes.
    room: Option<Arc<Room>>,
}

impl ArtifactStore {
    /// Opens the store, making the folder if it is missing, and removes what an earlier process left half written.
    /// One process at a time may use a folder.
    ///
    /// # Errors
    /// [`ArtifactError::Storage`] when the folder cannot be used.
    pub fn open(folder: &Path) -> Result<Self, ArtifactError> {
        let store = Self { folder: folder.to_owned(), room: None };
        let incoming = store.incoming();
        let doing = || format!("open the artifact store {}", folder.display());
        match std::fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ArtifactError::storage(doing())(error));
            }
            _ => {}
        }
        std::fs::create_dir_all(&incoming).map_err(ArtifactError::storage(doing()))?;
        Ok(store)
    }

    /// The store in `folder` for looking into it, beside a server that works with it.
    #[must_use]
    pub fn beside(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), room: None }
    }

    /// Lets nothing be written to what this keeps in reserve.
    #[must_use]
    pub fn within(self, room: Arc<Room>) -> Self {
        Self { room: Some(room), ..self }
    }

    /// Begins an artifact of at most `size_bytes_max` bytes. Dropping the writer leaves nothing behind.
    ///
    /// # Errors
    /// [`ArtifactError::Full`], [`ArtifactError::Storage`].
    pub fn create(&self, size_bytes_max: u64) -> Result<ArtifactWriter, ArtifactError> {
        let file =
            NamedTempFile::new_in(self.incoming()).map_err(ArtifactError::storage("begin an artifact".to_owned()))?;
        Ok(ArtifactWriter {
            store: self.clone(),
            file,
            hasher: Sha256::new(),
            size_bytes: 0,
            size_bytes_max,
            roomy_bytes: 0,
        })
    }

    /// Opens an artifact for reading.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`], [`ArtifactError::Storage`].
    pub fn read(&self, digest: Digest) -> Result<ArtifactFile, ArtifactError> {
        Self::open_for(digest, &self.path(digest))
    }

    fn open_for(digest: Digest, path: &Path) -> Result<ArtifactFile, ArtifactError> {
        let open = || {
            let file = File::open(path)?;
            let size_bytes = file.metadata()?.len();
            Ok(ArtifactFile { file, digest, size_bytes })
        };
        open().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => ArtifactError::Missing(digest),
            _ => ArtifactError::storage(format!("open artifact {digest}"))(error),
        })
    }

    /// What an artifact is made of, if that is known: digest and length of its index.
    ///
    /// # Errors
    /// [`ArtifactError::Storage`].
    pub fn index(&self, digest: Digest) -> Result<Option<IndexOf>, ArtifactError> {
        match std::fs::read(self.index_path(digest)) {
            Ok(index) => Ok(Some(IndexOf { digest: Digest::of(&index), size_bytes: index.len() as u64 })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ArtifactError::storage(format!("read the index of artifact {digest}"))(error)),
        }
    }

    /// Opens the index of an artifact for reading.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`], [`ArtifactError::Storage`].
    pub fn read_index(&self, digest: Digest) -> Result<ArtifactFile, ArtifactError> {
        Self::open_for(digest, &self.index_path(digest))
    }

    /// Opens an artifact for reading it from beginning to end.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`], [`ArtifactError::Storage`].
    pub fn open_file(&self, digest: Digest) -> Result<File, ArtifactError> {
        Ok(self.read(digest)?.file)
    }

    /// Removes an artifact, if it is there. Who is reading it reads on.
    ///
    /// # Errors
    /// [`ArtifactError::Storage`].
    pub fn remove(&self, digest: Digest) -> Result<(), ArtifactError> {
        // The artifact last: as long as it is there it is found, and removed again if this breaks off.
        for path in [self.index_path(digest), self.path(digest)] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ArtifactError::storage(format!("remove artifact {digest}"))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// How many bytes an artifact takes with its index, if it is there.
    #[must_use]
    pub fn bytes_on_disk(&self, digest: Digest) -> Option<u64> {
        let bytes = |path: PathBuf| std::fs::metadata(path).map(|about| about.len());
        let artifact = bytes(self.path(digest)).ok()?;
        Some(artifact + bytes(self.index_path(digest)).unwrap_or(0))
    }

    /// Whether the artifact is there.
    #[must_use]
    pub fn contains(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The artifacts whose digests begin with this byte.
    ///
    /// # Errors
    /// [`ArtifactError::Storage`].
    pub fn beginning_with(&self, first: u8) -> Result<Vec<Digest>, ArtifactError> {
        let folder = self.folder.join(format!("{first:02x}"));
        let names = || -> io::Result<Vec<Digest>> {
            let mut digests = Vec::new();
            for entry in std::fs::read_dir(&folder)? {
                digests.extend(entry?.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()));
            }
            Ok(digests)
        };
        match names() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(ArtifactError::storage("list the artifacts".to_owned())),
        }
    }

    fn incoming(&self) -> PathBuf {
        self.folder.join("incoming")
    }

    fn index_path(&self, digest: Digest) -> PathBuf {
        self.path(digest).with_extension("index")
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.folder.join(&name[..2]).join(name)
    }
}

/// An artifact being written; hashes what passes through.
#[derive(Debug)]
pub struct ArtifactWriter {
    store: ArtifactStore,
    file: NamedTempFile,
    hasher: Sha256,
    size_bytes: u64,
    size_bytes_max: u64,
    /// Up to which length there was room when that was last looked at.
    roomy_bytes: u64,
}

impl ArtifactWriter {
    /// Makes the artifact durable and gives it its name. The same bytes are kept once.
    ///
    /// # Errors
    /// [`ArtifactError::Full`], [`ArtifactError::Storage`]; nothing stays behind then.
    pub fn commit(self) -> Result<Stored, ArtifactError> {
        self.commit_with(None)
    }

    /// As [`commit`](Self::commit), with an index of the artifact beside it.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_with(self, index: Option<&[u8]>) -> Result<Stored, ArtifactError> {
        let digest = Digest::from_bytes(self.hasher.finalize().into());
        let stored = Stored { digest, size_bytes: self.size_bytes };
        let path = self.store.path(digest);
        let folder = path.parent().unwrap_or(&self.store.folder);
        let write_index = |index: &[u8]| -> io::Result<()> {
            let mut file = NamedTempFile::new_in(self.store.incoming())?;
            file.write_all(index)?;
            file.as_file().sync_all()?;
            std::fs::create_dir_all(folder)?;
            file.persist(self.store.index_path(digest)).map(drop).map_err(|error| error.error)
        };
        // Before the artifact: whoever finds that finds both.
        if let Some(index) = index {
            write_index(index).map_err(ArtifactError::storage(format!("store the index of artifact {digest}")))?;
        }
        if std::fs::metadata(&path).is_ok_and(|there| there.len() == self.size_bytes) {
            return Ok(stored);
        }
        let finish = || {
            self.file.as_file().sync_all()?;
            std::fs::create_dir_all(folder)?;
            self.file.persist(&path).map_err(|error| error.error)?;
            File::open(folder)?.sync_all()?;
            File::open(&self.store.folder)?.sync_all()
        };
        finish().map_err(ArtifactError::storage(format!("store artifact {digest}")))?;
        Ok(stored)
    }

    /// The error of a write through [`io::Write`] in this store's words.
    pub fn explain(error: io::Error) -> ArtifactError {
        ArtifactError::storage("write an artifact".to_owned())(error)
    }
}

impl Write for ArtifactWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size_bytes + bytes.len() as u64 > self.size_bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, BeyondLimit(self.size_bytes_max)));
        }
        let length = self.size_bytes + bytes.len() as u64;
        if let Some(room) = self.store.room.as_ref().filter(|_| length > self.roomy_bytes) {
            let more = (length - self.size_bytes).max(ROOM_BYTES);
            room.require_bytes(more).map_err(|error| io::Error::new(io::ErrorKind::StorageFull, error))?;
            self.roomy_bytes = self.size_bytes + more;
        }
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An artifact that is open for reading.
#[derive(Debug)]
pub struct ArtifactFile {
    file: File,
    digest: Digest,
    size_bytes: u64,
}

impl ArtifactFile {
    /// Its name.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The bytes from `offset` on: `length` of them, at most [`READ_BYTES_MAX`], fewer only at the end.
    ///
    /// # Errors
    /// [`ArtifactError::Storage`] when the file cannot be read.
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, ArtifactError> {
        let left = usize::try_from(self.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(READ_BYTES_MAX).min(left)];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(ArtifactError::storage(format!("read artifact {}", self.digest)))?;
        Ok(bytes.into())
    }
}
