//! Running the `git` program: nothing of this machine's configuration, no questions, no leftovers.
//!
//! Invariant: a run ends by its deadline with every process of its group, and its secrets are in the environment of
//! those programs or in files of [`Login`], never in arguments, addresses or messages.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout_at};

use super::SourceError;
use super::login::{self, Login};

/// Read of a program's answer and complaints; the rest is thrown away.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;
/// Part of a line that is looked at once.
const LINE_BYTES_MAX: u64 = 64 * 1024;
const COMPLAINT_BYTES_MAX: usize = 4096;
const COMPLAINT_LINES_MAX: usize = 6;

/// What every run obeys. It is a file, because git does not hand settings of the environment on to the program that
/// serves a local repository.
const CONFIGURATION: &str = "\
[safe]
\tdirectory = *
[protocol]
\tallow = never
[protocol \"file\"]
\tallow = always
[protocol \"http\"]
\tallow = always
[protocol \"https\"]
\tallow = always
[protocol \"ssh\"]
\tallow = always
[core]
\thooksPath = /dev/null
\taskPass =
[credential]
\thelper =
[http]
\tlowSpeedLimit = 1000
\tlowSpeedTime = 30
[fetch]
\trecurseSubmodules = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
[advice]
\tdetachedHead = false
[tar]
\tumask = 0022
";

/// How git is run for one source.
#[derive(Debug)]
pub(super) struct Git {
    home: PathBuf,
    login: Login,
    deadline: Instant,
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) success: bool,
    pub(super) answer: String,
    /// What it said on standard error, cleaned.
    pub(super) complaint: String,
    /// Fingerprint of a key, if it spoke of one.
    pub(super) fingerprint: Option<String>,
}

/// Writes the configuration into the folder that serves as home.
pub(super) fn prepare(home: &Path) -> io::Result<()> {
    std::fs::create_dir_all(home)?;
    login::clean(home)?;
    std::fs::write(home.join("gitconfig"), CONFIGURATION)
}

impl Git {
    pub(super) fn new(home: &Path, login: Login, deadline: Instant) -> Self {
        Self { home: home.to_owned(), login, deadline }
    }

    /// What it gets into the repository with.
    pub(super) fn login(&self) -> &Login {
        &self.login
    }

    /// A command in the repository `repository`.
    fn command<S: AsRef<OsStr>>(&self, repository: &Path, arguments: &[S]) -> Command {
        const PASSED_ON: [&str; 9] = [
            "PATH",
            "TMPDIR",
            "http_proxy",
            "https_proxy",
            "HTTPS_PROXY",
            "no_proxy",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
        ];
        let mut command = Command::new("git");
        command.env_clear();
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", self.home.join("none"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.home.join("gitconfig"))
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_LITERAL_PATHSPECS", "1")
            .env("GIT_DIR", repository)
            .env("LC_ALL", "C.UTF-8");
        command.env("GIT_CONFIG_COUNT", self.login.settings.len().to_string());
        for (number, (name, value)) in self.login.settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), name).env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        for (name, value) in &self.login.environment {
            command.env(name, value.as_str());
        }
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        command
    }

    /// Runs git and gives its answer.
    pub(super) async fn run<S: AsRef<OsStr>>(
        &self,
        repository: &Path,
        doing: &'static str,
        arguments: &[S],
    ) -> Result<Ended, SourceError> {
        let mut command = self.command(repository, arguments);
        command.stdout(Stdio::piped());
        let mut running = Running::start(command)?;
        let stdout = running.child.stdout.take();
        self.finish(running, doing, stdout).await
    }

    /// The first line of git's answer that begins with `prefix`, however long the answer is.
    pub(super) async fn find_line<S: AsRef<OsStr>>(
        &self,
        repository: &Path,
        doing: &'static str,
        arguments: &[S],
        prefix: &str,
    ) -> Result<Option<String>, SourceError> {
        let mut command = self.command(repository, arguments);
        command.stdout(Stdio::piped());
        let mut running = Running::start(command)?;
        let Some(stdout) = running.child.stdout.take() else { return Ok(None) };
        let mut lines = BufReader::new(stdout);
        let look = async {
            let mut line = Vec::new();
            loop {
                line.clear();
                match (&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) if line.starts_with(prefix.as_bytes()) => break,
                    Ok(_) => {}
                }
            }
            Some(String::from_utf8_lossy(&line).trim_end().to_owned())
        };
        let found = timeout_at(self.deadline, look).await.map_err(|_| SourceError::TimedOut { doing })?;
        if found.is_some() {
            return Ok(found);
        }
        let ended = self.finish(running, doing, None::<tokio::io::Empty>).await?;
        if ended.success { Ok(None) } else { Err(SourceError::Storage(format!("cannot {doing}: {}", ended.complaint))) }
    }

    /// Runs git with its standard output going into `output`.
    pub(super) fn start_into<S: AsRef<OsStr>>(
        &self,
        repository: &Path,
        output: io::PipeWriter,
        arguments: &[S],
    ) -> Result<Running, SourceError> {
        let mut command = self.command(repository, arguments);
        command.stdout(output);
        Running::start(command)
    }

    /// Waits for the end of a run; at the deadline the whole group is killed.
    pub(super) async fn finish(
        &self,
        mut running: Running,
        doing: &'static str,
        stdout: Option<impl AsyncRead + Unpin>,
    ) -> Result<Ended, SourceError> {
        let stderr = running.child.stderr.take();
        let work = async {
            let (answer, complaint) = tokio::join!(read_some(stdout), read_some(stderr));
            (running.child.wait().await, answer, complaint)
        };
        let Ok((status, answer, complaint)) = timeout_at(self.deadline, work).await else {
            return Err(SourceError::TimedOut { doing });
        };
        running.group = None;
        let status = status.map_err(|error| SourceError::Storage(format!("cannot wait for git: {error}")))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let said = String::from_utf8_lossy(&complaint);
        let fingerprint = said
            .split_whitespace()
            .find(|word| word.starts_with("SHA256:"))
            .map(|word| word.trim_end_matches('.').chars().filter(|character| !character.is_control()).collect());
        Ok(Ended { success: status.success(), answer, complaint: self.clean(&said), fingerprint })
    }

    /// The last lines of what git said, without secrets, paths of the server and control characters.
    fn clean(&self, said: &str) -> String {
        let mut said = said.replace(&*self.home.to_string_lossy(), "(mirrors)");
        for secret in &self.login.secrets {
            said = said.replace(secret.as_str(), "******");
        }
        let printable = |line: &str| line.chars().filter(|character| !character.is_control()).collect::<String>();
        let lines: Vec<String> = said.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
        let mut text = lines[lines.len().saturating_sub(COMPLAINT_LINES_MAX)..].join("; ");
        text.truncate(text.floor_char_boundary(COMPLAINT_BYTES_MAX.min(text.len())));
        text
    }
}

/// A running git and the processes it has started; dropping it ends them all.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    fn start(mut command: Command) -> Result<Self, SourceError> {
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SourceError::NoGit,
            _ => SourceError::Storage(format!("cannot start git: {error}")),
        })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Reads to the end, but keeps only the beginning.
async fn read_some(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream).take(ANSWER_BYTES_MAX).read_to_end(&mut kept).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    kept
}
