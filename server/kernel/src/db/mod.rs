//! The database: SQLite or PostgreSQL behind one set of words.
//!
//! Owns pools, transactions and statements. One SQL text with `$1` placeholders serves both engines. Invariants:
//! pools never leave this crate, so nobody reaches the database without a [`Call`](crate::call::Call) or a
//! [`Work`](crate::jobs::Work); a request has at most one write transaction; on SQLite there is one writer.
//! Absent: SQL generated for one engine, transactions that outlive a function of the caller's, nested transactions.

mod connect;
pub mod direct;
mod migrate;
mod patience;
mod row;
pub mod snapshot;
mod sql;
mod value;

use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments as _, AssertSqlSafe, PgPool, Postgres, Sqlite, SqlitePool, Transaction};

pub use connect::{DbOptions, sqlite_file};
pub use migrate::{MIGRATIONS, for_sqlite};
pub use row::{Column, FromRow, Json, OptionalColumn, Row};
pub use sql::{Condition, Sql};
pub use value::{Value, WordColumn};

use direct::{Direct, Writing};
use patience::Patience;
use row::RowOf;

/// Rows that one statement may return; a larger answer is a bug, lists are paged.
const ROWS_MAX: usize = 200_000;

/// Bound parameters of one statement that both engines take.
const PARAMETERS_MAX: usize = 30_000;

/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// What can go wrong with a statement.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// A row with these unique values exists.
    #[error("a row with these unique values exists")]
    Duplicate,
    /// The row refers to one that does not exist, or is referred to.
    #[error("the row refers to one that is missing, or is referred to")]
    Reference,
    /// No row where exactly one was expected.
    #[error("no row where one was expected")]
    Missing,
    /// A stored value that the program does not understand.
    #[error("column {column}: {reason}")]
    Inconsistent {
        /// Which column.
        column: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection, no disk space, locked for too long: trying again later makes sense.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Other(sqlx::Error),
}

impl DbError {
    /// A stored value that the program does not understand.
    pub fn inconsistent(column: &str, reason: impl ToString) -> Self {
        Self::Inconsistent { column: column.to_owned(), reason: reason.to_string() }
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::RowNotFound => Self::Missing,
            sqlx::Error::Database(database) if database.is_unique_violation() => Self::Duplicate,
            sqlx::Error::Database(database) if database.is_foreign_key_violation() => Self::Reference,
            // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_READONLY, SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN.
            sqlx::Error::Database(database)
                if database
                    .try_downcast_ref::<sqlx::sqlite::SqliteError>()
                    .and_then(|_| database.code())
                    .and_then(|code| code.parse::<i64>().ok())
                    .is_some_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14)) =>
            {
                Self::Unavailable(error.to_string())
            }
            // PostgreSQL classes 08 connection, 53 resources, 57 operator intervention; 40 serialization.
            sqlx::Error::Database(database)
                if database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some()
                    && database.code().is_some_and(|code| matches!(code.get(..2), Some("08" | "53" | "57" | "40"))) =>
            {
                Self::Unavailable(error.to_string())
            }
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_) => Self::Unavailable(error.to_string()),
            _ => Self::Other(error),
        }
    }
}

impl From<DbError> for crate::Error {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable(detail) => {
                tracing::warn!(detail, "database not available");
                Self::Unavailable("the database is not available, try again".to_owned())
            }
            other => Self::internal(other),
        }
    }
}

/// Turns a duplicate into the caller's own error where the insert stands.
pub trait OnDuplicate<T> {
    /// Gives `error()` when a row with the same unique values exists.
    ///
    /// # Errors
    /// That error, or the database's own.
    fn on_duplicate(self, error: impl FnOnce() -> crate::Error) -> crate::Result<T>;
}

impl<T> OnDuplicate<T> for Result<T, DbError> {
    fn on_duplicate(self, error: impl FnOnce() -> crate::Error) -> crate::Result<T> {
        self.map_err(|found| if matches!(found, DbError::Duplicate) { error() } else { found.into() })
    }
}

/// The pools of one database.
#[derive(Clone)]
pub struct Db(Pools, Patience);

#[derive(Clone)]
pub(crate) enum Pools {
    Sqlite { write: SqlitePool, read: SqlitePool },
    Postgres(PgPool),
    Direct(Arc<Direct>),
}

enum Connection {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
    SqliteWrite(Transaction<'static, Sqlite>),
    PostgresWrite(Transaction<'static, Postgres>),
    Direct(Arc<Direct>),
    DirectWrite(Writing),
}

/// Statements that only read.
pub struct Read(Connection, Patience);

/// Statements that write, inside one transaction. Dropped without a commit it leaves nothing behind.
pub struct Write(Read);

impl Db {
    pub(crate) fn pools(&self) -> &Pools {
        &self.0
    }

    /// Whether the database is SQLite.
    #[must_use]
    pub fn is_sqlite(&self) -> bool {
        matches!(self.0, Pools::Sqlite { .. } | Pools::Direct(_))
    }

    /// A connection for reading.
    pub(crate) async fn read(&self) -> Result<Read, DbError> {
        let connection = match &self.0 {
            Pools::Sqlite { read, .. } => Connection::Sqlite(read.acquire().await?),
            Pools::Postgres(pool) => Connection::Postgres(pool.acquire().await?),
            Pools::Direct(direct) => {
                direct.read().await?;
                Connection::Direct(direct.clone())
            }
        };
        Ok(Read(connection, self.1.clone()))
    }

    /// A write transaction; on SQLite it holds the writer from the start.
    pub(crate) async fn write(&self) -> Result<Write, DbError> {
        let connection = match &self.0 {
            Pools::Sqlite { write, .. } => Connection::SqliteWrite(write.begin_with("BEGIN IMMEDIATE").await?),
            Pools::Postgres(pool) => Connection::PostgresWrite(Box::pin(self.1.wait(pool.begin())).await?),
            Pools::Direct(direct) => Connection::DirectWrite(direct.write().await?),
        };
        Ok(Write(Read(connection, self.1.clone())))
    }

    /// Closes all connections after the statements under way.
    pub async fn close(&self) {
        match &self.0 {
            Pools::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
            Pools::Postgres(pool) => pool.close().await,
            Pools::Direct(direct) => direct.close(),
        }
    }
}

impl Read {
    /// Every row.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn all<T: FromRow>(&mut self, sql: impl Into<Sql>, arguments: Vec<Value>) -> Result<Vec<T>, DbError> {
        let rows = self.fetch(sql.into(), arguments).await?;
        rows.iter().map(T::from_row).collect()
    }

    /// The only row, if there is one.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn opt<T: FromRow>(&mut self, sql: impl Into<Sql>, arguments: Vec<Value>) -> Result<Option<T>, DbError> {
        let rows = self.fetch(sql.into(), arguments).await?;
        rows.first().map(T::from_row).transpose()
    }

    /// The only row.
    ///
    /// # Errors
    /// [`DbError::Missing`] when there is none, other [`DbError`]s.
    pub async fn one<T: FromRow>(&mut self, sql: impl Into<Sql>, arguments: Vec<Value>) -> Result<T, DbError> {
        self.opt(sql, arguments).await?.ok_or(DbError::Missing)
    }

    /// The first column of the only row, for counts and ids.
    ///
    /// # Errors
    /// [`DbError::Missing`] when there is no row, other [`DbError`]s.
    pub async fn value<T>(&mut self, sql: impl Into<Sql>, arguments: Vec<Value>) -> Result<T, DbError>
    where
        (T,): FromRow,
    {
        self.one::<(T,)>(sql, arguments).await.map(|(value,)| value)
    }

    /// The first column of every row.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn values<T>(&mut self, sql: impl Into<Sql>, arguments: Vec<Value>) -> Result<Vec<T>, DbError>
    where
        (T,): FromRow,
    {
        Ok(self.all::<(T,)>(sql, arguments).await?.into_iter().map(|(value,)| value).collect())
    }

    /// Not generic, so that the driver's futures are compiled once, here.
    async fn fetch(&mut self, sql: Sql, arguments: Vec<Value>) -> Result<Vec<Row>, DbError> {
        let (text, arguments) = sql::expand(sql, arguments)?;
        let of_sqlite = |rows: Vec<_>| rows.into_iter().map(|row| Row(RowOf::Sqlite(row))).collect();
        let rows: Vec<Row> = match &mut self.0 {
            Connection::Direct(direct) => of_sqlite(direct.fetch(text, arguments).await?),
            Connection::DirectWrite(writing) => of_sqlite(writing.fetch(text, arguments).await?),
            Connection::Sqlite(connection) => {
                let query = sqlx::query_with(AssertSqlSafe(text), sqlite_arguments(arguments)?);
                of_sqlite(query.fetch_all(&mut **connection).await?)
            }
            Connection::SqliteWrite(transaction) => {
                let query = sqlx::query_with(AssertSqlSafe(text), sqlite_arguments(arguments)?);
                of_sqlite(query.fetch_all(&mut **transaction).await?)
            }
            Connection::Postgres(connection) => {
                let query = sqlx::query_with(AssertSqlSafe(text), postgres_arguments(arguments)?);
                let rows = Box::pin(self.1.wait(query.fetch_all(&mut **connection))).await?;
                rows.into_iter().map(|row| Row(RowOf::Postgres(row))).collect()
            }
            Connection::PostgresWrite(transaction) => {
                let query = sqlx::query_with(AssertSqlSafe(text), postgres_arguments(arguments)?);
                let rows = Box::pin(self.1.wait(query.fetch_all(&mut **transaction))).await?;
                rows.into_iter().map(|row| Row(RowOf::Postgres(row))).collect()
            }
        };
        if rows.len() > ROWS_MAX {
            return Err(DbError::inconsistent("*", format!("a statement returned more than {ROWS_MAX} rows")));
        }
        Ok(rows)
    }

    /// Has the engine read a statement without running it: the check that every text is valid on both.
    ///
    /// # Errors
    /// The engine's own complaint.
    pub async fn prepare(&mut self, sql: &str) -> Result<(), DbError> {
        use sqlx::{Executor as _, SqlSafeStr as _};
        let text = AssertSqlSafe(sql.to_owned()).into_sql_str();
        match &mut self.0 {
            Connection::Sqlite(connection) => (&mut **connection).prepare(text).await.map(drop)?,
            Connection::SqliteWrite(transaction) => (&mut **transaction).prepare(text).await.map(drop)?,
            Connection::Postgres(connection) => (&mut **connection).prepare(text).await.map(drop)?,
            Connection::PostgresWrite(transaction) => (&mut **transaction).prepare(text).await.map(drop)?,
            Connection::Direct(_) | Connection::DirectWrite(_) => {
                return Err(DbError::Unavailable("a simulated database only runs statements".to_owned()));
            }
        }
        Ok(())
    }
}

impl std::ops::Deref for Write {
    type Target = Read;
    fn deref(&self) -> &Read {
        &self.0
    }
}

impl std::ops::DerefMut for Write {
    fn deref_mut(&mut self) -> &mut Read {
        &mut self.0
    }
}

impl Write {
    /// Runs a statement and gives the number of rows it touched.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn run(&mut self, sql: impl Into<Sql>, arguments: Vec<Value>) -> Result<u64, DbError> {
        let (text, arguments) = sql::expand(sql.into(), arguments)?;
        Ok(match &mut self.0.0 {
            Connection::DirectWrite(writing) => writing.run(text, arguments).await?,
            Connection::SqliteWrite(transaction) => {
                let query = sqlx::query_with(AssertSqlSafe(text), sqlite_arguments(arguments)?);
                query.execute(&mut **transaction).await?.rows_affected()
            }
            Connection::PostgresWrite(transaction) => {
                let query = sqlx::query_with(AssertSqlSafe(text), postgres_arguments(arguments)?);
                Box::pin(self.0.1.wait(query.execute(&mut **transaction))).await?.rows_affected()
            }
            Connection::Sqlite(_) | Connection::Postgres(_) | Connection::Direct(_) => {
                return Err(DbError::Unavailable("a connection for reading cannot write".to_owned()));
            }
        })
    }

    /// Inserts many rows with as few statements as the engines allow. `sql` ends with the `VALUES ($1, …)` of one row.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn insert_many(&mut self, sql: Sql, rows: Vec<Vec<Value>>) -> Result<(), DbError> {
        let width = rows.first().map_or(1, Vec::len).max(1);
        let mut rows = rows.into_iter();
        loop {
            let batch: Vec<_> = rows.by_ref().take(PARAMETERS_MAX / width).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let text = sql::repeat_values(sql.as_str(), width, batch.len());
            self.run(Sql::assembled(text), batch.into_iter().flatten().collect()).await?;
        }
    }

    pub(crate) async fn enqueue(&mut self, queue: &str, payload: &str) -> Result<(), DbError> {
        match &mut self.0.0 {
            Connection::DirectWrite(writing) => writing.enqueue(queue, payload).await,
            Connection::SqliteWrite(transaction) => crate::jobs::push_sqlite(&mut *transaction, queue, payload).await,
            Connection::PostgresWrite(transaction) => {
                Box::pin(self.0.1.wait(crate::jobs::push_postgres(&mut *transaction, queue, payload))).await
            }
            Connection::Sqlite(_) | Connection::Postgres(_) | Connection::Direct(_) => {
                Err(DbError::Unavailable("a connection for reading cannot enqueue".to_owned()))
            }
        }
    }

    pub(crate) async fn commit(self) -> Result<(), DbError> {
        let Self(Read(connection, patience)) = self;
        match connection {
            Connection::DirectWrite(writing) => writing.commit().await?,
            Connection::SqliteWrite(transaction) => transaction.commit().await?,
            Connection::PostgresWrite(transaction) => Box::pin(patience.wait(transaction.commit())).await?,
            Connection::Sqlite(_) | Connection::Postgres(_) | Connection::Direct(_) => {}
        }
        Ok(())
    }
}

fn sqlite_arguments(values: Vec<Value>) -> Result<SqliteArguments, DbError> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Value::Integer(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Boolean(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
            Value::Json(value) => arguments.add(value.map(|value| value.to_string())),
            Value::Integers(_) | Value::Texts(_) => Err("a list outside a statement".into()),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn postgres_arguments(values: Vec<Value>) -> Result<PgArguments, DbError> {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Integer(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Boolean(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
            Value::Json(value) => arguments.add(value.map(sqlx::types::Json)),
            Value::Integers(_) | Value::Texts(_) => Err("a list outside a statement".into()),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}
