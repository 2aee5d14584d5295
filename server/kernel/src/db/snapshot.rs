//! A copy of the whole database as it was at one moment, taken beside whoever works with it, and its way back.
//!
//! SQLite copies itself into a file. From PostgreSQL every table is copied as PostgreSQL's own text, out of one
//! transaction, and goes back into tables that our migrations made: no other program is needed, and no superuser.
//! Invariants: a copy is of one moment; it goes into a database that is empty, whole or not at all. The queue is left out:
//! it carries wake-ups, and a sweep does what they would.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr as _;

use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::connect::sqlite_file;
use super::migrate::MIGRATIONS;
use super::{Db, DbError, DbOptions};
use crate::clock::Clock;

/// File of an SQLite database in the copy.
const SQLITE_FILE: &str = "drover.db";
/// What is in the copy.
const CONTENTS_FILE: &str = "contents.json";
/// Where the migrations keep their own record.
const MIGRATIONS_TABLE: &str = "schema_migrations";
/// Rows of the list of columns.
const LISTED_MAX: usize = 10_000;

/// Which engine a copy is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A file.
    Sqlite,
    /// A server.
    Postgres,
}

/// What is in a copy.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    engine: Engine,
    /// Migrations that had been applied, in their order.
    migrations: Vec<String>,
    /// Tables; none for SQLite.
    tables: Vec<Table>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Table {
    name: String,
    columns: Vec<String>,
}

/// Copies the database at `url` into `folder`, which is there and empty.
///
/// # Errors
/// The database or the folder is not available.
pub async fn save(url: &str, folder: &Path) -> Result<Engine, DbError> {
    let contents = match sqlite_file(url) {
        Some(file) => save_sqlite(&file, folder).await?,
        None => save_postgres(url, folder).await?,
    };
    let text = serde_json::to_vec_pretty(&contents).map_err(|error| DbError::inconsistent("contents", error))?;
    tokio::fs::write(folder.join(CONTENTS_FILE), text).await.map_err(on_disk)?;
    Ok(contents.engine)
}

async fn save_sqlite(file: &Path, folder: &Path) -> Result<Contents, DbError> {
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await?;
    let copy = folder.join(SQLITE_FILE);
    sqlx::query("VACUUM INTO ?").bind(copy.to_string_lossy().as_ref()).execute(&mut connection).await?;
    connection.close().await?;
    let mut copied = SqliteConnectOptions::new().filename(&copy).read_only(true).connect().await?;
    let migrations = sqlx::query_scalar("SELECT name FROM schema_migrations ORDER BY name").fetch_all(&mut copied);
    let contents = Contents { engine: Engine::Sqlite, migrations: migrations.await?, tables: Vec::new() };
    copied.close().await?;
    Ok(contents)
}

async fn save_postgres(url: &str, folder: &Path) -> Result<Contents, DbError> {
    let mut connection = PgConnectOptions::from_str(url)?.application_name("drover backup").connect().await?;
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let migrations = sqlx::query_scalar("SELECT name FROM schema_migrations ORDER BY name").fetch_all(&mut connection);
    let migrations = migrations.await?;
    let tables = tables(&mut connection).await?;
    for table in &tables {
        let sql = format!("COPY {} TO STDOUT", table.named());
        let mut pieces = connection.copy_out_raw(&sql).await?;
        let mut file = File::create(folder.join(file_of(&table.name))).await.map_err(on_disk)?;
        while let Some(piece) = pieces.try_next().await? {
            file.write_all(&piece).await.map_err(on_disk)?;
        }
        file.flush().await.map_err(on_disk)?;
    }
    connection.execute("COMMIT").await?;
    connection.close().await?;
    Ok(Contents { engine: Engine::Postgres, migrations, tables })
}

impl Table {
    /// The table with its columns, quoted.
    fn named(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| quoted(column)).collect();
        format!("{} ({})", quoted(&self.name), columns.join(", "))
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn file_of(table: &str) -> String {
    format!("{table}.copy")
}

/// Every table but the migrations' own.
async fn tables(connection: &mut PgConnection) -> Result<Vec<Table>, DbError> {
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT c.table_name::text, c.column_name::text FROM information_schema.columns c \
         JOIN information_schema.tables t ON t.table_schema = c.table_schema AND t.table_name = c.table_name \
         WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE' AND c.is_generated = 'NEVER' \
         ORDER BY c.table_name, c.ordinal_position LIMIT 10000",
    )
    .fetch_all(&mut *connection)
    .await?;
    if columns.len() >= LISTED_MAX {
        return Err(DbError::inconsistent("schema", "there are more tables than anybody made"));
    }
    let mut by_table: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (table, column) in columns.into_iter().filter(|(table, _)| table != MIGRATIONS_TABLE) {
        by_table.entry(table).or_default().push(column);
    }
    Ok(by_table.into_iter().map(|(name, columns)| Table { name, columns }).collect())
}

/// A condition that rows of one table refer to rows of another, in SQL.
struct Reference {
    table: String,
    name: String,
    definition: String,
}

/// Every one of them: they are taken off while tables are filled, one after the other, and put back when all are full.
async fn references(connection: &mut PgConnection) -> Result<Vec<Reference>, DbError> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT t.relname::text, k.conname::text, pg_get_constraintdef(k.oid) FROM pg_constraint k \
         JOIN pg_class t ON t.oid = k.conrelid \
         WHERE k.contype = 'f' AND k.connamespace = current_schema()::regnamespace ORDER BY k.oid",
    )
    .fetch_all(connection)
    .await?;
    let references = rows.into_iter().map(|(table, name, definition)| Reference { table, name, definition });
    Ok(references.collect())
}

/// Whether there is nothing of ours at `url` yet.
///
/// # Errors
/// The database cannot be reached.
pub async fn is_empty(url: &str) -> Result<bool, DbError> {
    if let Some(file) = sqlite_file(url) {
        return Ok(!file.exists());
    }
    let mut connection = PgConnectOptions::from_str(url)?.connect().await?;
    let tables = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = current_schema()";
    let count: i64 = sqlx::query_scalar(tables).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(count == 0)
}

/// Puts the copy in `folder` into the empty database at `url`, and brings that up to date.
///
/// # Errors
/// The copy is of another engine, was made by a newer version, or does not fit; the database is not available.
pub async fn load(url: &str, folder: &Path, clock: &Clock) -> Result<Db, DbError> {
    let text = tokio::fs::read(folder.join(CONTENTS_FILE)).await.map_err(on_disk)?;
    let contents: Contents = serde_json::from_slice(&text).map_err(|error| DbError::inconsistent("contents", error))?;
    let known = |(at, name): (usize, &String)| MIGRATIONS.get(at).is_some_and(|(known, _)| known == name);
    if !contents.migrations.iter().enumerate().all(known) {
        return Err(DbError::inconsistent("contents", "the backup was made by a newer version of the server"));
    }
    let file = sqlite_file(url);
    match (contents.engine, &file) {
        (Engine::Sqlite, Some(file)) => {
            tokio::fs::copy(folder.join(SQLITE_FILE), file).await.map_err(on_disk)?;
        }
        (Engine::Postgres, None) => load_postgres(url, folder, &contents, clock).await?,
        (engine, _) => {
            let reason = format!("the backup is of {engine:?}: give the address of such a database");
            return Err(DbError::inconsistent("database_url", reason));
        }
    }
    let db = Db::connect(&DbOptions::url(url)).await?;
    db.migrate(clock).await?;
    Ok(db)
}

async fn load_postgres(url: &str, folder: &Path, contents: &Contents, clock: &Clock) -> Result<(), DbError> {
    let mut connection = PgConnectOptions::from_str(url)?.application_name("drover restore").connect().await?;
    connection.execute("BEGIN").await?;
    super::migrate::first(&mut connection, contents.migrations.len(), clock).await?;
    let references = references(&mut connection).await?;
    for Reference { table, name, .. } in &references {
        let sql = format!("ALTER TABLE {} DROP CONSTRAINT {}", quoted(table), quoted(name));
        connection.execute(AssertSqlSafe(sql)).await?;
    }
    let names: Vec<String> = contents.tables.iter().map(|table| quoted(&table.name)).collect();
    // What migrations put there is in the copy, as it became.
    connection.execute(AssertSqlSafe(format!("TRUNCATE {}", names.join(", ")))).await?;
    for table in &contents.tables {
        let file = File::open(folder.join(file_of(&table.name))).await.map_err(on_disk)?;
        let mut copying = connection.copy_in_raw(&format!("COPY {} FROM STDIN", table.named())).await?;
        copying.read_from(file).await?;
        copying.finish().await?;
    }
    for table in contents.tables.iter().filter(|table| table.columns.iter().any(|column| column == "id")) {
        let name = quoted(&table.name);
        let counted = format!(
            "SELECT setval(s.name, GREATEST((SELECT MAX(id) FROM {name}), 1)) \
             FROM (SELECT pg_get_serial_sequence('{name}', 'id') AS name) s WHERE s.name IS NOT NULL \
             AND EXISTS (SELECT 1 FROM {name})"
        );
        // Ids that are texts have no sequence, and no greatest number.
        let numbered: Option<String> = sqlx::query_scalar("SELECT pg_get_serial_sequence($1, 'id')")
            .bind(&name)
            .fetch_one(&mut connection)
            .await?;
        if numbered.is_some() {
            connection.execute(AssertSqlSafe(counted)).await?;
        }
    }
    for Reference { table, name, definition } in &references {
        let sql = format!("ALTER TABLE {} ADD CONSTRAINT {} {definition}", quoted(table), quoted(name));
        connection.execute(AssertSqlSafe(sql)).await?;
    }
    connection.execute("COMMIT").await?;
    connection.close().await?;
    Ok(())
}

fn on_disk(error: std::io::Error) -> DbError {
    DbError::Unavailable(error.to_string())
}
