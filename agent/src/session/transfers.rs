//! Artifacts on their way from the server.

use drover_shared::Digest;
use drover_shared::frame::{FLAG_END, FLAG_ZSTD, Header};
use drover_shared::message::{Part, ToServer};

use super::{Channel, Output, Session};

/// One artifact.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) channel: Option<u32>,
    execution_id: String,
    /// What of it is wanted; offsets count within that.
    part: Part,
    /// Offset of the next byte that has not come.
    next: u64,
    /// Bytes that are in the file.
    written: u64,
}

impl Session {
    /// Asks for a part of an artifact from `offset` on, now and after every reconnect, until [`Session::fetch_done`].
    pub fn fetch(&mut self, digest: Digest, part: Part, offset: u64, execution_id: &str) {
        let execution_id = execution_id.to_owned();
        self.transfers.insert(digest, Transfer { channel: None, execution_id, part, next: offset, written: offset });
        if self.is_open() {
            self.request(digest);
        }
    }

    /// From now on an artifact is asked for on behalf of this execution: the one before needs it no more.
    pub fn fetch_for(&mut self, digest: Digest, execution_id: &str) {
        if let Some(transfer) = self.transfers.get_mut(&digest) {
            execution_id.clone_into(&mut transfer.execution_id);
        }
    }

    /// The artifact is in the file up to this offset.
    pub fn artifact_written(&mut self, digest: Digest, offset: u64) {
        let Some(transfer) = self.transfers.get_mut(&digest) else { return };
        transfer.written = offset;
        if let Some(channel) = transfer.channel {
            self.outputs.push_back(Output::Send(ToServer::FetchAck { channel, offset }));
        }
    }

    /// No more of this artifact is needed.
    pub fn fetch_done(&mut self, digest: Digest) {
        if let Some(channel) = self.transfers.remove(&digest).and_then(|transfer| transfer.channel) {
            self.channels.remove(&channel);
            self.outputs.push_back(Output::Send(ToServer::FetchDone { channel }));
        }
    }

    pub(super) fn request_all(&mut self) {
        let digests: Vec<Digest> = self.transfers.keys().copied().collect();
        for digest in digests {
            self.request(digest);
        }
    }

    fn request(&mut self, digest: Digest) {
        let channel = self.next_channel;
        let Some(transfer) = self.transfers.get_mut(&digest) else { return };
        self.next_channel += 1;
        transfer.next = transfer.written;
        transfer.channel = Some(channel);
        let (offset, execution_id, part) = (transfer.written, transfer.execution_id.clone(), transfer.part.clone());
        self.channels.insert(channel, Channel::Transfer(digest));
        self.outputs.push_back(Output::Send(ToServer::Fetch { channel, digest, offset, execution_id, part }));
    }

    pub(super) fn handle_artifact(&mut self, header: Header, body: &[u8]) {
        let Some(Channel::Transfer(digest)) = self.channels.get(&header.channel) else { return };
        let digest = *digest;
        let Some(transfer) = self.transfers.get_mut(&digest) else { return };
        let raw_length = header.raw_length as usize;
        let raw = if header.flags & FLAG_ZSTD != 0 {
            zstd::bulk::decompress(body, raw_length).ok()
        } else {
            Some(body.to_vec())
        };
        let Some(mut raw) = raw.filter(|raw| raw.len() == raw_length) else {
            return self.close("the server sent a piece of an artifact that cannot be unpacked".to_owned(), true);
        };
        if header.offset > transfer.next {
            // Something is missing: ask again from what is there.
            self.channels.remove(&header.channel);
            self.outputs.push_back(Output::Send(ToServer::FetchDone { channel: header.channel }));
            return self.request(digest);
        }
        let known = usize::try_from(transfer.next - header.offset).unwrap_or(usize::MAX);
        if known > 0 {
            raw.drain(..known.min(raw.len()));
        }
        let offset = transfer.next;
        transfer.next += raw.len() as u64;
        if !raw.is_empty() {
            self.outputs.push_back(Output::Artifact(digest, offset, raw));
        }
        if header.flags & FLAG_END != 0 {
            self.outputs.push_back(Output::ArtifactEnded(digest, header.offset + u64::from(header.raw_length)));
        }
    }

    pub(super) fn artifact_refused(&mut self, channel: u32, reason: String) {
        let Some(Channel::Transfer(digest)) = self.channels.remove(&channel) else { return };
        self.transfers.remove(&digest);
        self.outputs.push_back(Output::ArtifactRefused(digest, reason));
    }
}
