//! SQLite without waiting: each statement is carried out before anything else happens on the thread.
//!
//! For simulations (see [`crate::at_once`]), which also decide what goes wrong. Invariants: there is one writer at a time,
//! in the order of asking; readers see what is committed; an end of the process between two statements leaves what it would
//! leave anywhere.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, SqliteConnection};
use tokio::sync::OwnedMutexGuard;

use super::{DbError, Value, sqlite_arguments};
use crate::at_once;

/// When something may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A connection is asked for.
    Begin,
    /// A statement.
    Statement,
    /// A commit.
    Commit,
    /// A wake-up was handled.
    Delivery,
    /// A wake-up is delivered; refused, it is lost.
    WakeUp,
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// What was asked for.
    Well,
    /// The database is not available, and nothing is done.
    Refused,
    /// It is done, and nobody hears that: the connection broke.
    Unanswered,
    /// It takes so long: before it, or of a commit until it is heard of. Nobody else waits for that.
    Late(Duration),
    /// The process ends before it.
    EndBefore,
    /// The process ends after it.
    EndAfter,
}

/// Decides what goes wrong.
pub type Fates = Arc<dyn Fn(Moment) -> Fate + Send + Sync>;

/// Both connections to a file.
pub(crate) struct Direct {
    writing: Mutex<SqliteConnection>,
    reading: Mutex<SqliteConnection>,
    turn: Arc<tokio::sync::Mutex<()>>,
    fates: Fates,
}

/// The one write transaction. Dropped without a commit it leaves nothing behind.
pub(super) struct Writing {
    direct: Arc<Direct>,
    open: bool,
    _turn: OwnedMutexGuard<()>,
}

fn lock(connection: &Mutex<SqliteConnection>) -> MutexGuard<'_, SqliteConnection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken() -> DbError {
    DbError::Unavailable("the connection broke".to_owned())
}

fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        // The process ends in a simulation, the machine does not.
        .synchronous(SqliteSynchronous::Off)
        .foreign_keys(true)
        .pragma("temp_store", "MEMORY")
        .statement_cache_capacity(256)
}

impl Direct {
    pub(super) fn script(file: &Path, text: &str) -> Result<(), DbError> {
        let mut connection = at_once::wait(options(file).connect())?;
        at_once::wait(sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut connection))?;
        Ok(at_once::wait(connection.close())?)
    }

    pub(super) fn open(file: &Path, fates: Fates) -> Result<Arc<Self>, DbError> {
        let options = options(file);
        let writing = Mutex::new(at_once::wait(options.connect())?);
        let reading = Mutex::new(at_once::wait(options.connect())?);
        Ok(Arc::new(Self { writing, reading, turn: Arc::default(), fates }))
    }

    /// Does something, unless it goes wrong.
    async fn at<T>(&self, moment: Moment, work: impl FnOnce() -> Result<T, DbError>) -> Result<T, DbError> {
        at_once::unless_halted().await;
        let fate = (self.fates)(moment);
        if fate == Fate::EndBefore {
            at_once::halt();
            at_once::unless_halted().await;
        }
        if fate == Fate::Refused {
            return Err(broken());
        }
        let late = if let Fate::Late(span) = fate { Some(span) } else { None };
        if let Some(span) = late.filter(|_| moment != Moment::Commit) {
            tokio::time::sleep(span).await;
            at_once::unless_halted().await;
        }
        let outcome = work();
        if let Some(span) = late.filter(|_| moment == Moment::Commit) {
            tokio::time::sleep(span).await;
            at_once::unless_halted().await;
        }
        if fate == Fate::EndAfter {
            at_once::halt();
            at_once::unless_halted().await;
        }
        if fate == Fate::Unanswered { outcome.and(Err(broken())) } else { outcome }
    }

    pub(super) async fn read(&self) -> Result<(), DbError> {
        self.at(Moment::Begin, || Ok(())).await
    }

    pub(super) async fn write(self: &Arc<Self>) -> Result<Writing, DbError> {
        // Who is late here keeps nobody waiting.
        self.at(Moment::Begin, || Ok(())).await?;
        let turn = self.turn.clone().lock_owned().await;
        at_once::unless_halted().await;
        at_once::wait(lock(&self.writing).execute("BEGIN IMMEDIATE"))?;
        Ok(Writing { direct: self.clone(), open: true, _turn: turn })
    }

    pub(super) async fn fetch(&self, text: String, arguments: Vec<Value>) -> Result<Vec<SqliteRow>, DbError> {
        self.at(Moment::Statement, || fetch(&mut lock(&self.reading), text, arguments)).await
    }

    pub(super) fn close(&self) {
        // The worker of each ends with it.
        let _ = at_once::wait(lock(&self.reading).execute("PRAGMA optimize"));
    }

    /// Wake-ups that were committed and not handled, the oldest first, each with its number.
    pub(crate) fn wake_ups(&self) -> Result<Vec<(i64, Vec<u8>)>, DbError> {
        let sql = "SELECT rowid, CAST(job AS BLOB) FROM Jobs WHERE status = 'Pending' ORDER BY rowid LIMIT 64";
        Ok(at_once::wait(sqlx::query_as(sql).fetch_all(&mut *lock(&self.reading)))?)
    }

    /// Whether a wake-up gets lost on its way.
    pub(crate) fn loses_wake_up(&self) -> bool {
        (self.fates)(Moment::WakeUp) == Fate::Refused
    }

    /// Forgets a wake-up that was handled; when that goes wrong, it comes again.
    pub(crate) async fn handled(&self, number: i64) -> Result<(), DbError> {
        let _turn = self.turn.lock().await;
        self.at(Moment::Delivery, || {
            let forget = sqlx::query("DELETE FROM Jobs WHERE rowid = $1").bind(number);
            at_once::wait(forget.execute(&mut *lock(&self.writing)))?;
            Ok(())
        })
        .await
    }
}

fn fetch(connection: &mut SqliteConnection, text: String, arguments: Vec<Value>) -> Result<Vec<SqliteRow>, DbError> {
    let query = sqlx::query_with(AssertSqlSafe(text), sqlite_arguments(arguments)?);
    Ok(at_once::wait(query.fetch_all(connection))?)
}

impl Writing {
    pub(super) async fn fetch(&mut self, text: String, arguments: Vec<Value>) -> Result<Vec<SqliteRow>, DbError> {
        let direct = &self.direct;
        direct.at(Moment::Statement, || fetch(&mut lock(&direct.writing), text, arguments)).await
    }

    pub(super) async fn run(&mut self, text: String, arguments: Vec<Value>) -> Result<u64, DbError> {
        let direct = &self.direct;
        let run = || {
            let query = sqlx::query_with(AssertSqlSafe(text), sqlite_arguments(arguments)?);
            Ok(at_once::wait(query.execute(&mut *lock(&direct.writing)))?.rows_affected())
        };
        direct.at(Moment::Statement, run).await
    }

    pub(super) async fn enqueue(&mut self, queue: &str, payload: &str) -> Result<(), DbError> {
        let direct = &self.direct;
        let push = || at_once::wait(crate::jobs::push_sqlite(&mut lock(&direct.writing), queue, payload));
        direct.at(Moment::Statement, push).await
    }

    pub(super) async fn commit(self) -> Result<(), DbError> {
        let direct = self.direct.clone();
        let mut writing = self;
        // The turn ends with it, though its answer may be late.
        let commit = move || {
            at_once::wait(lock(&writing.direct.writing).execute("COMMIT"))?;
            writing.open = false;
            Ok(())
        };
        direct.at(Moment::Commit, commit).await
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.open {
            let _ = at_once::wait(lock(&self.direct.writing).execute("ROLLBACK"));
        }
    }
}
