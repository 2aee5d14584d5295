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

/// Installs `package`, for which `reason` says why.
///
/// # Errors
/// On systems without apt-get, without the right to install, or when the installation fails.
pub(crate) fn install(package: &str, reason: &str) -> Result<()> {
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
    process::run(root("apt-get").args(["install", "-q", "-y", "--no-install-recommends", package]))
        .with_context(|| format!("cannot install `{package}`"))
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
