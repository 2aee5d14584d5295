//! The artifact cache: archives by digest, downloaded once for all executions that need them.
//!
//! A few downloads are under way at a time, the others wait in line. What takes time with a long file (reading again
//! what an earlier agent left, making a complete one durable) is a [`Job`] for another thread. Invariant: a file
//! without the ending `.part` is complete and had the right digest when it got its name.
//!
//! An artifact that comes with an index is put together where that moves less: the index comes first, then [`Plan`] looks
//! what is here, then the frames come that are missing. Whatever goes wrong on that way, the whole artifact is fetched.
//!
//! | file | content |
//! |---|---|
//! | `DIGEST` | an artifact |
//! | `DIGEST.index` | its index |
//! | `DIGEST.tar` | the stream that it unpacks to, put together here |
//! | `….part` | what is not complete |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use drover_shared::Digest;
use drover_shared::message::Part;
use drover_shared::order::IndexOf;
use sha2::{Digest as _, Sha256};

use super::assembly::{Assembly, Plan};
use crate::release::{Layout, kept};
use crate::spool::Key;
use crate::{describe, durable};

/// Artifacts kept that no execution needs.
const UNUSED_MAX: usize = 10;
/// Downloads under way at a time; a server allows one agent at least this many.
const DOWNLOADS_MAX: usize = 8;

/// All artifacts.
pub(super) struct Cache {
    folder: PathBuf,
    downloads: BTreeMap<Digest, Download>,
    /// Downloads that wait for their turn, the first come first.
    line: VecDeque<Digest>,
    /// Counts downloads, so that a late answer to one that was given up is told from its successor's.
    started: u64,
}

struct Download {
    number: u64,
    size: u64,
    /// How less than all of it may do.
    shortcut: Option<Shortcut>,
    waiting: BTreeSet<Key>,
    phase: Phase,
}

/// What an artifact may be put together from.
#[derive(Debug, Clone)]
pub(super) struct Shortcut {
    /// Index of the artifact.
    pub(super) index: IndexOf,
    /// Where releases are kept.
    pub(super) layout: Layout,
}

enum Phase {
    /// In line.
    Queued,
    /// What is there already is being read; the flag ends that.
    Opening(Arc<AtomicBool>),
    Receiving(Coming),
    /// All of it came and is being made durable.
    Closing,
}

/// What is being received.
#[derive(Debug)]
pub(super) enum Coming {
    /// The artifact.
    Whole(Content),
    /// Its index.
    Index(Content),
    /// Frames of it.
    Frames(Box<Assembly>),
}

/// A file with the digest of what is in it.
#[derive(Debug)]
pub(super) struct Content {
    file: File,
    hash: Sha256,
    written: u64,
}

/// Work on one download that another thread has to do.
pub(super) struct Job {
    digest: Digest,
    number: u64,
    task: Task,
}

enum Task {
    Open { file: File, given_up: Arc<AtomicBool> },
    Close { file: File, part: PathBuf },
    OpenIndex { file: File },
    Plan { plan: Box<Plan>, given_up: Arc<AtomicBool> },
    Finish { assembly: Box<Assembly>, name: PathBuf },
}

/// How a job ended.
#[derive(Debug)]
enum Ended {
    Receiving(Coming),
    Complete(Option<String>),
}

/// What came of a [`Job`].
#[derive(Debug)]
pub(super) struct Done {
    digest: Digest,
    number: u64,
    /// Whether it was on the way of a shortcut.
    is_shortcut: bool,
    outcome: io::Result<Ended>,
}

/// What asking for an artifact gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It is there.
    Here,
    /// It comes.
    UnderWay,
    /// It comes when others have come.
    InLine,
}

/// What a piece of an artifact, or a job that is done, gives.
#[derive(Debug)]
pub(super) enum Progress {
    /// Ask the server for the rest of this part, from this offset, on behalf of this execution.
    Ask(Part, u64, Key),
    /// Written so far.
    Written(u64),
    /// All of it is there and right.
    Whole,
    /// Complete, verified and durable: who waited, and what had to be moved.
    Complete(BTreeSet<Key>, Option<String>),
    /// All of it is fetched in place of what is missing, and why; [`Cache::next_job`] follows.
    Again(String),
    /// Failed for these, and why.
    Failed(BTreeSet<Key>, String),
}

/// What it means that an execution no longer waits.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Downloads that nobody waits for any more.
    pub(super) idle: Vec<Digest>,
    /// Downloads that go on, with one that still waits.
    pub(super) others: Vec<(Digest, Key)>,
}

impl Job {
    /// Does the work.
    pub(super) fn run(self) -> Done {
        let is_shortcut = matches!(self.task, Task::Plan { .. } | Task::Finish { .. });
        let outcome = match self.task {
            Task::Open { file, given_up } => {
                read_again(file, &given_up).map(|content| Ended::Receiving(Coming::Whole(content)))
            }
            Task::Close { file, part } => place(&file, &part).map(|()| Ended::Complete(None)),
            Task::OpenIndex { file } => {
                Ok(Ended::Receiving(Coming::Index(Content { file, hash: Sha256::new(), written: 0 })))
            }
            Task::Plan { plan, given_up } => {
                plan.carry_out(&given_up).map(|assembly| Ended::Receiving(Coming::Frames(Box::new(assembly))))
            }
            Task::Finish { assembly, name } => {
                let moved = assembly.total();
                assembly.finish(&name).map(|()| Ended::Complete(Some(moved.to_string())))
            }
        };
        Done { digest: self.digest, number: self.number, is_shortcut, outcome }
    }
}

fn read_again(mut file: File, given_up: &AtomicBool) -> io::Result<Content> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut written = 0;
    while !given_up.load(Ordering::Relaxed) {
        match file.read(&mut buffer)? {
            0 => return Ok(Content { file, hash, written }),
            length => {
                hash.update(&buffer[..length]);
                written += length as u64;
            }
        }
    }
    Err(io::Error::other("nobody needs it any more"))
}

fn place(file: &File, part: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(part, part.with_extension(""))?;
    part.parent().map_or(Ok(()), durable::sync_folder)
}

impl Cache {
    /// The cache of a data directory.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join("artifacts");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder, downloads: BTreeMap::new(), line: VecDeque::new(), started: 0 })
    }

    /// Makes sure that an artifact is there or comes; `key` waits for it then. [`Cache::next_job`] follows.
    pub(super) fn want(&mut self, digest: Digest, size: u64, shortcut: Option<Shortcut>, key: &Key) -> Wanted {
        let whole = self.folder.join(digest.to_string());
        let whole = Some(whole).filter(|path| fs::metadata(path).is_ok_and(|meta| meta.len() == size));
        if let Some(path) = whole.or_else(|| Some(self.file(digest, "tar")).filter(|path| path.is_file())) {
            // The newest use keeps it longest.
            let _ = File::open(&path).and_then(|file| file.set_modified(now()));
            return Wanted::Here;
        }
        if !self.downloads.contains_key(&digest) {
            self.started += 1;
            let (number, waiting) = (self.started, BTreeSet::new());
            self.downloads.insert(digest, Download { number, size, shortcut, waiting, phase: Phase::Queued });
            self.line.push_back(digest);
        }
        if let Some(download) = self.downloads.get_mut(&digest) {
            download.waiting.insert(key.clone());
        }
        if self.line.contains(&digest) && self.under_way() >= DOWNLOADS_MAX { Wanted::InLine } else { Wanted::UnderWay }
    }

    fn under_way(&self) -> usize {
        self.downloads.len() - self.line.len()
    }

    /// Starts the next download in line if there is room for one: a job, or why it failed for whom.
    pub(super) fn next_job(&mut self) -> Option<Result<Job, (Digest, Progress)>> {
        if self.under_way() >= DOWNLOADS_MAX {
            return None;
        }
        let digest = self.line.pop_front()?;
        Some(self.begin(digest).map_err(|reason| (digest, self.fail(digest, reason))))
    }

    fn begin(&mut self, digest: Digest) -> Result<Job, String> {
        let download = self.downloads.get(&digest).ok_or("nobody needs it any more")?;
        let (size, number) = (download.size, download.number);
        if let Some(task) = self.begin_shortcut(digest) {
            return task.map(|task| Job { digest, number, task });
        }
        let open = || -> io::Result<(File, u64)> {
            let file = open_part(&self.part(digest))?;
            let mut length = file.metadata()?.len();
            if length >= size {
                // Complete but for its name, or something else: cheaper to load again than to tell.
                file.set_len(0)?;
                length = 0;
            }
            Ok((file, length))
        };
        let (file, length) = open().map_err(|error| describe(&error))?;
        self.check_space(size - length)?;
        let given_up = Arc::new(AtomicBool::new(false));
        if let Some(download) = self.downloads.get_mut(&digest) {
            download.phase = Phase::Opening(Arc::clone(&given_up));
        }
        Ok(Job { digest, number, task: Task::Open { file, given_up } })
    }

    /// The first step of a shortcut, where there is one that may do: none where all of it has to come.
    fn begin_shortcut(&mut self, digest: Digest) -> Option<Result<Task, String>> {
        let shortcut = self.downloads.get(&digest)?.shortcut.clone()?;
        // What has begun to come goes on, and without a release there is nothing to take from.
        let has_begun = fs::metadata(self.part(digest)).is_ok_and(|meta| meta.len() > 0);
        if has_begun || !kept::is_any(&shortcut.layout) {
            self.downloads.get_mut(&digest)?.shortcut = None;
            return None;
        }
        let index = self.file(digest, "index");
        if fs::metadata(&index).is_ok_and(|meta| meta.len() == shortcut.index.size_bytes) {
            return self.plan(digest).map(Ok);
        }
        let given_up = Arc::new(AtomicBool::new(false));
        let file = open_part(&self.file(digest, "index.part")).and_then(|file| file.set_len(0).map(|()| file));
        let file = file.map_err(|error| describe(&error));
        self.downloads.get_mut(&digest)?.phase = Phase::Opening(Arc::clone(&given_up));
        Some(file.map(|file| Task::OpenIndex { file }))
    }

    /// Looking what is here, once the index is.
    fn plan(&mut self, digest: Digest) -> Option<Task> {
        let (index, part) = (self.file(digest, "index"), self.file(digest, "tar.part"));
        let download = self.downloads.get_mut(&digest)?;
        let layout = download.shortcut.as_ref()?.layout.clone();
        let given_up = Arc::new(AtomicBool::new(false));
        download.phase = Phase::Opening(Arc::clone(&given_up));
        Some(Task::Plan { plan: Box::new(Plan { index, artifact_bytes: download.size, part, layout }), given_up })
    }

    /// Fetches all of an artifact, since less did not do.
    fn fall_back(&mut self, digest: Digest, reason: String) -> Progress {
        for ending in ["index", "index.part", "tar.part"] {
            let _ = fs::remove_file(self.file(digest, ending));
        }
        if let Some(download) = self.downloads.get_mut(&digest) {
            self.started += 1;
            // Late answers to what was begun are none to what begins now.
            download.number = self.started;
            download.shortcut = None;
            download.phase = Phase::Queued;
            self.line.push_front(digest);
        }
        Progress::Again(reason)
    }

    fn check_space(&self, more: u64) -> Result<(), String> {
        let Ok(stat) = nix::sys::statvfs::statvfs(&self.folder) else { return Ok(()) };
        let promised: u64 = self.downloads.values().map(Download::missing).sum();
        let (needed, free) = (more + promised, stat.blocks_available() * stat.fragment_size());
        if needed <= free {
            return Ok(());
        }
        let folder = self.folder.display();
        Err(format!("the disk is full: {needed} bytes are needed for artifacts in `{folder}`, {free} are free"))
    }

    /// A job is done. None if its download was given up meanwhile.
    pub(super) fn done(&mut self, done: Done) -> Option<(Digest, Progress)> {
        let Done { digest, number, is_shortcut, outcome } = done;
        let download = self.downloads.get_mut(&digest).filter(|download| download.number == number)?;
        let progress = match outcome {
            Ok(Ended::Receiving(coming)) => {
                let (part, offset) = match &coming {
                    Coming::Whole(content) => (Part::Whole, content.written),
                    Coming::Index(content) => (Part::Index, content.written),
                    Coming::Frames(assembly) => (Part::Ranges(assembly.ranges()), 0),
                };
                let is_whole = matches!(&coming, Coming::Frames(assembly) if assembly.total() == 0);
                let asks = download.waiting.first().cloned().map(|key| Progress::Ask(part, offset, key));
                download.phase = Phase::Receiving(coming);
                match asks {
                    Some(_) if is_whole => Progress::Whole,
                    Some(asks) => asks,
                    None => self.fail(digest, "nobody needs it any more".to_owned()),
                }
            }
            Ok(Ended::Complete(moved)) => {
                let line = moved.map(|moved| self.moved(digest, &moved));
                let _ = fs::remove_file(self.file(digest, "index"));
                Progress::Complete(self.remove(digest), line)
            }
            Err(error) if is_shortcut => self.fall_back(digest, describe(&error)),
            Err(error) => self.fail(digest, describe(&error)),
        };
        Some((digest, progress))
    }

    /// Writes a piece. None if nothing of this artifact is expected.
    pub(super) fn write(&mut self, digest: Digest, offset: u64, bytes: &[u8]) -> Option<Progress> {
        let download = self.downloads.get_mut(&digest)?;
        let Phase::Receiving(coming) = &mut download.phase else { return None };
        let (content, size) = match coming {
            Coming::Whole(content) => (content, download.size),
            Coming::Index(content) => (content, download.shortcut.as_ref().map_or(0, |one| one.index.size_bytes)),
            Coming::Frames(assembly) => {
                if offset == assembly.received()
                    && let Err(error) = assembly.accept(bytes)
                {
                    let reason = describe(&error);
                    return Some(self.fall_back(digest, reason));
                }
                let received = assembly.received();
                return Some(if received < assembly.total() { Progress::Written(received) } else { Progress::Whole });
            }
        };
        if offset != content.written {
            return Some(Progress::Written(content.written));
        }
        if offset + bytes.len() as u64 > size {
            return Some(self.is_another(digest, &format!("longer than the {size} bytes that the order says")));
        }
        if let Err(error) = content.file.write_all_at(bytes, offset) {
            return Some(self.fail(digest, describe(&error)));
        }
        content.hash.update(bytes);
        content.written += bytes.len() as u64;
        Some(if content.written < size { Progress::Written(content.written) } else { Progress::Whole })
    }

    /// The server has sent all that it has of a part. None unless that is less than was asked for.
    pub(super) fn ended(&mut self, digest: Digest, end: u64) -> Option<Progress> {
        let download = self.downloads.get(&digest)?;
        let Phase::Receiving(coming) = &download.phase else { return None };
        let (come, wanted) = match coming {
            Coming::Whole(content) => (content.written, download.size),
            Coming::Index(content) => {
                (content.written, download.shortcut.as_ref().map_or(0, |one| one.index.size_bytes))
            }
            Coming::Frames(assembly) => (assembly.received(), assembly.total()),
        };
        let is_less = come == end && come < wanted;
        is_less.then(|| self.is_another(digest, &format!("only {come} bytes long, and not {wanted}")))
    }

    /// The server has something else than the order says.
    fn is_another(&mut self, digest: Digest, how: &str) -> Progress {
        match self.downloads.get(&digest).map(|download| &download.phase) {
            Some(Phase::Receiving(Coming::Index(_) | Coming::Frames(_))) => {
                self.fall_back(digest, format!("what came in place of it is {how}"))
            }
            _ => self.fail(digest, format!("the artifact is {how}")),
        }
    }

    /// All of an artifact came: a job if it is the right one, or why it failed for whom.
    pub(super) fn close(&mut self, digest: Digest) -> Result<Job, Progress> {
        let part = self.part(digest);
        let Some(download) = self.downloads.get_mut(&digest) else {
            return Err(Progress::Complete(BTreeSet::new(), None));
        };
        let number = download.number;
        let Phase::Receiving(coming) = std::mem::replace(&mut download.phase, Phase::Closing) else {
            return Err(self.fail(digest, "the artifact was not expected".to_owned()));
        };
        let content = match coming {
            Coming::Whole(content) => content,
            Coming::Index(content) => return self.close_index(digest, content),
            Coming::Frames(assembly) => {
                let name = self.file(digest, "tar");
                return Ok(Job { digest, number, task: Task::Finish { assembly, name } });
            }
        };
        let found = Digest::from_bytes(content.hash.finalize().into());
        if found != digest {
            return Err(self.fail(digest, format!("the artifact has digest {found}, not {digest}")));
        }
        Ok(Job { digest, number, task: Task::Close { file: content.file, part } })
    }

    /// All of an index came.
    fn close_index(&mut self, digest: Digest, content: Content) -> Result<Job, Progress> {
        let found = Digest::from_bytes(content.hash.finalize().into());
        let wanted = self.downloads.get(&digest).and_then(|one| one.shortcut.as_ref()).map(|one| one.index.digest);
        if wanted != Some(found) {
            return Err(self.fall_back(digest, format!("the index has another digest, {found}")));
        }
        if let Err(error) = fs::rename(self.file(digest, "index.part"), self.file(digest, "index")) {
            return Err(self.fall_back(digest, describe(&error)));
        }
        let number = self.downloads.get(&digest).map_or(0, |download| download.number);
        match self.plan(digest) {
            Some(task) => Ok(Job { digest, number, task }),
            None => Err(self.fail(digest, "nobody needs it any more".to_owned())),
        }
    }

    /// Says how much had to come of how much.
    fn moved(&self, digest: Digest, moved: &str) -> String {
        let Some(download) = self.downloads.get(&digest) else { return String::new() };
        let index = download.shortcut.as_ref().map_or(0, |one| one.index.size_bytes);
        let moved = moved.parse::<u64>().unwrap_or(0) + index;
        format!("moved {} of {}, the rest was here already", shown(moved), shown(download.size))
    }

    /// The server does not send what was asked for.
    pub(super) fn refused(&mut self, digest: Digest, reason: &str) -> Progress {
        let is_part =
            |download: &Download| matches!(download.phase, Phase::Receiving(Coming::Index(_) | Coming::Frames(_)));
        if self.downloads.get(&digest).is_some_and(is_part) {
            return self.fall_back(digest, reason.to_owned());
        }
        self.fail(digest, format!("the server refuses it: {reason}"))
    }

    /// Gives a download up.
    pub(super) fn fail(&mut self, digest: Digest, reason: String) -> Progress {
        for part in [self.part(digest), self.file(digest, "index.part"), self.file(digest, "tar.part")] {
            let _ = fs::remove_file(part);
        }
        Progress::Failed(self.remove(digest), reason)
    }

    fn remove(&mut self, digest: Digest) -> BTreeSet<Key> {
        self.line.retain(|one| *one != digest);
        self.downloads.remove(&digest).map(|download| download.waiting).unwrap_or_default()
    }

    /// An execution no longer waits.
    pub(super) fn leave(&mut self, key: &Key) -> Left {
        let mut left = Left::default();
        for (digest, download) in &mut self.downloads {
            if !download.waiting.remove(key) {
                continue;
            }
            match (download.waiting.first(), &download.phase) {
                (Some(other), _) => left.others.push((*digest, other.clone())),
                // All of it is there: whoever needs it next finds it.
                (None, Phase::Closing) => {}
                (None, Phase::Opening(given_up)) => {
                    given_up.store(true, Ordering::Relaxed);
                    left.idle.push(*digest);
                }
                (None, Phase::Queued | Phase::Receiving(_)) => left.idle.push(*digest),
            }
        }
        for digest in &left.idle {
            self.remove(*digest);
        }
        left
    }

    /// Removes the oldest artifacts that none of `needed` names, beyond the few that are kept.
    pub(super) fn prune(&self, needed: &BTreeSet<Digest>) {
        let mut unused: Vec<(SystemTime, PathBuf)> = Vec::new();
        // What was put together from releases can be so again.
        let mut at_once = Vec::new();
        for item in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = item.file_name().to_string_lossy().into_owned();
            let (stem, ending) = name.split_once('.').unwrap_or((&name, ""));
            let Ok(digest) = stem.parse::<Digest>() else { continue };
            let is_needed = needed.contains(&digest) || self.downloads.contains_key(&digest);
            if !is_needed && !matches!(ending, "" | "part") {
                at_once.push(item.path());
            } else if !is_needed {
                let modified = item.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                unused.push((modified, item.path()));
            }
        }
        unused.sort();
        let surplus = unused.len().saturating_sub(UNUSED_MAX);
        for path in unused.into_iter().take(surplus).map(|(_, path)| path).chain(at_once) {
            let _ = fs::remove_file(path);
        }
    }

    fn file(&self, digest: Digest, ending: &str) -> PathBuf {
        self.folder.join(format!("{digest}.{ending}"))
    }

    fn part(&self, digest: Digest) -> PathBuf {
        self.file(digest, "part")
    }
}

impl Download {
    /// Bytes that are still going to be written.
    fn missing(&self) -> u64 {
        match &self.phase {
            Phase::Receiving(Coming::Whole(content)) => self.size.saturating_sub(content.written),
            Phase::Receiving(Coming::Frames(assembly)) => assembly.missing(),
            // How much it will be is not known before the index is here.
            Phase::Receiving(Coming::Index(_)) => 0,
            Phase::Opening(_) if self.shortcut.is_some() => 0,
            Phase::Opening(_) => self.size,
            Phase::Queued | Phase::Closing => 0,
        }
    }
}

fn open_part(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Bytes for people.
fn shown(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{}.{} kB", bytes / 1_000, bytes % 1_000 / 100),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

fn now() -> SystemTime {
    let wall_ms = u64::try_from(crate::clock::wall_ms()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(wall_ms)
}
