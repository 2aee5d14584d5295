//! Layout of a task's log file: what is written, byte by byte.
//!
//! The file begins with 16 bytes: `DRVLOG`, the version of this layout as u16, the task's id as u64. Chunks follow, each
//! a header of 40 bytes, big-endian, and a body:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..2   | magic, [`MAGIC`] |
//! | 2..4   | flags, see [`FLAG_ZSTD`] and [`FLAG_END`] |
//! | 4..8   | source: ordinal of the execution within the task; 0 is the server itself |
//! | 8..16  | offset of the body's first record byte in the log of that source |
//! | 16..20 | length of the body before compression |
//! | 20..24 | length of the body as stored |
//! | 24..32 | bytes of text in the task before this chunk |
//! | 32..36 | bytes of text in this chunk |
//! | 36..40 | CRC-32 (IEEE 802.3) of bytes 0..36 and the body as stored |
//!
//! Invariant: a chunk is a whole number of records, or the end mark whose body is the task's final state.

use std::io::Read as _;

use bytes::Bytes;
use drover_shared::frame;
use drover_shared::limits::DATA_BYTES_MAX;
use drover_shared::record::{self, records};

/// Length of the head of the file.
pub(super) const FILE_HEAD_BYTES: u64 = 16;
/// Length of a chunk's header.
pub(super) const HEADER_BYTES: usize = 40;
/// First two bytes of every chunk.
pub(super) const MAGIC: u16 = 0xD7C5;
/// The body is one zstd frame (RFC 8878).
pub(super) const FLAG_ZSTD: u16 = frame::FLAG_ZSTD;
/// The body is the final state of the task. What comes after it was late and opens the log again; the last mark counts.
pub(super) const FLAG_END: u16 = 2;
/// A compressed body may be a little longer than what it holds.
pub(super) const STORED_BYTES_MAX: usize = DATA_BYTES_MAX + 4096;

const FILE_MAGIC: &[u8; 6] = b"DRVLOG";
const FILE_VERSION: u16 = 1;

/// The first bytes of the log of `task_id`.
pub(super) fn file_head(task_id: u64) -> [u8; 16] {
    let mut head = [0; 16];
    head[..6].copy_from_slice(FILE_MAGIC);
    head[6..8].copy_from_slice(&FILE_VERSION.to_be_bytes());
    head[8..].copy_from_slice(&task_id.to_be_bytes());
    head
}

/// The header of a chunk, its checksum aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u16,
    pub(super) source: u32,
    pub(super) offset: u64,
    pub(super) raw_length: u32,
    pub(super) stored_length: u32,
    pub(super) text_offset: u64,
    pub(super) text_length: u32,
}

impl Header {
    /// Appends the chunk to `into`.
    pub(super) fn encode(&self, body: &[u8], into: &mut Vec<u8>) {
        let start = into.len();
        into.extend_from_slice(&MAGIC.to_be_bytes());
        into.extend_from_slice(&self.flags.to_be_bytes());
        into.extend_from_slice(&self.source.to_be_bytes());
        into.extend_from_slice(&self.offset.to_be_bytes());
        into.extend_from_slice(&self.raw_length.to_be_bytes());
        into.extend_from_slice(&self.stored_length.to_be_bytes());
        into.extend_from_slice(&self.text_offset.to_be_bytes());
        into.extend_from_slice(&self.text_length.to_be_bytes());
        let sum = checksum(&into[start..], body);
        into.extend_from_slice(&sum.to_be_bytes());
        into.extend_from_slice(body);
    }

    /// Reads a header; none when these bytes cannot begin a chunk. The checksum is read too, but not verified.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        let head = bytes.first_chunk::<HEADER_BYTES>()?;
        let two = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let four = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let eight = |at: usize| (u64::from(four(at)) << 32) | u64::from(four(at + 4));
        let header = Self {
            flags: two(2),
            source: four(4),
            offset: eight(8),
            raw_length: four(16),
            stored_length: four(20),
            text_offset: eight(24),
            text_length: four(32),
        };
        let sane = two(0) == MAGIC
            && header.stored_length as usize <= STORED_BYTES_MAX
            && header.raw_length as usize <= DATA_BYTES_MAX
            && header.text_length <= header.raw_length;
        sane.then_some((header, four(36)))
    }

    /// Length of the whole chunk in the file.
    pub(super) fn chunk_length(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.stored_length)
    }

    /// Whether this is the end mark.
    pub(super) fn is_end(&self) -> bool {
        self.flags & FLAG_END != 0
    }

    /// The record bytes of a stored body.
    pub(super) fn expand(&self, stored: Bytes) -> Result<Bytes, &'static str> {
        expand(self.flags, self.raw_length, stored)
    }
}

/// The checksum of a chunk whose header begins with `head` (36 bytes).
pub(super) fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[..HEADER_BYTES - 4]);
    hasher.update(body);
    hasher.finalize()
}

/// The record bytes of a body; never makes more than `raw_length` bytes of it.
pub(super) fn expand(flags: u16, raw_length: u32, stored: Bytes) -> Result<Bytes, &'static str> {
    let raw_length = raw_length as usize;
    if raw_length > DATA_BYTES_MAX {
        return Err("it is longer than a chunk may be");
    }
    if flags & FLAG_ZSTD == 0 {
        return if stored.len() == raw_length { Ok(stored) } else { Err("its length is not the one announced") };
    }
    let decoder = zstd::stream::read::Decoder::with_buffer(&stored[..]).map_err(|_| "it does not decompress")?;
    let mut raw = Vec::with_capacity(raw_length + 1);
    let mut bounded = decoder.take(raw_length as u64 + 1);
    bounded.read_to_end(&mut raw).map_err(|_| "it does not decompress")?;
    if raw.len() != raw_length {
        return Err("its length is not the one announced");
    }
    Ok(raw.into())
}

/// How many bytes of text these records hold; an error when they are not whole valid records.
pub(super) fn text_length(raw: &[u8]) -> Result<u32, &'static str> {
    let mut length = 0;
    for record in records(raw) {
        let record = record.map_err(|error| match error {
            record::RecordError::Incomplete => "it ends inside a record",
            record::RecordError::Malformed(why) => why,
        })?;
        if record.stream.is_text() {
            length += record.payload.len();
        }
    }
    u32::try_from(length).map_err(|_| "it is longer than a chunk may be")
}
