//! The demo's server and agents.
//!
//! Invariant: each ends with its guard; all of them have process groups of their own, so that Ctrl-C reaches the demo
//! alone and it can stop them in order.

use std::cell::RefCell;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{PATIENCE, api};
use crate::{postgres, process};

/// How long the server and an agent may take to end.
const STOP: Duration = Duration::from_secs(12);

/// A server on SQLite.
pub(super) struct Server {
    child: RefCell<Child>,
    folder: PathBuf,
    address: SocketAddr,
    agent_address: SocketAddr,
    password: String,
}

/// An agent on a host of its own name.
pub(super) struct Agent {
    child: Child,
}

impl Server {
    /// Starts a server in `folder` and waits until it is ready.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (address, agent_address) = (address(postgres::free_port()?), address(postgres::free_port()?));
        let password = postgres::password()?;
        let mut command = program("drover-server", folder, &address, &agent_address)?;
        command.arg("serve").env("DROVER_ADMIN_PASSWORD", &password);
        let child = RefCell::new(launch(&mut command, &folder.join("server.log"))?);
        let server = Self { child, folder: folder.to_owned(), address, agent_address, password };
        let ready = || api::page(address, "/readyz").is_ok_and(|(status, _)| status == 200);
        let over = process::until(PATIENCE, || process::interrupted() || !server.runs() || ready());
        if !over || !server.runs() {
            let log = fs::read_to_string(folder.join("server.log")).unwrap_or_default();
            bail!("the server does not get ready; it said:\n{log}");
        }
        ensure!(!process::interrupted(), "interrupted");
        Ok(server)
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn password(&self) -> &str {
        &self.password
    }

    /// Where the command line keeps its token during the demo.
    pub(super) fn cli_settings(&self) -> PathBuf {
        self.folder.join("cli.toml")
    }

    /// Whether it is alive.
    pub(super) fn runs(&self) -> bool {
        matches!(self.child.borrow_mut().try_wait(), Ok(None))
    }

    /// Makes a token that lets `host` in.
    fn join_token(&self, host: &str) -> Result<String> {
        let mut command = program("drover-server", &self.folder, &self.address, &self.agent_address)?;
        let said = process::output(command.args(["join-token", "create", "--host", host]))?;
        let token = said.split_whitespace().find(|word| word.starts_with("drover-join-"));
        token.map(str::to_owned).with_context(|| format!("no join token in `{said}`"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        process::stop(self.child.get_mut(), Signal::SIGTERM, STOP);
    }
}

impl Agent {
    /// Starts the agent of `host`.
    pub(super) fn start(server: &Server, host: &str) -> Result<Self> {
        let token = server.join_token(host)?;
        let mut command = Command::new(process::bin_dir()?.join("drover-agent"));
        // In the environment, not among the arguments that everybody on the machine can see.
        command.args(["run", "--name", host, "--data-dir"]).arg(server.folder.join(format!("agent-{host}")));
        command.env("DROVER_JOIN", token);
        let child = launch(&mut command, &server.folder.join(format!("agent-{host}.log")))?;
        Ok(Self { child })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        process::stop(&mut self.child, Signal::SIGTERM, STOP);
    }
}

fn program(name: &str, folder: &Path, address: &SocketAddr, agent_address: &SocketAddr) -> Result<Command> {
    let mut command = Command::new(process::bin_dir()?.join(name));
    command.env("DROVER_DATA_DIR", folder.join("server")).env_remove("DROVER_DATABASE_URL");
    command.env("DROVER_LISTEN", address.to_string()).env("DROVER_AGENT_LISTEN", agent_address.to_string());
    Ok(command)
}

fn launch(command: &mut Command, log: &Path) -> Result<Child> {
    let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn().with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}
