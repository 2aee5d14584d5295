//! The server under test.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use drover_kernel::db::{Read, Sql, Value as Argument};
use drover_kernel::http::{Service, service};
use drover_kernel::jobs::Work;
use drover_kernel::{Audit, Clock, DEFAULT_ORGANISATION, Kernel, Routes, Settings, Time};
use futures_util::FutureExt as _;
use serde_json::json;

use crate::client::{Client, TestUser};
use crate::database::{Database, Engine};
use crate::kit;
use crate::waiting::wait_until;

/// Password of the administrator `admin`.
pub const ADMIN_PASSWORD: &str = "administrator's password";

/// Password of every user that [`TestServer::user`] makes.
pub const USER_PASSWORD: &str = "everybody's password";

/// When the clock stands still: 2024-05-01T12:00:00Z.
const START: Time = Time::from_seconds(1_714_564_800);

/// Time for what a server does in the background to end with its test.
const END: Duration = Duration::from_secs(20);

/// What has to end with a test: the server's background work, and then its database.
///
/// A test's last request may have left work behind that is opening a connection. While PostgreSQL waits for such a
/// connection's password it does not drop any database, for as long as a minute, and a test that drops its database
/// by blocking its own runtime waits for itself.
struct Ending {
    kernel: Mutex<Option<Kernel>>,
    database: Database,
    data_directory: tempfile::TempDir,
}

impl Ending {
    fn follow(&self, kernel: Option<Kernel>) {
        *self.kernel.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = kernel;
    }

    async fn end(&self) {
        let kernel = self.kernel.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(kernel) = kernel {
            let _ = tokio::time::timeout(2 * END, kernel.stop(END)).await;
        }
    }
}

/// Runs a test with a server of its own, and ends with it whatever the server still does.
///
/// # Panics
/// When the test does.
pub async fn with_server<T, F>(engine: Engine, settings: Settings, test: T)
where
    T: FnOnce(TestServer) -> F,
    F: Future<Output = ()>,
{
    let server = TestServer::start_with(engine, settings).await;
    let ending = server.ending.clone();
    let outcome = AssertUnwindSafe(test(server)).catch_unwind().await;
    ending.end().await;
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// A whole server in process, without sockets and background work.
pub struct TestServer {
    engine: Engine,
    kernel: Kernel,
    routes: Routes,
    service: Service,
    clock: Clock,
    settings: Settings,
    admin: Client,
    // Dropped last: the database goes away when nobody uses it any more.
    ending: Arc<Ending>,
}

impl TestServer {
    /// A server with the default settings and the administrator `admin`, for tests that only read what it made.
    pub async fn start(engine: Engine) -> Self {
        Self::start_with(engine, Settings::default()).await
    }

    async fn start_with(engine: Engine, settings: Settings) -> Self {
        let clock = Clock::fixed(START);
        let (database, db) = Database::open(engine, &clock).await;
        let data_directory = tempfile::tempdir().expect("a data directory");
        let (kernel, routes) = kit::assemble(db, clock.clone(), settings.clone(), data_directory.path());
        let service = service(&kernel, &routes, "test", drover_server::ready_checks(&kernel));
        let work = kernel.work();
        let password = Some(ADMIN_PASSWORD.to_owned());
        drover_identity::ensure_administrator(&work, password).await.expect("the first administrator");
        let token = drover_identity::create_token(&work, "admin", "tests").await.expect("the administrator's token");
        let admin = Client::anonymous(service.clone()).with_token(&token);
        let ending = Arc::new(Ending { kernel: Mutex::new(Some(kernel.clone())), database, data_directory });
        Self { engine, kernel, routes, service, clock, settings, admin, ending }
    }

    /// Stops the server and starts it again on the same data. Every client of the old one must be gone by then.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub async fn restarted(self) -> Self {
        let Self { engine, kernel, routes, service: old, clock, settings, admin, ending } = self;
        let token = admin.header("authorization");
        kernel.stop(Duration::from_secs(10)).await;
        // What is open is closed with the last handle on the kernel.
        ending.follow(None);
        drop((kernel, routes, old, admin));
        wait_until("the old server to let go of its files", async || is_free(ending.data_directory.path())).await;
        let db = ending.database.reopen().await;
        let (kernel, routes) = kit::assemble(db, clock.clone(), settings.clone(), ending.data_directory.path());
        ending.follow(Some(kernel.clone()));
        let service = service(&kernel, &routes, "test", drover_server::ready_checks(&kernel));
        let admin = Client::anonymous(service.clone()).with_header("authorization", &token);
        Self { engine, kernel, routes, service, clock, settings, admin, ending }
    }

    /// Where it keeps its files.
    #[must_use]
    pub fn data_directory(&self) -> &std::path::Path {
        self.ending.data_directory.path()
    }

    /// Which database it runs on.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Every route.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The service itself, for those who listen on a socket.
    #[must_use]
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Moves the clock forward.
    pub fn advance(&self, span: Duration) {
        self.clock.advance(span);
    }

    /// Nobody.
    #[must_use]
    pub fn anonymous(&self) -> Client {
        Client::anonymous(self.service.clone())
    }

    /// The administrator `admin`, who comes with an API token.
    #[must_use]
    pub fn admin(&self) -> Client {
        self.admin.clone()
    }

    /// Makes a user without any right, and signs them in.
    ///
    /// # Panics
    /// When the name is taken.
    pub async fn user(&self, username: &str) -> TestUser {
        let body = json!({"username": username, "password": USER_PASSWORD});
        let user = self.admin.post("/users/", body).await.expect(200);
        let client = self.sign_in(username, USER_PASSWORD).await;
        TestUser { id: user["id"].as_i64().expect("an id"), username: username.to_owned(), client }
    }

    /// Signs in; the client sends the session's value as a token.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn sign_in(&self, username: &str, password: &str) -> Client {
        let body = json!({"username": username, "password": password});
        let answer = self.anonymous().post("/users/actions/login/", body).await.expect(200);
        self.anonymous().with_token(answer["token"].as_str().expect("a token"))
    }

    /// Access for background work, which is the tests' way around the API as well.
    #[must_use]
    pub fn work(&self) -> Work {
        self.kernel.work()
    }

    /// A connection for reading.
    ///
    /// # Panics
    /// When there is none.
    pub async fn read(&self) -> Read {
        self.work().read().await.expect("a connection")
    }

    /// Result of a statement with one number, such as `SELECT COUNT(*) …`.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn count(&self, sql: Sql, arguments: Vec<Argument>) -> i64 {
        self.read().await.value(sql, arguments).await.expect("a number")
    }

    /// Runs a statement in a transaction of its own, behind the API's back.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn run(&self, sql: Sql, arguments: Vec<Argument>) -> u64 {
        let mut tx = self.work().begin(DEFAULT_ORGANISATION).await.expect("a transaction");
        let touched = tx.run(sql, arguments).await.expect("the statement runs");
        tx.finish(Audit::none("a test prepares something")).await.expect("the commit");
        touched
    }
}

/// Whether no server has the data directory's output open.
fn is_free(data_directory: &std::path::Path) -> bool {
    let lock = std::fs::File::open(data_directory.join("logs/lock"));
    lock.is_ok_and(|file| file.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Leaves work behind that opens connections and is not through when the test is.
    async fn check_work_ends_first(engine: Engine) {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        with_server(engine, Settings::default(), async move |server: TestServer| {
            let held = [server.read().await, server.read().await, server.read().await];
            let (kernel, work) = (server.kernel().clone(), server.work());
            kernel.spawn(async move {
                drop(held);
                let _ = work.read().await;
                seen.store(true, Ordering::SeqCst);
            });
        })
        .await;
        assert!(done.load(Ordering::SeqCst));
    }

    mod the_database_goes_after_the_work {
        use super::*;

        #[tokio::test]
        async fn sqlite() {
            check_work_ends_first(Engine::Sqlite).await;
        }

        #[tokio::test]
        async fn postgres() {
            check_work_ends_first(Engine::Postgres).await;
        }
    }
}
