//! `drover-agent run`: the shell around the session.
//!
//! One task owns session, spool and cache and does everything in turn; connections and waiting supervisors have
//! small tasks of their own that only report to it. Invariant: everything the server may ask about is in the spool
//! before it is spoken of, so that this process may end at any moment.

mod assembly;
mod cache;
mod executions;
mod fetching;
mod host;
mod inspecting;
mod instances;
mod link;
mod watcher;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use drover_shared::limits::PROTOCOL_VERSIONS;
use drover_shared::message::Abilities;
use drover_shared::token::JoinToken;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::statvfs::statvfs;
use rustls::ClientConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::identity::{AgentKey, Identity};
use crate::session::{Output, Profile, Session};
use crate::spool::{Key, Spool, boot_id};
use crate::supervise::processes::{cgroups_usable, pids_limited};
use crate::{accounts, clock, tls};
use executions::{Executions, Report};
pub use host::Host;
use host::ThisHost;
use instances::Instances;
use link::Incoming;
pub use link::{Link, Wire};
use watcher::Change;
pub use watcher::Watcher;

/// Longest pause before dialling again: at first, and at last, in milliseconds. Each pause is anything up to that, so that
/// all the agents of a server that was away do not come back at the same moment.
const BACK_OFF_MS: (u64, u64) = (1_000, 30_000);
/// How long a session has to last before the next pause is a first one again, in milliseconds: what breaks each session
/// soon after it began must not make the agent dial again and again.
const LASTING_MS: u64 = 30_000;

/// Size of a spool unless somebody says otherwise, in bytes.
const SPOOL_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// Reports that wait for the agent.
const REPORTS_MAX: usize = 256;

/// What the command line says.
#[derive(Debug)]
pub struct Options {
    /// Join token; needed until the agent is enrolled.
    pub join: Option<String>,
    /// Name of the host; its own when none is given.
    pub name: Option<String>,
    /// Where the agent keeps everything.
    pub data_dir: PathBuf,
    /// Size of the spool in bytes; when none is given 8 GiB, but no more than half of its disk.
    pub spool_bytes_max: Option<u64>,
    /// Processes and threads that an execution may have at a time, where the kernel counts them.
    pub pids_max: u64,
}

/// Runs until a signal ends it or the server refuses it for good.
///
/// # Errors
/// A sentence for people: why it cannot go on.
pub fn run(options: Options) -> anyhow::Result<()> {
    // It holds the values of secrets until their hooks have their turn.
    crate::supervise::hide().context("core dumps")?;
    // A write beyond a file size limit then fails with an error that names the reason.
    SigSet::from_iter([Signal::SIGXFSZ]).thread_block().context("signals")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(1))
        .thread_stack_size(512 * 1024)
        .build()
        .context("no runtime")?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let quit = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let host = ThisHost { pids_max: options.pids_max };
        Box::pin(work(options, Arc::new(host), quit)).await
    });
    // Supervisors go on by themselves, and nothing else is worth waiting for.
    runtime.shutdown_background();
    outcome
}

/// Works on a host until it is to quit; executions go on under their supervisors.
///
/// # Errors
/// A sentence for people: why it cannot go on.
pub async fn work(options: Options, host: Arc<dyn Host>, quit: impl Future<Output = ()>) -> anyhow::Result<()> {
    Agent::new(options, host)?.work(quit).await
}

/// The connection as it stands.
enum Connection {
    /// Dials at this time of the monotonic clock.
    Waiting(u64),
    Dialing(JoinHandle<anyhow::Result<Link>>),
    Up(Link),
}

/// What wakes the agent.
enum Event {
    Quit,
    Dial,
    Dialed(anyhow::Result<Link>),
    Incoming(Incoming),
    Changed(BTreeMap<Key, Change>),
    Report(Option<Report>),
    Nothing,
}

struct Agent {
    host: Arc<dyn Host>,
    data_dir: PathBuf,
    _lock: Flock<File>,
    url: String,
    name: String,
    /// A copy of the key for the identity file, until it is written.
    enrolling: Option<AgentKey>,
    tls: Arc<ClientConfig>,
    session: Session,
    executions: Executions,
    instances: Instances,
    connection: Connection,
    back_off_ms: u64,
    /// When the session was opened.
    opened_ms: Option<u64>,
    swept_ms: u64,
    room: Arc<Notify>,
    reports: mpsc::Receiver<Report>,
}

impl Agent {
    fn new(options: Options, host: Arc<dyn Host>) -> anyhow::Result<Self> {
        let data_dir = options.data_dir;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&data_dir)
            .with_context(|| format!("data directory {} cannot be made", data_dir.display()))?;
        // Supervisors find their folder from wherever they are.
        let data_dir = data_dir.canonicalize().context("data directory")?;
        let lock = lock(&data_dir)?;
        let name = options.name.map_or_else(host_name, Ok)?;
        let boot_id = boot_id();
        let spool_bytes_max = options.spool_bytes_max.unwrap_or_else(|| spool_bytes_max(&data_dir));
        let mut profile = Profile {
            name: name.clone(),
            secret: None,
            agent_id: None,
            key: AgentKey::generate()?,
            signing_key: String::new(),
            boot_id: boot_id.clone(),
            abilities: Abilities { spool_bytes_max: Some(spool_bytes_max), ..abilities() },
            versions: PROTOCOL_VERSIONS,
        };
        let (url, tls, enrolling) = if let Some(identity) = Identity::load(&data_dir)? {
            profile.key = identity.key()?;
            profile.agent_id = Some(identity.agent_id.clone());
            profile.signing_key.clone_from(&identity.signing_key);
            (identity.url.clone(), tls::trusting_ca(&identity.ca_pem)?, None)
        } else {
            let Some(token) = options.join else {
                bail!("this data directory belongs to no agent yet: give a join token with --join");
            };
            let token = JoinToken::decode(&token).map_err(anyhow::Error::msg)?;
            profile.secret = Some(token.secret);
            profile.key = AgentKey::of_enrolment(&data_dir)?;
            let copy = profile.key.copy()?;
            (token.url, tls::trusting_fingerprint(token.ca_fingerprint)?, Some(copy))
        };
        let (to_agent, reports) = mpsc::channel(REPORTS_MAX);
        let spool = Spool::open(&data_dir).context("spool")?;
        let cache = cache::Cache::open(&data_dir).context("artifact cache")?;
        let executions = Executions::new((spool, spool_bytes_max), cache, host.clone(), boot_id, to_agent.clone());
        let instances = Instances::start(&data_dir, to_agent, executions.ended.clone()).context("data directory")?;
        Ok(Self {
            host,
            data_dir,
            _lock: lock,
            url,
            name,
            enrolling,
            tls,
            session: Session::new(profile),
            executions,
            instances,
            connection: Connection::Waiting(0),
            back_off_ms: BACK_OFF_MS.0,
            opened_ms: None,
            swept_ms: 0,
            room: Arc::new(Notify::new()),
            reports,
        })
    }

    async fn work(mut self, quit: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut quit = std::pin::pin!(quit);
        self.executions.recover(&mut self.session).context("the spool cannot be read")?;
        loop {
            self.act()?;
            let wake_at_ms = self.wake_at_ms();
            let event = tokio::select! {
                biased;
                () = &mut quit => Event::Quit,
                event = self.connection.next() => event,
                changes = self.executions.watcher().changed() => Event::Changed(changes),
                report = self.reports.recv() => Event::Report(report),
                () = self.room.notified() => Event::Nothing,
                () = sleep_until(wake_at_ms) => Event::Nothing,
            };
            if matches!(event, Event::Quit) {
                tracing::info!("ends; executions go on under their supervisors");
                return Ok(());
            }
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        let now = clock::now();
        // Before anything is heard: after a long standstill of this process or its host the server has given up what still
        // waits in the socket.
        self.session.handle_timeout(now);
        match event {
            Event::Quit | Event::Nothing => {}
            Event::Dial => {
                let dial = self.host.dial(self.url.clone(), Arc::clone(&self.tls), Arc::clone(&self.room));
                self.connection = Connection::Dialing(tokio::spawn(dial));
            }
            Event::Dialed(Ok(link)) => {
                self.connection = Connection::Up(link);
                self.session.connected(now);
            }
            Event::Dialed(Err(error)) => self.hang_up(&format!("{error:#}")),
            Event::Incoming(Incoming::Message(message)) => self.session.handle_message(message, now),
            Event::Incoming(Incoming::Data(frame)) => self.session.handle_data(&frame, now),
            Event::Incoming(Incoming::Closed(reason)) => self.hang_up(&reason),
            Event::Changed(changes) => {
                for (key, change) in changes {
                    match change {
                        Change::Grew => self.executions.grew(&key, &mut self.session),
                        Change::Named => self.executions.examine(&key, &mut self.session),
                    }
                }
            }
            Event::Report(Some(Report::Exited(key))) => self.executions.check(&key, &mut self.session),
            Event::Report(Some(Report::Settled(key, finished))) => {
                self.executions.over(&key, *finished, &mut self.session);
            }
            Event::Report(Some(Report::Unsettled(key))) => self.executions.look_again(&key),
            Event::Report(Some(Report::Cache(done))) => self.executions.cache_done(*done, &mut self.session),
            Event::Report(Some(Report::Inspected(answer))) => self.executions.inspected(*answer, &mut self.session),
            Event::Report(Some(Report::Observed(news))) => self.session.observed(news),
            Event::Report(Some(Report::Log { answer, followed })) => {
                self.instances.done(followed);
                self.session.log_read(*answer);
            }
            Event::Report(None) => {}
        }
        self.executions.expire(&mut self.session);
        if self.executions.sweep_ms().is_some_and(|pause| now.monotonic_ms >= self.swept_ms + pause) {
            self.swept_ms = now.monotonic_ms;
            self.executions.sweep(&mut self.session);
        }
    }

    /// Does what the session wants until it wants nothing or the writer has no room.
    fn act(&mut self) -> anyhow::Result<()> {
        loop {
            if let Connection::Up(link) = &self.connection
                && !link.has_room()
            {
                return Ok(());
            }
            if let Some(output) = self.session.next_output() {
                self.carry_out(output)?;
                continue;
            }
            let Connection::Up(link) = &self.connection else { return Ok(()) };
            let now = clock::now();
            let Some(read) = self.session.next_read(now) else { return Ok(()) };
            let bytes = self.executions.read_log(&read.key, read.offset, read.bytes_max).unwrap_or_else(|error| {
                tracing::error!(key = %read.key, %error, "a log cannot be read");
                Vec::new()
            });
            if let Some(frame) = self.session.ship(&read, &bytes, now) {
                link.send_data(frame);
            }
        }
    }

    fn carry_out(&mut self, output: Output) -> anyhow::Result<()> {
        let session = &mut self.session;
        match output {
            Output::Send(message) => {
                if let Connection::Up(link) = &self.connection {
                    link.send(&message, false);
                }
            }
            Output::SendAfterData(message) => {
                if let Connection::Up(link) = &self.connection {
                    link.send(&message, true);
                }
            }
            Output::Enrolled(agent_id, ca_pem, signing_key) => self.keep_identity(agent_id, ca_pem, signing_key)?,
            Output::Welcomed => {
                tracing::info!(url = self.url, "connected");
                self.opened_ms = Some(clock::monotonic_ms());
            }
            Output::Run(new) => self.executions.take(*new, session),
            Output::Secrets(key, secrets) => self.executions.arm(&key, secrets, session),
            Output::Inspect(inspect) => self.executions.inspect(inspect, session),
            Output::Watch(watched) => self.instances.watch(watched),
            Output::ReadLog(question) => {
                if let Some(answer) = self.instances.read(question) {
                    session.log_read(answer);
                }
            }
            Output::Cancel(key, reason, timed_out) => self.executions.cancel(&key, reason, timed_out, session),
            Output::Forget(key) => self.executions.forget(&key, session),
            Output::Discard(key) => self.executions.discard(&key, session),
            Output::Artifact(digest, offset, bytes) => self.executions.artifact(digest, offset, &bytes, session),
            Output::ArtifactEnded(digest, end) => self.executions.artifact_ended(digest, end, session),
            Output::ArtifactRefused(digest, reason) => self.executions.artifact_refused(digest, &reason, session),
            Output::Close(reason, true) => self.hang_up(&reason),
            Output::Close(reason, false) => bail!("{reason}"),
        }
        Ok(())
    }

    fn keep_identity(&mut self, agent_id: String, ca_pem: String, signing_key: String) -> anyhow::Result<()> {
        let Some(key) = self.enrolling.take() else { return Ok(()) };
        self.tls = tls::trusting_ca(&ca_pem)?;
        let identity = Identity::new(&self.url, &self.name, &key, (agent_id.clone(), ca_pem, signing_key.clone()));
        identity.save(&self.data_dir).context("the identity cannot be kept")?;
        tracing::info!(agent_id, "enrolled");
        self.session.enrolled(agent_id, signing_key, clock::now());
        Ok(())
    }

    fn hang_up(&mut self, reason: &str) {
        self.session.disconnected();
        self.instances.disconnected();
        let now_ms = clock::monotonic_ms();
        if self.opened_ms.take().is_some_and(|opened_ms| now_ms >= opened_ms + LASTING_MS) {
            self.back_off_ms = BACK_OFF_MS.0;
        }
        let pause = self.host.up_to(self.back_off_ms);
        tracing::warn!(url = self.url, reason, pause_ms = pause, "not connected");
        self.connection = Connection::Waiting(now_ms + pause);
        self.back_off_ms = (self.back_off_ms * 2).min(BACK_OFF_MS.1);
    }

    fn wake_at_ms(&self) -> Option<u64> {
        let sweep = self.executions.sweep_ms().map(|pause| self.swept_ms + pause);
        // With a full writer the session's timers only matter once there is room.
        let session = self.session.next_timeout_ms();
        let session = match &self.connection {
            Connection::Up(link) if !link.has_room() => session.map(|at| at.max(clock::monotonic_ms() + 100)),
            _ => session,
        };
        [session, self.executions.expire_at_ms(), sweep].into_iter().flatten().min()
    }
}

impl Connection {
    /// The next thing that happens to the connection. Nothing is lost if this is given up and called again.
    async fn next(&mut self) -> Event {
        match self {
            Self::Waiting(at_ms) => {
                sleep_until(Some(*at_ms)).await;
                Event::Dial
            }
            Self::Dialing(task) => Event::Dialed(task.await.unwrap_or_else(|error| Err(error.into()))),
            Self::Up(link) => Event::Incoming(link.next().await),
        }
    }
}

async fn sleep_until(at_ms: Option<u64>) {
    match at_ms.map(|at| at.saturating_sub(clock::monotonic_ms())) {
        Some(0) => {}
        Some(wait) => tokio::time::sleep(Duration::from_millis(wait)).await,
        None => std::future::pending().await,
    }
}

fn lock(data_dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = data_dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("{} cannot be opened", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow::anyhow!("another agent works on data directory {}", data_dir.display()))
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("the host has no name: give one with --name")?;
    Ok(name.to_string_lossy().into_owned())
}

fn abilities() -> Abilities {
    let (other_users, cgroups) = (nix::unistd::geteuid().is_root(), cgroups_usable());
    // Looking root up would bring the system's name services into memory for as long as the agent lives.
    let user = if other_users { "root".to_owned() } else { accounts::own().name };
    if !other_users {
        tracing::warn!(user, "not root: scripts and files can only be of this user");
    }
    if !cgroups {
        tracing::warn!("no writable cgroup v2: processes are ended by a walk through /proc, which may miss one");
    } else if !pids_limited() {
        tracing::warn!("the kernel does not count the processes of an execution here: it may have any number");
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    Abilities { user, other_users, cgroups, os: os.trim_matches('"').to_owned(), spool_bytes_max: None }
}

/// What a spool may take on the disk of a folder.
fn spool_bytes_max(folder: &Path) -> u64 {
    let size = statvfs(folder).map_or(u64::MAX, |disk| disk.blocks().saturating_mul(disk.fragment_size()));
    SPOOL_BYTES_MAX.min(size / 2)
}
