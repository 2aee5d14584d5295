//! Reading a log: from any place, to its end, and on as it grows.
//!
//! A reader holds a position in the file and nothing that the writer waits for. Invariant: whatever its pace, it sees
//! every byte once and in the order of the file, because it reads only what is published and goes on where it stopped.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use drover_kernel::Error;
use drover_kernel::at_once::blocking;
use drover_shared::record::Record;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::error::ReadError;
use super::file::{Loaded, LogFile, Published};
use super::scan::Sources;
use super::text::{Decoders, Place};

/// Text in one frame: a frame is closed at this length, and what decoding adds comes on top.
pub(super) const FRAME_BYTES: usize = 64 * 1024;
/// A record of at least this length is a frame of its own: its bytes are shared by all viewers, not copied.
const SHARED_BYTES_MIN: usize = 16 * 1024;
/// A reader this far behind may find the file cold, so it reads in a thread that may block.
const NEAR_BYTES: u64 = 1024 * 1024;
/// Text before the wanted place that is decoded unseen, to know which characters have begun.
const LEAD_BYTES: u64 = 64 * 1024;

/// Members that the caller adds to each JSON record of a source, such as its execution and host. None while the source
/// is not known; it is asked again for the next record then.
pub type Describe = Arc<dyn Fn(u32) -> Option<Map<String, Value>> + Send + Sync>;

/// How a log is read.
#[derive(Clone)]
pub enum Format {
    /// Text as people read it: UTF-8, each stream decoded by itself, U+FFFD for what is none.
    Text,
    /// One JSON object and a newline for each record.
    Json(Describe),
    /// The bytes of the text streams, unchanged.
    Raw,
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "Text",
            Self::Json(_) => "Json",
            Self::Raw => "Raw",
        })
    }
}

/// What a reader gives at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The text, JSON lines or bytes. UTF-8, except for [`Format::Raw`].
    pub bytes: Bytes,
    /// Where a new reader goes on after this frame. [`Format::Text`]: where the first character begins that is not whole
    /// yet, so that it is not lost; text of other streams that came since is then shown again. The others: exact.
    pub next_offset: u64,
}

impl Frame {
    /// The frame as text.
    #[must_use]
    pub fn into_text(self) -> String {
        String::from_utf8(self.bytes.into())
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// Reads one log; made by [`TaskLog::reader`](super::TaskLog::reader).
#[derive(Debug)]
pub struct LogReader {
    log: Arc<LogFile>,
    published: watch::Receiver<Published>,
    format: Format,
    from: u64,
    to: u64,
    sources: Sources,
    follow: bool,
    /// Where the next chunk is in the file.
    at: u64,
    chunks: VecDeque<Loaded>,
    /// What is left of the current record's payload, and whose it is.
    payload: Bytes,
    current: Option<Place>,
    time_ms: i64,
    /// Bytes of text before `payload`.
    text_offset: u64,
    decoders: Decoders,
    described: HashMap<u32, Map<String, Value>>,
    final_state: Option<Arc<str>>,
    over: bool,
}

impl LogReader {
    pub(super) fn new(log: Arc<LogFile>, from: u64, format: Format) -> Self {
        let at = log.find(from.saturating_sub(LEAD_BYTES));
        let published = log.subscribe();
        Self {
            log,
            published,
            format,
            from,
            to: u64::MAX,
            sources: Sources::all(),
            follow: true,
            at,
            chunks: VecDeque::new(),
            payload: Bytes::new(),
            current: None,
            time_ms: 0,
            text_offset: 0,
            decoders: Decoders::default(),
            described: HashMap::new(),
            final_state: None,
            over: false,
        }
    }

    /// Ends at what is stored now, complete or not, in place of waiting for more.
    #[must_use]
    pub fn until_now(mut self) -> Self {
        self.follow = false;
        let published = self.published.borrow().clone();
        let (sender, receiver) = watch::channel(published);
        // Without a sender nothing changes any more: this is a picture of the present.
        drop(sender);
        self.published = receiver;
        self
    }

    /// Ends before this text offset.
    #[must_use]
    pub fn until(mut self, text_offset: u64) -> Self {
        self.to = text_offset;
        self
    }

    /// Leaves out everything but these sources. Offsets still count the text of the whole task.
    #[must_use]
    pub fn only(mut self, sources: Sources) -> Self {
        self.sources = sources;
        self
    }

    /// The final state of the task: known once [`next_frame`](Self::next_frame) has given `None` at the newest end mark.
    #[must_use]
    pub fn final_state(&self) -> Option<&str> {
        self.final_state.as_deref()
    }

    /// The next frame; waits until there is one. None when the log is complete, or the wanted part is over.
    ///
    /// The longer a reader was away, the more a frame holds. Safe to cancel: nothing is lost.
    ///
    /// # Errors
    /// [`ReadError`] when the file cannot be read or is damaged; the reader stays where it is.
    pub async fn next_frame(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.build()? {
                return Ok(Some(frame));
            }
            if self.over {
                return Ok(None);
            }
            let length = self.published.borrow_and_update().length;
            if self.at < length {
                self.chunks = self.load(length).await?.into();
            } else if !self.follow || self.published.changed().await.is_err() {
                self.over = true;
            }
        }
    }

    async fn load(&self, length: u64) -> Result<Vec<Loaded>, ReadError> {
        let recent = self.log.recent(self.at);
        if !recent.is_empty() {
            return Ok(recent);
        }
        if length - self.at <= NEAR_BYTES {
            return self.log.load(self.at, length, &self.sources);
        }
        let (log, at, sources) = (Arc::clone(&self.log), self.at, self.sources.clone());
        let task_id = log.task_id.cast_signed();
        let stopped = |error: Error| ReadError::Storage { task_id, reason: error.to_string() };
        blocking(move || log.load(at, length, &sources)).await.map_err(stopped)?
    }

    /// Makes a frame of what is loaded; none when there is nothing to show in it.
    fn build(&mut self) -> Result<Option<Frame>, ReadError> {
        let mut out = String::new();
        let mut raw = Vec::new();
        while out.len() < FRAME_BYTES && raw.len() < FRAME_BYTES && !self.over {
            if self.current.is_none() {
                if !self.next_record()? {
                    break;
                }
                if out.is_empty() && raw.is_empty() && self.is_whole_frame() {
                    self.current = None;
                    let bytes = std::mem::take(&mut self.payload);
                    self.text_offset += bytes.len() as u64;
                    self.over |= self.text_offset >= self.to;
                    return Ok(Some(Frame { bytes, next_offset: self.text_offset }));
                }
            }
            self.take(&mut out, &mut raw);
        }
        if self.over && self.text_offset < self.to {
            for place in self.decoders.finish() {
                match self.format.clone() {
                    Format::Text => out.push(char::REPLACEMENT_CHARACTER),
                    Format::Json(describe) => {
                        let text = Value::String(char::REPLACEMENT_CHARACTER.to_string());
                        self.json(&describe, Place { offset: self.text_offset, ..place }, ("text", text), &mut out);
                    }
                    Format::Raw => {}
                }
            }
        }
        let (bytes, next_offset) = match self.format {
            Format::Raw => (raw, self.text_offset),
            Format::Text => (out.into_bytes(), self.decoders.begun_at().unwrap_or(self.text_offset)),
            Format::Json(_) => (out.into_bytes(), self.text_offset),
        };
        Ok((!bytes.is_empty()).then_some(Frame { bytes: bytes.into(), next_offset }))
    }

    /// Whether the record that was just stepped to can be given as it is.
    fn is_whole_frame(&self) -> bool {
        let wanted = |place: Place| place.stream.is_text() && self.sources.has(place.source);
        let end = self.text_offset + self.payload.len() as u64;
        self.payload.len() >= SHARED_BYTES_MIN
            && self.text_offset >= self.from
            && end <= self.to
            && self.current.is_some_and(wanted)
            && match self.format {
                Format::Raw => true,
                Format::Text => self.decoders.are_idle() && std::str::from_utf8(&self.payload).is_ok(),
                Format::Json(_) => false,
            }
    }

    /// Steps to the next record of the loaded chunks; false when there is none.
    fn next_record(&mut self) -> Result<bool, ReadError> {
        loop {
            let Some(chunk) = self.chunks.front_mut() else { return Ok(false) };
            if chunk.at >= self.at {
                // The first look at this chunk.
                self.at = chunk.at + chunk.header.chunk_length();
                self.text_offset = chunk.header.text_offset;
                if chunk.header.is_end() {
                    if self.at < self.published.borrow().length {
                        // Late output opened the log again.
                        self.chunks.pop_front();
                        continue;
                    }
                    self.final_state = Some(Arc::from(String::from_utf8_lossy(&chunk.raw)));
                    self.over = true;
                    self.chunks.clear();
                    return Ok(false);
                }
            }
            if chunk.raw.is_empty() {
                self.chunks.pop_front();
                continue;
            }
            let (record, rest) = match Record::decode(&chunk.raw) {
                Ok(decoded) => decoded,
                Err(_) => {
                    let task_id = self.log.task_id.cast_signed();
                    return Err(ReadError::Damaged { task_id, at: chunk.at, reason: "it holds no whole records" });
                }
            };
            let source = chunk.header.source;
            self.current = Some(Place { source, step: record.step, stream: record.stream, offset: 0 });
            self.time_ms = record.time_ms;
            self.payload = chunk.raw.slice_ref(record.payload);
            let used = chunk.raw.len() - rest.len();
            chunk.raw.advance(used);
            return Ok(true);
        }
    }

    /// Takes the current record, or as much of it as the frame has room for.
    fn take(&mut self, out: &mut String, raw: &mut Vec<u8>) {
        let Some(place) = self.current else { return };
        let is_text = place.stream.is_text();
        let wanted = self.sources.has(place.source);
        let early = self.text_offset < self.from;
        if is_text && early {
            self.pass(place, wanted);
        } else if is_text {
            let room = match self.format {
                Format::Text => FRAME_BYTES - out.len().min(FRAME_BYTES),
                Format::Raw => FRAME_BYTES - raw.len().min(FRAME_BYTES),
                Format::Json(_) => self.payload.len(),
            };
            let limit = usize::try_from(self.to.saturating_sub(self.text_offset)).unwrap_or(usize::MAX);
            let bytes = self.payload.split_to(room.min(limit).min(self.payload.len()));
            let place = Place { offset: self.text_offset, ..place };
            self.text_offset += bytes.len() as u64;
            if wanted {
                self.show(place, &bytes, out, raw);
            }
            self.over |= self.text_offset >= self.to;
        } else {
            let bytes = std::mem::take(&mut self.payload);
            if let Format::Json(describe) = self.format.clone()
                && wanted
                && !early
            {
                let lossy = |_| Value::String(String::from_utf8_lossy(&bytes).into_owned());
                let event = serde_json::from_slice(&bytes).unwrap_or_else(lossy);
                self.json(&describe, Place { offset: self.text_offset, ..place }, ("event", event), out);
            }
        }
        if self.payload.is_empty() {
            self.current = None;
        }
    }

    /// Passes over text before the wanted place; it is decoded all the same, to know where a character begins.
    fn pass(&mut self, place: Place, wanted: bool) {
        let length = usize::try_from(self.from - self.text_offset).unwrap_or(usize::MAX).min(self.payload.len());
        let unseen = self.payload.split_to(length);
        if wanted {
            self.decoders.decode(Place { offset: self.text_offset, ..place }, &unseen, &mut String::new());
        }
        self.text_offset += length as u64;
        // JSON records are exact: what completes a character shows it, so that none is lost between two readers.
        if self.text_offset >= self.from && matches!(self.format, Format::Text) {
            self.decoders.hide_started();
        }
    }

    fn show(&mut self, place: Place, bytes: &[u8], out: &mut String, raw: &mut Vec<u8>) {
        match self.format.clone() {
            Format::Text => self.decoders.decode(place, bytes, out),
            Format::Raw => raw.extend_from_slice(bytes),
            Format::Json(describe) => {
                let mut text = String::with_capacity(bytes.len());
                self.decoders.decode(place, bytes, &mut text);
                self.json(&describe, place, ("text", Value::String(text)), out);
            }
        }
    }

    fn json(&mut self, describe: &Describe, place: Place, content: (&str, Value), out: &mut String) {
        if !self.described.contains_key(&place.source)
            && let Some(members) = describe(place.source)
        {
            self.described.insert(place.source, members);
        }
        let mut record = self.described.get(&place.source).cloned().unwrap_or_default();
        let own = json!({
            "source": place.source,
            "step": place.step,
            "stream": place.stream.as_str(),
            "time": self.time_ms,
            "offset": place.offset,
            "next": self.text_offset,
            content.0: content.1,
        });
        if let Value::Object(own) = own {
            record.extend(own);
        }
        out.push_str(&Value::Object(record).to_string());
        out.push('\n');
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.log.leave();
    }
}
