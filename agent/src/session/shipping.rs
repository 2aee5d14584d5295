//! Output on its way to the server.

use std::ops::Bound;

use drover_shared::frame::{FLAG_ZSTD, Header, Kind};
use drover_shared::limits::RECORD_PAYLOAD_BYTES_MAX;
use drover_shared::message::{Finished, ToServer};
use drover_shared::record::{HEADER_BYTES, whole_records_length};

use super::{Channel, Output, Phase, Session};
use crate::clock::Now;
use crate::log::pause_ms;
use crate::spool::Key;

/// A chunk this long is sent at once; one record always fits. A shorter one waits a little after the one before.
const CHUNK_BYTES: usize = RECORD_PAYLOAD_BYTES_MAX + HEADER_BYTES;
/// Level of the compressor.
const ZSTD_LEVEL: i32 = 1;

/// One execution's output.
#[derive(Debug, Default)]
pub(super) struct Shipping {
    pub(super) channel: Option<u32>,
    pub(super) log_length: u64,
    pub(super) shipped: u64,
    pub(super) acknowledged: u64,
    pub(super) sequence: u32,
    /// When a short chunk may be sent.
    pub(super) due_ms: u64,
    /// The last read gave no whole record: wait for more, or for room in the window.
    pub(super) starved: bool,
    pub(super) finished: Option<Box<Finished>>,
    pub(super) finished_sent: bool,
    pub(super) unwanted: bool,
    /// It waits for its order to come again.
    pub(super) needs_order: bool,
}

/// A piece of a log to read: from the offset, at most so many bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Whose log.
    pub key: Key,
    /// First byte.
    pub offset: u64,
    /// Length at most.
    pub bytes_max: usize,
}

impl Shipping {
    pub(super) fn detach(&mut self) {
        self.channel = None;
        self.sequence = 0;
        self.starved = false;
        self.finished_sent = false;
    }

    pub(super) fn resume(&mut self, offset: u64) {
        self.shipped = offset;
        self.acknowledged = offset;
        self.starved = false;
        if let Some(finished) = &mut self.finished {
            // After a loss of power the server may have more than the disk kept.
            finished.log_length = finished.log_length.max(offset);
        }
    }

    /// The log ends too early or is damaged. While it grows, more may come; once it is final, the loss is told.
    fn break_off(&mut self, key: &Key) {
        self.starved = true;
        if let Some(finished) = &mut self.finished {
            tracing::error!(%key, offset = self.shipped, "the rest of the log is damaged and cannot be sent");
            finished.log_length = self.shipped;
            finished.output_truncated = true;
            self.log_length = self.shipped;
        }
    }

    fn room(&self, window: u64) -> u64 {
        (self.acknowledged + window).saturating_sub(self.shipped)
    }

    fn ready_at_ms(&self, window: u64) -> Option<u64> {
        let available = self.log_length.saturating_sub(self.shipped);
        if available == 0 || self.channel.is_none() || self.starved || self.unwanted || self.room(window) == 0 {
            return None;
        }
        let at_once = self.finished.is_some() || available >= CHUNK_BYTES as u64;
        Some(if at_once { 0 } else { self.due_ms })
    }
}

impl Session {
    /// A log has this length now.
    pub fn log_grew(&mut self, key: &Key, log_length: u64) {
        let Some(shipping) = self.executions.get_mut(key) else { return };
        if log_length > shipping.log_length {
            shipping.log_length = log_length;
            shipping.starved = false;
        }
        self.settle(key);
    }

    /// An execution is over; its outcome follows once its log is across.
    pub fn finished(&mut self, key: &Key, mut finished: Finished) {
        let Some(shipping) = self.executions.get_mut(key) else { return };
        finished.log_length = finished.log_length.max(shipping.acknowledged);
        shipping.log_length = shipping.log_length.max(finished.log_length);
        shipping.starved = false;
        shipping.finished = Some(Box::new(finished));
        shipping.needs_order = false;
        self.settle(key);
    }

    /// The piece of a log to send next, in turns among the executions that have something to send.
    #[must_use]
    pub fn next_read(&self, now: Now) -> Option<Read> {
        let Phase::Open(open) = &self.phase else { return None };
        let after = self.served.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let turns = self.unsent.range((after, Bound::Unbounded)).chain(&self.unsent);
        for key in turns {
            let Some(shipping) = self.executions.get(key) else { continue };
            if shipping.ready_at_ms(open.window).is_some_and(|at| now.monotonic_ms >= at) {
                let room = usize::try_from(shipping.room(open.window)).unwrap_or(usize::MAX);
                let rest = usize::try_from(shipping.log_length - shipping.shipped).unwrap_or(usize::MAX);
                let bytes_max = CHUNK_BYTES.min(room).min(rest);
                return Some(Read { key: key.clone(), offset: shipping.shipped, bytes_max });
            }
        }
        None
    }

    /// Makes a frame of what [`Session::next_read`] asked for; none when there is no whole record yet.
    pub fn ship(&mut self, read: &Read, bytes: &[u8], now: Now) -> Option<Vec<u8>> {
        self.served = Some(read.key.clone());
        let shipping = self.executions.get_mut(&read.key)?;
        let whole = whole_records_length(bytes);
        // Of a log that is final no more comes.
        let is_last = shipping.finished.is_some() && read.offset + bytes.len() as u64 >= shipping.log_length;
        let more_may_come = whole == Ok(0) && bytes.len() == read.bytes_max && !is_last;
        if more_may_come || shipping.shipped != read.offset {
            shipping.starved = true;
            return None;
        }
        let whole = whole.unwrap_or(0);
        if whole == 0 {
            shipping.break_off(&read.key);
            self.settle(&read.key);
            return None;
        }
        let raw = &bytes[..whole];
        let packed = zstd::bulk::compress(raw, ZSTD_LEVEL).ok().filter(|packed| packed.len() < raw.len());
        let header = Header {
            kind: Kind::Output,
            flags: if packed.is_some() { FLAG_ZSTD } else { 0 },
            channel: shipping.channel?,
            sequence: shipping.sequence,
            offset: shipping.shipped,
            raw_length: u32::try_from(whole).unwrap_or(u32::MAX),
        };
        shipping.sequence = shipping.sequence.wrapping_add(1);
        shipping.shipped += whole as u64;
        shipping.due_ms = now.monotonic_ms + pause_ms(whole as u64);
        let frame = header.encode(packed.as_deref().unwrap_or(raw));
        self.settle(&read.key);
        Some(frame)
    }

    /// When a chunk becomes due.
    pub(super) fn next_flush_ms(&self, window: u64) -> Option<u64> {
        self.unsent.iter().filter_map(|key| self.executions.get(key)?.ready_at_ms(window)).min()
    }

    pub(super) fn acknowledged(&mut self, channel: u32, offset: u64) {
        if let Some((key, shipping)) = self.shipping_on(channel) {
            shipping.acknowledged = shipping.acknowledged.max(offset);
            shipping.shipped = shipping.shipped.max(offset);
            shipping.starved = false;
            self.settle(&key);
        }
    }

    pub(super) fn resumed(&mut self, channel: u32, offset: u64) {
        if let Some((key, shipping)) = self.shipping_on(channel) {
            shipping.resume(offset);
            shipping.finished_sent = false;
            self.settle(&key);
        }
    }

    /// Notes whether there is something to send, and sends the outcome once the log is across.
    pub(super) fn settle(&mut self, key: &Key) {
        let open = self.is_open();
        let Some(shipping) = self.executions.get_mut(key) else { return };
        if shipping.log_length > shipping.shipped && !shipping.unwanted {
            self.unsent.insert(key.clone());
            return;
        }
        self.unsent.remove(key);
        let due = open && shipping.channel.is_some() && !shipping.finished_sent && !shipping.unwanted;
        if let Some(finished) = shipping.finished.as_ref().filter(|_| due) {
            self.outputs.push_back(Output::SendAfterData(ToServer::Finished(finished.clone())));
            shipping.finished_sent = true;
        }
    }

    fn shipping_on(&mut self, channel: u32) -> Option<(Key, &mut Shipping)> {
        let Some(Channel::Execution(key)) = self.channels.get(&channel) else { return None };
        let key = key.clone();
        self.executions.get_mut(&key).map(|shipping| (key, shipping))
    }
}
