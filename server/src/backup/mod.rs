//! `drover-server backup` and `restore`: everything that must not be lost, in one file.
//!
//! The file is a tar archive under zstd: first what it is, then the database as it was at one moment, then the data
//! directory, and last the digest of each of these. Invariants: the database is copied before the files that it speaks
//! of, and these only grow, so what the database knows is there; the file gets its name when it is whole and durable;
//! nothing is restored from a file that is not whole, or over anything that is there.

mod pack;
mod unpack;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use drover_automation::engine::{Restored, restored};
use drover_kernel::db::{snapshot, sqlite_file};
use drover_kernel::{Clock, Settings};
use drover_shared::Digest;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::{VERSION, bare_kernel};

/// First file of a backup.
const ABOUT: &str = "drover-backup.json";
/// Last file of a backup.
const DIGESTS: &str = "digests.json";
/// Folders of a backup.
const DATABASE: &str = "database";
const DATA: &str = "data";
/// Form of the file; another number is of a later server.
const FORMAT: u32 = 1;
/// Time that the kernel has to end; it has nothing under way.
const STOP: std::time::Duration = std::time::Duration::from_secs(5);

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

/// Puts a backup where there is nothing: into an empty database and a data directory that is not there or empty. Then
/// what was under way when it was made is made safe, see [`restored`].
///
/// # Errors
/// The file is no whole backup, or of a later server; something is there already; the database or the disk is not
/// available. The data directory gets its name last.
pub async fn restore(config: &Config, file: &Path) -> Result<Restored> {
    let data = config.data_directory.clone();
    if data.is_dir() && std::fs::read_dir(&data)?.next().is_some() || data.is_file() {
        bail!("{} holds something already: give --data-dir a folder that is empty or not there", data.display());
    }
    if !snapshot::is_empty(&config.database_url).await.context("look at the database")? {
        bail!("the database holds something already: give --database-url an empty one");
    }
    let name = data.file_name().with_context(|| format!("{} names no folder", data.display()))?;
    let part = data.with_file_name(format!("{}.restoring", name.to_string_lossy()));
    if part.exists() {
        bail!("{} is left of a restore that did not end: remove it first", part.display());
    }
    let (from, to) = (file.to_owned(), part.clone());
    let unpacking = tokio::task::spawn_blocking(move || unpack::unpack(&from, &to));
    let outcome = match unpacking.await.context("unpacking")? {
        Ok(()) => settle(config, &part).await,
        Err(error) => Err(error),
    };
    if outcome.is_err() {
        let _ = std::fs::remove_dir_all(&part);
    }
    outcome
}

/// Fills the database, makes safe what was under way, and gives the data directory its name.
async fn settle(config: &Config, part: &Path) -> Result<Restored> {
    let (data, database) = (part.join(DATA), part.join(DATABASE));
    // An SQLite file in the data directory moves there with it.
    let inside = sqlite_file(&config.database_url).and_then(|file| {
        file.strip_prefix(&config.data_directory).ok().map(|name| format!("sqlite:{}", data.join(name).display()))
    });
    let url = inside.unwrap_or_else(|| config.database_url.clone());
    let clock = Clock::system();
    let db = snapshot::load(&url, &database, &clock).await.context("fill the database")?;
    let kernel = bare_kernel(db, clock, Settings::default(), &data)?;
    let outcome = restored(&kernel.work(), &data.join("logs")).await.context("make safe what was under way");
    kernel.stop(STOP).await;
    let outcome = outcome?;
    if config.data_directory.is_dir() {
        std::fs::remove_dir(&config.data_directory)?;
    }
    std::fs::rename(&data, &config.data_directory)
        .with_context(|| format!("name {}", config.data_directory.display()))?;
    sync_folder(&config.data_directory)?;
    std::fs::remove_dir_all(part).with_context(|| format!("remove {}", part.display()))?;
    Ok(outcome)
}
