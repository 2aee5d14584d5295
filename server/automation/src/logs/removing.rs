//! Which logs there are, and removing one.
//!
//! Invariant: a log that anybody has open is not removed, and who opens one while it is removed gets an empty one. Who
//! has to know which it is asks after opening it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use drover_kernel::at_once::blocking;

use super::error::OpenError;
use super::file::lock;
use super::{LogStore, OPENERS, Shared, task_of};

/// The logs in the folder of a store, by task, with the lengths of their files. Blocks.
///
/// # Errors
/// When the folder cannot be read.
pub fn stored(folder: &Path) -> io::Result<BTreeMap<i64, u64>> {
    let mut stored = BTreeMap::new();
    let parts = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(stored),
        parts => parts?,
    };
    for part in parts {
        let part = part?;
        if !part.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(part.path())? {
            let file = file?;
            let Some(task_id) = task_of(&file.path()).and_then(|id| i64::try_from(id).ok()) else { continue };
            match file.metadata() {
                Ok(about) => drop(stored.insert(task_id, about.len())),
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(stored)
}

impl LogStore {
    /// Where the logs are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Removes the log of a task, unless somebody has it open: reads it, writes it or holds it. Says whether it is gone.
    ///
    /// # Errors
    /// [`OpenError::Storage`] when the file system refuses.
    pub async fn remove(&self, task_id: i64) -> Result<bool, OpenError> {
        let id = u64::try_from(task_id).map_err(|_| OpenError::NoTask(task_id))?;
        let place = usize::try_from(id % OPENERS as u64).unwrap_or(0);
        // Nobody opens it until its file is gone.
        let _turn = self.shared.openers[place].lock().await;
        if !self.shared.forget(id) {
            return Ok(false);
        }
        let path = self.shared.path(id);
        let shown = path.display().to_string();
        let storage = |reason: String| OpenError::Storage { path: shown, reason };
        match blocking(move || std::fs::remove_file(path)).await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(storage(error.to_string())),
            Err(error) => Err(storage(error.to_string())),
            Ok(_) => Ok(true),
        }
    }
}

impl Shared {
    /// Closes a log that nobody uses; false when somebody does.
    fn forget(&self, id: u64) -> bool {
        let mut open = lock(&self.open);
        if let Some(file) = open.logs.get(&id).and_then(std::sync::Weak::upgrade) {
            let idle = open.idle.iter().filter(|other| other.task_id == id).count();
            // This handle is one more. Who has none gets one only under this lock.
            if Arc::strong_count(&file) > idle + 1 {
                return false;
            }
        }
        open.idle.retain(|other| other.task_id != id);
        open.logs.remove(&id);
        true
    }
}
