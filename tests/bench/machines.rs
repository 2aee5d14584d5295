//! A server and agents, release builds, in a folder of their own; all of them end with this value.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

/// How long the machines may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Machines {
    server: Child,
    agents: Vec<Child>,
    address: String,
    token: String,
    _folder: TempDir,
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
    pub(crate) async fn start(agents: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("server");
        let log = std::fs::File::create(folder.path().join("server.log"))?;
        let mut server = Command::new(program("drover-server")?);
        server.args(["serve", "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
        server.env("DROVER_LOG", "warn").env("DROVER_ADMIN_PASSWORD", "measuring");
        let server = server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut machines =
            Self { server, agents: Vec::new(), address: String::new(), token: String::new(), _folder: folder };
        let log = machines._folder.path().join("server.log");
        machines.address = wait_until(|| {
            let text = std::fs::read_to_string(&log).ok()?;
            let (_, rest) = text.split_once("Serving http://")?;
            let (address, _) = rest.split_once(" and agents on ")?;
            rest.contains('\n').then(|| address.to_owned())
        })
        .await
        .context("the server does not start")?;
        let arguments = ["token", "create", "--user", "admin", "--name", "bench", "--data-dir"];
        machines.token = said(Command::new(program("drover-server")?).args(arguments).arg(&data))?;
        let uses = agents.to_string();
        let arguments = ["join-token", "create", "--uses", &uses, "--data-dir"];
        let join = said(Command::new(program("drover-server")?).args(arguments).arg(&data))?;
        for number in 0..agents {
            machines.start_agent(&join, number)?;
        }
        let path = machines._folder.path().to_owned();
        wait_until(|| all_enrolled(&path, agents)).await.context("the agents do not enrol")?;
        Ok(machines)
    }

    fn start_agent(&mut self, join: &str, number: usize) -> Result<()> {
        let name = format!("host-{number}");
        let data = self._folder.path().join(&name);
        let mut agent = Command::new(program("drover-agent")?);
        agent.args(["run", "--join", join, "--name", &name, "--data-dir"]).arg(data);
        self.agents.push(agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        Ok(())
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn server_memory_kib(&self) -> Result<u64> {
        memory_kib(self.server.id())
    }

    /// The middle of the agents' memory.
    pub(crate) fn agent_memory_kib(&self) -> Result<u64> {
        let mut all: Vec<u64> = self.agents.iter().map(|agent| memory_kib(agent.id())).collect::<Result<_>>()?;
        all.sort_unstable();
        all.get(all.len() / 2).copied().context("no agents")
    }
}

fn all_enrolled(folder: &Path, agents: usize) -> Option<()> {
    (0..agents).all(|number| folder.join(format!("host-{number}/identity.json")).exists()).then_some(())
}

async fn wait_until<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(value) = condition() {
            return Some(value);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// Resident memory as the kernel tells it.
fn memory_kib(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in self.agents.iter_mut().chain([&mut self.server]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
