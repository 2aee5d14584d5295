//! The task log store: the output of every execution of a task, in the order in which it came.
//!
//! There is one append-only file for each task, `<folder>/<task id / 1000>/<task id>.log`, so that a task has one total
//! order and needs one `fdatasync`. Its chunks hold the records (see [`drover_shared::record`]) of one source each: an
//! execution, by its ordinal within the task, or the server itself (0). The bytes are those that the agent sent.
//! Invariant: what was answered as durable is never lost, doubled or reordered, and readers see nothing else.

mod chunk;
mod error;
mod file;
mod held;
mod lines;
mod reader;
mod removing;
mod scan;
mod search;
mod text;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use drover_kernel::Error;
use drover_kernel::at_once::{self, blocking};
use drover_shared::limits::DATA_BYTES_MAX;
use drover_shared::record::{Record, Stream};
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use error::{AppendError, OpenError, ReadError};
pub use lines::{Line, Lines};
pub use reader::{Describe, Format, Frame, LogReader};
pub use removing::stored;
pub use scan::{Entry, Scan, Sources};
pub use search::{Bounds, Cursor, Hit, Pattern, Search, Shown};
pub use writer::Appended;

use file::{LogFile, lock};
use writer::{Action, Body, Command, Writer};

/// Bytes that may wait to be written; whoever appends beyond waits.
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
const QUEUE_COMMANDS_MAX: usize = 1024;
/// Longest notice and longest final state, in bytes; the rest is left out.
const NOTICE_BYTES_MAX: usize = 64 * 1024;
const FINAL_STATE_BYTES_MAX: usize = 1024;
/// Logs that are opened at the same time.
const OPENERS: usize = 8;

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Logs kept open although nobody uses them.
    pub idle_open_max: usize,
    /// Free bytes on the disk below which the store calls itself full (see [`LogStore::is_full`]). What is under way is
    /// written as long as there is any room.
    pub reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { idle_open_max: 128, reserve_bytes: 64 * 1024 * 1024 }
    }
}

/// How the files of logs end.
const SUFFIX: &str = "log";

/// The task whose log a file is.
pub(crate) fn task_of(file: &Path) -> Option<u64> {
    let is_log = file.extension().is_some_and(|suffix| suffix == SUFFIX);
    file.file_stem().filter(|_| is_log)?.to_str()?.parse().ok()
}

/// The logs of all tasks of this server.
#[derive(Debug, Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    options: Options,
    full: Arc<AtomicBool>,
    queue: Mutex<Option<mpsc::Sender<Command>>>,
    room: Arc<Semaphore>,
    stopped: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    open: Mutex<Open>,
    openers: [tokio::sync::Mutex<()>; OPENERS],
}

/// Logs that are open: all of them weakly, the newest also by themselves.
#[derive(Debug, Default)]
struct Open {
    logs: HashMap<u64, Weak<LogFile>>,
    idle: VecDeque<Arc<LogFile>>,
}

impl LogStore {
    /// Opens the store in `folder`, which is made if it is missing, and starts the thread that writes.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process has it open, [`OpenError::Storage`] when it cannot be used.
    pub fn open(folder: &Path, options: Options) -> Result<Self, OpenError> {
        let storage = |error: std::io::Error| OpenError::Storage {
            path: folder.display().to_string(),
            reason: error.to_string(),
        };
        let guard = held::hold(folder)?;
        let full = Arc::new(AtomicBool::new(false));
        let writer = Writer::new(Arc::clone(&full));
        let (queue, stopped) = start(writer, guard).map_err(storage)?;
        let shared = Shared {
            folder: folder.to_owned(),
            options,
            full,
            queue: Mutex::new(Some(queue)),
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            stopped: tokio::sync::Mutex::new(Some(stopped)),
            open: Mutex::default(),
            openers: Default::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The log of a task. One that has no output yet is empty; its file is made by the first append.
    ///
    /// # Errors
    /// [`OpenError`] when the file is there and cannot be used.
    pub async fn task(&self, task_id: i64) -> Result<TaskLog, OpenError> {
        let id = u64::try_from(task_id).map_err(|_| OpenError::NoTask(task_id))?;
        let file = match self.shared.opened(id) {
            Some(file) => file,
            None => {
                let place = usize::try_from(id % OPENERS as u64).unwrap_or(0);
                let _turn = self.shared.openers[place].lock().await;
                match self.shared.opened(id) {
                    Some(file) => file,
                    None => self.shared.open_file(id).await?,
                }
            }
        };
        Ok(TaskLog { file, shared: Arc::clone(&self.shared) })
    }

    /// Whether the disk is full: the last write found no room, or less than the reserve is free.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let free = nix::sys::statvfs::statvfs(&self.shared.folder)
            .map_or(u64::MAX, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
        if free < self.shared.options.reserve_bytes {
            return true;
        }
        // There is room again, although nobody has tried: the next write decides.
        self.shared.full.swap(false, Ordering::Relaxed)
    }

    /// Writes what is queued, then ends. Appends are answered with [`AppendError::Closed`] from now on.
    pub async fn close(&self) {
        drop(lock(&self.shared.queue).take());
        if let Some(stopped) = self.shared.stopped.lock().await.take() {
            let _ = stopped.await;
        }
    }
}

/// Starts the thread that writes. The other end is told when it has ended.
fn start(writer: Writer, guard: File) -> std::io::Result<(mpsc::Sender<Command>, oneshot::Receiver<()>)> {
    let (sender, receiver) = mpsc::channel(QUEUE_COMMANDS_MAX);
    let (stopping, stopped) = oneshot::channel();
    if at_once::is_set() {
        tokio::spawn(async move {
            writer.run_at_once(receiver).await;
            drop(guard);
            let _ = stopping.send(());
        });
        return Ok((sender, stopped));
    }
    let work = move || {
        writer.run(receiver);
        // From here on another process may have the folder. Closing alone would not do: a child that is just being
        // started holds the file open too.
        if let Err(error) = guard.unlock() {
            tracing::warn!(%error, "cannot unlock the log folder");
        }
        let _ = stopping.send(());
    };
    std::thread::Builder::new().name("log-writer".to_owned()).spawn(work)?;
    Ok((sender, stopped))
}

impl Shared {
    /// The log if it is open; it counts as used now.
    fn opened(&self, id: u64) -> Option<Arc<LogFile>> {
        let mut open = lock(&self.open);
        let file = open.logs.get(&id)?.upgrade()?;
        open.idle.retain(|other| other.task_id != id);
        open.idle.push_back(Arc::clone(&file));
        Some(file)
    }

    fn path(&self, id: u64) -> PathBuf {
        self.folder.join((id / 1000).to_string()).join(format!("{id}.{SUFFIX}"))
    }

    async fn open_file(&self, id: u64) -> Result<Arc<LogFile>, OpenError> {
        let path = self.path(id);
        let shown = path.display().to_string();
        let opening = blocking(move || LogFile::open(id, path));
        let file = opening.await.map_err(|error| OpenError::Storage { path: shown, reason: error.to_string() })??;
        let file = Arc::new(file);
        let mut open = lock(&self.open);
        open.idle.push_back(Arc::clone(&file));
        open.logs.insert(id, Arc::downgrade(&file));
        while open.idle.len() > self.options.idle_open_max {
            open.idle.pop_front();
        }
        if open.logs.len() > 2 * self.options.idle_open_max {
            open.logs.retain(|_, file| file.strong_count() > 0);
        }
        Ok(file)
    }
}

/// The log of one task. Cheap to clone; the file is closed some time after the last clone is gone.
#[derive(Debug, Clone)]
pub struct TaskLog {
    file: Arc<LogFile>,
    shared: Arc<Shared>,
}

/// An append that is queued: awaiting it gives its outcome.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Appended, AppendError>>);

impl Pending {
    /// Waits until it is durable, or refused.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing of a refused append is stored.
    pub async fn done(self) -> Result<Appended, AppendError> {
        self.0.await.unwrap_or(Err(AppendError::Closed))
    }
}

impl TaskLog {
    /// Stores records of a source and waits until they are durable.
    ///
    /// `offset` is that of the first record byte in the log of the source, `flags` and `raw_length` are those of the data
    /// frame, `body` is its body. What is stored already is left out, so the same bytes may come twice.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing of a refused append is stored.
    pub async fn append(
        &self,
        source: u32,
        offset: u64,
        flags: u16,
        raw_length: u32,
        body: Bytes,
    ) -> Result<Appended, AppendError> {
        self.enqueue(source, offset, flags, raw_length, body).await?.done().await
    }

    /// As [`append`](Self::append), but returns when it is queued: appends are written in the order of their queueing.
    ///
    /// # Errors
    /// [`AppendError::Malformed`] at once; the others come from [`Pending::done`].
    pub async fn enqueue(
        &self,
        source: u32,
        offset: u64,
        flags: u16,
        raw_length: u32,
        body: Bytes,
    ) -> Result<Pending, AppendError> {
        if flags & !chunk::FLAG_ZSTD != 0 {
            return Err(AppendError::Malformed("it has unknown flags"));
        }
        if body.len() > chunk::STORED_BYTES_MAX {
            return Err(AppendError::Malformed("it is longer than a chunk may be"));
        }
        let raw = chunk::expand(flags, raw_length, body.clone()).map_err(AppendError::Malformed)?;
        let text_length = chunk::text_length(&raw).map_err(AppendError::Malformed)?;
        let raw = self.file.watched().then_some(raw);
        let body = Body { flags, raw_length, text_length, stored: body, raw };
        self.send(Action::Append { source, offset: Some(offset), body }).await
    }

    /// Stores a line of the server's own (source 0) and waits until it is durable. A newline is added.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn notice(&self, step: u16, text: &str, now_ms: i64) -> Result<Appended, AppendError> {
        let cut = text.floor_char_boundary(NOTICE_BYTES_MAX.min(text.len()));
        let line = format!("{}\n", text[..cut].trim_end_matches('\n'));
        let mut raw = Vec::with_capacity(line.len() + 64);
        Record { time_ms: now_ms, step, stream: Stream::Notice, payload: line.as_bytes() }.encode(&mut raw);
        debug_assert!(raw.len() <= DATA_BYTES_MAX, "a notice fits into a chunk");
        let raw = Bytes::from(raw);
        let length = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let body = Body {
            flags: 0,
            raw_length: length(raw.len()),
            text_length: length(line.len()),
            stored: raw.clone(),
            raw: Some(raw),
        };
        self.send(Action::Append { source: 0, offset: None, body }).await?.done().await
    }

    /// Marks the log as complete, durably: readers end with this state. Doing it again with the same state is nothing.
    ///
    /// Output of a host that was thought lost may come later: it is appended behind the mark and opens the log again,
    /// until it is marked anew. Readers see all of it and end at the newest mark; another state is a newer mark.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn finish(&self, final_state: &str) -> Result<(), AppendError> {
        let cut = final_state.floor_char_boundary(FINAL_STATE_BYTES_MAX.min(final_state.len()));
        self.send(Action::Finish { state: Arc::from(&final_state[..cut]) }).await?.done().await.map(drop)
    }

    async fn send(&self, action: Action) -> Result<Pending, AppendError> {
        let bytes = match &action {
            Action::Append { body, .. } => body.stored.len() + chunk::HEADER_BYTES,
            Action::Finish { .. } => chunk::HEADER_BYTES,
        };
        let queue = lock(&self.shared.queue).clone().ok_or(AppendError::Closed)?;
        let room = Arc::clone(&self.shared.room);
        let room = room.acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await;
        let room = room.map_err(|_| AppendError::Closed)?;
        let (reply, pending) = oneshot::channel();
        let command = Command { log: Arc::clone(&self.file), action, reply, room };
        queue.send(command).await.map_err(|_| AppendError::Closed)?;
        Ok(Pending(pending))
    }

    /// Whether both are handles on the same log.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    /// Durable length of a source in record bytes: where its sender goes on.
    #[must_use]
    pub fn durable(&self, source: u32) -> u64 {
        self.file.state().durable.get(&source).copied().unwrap_or(0)
    }

    /// Durable length of the text of the task in bytes.
    #[must_use]
    pub fn text_length(&self) -> u64 {
        self.file.state().published.text_length
    }

    /// The final state, when the log is complete: nothing came after its end mark.
    #[must_use]
    pub fn final_state(&self) -> Option<Arc<str>> {
        self.file.state().published.end.clone()
    }

    /// Reads from the text at `from` on, and follows. `from` counts bytes of text; beyond the end it waits for them.
    ///
    /// A `from` in the middle of a character begins after it; in JSON the record that completes a character shows it.
    #[must_use]
    pub fn reader(&self, from: u64, format: Format) -> LogReader {
        LogReader::new(Arc::clone(&self.file), from, format)
    }

    /// The records of some sources as they are now, from the text at `from` on.
    #[must_use]
    pub fn scan(&self, sources: Sources, from: u64) -> Scan {
        Scan::new(Arc::clone(&self.file), sources, from)
    }

    /// How long the text of some sources is by itself, and where its byte `wanted` is in the text of the task.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn measure(&self, sources: Sources, wanted: u64) -> Result<Measure, ReadError> {
        let (end, length) = {
            let state = self.file.state();
            (state.published.length, state.published.text_length)
        };
        if sources.are_all() {
            return Ok(Measure { length, text_offset: wanted, skip: 0 });
        }
        let file = Arc::clone(&self.file);
        let task_id = file.task_id.cast_signed();
        let measuring = blocking(move || {
            let mut measure = Measure { length: 0, text_offset: length, skip: 0 };
            file.visit_headers(end, |header| {
                if !header.is_end() && sources.has(header.source) {
                    let before = measure.length;
                    measure.length += u64::from(header.text_length);
                    if before <= wanted && wanted < measure.length {
                        measure.text_offset = header.text_offset;
                        measure.skip = wanted - before;
                    }
                }
                true
            })?;
            Ok(measure)
        });
        let stopped = |error: Error| ReadError::Storage { task_id, reason: error.to_string() };
        measuring.await.map_err(stopped)?
    }

    /// The text as it is now, if need be without its middle: at most about `limit` bytes.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn text(&self, limit: u64) -> Result<Excerpt, ReadError> {
        let length = self.text_length();
        if length <= limit {
            return Ok(Excerpt { head: self.part(0, length).await?, omitted_bytes: 0, tail: String::new() });
        }
        let (head, tail) = (limit - limit / 2, limit / 2);
        Ok(Excerpt {
            head: self.part(0, head).await?,
            omitted_bytes: length - head - tail,
            tail: self.part(length - tail, length).await?,
        })
    }

    async fn part(&self, from: u64, to: u64) -> Result<String, ReadError> {
        let mut reader = self.reader(from, Format::Text).until(to).until_now();
        let mut text = String::new();
        while let Some(frame) = reader.next_frame().await? {
            text.push_str(&frame.into_text());
        }
        Ok(text)
    }
}

/// Extent of the text of some sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// Bytes.
    pub length: u64,
    /// Where reading has to begin in the text of the task to find the wanted byte.
    pub text_offset: u64,
    /// Bytes of these sources between there and the wanted byte.
    pub skip: u64,
}

/// The beginning and the end of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The beginning, or everything.
    pub head: String,
    /// Bytes between `head` and `tail`.
    pub omitted_bytes: u64,
    /// The end; empty when nothing was left out.
    pub tail: String,
}

impl std::fmt::Display for Excerpt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.head)?;
        if self.omitted_bytes > 0 {
            write!(f, "\n[{} bytes left out]\n", self.omitted_bytes)?;
        }
        f.write_str(&self.tail)
    }
}
