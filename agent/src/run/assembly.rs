//! Putting a release's stream together from what is here and from the frames that are not.
//!
//! The stream is a file that is filled in any order: glue from the index, chunks from kept releases, chunks from frames
//! of the artifact. Nothing about its progress is noted: what it has is told by its content. Invariants: a chunk is
//! written after its digest was right; the file gets its name after the digest of the whole was.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use drover_shared::Digest;
use drover_shared::chunks::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX, Index, digest_of};
use drover_shared::limits::RANGES_MAX;
use drover_shared::message::Range;
use sha2::{Digest as _, Sha256};

use crate::durable;
use crate::release::{Layout, kept};

/// A stream that is not complete.
#[derive(Debug)]
pub(super) struct Assembly {
    index: Index,
    stream: File,
    part: PathBuf,
    /// Which chunks are in the stream.
    have: Vec<bool>,
    /// Frames that are needed, and how many of them have come.
    frames: Vec<u32>,
    done: usize,
    /// What has come of the next one.
    buffer: Vec<u8>,
    received: u64,
    total: u64,
}

/// What is put together, and from what.
#[derive(Debug)]
pub(super) struct Plan {
    /// The index.
    pub(super) index: PathBuf,
    /// Length of the artifact.
    pub(super) artifact_bytes: u64,
    /// The stream, as long as it is not complete.
    pub(super) part: PathBuf,
    /// Where releases are kept.
    pub(super) layout: Layout,
}

impl Plan {
    /// Looks what is here already, and what has to come.
    ///
    /// # Errors
    /// Why it cannot be put together, or is not worth it.
    pub(super) fn carry_out(self, given_up: &AtomicBool) -> io::Result<Assembly> {
        let mut options = OpenOptions::new();
        let stream = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.part)?;
        let earlier = stream.metadata()?.len();
        let index = Index::read(BufReader::new(File::open(&self.index)?), self.artifact_bytes, &mut |offset, glue| {
            stream.write_all_at(glue, offset)
        })?;
        // It is unpacked beside itself: where both have no room the whole artifact, which is smaller, may have.
        check_space(&self.part, &stream, index.stream_bytes.saturating_mul(2))?;
        stream.set_len(index.stream_bytes)?;
        let have = vec![false; index.chunks.len()];
        let mut assembly = Assembly {
            index,
            stream,
            part: self.part,
            have,
            frames: Vec::new(),
            done: 0,
            buffer: Vec::new(),
            received: 0,
            total: 0,
        };
        let mut stop = || given_up.load(Ordering::Relaxed);
        if earlier > 0 {
            assembly.look_at_earlier(&mut stop)?;
        }
        assembly.take_from(&self.layout, &mut stop)?;
        assembly.choose_frames();
        // Below a tenth it is not worth the longer way.
        if assembly.total.saturating_mul(10) > self.artifact_bytes.saturating_mul(9)
            || assembly.ranges().len() > RANGES_MAX
        {
            return Err(io::Error::other("hardly anything of it is here already"));
        }
        Ok(assembly)
    }
}

fn check_space(part: &Path, stream: &File, needed: u64) -> io::Result<()> {
    let Some(Ok(stat)) = part.parent().map(nix::sys::statvfs::statvfs) else { return Ok(()) };
    let free = stat.blocks_available() * stat.fragment_size();
    let more = needed.saturating_sub(stream.metadata()?.blocks() * 512);
    if more <= free {
        Ok(())
    } else {
        Err(io::Error::other(format!("{more} bytes are needed for it, {free} are free")))
    }
}

impl Assembly {
    /// Finds what an earlier agent put in.
    fn look_at_earlier(&mut self, stop: &mut dyn FnMut() -> bool) -> io::Result<()> {
        let mut content = vec![0; CHUNK_BYTES_MAX];
        for (chunk, have) in self.index.chunks.iter().zip(&mut self.have) {
            if stop() {
                return Err(io::Error::other("nobody needs it any more"));
            }
            let content = &mut content[..chunk.length as usize];
            *have = self.stream.read_exact_at(content, chunk.offset).is_ok() && digest_of(content) == chunk.digest;
        }
        Ok(())
    }

    /// Puts in what kept releases have.
    fn take_from(&mut self, layout: &Layout, stop: &mut dyn FnMut() -> bool) -> io::Result<()> {
        let missing = self.index.chunks.iter().enumerate().filter(|(at, _)| !self.have[*at]);
        let mut places: HashMap<_, Vec<usize>> = HashMap::new();
        for (at, chunk) in missing {
            places.entry(chunk.digest).or_default().push(at);
        }
        let mut wanted: HashSet<_> = places.keys().copied().collect();
        let (chunks, stream, have) = (&self.index.chunks, &self.stream, &mut self.have);
        let mut found = |digest, content: &[u8]| {
            for at in places.get(&digest).into_iter().flatten() {
                if chunks[*at].length as usize == content.len() {
                    stream.write_all_at(content, chunks[*at].offset)?;
                    have[*at] = true;
                }
            }
            Ok(())
        };
        kept::gather(layout, &mut wanted, &mut found, stop)
    }

    fn choose_frames(&mut self) {
        let missing = self.index.chunks.iter().zip(&self.have).filter(|(_, have)| !**have);
        self.frames = missing.map(|(chunk, _)| chunk.frame).collect();
        self.frames.dedup();
        self.total = self.frames.iter().map(|frame| u64::from(self.index.frames[*frame as usize].length)).sum();
    }

    /// Parts of the artifact that are needed, in order.
    pub(super) fn ranges(&self) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for frame in &self.frames {
            let frame = &self.index.frames[*frame as usize];
            match ranges.last_mut().filter(|last| last.offset + last.length == frame.offset) {
                Some(last) => last.length += u64::from(frame.length),
                None => ranges.push(Range { offset: frame.offset, length: frame.length.into() }),
            }
        }
        ranges
    }

    /// Length of these parts together.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// How much of them has come.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Room that it still takes on the disk.
    pub(super) fn missing(&self) -> u64 {
        let missing = self.index.chunks.iter().zip(&self.have).filter(|(_, have)| !**have);
        missing.map(|(chunk, _)| u64::from(chunk.length)).sum()
    }

    /// Takes the next bytes of the parts in.
    ///
    /// # Errors
    /// They are not what the index says, or cannot be written.
    pub(super) fn accept(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.received += bytes.len() as u64;
        if self.received > self.total {
            return Err(io::Error::other("more of it came than was asked for"));
        }
        self.buffer.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(number) = self.frames.get(self.done).copied() {
            let length = self.index.frames[number as usize].length as usize;
            let Some(packed) = self.buffer.get(used..used + length) else { break };
            let unpacked = zstd::bulk::decompress(packed, FRAME_BYTES_MAX)?;
            used += length;
            self.done += 1;
            self.take_frame(number, &unpacked)?;
        }
        self.buffer.drain(..used);
        Ok(())
    }

    fn take_frame(&mut self, number: u32, unpacked: &[u8]) -> io::Result<()> {
        let wrong = || io::Error::other("a frame of the artifact is not what its index says");
        let frame = self.index.frames[number as usize];
        if unpacked.len() != frame.stream_length as usize {
            return Err(wrong());
        }
        let first = self.index.chunks.partition_point(|chunk| chunk.frame < number);
        for (at, chunk) in self.index.chunks_of(number).iter().enumerate() {
            if self.have[first + at] {
                continue;
            }
            let from = usize::try_from(chunk.offset - frame.stream_offset).map_err(io::Error::other)?;
            let content = unpacked.get(from..from + chunk.length as usize).ok_or_else(wrong)?;
            if digest_of(content) != chunk.digest {
                return Err(wrong());
            }
            self.stream.write_all_at(content, chunk.offset)?;
            self.have[first + at] = true;
        }
        Ok(())
    }

    /// Compares the whole and gives it its name.
    ///
    /// # Errors
    /// It is not what the index says, or cannot be made durable.
    pub(super) fn finish(mut self, name: &Path) -> io::Result<()> {
        self.stream.seek(SeekFrom::Start(0))?;
        let (mut hash, mut piece, mut length) = (Sha256::new(), vec![0; 128 * 1024], 0);
        loop {
            match self.stream.read(&mut piece)? {
                0 => break,
                count => {
                    hash.update(&piece[..count]);
                    length += count as u64;
                }
            }
        }
        let found = Digest::from_bytes(hash.finalize().into());
        if found != self.index.digest || length != self.index.stream_bytes {
            return Err(io::Error::other(format!(
                "what was put together has digest {found}, not {}",
                self.index.digest
            )));
        }
        self.stream.sync_all()?;
        fs::rename(&self.part, name)?;
        name.parent().map_or(Ok(()), durable::sync_folder)
    }
}
