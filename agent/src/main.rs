//! `drover-agent`: see `drover-agent --help`.
//!
//! A supervisor is this program in another mode, and so is who reads for the agent as another account: they are started
//! often, therefore their way in is short.

use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use drover_agent::instances::look;
use drover_agent::run::{self, Options};
use drover_agent::supervise::processes::PIDS_MAX_DEFAULT;
use drover_agent::supervise::{PIDS_MAX, supervise};
use drover_shared::size::size;

/// Smallest spool in bytes.
const SPOOL_BYTES_MIN: u64 = 1024 * 1024;

/// Runs signed jobs of a Drover server on this host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Stay connected to the server and run what it signs.
    Run {
        /// Join token; needed at the first start only.
        #[arg(long, env = "DROVER_JOIN", hide_env_values = true)]
        join: Option<String>,
        /// Name of this host as the server knows it; the system's host name when none is given.
        #[arg(long, env = "DROVER_NAME")]
        name: Option<String>,
        /// Folder for identity, spool and artifacts.
        #[arg(long, env = "DROVER_DATA_DIR", default_value = "/var/lib/drover-agent")]
        data_dir: PathBuf,
        /// Size of the spool, such as 4G: beyond it no order is taken and output is left out; when none is given 8G, but no
        /// more than half of its disk.
        #[arg(long, env = "DROVER_SPOOL_SIZE", value_name = "SIZE", value_parser = spool_size)]
        spool_size: Option<u64>,
        /// Processes and threads that an execution may have at a time, where the kernel counts them.
        #[arg(long, env = PIDS_MAX, default_value_t = PIDS_MAX_DEFAULT, value_parser = clap::value_parser!(u64).range(1..))]
        pids_max: u64,
    },
    /// Read what the agent asks for on standard input, as the account that it names.
    #[command(hide = true)]
    Look,
    /// Carry out the execution of one spool folder.
    #[command(hide = true)]
    Supervise {
        /// The folder.
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq(["look"]) {
        return looked();
    }
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() == Some(OsStr::new("supervise"))
        && let Some(folder) = arguments.next()
        && arguments.next().is_none()
    {
        return supervised(Path::new(&folder));
    }
    match Arguments::parse().command {
        Command::Supervise { folder } => supervised(&folder),
        Command::Look => looked(),
        Command::Run { join, name, data_dir, spool_size, pids_max } => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(false)
                // A log that cannot be written, because it lies on a full disk for example, ends nothing.
                .log_internal_errors(false)
                .init();
            done(run::run(Options { join, name, data_dir, spool_bytes_max: spool_size, pids_max }))
        }
    }
}

fn spool_size(text: &str) -> Result<u64, &'static str> {
    match size(text) {
        None => Err("it is no size such as 4G"),
        Some(bytes) if bytes < SPOOL_BYTES_MIN => Err("it is less than 1M"),
        Some(bytes) => Ok(bytes),
    }
}

fn supervised(folder: &Path) -> ExitCode {
    done(supervise(folder).map(drop).map_err(anyhow::Error::from))
}

fn looked() -> ExitCode {
    done(look::answer().map_err(anyhow::Error::from))
}

fn done(outcome: anyhow::Result<()>) -> ExitCode {
    use std::io::Write as _;
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let _ = writeln!(std::io::stderr(), "drover-agent: {error:#}");
    ExitCode::FAILURE
}
