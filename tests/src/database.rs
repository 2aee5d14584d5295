//! A database for one test: a file of SQLite, or a copy of a migrated template on PostgreSQL.
//!
//! Invariant: a template is complete as soon as it has its name, since it is renamed when it is done.

use std::sync::atomic::{AtomicU32, Ordering};

use drover_kernel::Clock;
use drover_kernel::db::{Db, DbOptions, MIGRATIONS};
use drover_shared::Digest;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

/// Which database the server under test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A file in a temporary folder.
    Sqlite,
    /// A database on the server that `DROVER_TEST_POSTGRES_URL` names.
    Postgres,
}

/// Address of a PostgreSQL server and a user who may create databases.
const POSTGRES_URL: &str = "DROVER_TEST_POSTGRES_URL";

/// Key of the advisory lock under which one process makes the template.
const TEMPLATE_LOCK: i64 = 0x7465_6d70_6c61_7465;

/// Connections of one test; several tests share one server.
const CONNECTIONS: u32 = 5;

/// What goes away with the test.
pub(crate) enum Database {
    Sqlite { folder: TempDir },
    Postgres { name: String, admin_url: String },
}

impl Database {
    /// A fresh, migrated database.
    pub(crate) async fn open(engine: Engine, clock: &Clock) -> (Self, Db) {
        match engine {
            Engine::Sqlite => {
                let folder = TempDir::new().expect("a temporary folder");
                let options = sqlite_options(&folder);
                let db = Db::connect(&options).await.expect("SQLite opens");
                db.migrate(clock).await.expect("migrations run on SQLite");
                (Self::Sqlite { folder }, db)
            }
            Engine::Postgres => Self::open_postgres(clock).await,
        }
    }

    /// Address for a program that connects by itself; none for SQLite, whose file each server keeps with its data.
    pub(crate) fn url(&self) -> Option<String> {
        match self {
            Self::Sqlite { .. } => None,
            Self::Postgres { name, admin_url } => Some(url_of(admin_url, name)),
        }
    }

    /// Connects to the same database once more.
    pub(crate) async fn reopen(&self) -> Db {
        let options = match self {
            Self::Sqlite { folder } => sqlite_options(folder),
            Self::Postgres { name, admin_url } => {
                DbOptions { connections: CONNECTIONS, ..DbOptions::url(&url_of(admin_url, name)) }
            }
        };
        Db::connect(&options).await.expect("the test's database opens again")
    }

    /// Removes everything from a database on PostgreSQL.
    pub(crate) async fn empty(&self) {
        let Self::Postgres { name, admin_url } = self else { return };
        let mut admin = PgConnection::connect(admin_url).await.expect("PostgreSQL answers");
        execute(&mut admin, format!("DROP DATABASE {name} WITH (FORCE)")).await;
        execute(&mut admin, format!("CREATE DATABASE {name}")).await;
    }

    async fn open_postgres(clock: &Clock) -> (Self, Db) {
        let admin_url = std::env::var(POSTGRES_URL).unwrap_or_else(|_| panic!("run the tests with `cargo xtask test`"));
        let mut admin = PgConnection::connect(&admin_url).await.expect("PostgreSQL answers");
        let template = template(&mut admin, &admin_url, clock).await;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("drover_test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Of a process of this number that was killed.
        execute(&mut admin, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        execute(&mut admin, format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
        let options = DbOptions { connections: CONNECTIONS, ..DbOptions::url(&url_of(&admin_url, &name)) };
        let db = Db::connect(&options).await.expect("the test's database opens");
        (Self::Postgres { name, admin_url }, db)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Self::Postgres { name, admin_url } = self else { return };
        let text = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        let admin_url = admin_url.clone();
        // A test's own runtime may be ending, with a panic even: this one is for the purpose. What fails stays behind
        // on a server that is thrown away.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut admin = PgConnection::connect(&admin_url).await?;
                admin.execute(AssertSqlSafe(text)).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            })
        });
        let _ = dropping.join();
    }
}

fn sqlite_options(folder: &TempDir) -> DbOptions {
    DbOptions::sqlite(&folder.path().join("drover.sqlite"))
}

async fn execute(connection: &mut PgConnection, text: String) {
    connection.execute(AssertSqlSafe(text.clone())).await.unwrap_or_else(|error| panic!("{text}: {error}"));
}

/// The same server, another database.
fn url_of(admin_url: &str, name: &str) -> String {
    let (address, query) = admin_url.split_once('?').map_or((admin_url, ""), |(address, query)| (address, query));
    let server = address.rfind('/').filter(|at| *at > "postgres://".len()).map_or(address, |at| &address[..at]);
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    format!("{server}/{name}{query}")
}

/// Name of the migrated template, which is made if it is not there.
async fn template(admin: &mut PgConnection, admin_url: &str, clock: &Clock) -> String {
    let texts: Vec<&str> = MIGRATIONS.iter().map(|(_, text)| *text).collect();
    let name = format!("drover_template_{}", Digest::of(texts.concat().as_bytes()).short());
    if exists(admin, &name).await {
        return name;
    }
    execute(admin, format!("SELECT pg_advisory_lock({TEMPLATE_LOCK})")).await;
    if !exists(admin, &name).await {
        let unfinished = format!("{name}_unfinished");
        execute(admin, format!("DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)")).await;
        execute(admin, format!("CREATE DATABASE {unfinished}")).await;
        let options = DbOptions { connections: 2, ..DbOptions::url(&url_of(admin_url, &unfinished)) };
        let db = Db::connect(&options).await.expect("the template opens");
        db.migrate(clock).await.expect("migrations run on PostgreSQL");
        db.close().await;
        execute(admin, format!("ALTER DATABASE {unfinished} RENAME TO {name}")).await;
    }
    execute(admin, format!("SELECT pg_advisory_unlock({TEMPLATE_LOCK})")).await;
    name
}

async fn exists(admin: &mut PgConnection, name: &str) -> bool {
    let found: Option<i32> = sqlx::query_scalar("SELECT 1 FROM pg_database WHERE datname = $1")
        .bind(name)
        .fetch_optional(admin)
        .await
        .expect("the list of databases");
    found.is_some()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use drover_kernel::db::DbError;
    use drover_kernel::{Settings, sql};
    use tokio::io::copy_bidirectional;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;

    use super::*;

    #[test]
    fn the_database_is_exchanged_in_the_address() {
        for (admin, expected) in [
            ("postgres://u:p@127.0.0.1:5433/postgres", "postgres://u:p@127.0.0.1:5433/x"),
            ("postgres://u@h/postgres?sslmode=disable", "postgres://u@h/x?sslmode=disable"),
            ("postgres://u@h", "postgres://u@h/x"),
        ] {
            assert_eq!(url_of(admin, "x"), expected);
        }
    }

    /// Hands bytes on in both directions, until it is told to keep those of the connections that it has by then.
    async fn between(url: &str, frozen: watch::Receiver<u32>) -> String {
        let server = url.rsplit_once('@').expect("a user").1.split('/').next().expect("a server").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let here = listener.local_addr().expect("its address").to_string();
        let there = server.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (there, mut frozen) = (there.clone(), frozen.clone());
                let began = *frozen.borrow();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(there).await.expect("PostgreSQL listens");
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        () = async { drop(frozen.wait_for(|now| *now > began).await) } => {
                            // Neither end hears of the other again.
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        url.replacen(&server, &here, 1)
    }

    /// Half of a connection is gone, and nobody says so: what waits for it gets an error, and the next has another one.
    #[tokio::test]
    async fn a_connection_that_does_not_answer_is_given_up() {
        let clock = Clock::system();
        let (database, direct) = Database::open(Engine::Postgres, &clock).await;
        direct.close().await;
        let (freeze, frozen) = watch::channel(0);
        let url = between(&database.url().expect("an address"), frozen).await;
        let options = DbOptions { connections: 2, patience: Duration::from_secs(2), ..DbOptions::url(&url) };
        let db = Db::connect(&options).await.expect("it opens");
        let folder = TempDir::new().expect("a folder");
        let (kernel, _) = crate::kit::assemble(db, clock, Settings::default(), folder.path());
        let work = kernel.work();
        let touch = || sql!("UPDATE organisations SET name = name");
        let mut writing = work.begin(1).await.expect("a transaction");
        let mut reading = work.read().await.expect("a connection");
        writing.run(touch(), vec![]).await.expect("it answers");
        freeze.send_replace(1);
        assert!(matches!(writing.run(touch(), vec![]).await, Err(DbError::Unavailable(_))));
        let read = reading.value::<i64>(sql!("SELECT COUNT(*) FROM organisations"), vec![]).await;
        assert!(matches!(read, Err(DbError::Unavailable(_))), "{read:?}");
        drop((writing, reading));
        // Both places are free again, for connections that answer. What the first one locked its end still holds.
        crate::wait_until("two that answer", async || {
            let (Ok(mut first), Ok(mut second)) = (work.read().await, work.read().await) else { return false };
            let count = || sql!("SELECT COUNT(*) FROM organisations");
            first.value::<i64>(count(), vec![]).await.is_ok() && second.value::<i64>(count(), vec![]).await.is_ok()
        })
        .await;
    }
}
