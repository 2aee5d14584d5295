//! Completing a plan: the source is fetched once, and every entry gets the artifact that its agent will verify.

use std::collections::hash_map::Entry;

use drover_kernel::{Audit, Error, Kernel, Result};
use drover_shared::{Digest, order};
use tokio_util::sync::CancellationToken;

use super::{Engine, advance, close_log, end, entry_texts, lock, plan_digest};
use crate::archives;
use crate::artifacts::Naming;
use crate::credentials::rules::CredentialType;
use crate::credentials::store as credential_store;
use crate::settings;
use crate::source::login::fingerprints;
use crate::source::{Access, Credential, GitSource};
use crate::tasks::former;
use crate::tasks::plan::{self, Artifact};
use crate::tasks::rules::Outcome;
use crate::tasks::store::{self as task_store, Source, Task};

/// Lines of progress that may wait to be written.
const PROGRESS_LINES: usize = 256;

/// Begins to fetch a task's source, unless this server is at it already.
pub(super) fn start(kernel: &Kernel, task: Task) {
    let engine = kernel.part::<Engine>();
    let given_up = CancellationToken::new();
    match lock(&engine.preparing).entry(task.id) {
        Entry::Occupied(_) => return,
        Entry::Vacant(place) => place.insert(given_up.clone()),
    };
    let owner = kernel.clone();
    kernel.spawn(async move {
        let task_id = task.id;
        let stop = owner.stopping();
        let outcome = tokio::select! {
            biased;
            // The next start fetches it again. Asked first: a fetch that fails because everything stops is no failure.
            () = stop.cancelled() => Ok(()),
            () = given_up.cancelled() => Ok(()),
            outcome = prepare(&owner, &task) => outcome,
        };
        lock(&owner.part::<Engine>().preparing).remove(&task_id);
        let moved = match outcome {
            Ok(()) if stop.is_cancelled() => Ok(()),
            Ok(()) => advance(&owner, task_id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = moved {
            tracing::warn!(task_id, %error, "a task could not be prepared; the sweep tries again");
        }
    });
}

async fn prepare(kernel: &Kernel, task: &Task) -> Result<()> {
    let Some(source) = task.source.as_ref().map(|json| &json.0) else {
        return Err(Error::internal(format!("task {} has neither plan nor source", task.id)));
    };
    if let Some((artifact, commit)) = former::stored(kernel, source).await?.zip(source.commit.as_ref()) {
        return complete(kernel, task, artifact, commit).await;
    }
    let fetched = match source.archive_of {
        Some(application_id) => take_archive(kernel, task, application_id, source).await,
        None => fetch(kernel, task, source).await.map(|fetched| (fetched.digest, fetched.commit)),
    };
    match fetched {
        Ok((digest, commit)) => {
            let artifact = former::in_store(kernel, digest).await?;
            let artifact = artifact.ok_or_else(|| Error::internal(format!("artifact {digest} is gone")))?;
            complete(kernel, task, artifact, &commit).await
        }
        Err(Error::Conflict(reason)) => cannot_be_had(kernel, task, &reason).await,
        // What is in the way on this server passes.
        Err(error) => Err(error),
    }
}

/// Takes the archive that was uploaded, or a part of it; gives its digest as well.
async fn take_archive(kernel: &Kernel, task: &Task, application_id: i64, source: &Source) -> Result<(Digest, String)> {
    let engine = kernel.part::<Engine>();
    let mut read = kernel.work().read().await?;
    let archive = archives::find(&mut read, application_id, &source.version, source.commit.as_deref()).await?;
    drop(read);
    let commit = archive.sha256.to_string();
    let line = format!("Version {} is archive {} with SHA-256 {commit}", source.version, archive.name);
    engine.notice(task.id, kernel.clock().now(), &line).await;
    let (digest, size_bytes) = archives::artifact(kernel, &archive, &source.path).await?;
    if let Some(wanted) = source.artifact.filter(|wanted| *wanted != digest) {
        let text = format!("archive {commit} packs to artifact {digest} now, and was artifact {wanted}");
        return Err(Error::conflict(text));
    }
    engine.notice(task.id, kernel.clock().now(), &format!("Artifact {digest} has {size_bytes} bytes")).await;
    Ok((digest, commit))
}

/// Fetches with its progress in the task's output.
async fn fetch(kernel: &Kernel, task: &Task, source: &Source) -> Result<crate::source::Fetched> {
    let engine = kernel.part::<Engine>();
    let wanted = GitSource {
        url: source.url.clone(),
        branch: source.branch.clone(),
        version: source.commit.clone().unwrap_or_else(|| source.version.clone()),
        path: (!source.path.is_empty()).then(|| source.path.clone()),
    };
    let access = access(kernel, task.organisation_id, source).await?;
    let (lines, mut progress) = tokio::sync::mpsc::channel::<String>(PROGRESS_LINES);
    let writer = {
        let (engine, kernel, task_id) = (engine.clone(), kernel.clone(), task.id);
        kernel.clone().spawn(async move {
            while let Some(line) = progress.recv().await {
                engine.notice(task_id, kernel.clock().now(), &line).await;
            }
        })
    };
    // A line that finds the queue full is left out: progress is no record.
    let tell = move |line: String| drop(lines.try_send(line));
    let outcome = engine.sources.fetch(&wanted, &access, &tell).await;
    drop(tell);
    let _ = writer.await;
    if let Ok(fetched) = &outcome {
        for notice in &fetched.notices {
            engine.notice(task.id, kernel.clock().now(), notice).await;
        }
    }
    let fetched = outcome.map_err(|error| Error::conflict(error.to_string()))?;
    if let Some(keys) = &fetched.trusted {
        trust(kernel, task, source, keys).await?;
    }
    held_to(source, &fetched).map_err(Error::conflict)?;
    Ok(fetched)
}

/// Refuses anything but what the source is held to.
fn held_to(source: &Source, fetched: &crate::source::Fetched) -> Result<(), String> {
    if let Some(commit) = source.commit.as_ref().filter(|commit| **commit != fetched.commit) {
        return Err(format!("commit {commit} is no longer in the repository"));
    }
    if let Some(digest) = source.artifact.filter(|digest| *digest != fetched.digest) {
        let commit = &fetched.commit;
        return Err(format!("commit {commit} packs to archive {} now, and was archive {digest}", fetched.digest));
    }
    Ok(())
}

/// What the repository is reached with: the secret is opened here, and not before.
///
/// # Errors
/// A conflict with a sentence for people: it was deleted, or cannot be opened.
pub(crate) async fn access(kernel: &Kernel, organisation_id: i64, source: &Source) -> Result<Access> {
    let mut access =
        Access { credential: None, host_key: source.host_key.clone(), ca_certificate: source.ca_certificate.clone() };
    if let Some(id) = source.credential_id {
        let row = credential_store::find(&mut kernel.work().read().await?, organisation_id, id).await?;
        let gone = || Error::conflict("the credential of the repository was deleted since the sub-task was made");
        let row = row.ok_or_else(gone)?;
        let unreadable = |error: Error| Error::conflict(format!("the credential cannot be read: {error}"));
        let secret = credential_store::open(kernel, &row).map_err(unreadable)?;
        access.credential = Some(match row.credential_type {
            CredentialType::Password => Credential::Password { username: row.username, password: secret },
            CredentialType::SshPrivateKey => Credential::PrivateKey { username: row.username, private_key: secret },
        });
    }
    Ok(access)
}

/// Remembers the key that a repository's host showed first, and says so in the output and in the audit.
async fn trust(kernel: &Kernel, task: &Task, source: &Source, keys: &str) -> Result<()> {
    let Some((owner, application_id)) = source.owner.zip(task.application_id) else { return Ok(()) };
    let shown = fingerprints(keys);
    let mut tx = kernel.work().begin(task.organisation_id).await?;
    let is_new = settings::store::trust(&mut tx, owner, &source.url, keys).await?;
    let entries = if is_new { vec![settings::trusted(&mut tx, owner, application_id, &shown).await?] } else { vec![] };
    tx.finish(Audit::all(entries)).await?;
    let line = format!("The host of {} showed {shown} for the first time: this key is pinned from now on.", source.url);
    kernel.part::<Engine>().notice(task.id, kernel.clock().now(), &line).await;
    Ok(())
}

async fn complete(kernel: &Kernel, task: &Task, artifact: Artifact, commit: &str) -> Result<()> {
    let naming = Naming::begin(kernel).await;
    if !naming.has(artifact.digest).await? {
        return Err(Error::Unavailable(format!("artifact {} was removed meanwhile", artifact.digest)));
    }
    let work = kernel.work();
    let mut tx = work.begin(task.organisation_id).await?;
    let Some(task) = task_store::lock(&mut tx, task.id).await? else { return Ok(()) };
    // Stopped meanwhile: it is given up, and nothing of it starts.
    if task.plan_digest.is_some() || task.outcome.is_some() || task.stop_reason.is_some() {
        return Ok(());
    }
    let scripts = task_store::scripts(&mut tx, task.id).await?;
    let mut entries = Vec::with_capacity(scripts.len());
    for script in &scripts {
        let draft: order::Entry = serde_json::from_str(&script.entry).map_err(Error::internal)?;
        entries.push(plan::complete(draft, task.id, Some(artifact), task.keep_backups));
    }
    let texts = entry_texts(&entries);
    for (script, text) in scripts.iter().zip(&texts) {
        task_store::set_entry(&mut tx, &script.execution_id, text).await?;
    }
    let digest = plan_digest(&task, Some(commit), &texts);
    // The engine enters the first phase when it looks at the task next.
    task_store::complete_plan(&mut tx, task.id, task.phase, digest, Some(artifact.digest), Some(commit)).await?;
    tx.finish(Audit::none("the plan was rendered when the task was made; here its source is pinned")).await
}

/// Ends a task that could not be prepared; everything else is as it was.
pub(super) async fn fail(kernel: &Kernel, task: &Task, reason: &str) -> Result<()> {
    stop_fetching(kernel, task);
    cannot_be_had(kernel, task, reason).await
}

/// As [`fail`], from within the fetch: it must not end itself before it has ended its task.
async fn cannot_be_had(kernel: &Kernel, task: &Task, reason: &str) -> Result<()> {
    let text = format!("The source cannot be had: {reason}");
    kernel.part::<Engine>().notice(task.id, kernel.clock().now(), &text).await;
    end_unprepared(kernel, task, Some(reason)).await
}

/// Ends a task that a person stopped while its source was being fetched. Nothing of it ever started.
pub(super) async fn give_up(kernel: &Kernel, task: &Task) -> Result<()> {
    stop_fetching(kernel, task);
    end_unprepared(kernel, task, None).await
}

/// Has the fetch given up that somebody else than itself ends the task of.
pub(super) fn stop_fetching(kernel: &Kernel, task: &Task) {
    if let Some(fetching) = lock(&kernel.part::<Engine>().preparing).get(&task.id) {
        fetching.cancel();
    }
}

async fn end_unprepared(kernel: &Kernel, task: &Task, reason: Option<&str>) -> Result<()> {
    let engine = kernel.part::<Engine>();
    let mut tx = kernel.work().begin(task.organisation_id).await?;
    let Some(task) = task_store::lock(&mut tx, task.id).await? else { return Ok(()) };
    if task.outcome.is_some() {
        return Ok(());
    }
    end(&mut tx, &task, Outcome::Failed, reason).await?;
    tx.finish(Audit::none("a task ends by itself")).await?;
    close_log(&engine, task.id, Outcome::Failed).await
}
