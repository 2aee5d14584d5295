//! Real programs: a server and its agents in folders and on ports of their own.
//!
//! Owns the processes that a story starts. Invariant: when the value goes, every one of them is gone, supervisors and
//! hooks too, wherever they went: whoever has the story's folder in its command line or environment is ended, with all
//! descendants.

mod api;
mod boot;
mod disk;
mod state;
mod tree;
mod viewer;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use drover_kernel::Clock;
pub use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;

pub use api::{Api, ApiAnswer, Download};
pub use boot::can_boot;
use disk::Disk;
pub use disk::Shortage;
pub use state::Memory;
pub use tree::{is_alive, with_environment};
pub use viewer::{Closing, Seen, Viewer};

use crate::database::{Database, Engine};
use crate::server::ADMIN_PASSWORD;
use crate::waiting::{wait_until, wait_within};
use crate::wire::Wire;

/// Folder of the programs; `cargo xtask test` sets it.
const BIN_DIR: &str = "DROVER_BIN_DIR";

/// Time in which a server that is told to stop has ended, as is promised.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Longest wait for an agent to connect, or to be seen to have gone.
const CONNECTION: Duration = Duration::from_secs(60);

/// Bytes of a program's log that a failing test shows.
const LOG_SHOWN_BYTES: usize = 8 * 1024;

/// A server with its agents.
pub struct Processes {
    /// Disks of their own: that of the server has no name, those of agents the names of their hosts. They go before the
    /// folder that they are in.
    disks: BTreeMap<String, Disk>,
    folder: TempDir,
    programs: PathBuf,
    database_url: Option<String>,
    server: Option<Child>,
    addresses: Option<(SocketAddr, SocketAddr)>,
    agents: BTreeMap<String, Child>,
    api: Option<Api>,
    // Dropped last: nobody uses it any more then.
    database: Option<Database>,
}

/// The folder with the programs to test.
fn programs() -> PathBuf {
    std::env::var_os(BIN_DIR).unwrap_or_else(|| panic!("run the tests with `cargo xtask test`")).into()
}

/// The full name of a program to test, for a test that needs nothing around it.
///
/// # Panics
/// Outside `cargo xtask test`.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    programs().join(name)
}

impl Processes {
    /// Starts a server with a database of its own, and waits until it serves.
    ///
    /// # Panics
    /// When the programs are not built, or the server does not come up.
    pub async fn start(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => Self::start_on(None).await,
            Engine::Postgres => {
                let (database, db) = Database::open(engine, &Clock::system()).await;
                db.close().await;
                let mut processes = Self::start_on(database.url()).await;
                processes.database = Some(database);
                processes
            }
        }
    }

    /// As [`start`](Self::start), on the database at this address, or on SQLite.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn start_on(database_url: Option<String>) -> Self {
        Self::prepare(database_url).begin().await
    }

    fn prepare(database_url: Option<String>) -> Self {
        Self {
            disks: BTreeMap::new(),
            folder: tempfile::Builder::new().prefix("drover-story-").tempdir().expect("a temporary folder"),
            programs: programs(),
            database_url,
            server: None,
            addresses: None,
            agents: BTreeMap::new(),
            api: None,
            database: None,
        }
    }

    async fn begin(mut self) -> Self {
        self.start_server().await;
        let token = self.administer(&["token", "create", "--user", "admin", "--name", "stories"]);
        self.api = Some(Api::new(&self.url(), &token));
        self
    }

    /// Folder of everything: the story may put its own files there.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The API as the administrator.
    ///
    /// # Panics
    /// Never: there is one as soon as there is a value.
    #[must_use]
    pub fn api(&self) -> &Api {
        self.api.as_ref().expect("the administrator's API")
    }

    /// Address of the API's listener, `http://HOST:PORT`.
    ///
    /// # Panics
    /// When the server never ran.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addresses.expect("the server ran").0)
    }

    /// Where the server takes agents.
    ///
    /// # Panics
    /// When the server never ran.
    #[must_use]
    pub fn agent_address(&self) -> SocketAddr {
        self.addresses.expect("the server ran").1
    }

    /// A program, ready to be started in an environment without anything of this machine's.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        self.command(&self.programs.join(name))
    }

    /// A program of this machine, as above.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.folder()).current_dir(self.folder()).stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// The server's program with the settings of this server, to be given a command.
    #[must_use]
    pub fn server_program(&self) -> Command {
        let mut command = self.program("drover-server");
        if let Some(url) = &self.database_url {
            command.env("DROVER_DATABASE_URL", url);
        }
        command.env("DROVER_DATA_DIR", self.folder().join("server"));
        command.env("DROVER_LOG", "info,sqlx=warn,apalis=warn");
        command
    }

    /// Runs a command of the server's program beside the server, and gives what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn administer(&self, arguments: &[&str]) -> String {
        self.try_administer(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// As [`administer`](Self::administer), for what may fail.
    ///
    /// # Errors
    /// What it says when it fails.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn try_administer(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.server_program().args(arguments).output().expect("the server's program starts");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8(output.stdout).expect("text").trim().to_owned())
    }

    /// The disks are gone: no data directory, and an empty database.
    ///
    /// # Panics
    /// When the server runs.
    pub async fn lose_everything(&mut self) {
        assert!(self.server.is_none(), "the server runs");
        std::fs::remove_dir_all(self.folder().join("server")).expect("the data directory");
        if let Some(database) = &self.database {
            database.empty().await;
        }
    }

    /// The server's file of settings: what is written there counts from its next start on.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder().join("drover.toml")
    }

    /// Starts the server again, on the data and ports that it had.
    ///
    /// # Panics
    /// When it runs already or does not come up.
    pub async fn start_server(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let (listen, agent_listen) = self.addresses.map_or_else(
            || ("127.0.0.1:0".to_owned(), "127.0.0.1:0".to_owned()),
            |(people, agents)| (people.to_string(), agents.to_string()),
        );
        let answers = self.folder().join("server.out");
        let mut command = self.server_program();
        command.args(["serve", "--listen", &listen, "--agent-listen", &agent_listen]);
        command.env("DROVER_ADMIN_PASSWORD", ADMIN_PASSWORD);
        let config = self.config();
        command.envs(config.exists().then_some(("DROVER_CONFIG", config)));
        command.stdout(File::create(&answers).expect("a file")).stderr(self.log("server")).process_group(0);
        let mut child = command.spawn().expect("the server starts");
        let mut found = None;
        wait_until("the server to serve", async || {
            let ended = child.try_wait().expect("the server's state");
            assert!(ended.is_none(), "the server ended with {ended:?}: {}", self.tail("server"));
            found = addresses(&std::fs::read_to_string(&answers).unwrap_or_default());
            found.is_some()
        })
        .await;
        self.addresses = found;
        self.server = Some(child);
    }

    /// Tells the server to stop, as a service manager does, and waits until it has.
    ///
    /// # Panics
    /// When it does not run, takes longer than is promised, or fails.
    pub async fn stop_server(&mut self) {
        let child = self.server.take().expect("the server runs");
        let start = Instant::now();
        let status = end(child, Signal::SIGTERM).await;
        assert!(start.elapsed() < STOP_MAX, "stopping took {:?}: {}", start.elapsed(), self.tail("server"));
        assert!(status.success(), "the server ended with {status}: {}", self.tail("server"));
    }

    /// Kills the server without a word.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill_server(&mut self) {
        end(self.server.take().expect("the server runs"), Signal::SIGKILL).await;
    }

    /// Makes a join token for this host alone.
    #[must_use]
    pub fn join_token(&self, host: &str) -> String {
        self.administer(&["join-token", "create", "--host", host])
    }

    /// Enrols an agent for a new host, waits until it is connected, and gives the host's id.
    pub async fn add_agent(&mut self, host: &str) -> i64 {
        let token = self.join_token(host);
        self.spawn_agent(host, &["--join", &token, "--name", host]);
        self.wait_for_connection(host, true).await
    }

    /// Starts the agent of an enrolled host again, and waits until it is connected.
    pub async fn start_agent(&mut self, host: &str) {
        self.spawn_agent(host, &[]);
        self.wait_for_connection(host, true).await;
    }

    /// Starts an agent with further arguments; its data directory is that of `host`.
    ///
    /// # Panics
    /// When it cannot be started, or runs already.
    pub fn spawn_agent(&mut self, host: &str, arguments: &[&str]) {
        let command = self.program("drover-agent");
        self.spawn_agent_by(command, host, arguments);
    }

    /// As [`spawn_agent`](Self::spawn_agent), by a command for the agent's program that was made ready otherwise.
    ///
    /// # Panics
    /// When it cannot be started, or runs already.
    pub fn spawn_agent_by(&mut self, mut command: Command, host: &str, arguments: &[&str]) {
        command.arg("run").arg("--data-dir").arg(self.agent_folder(host)).args(arguments);
        let log = self.log(&format!("agent-{host}"));
        command.stdout(log.try_clone().expect("the log")).stderr(log).process_group(0);
        let child = command.spawn().expect("the agent starts");
        assert!(self.agents.insert(host.to_owned(), child).is_none(), "the agent of {host} runs already");
    }

    /// Has an agent connect through a wire from its next start on.
    ///
    /// # Panics
    /// When it is not enrolled.
    pub fn redirect_agent(&self, host: &str, wire: &Wire) {
        let path = self.agent_folder(host).join("identity.json");
        let text = std::fs::read_to_string(&path).expect("the agent is enrolled");
        let changed = text.replace(&self.agent_address().to_string(), &wire.address().to_string());
        assert_ne!(text, changed, "the address is another one");
        std::fs::write(&path, changed).expect("the identity is written");
    }

    /// Data directory of an agent.
    #[must_use]
    pub fn agent_folder(&self, host: &str) -> PathBuf {
        self.folder().join(format!("agent-{host}"))
    }

    /// What an agent has written to its log.
    #[must_use]
    pub fn agent_log(&self, host: &str) -> String {
        self.tail(&format!("agent-{host}"))
    }

    /// What the server has written to its log.
    #[must_use]
    pub fn server_log(&self) -> String {
        self.tail("server")
    }

    /// Waits until an agent ends by itself.
    ///
    /// # Panics
    /// When it does not.
    pub async fn wait_for_agent_to_end(&mut self, host: &str) -> ExitStatus {
        wait_for_end(self.agents.remove(host).expect("the agent runs")).await
    }

    /// Tells an agent to stop and waits until it has; executions go on.
    ///
    /// # Panics
    /// When it does not run, does not end, or fails.
    pub async fn stop_agent(&mut self, host: &str) {
        let child = self.agents.remove(host).expect("the agent runs");
        let status = end(child, Signal::SIGTERM).await;
        assert!(status.success(), "the agent of {host} ended with {status}: {}", self.agent_log(host));
    }

    /// Kills an agent without a word; executions go on.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill_agent(&mut self, host: &str) {
        end(self.agents.remove(host).expect("the agent runs"), Signal::SIGKILL).await;
    }

    /// Kills one of the supervisors of a host without a word, which one `number` says. False when there is none.
    #[expect(clippy::must_use_candidate, reason = "one that is not there needs no killing")]
    pub fn kill_a_supervisor(&self, host: &str, number: u64) -> bool {
        let found = tree::supervisors(&self.agent_folder(host));
        let Some(count) = u64::try_from(found.len()).ok().filter(|count| *count > 0) else { return false };
        let chosen = found[usize::try_from(number % count).expect("few")];
        // It may have ended just now.
        kill(Pid::from_raw(chosen), Signal::SIGKILL).is_ok()
    }

    /// Sends a signal to an agent, which goes on being one of this story's.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal_agent(&self, host: &str, signal: Signal) {
        let child = self.agents.get(host).expect("the agent runs");
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a process id")), signal).expect("the agent is there");
    }

    /// Waits until the server says that a host's agent is connected, or is not, and gives the host's id.
    pub async fn wait_for_connection(&self, host: &str, connected: bool) -> i64 {
        self.wait_for_connection_within(host, connected, CONNECTION).await
    }

    /// As [`wait_for_connection`](Self::wait_for_connection), for what takes its time.
    pub async fn wait_for_connection_within(&self, host: &str, connected: bool, longest: Duration) -> i64 {
        let mut id = 0;
        wait_within(longest, "an agent to connect or leave", async || {
            let Some(hosts) = self.api().try_get("/hosts/?page_size=100").await else { return false };
            let hosts = hosts["results"].as_array().cloned().unwrap_or_default();
            let found = hosts.iter().find(|found| found["name"] == host);
            id = found.and_then(|found| found["id"].as_i64()).unwrap_or(0);
            found.is_some_and(|found| found["agent"]["connected"] == connected)
        })
        .await;
        id
    }

    /// Every entry of the audit, oldest first: what was done, to what kind of thing, by whom.
    ///
    /// # Panics
    /// When the database cannot be read.
    pub async fn audit(&self) -> Vec<String> {
        const ENTRIES: &str = "SELECT action || ' ' || object_type || ' ' || operator FROM audit_entries ORDER BY id";
        let read = match &self.database_url {
            Some(url) => {
                let mut connection = PgConnection::connect(url).await.expect("the server's database");
                sqlx::query_scalar(ENTRIES).fetch_all(&mut connection).await
            }
            None => {
                let url = format!("sqlite:{}", self.folder().join("server/drover.db").display());
                let mut connection = SqliteConnection::connect(&url).await.expect("the server's database");
                sqlx::query_scalar(ENTRIES).fetch_all(&mut connection).await
            }
        };
        read.expect("the audit")
    }

    fn log(&self, name: &str) -> File {
        let path = self.folder().join(format!("{name}.log"));
        OpenOptions::new().create(true).append(true).open(path).expect("a log file")
    }

    fn tail(&self, name: &str) -> String {
        let text = std::fs::read(self.folder().join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_SHOWN_BYTES)..]).into_owned()
    }

    #[expect(clippy::print_stderr, reason = "a failing test shows what its programs said")]
    fn show_logs(&self) {
        let agents = self.agents.keys().map(|host| format!("agent-{host}"));
        for name in std::iter::once("server".to_owned()).chain(agents) {
            eprintln!("--- {name}\n{}", self.tail(&name));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        for child in self.server.iter_mut().chain(self.agents.values_mut()) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        tree::end_all(self.folder.path());
    }
}

/// Reads `Serving http://ADDRESS and agents on ADDRESS`.
fn addresses(text: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line = text.lines().find_map(|line| line.strip_prefix("Serving http://"))?;
    let (people, agents) = line.split_once(" and agents on ")?;
    Some((people.parse().ok()?, agents.trim().parse().ok()?))
}

async fn end(child: Child, signal: Signal) -> ExitStatus {
    let id = i32::try_from(child.id()).expect("the number of a process");
    kill(Pid::from_raw(id), signal).expect("the process is there");
    wait_for_end(child).await
}

async fn wait_for_end(mut child: Child) -> ExitStatus {
    let mut status = None;
    wait_until("a process to end", async || {
        status = child.try_wait().expect("the state of a process");
        status.is_some()
    })
    .await;
    status.expect("it ended")
}
