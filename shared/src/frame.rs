//! Data frames: the binary half of the link.
//!
//! A data frame is a header of 32 bytes, big-endian, and a body:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0      | kind, see [`Kind`] |
//! | 1      | version of this layout, 1 |
//! | 2..4   | flags, see [`FLAG_ZSTD`] and [`FLAG_END`] |
//! | 4..8   | channel: which execution or transfer, numbered by the agent for the length of one session |
//! | 8..12  | sequence, counted from 0 for each channel and session |
//! | 12..20 | offset of the body's first raw byte in the log or artifact |
//! | 20..24 | length of the body before compression |
//! | 24..28 | CRC-32 (IEEE 802.3) of the body as sent |
//! | 28..32 | reserved, zero |

use crate::limits::DATA_BYTES_MAX;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 32;

/// The body is one independent zstd frame (RFC 8878).
pub const FLAG_ZSTD: u16 = 1;
/// Nothing comes after this body: it ends the artifact.
pub const FLAG_END: u16 = 2;

/// What a data frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Log records of an execution, agent to server.
    Output,
    /// Bytes of an artifact, server to agent.
    Artifact,
}

/// The header of a data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// [`FLAG_ZSTD`] and [`FLAG_END`].
    pub flags: u16,
    /// Which execution or transfer.
    pub channel: u32,
    /// Counted from 0 for each channel and session.
    pub sequence: u32,
    /// Offset of the first raw byte.
    pub offset: u64,
    /// Length of the body before compression.
    pub raw_length: u32,
}

/// Why bytes are no data frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than a header.
    Short,
    /// A kind or layout that this build does not know: skip the frame.
    Unknown,
    /// The body is not what its sender sent.
    Checksum,
    /// The raw length is above [`DATA_BYTES_MAX`].
    TooLong,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Short => "data frame is shorter than its header",
            Self::Unknown => "data frame of an unknown kind",
            Self::Checksum => "data frame fails its checksum",
            Self::TooLong => "data frame is too long",
        })
    }
}

impl std::error::Error for FrameError {}

impl Header {
    /// The frame: this header, then `body` as it is (already compressed if the flag says so).
    #[must_use]
    pub fn encode(&self, body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
        frame.push(match self.kind {
            Kind::Output => 1,
            Kind::Artifact => 2,
        });
        frame.push(1);
        frame.extend_from_slice(&self.flags.to_be_bytes());
        frame.extend_from_slice(&self.channel.to_be_bytes());
        frame.extend_from_slice(&self.sequence.to_be_bytes());
        frame.extend_from_slice(&self.offset.to_be_bytes());
        frame.extend_from_slice(&self.raw_length.to_be_bytes());
        frame.extend_from_slice(&crc32fast::hash(body).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(body);
        frame
    }

    /// Splits a frame into header and body, the checksum verified.
    ///
    /// # Errors
    /// See [`FrameError`]; [`FrameError::Unknown`] asks to skip the frame, the others to end the session.
    pub fn decode(frame: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (head, body) = frame.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::Short)?;
        let kind = match (head[0], head[1]) {
            (1, 1) => Kind::Output,
            (2, 1) => Kind::Artifact,
            _ => return Err(FrameError::Unknown),
        };
        let four = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let header = Self {
            kind,
            flags: u16::from_be_bytes([head[2], head[3]]),
            channel: four(4),
            sequence: four(8),
            offset: (u64::from(four(12)) << 32) | u64::from(four(16)),
            raw_length: four(20),
        };
        if header.raw_length as usize > DATA_BYTES_MAX {
            return Err(FrameError::TooLong);
        }
        if crc32fast::hash(body) != four(24) {
            return Err(FrameError::Checksum);
        }
        Ok((header, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        Header { kind: Kind::Output, flags: FLAG_ZSTD, channel: 3, sequence: 9, offset: (5 << 32) | 7, raw_length: 4 }
    }

    #[test]
    fn a_frame_comes_back_as_sent() {
        let frame = sample().encode(b"body");
        assert_eq!(Header::decode(&frame), Ok((sample(), b"body".as_slice())));
    }

    #[test]
    fn damage_is_seen() {
        let mut frame = sample().encode(b"body");
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert_eq!(Header::decode(&frame), Err(FrameError::Checksum));
        assert_eq!(Header::decode(&frame[..HEADER_BYTES - 1]), Err(FrameError::Short));
        frame[0] = 77;
        assert_eq!(Header::decode(&frame), Err(FrameError::Unknown));
    }
}
