//! The one thread that writes logs: it drains what is queued, appends it to the files, makes each file durable once, and
//! only then lets readers see it and answers.
//!
//! Invariant: an answer is sent, and a length published, only after `fdatasync` of the records that it covers. An end
//! mark alone does not wait for the disk: the database has the outcome, and writes the mark again where a loss of power
//! took it. A batch that fails is cut off its file again, so that a log never holds half of it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use drover_kernel::at_once;
use drover_shared::planted::{self, Bug};
use drover_shared::record::whole_records_length;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::chunk::{self, FLAG_END, FLAG_ZSTD, Header};
use super::error::AppendError;
use super::file::{Loaded, LogFile, State};

/// Bytes that are written before they are made durable; the last chunk may go beyond.
pub(super) const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
const BATCH_COMMANDS_MAX: usize = 1024;
/// Files are made durable by this many threads when a batch touches many: the file system merges their commits.
const SYNC_THREADS: usize = 4;
const KNOWN_FOLDERS_MAX: usize = 1024;

/// What has been stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Durable length of the source in record bytes.
    pub durable: u64,
    /// Durable length of the task's text in bytes.
    pub text_length: u64,
}

pub(super) type Outcome = Result<Appended, AppendError>;

pub(super) enum Action {
    /// Records of a source; no offset means at its end.
    Append { source: u32, offset: Option<u64>, body: Body },
    /// The end mark.
    Finish { state: Arc<str> },
}

/// A body that is known to be whole records.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) flags: u16,
    pub(super) raw_length: u32,
    pub(super) text_length: u32,
    pub(super) stored: Bytes,
    /// Kept when somebody is watching.
    pub(super) raw: Option<Bytes>,
}

pub(super) struct Command {
    pub(super) log: Arc<LogFile>,
    pub(super) action: Action,
    pub(super) reply: oneshot::Sender<Outcome>,
    /// Room in the queue, given back when this is written.
    pub(super) room: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) struct Writer {
    full: Arc<AtomicBool>,
    /// Folders whose entry in their parent is durable.
    known_folders: HashSet<PathBuf>,
}

/// The commands of one batch for one log, and what they come to.
struct Group {
    log: Arc<LogFile>,
    /// State as it will be, built on a copy: the real one changes when everything is durable.
    draft: Draft,
    buffer: Vec<u8>,
    chunks: Vec<(u64, Header, Option<Bytes>)>,
    replies: Vec<(oneshot::Sender<Outcome>, Outcome)>,
    failure: Option<AppendError>,
    created: bool,
}

struct Draft {
    start: u64,
    length: u64,
    text_length: u64,
    end: Option<Arc<str>>,
    durable: HashMap<u32, u64>,
}

impl Writer {
    pub(super) fn new(full: Arc<AtomicBool>) -> Self {
        Self { full, known_folders: HashSet::new() }
    }

    /// Works until every sender is gone and the queue is empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.blocking_recv() {
            self.commit(batch(first, &mut queue));
        }
    }

    /// As [`Writer::run`], on a thread that does everything at once.
    pub(super) async fn run_at_once(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.recv().await {
            at_once::disk_has_time().await;
            self.commit(batch(first, &mut queue));
        }
    }

    pub(super) fn commit(&mut self, batch: Vec<Command>) {
        let mut groups: Vec<Group> = Vec::new();
        let mut index: HashMap<u64, usize> = HashMap::new();
        let mut rooms = Vec::with_capacity(batch.len());
        for command in batch {
            let place = *index.entry(command.log.task_id).or_insert_with(|| {
                groups.push(Group::new(Arc::clone(&command.log)));
                groups.len() - 1
            });
            let group = &mut groups[place];
            let outcome = group.apply(command.action);
            group.replies.push((command.reply, outcome));
            rooms.push(command.room);
        }
        for group in &mut groups {
            group.write();
        }
        self.make_durable(&mut groups);
        for group in groups {
            if group.failure == Some(AppendError::Full) {
                self.full.store(true, Ordering::Relaxed);
            } else if group.failure.is_none() && !group.chunks.is_empty() {
                self.full.store(false, Ordering::Relaxed);
            }
            group.publish();
        }
    }

    fn make_durable(&mut self, groups: &mut [Group]) {
        let mut written: Vec<&mut Group> =
            groups.iter_mut().filter(|group| group.failure.is_none() && group.has_records()).collect();
        let share = written.len().div_ceil(SYNC_THREADS).max(1);
        if share == 1 {
            written.iter_mut().for_each(|group| group.sync());
        } else {
            std::thread::scope(|scope| {
                for part in written.chunks_mut(share) {
                    scope.spawn(|| part.iter_mut().for_each(|group| group.sync()));
                }
            });
        }
        let mut folders: HashMap<PathBuf, io::Result<()>> = HashMap::new();
        for group in written {
            if !group.created || group.failure.is_some() {
                continue;
            }
            let folder = group.log.folder();
            let result = folders.entry(folder.to_owned()).or_insert_with(|| self.sync_folder(folder));
            if let Err(error) = result {
                group.fail(&io::Error::new(error.kind(), error.to_string()));
            }
        }
    }

    /// Makes the entries of a folder durable, and the folder's own entry when that is not known to be.
    fn sync_folder(&mut self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()?;
        if !self.known_folders.contains(folder) {
            if let Some(parent) = folder.parent() {
                File::open(parent)?.sync_all()?;
            }
            if self.known_folders.len() >= KNOWN_FOLDERS_MAX {
                self.known_folders.clear();
            }
            self.known_folders.insert(folder.to_owned());
        }
        Ok(())
    }
}

/// What is queued by now, as much of it as is written together.
fn batch(first: Command, queue: &mut mpsc::Receiver<Command>) -> Vec<Command> {
    let mut bytes = first.action.bytes();
    let mut batch = vec![first];
    while bytes < BATCH_BYTES_MAX && batch.len() < BATCH_COMMANDS_MAX {
        let Ok(next) = queue.try_recv() else { break };
        bytes += next.action.bytes();
        batch.push(next);
    }
    batch
}

impl Action {
    fn bytes(&self) -> usize {
        match self {
            Self::Append { body, .. } => body.stored.len() + chunk::HEADER_BYTES,
            Self::Finish { .. } => chunk::HEADER_BYTES,
        }
    }
}

impl Group {
    fn new(log: Arc<LogFile>) -> Self {
        let published = log.state().published.clone();
        let draft = Draft {
            start: published.length,
            length: published.length,
            text_length: published.text_length,
            end: published.end,
            durable: HashMap::new(),
        };
        let mut group = Self {
            log,
            draft,
            buffer: Vec::new(),
            chunks: Vec::new(),
            replies: Vec::new(),
            failure: None,
            created: false,
        };
        if group.draft.length == 0 {
            group.buffer.extend_from_slice(&chunk::file_head(group.log.task_id));
            group.draft.length = chunk::FILE_HEAD_BYTES;
        }
        group
    }

    fn durable(&self, source: u32) -> u64 {
        let stored = || self.log.state().durable.get(&source).copied().unwrap_or(0);
        self.draft.durable.get(&source).copied().unwrap_or_else(stored)
    }

    /// Puts what the command asks for into the buffer and says what to answer once that is durable.
    fn apply(&mut self, action: Action) -> Result<Appended, AppendError> {
        match action {
            Action::Append { source, offset, body } => self.append(source, offset, body),
            Action::Finish { state } => {
                if self.draft.end.as_ref() != Some(&state) {
                    self.end(&state);
                }
                Ok(Appended { durable: self.durable(0), text_length: self.draft.text_length })
            }
        }
    }

    fn append(&mut self, source: u32, offset: Option<u64>, mut body: Body) -> Result<Appended, AppendError> {
        let durable = self.durable(source);
        let offset = offset.unwrap_or(durable);
        if offset > durable {
            return Err(AppendError::Gap { durable });
        }
        let end = offset
            .checked_add(u64::from(body.raw_length))
            .ok_or(AppendError::Malformed("its offset is beyond what a log can hold"))?;
        if end > durable {
            if offset < durable && !planted::has(Bug::OutputDoubled) {
                body = body.without(durable - offset)?;
            }
            let header = Header {
                flags: body.flags,
                source,
                offset: durable,
                raw_length: body.raw_length,
                stored_length: u32::try_from(body.stored.len()).unwrap_or(u32::MAX),
                text_offset: self.draft.text_length,
                text_length: body.text_length,
            };
            self.push(header, &body.stored, body.raw);
            self.draft.durable.insert(source, end);
            self.draft.end = None;
        }
        Ok(Appended { durable: self.durable(source), text_length: self.draft.text_length })
    }

    fn end(&mut self, state: &Arc<str>) {
        let length = u32::try_from(state.len()).unwrap_or(u32::MAX);
        let header = Header {
            flags: FLAG_END,
            source: 0,
            offset: self.durable(0),
            raw_length: length,
            stored_length: length,
            text_offset: self.draft.text_length,
            text_length: 0,
        };
        let body = Bytes::copy_from_slice(state.as_bytes());
        self.push(header, &body, Some(body.clone()));
        self.draft.end = Some(Arc::clone(state));
    }

    fn push(&mut self, header: Header, stored: &[u8], raw: Option<Bytes>) {
        header.encode(stored, &mut self.buffer);
        self.chunks.push((self.draft.length, header, raw));
        self.draft.length += header.chunk_length();
        self.draft.text_length += u64::from(header.text_length);
    }

    fn write(&mut self) {
        if self.chunks.is_empty() {
            self.buffer.clear();
            return;
        }
        let written = self.log.create().and_then(|(file, created)| {
            at_once::write_all_at(file, &self.buffer, self.draft.start)?;
            Ok(created)
        });
        match written {
            Ok(created) => self.created = created || self.draft.start == 0,
            Err(error) => self.fail(&error),
        }
    }

    /// Whether anything was written that nobody else knows.
    fn has_records(&self) -> bool {
        self.created || self.chunks.iter().any(|(_, header, _)| !header.is_end())
    }

    fn sync(&mut self) {
        if let Err(error) = self.log.create().and_then(|(file, _)| file.sync_data()) {
            self.fail(&error);
        }
    }

    /// Takes the batch back: what was written of it is cut off, and its commands are answered with the error.
    fn fail(&mut self, error: &io::Error) {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let full = matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge);
        tracing::error!(task_id = self.log.task_id, %error, "cannot write a log");
        self.failure = Some(if full { AppendError::Full } else { AppendError::Storage(error.to_string()) });
        if at_once::is_halted() {
            return;
        }
        // When this fails too, the rest is overwritten by the next batch or cut off when the log is opened again.
        if let Ok((file, _)) = self.log.create()
            && let Err(error) = file.set_len(self.draft.start)
        {
            tracing::error!(task_id = self.log.task_id, %error, "cannot cut a failed write off a log");
        }
    }

    fn publish(self) {
        if let Some(failure) = self.failure {
            drop(self.log);
            for (reply, outcome) in self.replies {
                let _ = reply.send(outcome.and(Err(failure.clone())));
            }
            return;
        }
        if !self.chunks.is_empty() {
            let published = {
                let mut state = self.log.state();
                self.record(&mut state);
                state.published.clone()
            };
            let loaded = self.chunks.into_iter().map(|(at, header, raw)| raw.map(|raw| Loaded { at, header, raw }));
            // A chunk without its bytes would leave a hole: only those after the last such one are kept.
            let mut recent: Vec<Loaded> = Vec::new();
            for chunk in loaded {
                match chunk {
                    Some(chunk) => recent.push(chunk),
                    None => recent.clear(),
                }
            }
            self.log.publish(published, recent);
        }
        // Whoever hears of it may look whether anybody has the log: the writer has it no more.
        drop(self.log);
        for (reply, outcome) in self.replies {
            let _ = reply.send(outcome);
        }
    }

    fn record(&self, state: &mut State) {
        for (at, header, raw) in &self.chunks {
            let mark = raw.as_ref().filter(|_| header.is_end());
            state.add(*at, header, mark.map(|state| Arc::from(String::from_utf8_lossy(state))));
        }
    }
}

impl Body {
    /// The records after the first `skip` bytes, which are stored already.
    fn without(&self, skip: u64) -> Result<Self, AppendError> {
        let raw = match &self.raw {
            Some(raw) => raw.clone(),
            None => chunk::expand(self.flags, self.raw_length, self.stored.clone()).map_err(AppendError::Malformed)?,
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(raw.len());
        if whole_records_length(&raw[..skip]) != Ok(skip) {
            return Err(AppendError::Malformed("its records do not join those that are stored"));
        }
        let rest = raw.slice(skip..);
        let compressed = if self.flags & FLAG_ZSTD != 0 { zstd::bulk::compress(&rest, 1).ok() } else { None };
        let (flags, stored) = match compressed {
            Some(smaller) if smaller.len() < rest.len() => (FLAG_ZSTD, smaller.into()),
            _ => (0, rest.clone()),
        };
        Ok(Self {
            flags,
            raw_length: u32::try_from(rest.len()).unwrap_or(u32::MAX),
            text_length: chunk::text_length(&rest).map_err(AppendError::Malformed)?,
            stored,
            raw: self.raw.is_some().then_some(rest),
        })
    }
}
