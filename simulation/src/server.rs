//! The server's process: the real one, without its listeners. What would come through them is handed to it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use drover_automation::engine;
use drover_automation::link;
use drover_automation::link::enrol::JoinTokenOptions;
use drover_kernel::db::{Db, DbOptions};
use drover_kernel::http::Service;
use drover_kernel::routes::BASE;
use drover_kernel::{Clock, Kernel, Settings, Time, at_once};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt as _;

use crate::faults::Faults;
use crate::wire::End;

/// When every simulation begins: 2024-05-01T12:00:00Z.
pub(crate) const START_MS: i64 = 1_714_564_800_000;
const DATABASE: &str = "drover.sqlite";
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Turns within which a request is answered; before each of the last ones somebody waits for so long, in milliseconds.
const TURNS: usize = 4;
const PATIENCE_MS: [u64; 4] = [10, 40, 200, 1_000];

/// Every move of an execution, in the order of the commits, with what it is about.
const MOVES: &str = "
CREATE TABLE moves (number INTEGER PRIMARY KEY AUTOINCREMENT, task_id BIGINT, execution_id TEXT, role TEXT,
    excluded BOOLEAN, object TEXT, reason TEXT, old TEXT, new TEXT);
CREATE TRIGGER moved AFTER UPDATE OF state ON executions WHEN OLD.state <> NEW.state BEGIN
    INSERT INTO moves (task_id, execution_id, role, excluded, object, reason, old, new)
    VALUES (NEW.task_id, NEW.id, NEW.role, NEW.excluded,
        COALESCE('instance ' || NEW.instance_id, 'host ' || NEW.host_id), NEW.reason, OLD.state, NEW.state);
END;
";

/// A migrated database and the server's keys, made once for each process.
pub(crate) struct Template {
    _folder: tempfile::TempDir,
    path: PathBuf,
    token: String,
}

/// A runtime whose time stands still unless it is moved.
pub(crate) fn runtime() -> Runtime {
    // Whoever starts a thread is not replayed.
    let no_threads = || panic!("something was given to another thread");
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .on_thread_start(no_threads)
        .build()
        .expect("a runtime")
}

impl Template {
    /// The one of this process.
    pub(crate) fn get() -> &'static Self {
        static TEMPLATE: OnceLock<Template> = OnceLock::new();
        TEMPLATE.get_or_init(|| {
            // A thread of its own, which does nothing at once.
            std::thread::spawn(|| {
                let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(Self::make()).expect("an empty server")
            })
            .join()
            .expect("an empty server")
        })
    }

    async fn make() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("server");
        std::fs::create_dir(&path)?;
        let clock = Clock::fixed(Time::from_millis(START_MS));
        let db = Db::connect(&DbOptions::sqlite(&path.join(DATABASE))).await?;
        db.migrate(&clock).await?;
        let kernel = drover_server::kernel(db, clock, Settings::default(), &path)?;
        let work = kernel.work();
        drover_identity::ensure_administrator(&work, Some("administrator's password".to_owned())).await?;
        let token = drover_identity::create_token(&work, "admin", "simulation").await?;
        let engine = kernel.part::<engine::Engine>();
        kernel.stop(Duration::from_secs(5)).await;
        engine.logs.close().await;
        Ok(Self { _folder: folder, path, token })
    }

    /// A copy of it.
    pub(crate) fn copy(&self, to: &Path) -> std::io::Result<()> {
        copy_folder(&self.path, to)
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for item in std::fs::read_dir(from)? {
        let item = item?;
        let place = to.join(item.file_name());
        if item.file_type()?.is_dir() {
            copy_folder(&item.path(), &place)?;
        } else {
            std::fs::copy(item.path(), place)?;
        }
    }
    Ok(())
}

/// A running server.
pub(crate) struct Server {
    kernel: Kernel,
    service: Service,
    clock: Clock,
    local_ms: u64,
    token: String,
    // Dropped last: what runs in it ends with it.
    runtime: Runtime,
}

impl Server {
    /// Starts it on its folder. None when it ends at once.
    pub(crate) fn start(folder: &Path, now_ms: u64, faults: &Faults) -> anyhow::Result<Self> {
        at_once::begin();
        at_once::set_disk(Some(faults.disk()));
        let runtime = runtime();
        let clock = Clock::fixed(Time::from_millis(START_MS + i64::try_from(now_ms)?));
        let kernel = {
            let _entered = runtime.enter();
            let db = Db::direct(&folder.join(DATABASE), faults.fates())?;
            drover_server::kernel(db, clock.clone(), Settings::default(), folder)?
        };
        let service = drover_server::http(&kernel);
        let owner = kernel.clone();
        runtime.spawn(async move {
            // As the server's program does it: without this it does not begin.
            while link::forget_connections(&owner.work()).await.is_err() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            owner.spawn(engine::sweep(owner.clone()));
            owner.spawn(drover_server::jobs().run(owner.clone()));
        });
        Ok(Self { kernel, service, clock, local_ms: now_ms, token: Template::get().token.clone(), runtime })
    }

    /// Adds what the simulation wants to know of the database.
    pub(crate) fn watch_moves(folder: &Path) -> anyhow::Result<()> {
        Ok(Db::direct_script(&folder.join(DATABASE), MOVES)?)
    }

    /// Gives it a turn: everything that it can do now. Gives the time after it.
    pub(crate) fn turn(&mut self, now_ms: u64) -> u64 {
        let passed = Duration::from_millis(now_ms.saturating_sub(self.local_ms));
        self.clock.advance(passed);
        self.runtime.block_on(async {
            tokio::time::advance(passed).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
        self.clock.advance(Duration::from_millis(1));
        self.local_ms = now_ms + 1;
        self.local_ms
    }

    /// The kernel.
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Runs something of the tests' own in it.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// An agent has connected.
    pub(crate) fn accept(&self, end: End) {
        let kernel = self.kernel.clone();
        self.runtime.spawn(async move { link::converse(kernel, Box::new(end)).await });
    }

    /// A token with which a host joins.
    pub(crate) fn join_token(&self, host: &str) -> anyhow::Result<String> {
        let keys = &self.kernel.part::<engine::Engine>().keys;
        let options = JoinTokenOptions {
            url: "wss://127.0.0.1:1".to_owned(),
            host_name: Some(host.to_owned()),
            ttl: Duration::from_secs(86_400),
            uses: 1,
        };
        self.runtime
            .block_on(link::create_join_token(&self.kernel.work(), keys, options))
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// A person asks. None when there is no answer.
    pub(crate) fn ask(
        &mut self,
        now_ms: &mut u64,
        method: &str,
        path: &str,
        body: &Value,
        key: &str,
    ) -> Option<(u16, Value)> {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(format!("{BASE}{path}"))
            .header("authorization", format!("Token {}", self.token))
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(body)
            .expect("a request");
        let service = self.service.clone();
        let asking = self.runtime.spawn(async move {
            let Ok(response) = service.oneshot(request).await;
            let status = response.status().as_u16();
            let bytes = axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.ok()?;
            let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
            let body =
                if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) };
            Some((status, body))
        });
        for pause_ms in [0; TURNS].into_iter().chain(PATIENCE_MS) {
            *now_ms = self.turn(*now_ms + pause_ms);
            if asking.is_finished() {
                return self.runtime.block_on(asking).ok().flatten();
            }
            if at_once::is_halted() {
                break;
            }
        }
        asking.abort();
        None
    }
}
