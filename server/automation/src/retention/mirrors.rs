//! Mirrors of repositories: which are not needed any more.
//!
//! Invariant: a mirror stays as long as settings name its repository, or a task was fetched from it: what a revert installs
//! again is packed anew from its commit, which the repository itself may have forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use drover_kernel::at_once::blocking;
use drover_kernel::jobs::Work;
use drover_kernel::{Error, Kernel, Result};
use drover_shared::Digest;

use super::store::EndedRow;
use super::{Counted, rules, store};
use crate::engine::Engine;
use crate::source::{self, Sources};

/// Removes the mirrors that nothing needs. One that is in use waits for the next time. Gives what went.
///
/// # Errors
/// When the database or the disk is not available; the next time does what this one left.
pub async fn sweep(kernel: &Kernel) -> Result<Counted> {
    let sources: &Sources = &kernel.part::<Engine>().sources;
    let mut removed = Counted::default();
    for key in chosen(&kernel.work(), sources.folder(), &[]).await? {
        let bytes = measured(sources.folder(), key).await?;
        if sources.remove(key).await.map_err(Error::internal)? {
            removed.add(Counted { count: 1, bytes });
        }
    }
    Ok(removed)
}

/// What [`sweep`] would remove once these tasks are gone.
pub(super) async fn unneeded(work: &Work, folder: &Path, without: &[EndedRow]) -> Result<Counted> {
    let mut unneeded = Counted::default();
    for key in chosen(work, folder, without).await? {
        unneeded.add(Counted { count: 1, bytes: measured(folder, key).await? });
    }
    Ok(unneeded)
}

async fn measured(folder: &Path, key: Digest) -> Result<u64> {
    let folder = folder.to_owned();
    blocking(move || source::bytes_of(&folder, key)).await
}

/// Mirrors that nothing needs once these tasks are gone.
async fn chosen(work: &Work, folder: &Path, without: &[EndedRow]) -> Result<BTreeSet<Digest>> {
    let folder = folder.to_owned();
    let mut mirrors = blocking(move || source::mirrors(&folder)).await?.map_err(Error::internal)?;
    let settings = store::repositories(work).await?;
    for url in settings {
        mirrors.remove(&source::key(&url));
    }
    // To ask about every task is only worth it for mirrors that no settings name.
    if !mirrors.is_empty() {
        let mut going: BTreeMap<String, u64> = BTreeMap::new();
        for url in without.iter().filter_map(|task| task.url.clone()) {
            *going.entry(url).or_default() += 1;
        }
        let tasks = store::fetched_from(work).await?;
        for url in rules::fetched_from(&tasks, &going) {
            mirrors.remove(&source::key(url));
        }
    }
    Ok(mirrors)
}
