//! Archives that people upload, one for each version of an application.
//!
//! An upload follows tus 1.0 (core, creation, checksum, termination), so that it goes on where it broke off; what has
//! come whole is compared with the digest that was announced, checked member by member and packed into an artifact, as a
//! source from a repository is. Owns the table `archives` and the folder of what has not come whole. Invariants: the
//! offset that is told is durable; nothing can be deployed but what was checked; bytes flow while no transaction is open.

mod checking;
mod receiving;
pub mod rules;
pub(crate) mod store;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use drover_inventory::applications;
use drover_kernel::db::Read;
use drover_kernel::fields::Name;
use drover_kernel::room::Room;
use drover_kernel::routes::BASE;
use drover_kernel::{
    Audit, AuditEntry, AuditList, Call, Error, Kernel, Page, Paging, Path, Pieces, Query, Reply, Result, Routes,
    permission, when,
};
use drover_shared::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::rules::State;
use self::store::Archive;
use crate::artifacts;
use crate::engine::Engine;
use crate::source::Format;

pub(crate) use checking::sweep;

/// The version of tus that is spoken.
const TUS_VERSION: &str = "1.0.0";
const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");

/// Archives that are checked at a time: it takes a processor each.
const CHECKS_MAX: usize = 2;

permission!(
    pub View,
    "archives.view",
    "See the archives of an application",
    Resource { kind: "application", right: "view_app" }
);
permission!(
    pub Change,
    "archives.change",
    "Upload and delete archives of an application",
    Resource { kind: "application", right: "edit_app" }
);

/// Routes of archives.
pub fn routes() -> Routes {
    let base = "/applications/{id}/archives/";
    let one = "/applications/{id}/archives/{archive_id}/";
    Routes::tagged("archives")
        .get(base, "archives-list", "List the archives of an application, the newest first.", list)
        .post(
            base,
            "archive-create",
            "Announce an archive; its bytes follow at the address that is given (tus 1.0).",
            create,
        )
        .get(one, "archive-detail", "Read how far an archive is; the headers say the same (tus 1.0).", detail)
        .patch(one, "archive-append", "Send bytes of an archive from the offset on where it stands (tus 1.0).", append)
        .delete(one, "archive-delete", "Delete an archive that no task needs, whole or not.", delete)
}

/// What this server has of archives besides the table.
pub struct Archives {
    folder: PathBuf,
    turns: Mutex<HashMap<i64, Arc<receiving::Turn>>>,
    /// Archives that are being checked, or wait for it.
    checking: Mutex<HashSet<i64>>,
    checks: Semaphore,
}

impl Archives {
    /// Opens the folder of what has not come whole, making it if it is missing.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn open(folder: &FilePath) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (turns, checking) = (Mutex::default(), Mutex::default());
        Ok(Self { folder: folder.to_owned(), turns, checking, checks: Semaphore::new(CHECKS_MAX) })
    }

    fn file(&self, id: i64) -> PathBuf {
        self.folder.join(id.to_string())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An uploaded archive.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Archive")]
struct ArchiveOut {
    /// Id.
    id: i64,
    /// Application.
    application: i64,
    /// Version that it is deployed as.
    version: String,
    /// Name of its file.
    name: String,
    /// `receiving`, `checking`, `ready` or `refused`.
    state: State,
    /// Why it was refused, or cannot be checked for the moment.
    reason: Option<String>,
    /// Length of the whole in bytes.
    size_bytes: i64,
    /// How much of it is here, durable.
    offset: i64,
    /// SHA-256 of the whole, as announced.
    sha256: String,
    /// Form that it has.
    format: Option<Format>,
    /// SHA-256 of what agents fetch of it when no path inside is chosen.
    artifact_digest: Option<String>,
    /// Length of that in bytes.
    artifact_bytes: Option<i64>,
    /// Files and links in it.
    files: Option<i64>,
    /// Username that uploads it.
    creator: String,
    /// When it was announced.
    created_time: String,
    /// When what is here is thrown away unless more comes; null when all of it has come.
    expires_time: Option<String>,
}

impl ArchiveOut {
    fn new(kernel: &Kernel, row: Archive, offset: i64) -> Self {
        let expires = (row.state == State::Receiving).then(|| row.touched_at.after(checking::UNFINISHED_KEPT));
        Self {
            id: row.id,
            application: row.application_id,
            version: row.version,
            name: row.name,
            state: row.state,
            reason: row.reason,
            size_bytes: row.size_bytes,
            offset,
            sha256: row.sha256.to_string(),
            format: row.format,
            artifact_digest: row.artifact_digest.map(|digest| digest.to_string()),
            artifact_bytes: row.artifact_bytes,
            files: row.files,
            creator: row.creator,
            created_time: kernel.show(row.created_at),
            expires_time: expires.map(|at| kernel.show(at)),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ListFilters {
    /// Version.
    version: Option<Name>,
    /// Where it stands: `receiving`, `checking`, `ready` or `refused`.
    state: Option<State>,
}

async fn list(
    call: Call<View>,
    Path(id): Path<i64>,
    Query(filters): Query<ListFilters>,
    paging: Paging,
) -> Result<Reply<Page<ArchiveOut>>> {
    let mut conditions = Vec::new();
    conditions.extend(filters.version.map(|version| when!("a.version = $1", version.0)));
    conditions.extend(filters.state.map(|state| when!("a.state = $1", state)));
    let mut read = call.read().await?;
    let (count, rows) = store::list(&mut read, &paging, id, &conditions).await?;
    drop(read);
    let mut results = Vec::with_capacity(rows.len());
    for row in rows {
        let offset = receiving::seen(call.kernel(), &row).await;
        results.push(ArchiveOut::new(call.kernel(), row, offset));
    }
    Ok(Reply::new(paging.page(count, results)))
}

async fn detail(call: Call<View>, Path((id, archive_id)): Path<(i64, i64)>, headers: HeaderMap) -> Result<Response> {
    check_protocol(&headers)?;
    let row = store::load(&mut call.read().await?, id, archive_id).await?;
    let offset = receiving::durable(call.kernel(), &row).await?;
    let length = row.size_bytes;
    let mut answer = Reply::new(ArchiveOut::new(call.kernel(), row, offset)).into_response();
    answer.headers_mut().insert(UPLOAD_LENGTH, length.into());
    Ok(told(answer, offset))
}

async fn create(call: Call<Change>, Path(id): Path<i64>, headers: HeaderMap) -> Result<Response> {
    check_protocol(&headers)?;
    let new = rules::announced(text(&headers, "upload-length"), text(&headers, "upload-metadata"))?;
    let creator = call.caller()?.username.clone();
    let kernel = call.kernel().clone();
    let mut tx = call.begin().await?;
    let counts = store::counts(&mut tx, id).await?;
    check_counts(&counts)?;
    kernel.part::<Room>().require_bytes(new.size_bytes)?;
    let archive_id = store::insert(&mut tx, id, &new, &creator).await?;
    let row = store::load(&mut tx, id, archive_id).await?;
    let detail = format!("{}, {} bytes, SHA-256 {}", row.name, row.size_bytes, row.sha256);
    let entry = entry(&mut tx, "add", &row).await?.detail(detail);
    let mut answer = tx.commit(Audit::of(entry), ArchiveOut::new(&kernel, row, 0)).await?.into_response();
    *answer.status_mut() = StatusCode::CREATED;
    let place = format!("{BASE}/applications/{id}/archives/{archive_id}/");
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&place).map_err(Error::internal)?);
    Ok(told(answer, 0))
}

fn check_counts(counts: &store::Counts) -> Result<()> {
    let too_many = |what: String| Err(Error::conflict(what));
    if counts.all >= rules::ARCHIVES_MAX {
        return too_many(format!("an application has at most {} archives; delete some", rules::ARCHIVES_MAX));
    }
    if counts.unfinished >= rules::UNFINISHED_MAX {
        let most = rules::UNFINISHED_MAX;
        return too_many(format!("{most} uploads of this application are not finished; finish or delete some"));
    }
    if counts.unfinished_of_organisation >= rules::UNFINISHED_OF_ORGANISATION_MAX {
        let most = rules::UNFINISHED_OF_ORGANISATION_MAX;
        return too_many(format!("{most} uploads of this organisation are not finished; finish or delete some"));
    }
    Ok(())
}

async fn append(
    call: Call<Change>,
    Path((id, archive_id)): Path<(i64, i64)>,
    headers: HeaderMap,
    Pieces(pieces): Pieces,
) -> Result<Response> {
    check_protocol(&headers)?;
    let wanted = receiving::Wanted::read(&headers)?;
    let row = store::load(&mut call.read().await?, id, archive_id).await?;
    if row.state != State::Receiving {
        return Err(Error::conflict(format!("all of this archive has come: it is {}", row.state)));
    }
    let kernel = call.kernel().clone();
    // Whoever hangs up leaves the rest to this: what came is made durable and noted.
    let receiving = kernel.spawn(receiving::receive(call, row, wanted, pieces));
    let offset = receiving.await.map_err(Error::internal)??;
    Ok(told(StatusCode::NO_CONTENT.into_response(), offset))
}

async fn delete(call: Call<Change>, Path((id, archive_id)): Path<(i64, i64)>, headers: HeaderMap) -> Result<Response> {
    check_protocol(&headers)?;
    let kernel = call.kernel().clone();
    let mut tx = call.begin().await?;
    let row = store::hold(&mut tx, id, archive_id).await?;
    let tasks = store::needed_by(&mut tx, &row).await?;
    if let Some(task) = tasks.first() {
        return Err(Error::conflict(format!("the sub-task {task} needs version {} and is not over", row.version)));
    }
    store::delete(&mut tx, row.id).await?;
    let entry = entry(&mut tx, "delete", &row).await?.detail(format!("{}, SHA-256 {}", row.name, row.sha256));
    tx.finish(Audit::of(entry)).await?;
    receiving::forget(&kernel, row.id).await;
    if let Some(artifact) = row.artifact_digest {
        artifacts::remove_unneeded(&kernel, artifact).await;
    }
    let mut answer = StatusCode::NO_CONTENT.into_response();
    answer.headers_mut().insert(TUS_RESUMABLE, HeaderValue::from_static(TUS_VERSION));
    Ok(answer)
}

/// Refuses another version of tus; who names none is not held to it.
fn check_protocol(headers: &HeaderMap) -> Result<()> {
    match text(headers, "tus-resumable") {
        Some(version) if version.trim() != TUS_VERSION => {
            let message = format!("tus {TUS_VERSION} is spoken here");
            Err(Error::Coded { status: 412, code: 10001, message, field: Some("Tus-Resumable".to_owned()) })
        }
        _ => Ok(()),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The answer with what tus asks for.
fn told(mut answer: Response, offset: i64) -> Response {
    answer.headers_mut().insert(TUS_RESUMABLE, HeaderValue::from_static(TUS_VERSION));
    answer.headers_mut().insert(UPLOAD_OFFSET, offset.into());
    answer
}

async fn entry(tx: &mut drover_kernel::Tx, action: &str, row: &Archive) -> Result<AuditEntry> {
    let organisation_id = tx.organisation_id();
    let application = applications::store::load(tx, organisation_id, row.application_id).await?;
    let name = format!("{} {}", application.full_name, row.version);
    Ok(AuditEntry::new(AuditList::General, action, "archive", row.id, name))
}

/// The archive that a source names: by content once that is settled, else by version.
///
/// # Errors
/// A conflict with a sentence for people: there is none, or it cannot be deployed.
pub(crate) async fn find(
    read: &mut Read,
    application_id: i64,
    version: &str,
    content: Option<&str>,
) -> Result<Archive> {
    if let Some(content) = content {
        let found = match content.parse() {
            Ok(digest) => store::of_content(read, application_id, digest).await?,
            Err(_) => None,
        };
        return found.ok_or_else(|| Error::conflict(format!("the archive with SHA-256 {content} was deleted")));
    }
    let found = store::of_version(read, application_id, version).await?;
    let found = found.ok_or_else(|| Error::conflict(format!("no archive of version {version} was uploaded")))?;
    match found.state {
        State::Ready => Ok(found),
        State::Receiving => Err(Error::conflict(format!("the archive of version {version} has not come whole"))),
        State::Checking => Err(Error::conflict(format!("the archive of version {version} is still being checked"))),
        State::Refused => {
            let reason = found.reason.unwrap_or_default();
            Err(Error::conflict(format!("the archive of version {version} was refused: {reason}")))
        }
    }
}

/// What agents fetch of an archive, with the archive's digest: all of it, or what is at `path`.
///
/// # Errors
/// A conflict with a sentence for people.
pub(crate) async fn artifact(kernel: &Kernel, archive: &Archive, path: &str) -> Result<(Digest, u64)> {
    let whole = archive.artifact_digest.ok_or_else(|| Error::conflict("the archive was not checked"))?;
    let sources = &kernel.part::<Engine>().sources;
    let name = format!("{} with SHA-256 {}", archive.name, archive.sha256);
    let path = (!path.is_empty()).then_some(path);
    let part = sources.part(whole, path, &name, kernel.stopping()).await;
    part.map_err(|error| Error::conflict(error.to_string()))
}
