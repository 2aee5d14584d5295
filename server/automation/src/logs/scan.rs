//! Records of a log one by one, up to where it was when the scan began: what is searched, counted and shown by lines.
//!
//! Invariant: a scan holds one read of the file at a time, whatever the log's length, and reads in the thread of the
//! caller, who moves it to one that may block.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use drover_shared::record::{Record, Stream};

use super::error::ReadError;
use super::file::{Loaded, LogFile};

/// Whose output is wanted, by ordinals of executions; 0 is the server itself. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Sources(Option<Arc<BTreeSet<u32>>>);

impl Sources {
    /// Everybody's.
    #[must_use]
    pub fn all() -> Self {
        Self(None)
    }

    /// That of these alone.
    #[must_use]
    pub fn these(sources: impl IntoIterator<Item = u32>) -> Self {
        Self(Some(Arc::new(sources.into_iter().collect())))
    }

    /// Whether nothing is left out.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this one's is wanted.
    #[must_use]
    pub fn has(&self, source: u32) -> bool {
        self.0.as_ref().is_none_or(|sources| sources.contains(&source))
    }
}

/// A record, or what is left of it behind the place where the scan began.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Ordinal of the execution; 0 is the server itself.
    pub source: u32,
    /// Index of the step.
    pub step: u16,
    /// Where it came from.
    pub stream: Stream,
    /// Milliseconds since 1970 by the host's clock.
    pub time_ms: i64,
    /// Where the payload begins in the text of the task; an event has a place and no length there.
    pub offset: u64,
    /// The bytes.
    pub payload: Bytes,
}

/// Steps through the records of a log.
#[derive(Debug)]
pub struct Scan {
    log: Arc<LogFile>,
    sources: Sources,
    from: u64,
    /// Where the next chunk is in the file, and where the file ended when the scan began.
    at: u64,
    end: u64,
    chunks: VecDeque<Loaded>,
    text_offset: u64,
}

impl Scan {
    pub(super) fn new(log: Arc<LogFile>, sources: Sources, from: u64) -> Self {
        let (at, end) = (log.find(from), log.state().published.length);
        Self { log, sources, from, at, end, chunks: VecDeque::new(), text_offset: 0 }
    }

    /// How far into the text of the task it has come.
    #[must_use]
    pub fn text_offset(&self) -> u64 {
        self.text_offset.max(self.from)
    }

    /// The next record of the wanted sources at or behind the place where the scan began; none at the end.
    ///
    /// # Errors
    /// [`ReadError`] when the file cannot be read or is damaged.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            let Some(chunk) = self.chunks.front_mut() else {
                if self.at >= self.end {
                    return Ok(None);
                }
                self.chunks = self.log.load(self.at, self.end, &self.sources)?.into();
                continue;
            };
            if chunk.at >= self.at {
                self.at = chunk.at + chunk.header.chunk_length();
                self.text_offset = chunk.header.text_offset;
            }
            if chunk.raw.is_empty() || chunk.header.is_end() {
                self.text_offset = chunk.header.text_offset + u64::from(chunk.header.text_length);
                self.chunks.pop_front();
                continue;
            }
            let Ok((record, rest)) = Record::decode(&chunk.raw) else {
                let task_id = self.log.task_id.cast_signed();
                return Err(ReadError::Damaged { task_id, at: chunk.at, reason: "it holds no whole records" });
            };
            let mut entry = Entry {
                source: chunk.header.source,
                step: record.step,
                stream: record.stream,
                time_ms: record.time_ms,
                offset: self.text_offset,
                payload: chunk.raw.slice_ref(record.payload),
            };
            let used = chunk.raw.len() - rest.len();
            chunk.raw.advance(used);
            if entry.stream.is_text() {
                self.text_offset += entry.payload.len() as u64;
                let early = self.from.saturating_sub(entry.offset);
                let early = usize::try_from(early).unwrap_or(usize::MAX).min(entry.payload.len());
                entry.payload.advance(early);
                entry.offset += early as u64;
                if entry.payload.is_empty() {
                    continue;
                }
            } else if entry.offset < self.from {
                continue;
            }
            return Ok(Some(entry));
        }
    }
}
