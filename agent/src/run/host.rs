//! What the agent asks of its host: supervisors, the processes that dead ones left, a connection, chance.
//!
//! There is one host for each agent. A simulation has its own; everything else of the agent is the same there.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use drover_shared::message::ProcessVerdict;
use drover_shared::secret::Secrets;
use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::ClientConfig;
use tokio::sync::Notify;

use super::link::Link;
use super::watcher::Watcher;
use crate::spool::{Folder, Key, Started};
use crate::supervise;
use crate::supervise::processes::Tree;

/// Where the agent runs.
pub trait Host: Send + Sync {
    /// Starts a supervisor of a spool folder. What is given comes to its end when the supervisor does.
    ///
    /// # Errors
    /// No process can be started.
    fn supervise(&self, folder: &Folder, secrets: &Secrets) -> io::Result<BoxFuture<'static, ()>>;

    /// Has a supervisor look at its cancel note, or end without one that could not be written.
    fn tell(&self, supervisor: i32, is_noted: bool);

    /// Ends the processes that a dead supervisor left.
    fn end_orphans(&self, started: &Started, key: &Key, grace_ms: u64) -> ProcessVerdict;

    /// Opens a connection to the server; `room` is notified whenever it can take more.
    fn dial(&self, url: String, tls: Arc<ClientConfig>, room: Arc<Notify>) -> BoxFuture<'static, anyhow::Result<Link>>;

    /// What wakes the agent when a supervisor writes.
    fn watcher(&self) -> Watcher;

    /// Any number up to this one.
    fn up_to(&self, most: u64) -> u64;
}

/// The host that this process runs on.
pub(super) struct ThisHost {
    /// Processes that an execution may have at a time.
    pub(super) pids_max: u64,
}

impl Host for ThisHost {
    fn supervise(&self, folder: &Folder, secrets: &Secrets) -> io::Result<BoxFuture<'static, ()>> {
        let secrets = supervise::hand_over(secrets)?;
        let mut child = tokio::process::Command::new("/proc/self/exe")
            .arg("supervise")
            .arg(folder.path())
            .env(supervise::PIDS_MAX, self.pids_max.to_string())
            .stdin(secrets)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        Ok(Box::pin(async move { drop(child.wait().await) }))
    }

    fn tell(&self, supervisor: i32, is_noted: bool) {
        let signal = if is_noted { Signal::SIGTERM } else { supervise::UNNOTED };
        let _ = kill(Pid::from_raw(supervisor), signal);
    }

    fn end_orphans(&self, started: &Started, key: &Key, grace_ms: u64) -> ProcessVerdict {
        Tree::orphaned(started, key).end(grace_ms, &mut |wait| std::thread::sleep(Duration::from_millis(wait)))
    }

    fn dial(&self, url: String, tls: Arc<ClientConfig>, room: Arc<Notify>) -> BoxFuture<'static, anyhow::Result<Link>> {
        Box::pin(Link::dial(url, tls, room))
    }

    fn watcher(&self) -> Watcher {
        Watcher::new()
    }

    fn up_to(&self, most: u64) -> u64 {
        let mut random = [0; 4];
        let _ = SystemRandom::new().fill(&mut random);
        u64::from(u32::from_be_bytes(random)) % (most + 1)
    }
}
