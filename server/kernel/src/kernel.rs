//! The kernel: what a running server has one of, handed to every call and every piece of background work.
//!
//! Areas put their own long-lived parts (a log store, a link hub) beside it with [`KernelBuilder::part`].

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::sync::Arc;

use drover_shared::limits::OUTPUT_BYTES_MAX_DEFAULT;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::Authority;
use crate::clock::{Clock, Time};
use crate::db::Db;
use crate::idempotency::UnderWay;
use crate::jobs::Work;
use crate::metrics::Metrics;
use crate::proxies::Proxies;
use crate::pulse::Pulse;
use crate::resources::Resources;
use crate::retention::Retention;
use crate::room::RESERVE_BYTES;
use crate::secrets::{KeyText, Sealer};

/// What an operator decides and every area may ask.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Zone in which times are shown.
    pub zone: chrono_tz::Tz,
    /// Largest body of a request in bytes.
    pub body_bytes_max: usize,
    /// Whether a deploy task's reviewer must be another person than its creator, whatever the application says.
    pub four_eyes: bool,
    /// Whether clients reach the server through TLS, its own or a proxy's: decides `wss://` and the cookie's flags.
    pub secure: bool,
    /// Keys of stored secrets, when the operator keeps them elsewhere than in the data directory.
    pub secret_key: Option<KeyText>,
    /// Whose word on a client's address is taken.
    pub proxies: Proxies,
    /// Space on the disk of the data directory that stays free, in bytes; below it nothing new is taken in.
    pub disk_reserve_bytes: u64,
    /// Output of one execution that is kept, in bytes; beyond it the hook goes on and its output is thrown away.
    pub output_bytes_max: u64,
    /// How long what is over is kept.
    pub retention: Retention,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            zone: chrono_tz::UTC,
            body_bytes_max: 8 * 1024 * 1024,
            four_eyes: false,
            secure: false,
            secret_key: None,
            proxies: Proxies::default(),
            disk_reserve_bytes: RESERVE_BYTES,
            output_bytes_max: OUTPUT_BYTES_MAX_DEFAULT,
            retention: Retention::default(),
        }
    }
}

/// Time for the database to close after that.
const CLOSE_MAX: std::time::Duration = std::time::Duration::from_secs(1);

struct Inner {
    db: Db,
    clock: Clock,
    settings: Settings,
    authority: Arc<dyn Authority>,
    resources: Resources,
    sealer: Sealer,
    under_way: Arc<UnderWay>,
    parts: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    metrics: Metrics,
    pulse: Pulse,
    queue_notify: Arc<Notify>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// A handle on the kernel; cheap to clone.
#[derive(Clone)]
pub struct Kernel(Arc<Inner>);

/// Puts a kernel together.
pub struct KernelBuilder {
    inner: Inner,
}

impl KernelBuilder {
    /// Starts with what every kernel has.
    #[must_use]
    pub fn new(
        db: Db,
        clock: Clock,
        settings: Settings,
        authority: Arc<dyn Authority>,
        resources: Resources,
        sealer: Sealer,
    ) -> Self {
        Self {
            inner: Inner {
                db,
                clock,
                settings,
                authority,
                resources,
                sealer,
                under_way: Arc::default(),
                parts: HashMap::new(),
                metrics: Metrics::default(),
                pulse: Pulse::default(),
                queue_notify: Arc::new(Notify::new()),
                stopping: CancellationToken::new(),
                tasks: TaskTracker::new(),
            },
        }
    }

    /// Adds an area's own part.
    #[must_use]
    pub fn part<T: Send + Sync + 'static>(mut self, part: Arc<T>) -> Self {
        self.inner.parts.insert(TypeId::of::<T>(), part);
        self
    }

    /// The kernel's counters, for parts that count.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The kernel.
    #[must_use]
    pub fn build(self) -> Kernel {
        Kernel(Arc::new(self.inner))
    }
}

impl Kernel {
    pub(crate) fn db(&self) -> &Db {
        &self.0.db
    }

    pub(crate) fn queue_notify(&self) -> Arc<Notify> {
        self.0.queue_notify.clone()
    }

    pub(crate) fn pulse(&self) -> &Pulse {
        &self.0.pulse
    }

    pub(crate) fn authority(&self) -> &dyn Authority {
        &*self.0.authority
    }

    pub(crate) fn under_way(&self) -> &Arc<UnderWay> {
        &self.0.under_way
    }

    pub(crate) fn resources(&self) -> &Resources {
        &self.0.resources
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// What the operator decided.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What seals and opens stored secrets.
    #[must_use]
    pub fn sealer(&self) -> &Sealer {
        &self.0.sealer
    }

    /// A moment as clients see it.
    #[must_use]
    pub fn show(&self, time: Time) -> String {
        time.show(self.0.settings.zone)
    }

    /// A moment as clients see it, to the millisecond.
    #[must_use]
    pub fn show_millis(&self, time: Time) -> String {
        time.show_millis(self.0.settings.zone)
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// An area's own part.
    ///
    /// # Panics
    /// When the server was put together without it, which every test of the area would show.
    #[must_use]
    pub fn part<T: Send + Sync + 'static>(&self) -> Arc<T> {
        let part = self.0.parts.get(&TypeId::of::<T>()).cloned().and_then(|part| part.downcast().ok());
        part.unwrap_or_else(|| panic!("the server was put together without {}", type_name::<T>()))
    }

    /// Access for background work.
    #[must_use]
    pub fn work(&self) -> Work {
        Work::new(self.clone())
    }

    /// Whether the database takes changes, and answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_database(&self) -> crate::Result<()> {
        self.0.pulse.check(std::time::Instant::now()).map_err(crate::Error::Unavailable)?;
        let mut read = self.0.db.read().await?;
        read.value::<i64>(crate::sql!("SELECT COUNT(*) FROM organisations"), vec![]).await?;
        Ok(())
    }

    /// Set once the server begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// Runs a task that [`stop`](Self::stop) waits for. A panic in it ends this task alone and is logged by the runtime.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.tasks.spawn(task)
    }

    /// Asks every task to end, waits until they have or the time is over, and closes the database.
    pub async fn stop(&self, at_most: std::time::Duration) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        let _ = tokio::time::timeout(at_most, self.0.tasks.wait()).await;
        // What was cut off may hold a connection for ever.
        let _ = tokio::time::timeout(CLOSE_MAX, self.0.db.close()).await;
    }

    /// Removes what background work leaves behind; call it every few minutes.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn clean(&self) -> crate::Result<()> {
        crate::jobs::clean(self).await
    }
}
