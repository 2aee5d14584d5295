//! Folders of forgotten executions, emptied and kept for new ones.
//!
//! Making and deleting a handful of files for each hook is what an agent would be busiest with: a file system without a
//! journal does not give the number of a deleted file away for a minute, and looks at every one of these whenever a file
//! is made. Invariants: a folder is offered only after everything that it said before is gone durably, and it has no
//! execution's name until then; what an earlier agent left is removed, not used.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use crate::durable;

/// Folders kept, at most; each holds little more than the reserve.
const SPARES_MAX: usize = 64;
/// How their names begin: no execution's does.
const PREFIX: &str = "spare-";
/// Files of a folder that is over, each with the name that it has at the beginning.
const FILES: [(&str, &str); 5] = [
    ("order.json", "order.new"),
    ("status.json", "status.new"),
    ("started", "started"),
    ("lock", "lock"),
    ("log", "log"),
];
/// The file that stays as it is.
const RESERVE: &str = "reserve";
/// Files that only some have.
const EXTRA: [&str; 2] = ["cancel", "fetched.json"];

/// The folders.
#[derive(Debug, Default)]
pub(crate) struct Spares(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    ready: Vec<PathBuf>,
    /// Folders that are ready or being emptied.
    kept: usize,
    /// For names.
    made: u64,
}

impl Spares {
    /// Removes what an earlier agent left.
    pub(crate) fn clear(root: &Path) -> io::Result<()> {
        for item in fs::read_dir(root)? {
            let item = item?;
            if item.file_name().to_string_lossy().starts_with(PREFIX) {
                fs::remove_dir_all(item.path())?;
            }
        }
        Ok(())
    }

    /// An empty folder, if there is one.
    pub(crate) fn take(&self) -> Option<PathBuf> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = state.ready.pop()?;
        state.kept -= 1;
        Some(folder)
    }

    /// Takes its name from a folder that is over; gives where it is now, for [`Spares::keep`]. None when there is no
    /// room for one more.
    pub(crate) fn rename(&self, root: &Path, folder: &Path) -> Option<PathBuf> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.kept >= SPARES_MAX {
            return None;
        }
        let spare = root.join(format!("{PREFIX}{}", state.made));
        state.made += 1;
        fs::rename(folder, &spare).ok()?;
        state.kept += 1;
        Some(spare)
    }

    /// Empties a folder and keeps it; one that is not as expected is removed. Waits for the disk.
    pub(crate) fn keep(&self, spare: PathBuf) {
        let emptied = empty(&spare);
        if emptied.is_err() {
            let _ = fs::remove_dir_all(&spare);
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match emptied {
            Ok(()) => state.ready.push(spare),
            Err(_) => state.kept -= 1,
        }
    }
}

/// Makes a folder that is over as it was at the beginning, durably.
fn empty(folder: &Path) -> io::Result<()> {
    for name in EXTRA {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let names = fs::read_dir(folder)?.map(|item| Ok(item?.file_name())).collect::<io::Result<BTreeSet<_>>>()?;
    let expected = FILES.iter().map(|(name, _)| (*name).into()).chain([RESERVE.into()]).collect();
    if names != expected {
        return Err(io::Error::other("the folder holds something else"));
    }
    // A supervisor that has said its last word may still be on its way out.
    let lock = OpenOptions::new().write(true).open(folder.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| io::Error::from(error))?;
    for (name, at_first) in FILES {
        fs::rename(folder.join(name), folder.join(at_first))?;
        let file = OpenOptions::new().write(true).open(folder.join(at_first))?;
        file.set_len(0)?;
        file.sync_all()?;
    }
    durable::sync_folder(folder)
}

/// Gives an emptied folder to an execution: the content of its order, then its name. What is written is not durable yet.
pub(crate) fn give(spare: &Path, folder: &Path, order: &[u8]) -> io::Result<File> {
    use std::io::Write as _;
    if folder.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    durable::room()?;
    let mut file = OpenOptions::new().write(true).open(spare.join("order.new"))?;
    file.write_all(order)?;
    fs::rename(spare.join("order.new"), spare.join("order.json"))?;
    fs::rename(spare, folder)?;
    Ok(file)
}
