//! `drover-server gc`: removes what retention would remove by and by, or says what that is.
//!
//! Invariant: files are removed only under the lock of the data directory. A server that has it removes them itself; then
//! the command only notes in the database what goes.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use drover_automation::engine::Engine;
use drover_automation::logs::OpenError;
use drover_automation::retention::{self, Counted, Places, Removed};
use drover_kernel::db::Db;
use drover_kernel::{Clock, Settings};

use crate::config::Config;
use crate::{bare_kernel, kernel};

/// Time that the kernel has to end; it has nothing under way.
const STOP: Duration = Duration::from_secs(5);

/// What the command did.
#[derive(Debug)]
pub enum Collected {
    /// Nothing but looking.
    Foreseen(Removed),
    /// Everything.
    Removed(Removed),
    /// Rows; the server that works with the data directory removes the files.
    Marked(Removed),
}

impl fmt::Display for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (begin, removed) = match self {
            Self::Foreseen(removed) => ("Would remove", removed),
            Self::Removed(removed) => ("Removed", removed),
            Self::Marked(removed) => ("Gave up", removed),
        };
        let Removed { tasks, deploy_tasks, audit, output, artifacts, mirrors } = removed;
        let files =
            |what: &str, counted: &Counted| format!("  {what}: {} files, {} bytes", counted.count, counted.bytes);
        writeln!(f, "{begin}")?;
        writeln!(f, "  tasks: {tasks}")?;
        writeln!(f, "  deploy tasks: {deploy_tasks}")?;
        writeln!(f, "  audit: {audit} entries")?;
        writeln!(f, "{}", files("output", output))?;
        writeln!(f, "{}", files("artifacts", artifacts))?;
        write!(f, "  mirrors: {} repositories, {} bytes", mirrors.count, mirrors.bytes)?;
        if matches!(self, Self::Marked(_)) {
            write!(
                f,
                "\nA server works with this data directory: it removes the files within minutes, each when nobody \
                reads it any more"
            )?;
        }
        Ok(())
    }
}

/// Looks what goes, and has it go unless `dry_run`. `db` is up to date.
///
/// # Errors
/// There is no data directory; the database or the disk is not available.
pub async fn gc(config: &Config, db: Db, settings: Settings, dry_run: bool) -> Result<Collected> {
    let data = &config.data_directory;
    if !data.join("logs").is_dir() {
        bail!("no server has worked with {}: give --data-dir", data.display());
    }
    let retention = &config.retention;
    if dry_run {
        let kernel = bare_kernel(db, Clock::system(), settings, data)?;
        let foreseen = retention::look(&kernel.work(), &Places::beside(data), retention).await;
        kernel.stop(STOP).await;
        return Ok(Collected::Foreseen(foreseen?));
    }
    match kernel(db.clone(), Clock::system(), settings.clone(), data) {
        Ok(kernel) => {
            let engine = kernel.part::<Engine>();
            let removed = retention::round(&kernel, retention).await;
            kernel.stop(STOP).await;
            engine.logs.close().await;
            Ok(Collected::Removed(removed?))
        }
        Err(error) if matches!(error.downcast_ref(), Some(OpenError::InUse(_))) => {
            let kernel = bare_kernel(db, Clock::system(), settings, data)?;
            let marked = retention::mark(&kernel.work(), &Places::beside(data), retention).await;
            kernel.stop(STOP).await;
            Ok(Collected::Marked(marked?))
        }
        Err(error) => Err(error),
    }
}
