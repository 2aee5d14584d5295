//! Which artifacts anybody needs, and removing those that nobody does.
//!
//! Rows go first, files afterwards: what a crash leaves in between is found by [`sweep`]. Invariant: from the moment when
//! an artifact was seen to be there until the row that names it is committed none is removed, and none is named from the
//! moment when no row was seen to name it until it is gone.

use std::collections::HashSet;

use drover_kernel::{Error, Kernel, Result, args, sql};
use drover_shared::Digest;
use tokio::sync::OwnedMutexGuard;

use super::ArtifactStore;
use crate::engine::Engine;

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
        tokio::task::spawn_blocking(move || artifacts.contains(digest)).await.map_err(Error::internal)
    }

    async fn remove(&self, digests: Vec<Digest>) -> Result<()> {
        let artifacts = self.artifacts.clone();
        let remove = move || digests.into_iter().try_for_each(|digest| artifacts.remove(digest));
        tokio::task::spawn_blocking(remove).await.map_err(Error::internal)?.map_err(Error::internal)
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

/// Removes every artifact that no row names: those of applications that were deleted, and what a crash left.
///
/// # Errors
/// When the database or the disk is not available; the next round does what this one left.
pub async fn sweep(kernel: &Kernel) -> Result<()> {
    let artifacts = kernel.part::<Engine>().artifacts.clone();
    for first in 0..=u8::MAX {
        let artifacts = artifacts.clone();
        let all = tokio::task::spawn_blocking(move || artifacts.beginning_with(first)).await;
        let all = all.map_err(Error::internal)?.map_err(Error::internal)?;
        for some in all.chunks(LOOKED_FOR) {
            let naming = Naming::begin(kernel).await;
            let named = named(kernel, some).await?;
            naming.remove(some.iter().filter(|digest| !named.contains(&digest.to_string())).copied().collect()).await?;
        }
    }
    Ok(())
}

/// Those of these artifacts that a row names. A task that is over counts: a revert may want what it installed.
async fn named(kernel: &Kernel, digests: &[Digest]) -> Result<HashSet<String>> {
    let digests: Vec<String> = digests.iter().map(Digest::to_string).collect();
    let mut read = kernel.work().read().await?;
    let by_archives = sql!("SELECT DISTINCT artifact_digest FROM archives WHERE artifact_digest IN ($1)");
    let by_tasks = sql!("SELECT DISTINCT artifact_digest FROM tasks WHERE artifact_digest IN ($1)");
    let mut named: HashSet<String> = read.values(by_archives, args![digests.clone()]).await?.into_iter().collect();
    named.extend(read.values::<String>(by_tasks, args![digests]).await?);
    Ok(named)
}
