//! A server and agents, release builds, in a folder of their own; all of them end with this value.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long the machines may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Unit of processor time in `/proc`: the same on every Linux that has users.
const TICKS_PER_SECOND: f64 = 100.0;
/// The agent as it is shipped.
const AGENT: &str = "DROVER_BENCH_AGENT";

/// What is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Real agents.
    pub(crate) agents: usize,
    /// The database; SQLite in the data directory when there is none.
    pub(crate) database: Option<String>,
    /// Another program than the agent that is shipped.
    pub(crate) agent: Option<PathBuf>,
}

pub(crate) struct Machines {
    server: Child,
    agents: Vec<Child>,
    address: String,
    agent_address: String,
    token: String,
    database: Option<String>,
    agent: Option<PathBuf>,
    folder: TempDir,
}

fn program(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("DROVER_BIN_DIR").context("measure with `cargo xtask bench`")?;
    Ok(PathBuf::from(folder).join(name))
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

impl Machines {
    /// A server on SQLite with so many agents.
    pub(crate) async fn start(agents: usize) -> Result<Self> {
        Self::start_wanted(Wanted { agents, ..Wanted::default() }).await
    }

    pub(crate) async fn start_wanted(wanted: Wanted) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let any = "127.0.0.1:0";
        let (server, address, agent_address) = serve(&folder, wanted.database.as_deref(), any, any).await?;
        let (count, agents, token) = (wanted.agents, Vec::new(), String::new());
        let Wanted { database, agent, .. } = wanted;
        let mut machines = Self { server, agents, address, agent_address, token, database, agent, folder };
        machines.token = machines.ask(&["token", "create", "--user", "admin", "--name", "bench"])?;
        if count > 0 {
            let join = machines.join_token(count)?;
            for number in 0..count {
                machines.start_agent(&join, number)?;
            }
            let path = machines.folder.path().to_owned();
            wait_until(|| all_enrolled(&path, count)).await.context("the agents do not enrol")?;
        }
        Ok(machines)
    }

    /// A token with which so many agents may enrol.
    pub(crate) fn join_token(&self, uses: usize) -> Result<String> {
        self.ask(&["join-token", "create", "--uses", &uses.to_string()])
    }

    /// What the server's program says to a command.
    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program("drover-server")?);
        command.args(arguments).arg("--data-dir").arg(self.folder.path().join("server"));
        if let Some(database) = &self.database {
            command.arg("--database-url").arg(database);
        }
        said(&mut command)
    }

    /// Kills the server and starts it again at the same addresses.
    pub(crate) async fn restart_server(&mut self) -> Result<()> {
        self.server.kill()?;
        self.server.wait()?;
        let database = self.database.as_deref();
        (self.server, _, _) = serve(&self.folder, database, &self.address, &self.agent_address).await?;
        Ok(())
    }

    /// Runs `drover`, the command line, as the administrator.
    pub(crate) fn drover(&self) -> Result<Command> {
        let mut command = Command::new(program("drover")?);
        command.env("DROVER_URL", format!("http://{}", self.address)).env("DROVER_TOKEN", &self.token);
        command.env("HOME", self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    }

    /// Folder of everything that is started.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills an agent without a word.
    pub(crate) fn kill_agent(&mut self, number: usize) -> Result<()> {
        self.agents[number].kill()?;
        self.agents[number].wait()?;
        Ok(())
    }

    /// Sends a signal to an agent.
    pub(crate) fn signal_agent(&self, number: usize, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.agents[number].id().cast_signed()), signal)?)
    }

    /// Starts an agent again that was killed.
    pub(crate) fn start_agent_again(&mut self, number: usize) -> Result<()> {
        self.agents[number] = self.spawn_agent(None, number)?;
        Ok(())
    }

    fn start_agent(&mut self, join: &str, number: usize) -> Result<()> {
        let agent = self.spawn_agent(Some(join), number)?;
        self.agents.push(agent);
        Ok(())
    }

    fn spawn_agent(&self, join: Option<&str>, number: usize) -> Result<Child> {
        let name = format!("host-{number}");
        let data = self.folder.path().join(&name);
        let mut agent = Command::new(match &self.agent {
            Some(agent) => agent.clone(),
            // Agents are shipped with a profile of their own.
            None => std::env::var_os(AGENT).map_or_else(|| program("drover-agent"), |file| Ok(file.into()))?,
        });
        agent.args(["run", "--name", &name, "--data-dir"]).arg(data);
        if let Some(join) = join {
            agent.args(["--join", join]);
        }
        Ok(agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn server_memory_mib(&self) -> Result<f64> {
        Ok(memory_kib(self.server.id(), "VmRSS:")? / 1024.0)
    }

    /// The most that the server ever had.
    pub(crate) fn server_peak_mib(&self) -> Result<f64> {
        Ok(memory_kib(self.server.id(), "VmHWM:")? / 1024.0)
    }

    /// Of every agent.
    pub(crate) fn agents_memory_mib(&self) -> Result<Vec<f64>> {
        self.agents.iter().map(|agent| Ok(memory_kib(agent.id(), "VmRSS:")? / 1024.0)).collect()
    }

    /// The most that an agent ever had.
    pub(crate) fn agents_peak_mib(&self) -> Result<f64> {
        let all = self.agents.iter().map(|agent| memory_kib(agent.id(), "VmHWM:")).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().fold(0.0, f64::max) / 1024.0)
    }

    /// Processor time of the server so far, in seconds.
    pub(crate) fn server_cpu(&self) -> Result<f64> {
        cpu_seconds(self.server.id())
    }

    /// Processor time of all agents and of everything that they ran, in seconds.
    pub(crate) fn agents_cpu(&self) -> Result<f64> {
        self.agents.iter().map(|agent| cpu_seconds(agent.id())).sum()
    }
}

/// Starts a server; gives its two addresses.
async fn serve(
    folder: &TempDir,
    database: Option<&str>,
    listen: &str,
    agent_listen: &str,
) -> Result<(Child, String, String)> {
    let path = folder.path().join("server.log");
    let log = std::fs::File::create(&path)?;
    let mut server = Command::new(program("drover-server")?);
    server.args(["serve", "--listen", listen, "--agent-listen", agent_listen, "--data-dir"]);
    server.arg(folder.path().join("server"));
    if let Some(database) = database {
        server.arg("--database-url").arg(database);
    }
    server.env("DROVER_LOG", std::env::var("DROVER_LOG").unwrap_or_else(|_| "warn".to_owned()));
    server.env("DROVER_ADMIN_PASSWORD", "measuring");
    let child = server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    let addresses = wait_until(|| {
        let text = std::fs::read_to_string(&path).ok()?;
        let (_, rest) = text.split_once("Serving http://")?;
        let (line, _) = rest.split_once('\n')?;
        let (address, agents) = line.split_once(" and agents on ")?;
        Some((address.to_owned(), agents.trim_start_matches("wss://").trim().to_owned()))
    });
    let (address, agent_address) = addresses.await.context("the server does not start")?;
    Ok((child, address, agent_address))
}

fn all_enrolled(folder: &Path, agents: usize) -> Option<()> {
    (0..agents).all(|number| folder.join(format!("host-{number}/identity.json")).exists()).then_some(())
}

pub(crate) async fn wait_until<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(value) = condition() {
            return Some(value);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// Memory as the kernel tells it.
pub(crate) fn memory_kib(process: u32, which: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(which)).context("no such line of memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time of a process and of its children that have ended.
fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no end of the name")?;
    let ticks: f64 = fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_SECOND)
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in self.agents.iter_mut().chain([&mut self.server]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
