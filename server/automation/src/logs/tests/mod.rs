//! Promises of the log store, tried on real files.

mod late;
mod recovery;
mod removing;
mod searching;
mod viewers;

use std::path::Path;

use bytes::Bytes;
use drover_shared::record::{Record, Stream};

use super::{AppendError, Format, LogReader, LogStore, Options, TaskLog};

/// A small generator of numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn store(folder: &Path) -> LogStore {
    LogStore::open(folder, Options { reserve_bytes: 0, ..Options::default() }).unwrap()
}

fn record(step: u16, stream: Stream, payload: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    Record { time_ms: 7, step, stream, payload }.encode(&mut raw);
    raw
}

fn output(payload: &[u8]) -> Vec<u8> {
    record(0, Stream::Output, payload)
}

async fn append(log: &TaskLog, source: u32, offset: u64, raw: &[u8]) -> Result<u64, AppendError> {
    let length = u32::try_from(raw.len()).unwrap();
    log.append(source, offset, 0, length, Bytes::copy_from_slice(raw)).await.map(|appended| appended.durable)
}

async fn drain(mut reader: LogReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(frame) = reader.next_frame().await.unwrap() {
        assert!(!frame.bytes.is_empty());
        bytes.extend_from_slice(&frame.bytes);
    }
    bytes
}

async fn text_now(log: &TaskLog) -> String {
    String::from_utf8(drain(log.reader(0, Format::Text).until_now()).await).unwrap()
}
