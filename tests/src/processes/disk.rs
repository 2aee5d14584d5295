//! Disks that a story fills up and frees again, below the data directory of a server or of an agent.
//!
//! A small file system of its own is the real thing and needs the right to mount one. Where a test has no such right, the
//! programs are forbidden to make files longer, by a limit of the system that everybody may lower and raise again: then too
//! every write fails that would need room. Invariant: a disk goes with its story, after every process that uses it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{Processes, tree};

/// Size of a disk: more than a server keeps in reserve.
const MEBIBYTES: u32 = 160;

/// What a disk is filled with, in pieces of this size.
const FILLER: &str = "filler";
const PIECE_BYTES: usize = 4096;

/// How a disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// It is a small one, and nothing of it is free.
    Disk,
    /// No file may become longer.
    Limit,
}

/// Where a data directory is.
pub(super) enum Disk {
    Own(PathBuf),
    Limited,
}

impl Shortage {
    /// The real one where this machine lets a test have it, else the other.
    #[must_use]
    pub fn best() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mounted = mount(folder.path()).status.success();
        if mounted {
            unmount(folder.path());
            Self::Disk
        } else {
            Self::Limit
        }
    }
}

fn mount(folder: &Path) -> Output {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={MEBIBYTES}m,mode=700"), "none"]).arg(folder);
    mount.output().expect("mount starts")
}

fn unmount(folder: &Path) {
    // What cannot be unmounted goes with the machine.
    let _ = Command::new("umount").arg("--lazy").arg(folder).output();
}

/// Lets these processes make no file longer than so many bytes, or lets them again.
fn limit(processes: &[i32], bytes: &str) {
    for id in processes {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &id.to_string(), &format!("--fsize={bytes}:")]);
        let output = prlimit.output().expect("prlimit starts");
        // One that has ended needs no limit.
        assert!(output.status.success() || !tree::is_alive(*id), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Disk {
    fn new(folder: &Path, shortage: Shortage) -> Self {
        match shortage {
            Shortage::Limit => Self::Limited,
            Shortage::Disk => {
                fs::create_dir(folder).expect("a folder");
                let output = mount(folder);
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Self::Own(folder.to_owned())
            }
        }
    }

    /// Leaves nothing free, or lets these processes make no file longer than so many bytes.
    fn fill(&self, processes: &[i32], bytes: u32) {
        let Self::Own(folder) = self else { return limit(processes, &bytes.to_string()) };
        let mut filler = File::options().create(true).append(true).open(folder.join(FILLER)).expect("a file");
        let error = loop {
            if let Err(error) = filler.write_all(&[0; PIECE_BYTES]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    fn free(&self, processes: &[i32]) {
        match self {
            Self::Own(folder) => fs::remove_file(folder.join(FILLER)).expect("the filler"),
            Self::Limited => limit(processes, "unlimited"),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Self::Own(folder) = self {
            unmount(folder);
        }
    }
}

impl Processes {
    /// Starts a server on SQLite whose data directory is on a disk that can be filled up.
    ///
    /// # Panics
    /// As [`start`](Self::start), and when there is no such disk.
    pub async fn start_on_disk(shortage: Shortage) -> Self {
        let mut processes = Self::prepare(None);
        let disk = Disk::new(&processes.folder().join("server"), shortage);
        processes.disks.insert(String::new(), disk);
        processes.begin().await
    }

    /// As [`add_agent`](Self::add_agent), for one whose data directory is on a disk that can be filled up.
    ///
    /// # Panics
    /// When there is no such disk.
    pub async fn add_agent_on_disk(&mut self, host: &str, shortage: Shortage) -> i64 {
        let disk = Disk::new(&self.agent_folder(host), shortage);
        self.disks.insert(host.to_owned(), disk);
        self.add_agent(host).await
    }

    /// The disk of the server has no more room.
    ///
    /// # Panics
    /// When it has none of its own.
    pub fn fill_disk(&mut self) {
        let server = [self.server_id().cast_signed()];
        self.disks[""].fill(&server, 1);
    }

    /// What was filled is free again.
    ///
    /// # Panics
    /// When it was not filled.
    pub fn free_disk(&mut self) {
        let server = [self.server_id().cast_signed()];
        self.disks[""].free(&server);
    }

    fn agent_processes(&self, host: &str) -> Vec<i32> {
        let agent = self.agents[host].id().cast_signed();
        tree::supervisors(&self.agent_folder(host)).into_iter().chain([agent]).collect()
    }

    /// The disk of an agent has no more room; with a limit, none for more than `bytes` in a file.
    ///
    /// # Panics
    /// When it has none of its own.
    pub fn fill_agent_disk(&self, host: &str, bytes: u32) {
        self.disks[host].fill(&self.agent_processes(host), bytes);
    }

    /// What was filled is free again.
    ///
    /// # Panics
    /// When it was not filled.
    pub fn free_agent_disk(&self, host: &str) {
        self.disks[host].free(&self.agent_processes(host));
    }
}
