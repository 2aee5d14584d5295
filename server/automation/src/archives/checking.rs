//! What happens to an archive that has come whole, and to one that never does.
//!
//! Invariant: an archive becomes ready in the transaction that names its artifact, which is durable by then; what is
//! refused leaves nothing but the reason. A check may be done twice.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_kernel::at_once::blocking;
use drover_kernel::{Audit, Error, Kernel, Result};
use drover_shared::Digest;
use sha2::{Digest as _, Sha256};

use super::rules::State;
use super::store::{self, Archive};
use super::{Archives, CancellationToken, entry, lock, receiving};
use crate::artifacts::{self, Naming};
use crate::engine::Engine;
use crate::source::{SourceError, Upload};

/// How long what has come of an archive waits for the rest.
pub(super) const UNFINISHED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Pause before what could not be checked is looked at again.
const AGAIN: Duration = Duration::from_secs(60);
/// Times that an archive is packed because the artifact was removed at the same time.
const PACKED_TIMES_MAX: usize = 5;

/// Why an archive is not ready.
enum Unready {
    /// It never will be.
    Refused(String),
    /// Something on this server is in the way.
    Hindered(String),
}

/// Begins to check an archive, unless this server is at it already.
pub(super) fn start(kernel: &Kernel, archive: Archive) {
    let archives = kernel.part::<Archives>();
    if !lock(&archives.checking).insert(archive.id) {
        return;
    }
    let owner = kernel.clone();
    kernel.spawn(async move {
        let stop = owner.stopping();
        let id = archive.id;
        let work = async {
            let place = archives.checks.acquire().await;
            if stop.is_cancelled() {
                return;
            }
            if let Err(error) = check(&owner, archive).await {
                tracing::warn!(id, %error, "an archive could not be checked; the sweep tries again");
                drop(place);
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = work => {}
            // The next start checks it again.
            () = stop.cancelled() => {}
        }
        lock(&owner.part::<Archives>().checking).remove(&id);
    });
}

async fn check(kernel: &Kernel, archive: Archive) -> Result<()> {
    let file = kernel.part::<Archives>().file(archive.id);
    let (outcome, naming) = packed_and_there(kernel, &archive, file).await?;
    let mut tx = kernel.work().begin(archive.organisation_id).await?;
    let Some(row) = store::find(&mut tx, archive.application_id, archive.id).await? else {
        drop((tx, naming));
        // It was deleted meanwhile, and so is what was made of it.
        if let Ok(upload) = outcome {
            artifacts::remove_unneeded(kernel, upload.digest).await;
        }
        receiving::forget(kernel, archive.id).await;
        return Ok(());
    };
    if row.state != State::Checking {
        return Ok(());
    }
    let detail = match &outcome {
        Ok(upload) => {
            store::set_ready(&mut tx, row.id, upload).await?;
            format!("ready: {} files, artifact {}", upload.files, upload.digest)
        }
        Err(Unready::Refused(reason)) => {
            store::set_refused(&mut tx, row.id, reason).await?;
            format!("refused: {reason}")
        }
        Err(Unready::Hindered(reason)) => {
            store::set_waiting(&mut tx, row.id, reason).await?;
            tx.finish(Audit::none("nothing is decided about the archive yet")).await?;
            return Err(Error::Unavailable(reason.clone()));
        }
    };
    let entry = entry(&mut tx, "update", &row).await?.detail(detail);
    tx.finish(Audit::of(entry)).await?;
    drop(naming);
    receiving::forget(kernel, row.id).await;
    Ok(())
}

/// Packs an archive, and keeps the artifact from being removed until its row names it.
async fn packed_and_there(
    kernel: &Kernel,
    archive: &Archive,
    file: PathBuf,
) -> Result<(Result<Upload, Unready>, Option<Naming>)> {
    // What was the same as another archive's may have gone with that before it was held.
    for _ in 0..PACKED_TIMES_MAX {
        let upload = match packed(kernel, archive, file.clone()).await {
            Ok(upload) => upload,
            Err(unready) => return Ok((Err(unready), None)),
        };
        let naming = Naming::begin(kernel).await;
        if naming.has(upload.digest).await? {
            return Ok((Ok(upload), Some(naming)));
        }
    }
    Err(Error::Unavailable("what was packed was removed again and again".to_owned()))
}

async fn packed(kernel: &Kernel, archive: &Archive, file: PathBuf) -> Result<Upload, Unready> {
    let stop = kernel.stopping();
    let hindered = |error: io::Error| Unready::Hindered(format!("what was uploaded cannot be read: {error}"));
    let (path, hashing) = (file.clone(), stop.clone());
    let hashed = tokio::task::spawn_blocking(move || hash(&path, &hashing)).await;
    let (found, length) = hashed.map_err(|error| hindered(io::Error::other(error)))?.map_err(hindered)?;
    if found != archive.sha256 || length != archive.size_bytes.unsigned_abs() {
        return Err(Unready::Refused(format!(
            "what came has SHA-256 {found}, and {} was announced; upload it again",
            archive.sha256
        )));
    }
    kernel.part::<Engine>().sources.pack_upload(file, stop).await.map_err(|error| match error {
        SourceError::Storage(reason) => Unready::Hindered(reason),
        error => Unready::Refused(error.to_string()),
    })
}

/// Digest and length of a file.
fn hash(path: &Path, stop: &CancellationToken) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut piece = vec![0; 256 * 1024];
    loop {
        if stop.is_cancelled() {
            return Err(io::Error::other("the server stops"));
        }
        match file.read(&mut piece)? {
            0 => return Ok((Digest::from_bytes(hash.finalize().into()), length)),
            count => {
                hash.update(&piece[..count]);
                length += count as u64;
            }
        }
    }
}

/// Looks after archives: those that came whole while nobody could check them, those that never come whole, and files
/// that belong to none.
///
/// # Errors
/// When the database is not available; the next round does what this one left.
pub(crate) async fn sweep(kernel: &Kernel) -> Result<()> {
    let archives = kernel.part::<Archives>();
    // Before the table is read: a file comes after its row.
    let files = files(&archives.folder).await;
    let rows = store::at_work(&mut kernel.work().read().await?).await?;
    for id in files.into_iter().filter(|id| rows.iter().all(|row| row.id != *id)) {
        receiving::forget(kernel, id).await;
    }
    let now = kernel.clock().now();
    for row in rows {
        let is_late = now >= row.touched_at.after(UNFINISHED_KEPT);
        match row.state {
            State::Receiving if is_late && !archives.is_coming(row.id) => expire(kernel, &row).await?,
            State::Checking => start(kernel, row),
            State::Receiving | State::Ready | State::Refused => {}
        }
    }
    Ok(())
}

async fn expire(kernel: &Kernel, row: &Archive) -> Result<()> {
    let mut tx = kernel.work().begin(row.organisation_id).await?;
    let present = store::hold(&mut tx, row.application_id, row.id).await?;
    if present.state != State::Receiving || present.touched_at != row.touched_at {
        return Ok(());
    }
    store::delete(&mut tx, row.id).await?;
    let entry = entry(&mut tx, "delete", row).await?.detail("nothing more of it came for a day");
    tx.finish(Audit::of(entry)).await?;
    receiving::forget(kernel, row.id).await;
    Ok(())
}

/// Ids of the archives that something has come of.
async fn files(folder: &Path) -> Vec<i64> {
    let folder = folder.to_owned();
    let list = move || {
        let items = std::fs::read_dir(folder).into_iter().flatten().flatten();
        items.filter_map(|item| item.file_name().to_string_lossy().parse().ok()).collect()
    };
    blocking(list).await.unwrap_or_default()
}
