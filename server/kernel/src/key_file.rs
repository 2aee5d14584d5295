//! Keys as files in the data directory, readable by the server's account alone.
//!
//! Invariant: a key that exists is never replaced here; of two processes that start at once both use the first one's.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The file's content, made and written durably if it is not there. Blocks on the disk.
///
/// # Errors
/// When the file can neither be read nor made, or `make` fails.
pub fn keep(file: &Path, make: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    let mut new = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    new.write_all(&make()?)?;
    new.sync_all()?;
    // A hard link fails where a rename would replace the other process's key.
    match fs::hard_link(&temporary, file) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::remove_file(&temporary)?;
    if let Some(folder) = file.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    fs::read(file)
}
