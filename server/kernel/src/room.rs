//! Room on the disk of the data directory: whether the server may take in something new.
//!
//! Invariant: what is said is at most [`FRESH`] old and was tried, not computed: a file was written and made durable. So
//! a disk that is full, read-only or gone is noticed, and one that is well again as well. While requests come steadily
//! none of them waits for a trial: the next one begins before the last answer is too old.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::{Error, Result};

/// How long an answer holds: probes and requests may come as often as they like.
const FRESH: Duration = Duration::from_secs(1);

/// Age of an answer from which on a new trial is begun beside it.
const RENEWED: Duration = Duration::from_millis(500);

/// Time for one trial; a disk that takes longer does not work.
const TRIAL_MAX: Duration = Duration::from_secs(5);

const PROBE: &str = ".room-probe";
const PROBE_BYTES: usize = 4096;

/// Space that the server keeps free unless the operator says otherwise, in bytes.
pub const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// The disk of the data directory.
#[derive(Debug)]
pub struct Room {
    folder: PathBuf,
    reserve_bytes: u64,
    last: Arc<Mutex<Option<Said>>>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    answer: Result<(), String>,
    /// A trial is under way that will take its place.
    renewing: bool,
}

impl Room {
    /// Watches the disk of `folder`, of which `reserve_bytes` are to stay free.
    #[must_use]
    pub fn new(folder: &Path, reserve_bytes: u64) -> Self {
        Self { folder: folder.to_owned(), reserve_bytes, last: Arc::default() }
    }

    /// Whether there is room.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn check(&self) -> Result<(), String> {
        // Held during a trial that is waited for, so that there is one at a time.
        let mut last = self.last.lock().await;
        if let Some(said) = last.as_mut().filter(|said| said.at.elapsed() < FRESH) {
            if said.at.elapsed() >= RENEWED && !said.renewing {
                said.renewing = true;
                let (last, trial) = (self.last.clone(), trial(self.folder.clone(), self.reserve_bytes));
                tokio::spawn(async move {
                    let (at, answer) = (Instant::now(), trial.await);
                    let mut last = last.lock().await;
                    if last.as_ref().is_none_or(|said| said.at <= at) {
                        *last = Some(Said { at, answer, renewing: false });
                    }
                });
            }
            return said.answer.clone();
        }
        let at = Instant::now();
        let answer = trial(self.folder.clone(), self.reserve_bytes).await;
        *last = Some(Said { at, answer: answer.clone(), renewing: false });
        answer
    }

    /// Refuses what would need room.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason.
    pub async fn require(&self) -> Result<()> {
        self.check().await.map_err(|why| Error::Unavailable(format!("nothing new is taken in: {why}")))
    }
}

impl Room {
    /// Refuses what so many bytes are missing for. Counts, and tries nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason.
    pub fn require_bytes(&self, bytes: u64) -> Result<()> {
        let gone = |error: nix::Error| Error::Unavailable(format!("the data directory cannot be looked at: {error}"));
        let disk = nix::sys::statvfs::statvfs(&self.folder).map_err(gone)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        let usable = free.saturating_sub(self.reserve_bytes);
        if bytes <= usable {
            return Ok(());
        }
        let (bytes, usable) = (shown(bytes), shown(usable));
        Err(Error::Unavailable(format!(
            "{bytes} are needed on the disk of the data directory, of which {usable} are free"
        )))
    }
}

async fn trial(folder: PathBuf, reserve_bytes: u64) -> Result<(), String> {
    let trial = crate::at_once::blocking(move || attempt(&folder, reserve_bytes));
    match tokio::time::timeout(TRIAL_MAX, trial).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Err(format!("the data directory cannot be tried: {error}")),
        Err(_) => Err(format!("the disk of the data directory takes longer than {} s", TRIAL_MAX.as_secs())),
    }
}

fn attempt(folder: &Path, reserve_bytes: u64) -> Result<(), String> {
    let broken = |error: io::Error| format!("the data directory cannot be written: {error}");
    let disk = nix::sys::statvfs::statvfs(folder).map_err(|error| broken(error.into()))?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    if free < reserve_bytes {
        return Err(format!(
            "the disk of the data directory has {} left, of which {} are kept in reserve",
            shown(free),
            shown(reserve_bytes)
        ));
    }
    let file = folder.join(PROBE);
    let written = fs::File::create(&file).and_then(|mut probe| {
        probe.write_all(&[0; PROBE_BYTES])?;
        probe.sync_all()
    });
    // What is left of a failed trial takes no more room than the trial.
    let removed = match fs::remove_file(&file) {
        // Another trial at the same time, of a slow disk, was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    written.and(removed).map_err(broken)
}

fn shown(bytes: u64) -> String {
    if bytes < 1024 * 1024 { format!("{} KiB", bytes / 1024) } else { format!("{} MiB", bytes / (1024 * 1024)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_is_gone_is_noticed_and_its_return_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let (here, away) = (folder.path().join("data"), folder.path().join("away"));
        fs::create_dir(&here).unwrap();
        let room = Room::new(&here, 0);
        assert_eq!(room.check().await, Ok(()));
        fs::rename(&here, &away).unwrap();
        assert_eq!(room.check().await, Ok(()), "the answer holds for a while");
        tokio::time::advance(RENEWED).await;
        assert_eq!(room.check().await, Ok(()), "the last answer is given while a new one is looked for");
        tokio::time::advance(2 * FRESH).await;
        assert!(room.check().await.unwrap_err().contains("cannot be written"));
        fs::rename(&away, &here).unwrap();
        tokio::time::advance(2 * FRESH).await;
        assert_eq!(room.check().await, Ok(()));
        assert_eq!(fs::read_dir(&here).unwrap().count(), 0, "nothing stays behind");
    }

    #[test]
    fn trials_at_the_same_time_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let trials = (0..4).map(|_| scope.spawn(|| (0..200).try_for_each(|_| attempt(folder.path(), 0))));
            let trials: Vec<_> = trials.collect();
            for trial in trials {
                assert_eq!(trial.join().unwrap(), Ok(()));
            }
        });
    }

    #[tokio::test]
    async fn a_reserve_that_is_touched_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let why = Room::new(folder.path(), u64::MAX).check().await.unwrap_err();
        assert!(why.contains("MiB left, of which"), "{why}");
    }
}
