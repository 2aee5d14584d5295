//! The spool: one folder for each execution that the agent answers for.
//!
//! | file | written by | meaning |
//! |---|---|---|
//! | `order.json` | agent | the order and when it was accepted; there before the server hears *accepted* |
//! | `fetched.json` | agent | outcomes of the fetch steps |
//! | `started` | supervisor | empty until the first side effect; then who started it, in which boot and cgroup |
//! | `lock` | supervisor | locked while the supervisor lives; holds its process id |
//! | `cancel` | agent | why the execution is to end |
//! | `log` | agent, then supervisor | records |
//! | `reserve` | agent | space that is freed for the status when the disk is full |
//! | `status.json` | supervisor, or the agent in its place | how it ended |
//!
//! Invariant: `started` is durable before the first hook runs and `status.json` appears whole, so that whatever is
//! killed, a reader of the folder knows whether a hook may have run.

mod bound;
mod key;
mod spare;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drover_shared::message::{Finished, StepOutcome};
use drover_shared::order::{Entry, Order, Statement, canonical};
use drover_shared::planted::{self, Bug};
use nix::fcntl::{Flock, FlockArg, posix_fallocate};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Now;
pub use crate::clock::boot_id;
use crate::durable;
use crate::supervise::processes::Session;
pub use bound::Bound;
pub(crate) use bound::{TAKEN_BYTES, taken};
pub use key::Key;
use spare::Spares;

/// The status before it has its name.
const STATUS_NEW: &str = "status.new";
/// Folder of the spool with a note for each cgroup that outlived its execution.
const CGROUP_NOTES: &str = "cgroups";
/// Space set aside for the status of an execution, in bytes.
const RESERVE_BYTES: i64 = 64 * 1024;
/// Largest file of the spool that is read as a whole, in bytes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// An order with the moment it was accepted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Accepted {
    /// As it came.
    pub order: Order,
    /// Milliseconds since 1970 UTC.
    pub wall_ms: i64,
    /// Milliseconds of the monotonic clock of that boot.
    pub monotonic_ms: u64,
    /// Boot in which it was accepted.
    pub boot_id: String,
    /// Whether it was going to be started at once. Then nobody can say after a loss of power whether it was, and its
    /// start need not be made durable by itself.
    #[serde(default)]
    pub at_once: bool,
    /// Size of the whole spool in bytes: output beyond it is left out. None in what an older agent accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_bytes_max: Option<u64>,
}

impl Accepted {
    /// Reads the two texts of the order; its signature was verified before it came into the spool.
    ///
    /// # Errors
    /// They are damaged ([`io::ErrorKind::InvalidData`]).
    pub fn open(&self) -> io::Result<(Statement, Entry)> {
        self.order.open(|_, _| true).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Milliseconds since it was accepted; the wall clock bridges a reboot.
    #[must_use]
    pub fn elapsed_ms(&self, boot_id: &str, now: Now) -> u64 {
        if boot_id == self.boot_id {
            now.monotonic_ms.saturating_sub(self.monotonic_ms)
        } else {
            u64::try_from(now.wall_ms - self.wall_ms).unwrap_or(0)
        }
    }
}

/// Who started an execution.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Started {
    /// Boot in which it started.
    pub boot_id: String,
    /// Folder of the cgroup that holds its processes.
    pub cgroup: Option<PathBuf>,
    /// Session of the supervisor.
    #[serde(default)]
    pub session: Option<Session>,
}

/// Why an execution is to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelNote {
    /// For people.
    pub reason: String,
    /// Whether the time ran out.
    pub timed_out: bool,
}

/// What a folder says about its execution.
#[derive(Debug)]
pub enum Standing {
    /// No side effect has happened: it may be started.
    Waiting,
    /// Its supervisor lives.
    Running,
    /// It is over.
    Finished(Box<Finished>),
    /// It was started, and nobody can say how it ended.
    Lost(Started),
}

/// All folders.
#[derive(Debug, Clone)]
pub struct Spool {
    root: PathBuf,
    spares: Arc<Spares>,
}

/// One folder.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Spool {
    /// The spool of a data directory, made if need be.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let root = data_dir.join("spool");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        Ok(Self { root, spares: Arc::default() })
    }

    /// The folder of an execution.
    #[must_use]
    pub fn folder(&self, key: &Key) -> Folder {
        Folder { path: self.root.join(key.to_string()) }
    }

    /// Every execution in the spool; folders that were never accepted are removed.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn list(&self) -> io::Result<Vec<Key>> {
        Spares::clear(&self.root)?;
        let mut keys = Vec::new();
        for item in fs::read_dir(&self.root)? {
            let item = item?;
            let Some(key) = Key::parse(&item.file_name().to_string_lossy()) else { continue };
            // The order is written last and named at once: without it nobody was told that it is accepted.
            if item.path().join("order.json").exists() {
                keys.push(key);
            } else {
                fs::remove_dir_all(item.path())?;
            }
        }
        keys.sort();
        Ok(keys)
    }

    /// Removes the cgroups of forgotten executions whose services have ended since.
    pub fn remove_cgroups(&self) {
        for item in fs::read_dir(self.root.join(CGROUP_NOTES)).into_iter().flatten().flatten() {
            let Ok(cgroup) = fs::read_to_string(item.path()).map(PathBuf::from) else { continue };
            if fs::remove_dir(&cgroup).is_ok() || !cgroup.is_dir() {
                let _ = fs::remove_file(item.path());
            }
        }
    }

    /// Puts an order into the spool; when this returns, it is durable.
    ///
    /// # Errors
    /// Whatever the file system says, a full disk above all; nothing is left behind then.
    pub fn accept(&self, key: &Key, accepted: &Accepted) -> io::Result<Folder> {
        let folder = self.folder(key);
        let written = self
            .fill_folder(&folder.path, accepted)
            .and_then(|order| durable::sync_together(&order, [&folder.path, &self.root]));
        if let Err(error) = written {
            // A folder that was there already may be that of a running hook.
            if error.kind() != io::ErrorKind::AlreadyExists {
                let _ = fs::remove_dir_all(&folder.path);
            }
            return Err(error);
        }
        Ok(folder)
    }

    fn fill_folder(&self, folder: &Path, accepted: &Accepted) -> io::Result<File> {
        let Some(spare) = self.spares.take() else { return write_folder(folder, accepted) };
        spare::give(&spare, folder, canonical(accepted).as_bytes()).or_else(|_| {
            let _ = fs::remove_dir_all(&spare);
            write_folder(folder, accepted)
        })
    }

    /// Forgets an execution that is over. What is given goes to [`Spool::recycle`], which takes its time.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn forget(&self, folder: &Folder) -> io::Result<Option<PathBuf>> {
        folder.leave_cgroup()?;
        let spare = self.spares.rename(&self.root, &folder.path);
        if spare.is_none() {
            folder.remove()?;
        }
        Ok(spare)
    }

    /// Empties the folder of a forgotten execution and keeps it for another one.
    pub fn recycle(&self, spare: PathBuf) {
        self.spares.keep(spare);
    }
}

/// Makes the folder with everything that is going to be written in it: later no name but one has to become durable.
fn write_folder(folder: &Path, accepted: &Accepted) -> io::Result<File> {
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    durable::room()?;
    let create = |name: &str| OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name));
    posix_fallocate(create("reserve")?, 0, RESERVE_BYTES)?;
    for name in ["started", "lock", "log", STATUS_NEW] {
        create(name)?;
    }
    let mut order = create("order.new")?;
    order.write_all(canonical(accepted).as_bytes())?;
    fs::rename(folder.join("order.new"), folder.join("order.json"))?;
    Ok(order)
}

impl Folder {
    /// The folder at this path.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key that its name gives.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        Key::parse(&self.path.file_name()?.to_string_lossy())
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// An artifact in the cache of the data directory: as it came, or the stream that was put together here.
    #[must_use]
    pub fn artifact(&self, digest: &drover_shared::Digest) -> PathBuf {
        let data_dir = self.path.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        let whole = data_dir.join("artifacts").join(digest.to_string());
        let stream = whole.with_extension("tar");
        if !whole.is_file() && stream.is_file() { stream } else { whole }
    }

    /// The order.
    ///
    /// # Errors
    /// The file is missing, or damaged ([`io::ErrorKind::InvalidData`]).
    pub fn accepted(&self) -> io::Result<Accepted> {
        self.read("order.json")?.ok_or_else(|| io::Error::other("the spool folder has no order"))
    }

    /// The outcomes of the fetch steps so far, with their indices.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn fetched(&self) -> io::Result<Vec<(usize, StepOutcome)>> {
        Ok(self.read("fetched.json")?.unwrap_or_default())
    }

    /// Keeps the outcomes of the fetch steps.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write_fetched(&self, outcomes: &[(usize, StepOutcome)]) -> io::Result<()> {
        durable::write_atomic(&self.path.join("fetched.json"), canonical(&outcomes).as_bytes(), 0o600)
    }

    /// Who started it; none when no side effect can have happened.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn started(&self) -> io::Result<Option<Started>> {
        let text = fs::read(self.path.join("started")).or_else(missing_is_empty)?;
        if text.is_empty() {
            return Ok(None);
        }
        // A torn marker still says that the supervisor was about to start.
        Ok(Some(serde_json::from_slice(&text).unwrap_or_default()))
    }

    /// Says that side effects may happen from now on: durably, unless the order says it already.
    ///
    /// # Errors
    /// Whatever the file system says; it says nothing then.
    pub fn write_started(&self, started: &Started, durably: bool) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(self.path.join("started"))?;
        let written =
            file.write_all(canonical(started).as_bytes()).and_then(|()| if durably { file.sync_all() } else { Ok(()) });
        if written.is_err() {
            // Half a mark would say that a hook may have run.
            let _ = file.set_len(0);
        }
        written
    }

    /// Why the execution is to end, if it is.
    #[must_use]
    pub fn cancel(&self) -> Option<CancelNote> {
        self.read("cancel").ok().flatten()
    }

    /// Asks the supervisor to end the execution.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write_cancel(&self, note: &CancelNote) -> io::Result<()> {
        let write = || durable::write_atomic(&self.path.join("cancel"), canonical(note).as_bytes(), 0o600);
        write().or_else(|_| {
            let _ = fs::remove_file(self.path.join("reserve"));
            write()
        })
    }

    /// How it ended, if it is over.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn status(&self) -> io::Result<Option<Finished>> {
        self.read("status.json")
    }

    /// Says, durably, how it ended.
    ///
    /// # Errors
    /// Whatever the file system says, even after the reserve was freed.
    pub fn write_status(&self, finished: &Finished) -> io::Result<()> {
        self.draft_status(finished)?;
        self.name_status()
    }

    /// Makes the text of the outcome durable, which has no name yet.
    ///
    /// # Errors
    /// As [`Folder::write_status`].
    pub fn draft_status(&self, finished: &Finished) -> io::Result<()> {
        let text = canonical(finished);
        let new = self.path.join(STATUS_NEW);
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        if write().is_err() {
            let _ = fs::remove_file(self.path.join("reserve"));
            write()?;
        }
        Ok(())
    }

    /// Gives the outcome its name. The text is durable, so the name need not be: see [`Folder::standing`].
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn name_status(&self) -> io::Result<()> {
        fs::rename(self.path.join(STATUS_NEW), self.path.join("status.json"))
    }

    /// Takes the supervisor's lock; none when another supervisor holds it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn lock(&self) -> io::Result<Option<Flock<File>>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join("lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Whether a supervisor lives.
    ///
    /// # Errors
    /// The lock cannot be looked at, which says nothing about the supervisor.
    pub fn supervised(&self) -> io::Result<bool> {
        Ok(self.lock()?.is_none())
    }

    /// Process id that the holder of the lock wrote down.
    #[must_use]
    pub fn supervisor(&self) -> Option<i32> {
        fs::read_to_string(self.path.join("lock")).ok()?.trim().parse().ok()
    }

    /// What the folder says.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn standing(&self) -> io::Result<Standing> {
        if self.supervised()? {
            return Ok(Standing::Running);
        }
        match self.status() {
            Ok(Some(finished)) => return Ok(Standing::Finished(Box::new(finished))),
            // Damaged, it says as much as none.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            Ok(None) | Err(_) => {}
        }
        // A loss of power may have taken the name of a status, not its text.
        if let Ok(Some(finished)) = self.read::<Finished>(STATUS_NEW) {
            fs::rename(self.path.join(STATUS_NEW), self.path.join("status.json"))?;
            return Ok(Standing::Finished(Box::new(finished)));
        }
        if planted::has(Bug::LostIsTriedAgain) {
            File::create(self.path.join("started"))?;
        }
        if let Some(started) = self.started()?.filter(|_| !planted::has(Bug::LostIsUnbegun)) {
            return Ok(Standing::Lost(started));
        }
        let accepted = self.accepted()?;
        if accepted.at_once && accepted.boot_id != boot_id() {
            return Ok(Standing::Lost(Started { boot_id: accepted.boot_id, ..Started::default() }));
        }
        Ok(Standing::Waiting)
    }

    /// Forgets the execution.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn remove(&self) -> io::Result<()> {
        self.leave_cgroup()?;
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn leave_cgroup(&self) -> io::Result<()> {
        if let Ok(Some(Started { cgroup: Some(cgroup), .. })) = self.started()
            && fs::remove_dir(&cgroup).is_err()
            && cgroup.is_dir()
        {
            // A service that a hook started lives there: a note reminds the agent to look again at its next start.
            self.note_cgroup(&cgroup)?;
        }
        Ok(())
    }

    fn note_cgroup(&self, cgroup: &Path) -> io::Result<()> {
        let Some((spool, name)) = self.path.parent().zip(self.path.file_name()) else { return Ok(()) };
        let notes = spool.join(CGROUP_NOTES);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&notes)?;
        fs::write(notes.join(name), cgroup.as_os_str().as_encoded_bytes())
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let file = match File::open(self.path.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let text = format!("{name}: {error}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }
}

fn missing_is_empty(error: io::Error) -> io::Result<Vec<u8>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(Vec::new()) } else { Err(error) }
}
