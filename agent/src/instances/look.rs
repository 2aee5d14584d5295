//! `drover-agent look`: a process that becomes an account, reads what the agent asks for, answers and ends.
//!
//! Question and answer are JSON on standard input and output. Invariants: the account is taken on for good before
//! anything of the question is touched; nothing outlives the agent that asked; a file that is no regular one is not
//! opened.

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use drover_shared::instance::{LogOutcome, LogPiece};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Uid, geteuid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::log;
use super::pid_file::{self, PidFile};
use crate::accounts;

/// Length of a question, and of an answer, in bytes.
const BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What is to be read, and as whom.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// The agent's own account when none is named.
    pub running_user: Option<String>,
    /// What.
    pub what: What,
}

/// What is to be read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum What {
    /// Pid files.
    PidFiles(Vec<String>),
    /// A piece of a log.
    Log {
        /// Absolute path.
        path: String,
        /// Folder of the agent, of which nothing is read.
        own: PathBuf,
        /// Which piece.
        piece: LogPiece,
    },
}

/// What was read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    /// Each of the pid files in turn, and the number of the account that read them.
    PidFiles(Vec<PidFile>, u32),
    /// What came of it.
    Log(LogOutcome),
    /// The account cannot be taken on, and why.
    Refused(String),
}

/// This process's whole life.
///
/// # Errors
/// There is no question, or nobody to answer.
pub fn answer() -> io::Result<()> {
    let mut question = Vec::new();
    io::stdin().take(BYTES_MAX).read_to_end(&mut question)?;
    let ask: Ask = serde_json::from_slice(&question)?;
    let told = match become_account(ask.running_user.as_deref()) {
        Ok(()) => read(ask.what),
        Err(reason) => Told::Refused(reason),
    };
    io::stdout().lock().write_all(&serde_json::to_vec(&told)?)
}

fn read(what: What) -> Told {
    match what {
        What::PidFiles(paths) => {
            Told::PidFiles(paths.iter().map(|path| pid_file::read(path)).collect(), geteuid().as_raw())
        }
        What::Log { path, own, piece } => Told::Log(log::read(&path, &own, piece)),
    }
}

/// Takes an account on for good.
fn become_account(name: Option<&str>) -> Result<(), String> {
    let account = accounts::find(name)?;
    if account.changes {
        let failed = |error| format!("cannot become `{}`: {error}", account.name);
        setgroups(&account.groups).map_err(failed)?;
        setgid(account.gid).map_err(failed)?;
        setuid(account.uid).map_err(failed)?;
        if !account.uid.is_root() && setuid(Uid::from_raw(0)).is_ok() {
            return Err(format!("`{}` could become root again", account.name));
        }
    }
    prctl::set_no_new_privs().map_err(|error| error.to_string())?;
    // A change of account forgets this, so it comes last.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| error.to_string())
}

/// Has a process of its own answer, within this time.
///
/// # Errors
/// For people: it cannot be started, or does not answer.
pub(crate) async fn ask(ask: &Ask, longest: Duration) -> Result<Told, String> {
    let asked = tokio::time::timeout(longest, exchange(ask)).await;
    match asked {
        Ok(Ok(told)) => Ok(told),
        Ok(Err(error)) => Err(crate::describe(&error)),
        Err(_) => Err(format!("the file system did not answer within {} s", longest.as_secs())),
    }
}

async fn exchange(ask: &Ask) -> io::Result<Told> {
    let mut child = tokio::process::Command::new("/proc/self/exe")
        .arg("look")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    input.write_all(&serde_json::to_vec(ask)?).await?;
    drop(input);
    let mut answer = Vec::new();
    output.take(BYTES_MAX).read_to_end(&mut answer).await?;
    let status = child.wait().await?;
    if !status.success() {
        return Err(io::Error::other(format!("the process that looks ended with {status}")));
    }
    Ok(serde_json::from_slice(&answer)?)
}
