//! Log records: how output is kept on the agent, sent, and kept on the server.
//!
//! The output of an execution is a sequence of records. A record is a header of 16 bytes, big-endian, and a payload:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..8  | time, milliseconds since 1970 UTC by the host's wall clock |
//! | 8..10 | index of the step in the order |
//! | 10    | stream, see [`Stream`] |
//! | 11    | reserved, zero |
//! | 12..16 | length of the payload |
//!
//! Offsets into a log count record bytes, headers included. Invariant: a log is a whole number of records, and so is
//! every chunk that is sent.

use crate::limits::RECORD_PAYLOAD_BYTES_MAX;

/// Length of a record's header in bytes.
pub const HEADER_BYTES: usize = 16;

/// Where a record's payload came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// The script's standard output.
    Output,
    /// The script's standard error.
    Error,
    /// A line of Drover's own, for people: UTF-8, ends with a newline.
    Notice,
    /// A JSON object of type [`StepEvent`](crate::message::StepEvent): not shown as text.
    Event,
}

impl Stream {
    /// The number in the header.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Output => 1,
            Self::Error => 2,
            Self::Notice => 3,
            Self::Event => 4,
        }
    }

    /// The stream with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Output, Self::Error, Self::Notice, Self::Event].into_iter().find(|stream| stream.code() == code)
    }

    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Output => "stdout",
            Self::Error => "stderr",
            Self::Notice => "notice",
            Self::Event => "event",
        }
    }

    /// Whether the payload is part of the text that people read.
    #[must_use]
    pub fn is_text(self) -> bool {
        !matches!(self, Self::Event)
    }
}

/// One record, borrowed from the bytes it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Milliseconds since 1970 UTC by the host's wall clock.
    pub time_ms: i64,
    /// Index of the step in the order.
    pub step: u16,
    /// Where the payload came from.
    pub stream: Stream,
    /// The bytes, at most [`RECORD_PAYLOAD_BYTES_MAX`].
    pub payload: &'a [u8],
}

/// Bytes that are not a sequence of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// The bytes end inside a record: read more.
    Incomplete,
    /// No writer of this protocol makes this.
    Malformed(&'static str),
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Incomplete => f.write_str("the log ends inside a record"),
            Self::Malformed(why) => write!(f, "malformed log record: {why}"),
        }
    }
}

impl std::error::Error for RecordError {}

impl<'a> Record<'a> {
    /// Appends this record to `into`, as several records if the payload is longer than one may be.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let mut rest = self.payload;
        loop {
            let (piece, after) = rest.split_at(rest.len().min(RECORD_PAYLOAD_BYTES_MAX));
            into.extend_from_slice(&self.time_ms.to_be_bytes());
            into.extend_from_slice(&self.step.to_be_bytes());
            into.push(self.stream.code());
            into.push(0);
            into.extend_from_slice(&u32::try_from(piece.len()).unwrap_or(u32::MAX).to_be_bytes());
            into.extend_from_slice(piece);
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Reads the record at the start of `bytes` and gives the bytes after it.
    ///
    /// # Errors
    /// [`RecordError::Incomplete`] when `bytes` ends too early, [`RecordError::Malformed`] when it is no record.
    pub fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), RecordError> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(RecordError::Incomplete)?;
        let stream = Stream::from_code(header[10]).ok_or(RecordError::Malformed("unknown stream"))?;
        let length = u32::from_be_bytes([header[12], header[13], header[14], header[15]]) as usize;
        if length > RECORD_PAYLOAD_BYTES_MAX {
            return Err(RecordError::Malformed("payload too long"));
        }
        if rest.len() < length {
            return Err(RecordError::Incomplete);
        }
        let (payload, rest) = rest.split_at(length);
        let mut time = [0; 8];
        time.copy_from_slice(&header[..8]);
        let record = Self {
            time_ms: i64::from_be_bytes(time),
            step: u16::from_be_bytes([header[8], header[9]]),
            stream,
            payload,
        };
        Ok((record, rest))
    }
}

/// Iterates over the records in `bytes`; ends after the last, or with the first error.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>, RecordError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match Record::decode(rest) {
            Ok((record, after)) => {
                rest = after;
                Some(Ok(record))
            }
            Err(error) => {
                rest = &[];
                Some(Err(error))
            }
        }
    })
}

/// How many bytes at the start of `bytes` are whole records.
///
/// # Errors
/// [`RecordError::Malformed`] when something in between is no record.
pub fn whole_records_length(bytes: &[u8]) -> Result<usize, RecordError> {
    let mut rest = bytes;
    loop {
        match Record::decode(rest) {
            Ok((_, after)) => rest = after,
            Err(RecordError::Incomplete) => return Ok(bytes.len() - rest.len()),
            Err(error @ RecordError::Malformed(_)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_written() {
        let mut log = Vec::new();
        let long = vec![b'x'; RECORD_PAYLOAD_BYTES_MAX + 1];
        Record { time_ms: 7, step: 2, stream: Stream::Error, payload: b"oh" }.encode(&mut log);
        Record { time_ms: 8, step: 3, stream: Stream::Output, payload: &long }.encode(&mut log);
        Record { time_ms: 9, step: 3, stream: Stream::Output, payload: b"" }.encode(&mut log);
        let read: Vec<_> = records(&log).map(|record| record.map(|r| (r.time_ms, r.step, r.payload.len()))).collect();
        assert_eq!(read, [Ok((7, 2, 2)), Ok((8, 3, RECORD_PAYLOAD_BYTES_MAX)), Ok((8, 3, 1)), Ok((9, 3, 0))]);
    }

    #[test]
    fn a_torn_end_is_told_from_nonsense() {
        let mut log = Vec::new();
        Record { time_ms: 1, step: 0, stream: Stream::Output, payload: b"whole" }.encode(&mut log);
        let whole = log.len();
        Record { time_ms: 1, step: 0, stream: Stream::Output, payload: b"torn" }.encode(&mut log);
        for cut in whole..log.len() {
            assert_eq!(whole_records_length(&log[..cut]), Ok(whole), "cut at {cut}");
        }
        log[whole + 10] = 99;
        assert_eq!(whole_records_length(&log), Err(RecordError::Malformed("unknown stream")));
    }
}
