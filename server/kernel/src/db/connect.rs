//! Opening a database by its address.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::direct::{Direct, Fates};
use super::{ACQUIRE_TIMEOUT, Db, DbError, Patience, Pools};

/// How long PostgreSQL works at one statement, and how long a transaction may stand still there. The first is shorter than
/// [`PATIENCE`], so that a statement that takes too long is told apart from a server that is gone.
const LIMITS: [(&str, &str); 2] = [("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "60s")];
/// How long anything waits for an answer of PostgreSQL.
const PATIENCE: Duration = Duration::from_secs(40);

/// How a database is opened.
#[derive(Debug, Clone)]
pub struct DbOptions {
    /// `sqlite:FILE` or `postgres://…`.
    pub url: String,
    /// Connections for reading on SQLite, all connections on PostgreSQL.
    pub connections: u32,
    /// How long a statement waits for PostgreSQL; SQLite is a file and answers.
    pub patience: Duration,
}

impl DbOptions {
    /// An SQLite file.
    #[must_use]
    pub fn sqlite(file: &Path) -> Self {
        Self::url(&format!("sqlite:{}", file.display()))
    }

    /// An address of either engine, with the engine's usual number of connections.
    #[must_use]
    pub fn url(url: &str) -> Self {
        let connections = if url.starts_with("sqlite:") { 4 } else { 16 };
        Self { url: url.to_owned(), connections, patience: PATIENCE }
    }
}

/// The file of an SQLite address.
pub fn sqlite_file(url: &str) -> Option<PathBuf> {
    url.strip_prefix("sqlite:").map(|file| PathBuf::from(file.trim_start_matches("//")))
}

impl Db {
    /// Opens the database; an SQLite file is made if it is not there. Migrations are a step of their own.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] when it cannot be reached, with the reason.
    pub async fn connect(options: &DbOptions) -> Result<Self, DbError> {
        if let Some(file) = sqlite_file(&options.url) {
            return Self::connect_sqlite(&file, options.connections).await;
        }
        if !(options.url.starts_with("postgres://") || options.url.starts_with("postgresql://")) {
            return Err(DbError::Unavailable("a database address begins with sqlite: or postgres://".to_owned()));
        }
        let mut connect = PgConnectOptions::from_str(&options.url)?.application_name("drover");
        // Who names options in the address knows better; some poolers take none.
        if !options.url.contains("options") {
            connect = connect.options(LIMITS);
        }
        let patience = Patience::new(options.patience);
        let checking = patience.clone();
        let pool = PgPoolOptions::new()
            .max_connections(options.connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_release(move |connection, _| {
                let patience = checking.clone();
                Box::pin(async move { patience.check(connection).await })
            })
            .connect_with(connect)
            .await?;
        Ok(Self(Pools::Postgres(pool), patience))
    }

    /// Opens an SQLite file that is migrated already, for a simulation: each statement is carried out at once, or goes wrong
    /// as the fates have it.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] when it cannot be opened, with the reason.
    pub fn direct(file: &Path, fates: Fates) -> Result<Self, DbError> {
        Ok(Self(Pools::Direct(Direct::open(file, fates)?), Patience::new(PATIENCE)))
    }

    /// Runs a text of several statements on an SQLite file, by itself.
    ///
    /// # Errors
    /// [`DbError`].
    pub fn direct_script(file: &Path, text: &str) -> Result<(), DbError> {
        Direct::script(file, text)
    }

    async fn connect_sqlite(file: &Path, readers: u32) -> Result<Self, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // NORMAL may lose the last commits when the power fails; what was acknowledged must stay.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            .pragma("temp_store", "MEMORY")
            .statement_cache_capacity(256);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // On a full disk SQLite rolls back by itself, and the driver takes the transaction for open from then on: no
            // other could begin. It is looked at after whatever was left to do for the one before is done.
            .before_acquire(|connection, _| {
                let left_open = connection.is_in_transaction();
                Box::pin(async move { Ok(!left_open) })
            })
            .connect_with(options.clone())
            .await?;
        let read = SqlitePoolOptions::new()
            .max_connections(readers)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await?;
        Ok(Self(Pools::Sqlite { write, read }, Patience::new(PATIENCE)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sql;
    use super::*;

    /// As on a full disk, of which no more than the present pages are the database's.
    async fn fill(db: &Db) {
        let Pools::Sqlite { write, .. } = db.pools() else { panic!("it is SQLite") };
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(write).await.unwrap();
        let bound = format!("PRAGMA max_page_count = {pages}");
        sqlx::query(sqlx::AssertSqlSafe(bound)).execute(write).await.unwrap();
    }

    #[tokio::test]
    async fn what_found_no_room_keeps_nothing_else_from_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::connect(&DbOptions::sqlite(&folder.path().join("db"))).await.unwrap();
        let mut write = db.write().await.unwrap();
        write.run(Sql::literal("CREATE TABLE things (thing BLOB)"), vec![]).await.unwrap();
        write.commit().await.unwrap();
        for _ in 0..3 {
            fill(&db).await;
            let mut write = db.write().await.unwrap();
            let large = Sql::literal("INSERT INTO things VALUES (zeroblob(1000000))");
            let refused = write.run(large, vec![]).await.unwrap_err();
            assert!(matches!(&refused, DbError::Unavailable(why) if why.contains("full")), "{refused}");
            drop(write);
            let mut write = db.write().await.expect("another transaction begins");
            write.run(Sql::literal("INSERT INTO things VALUES (NULL)"), vec![]).await.unwrap();
            write.commit().await.unwrap();
        }
        let count: i64 =
            db.read().await.unwrap().value(Sql::literal("SELECT COUNT(*) FROM things"), vec![]).await.unwrap();
        assert_eq!(count, 3, "what was refused was not done");
    }
}
