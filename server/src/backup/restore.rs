//! Putting a backup where there is nothing.
//!
//! Invariant: from the first file to the last, a folder of a certain name is in the data directory; no server starts beside
//! it, so that none works with a part of what there was, or with what is not made safe yet.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use drover_automation::engine::{Restored, restored};
use drover_kernel::db::{Db, snapshot, sqlite_file};
use drover_kernel::{Clock, Settings};

use super::{DATA, DATABASE, unpack};
use crate::bare_kernel;
use crate::config::Config;

/// Folder in the data directory for what is being restored.
const RESTORING: &str = ".restoring";
/// Time that the kernel has to end; it has nothing under way.
const STOP: Duration = Duration::from_secs(5);

/// Whether a data directory is what it is meant to be, and not a part of a backup.
///
/// # Errors
/// A restore into it did not end.
pub fn check_whole(data: &Path) -> Result<()> {
    if data.join(RESTORING).exists() {
        bail!(
            "a restore into {} did not end: remove what is in there, empty the database, and restore again",
            data.display()
        );
    }
    Ok(())
}

/// Puts a backup where there is nothing: into an empty database and a data directory that is not there or empty. Then
/// what was under way when it was made is made safe, see [`restored`]. What is restored belongs to the owner of the data
/// directory.
///
/// # Errors
/// The file is no whole backup, or of a later server; something is there already; the database or the disk is not
/// available. Where the database was not filled nothing stays.
pub async fn restore(config: &Config, file: &Path) -> Result<Restored> {
    let data = &config.data_directory;
    check_whole(data)?;
    if data.is_dir() && std::fs::read_dir(data)?.next().is_some() || data.is_file() {
        bail!("{} holds something already: give --data-dir a folder that is empty or not there", data.display());
    }
    if !snapshot::is_empty(&config.database_url).await.context("look at the database")? {
        bail!("the database holds something already: give --database-url an empty one");
    }
    let is_new = !data.exists();
    DirBuilder::new().recursive(true).mode(0o700).create(data).with_context(|| format!("make {}", data.display()))?;
    let part = data.join(RESTORING);
    let filled = match unpacked(file, &part).await {
        Ok(()) => fill(config, &part).await,
        Err(error) => Err(error),
    };
    match filled {
        Ok(db) => settle(config, db, &part).await,
        Err(error) => {
            let _ = std::fs::remove_dir_all(&part);
            if is_new {
                let _ = std::fs::remove_dir(data);
            }
            Err(error)
        }
    }
}

async fn unpacked(file: &Path, part: &Path) -> Result<()> {
    let (from, to) = (file.to_owned(), part.to_owned());
    tokio::task::spawn_blocking(move || unpack::unpack(&from, &to)).await.context("unpacking")?
}

/// Fills the database, in one transaction.
async fn fill(config: &Config, part: &Path) -> Result<Db> {
    // An SQLite file in the data directory moves there with it.
    let inside = sqlite_file(&config.database_url).and_then(|file| {
        let name = file.strip_prefix(&config.data_directory).ok()?;
        Some(format!("sqlite:{}", part.join(DATA).join(name).display()))
    });
    let url = inside.unwrap_or_else(|| config.database_url.clone());
    snapshot::load(&url, &part.join(DATABASE), &Clock::system()).await.context("fill the database")
}

/// Makes safe what was under way, and puts everything in its place.
async fn settle(config: &Config, db: Db, part: &Path) -> Result<Restored> {
    let data = part.join(DATA);
    let kernel = bare_kernel(db, Clock::system(), Settings::default(), &data)?;
    let outcome = restored(&kernel.work(), &data.join("logs")).await.context("make safe what was under way");
    kernel.stop(STOP).await;
    let outcome = outcome?;
    let (from, to) = (data, config.data_directory.clone());
    tokio::task::spawn_blocking(move || place(&from, &to)).await.context("placing")??;
    // The last of it: from now on a server may start.
    std::fs::remove_dir_all(part).with_context(|| format!("remove {}", part.display()))?;
    sync(&config.data_directory)?;
    Ok(outcome)
}

/// Moves what is in one folder into another of the same file system, durably.
fn place(from: &Path, to: &Path) -> Result<()> {
    let owner = std::fs::metadata(to).with_context(|| format!("look at {}", to.display()))?;
    for name in children(from)? {
        let item = from.join(&name);
        give(&item, owner.uid(), owner.gid()).with_context(|| format!("give {} to its owner", item.display()))?;
        std::fs::rename(&item, to.join(&name)).with_context(|| format!("name {}", to.join(&name).display()))?;
    }
    sync(to)
}

fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|item| Ok(item?.file_name().into())).collect()
}

/// Whoever restores may be root, and the server another account.
fn give(item: &Path, user: u32, group: u32) -> io::Result<()> {
    let about = std::fs::symlink_metadata(item)?;
    if (about.uid(), about.gid()) != (user, group) {
        lchown(item, Some(user), Some(group))?;
    }
    if about.is_dir() {
        for name in children(item)? {
            give(&item.join(name), user, group)?;
        }
    }
    Ok(())
}

fn sync(folder: &Path) -> Result<()> {
    let synced = std::fs::File::open(folder).and_then(|open| open.sync_all());
    synced.with_context(|| format!("sync {}", folder.display()))
}
