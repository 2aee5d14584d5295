//! A PostgreSQL of our own for as long as a command runs.
//!
//! Invariant: it lives in a scratch folder, listens on the loopback address alone, asks for a password, never shares
//! anything with a database of the system's, and ends with its guard or with this process, whichever is first.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

use crate::scratch::Scratch;
use crate::{debian, process};

/// Speed over safety: what is in this database is worth nothing tomorrow.
const CARELESS: &[&str] = &["fsync=off", "synchronous_commit=off", "full_page_writes=off"];
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "max_connections=300",
    "max_locks_per_transaction=256",
    "shared_buffers=128MB",
    "max_wal_size=4GB",
    "autovacuum_naptime=10s",
];

/// How long the server may take to start, and to stop.
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(15);

/// Ports to try: another program may take one between our look and our use.
const ATTEMPTS: usize = 5;

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    url: String,
    launch: Launch,
    // Removed after the server has stopped: fields are dropped in order, after `drop`.
    _scratch: Scratch,
}

/// How the server is started, also once more.
#[derive(Debug)]
struct Launch {
    programs: PathBuf,
    account: Option<Account>,
    home: PathBuf,
    port: u16,
    settings: &'static [&'static str],
}

/// Who runs it: PostgreSQL refuses to be run by root.
#[derive(Debug, Clone)]
struct Account {
    name: String,
    user: u32,
    group: u32,
}

impl Postgres {
    /// Starts a server, installing PostgreSQL first where there is none.
    ///
    /// # Errors
    /// It cannot be installed or does not start; says what its log says.
    pub fn start() -> Result<Self> {
        Self::start_with(CARELESS)
    }

    /// As [`start`](Self::start), and it keeps its promises: for measuring, and for being killed.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn durable() -> Result<Self> {
        Self::start_with(&[])
    }

    fn start_with(settings: &'static [&'static str]) -> Result<Self> {
        let programs = programs()?;
        let account = account()?;
        let scratch = Scratch::new("postgres")?;
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
        let home = scratch.path().join("home");
        fs::create_dir(&home)?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
        let password = password()?;
        fs::write(home.join("password"), &password)?;
        if let Some(account) = &account {
            for path in [&home, &home.join("password")] {
                chown(path, Some(account.user), Some(account.group))?;
            }
        }
        initialise(&programs, account.as_ref(), &home)?;
        let mut launch = Launch { programs, account, home, port: 0, settings };
        for _ in 0..ATTEMPTS {
            launch.port = free_port()?;
            let mut child = launch.start()?;
            if launch.ready(&mut child, None) {
                let url = format!("postgres://drover:{password}@127.0.0.1:{}/postgres", launch.port);
                return Ok(Self { child, url, launch, _scratch: scratch });
            }
            process::stop(&mut child, Signal::SIGQUIT, STOP);
        }
        bail!("PostgreSQL does not start; its log says:\n{}", launch.log())
    }

    /// Kills the server without a word; its data are as they are.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill PostgreSQL")?;
        self.child.wait().context("cannot wait for PostgreSQL")?;
        Ok(())
    }

    /// Starts the server again that was killed, on the data and the port that it had.
    ///
    /// # Errors
    /// It does not start; says what its log says.
    pub fn start_again(&mut self) -> Result<()> {
        let before = self.launch.state().lines().next().map(str::to_owned);
        // What it forked may live for a moment longer, and keeps a new one from starting.
        let started = process::until(START, || {
            let Ok(mut child) = self.launch.start() else { return false };
            let ready = self.launch.ready(&mut child, before.as_deref());
            if !ready {
                process::stop(&mut child, Signal::SIGQUIT, STOP);
            }
            self.child = child;
            ready
        });
        if !started {
            bail!("PostgreSQL does not start again; its log says:\n{}", self.launch.log());
        }
        Ok(())
    }

    /// Address for clients, with a user that may do everything.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        process::stop(&mut self.child, Signal::SIGINT, STOP);
    }
}

/// Folder of the server's programs.
fn programs() -> Result<PathBuf> {
    if let Some(found) = find_programs() {
        return Ok(found);
    }
    debian::install("postgresql", "The tests need PostgreSQL")?;
    find_programs().context("PostgreSQL was installed, but its programs are not where they should be")
}

fn find_programs() -> Option<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let version = |folder: &PathBuf| {
        let name = folder.parent().and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().parse().unwrap_or(0_u32)
    };
    folders.sort_by_key(|folder| std::cmp::Reverse(version(folder)));
    if let Ok(folder) = process::output(Command::new("pg_config").arg("--bindir")) {
        folders.push(folder.into());
    }
    let in_path = process::find("postgres").and_then(|program| program.canonicalize().ok());
    folders.extend(in_path.and_then(|program| program.parent().map(Path::to_owned)));
    folders.into_iter().find(|folder| has_everything(folder))
}

/// Whether the folder holds the server and its contributed extensions, of which `hstore` is needed.
fn has_everything(folder: &Path) -> bool {
    let programs = ["postgres", "initdb"].iter().all(|program| folder.join(program).exists());
    let config = folder.join("pg_config");
    if !programs || !config.exists() {
        return programs;
    }
    let shared = process::output(Command::new(config).arg("--sharedir")).unwrap_or_default();
    shared.is_empty() || Path::new(&shared).join("extension/hstore.control").exists()
}

/// The account to run under when this process is root's; none otherwise.
fn account() -> Result<Option<Account>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).with_context(|| format!("cannot look up the user `{name}`"))? {
            return Ok(Some(Account { name: user.name, user: user.uid.as_raw(), group: user.gid.as_raw() }));
        }
    }
    bail!("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")
}

/// `program` under the account, ending with this process where that can be had.
fn command(program: &Path, account: Option<&Account>, home: &Path) -> Command {
    let mut command = match (process::find("setpriv"), account) {
        (Some(setpriv), account) => {
            let mut command = Command::new(setpriv);
            command.arg("--pdeathsig=INT");
            if let Some(Account { user, group, .. }) = account {
                command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
            }
            command.arg(program);
            command
        }
        (None, Some(account)) => {
            let mut command = Command::new("runuser");
            command.args(["-u", &account.name, "--"]).arg(program);
            command
        }
        (None, None) => Command::new(program),
    };
    command.current_dir(home).stdin(Stdio::null()).env("HOME", home).env("LC_ALL", "C.UTF-8");
    command
}

fn initialise(programs: &Path, account: Option<&Account>, home: &Path) -> Result<()> {
    let mut initdb = command(&programs.join("initdb"), account, home);
    initdb.args(["--pgdata=data", "--username=drover", "--pwfile=password", "--auth=scram-sha-256"]);
    initdb.args(["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]);
    process::output(&mut initdb).context("cannot make a database")?;
    Ok(())
}

impl Launch {
    fn start(&self) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.home.join("log"))?;
        let mut server = command(&self.programs.join("postgres"), self.account.as_ref(), &self.home);
        server.args(["-D", "data", "-p", &self.port.to_string()]);
        server.arg("-k").arg(&self.home);
        for setting in SETTINGS.iter().chain(self.settings) {
            server.args(["-c", setting]);
        }
        // Its own group: Ctrl-C is for the command, which stops the server when it is through with it.
        server.process_group(0).stdout(log.try_clone()?).stderr(log);
        server.spawn().context("cannot start PostgreSQL")
    }

    /// Waits until the server takes connections; false when it ended. `before` is the first line of the state that a
    /// killed one left behind.
    fn ready(&self, child: &mut Child, before: Option<&str>) -> bool {
        let mut taken = false;
        process::until(START, || {
            let ended = !matches!(child.try_wait(), Ok(None));
            let state = self.state();
            let is_new = state.lines().next() != before;
            // The eighth line of this file is the server's state.
            taken = !ended && is_new && state.lines().nth(7).is_some_and(|line| line.trim() == "ready");
            ended || taken || process::interrupted()
        });
        taken
    }

    fn state(&self) -> String {
        fs::read_to_string(self.home.join("data/postmaster.pid")).unwrap_or_default()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }
}

/// A port of the loopback address that was free a moment ago.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// 128 random bits in hexadecimal.
pub fn password() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).context("no randomness")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
