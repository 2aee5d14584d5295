//! `cargo xtask bench`: figures of the whole path with real processes, each beside its limit in the same run.
//!
//! Owns the load and the clock, nothing of the product: it starts release builds, speaks HTTP and websockets to them,
//! and reads `/proc`. Prints a table, and writes JSON with `--json FILE`. Invariant: a figure is the middle of several
//! runs, and says how far they are apart.

mod archives;
mod bare;
mod client;
mod commands;
mod dispatch;
mod limits;
mod machines;
mod many;
mod noticed;
mod output;
mod report;
mod resting;
mod simulated;
mod viewers;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use report::Report;

/// What can be measured by itself.
const ROWS: &[(&str, &str)] = &[
    ("latency", "one no-op hook on one agent, on a kept connection and by `drover`"),
    ("throughput", "no-op hooks over ten agents, and processor time for each"),
    ("queued", "a thousand commands for one agent"),
    ("fifty", "one no-op hook on fifty agents"),
    ("dispatch", "queued executions to simulated agents, on SQLite"),
    ("restart", "a server that is killed with ten thousand executions waiting"),
    ("postgres", "throughput and dispatch on PostgreSQL"),
    ("output", "a million lines to a viewer, their download and search"),
    ("lag", "a quiet job's lines at a viewer"),
    ("viewers", "a thousand viewers of one loud job"),
    ("archive", "500 MB to ten agents, one of them killed in the middle"),
    ("delta", "consecutive tags of a repository that the environment names"),
    ("rest", "server and agents with nothing to do"),
    ("noticed", "an agent that is killed, and one that hangs, until it is told"),
    ("many", "ten thousand idle agents over TLS, two thousand when it is to be quick"),
];

/// The address of a PostgreSQL that keeps its promises, from `cargo xtask bench`.
const POSTGRES: &str = "DROVER_BENCH_POSTGRES";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    quick: bool,
}

impl Size {
    /// The first in full, the second when it has to be quick.
    pub(crate) fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

struct Wish {
    size: Size,
    file: Option<PathBuf>,
    rows: Vec<String>,
}

fn wish() -> Result<Wish> {
    let mut wish = Wish { size: Size { quick: false }, file: None, rows: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => wish.size.quick = true,
            "--json" => wish.file = Some(arguments.next().context("--json wants a file")?.into()),
            row if ROWS.iter().any(|(name, _)| *name == row) => wish.rows.push(argument),
            other => {
                let rows: Vec<String> = ROWS.iter().map(|(name, what)| format!("  {name:11} {what}")).collect();
                bail!("`{other}` cannot be measured; there are --quick, --json FILE and\n{}", rows.join("\n"));
            }
        }
    }
    Ok(wish)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some(bare::ARGUMENT) {
        return bare::serve().await;
    }
    let Wish { size, file, rows } = wish()?;
    let mut report = Report::default();
    for (name, _) in ROWS {
        if rows.is_empty() || rows.iter().any(|row| row == name) {
            Box::pin(measure(name, size, &mut report)).await.with_context(|| format!("row {name}"))?;
        }
    }
    if let Some(file) = file {
        let text = serde_json::to_string_pretty(&report.json())? + "\n";
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

async fn measure(name: &str, size: Size, report: &mut Report) -> Result<()> {
    match name {
        "latency" => commands::latency(size, report).await,
        "throughput" => commands::throughput(size, report).await,
        "queued" => commands::queued(size, report).await,
        "fifty" => commands::fifty(size, report).await,
        "dispatch" => dispatch::rows(size, None, report).await,
        "restart" => dispatch::restart(size, report).await,
        "postgres" => {
            let Ok(database) = std::env::var(POSTGRES) else { return Ok(()) };
            Box::pin(commands::sustained(size, Some(database.clone()), report)).await?;
            dispatch::rows(size, Some(database), report).await
        }
        "output" => output::rows(size, report).await,
        "lag" => output::lag(size, report).await,
        "viewers" => viewers::rows(size, report).await,
        "archive" => archives::many(size, report).await,
        "delta" => archives::delta(report).await,
        "rest" => resting::rows(size, report).await,
        "noticed" => noticed::rows(size, report).await,
        "many" => many::rows(size, report).await,
        other => bail!("nothing measures {other}"),
    }
}

/// Time for the processes to come to rest.
pub(crate) async fn rest(size: Size) {
    tokio::time::sleep(Duration::from_secs(size.pick(5, 1))).await;
}
