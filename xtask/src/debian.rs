//! Debian packages that the tests need.
//!
//! Invariant: installing a package starts no service, and nothing is installed without saying so.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;

use crate::process;

/// Where Debian's PostgreSQL package reads whether to make and start a database at installation.
const CLUSTER_SETTINGS: &str = "/etc/postgresql-common/createcluster.conf";

/// What Debian asks before it starts a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Where Debian puts programs that are not in every user's path.
const SYSTEM_PROGRAMS: &str = "/usr/sbin";

/// Installs `package` unless `program` is there, for which `reason` says why.
///
/// # Errors
/// As [`install`].
pub fn need(program: &str, package: &str, reason: &str) -> Result<()> {
    if process::find(program).is_some() || Path::new(SYSTEM_PROGRAMS).join(program).is_file() {
        return Ok(());
    }
    install(package, reason)
}

/// Installs `package`, for which `reason` says why.
///
/// # Errors
/// On systems without apt-get, without the right to install, or when the installation fails.
pub fn install(package: &str, reason: &str) -> Result<()> {
    if process::find("apt-get").is_none() {
        bail!("{reason}, and there is no apt-get to install Debian's package `{package}`: install it by hand");
    }
    if !Uid::effective().is_root() && process::find("sudo").is_none() {
        bail!("{reason}: run `apt-get install {package}` as root");
    }
    println!("{reason}: installing Debian's package `{package}`.");
    if package == "postgresql" {
        keep_from_starting()?;
    }
    process::run(root("apt-get").args(["update", "-q"])).context("cannot refresh the list of packages")?;
    let _policy = Policy::set()?;
    process::run(root("apt-get").args(["install", "-q", "-y", "--no-install-recommends", package]))
        .with_context(|| format!("cannot install `{package}`"))
}

/// Debian's own way to say that no service may start; it ends with the installation.
struct Policy {
    is_ours: bool,
}

impl Policy {
    fn set() -> Result<Self> {
        let is_ours = !Path::new(POLICY).exists();
        if is_ours {
            let script = format!("printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}");
            process::run(root("sh").args(["-c", &script])).context("cannot keep services from starting")?;
        }
        Ok(Self { is_ours })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.is_ours && process::run(root("rm").args(["-f", POLICY])).is_err() {
            println!("{POLICY} stays behind and keeps services from starting: remove it.");
        }
    }
}

/// Makes the installation of PostgreSQL leave no database running.
fn keep_from_starting() -> Result<()> {
    let path = Path::new(CLUSTER_SETTINGS);
    if path.exists() {
        return Ok(());
    }
    let line = "printf 'create_main_cluster = false\\n' >";
    process::run(root("sh").args(["-c", &format!("mkdir -p /etc/postgresql-common && {line} {CLUSTER_SETTINGS}")]))?;
    let written = fs::read_to_string(path).with_context(|| format!("cannot read {CLUSTER_SETTINGS}"))?;
    if !written.contains("create_main_cluster = false") {
        bail!("{CLUSTER_SETTINGS} does not keep the system's database from starting");
    }
    Ok(())
}

/// A command with the rights to install.
fn root(program: &str) -> Command {
    let mut command = if Uid::effective().is_root() {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        command.arg("--non-interactive").arg("--preserve-env=DEBIAN_FRONTEND").arg(program);
        command
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
