//! Hosts that lose their power and boot again.
//!
//! A machine cannot be restarted by a test. What an agent sees of a restart it can be shown: everything that ran is gone, and
//! the system has another boot id, by a mount that only the agent and what it starts can see. What the disk had not got yet is
//! not lost so, and the monotonic clock goes on.

use std::path::Path;
use std::process::Command;

use super::{Processes, tree, wait_for_end};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// `unshare` and its arguments, up to a command.
fn apart() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] }
}

/// Whether this machine lets a test show an agent another boot.
#[must_use]
pub fn can_boot() -> bool {
    let mut command = Command::new("unshare");
    command.args(apart()).args(["mount", "--bind", "/proc/version", BOOT_ID]);
    command.output().is_ok_and(|output| output.status.success())
}

impl Processes {
    /// Ends everything on a host at one moment: its agent, supervisors and hooks.
    ///
    /// # Panics
    /// When its agent does not run.
    pub async fn lose_power(&mut self, host: &str) {
        let agent = self.agents.remove(host).expect("the agent runs");
        tree::end_at_once(&self.agent_folder(host));
        wait_for_end(agent).await;
    }

    /// Starts the agent of an enrolled host in another boot, and waits until it is connected.
    ///
    /// # Panics
    /// When it cannot be started, or this machine does not allow that ([`can_boot`]).
    pub async fn boot(&mut self, host: &str, boot_id: &str) {
        let file = self.folder().join(format!("boot-{host}"));
        std::fs::write(&file, format!("{boot_id}\n")).expect("a file");
        let mut command = self.command(Path::new("unshare"));
        let script = format!("mount --bind \"$1\" {BOOT_ID} && shift && exec \"$@\"");
        command.args(apart()).args(["sh", "-c", &script, "sh"]).arg(file).arg(self.programs.join("drover-agent"));
        self.spawn_agent_by(command, host, &[]);
        self.wait_for_connection(host, true).await;
    }
}
