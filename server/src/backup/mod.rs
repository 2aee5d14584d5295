//! `drover-server backup` and `restore`: everything that must not be lost, in one file.
//!
//! The file is a tar archive under zstd: first what it is, then the database as it was at one moment, then the data
//! directory, and last the digest of each of these. Invariants: the database is copied before the files that it speaks
//! of, and these only grow, so what the database knows is there; the file gets its name when it is whole and durable;
//! nothing is restored from a file that is not whole, or over anything that is there.

mod pack;
mod restore;
mod unpack;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use drover_kernel::Clock;
use drover_kernel::db::{snapshot, sqlite_file};
use drover_shared::Digest;
use serde::{Deserialize, Serialize};

use crate::VERSION;
use crate::config::Config;
pub use restore::{check_whole, restore};

/// First file of a backup.
const ABOUT: &str = "drover-backup.json";
/// Last file of a backup.
const DIGESTS: &str = "digests.json";
/// Folders of a backup.
const DATABASE: &str = "database";
const DATA: &str = "data";
/// Form of the file; another number is of a later server.
const FORMAT: u32 = 1;
/// What a backup says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    format: u32,
    /// Server that made it.
    version: String,
    /// When it was begun, in milliseconds since 1970.
    begun_ms: i64,
}

/// One file of a backup.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    path: String,
    bytes: u64,
    digest: Digest,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// Files, the database's among them.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes of the backup.
    pub packed_bytes: u64,
}

/// Writes a backup beside whoever works with the database and the data directory.
///
/// # Errors
/// `file` is there already; the database, the data directory or the place of the file is not available. Nothing of a
/// backup that failed stays.
pub async fn backup(config: &Config, file: &Path) -> Result<Written> {
    check_whole(&config.data_directory)?;
    if file.try_exists().with_context(|| format!("look for {}", file.display()))? {
        bail!("{} is there already: give another name, or move it away", file.display());
    }
    let part = Part::make(file)?;
    let about = About { format: FORMAT, version: VERSION.to_owned(), begun_ms: Clock::system().now().millis() };
    let database = part.folder.join(DATABASE);
    std::fs::create_dir(&database).with_context(|| format!("make {}", database.display()))?;
    snapshot::save(&config.database_url, &database).await.context("copy the database")?;
    let (data, sqlite) = (config.data_directory.clone(), sqlite_file(&config.database_url));
    let (to, target) = (part.folder.join("packed"), file.to_owned());
    let packing = tokio::task::spawn_blocking(move || {
        let written = pack::pack(&about, &database, &data, sqlite.as_deref(), &to)?;
        std::fs::rename(&to, &target).with_context(|| format!("name {}", target.display()))?;
        sync_folder(&target)?;
        Ok(written)
    });
    let written = packing.await.context("packing")?;
    drop(part);
    written
}

/// A folder beside the backup for what is not whole yet; it goes with this value.
struct Part {
    folder: PathBuf,
}

impl Part {
    fn make(file: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let name = file.file_name().with_context(|| format!("{} names no file", file.display()))?;
        let folder = file.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self { folder })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // What cannot be removed is seen beside the backup, and its name says what it is.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Makes a name in a folder durable.
fn sync_folder(file: &Path) -> Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("sync {}", folder.display()))
}
