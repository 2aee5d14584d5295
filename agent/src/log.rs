//! The log of one execution: a file of records that grows at its end.
//!
//! Invariant: what is in the file is a whole number of records, but for a torn end that a crash may leave; the next
//! writer cuts that off. A reader may therefore ship every whole record it finds.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use drover_shared::limits::RECORD_PAYLOAD_BYTES_MAX;
use drover_shared::message::StepEvent;
use drover_shared::order::canonical;
use drover_shared::record::{HEADER_BYTES, Record, Stream};

use crate::clock::{self, Now};
use crate::spool::Bound;

/// Output waits so long at least, and at most, for more to join it, in milliseconds.
const PAUSE_MS: (u64, u64) = (4, 20);
/// Bytes on their way for which the next ones wait one millisecond.
const BYTES_PER_PAUSE_MS: u64 = 200;
/// Output held in memory at most, in bytes.
const PENDING_BYTES_MAX: usize = 64 * 1024;
/// Step events read from one log.
const EVENTS_MAX: usize = 100_000;

/// Appends records to a log.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    /// Bytes in the file, all whole records.
    written: u64,
    /// Records not yet in the file.
    pending: Vec<u8>,
    /// Step, stream and place of the last pending record, which more output of the same kind joins.
    last: Option<(u16, Stream, usize)>,
    /// When what waits is due, by the monotonic clock.
    due_ms: u64,
    bytes_max: u64,
    /// Bound of all logs together.
    bound: Option<Bound>,
    truncated: bool,
    dirty: bool,
}

/// How long output waits after a piece of this length went on its way, in milliseconds. A line after a quiet time does
/// not wait at all, a quiet job's line hardly, and a loud job's lines share their way.
#[must_use]
pub fn pause_ms(sent_bytes: u64) -> u64 {
    (sent_bytes / BYTES_PER_PAUSE_MS).clamp(PAUSE_MS.0, PAUSE_MS.1)
}

impl LogWriter {
    /// Opens a log to go on at its end. Output beyond `bytes_max` bytes of records is left out, loudly.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let written = whole_length(&mut file)?;
        if file.metadata()?.len() > written {
            file.set_len(written)?;
        }
        Ok(Self {
            file,
            written,
            pending: Vec::new(),
            last: None,
            due_ms: 0,
            bytes_max,
            bound: None,
            truncated: false,
            dirty: false,
        })
    }

    /// Leaves out, loudly, what the whole spool has no room for as well.
    #[must_use]
    pub fn within(self, bound: Option<Bound>) -> Self {
        Self { bound, ..self }
    }

    /// Length of the log in record bytes, what waits in memory included.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    /// Whether output was left out.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// Adds what a script wrote.
    ///
    /// # Errors
    /// Whatever the file system says; the file then ends at a whole record.
    pub fn output(&mut self, step: u16, stream: Stream, bytes: &[u8], now: Now) -> io::Result<()> {
        if self.truncated || bytes.is_empty() {
            return Ok(());
        }
        let header = if self.joins(step, stream, bytes.len()) { 0 } else { HEADER_BYTES as u64 };
        let length = self.length() + header;
        let of_all = self.bound.as_mut().map(|bound| bound.longest(length, length + bytes.len() as u64));
        let longest = of_all.unwrap_or(u64::MAX).min(self.bytes_max);
        let fits = bytes.len().min(usize::try_from(longest.saturating_sub(length)).unwrap_or(usize::MAX));
        if fits > 0 {
            self.push(step, stream, &bytes[..fits], now);
        }
        if fits < bytes.len() {
            self.truncated = true;
            let limit = match &self.bound {
                Some(bound) if longest < self.bytes_max => {
                    format!("the spool of this host is full, {} bytes", bound.bytes_max())
                }
                _ => format!("output limit of {} bytes reached", self.bytes_max),
            };
            return self.notice(step, &format!("{limit}: the rest of the output is left out"));
        }
        if self.pending.len() >= PENDING_BYTES_MAX || self.flush_at_ms().is_some_and(|at| now.monotonic_ms >= at) {
            return self.flush();
        }
        Ok(())
    }

    /// Adds a line for people.
    ///
    /// # Errors
    /// As [`LogWriter::output`].
    pub fn notice(&mut self, step: u16, line: &str) -> io::Result<()> {
        let mut text = line.replace('\n', " ");
        text.push('\n');
        self.single(step, Stream::Notice, text.as_bytes())
    }

    /// Adds the start or end of a step.
    ///
    /// # Errors
    /// As [`LogWriter::output`].
    pub fn event(&mut self, step: u16, event: &StepEvent) -> io::Result<()> {
        self.single(step, Stream::Event, canonical(event).as_bytes())
    }

    /// When pending output has to be written, by the monotonic clock; none while nothing waits.
    #[must_use]
    pub fn flush_at_ms(&self) -> Option<u64> {
        (!self.pending.is_empty()).then_some(self.due_ms)
    }

    /// Writes what waits, so that readers see it.
    ///
    /// # Errors
    /// As [`LogWriter::output`]; what waited is then given up.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.due_ms = clock::monotonic_ms() + pause_ms(self.pending.len() as u64);
        self.last = None;
        let outcome = self.file.write_all(&self.pending);
        match &outcome {
            Ok(()) => self.written += self.pending.len() as u64,
            Err(_) => {
                let _ = self.file.set_len(self.written);
            }
        }
        self.pending.clear();
        self.dirty = true;
        outcome
    }

    /// Writes what waits and makes the log durable.
    ///
    /// # Errors
    /// As [`LogWriter::output`].
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    fn joins(&self, step: u16, stream: Stream, length: usize) -> bool {
        self.last.is_some_and(|(last_step, last_stream, at)| {
            (last_step, last_stream) == (step, stream)
                && self.pending.len() - at - HEADER_BYTES + length <= RECORD_PAYLOAD_BYTES_MAX
        })
    }

    fn push(&mut self, step: u16, stream: Stream, bytes: &[u8], now: Now) {
        if self.joins(step, stream, bytes.len())
            && let Some((_, _, at)) = self.last
        {
            self.pending.extend_from_slice(bytes);
            let length = u32::try_from(self.pending.len() - at - HEADER_BYTES).unwrap_or(u32::MAX);
            self.pending[at + 12..at + HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
            return;
        }
        self.last = (bytes.len() <= RECORD_PAYLOAD_BYTES_MAX).then_some((step, stream, self.pending.len()));
        Record { time_ms: now.wall_ms, step, stream, payload: bytes }.encode(&mut self.pending);
    }

    fn single(&mut self, step: u16, stream: Stream, payload: &[u8]) -> io::Result<()> {
        Record { time_ms: clock::wall_ms(), step, stream, payload }.encode(&mut self.pending);
        self.last = None;
        if self.pending.len() >= PENDING_BYTES_MAX { self.flush() } else { Ok(()) }
    }
}

/// Length of the whole records at the start of a log, read header by header.
///
/// # Errors
/// Whatever the file system says.
pub fn whole_length(file: &mut File) -> io::Result<u64> {
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let mut at = 0_u64;
    let mut header = [0; HEADER_BYTES];
    while at + HEADER_BYTES as u64 <= end {
        reader.read_exact(&mut header)?;
        let payload = u64::from(u32::from_be_bytes([header[12], header[13], header[14], header[15]]));
        let next = at + HEADER_BYTES as u64 + payload;
        if payload > RECORD_PAYLOAD_BYTES_MAX as u64 || Stream::from_code(header[10]).is_none() || next > end {
            break;
        }
        reader.seek_relative(i64::try_from(payload).unwrap_or(0))?;
        at = next;
    }
    Ok(at)
}

/// The step events of a log: step, offset after the record, time, event. Other payloads are skipped, not read.
///
/// # Errors
/// Whatever the file system says.
pub fn events(path: &Path) -> io::Result<Vec<(u16, u64, i64, StepEvent)>> {
    let mut file = File::open(path)?;
    let end = whole_length(&mut file)?;
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let mut events = Vec::new();
    let mut at = 0_u64;
    let mut header = [0; HEADER_BYTES];
    while at < end && events.len() < EVENTS_MAX {
        reader.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        at += HEADER_BYTES as u64 + u64::from(length);
        if header[10] != Stream::Event.code() {
            reader.seek_relative(i64::from(length))?;
            continue;
        }
        let mut payload = vec![0; length as usize];
        reader.read_exact(&mut payload)?;
        let mut time = [0; 8];
        time.copy_from_slice(&header[..8]);
        if let Ok(event) = serde_json::from_slice(&payload) {
            events.push((u16::from_be_bytes([header[8], header[9]]), at, i64::from_be_bytes(time), event));
        }
    }
    Ok(events)
}
