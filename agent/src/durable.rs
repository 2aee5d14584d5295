//! Writes that survive a loss of power.
//!
//! Invariant: a name that [`write_atomic`] returned from holds either the old or the new content, whole, whatever
//! happens afterwards.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

thread_local! {
    static FULL: Cell<bool> = const { Cell::new(false) };
}

/// For simulations: from now on the disk of this thread's host is full, or has room again.
pub fn fill(full: bool) {
    FULL.set(full);
}

/// Nothing, unless the disk of a simulated host is full.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`].
pub(crate) fn room() -> io::Result<()> {
    if FULL.get() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

/// Replaces the content of `path` in one step: temporary file, fsync, rename, fsync of the folder.
///
/// # Errors
/// Whatever the file system says; the old content then still stands.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    let name = path.file_name().ok_or_else(|| io::Error::other("a path without a name"))?;
    let temporary = folder.join(format!(".{}.new", name.to_string_lossy()));
    let written = write_new(&temporary, content, mode).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_folder(folder)
}

/// Writes a file from scratch and makes its content durable, not yet its name.
///
/// # Errors
/// Whatever the file system says.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Stack of a thread that only waits for the disk, in bytes.
const STACK_BYTES: usize = 64 * 1024;

/// Makes a file and the names in some folders durable, all at the same time: a file system does that in one go.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_together(file: &File, folders: [&Path; 2]) -> io::Result<()> {
    std::thread::scope(|scope| {
        let others = folders.map(|folder| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            (folder, thread.spawn_scoped(scope, move || sync_folder(folder)))
        });
        let mut outcome = file.sync_all();
        for (folder, thread) in others {
            let synced = match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(io::Error::other("the sync failed"))),
                // Without a thread it goes one after the other.
                Err(_) => sync_folder(folder),
            };
            outcome = outcome.and(synced);
        }
        outcome
    })
}

/// Makes the names in a folder durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
