//! Versions that a host had once and keeps no longer: what they were made of is had again.
//!
//! Invariant: what is installed again is the archive that was installed then, byte by byte: the one in the server's
//! store, or one that is packed anew from the same commit and has the same digest. A host gets only what it had.

use std::collections::BTreeSet;

use drover_kernel::at_once::blocking;
use drover_kernel::db::Read;
use drover_kernel::{Error, Kernel, Result, args, row, sql};
use drover_shared::Digest;

use super::plan::Artifact;
use super::premises::{KeptRelease, Target};
use super::preview;
use super::store::{Source, Task};
use crate::artifacts::ArtifactError;
use crate::engine::Engine;
use crate::settings::rules::Values;

/// How reverts get at what they return to.
pub(super) struct Return {
    /// Releases that hosts keep.
    pub kept: Vec<KeptRelease>,
    /// Where the others come from.
    pub source: Option<Source>,
}

/// Finds for every target the kept release that has this version, the newest if there are several, or else what the
/// target had under this version.
pub(super) async fn find(
    read: &mut Read,
    kept: &[KeptRelease],
    targets: &[Target],
    version: &str,
    settings: &Values,
) -> Result<Return> {
    let mut chosen = Vec::with_capacity(targets.len());
    let mut without = Vec::new();
    for target in targets {
        let of_version = || kept.iter().filter(|one| one.instance_id == target.instance_id && one.version == version);
        // Branches and labels name several releases: what is live already is nothing to go back to if there is another.
        match of_version().find(|release| !release.is_current).or_else(|| of_version().next()) {
            Some(release) => chosen.push(release.clone()),
            None => without.push(target),
        }
    }
    if without.is_empty() {
        return Ok(Return { kept: chosen, source: None });
    }
    let had = last_installed(read, &without, version).await?;
    if let Some(target) = without.iter().find(|target| !had.iter().any(|(id, _)| *id == target.instance_id)) {
        return Err(never_had(kept, target, version));
    }
    let artifacts: BTreeSet<Digest> = had.iter().filter_map(|(_, task)| task.artifact_digest).collect();
    if artifacts.len() > 1 {
        return Err(Error::conflict(format!(
            "version {version} was not the same on all of these instances, and not all of them keep it: take them back \
             one after another"
        )));
    }
    let source = had.into_iter().next().and_then(|(_, task)| source_of(task, settings));
    Ok(Return { kept: chosen, source })
}

fn never_had(kept: &[KeptRelease], target: &Target, version: &str) -> Error {
    let of_target = kept.iter().filter(|release| release.instance_id == target.instance_id);
    let mut versions: Vec<&str> = of_target.map(|release| release.version.as_str()).collect();
    versions.dedup();
    let kept = if versions.is_empty() { "nothing".to_owned() } else { versions.join(", ") };
    Error::conflict(format!(
        "version {version} is not among the releases that {} keeps; it keeps {kept}",
        target.host_name
    ))
}

/// The update that last installed a version on each of these instances, where there was one.
async fn last_installed(read: &mut Read, targets: &[&Target], version: &str) -> Result<Vec<(i64, Task)>> {
    row! {
        struct Last {
            instance_id: i64,
            task_id: i64,
        }
    }
    let ids: Vec<i64> = targets.iter().map(|target| target.instance_id).collect();
    let last = sql!(
        "SELECT instance_id, task_id FROM (SELECT e.instance_id, t.id AS task_id, \
         ROW_NUMBER() OVER (PARTITION BY e.instance_id ORDER BY t.taken DESC, t.id DESC) AS place \
         FROM executions e JOIN tasks t ON t.id = e.task_id \
         WHERE e.instance_id IN ($1) AND e.state = 'succeeded' AND t.version = $2 AND t.kind = 'upgrade' \
         AND t.artifact_digest IS NOT NULL AND t.resolved_commit IS NOT NULL AND t.source IS NOT NULL) n \
         WHERE place = 1"
    );
    let last: Vec<Last> = read.all(last, args![ids, version]).await?;
    let task_ids: BTreeSet<i64> = last.iter().map(|last| last.task_id).collect();
    let tasks = sql!("SELECT * FROM tasks WHERE id IN ($1)");
    let tasks: Vec<Task> = read.all(tasks, args![task_ids.into_iter().collect::<Vec<i64>>()]).await?;
    let task_of = |id: i64| tasks.iter().find(|task| task.id == id).cloned();
    Ok(last.into_iter().filter_map(|last| Some((last.instance_id, task_of(last.task_id)?))).collect())
}

/// The source of an update, held to what came out of it. The same repository is reached as it is now.
fn source_of(task: Task, settings: &Values) -> Option<Source> {
    let mut source = task.source?.0;
    source.commit = task.resolved_commit;
    source.artifact = task.artifact_digest;
    if let Some(present) = settings.repository.as_ref().filter(|present| present.url == source.url) {
        source.credential_id = present.credential_id;
        source.host_key.clone_from(&present.host_key);
        source.ca_certificate.clone_from(&present.ca_certificate);
    }
    Some(source)
}

/// The archive of a source that is held to one, if the server still has it.
pub(crate) async fn stored(kernel: &Kernel, source: &Source) -> Result<Option<Artifact>> {
    match source.artifact {
        Some(digest) => in_store(kernel, digest).await,
        None => Ok(None),
    }
}

/// An artifact as plans name it, if the server has it.
pub(crate) async fn in_store(kernel: &Kernel, digest: Digest) -> Result<Option<Artifact>> {
    let artifacts = kernel.part::<Engine>().artifacts.clone();
    let look = move || {
        let size_bytes = artifacts.read(digest)?.size_bytes();
        Ok(Artifact { digest, size_bytes, index: artifacts.index(digest)? })
    };
    match blocking(look).await? {
        Ok(artifact) => Ok(Some(artifact)),
        Err(ArtifactError::Missing(_)) => Ok(None),
        Err(error) => Err(Error::internal(error)),
    }
}

/// Refuses what cannot be had again: neither is the archive here nor the commit in its repository; and a version that
/// nobody has uploaded. Asks the repository.
///
/// # Errors
/// A conflict with the reason.
pub(super) async fn check(kernel: &Kernel, organisation_id: i64, version: &str, source: &Source) -> Result<()> {
    if source.archive_of.is_some() && source.artifact.is_none() {
        // Whether an archive was uploaded is known at once.
        return preview::commit(kernel, organisation_id, Some(source)).await.map(drop);
    }
    if source.artifact.is_none() || stored(kernel, source).await?.is_some() {
        return Ok(());
    }
    match preview::commit(kernel, organisation_id, Some(source)).await {
        Ok(_) => Ok(()),
        Err(Error::Conflict(reason)) => {
            let reason = reason.strip_prefix(preview::SOURCE_FAILED).unwrap_or(&reason);
            Err(Error::conflict(format!(
                "version {version} is not kept on every host, and what it was made of cannot be had again: {reason}"
            )))
        }
        Err(error) => Err(error),
    }
}
