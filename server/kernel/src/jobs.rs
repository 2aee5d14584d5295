//! Background work: a durable queue of wake-ups, written in the transaction that causes them.
//!
//! A wake-up is a topic and a key, nothing more: the truth is in the tables, and a handler reads it there, takes
//! milliseconds and is safe to run twice. apalis keeps and delivers the wake-ups. Invariants: a wake-up is committed
//! together with its cause; a handler never fails towards the queue (retrying is the sweep's work); nothing that waits
//! for the network runs inside a handler; the queue's tables stay as small as what happened in a few minutes. Absent:
//! payloads, priorities, retries and acknowledgements by the queue.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use apalis::prelude::{BackendExt as _, BoxDynError, TaskBuilder, WorkerBuilder, WorkerBuilderExt as _};
use apalis_postgres::PostgresStorage;
use apalis_sqlite::SqliteStorage;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::audit::Audit;
use crate::db::direct::Direct;
use crate::db::{Db, DbError, Pools, Read};
use crate::kernel::Kernel;
use crate::panics::caught;
use crate::tx::{Actor, Tx};
use crate::{Error, Result, args, sql};

/// The one queue.
const QUEUE: &str = "drover";

/// How often the queue is looked at without a wake-up: other servers' jobs, and those a lost wake-up left.
const POLL: Duration = Duration::from_millis(250);

/// Wake-ups handled at a time.
const CONCURRENCY: usize = 4;

/// Wake-ups fetched at a time. Those that wait here get no heartbeat, so they must be handled in a few seconds; the
/// queue is looked at so often that this bounds how many it hands out.
const FETCHED: usize = 64;

/// Pause before a worker that the database threw out starts again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// How long a wake-up that was handed out is kept. It is handled within seconds and not acknowledged, which would wait for
/// the disk each time; the queue hands out what a dead server had once more as long as it is there.
const HANDED_OUT_KEPT_SECONDS: i64 = 300;

/// Wake-ups removed in one transaction, and such transactions in one round.
const PIECE: i64 = 5_000;
const PIECES_MAX: usize = 200;

type Handling = Pin<Box<dyn Future<Output = Result<()>> + Send>>;
type Handler = Arc<dyn Fn(Work, String) -> Handling + Send + Sync>;

#[derive(Serialize, Deserialize)]
struct WakeUp {
    topic: String,
    key: String,
}

/// What a background handler gets in place of a call: it acts as the system.
#[derive(Clone)]
pub struct Work {
    kernel: Kernel,
}

impl Work {
    pub(crate) fn new(kernel: Kernel) -> Self {
        Self { kernel }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// A connection for reading, over all organisations.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn read(&self) -> Result<Read> {
        Ok(self.kernel.db().read().await?)
    }

    /// A write transaction in the name of the system.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn begin(&self, organisation_id: i64) -> Result<Tx> {
        Tx::begin_as(&self.kernel, organisation_id, Actor::System).await
    }
}

/// The handlers of every area, by topic.
#[derive(Default, Clone)]
pub struct Jobs {
    handlers: BTreeMap<&'static str, Handler>,
}

impl Jobs {
    /// Adds the handler of a topic; it gets the key.
    #[must_use]
    pub fn on<F, Fut>(mut self, topic: &'static str, handler: F) -> Self
    where
        F: Fn(Work, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.handlers.insert(topic, Arc::new(move |work, key| Box::pin(handler(work, key))));
        self
    }

    /// Adds another area's handlers.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.handlers.extend(other.handlers);
        self
    }

    async fn handle(&self, kernel: &Kernel, payload: &str) {
        let Ok(wake_up) = serde_json::from_str::<WakeUp>(payload) else {
            tracing::error!(payload, "wake-up without topic and key");
            return;
        };
        let Some(handler) = self.handlers.get(wake_up.topic.as_str()) else {
            tracing::error!(topic = wake_up.topic, "wake-up of a topic that nobody handles");
            return;
        };
        // The sweep repeats what failed, so an error ends here.
        if let Err(error) = caught(handler(Work::new(kernel.clone()), wake_up.key.clone())).await {
            tracing::error!(topic = wake_up.topic, key = wake_up.key, %error, "background work failed");
        }
    }

    /// Delivers wake-ups until the kernel stops.
    pub async fn run(self, kernel: Kernel) {
        let stop = kernel.stopping();
        while !stop.is_cancelled() {
            let outcome = self.run_worker(&kernel).await;
            if stop.is_cancelled() {
                return;
            }
            tracing::warn!(outcome = ?outcome.err().map(|error| error.to_string()), "queue worker ended, starting another");
            tokio::select! {
                () = tokio::time::sleep(RESTART_PAUSE) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// A worker has a fresh name each time: the queue takes a known name for one that still lives.
    async fn run_worker(&self, kernel: &Kernel) -> std::result::Result<(), BoxDynError> {
        let name = format!("drover-{}", Uuid::now_v7());
        let stop = kernel.stopping();
        let signal = async move {
            stop.cancelled().await;
            Ok::<(), std::io::Error>(())
        };
        let jobs = self.clone();
        let owner = kernel.clone();
        let handler = move |payload: String| {
            let (jobs, kernel) = (jobs.clone(), owner.clone());
            async move {
                jobs.handle(&kernel, &payload).await;
                Ok::<(), Infallible>(())
            }
        };
        let wake = wake_ups(kernel.queue_notify());
        match kernel.db().pools() {
            Pools::Direct(direct) => self.deliver(kernel, direct).await?,
            Pools::Sqlite { write, .. } => {
                let config = apalis_sqlite::Config::default()
                    .queue(QUEUE)
                    .batch_size(FETCHED)
                    .lock_tasks(false)
                    .persist_results(false);
                let backend = SqliteStorage::<String>::new(write).with_config(config).poll_with_stream(wake);
                WorkerBuilder::new(name)
                    .backend(backend)
                    .concurrency(CONCURRENCY)
                    .build(handler)
                    .run_until(signal)
                    .await?;
            }
            Pools::Postgres(pool) => {
                let config = apalis_postgres::Config::default()
                    .queue(QUEUE)
                    .batch_size(FETCHED)
                    .lock_tasks(false)
                    .persist_results(false);
                let backend = PostgresStorage::<String>::new(pool).with_config(config).poll_with_stream(wake);
                WorkerBuilder::new(name)
                    .backend(backend)
                    .concurrency(CONCURRENCY)
                    .build(handler)
                    .run_until(signal)
                    .await?;
            }
        }
        Ok(())
    }
}

impl Jobs {
    /// As a worker of the queue does it, without the queue's own threads and clocks.
    async fn deliver(&self, kernel: &Kernel, direct: &Direct) -> std::result::Result<(), DbError> {
        let mut wake = wake_ups(kernel.queue_notify());
        let stop = kernel.stopping();
        while !stop.is_cancelled() {
            wake.next().await;
            for (number, payload) in direct.wake_ups()? {
                let payload: String = serde_json::from_slice(&payload).unwrap_or_default();
                if !direct.loses_wake_up() {
                    self.handle(kernel, &payload).await;
                }
                direct.handled(number).await?;
            }
        }
        Ok(())
    }
}

/// An item at every notification, and at the latest after [`POLL`].
fn wake_ups(notify: Arc<Notify>) -> impl stream::Stream<Item = ()> + Unpin + Send + 'static {
    Box::pin(stream::unfold(notify, |notify| async move {
        let _ = tokio::time::timeout(POLL, notify.notified()).await;
        Some(((), notify))
    }))
}

pub(crate) fn payload(topic: &str, key: &str) -> String {
    serde_json::json!({ "topic": topic, "key": key }).to_string()
}

fn encode(payload: &str) -> std::result::Result<Vec<u8>, DbError> {
    serde_json::to_vec(payload).map_err(|error| DbError::inconsistent("payload", error))
}

pub(crate) async fn push_sqlite(
    connection: &mut sqlx::SqliteConnection,
    queue: &str,
    payload: &str,
) -> std::result::Result<(), DbError> {
    let task = TaskBuilder::new(encode(payload)?).build();
    apalis_sqlite::queries::push_tasks(connection, queue, &[task])
        .await
        .map_err(|error| DbError::Unavailable(error.to_string()))
}

pub(crate) async fn push_postgres(
    connection: &mut sqlx::PgConnection,
    queue: &str,
    payload: &str,
) -> std::result::Result<(), DbError> {
    let task = TaskBuilder::new(encode(payload)?).build();
    apalis_postgres::queries::push_tasks(connection, queue, vec![task])
        .await
        .map_err(|error| DbError::Unavailable(error.to_string()))
}

impl Tx {
    /// Has `topic`'s handler called with `key` once this transaction is committed, at least once.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn enqueue(&mut self, topic: &str, key: &str) -> Result<()> {
        self.write().enqueue(QUEUE, &payload(topic, key)).await?;
        self.wakes_queue();
        Ok(())
    }

    /// As [`enqueue`](Self::enqueue), for what this process begins by itself right after the commit: the queue has it
    /// looked at a moment later, in case nobody came to that. It does not compete with what is under way.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn enqueue_behind(&mut self, topic: &str, key: &str) -> Result<()> {
        Ok(self.write().enqueue(QUEUE, &payload(topic, key)).await?)
    }
}

/// Removes wake-ups that were handed out a while ago, workers that are long gone, and answers kept for repeated requests.
pub(crate) async fn clean(kernel: &Kernel) -> Result<()> {
    let now = kernel.clock().now();
    let is_sqlite = kernel.db().is_sqlite();
    let work = Work::new(kernel.clone());
    // One piece at a time: between them others write.
    for _ in 0..PIECES_MAX {
        let mut tx = work.begin(crate::DEFAULT_ORGANISATION).await?;
        let handed_out = if is_sqlite {
            "DELETE FROM Jobs WHERE rowid IN \
             (SELECT rowid FROM Jobs WHERE status IN ('Queued', 'Running', 'Done') AND run_at < $1 LIMIT $2)"
        } else {
            "DELETE FROM apalis.jobs WHERE id IN (SELECT id FROM apalis.jobs \
             WHERE status IN ('Queued', 'Running', 'Done') AND run_at < to_timestamp($1) LIMIT $2)"
        };
        let arguments = args![now.seconds() - HANDED_OUT_KEPT_SECONDS, PIECE];
        let gone = tx.run(crate::db::Sql::literal(handed_out), arguments).await?;
        tx.finish(Audit::none("wake-ups that were handed out are needed no more")).await?;
        if gone < PIECE.unsigned_abs() {
            break;
        }
    }
    let mut tx = work.begin(crate::DEFAULT_ORGANISATION).await?;
    let workers = if is_sqlite {
        "DELETE FROM Workers WHERE last_seen < $1 AND id NOT IN (SELECT lock_by FROM Jobs WHERE lock_by IS NOT NULL)"
    } else {
        "DELETE FROM apalis.workers WHERE last_seen < to_timestamp($1) \
         AND id NOT IN (SELECT lock_by FROM apalis.jobs WHERE lock_by IS NOT NULL)"
    };
    tx.run(crate::db::Sql::literal(workers), args![now.seconds() - 86_400]).await?;
    let day_ago = now.millis() - 86_400_000;
    tx.run(sql!("DELETE FROM idempotency_keys WHERE created_at < $1"), args![day_ago]).await?;
    tx.finish(Audit::none("housekeeping")).await.map(drop)
}

/// The queue's own schema. Its set-up call is not used: it turns off durability on SQLite.
pub(crate) async fn migrate(db: &Db) -> std::result::Result<(), DbError> {
    match db.pools() {
        Pools::Direct(_) => {}
        Pools::Sqlite { write, .. } => {
            SqliteStorage::migrations().set_ignore_missing(true).run(write).await.map_err(migrate_error)?;
            // This index makes acknowledging quadratic in the number of jobs.
            sqlx::query("DROP INDEX IF EXISTS LIdx").execute(write).await?;
        }
        Pools::Postgres(pool) => {
            PostgresStorage::migrations().set_ignore_missing(true).run(pool).await.map_err(migrate_error)?;
        }
    }
    Ok(())
}

fn migrate_error(error: sqlx::migrate::MigrateError) -> DbError {
    DbError::Unavailable(format!("the queue's migrations failed: {error}"))
}

impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
