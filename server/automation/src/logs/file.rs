//! One task's log while it is open: its file, what of it is durable, and how it is found again after a crash.
//!
//! Invariant: the file up to the published length is whole chunks, is durable and never changes again. What lies beyond
//! belongs to the writer alone; recovery cuts it off.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::chunk::{self, FILE_HEAD_BYTES, HEADER_BYTES, Header};
use super::error::{OpenError, ReadError};
use super::scan::Sources;
use super::writer::BATCH_BYTES_MAX;

/// Only the last batch of writes can be torn, so only chunks this near to the end are verified when a log is opened.
const VERIFY_BYTES: u64 = BATCH_BYTES_MAX as u64 + 1024 * 1024;
/// Text between two marks of the index.
const MARK_TEXT_BYTES: u64 = 64 * 1024;
/// Bytes of a file that are read at a time.
const READ_BYTES: u64 = 64 * 1024;
/// Record bytes of the newest chunks kept in memory for the viewers of one task.
const RECENT_BYTES_MAX: usize = 1024 * 1024;

/// Locks; a poisoned lock is taken over, because every critical section leaves its value whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What readers may see.
#[derive(Debug, Clone, Default)]
pub(super) struct Published {
    /// Durable length of the file.
    pub(super) length: u64,
    /// Bytes of text in it.
    pub(super) text_length: u64,
    /// Final state, while a durable end mark is the last chunk.
    pub(super) end: Option<Arc<str>>,
}

/// Where a text offset is found in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) text_offset: u64,
    pub(super) at: u64,
}

/// What is durable.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) published: Published,
    /// Durable length in record bytes for each source.
    pub(super) durable: BTreeMap<u32, u64>,
    marks: Vec<Mark>,
}

impl State {
    /// Takes note of a chunk at `at`, which is the end of what is known.
    pub(super) fn add(&mut self, at: u64, header: &Header, end: Option<Arc<str>>) {
        let due = self.marks.last().is_none_or(|mark| header.text_offset - mark.text_offset >= MARK_TEXT_BYTES);
        if due {
            self.marks.push(Mark { text_offset: header.text_offset, at });
        }
        if !header.is_end() {
            self.durable.insert(header.source, header.offset + u64::from(header.raw_length));
        }
        self.published.length = at + header.chunk_length();
        self.published.text_length += u64::from(header.text_length);
        self.published.end = end;
    }
}

/// A chunk that was read back.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) at: u64,
    pub(super) header: Header,
    /// Whole records; the final state in the end mark.
    pub(super) raw: Bytes,
}

/// An open log.
#[derive(Debug)]
pub(super) struct LogFile {
    pub(super) task_id: u64,
    pub(super) path: PathBuf,
    file: OnceLock<File>,
    state: Mutex<State>,
    published: watch::Sender<Published>,
    recent: Mutex<VecDeque<Loaded>>,
}

impl LogFile {
    /// Opens the log, recovering what is durable; a log that does not exist yet is empty, and its file is not made.
    pub(super) fn open(task_id: u64, path: PathBuf) -> Result<Self, OpenError> {
        let storage =
            |error: io::Error| OpenError::Storage { path: path.display().to_string(), reason: error.to_string() };
        let cell = OnceLock::new();
        let state = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                let state = recover(&file, task_id, storage)?;
                drop(cell.set(file));
                state
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(storage(error)),
        };
        let published = watch::Sender::new(state.published.clone());
        Ok(Self { task_id, path, file: cell, state: Mutex::new(state), published, recent: Mutex::default() })
    }

    /// The file, made now if there is none yet; says whether it was made.
    pub(super) fn create(&self) -> io::Result<(&File, bool)> {
        if let Some(file) = self.file.get() {
            return Ok((file, false));
        }
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        Ok((self.file.get_or_init(|| file), true))
    }

    /// The folder that the file is in.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Lets readers see what has become durable.
    pub(super) fn publish(&self, published: Published, chunks: Vec<Loaded>) {
        let mut recent = lock(&self.recent);
        // A log that has ended is read from its file: hardly anything comes, so nothing is shared for long.
        if self.published.receiver_count() == 0 || published.end.is_some() {
            recent.clear();
        } else {
            let joins = |first: &Loaded, last: &Loaded| last.at + last.header.chunk_length() == first.at;
            if !chunks.first().zip(recent.back()).is_some_and(|(first, last)| joins(first, last)) {
                recent.clear();
            }
            recent.extend(chunks);
            let mut bytes: usize = recent.iter().map(|chunk| chunk.raw.len() + HEADER_BYTES).sum();
            while bytes > RECENT_BYTES_MAX {
                bytes -= recent.pop_front().map_or(bytes, |chunk| chunk.raw.len() + HEADER_BYTES);
            }
        }
        drop(recent);
        self.published.send_replace(published);
    }

    /// A reader goes: when it was the last, nothing is kept for readers any more.
    pub(super) fn leave(&self) {
        if self.published.receiver_count() <= 1 {
            lock(&self.recent).clear();
        }
    }

    pub(super) fn watched(&self) -> bool {
        self.published.receiver_count() > 0
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    /// Where to begin reading to find the text at `text_offset`: the offset in the file.
    pub(super) fn find(&self, text_offset: u64) -> u64 {
        let state = self.state();
        let after = state.marks.partition_point(|mark| mark.text_offset <= text_offset);
        // Chunks without text share their text offset with the next mark: the one before begins early enough.
        let found = after.checked_sub(1).map(|index| state.marks[index]);
        match found {
            Some(mark) if mark.text_offset == text_offset && after >= 2 => state.marks[after - 2].at,
            Some(mark) => mark.at,
            None => FILE_HEAD_BYTES,
        }
    }

    /// The newest chunks from file offset `at` on, if they are still in memory.
    pub(super) fn recent(&self, at: u64) -> Vec<Loaded> {
        let recent = lock(&self.recent);
        let Ok(index) = recent.binary_search_by_key(&at, |chunk| chunk.at) else { return Vec::new() };
        let mut bytes = 0;
        let wanted = recent.range(index..).take_while(|chunk| {
            let more = (bytes as u64) < READ_BYTES;
            bytes += chunk.raw.len();
            more
        });
        wanted.cloned().collect()
    }

    /// Reads chunks from file offset `at` on: at least one, and more as far as one read of the file brings them. Those
    /// of unwanted sources come without their bodies.
    pub(super) fn load(&self, at: u64, end: u64, sources: &Sources) -> Result<Vec<Loaded>, ReadError> {
        let task_id = self.task_id.cast_signed();
        let damaged = |at, reason| ReadError::Damaged { task_id, at, reason };
        let storage = |error: io::Error| ReadError::Storage { task_id, reason: error.to_string() };
        let Some(file) = self.file.get() else { return Err(damaged(at, "the file is gone")) };
        let mut buffer = vec![0; usize::try_from((end - at).min(READ_BYTES)).unwrap_or(0)];
        file.read_exact_at(&mut buffer, at).map_err(storage)?;
        let (first, _) = Header::decode(&buffer).ok_or_else(|| damaged(at, "no chunk begins there"))?;
        let (have, whole) = (buffer.len(), HEADER_BYTES + first.stored_length as usize);
        if whole > have {
            buffer.resize(whole, 0);
            file.read_exact_at(&mut buffer[have..], at + have as u64).map_err(storage)?;
        }
        let mut rest = Bytes::from(buffer);
        let mut chunks = Vec::new();
        let mut position = at;
        while rest.len() >= HEADER_BYTES {
            let (header, sum) = Header::decode(&rest).ok_or_else(|| damaged(position, "no chunk begins there"))?;
            let length = HEADER_BYTES + header.stored_length as usize;
            if rest.len() < length {
                break;
            }
            let stored = rest.split_to(length);
            if !header.is_end() && !sources.has(header.source) {
                chunks.push(Loaded { at: position, header, raw: Bytes::new() });
                position += header.chunk_length();
                continue;
            }
            if chunk::checksum(&stored, &stored[HEADER_BYTES..]) != sum {
                return Err(damaged(position, "the checksum does not match"));
            }
            let raw = header.expand(stored.slice(HEADER_BYTES..)).map_err(|reason| damaged(position, reason))?;
            chunks.push(Loaded { at: position, header, raw });
            position += header.chunk_length();
        }
        Ok(chunks)
    }
}

impl LogFile {
    /// Looks at the header of every chunk before file offset `end`, as long as `visit` wants more.
    pub(super) fn visit_headers(&self, end: u64, mut visit: impl FnMut(&Header) -> bool) -> Result<(), ReadError> {
        let task_id = self.task_id.cast_signed();
        let storage = |error: io::Error| ReadError::Storage { task_id, reason: error.to_string() };
        let Some(file) = self.file.get() else { return Ok(()) };
        let mut scanner = Scanner { file, window: Vec::new(), at: 0, length: end };
        let mut at = FILE_HEAD_BYTES;
        while let Some(head) = scanner.bytes(at, HEADER_BYTES as u64).map_err(storage)? {
            let reason = "no chunk begins there";
            let (header, _) = Header::decode(head).ok_or(ReadError::Damaged { task_id, at, reason })?;
            if !visit(&header) {
                break;
            }
            at += header.chunk_length();
        }
        Ok(())
    }
}

/// Finds what is durable in `file` and cuts off what an interrupted write left behind it.
fn recover(file: &File, task_id: u64, storage: impl Fn(io::Error) -> OpenError) -> Result<State, OpenError> {
    let id = task_id.cast_signed();
    let length = file.metadata().map_err(&storage)?.len();
    let mut scanner = Scanner { file, window: Vec::new(), at: 0, length };
    let head = scanner.bytes(0, FILE_HEAD_BYTES).map_err(&storage)?.map(<[u8]>::to_vec);
    let expected = chunk::file_head(task_id);
    let torn = |head: &[u8]| head.iter().zip(expected).all(|(byte, right)| *byte == right || *byte == 0);
    let state = match head {
        Some(head) if head == expected => scan(&mut scanner, task_id, &storage)?,
        // The very first write was interrupted.
        Some(head) if torn(&head) && length <= VERIFY_BYTES => State::default(),
        None => State::default(),
        Some(_) => return Err(OpenError::Foreign { task_id: id, reason: "it is no log of this task and version" }),
    };
    let good = state.published.length;
    if good < length {
        if length - good > VERIFY_BYTES {
            return Err(OpenError::Damaged { task_id: id, at: good });
        }
        tracing::warn!(task_id, kept = good, cut = length - good, "cutting an interrupted write off a log");
        file.set_len(good).and_then(|()| file.sync_all()).map_err(&storage)?;
    }
    Ok(state)
}

/// Walks over the chunk headers as long as they make sense; bodies are verified near the end of the file.
fn scan(
    scanner: &mut Scanner<'_>,
    task_id: u64,
    storage: &impl Fn(io::Error) -> OpenError,
) -> Result<State, OpenError> {
    let mut state = State::default();
    state.published.length = FILE_HEAD_BYTES;
    loop {
        let at = state.published.length;
        let Some(head) = scanner.bytes(at, HEADER_BYTES as u64).map_err(storage)? else { break };
        let Some((header, sum)) = Header::decode(head) else { break };
        let expected = state.durable.get(&header.source).copied().unwrap_or(0);
        let joins = header.text_offset == state.published.text_length && (header.is_end() || header.offset == expected);
        if !joins {
            break;
        }
        let mut end = None;
        if header.is_end() || at + VERIFY_BYTES >= scanner.length {
            let Some(stored) = scanner.bytes(at, header.chunk_length()).map_err(storage)? else { break };
            if chunk::checksum(stored, &stored[HEADER_BYTES..]) != sum {
                break;
            }
            if header.is_end() {
                end = Some(Arc::from(String::from_utf8_lossy(&stored[HEADER_BYTES..])));
            }
        } else if at + header.chunk_length() > scanner.length {
            break;
        }
        state.add(at, &header, end);
    }
    // Only what an interrupted write may leave is cut off; the caller refuses when more follows.
    tracing::debug!(task_id, length = state.published.length, "log recovered");
    Ok(state)
}

/// Reads a file in windows, so that headers of small chunks do not cost a system call each.
struct Scanner<'a> {
    file: &'a File,
    window: Vec<u8>,
    at: u64,
    length: u64,
}

impl Scanner<'_> {
    /// The bytes `at..at + count`; none when the file ends before.
    fn bytes(&mut self, at: u64, count: u64) -> io::Result<Option<&[u8]>> {
        const WINDOW_BYTES: u64 = 4096;
        if at + count > self.length {
            return Ok(None);
        }
        let inside = at >= self.at && at + count <= self.at + self.window.len() as u64;
        if !inside {
            let wanted = count.max(WINDOW_BYTES).min(self.length - at);
            self.window.resize(usize::try_from(wanted).unwrap_or(0), 0);
            self.file.read_exact_at(&mut self.window, at)?;
            self.at = at;
        }
        let start = usize::try_from(at - self.at).unwrap_or(0);
        Ok(Some(&self.window[start..start + usize::try_from(count).unwrap_or(0)]))
    }
}
