//! The log folder is one server's.
//!
//! Invariant: who holds it is the only one that writes there until it ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use super::OpenError;

/// Tries for the lock, and the pause between them: a child that a server was just starting when it was killed holds the
/// lock for a moment longer.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Makes the folder if it is not there, and holds it as long as the file is open.
///
/// # Errors
/// When another server has it, or it cannot be used.
pub(super) fn hold(folder: &Path) -> Result<File, OpenError> {
    let storage =
        |error: io::Error| OpenError::Storage { path: folder.display().to_string(), reason: error.to_string() };
    std::fs::create_dir_all(folder).map_err(storage)?;
    let path = folder.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(storage)?;
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(TryLockError::Error(error)) => return Err(storage(error)),
        }
    }
    Err(OpenError::InUse(folder.display().to_string()))
}
