//! Uploaded archives in the database.

use drover_kernel::db::{Condition, OnDuplicate as _, Read};
use drover_kernel::{Error, Paging, Result, Time, Tx, args, row, sql};
use drover_shared::Digest;

use super::rules::{Announced, State};
use crate::source::{Format, Upload};

row! {
    /// An uploaded archive.
    pub struct Archive {
        /// Id.
        pub id: i64,
        /// Organisation.
        pub organisation_id: i64,
        /// Application.
        pub application_id: i64,
        /// Version that it is deployed as.
        pub version: String,
        /// Name of its file.
        pub name: String,
        /// Where it stands.
        pub state: State,
        /// Why it was refused, or is not checked yet.
        pub reason: Option<String>,
        /// Length of the whole.
        pub size_bytes: i64,
        /// SHA-256 of the whole, as announced.
        pub sha256: Digest,
        /// Form that it has.
        pub format: Option<Format>,
        /// What it was packed into.
        pub artifact_digest: Option<Digest>,
        /// Length of that.
        pub artifact_bytes: Option<i64>,
        /// Files and links in it.
        pub files: Option<i64>,
        /// Who uploads it.
        pub creator: String,
        /// When it was announced.
        pub created_at: Time,
        /// When it last went on.
        pub touched_at: Time,
    }
}

/// One page of an application's archives, the newest first.
pub(crate) async fn list(
    read: &mut Read,
    paging: &Paging,
    application_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<Archive>)> {
    let count = sql!("SELECT COUNT(*) FROM archives a WHERE a.application_id = $1/* filters */");
    let rows = sql!("SELECT a.* FROM archives a WHERE a.application_id = $1/* filters */ ORDER BY a.id DESC");
    paging.read(read, count, rows, args![application_id], conditions).await
}

pub(crate) async fn find(read: &mut Read, application_id: i64, id: i64) -> Result<Option<Archive>> {
    let sql = sql!("SELECT * FROM archives WHERE application_id = $1 AND id = $2");
    Ok(read.opt(sql, args![application_id, id]).await?)
}

pub(crate) async fn load(read: &mut Read, application_id: i64, id: i64) -> Result<Archive> {
    find(read, application_id, id).await?.ok_or_else(|| Error::not_found("archive"))
}

/// As [`load`], with the row's lock.
pub(crate) async fn hold(tx: &mut Tx, application_id: i64, id: i64) -> Result<Archive> {
    let hold = sql!("UPDATE archives SET state = state WHERE application_id = $1 AND id = $2");
    tx.run(hold, args![application_id, id]).await?;
    load(tx, application_id, id).await
}

/// The archive of a version.
pub(crate) async fn of_version(read: &mut Read, application_id: i64, version: &str) -> Result<Option<Archive>> {
    let sql = sql!("SELECT * FROM archives WHERE application_id = $1 AND version = $2");
    Ok(read.opt(sql, args![application_id, version]).await?)
}

/// An archive of this content that can be deployed.
pub(crate) async fn of_content(read: &mut Read, application_id: i64, sha256: Digest) -> Result<Option<Archive>> {
    let sql = sql!(
        "SELECT * FROM archives WHERE application_id = $1 AND sha256 = $2 AND state = 'ready' ORDER BY id DESC LIMIT 1"
    );
    Ok(read.opt(sql, args![application_id, sha256]).await?)
}

/// Every archive that is on its way, of all organisations.
pub(crate) async fn at_work(read: &mut Read) -> Result<Vec<Archive>> {
    Ok(read.all(sql!("SELECT * FROM archives WHERE state IN ('receiving', 'checking') ORDER BY id"), args![]).await?)
}

row! {
    /// How many archives there are.
    pub(crate) struct Counts {
        /// Of the application.
        pub(crate) all: i64,
        /// Of these, how many have not come whole.
        pub(crate) unfinished: i64,
        /// How many of the organisation have not.
        pub(crate) unfinished_of_organisation: i64,
    }
}

pub(crate) async fn counts(tx: &mut Tx, application_id: i64) -> Result<Counts> {
    let sql = sql!(
        "SELECT COUNT(CASE WHEN application_id = $1 THEN 1 END) AS \"all\", \
         COUNT(CASE WHEN application_id = $1 AND state = 'receiving' THEN 1 END) AS unfinished, \
         COUNT(CASE WHEN state = 'receiving' THEN 1 END) AS unfinished_of_organisation \
         FROM archives WHERE organisation_id = $2"
    );
    let organisation_id = tx.organisation_id();
    Ok(tx.one(sql, args![application_id, organisation_id]).await?)
}

/// Notes an archive that is going to come.
pub(crate) async fn insert(tx: &mut Tx, application_id: i64, new: &Announced, creator: &str) -> Result<i64> {
    let gone = sql!("DELETE FROM archives WHERE application_id = $1 AND version = $2 AND state = 'refused'");
    tx.run(gone, args![application_id, new.version.as_str()]).await?;
    let insert = sql!(
        "INSERT INTO archives (organisation_id, application_id, version, name, state, size_bytes, sha256, creator, \
         created_at, touched_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9) RETURNING id"
    );
    let arguments = args![
        tx.organisation_id(),
        application_id,
        new.version.as_str(),
        new.name.as_str(),
        State::Receiving,
        i64::try_from(new.size_bytes).unwrap_or(i64::MAX),
        new.sha256,
        creator,
        tx.now()
    ];
    let there = || Error::conflict(format!("there is an archive of version {} already; delete it first", new.version));
    tx.value(insert, arguments).await.on_duplicate(there)
}

/// Notes that an archive went on, and whether all of it has come.
pub(crate) async fn touch(tx: &mut Tx, id: i64, is_whole: bool) -> Result<()> {
    let state = if is_whole { State::Checking } else { State::Receiving };
    let sql = sql!("UPDATE archives SET touched_at = $2, state = $3 WHERE id = $1 AND state = 'receiving'");
    let now = tx.now();
    tx.run_one(sql, args![id, now, state]).await
}

/// Notes what an archive was packed into.
pub(crate) async fn set_ready(tx: &mut Tx, id: i64, upload: &Upload) -> Result<()> {
    let sql = sql!(
        "UPDATE archives SET state = 'ready', reason = NULL, format = $2, artifact_digest = $3, artifact_bytes = $4, \
         files = $5 WHERE id = $1 AND state = 'checking'"
    );
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let arguments = args![id, upload.format, upload.digest, number(upload.size_bytes), number(upload.files)];
    tx.run_one(sql, arguments).await
}

/// Notes why an archive is not taken.
pub(crate) async fn set_refused(tx: &mut Tx, id: i64, reason: &str) -> Result<()> {
    let sql = sql!("UPDATE archives SET state = 'refused', reason = $2 WHERE id = $1 AND state = 'checking'");
    tx.run_one(sql, args![id, reason]).await
}

/// Notes why an archive cannot be checked for the moment.
pub(crate) async fn set_waiting(tx: &mut Tx, id: i64, reason: &str) -> Result<()> {
    tx.run_one(sql!("UPDATE archives SET reason = $2 WHERE id = $1 AND state = 'checking'"), args![id, reason]).await
}

pub(crate) async fn delete(tx: &mut Tx, id: i64) -> Result<()> {
    tx.run_one(sql!("DELETE FROM archives WHERE id = $1"), args![id]).await
}

/// Tasks that are not over and install an archive, or go back to it.
pub(crate) async fn needed_by(read: &mut Read, archive: &Archive) -> Result<Vec<i64>> {
    let sql = sql!(
        "SELECT id FROM tasks WHERE application_id = $1 AND phase <> 'over' AND kind IN ('upgrade', 'revert') \
         AND (version = $2 OR artifact_digest = $3) ORDER BY id LIMIT 10"
    );
    let artifact = archive.artifact_digest.unwrap_or(archive.sha256);
    Ok(read.values(sql, args![archive.application_id, archive.version.as_str(), artifact]).await?)
}
