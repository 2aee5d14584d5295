//! After a restore: what was under way when the backup was made has gone on since, and nobody here saw how.
//!
//! Invariants: nothing that may have run since then is sent again by itself; what nobody can know is called lost when its
//! host cannot say either; what was waiting goes on when a person says so.

use std::fs;
use std::path::Path;

use drover_kernel::jobs::Work;
use drover_kernel::{Audit, AuditEntry, AuditList, DEFAULT_ORGANISATION, Error, Result};

use crate::executions::store as execution_store;
use crate::link;
use crate::logs;
use crate::schedules;
use crate::tasks::store as task_store;

/// Who holds the tasks that were waiting.
const HOLDER: &str = "restore";

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Executions that were under way: their hosts say how they ended, or they are lost.
    pub under_way: u64,
    /// Tasks that are held until somebody resumes or cancels them.
    pub held: u64,
}

/// Makes a restored database safe to work with, before any server does. `folder` holds the output of tasks; what is of
/// tasks that were made after the database was copied is removed, because their numbers are given again.
///
/// # Errors
/// The database or the folder is not available; it may be done again.
pub async fn restored(work: &Work, folder: &Path) -> Result<Restored> {
    let mut tx = work.begin(DEFAULT_ORGANISATION).await?;
    let under_way = execution_store::take_as_begun(&mut tx).await?;
    let held = task_store::hold_all(&mut tx, HOLDER).await?;
    link::start_anew(&mut tx).await?;
    schedules::start_anew(&mut tx).await?;
    let detail = format!("{under_way} executions were under way, {held} tasks are held");
    let entry = AuditEntry::new(AuditList::General, "restore", "server", 0, "server").detail(detail);
    let last = task_store::last_id(&mut tx).await?;
    tx.finish(Audit::of(entry)).await?;
    remove_later(folder, last).map_err(Error::internal)?;
    Ok(Restored { under_way, held })
}

fn remove_later(folder: &Path, last: i64) -> std::io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let last = u64::try_from(last).unwrap_or(0);
    for part in fs::read_dir(folder)? {
        let part = part?.path();
        if !part.is_dir() {
            continue;
        }
        for file in fs::read_dir(&part)? {
            let file = file?.path();
            if logs::task_of(&file).is_some_and(|task| task > last) {
                fs::remove_file(file)?;
            }
        }
    }
    Ok(())
}
