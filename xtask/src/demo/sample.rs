//! The sample application: its repository, its hooks, and looking at what it serves.
//!
//! Invariant: whichever of its processes run when this value goes are ended.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{APPLICATION, HOSTS, api};
use crate::{postgres, process};

const PROGRAM: &str = include_str!("sample/app.py");
const START: &str = include_str!("sample/start.sh");
const STOP: &str = include_str!("sample/stop.sh");

/// The application, its repository and where it listens.
pub(super) struct Sample {
    folder: PathBuf,
    ports: Vec<(&'static str, u16)>,
}

impl Sample {
    /// Makes the repository with its two versions.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let mut ports = Vec::new();
        for host in HOSTS {
            ports.push((host, postgres::free_port()?));
        }
        let sample = Self { folder: folder.to_owned(), ports };
        let repository = sample.repository_folder();
        fs::create_dir_all(&repository)?;
        git(&repository, &["init", "--quiet", "--initial-branch=main"])?;
        fs::write(repository.join("app.py"), PROGRAM)?;
        for (version, offer) in [("v1.0", "Apples"), ("v2.0", "Apples and pears")] {
            fs::write(repository.join("page.html"), page(version, offer))?;
            git(&repository, &["add", "--all"])?;
            git(&repository, &["commit", "--quiet", "--message", &format!("Sell {}", offer.to_lowercase())])?;
            git(&repository, &["tag", version])?;
        }
        Ok(sample)
    }

    fn repository_folder(&self) -> PathBuf {
        self.folder.join("repository")
    }

    /// Address of the repository.
    pub(super) fn repository(&self) -> String {
        format!("file://{}", self.repository_folder().display())
    }

    /// Where hosts put the application: a template, since both hosts are one machine.
    pub(super) fn deploy_path(&self) -> String {
        format!("{}/hosts/{{{{ host.name }}}}/{APPLICATION}", self.folder.display())
    }

    /// The hook that stops what runs.
    pub(super) fn stop_script(&self) -> &'static str {
        STOP
    }

    /// The hook that starts the release and waits until it answers.
    pub(super) fn start_script(&self) -> String {
        let ports: String = self.ports.iter().map(|(host, port)| format!("  {host}) port={port} ;;\n")).collect();
        START.replace("  # PORTS\n", &ports)
    }

    /// Where each host's application listens.
    pub(super) fn ports(&self) -> &[(&'static str, u16)] {
        &self.ports
    }

    /// Prints what both applications serve; fails unless it is this version's page.
    pub(super) fn look(&self, version: &str) -> Result<()> {
        for (host, port) in &self.ports {
            let (status, page) = api::page(SocketAddr::from((Ipv4Addr::LOCALHOST, *port)), "/")?;
            println!("\n-- http://127.0.0.1:{port}/ on {host} answers {status}:\n{}", page.trim());
            ensure!(status == 200, "{host} answers {status}");
            ensure!(page.contains(&format!("Shop {version}")), "{host} does not serve {version}");
            ensure!(page.contains(&format!("served by {host} ")), "something else than {host} serves this page");
        }
        Ok(())
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        for host in HOSTS {
            let file = self.folder.join("hosts").join(host).join(APPLICATION).join("shared/app.pid");
            let Some(pid) = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()) else { continue };
            let pid = Pid::from_raw(pid);
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                // It may have ended by itself, or of the first signal.
                let _ = kill(pid, signal);
                process::until(Duration::from_secs(3), || kill(pid, None).is_err());
            }
        }
    }
}

fn page(version: &str, offer: &str) -> String {
    format!("<!doctype html>\n<title>Shop</title>\n<h1>Shop {version}</h1>\n<p>{offer}</p>\n")
}

/// Runs git in the repository, whatever the machine's own settings are.
fn git(repository: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("git");
    command.current_dir(repository).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    command.args(["-c", "user.name=Demo", "-c", "user.email=demo@example.com", "-c", "commit.gpgSign=false"]);
    process::output(command.args(arguments)).map(drop).context("cannot make the sample's repository")
}
