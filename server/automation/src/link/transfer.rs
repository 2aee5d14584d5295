//! Sending an artifact to an agent, from any offset, no further ahead than the agent allows.

use std::sync::Arc;

use drover_kernel::at_once::blocking;
use drover_shared::Digest;
use drover_shared::frame::{FLAG_END, Header, Kind};
use drover_shared::limits::{ARTIFACT_WINDOW_BYTES, RANGES_MAX};
use drover_shared::message::{Part, Range, ToAgent};
use tokio::sync::{mpsc, watch};

use super::hub::Session;
use crate::artifacts::{ArtifactError, ArtifactFile, ArtifactStore};

/// Bytes of an artifact in one frame.
const PIECE: usize = 128 * 1024;

/// What is asked for of an artifact.
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) part: Part,
    /// Where in the part to begin.
    pub(super) from: u64,
}

/// A part of an artifact that is open, as one row of bytes.
struct Content {
    file: ArtifactFile,
    ranges: Vec<Range>,
    length: u64,
}

impl Content {
    /// None if the part is none of the artifact.
    fn open(artifacts: &ArtifactStore, digest: Digest, part: Part) -> Result<Option<Self>, ArtifactError> {
        let (file, ranges) = match part {
            Part::Whole => (artifacts.read(digest)?, None),
            Part::Index => (artifacts.read_index(digest)?, None),
            Part::Ranges(ranges) => (artifacts.read(digest)?, Some(ranges)),
        };
        let ranges = ranges.unwrap_or_else(|| vec![Range { offset: 0, length: file.size_bytes() }]);
        let mut end = 0;
        for range in &ranges {
            let next = range.offset.checked_add(range.length).filter(|next| *next <= file.size_bytes());
            let Some(next) = next.filter(|_| range.offset >= end) else { return Ok(None) };
            end = next;
        }
        let length = ranges.iter().map(|range| range.length).sum();
        Ok((ranges.len() <= RANGES_MAX).then_some(Self { file, ranges, length }))
    }

    /// Some bytes from an offset of the row on; none at its end.
    fn read_at(&self, offset: u64) -> Result<bytes::Bytes, ArtifactError> {
        let mut before = 0;
        for range in &self.ranges {
            let within = offset - before;
            if within < range.length {
                let most = usize::try_from(range.length - within).unwrap_or(PIECE).min(PIECE);
                return self.file.read_at(range.offset + within, most);
            }
            before += range.length;
        }
        Ok(bytes::Bytes::new())
    }
}

/// Sends the artifact until its end, until the agent needs no more of it (its `acknowledged` is dropped), or until the
/// session is over.
pub(super) async fn send(
    session: Arc<Session>,
    artifacts: ArtifactStore,
    frames: mpsc::Sender<Vec<u8>>,
    channel: u32,
    wanted: Wanted,
    mut acknowledged: watch::Receiver<u64>,
) {
    let Wanted { digest, part, from } = wanted;
    let content = match blocking(move || Content::open(&artifacts, digest, part)).await {
        Ok(Ok(Some(content))) if from <= content.length => Arc::new(content),
        Ok(Ok(_)) => return refuse(&session, channel, "what is asked for is beyond the artifact's end").await,
        Ok(Err(error)) => return refuse(&session, channel, &error.to_string()).await,
        Err(_) => return refuse(&session, channel, "the artifact cannot be read").await,
    };
    let mut offset = from;
    let mut sequence = 0;
    loop {
        while offset >= acknowledged.borrow_and_update().saturating_add(ARTIFACT_WINDOW_BYTES) {
            let over = tokio::select! {
                changed = acknowledged.changed() => changed.is_err(),
                () = session.closed.cancelled() => true,
            };
            if over {
                return;
            }
        }
        let reader = content.clone();
        let piece = match blocking(move || reader.read_at(offset)).await {
            Ok(Ok(piece)) => piece,
            _ => return refuse(&session, channel, "the artifact cannot be read").await,
        };
        let end = offset + piece.len() as u64 >= content.length;
        let header = Header {
            kind: Kind::Artifact,
            flags: if end { FLAG_END } else { 0 },
            channel,
            sequence,
            offset,
            raw_length: u32::try_from(piece.len()).unwrap_or(u32::MAX),
        };
        offset += piece.len() as u64;
        sequence = sequence.wrapping_add(1);
        let frame = header.encode(&piece);
        let sent = tokio::select! {
            sent = frames.send(frame) => sent.is_ok(),
            () = session.closed.cancelled() => false,
        };
        if !sent || end {
            return;
        }
    }
}

async fn refuse(session: &Session, channel: u32, reason: &str) {
    session.send(ToAgent::ArtifactRefused { channel, reason: reason.to_owned() }).await;
}
