//! Which artifacts anybody needs, and removing those that nobody does.
//!
//! Rows go first, files afterwards: what a crash leaves in between is found by [`sweep`]. Invariant: from the moment when
//! an artifact was seen to be there until the row that names it is committed none is removed, and none is named from the
//! moment when no row was seen to name it until it is gone.

use std::collections::HashSet;

use drover_kernel::at_once::blocking;
use drover_kernel::db::Read;
use drover_kernel::{Error, Kernel, Result, args, row, sql};
use drover_shared::Digest;
use tokio::sync::OwnedMutexGuard;

use super::ArtifactStore;
use crate::engine::Engine;
use crate::retention::Counted;

/// Artifacts that are looked for in the tables at a time.
const LOOKED_FOR: usize = 500;

/// The right to name artifacts in a table, or to remove those that none names. To be had before a transaction begins.
pub(crate) struct Naming {
    artifacts: ArtifactStore,
    _held: OwnedMutexGuard<()>,
}

impl Naming {
    /// Waits for whoever has it.
    pub(crate) async fn begin(kernel: &Kernel) -> Self {
        let engine = kernel.part::<Engine>();
        Self { artifacts: engine.artifacts.clone(), _held: engine.naming.clone().lock_owned().await }
    }

    /// Whether an artifact is there. It stays as long as this is held.
    ///
    /// # Errors
    /// When the server stops.
    pub(crate) async fn has(&self, digest: Digest) -> Result<bool> {
        let artifacts = self.artifacts.clone();
        blocking(move || artifacts.contains(digest)).await
    }

    async fn remove(&self, digests: Vec<Digest>) -> Result<()> {
        let artifacts = self.artifacts.clone();
        let remove = move || digests.into_iter().try_for_each(|digest| artifacts.remove(digest));
        blocking(remove).await?.map_err(Error::internal)
    }
}

/// Removes an artifact, unless an archive has it or a task that is not over.
pub(crate) async fn remove_unneeded(kernel: &Kernel, digest: Digest) {
    let remove = async {
        let naming = Naming::begin(kernel).await;
        let needed = sql!(
            "SELECT (SELECT COUNT(*) FROM archives WHERE artifact_digest = $1) \
             + (SELECT COUNT(*) FROM tasks WHERE artifact_digest = $1 AND phase <> 'over')"
        );
        let needed: i64 = kernel.work().read().await?.value(needed, args![digest]).await?;
        if needed == 0 { naming.remove(vec![digest]).await } else { Ok(()) }
    };
    if let Err(error) = remove.await {
        tracing::warn!(%error, "an artifact that nothing needs stays");
    }
}

/// Removes every artifact that no row names: those of applications that were deleted, those that retention gave up, and
/// what a crash left. Gives what went.
///
/// # Errors
/// When the database or the disk is not available; the next round does what this one left.
pub async fn sweep(kernel: &Kernel) -> Result<Counted> {
    let artifacts = kernel.part::<Engine>().artifacts.clone();
    let mut removed = Counted::default();
    for first in 0..=u8::MAX {
        let store = artifacts.clone();
        let all = blocking(move || store.beginning_with(first)).await?.map_err(Error::internal)?;
        for some in all.chunks(LOOKED_FOR) {
            let naming = Naming::begin(kernel).await;
            let named = named(&mut kernel.work().read().await?, some, &HashSet::new()).await?;
            let unnamed: Vec<Digest> =
                some.iter().filter(|digest| !named.contains(&digest.to_string())).copied().collect();
            if !unnamed.is_empty() {
                let gone = measured(&artifacts, unnamed.clone()).await?;
                naming.remove(unnamed).await?;
                removed.add(gone);
            }
        }
    }
    Ok(removed)
}

/// What [`sweep`] would remove once these tasks name nothing any more.
///
/// # Errors
/// When the database or the disk is not available.
pub(crate) async fn unneeded(read: &mut Read, artifacts: &ArtifactStore, without: &HashSet<i64>) -> Result<Counted> {
    let mut unneeded = Counted::default();
    for first in 0..=u8::MAX {
        let store = artifacts.clone();
        let all = blocking(move || store.beginning_with(first)).await?.map_err(Error::internal)?;
        for some in all.chunks(LOOKED_FOR) {
            let named = named(read, some, without).await?;
            let unnamed = some.iter().filter(|digest| !named.contains(&digest.to_string())).copied().collect();
            unneeded.add(measured(artifacts, unnamed).await?);
        }
    }
    Ok(unneeded)
}

/// How many artifacts these are, with their bytes.
async fn measured(artifacts: &ArtifactStore, digests: Vec<Digest>) -> Result<Counted> {
    let artifacts = artifacts.clone();
    let measure = move || {
        let mut counted = Counted::default();
        for digest in digests {
            if let Some(bytes) = artifacts.bytes_on_disk(digest) {
                counted.add(Counted { count: 1, bytes });
            }
        }
        counted
    };
    blocking(measure).await
}

/// Those of these artifacts that a row names. A task that is over counts, because a revert may want what it installed,
/// until retention gives its artifact up.
async fn named(read: &mut Read, digests: &[Digest], without: &HashSet<i64>) -> Result<HashSet<String>> {
    row! {
        struct Names {
            id: i64,
            artifact_digest: String,
        }
    }
    let digests: Vec<String> = digests.iter().map(Digest::to_string).collect();
    let by_archives = sql!("SELECT DISTINCT artifact_digest FROM archives WHERE artifact_digest IN ($1)");
    let by_tasks =
        sql!("SELECT id, artifact_digest FROM tasks WHERE artifact_digest IN ($1) AND artifact_removed_at IS NULL");
    let mut named: HashSet<String> = read.values(by_archives, args![digests.clone()]).await?.into_iter().collect();
    let tasks: Vec<Names> = read.all(by_tasks, args![digests]).await?;
    named.extend(tasks.into_iter().filter(|task| !without.contains(&task.id)).map(|task| task.artifact_digest));
    Ok(named)
}
