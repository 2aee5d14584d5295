//! Sending an artifact to an agent, from any offset, no further ahead than the agent allows.

use std::sync::Arc;

use drover_shared::Digest;
use drover_shared::frame::{FLAG_END, Header, Kind};
use drover_shared::limits::ARTIFACT_WINDOW_BYTES;
use drover_shared::message::ToAgent;
use tokio::sync::{mpsc, watch};

use super::hub::Session;
use crate::artifacts::ArtifactStore;

/// Bytes of an artifact in one frame.
const PIECE: usize = 128 * 1024;

/// Sends the artifact until its end, until the agent needs no more of it (its `acknowledged` is dropped), or until the
/// session is over.
pub(super) async fn send(
    session: Arc<Session>,
    artifacts: ArtifactStore,
    frames: mpsc::Sender<Vec<u8>>,
    channel: u32,
    digest: Digest,
    from: u64,
    mut acknowledged: watch::Receiver<u64>,
) {
    let file = match tokio::task::spawn_blocking(move || artifacts.read(digest)).await {
        Ok(Ok(file)) if from <= file.size_bytes() => Arc::new(file),
        Ok(Ok(_)) => return refuse(&session, channel, "the offset is beyond the artifact's end").await,
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
        let reader = file.clone();
        let piece = match tokio::task::spawn_blocking(move || reader.read_at(offset, PIECE)).await {
            Ok(Ok(piece)) => piece,
            _ => return refuse(&session, channel, "the artifact cannot be read").await,
        };
        let end = offset + piece.len() as u64 >= file.size_bytes();
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
