//! What an artifact is made of, so that only what changed has to be moved.
//!
//! An artifact is a tar stream in independent zstd frames (RFC 8878), one behind the other. Its **index** says what the
//! stream consists of: *glue* (headers and padding), which stands in the index itself, and *chunks* of files' content,
//! each with its digest; and which frame holds them. Contents are cut by [`Cutter`] where they say so themselves
//! (FastCDC), so that the same content gives the same chunks wherever it stands. The index is a zstd frame of records:
//!
//! | first byte | then | meaning |
//! |---|---|---|
//! | `I` | `DXv1` | the beginning |
//! | `G` | length (4 bytes), bytes | glue |
//! | `C` | length (4 bytes), first 16 bytes of the content's SHA-256 | a chunk |
//! | `F` | length in the artifact (4 bytes) | ends a frame |
//! | `E` | length of the stream (8 bytes), its SHA-256 | the end |
//!
//! Numbers are big-endian. Invariant: nothing that an index says is believed before it was compared with its bounds, and
//! nothing that was put together by it before the digest of the whole stream is right.

use std::io::{self, Read, Write};

use fastcdc::v2020::StreamCDC;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Length of the least and the longest chunk, and of one in the middle, in bytes; only a file's last may be shorter.
const CHUNK_BYTES: (usize, usize, usize) = (16 * 1024, 64 * 1024, 256 * 1024);
/// Files up to this length are one chunk: its digest begins as the file's.
pub const WHOLE_BYTES_MAX: u64 = 64 * 1024;
/// Longest chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = CHUNK_BYTES.2;
/// Length of the stream in a frame above which the frame ends, in bytes.
pub const FRAME_BYTES: usize = 32 * 1024;
/// Longest frame before and after compression, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Most chunks of an index, and most frames: an agent keeps them in memory.
pub const CHUNKS_MAX: usize = 250_000;
/// Longest index as it travels, and what it may unpack to, in bytes.
pub const INDEX_BYTES_MAX: u64 = 16 * 1024 * 1024;
const INDEX_UNPACKED_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Longest piece of glue in one record, in bytes.
const GLUE_BYTES_MAX: usize = 64 * 1024;
/// Longest stream, in bytes.
const STREAM_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

const MAGIC: &[u8; 5] = b"IDXv1";

/// The first 16 bytes of the SHA-256 of a chunk: enough to find it, and the whole stream is compared in the end.
pub type ChunkDigest = [u8; 16];

/// The digest of a chunk.
#[must_use]
pub fn digest_of(chunk: &[u8]) -> ChunkDigest {
    short(Digest::of(chunk))
}

/// The digest of the chunk that a whole file is, by the file's own.
#[must_use]
pub fn short(digest: Digest) -> ChunkDigest {
    let mut first = [0; 16];
    first.copy_from_slice(&digest.bytes()[..16]);
    first
}

/// Cuts a file's content into chunks.
pub struct Cutter<R: Read> {
    kind: Kind<R>,
}

enum Kind<R: Read> {
    Whole(Option<R>, u64),
    Cut(Box<StreamCDC<R>>),
}

impl<R: Read> Cutter<R> {
    /// Cuts what `content` gives, which is `length` bytes.
    #[must_use]
    pub fn new(content: R, length: u64) -> Self {
        let (least, middle, most) = CHUNK_BYTES;
        let kind = if length <= WHOLE_BYTES_MAX {
            Kind::Whole(Some(content), length)
        } else {
            Kind::Cut(Box::new(StreamCDC::new(content, least, middle, most)))
        };
        Self { kind }
    }
}

impl<R: Read> Iterator for Cutter<R> {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.kind {
            Kind::Cut(cutter) => cutter.next().map(|chunk| chunk.map(|chunk| chunk.data).map_err(io::Error::from)),
            Kind::Whole(content, length) => {
                let mut chunk = Vec::with_capacity(usize::try_from(*length).unwrap_or(0));
                match content.take()?.take(WHOLE_BYTES_MAX + 1).read_to_end(&mut chunk) {
                    Ok(0) => None,
                    Ok(_) => Some(Ok(chunk)),
                    Err(error) => Some(Err(error)),
                }
            }
        }
    }
}

/// Puts an index together; gives up when it would be too long.
pub struct IndexWriter {
    out: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    chunks: usize,
    frames: usize,
}

impl IndexWriter {
    /// Begins an index.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> io::Result<Self> {
        let mut out = zstd::stream::write::Encoder::new(Vec::new(), 3)?;
        out.write_all(MAGIC)?;
        Ok(Self { out: Some(out), chunks: 0, frames: 0 })
    }

    fn record(&mut self, kind: u8, number: u32, bytes: &[u8]) -> io::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.write_all(&[kind])?;
        out.write_all(&number.to_be_bytes())?;
        out.write_all(bytes)?;
        if self.chunks.max(self.frames) > CHUNKS_MAX || out.get_ref().len() as u64 > INDEX_BYTES_MAX {
            self.out = None;
        }
        Ok(())
    }

    /// Adds glue.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn glue(&mut self, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(GLUE_BYTES_MAX).try_for_each(|part| self.record(b'G', length_of(part), part))
    }

    /// Adds a chunk.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn chunk(&mut self, content: &[u8]) -> io::Result<()> {
        self.chunks += 1;
        self.record(b'C', length_of(content), &digest_of(content))
    }

    /// Ends a frame that has this length in the artifact.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn frame(&mut self, length: usize) -> io::Result<()> {
        self.frames += 1;
        self.record(b'F', u32::try_from(length).unwrap_or(u32::MAX), &[])
    }

    /// Ends the index of a stream of this length and digest; none if it became too long.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn finish(self, stream_bytes: u64, digest: Digest) -> io::Result<Option<Vec<u8>>> {
        let Some(mut out) = self.out else { return Ok(None) };
        out.write_all(b"E")?;
        out.write_all(&stream_bytes.to_be_bytes())?;
        out.write_all(digest.bytes())?;
        Ok(Some(out.finish()?).filter(|index| index.len() as u64 <= INDEX_BYTES_MAX))
    }
}

fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// A chunk of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Of its content.
    pub digest: ChunkDigest,
    /// Where it is in the stream.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
    /// Which frame holds it.
    pub frame: u32,
}

/// A frame of the artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where it is in the artifact.
    pub offset: u64,
    /// Length in the artifact.
    pub length: u32,
    /// Where what it unpacks to is in the stream.
    pub stream_offset: u64,
    /// Length of that.
    pub stream_length: u32,
}

/// What an index says, without the glue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Every chunk, in the order of the stream.
    pub chunks: Vec<Chunk>,
    /// Every frame.
    pub frames: Vec<Frame>,
    /// Length of the stream.
    pub stream_bytes: u64,
    /// SHA-256 of the stream.
    pub digest: Digest,
}

impl Index {
    /// Reads an index of an artifact of this length; glue is handed on with its place in the stream.
    ///
    /// # Errors
    /// It is damaged or lies, or `glue` fails.
    pub fn read(
        index: impl Read,
        artifact_bytes: u64,
        glue: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut records = zstd::Decoder::new(index.take(INDEX_BYTES_MAX))?.take(INDEX_UNPACKED_BYTES_MAX);
        if bytes::<5>(&mut records)? != *MAGIC {
            return Err(lie("it does not begin as an index"));
        }
        let mut reading = Reading { chunks: Vec::new(), frames: Vec::new(), stream: 0, frame_begin: 0, artifact: 0 };
        let mut piece = vec![0; GLUE_BYTES_MAX];
        loop {
            let [kind] = bytes(&mut records)?;
            match kind {
                b'G' => {
                    let length = number(&mut records, GLUE_BYTES_MAX)?;
                    records.read_exact(&mut piece[..length])?;
                    glue(reading.stream, &piece[..length])?;
                    reading.go_on(length)?;
                }
                b'C' => {
                    let length = number(&mut records, CHUNK_BYTES_MAX)?;
                    reading.chunk(bytes(&mut records)?, length)?;
                }
                b'F' => reading.frame(number(&mut records, FRAME_BYTES_MAX)?)?,
                b'E' => break,
                _ => return Err(lie("it has a record of an unknown kind")),
            }
        }
        let stream_bytes = u64::from_be_bytes(bytes(&mut records)?);
        let digest = Digest::from_bytes(bytes(&mut records)?);
        let is_right = stream_bytes == reading.stream
            && reading.frame_begin == reading.stream
            && reading.artifact == artifact_bytes
            && records.read(&mut [0])? == 0;
        if !is_right {
            return Err(lie("its lengths do not add up"));
        }
        Ok(Self { chunks: reading.chunks, frames: reading.frames, stream_bytes, digest })
    }

    /// The chunks that a frame holds.
    #[must_use]
    pub fn chunks_of(&self, frame: u32) -> &[Chunk] {
        let from = self.chunks.partition_point(|chunk| chunk.frame < frame);
        let to = self.chunks.partition_point(|chunk| chunk.frame <= frame);
        &self.chunks[from..to]
    }
}

struct Reading {
    chunks: Vec<Chunk>,
    frames: Vec<Frame>,
    /// Length of the stream so far, and where the present frame began in it.
    stream: u64,
    frame_begin: u64,
    /// Length of the artifact up to the last frame's end.
    artifact: u64,
}

impl Reading {
    fn go_on(&mut self, length: usize) -> io::Result<()> {
        self.stream += length as u64;
        if self.stream > STREAM_BYTES_MAX || self.stream - self.frame_begin > FRAME_BYTES_MAX as u64 {
            return Err(lie("the stream or a frame is too long"));
        }
        Ok(())
    }

    fn chunk(&mut self, digest: ChunkDigest, length: usize) -> io::Result<()> {
        if self.chunks.len() >= CHUNKS_MAX || length == 0 {
            return Err(lie("it has too many chunks, or an empty one"));
        }
        let frame = u32::try_from(self.frames.len()).map_err(io::Error::other)?;
        let length_of = u32::try_from(length).map_err(io::Error::other)?;
        self.chunks.push(Chunk { digest, offset: self.stream, length: length_of, frame });
        self.go_on(length)
    }

    fn frame(&mut self, length: usize) -> io::Result<()> {
        let stream_length = u32::try_from(self.stream - self.frame_begin).map_err(io::Error::other)?;
        if length == 0 || stream_length == 0 || self.frames.len() >= CHUNKS_MAX {
            return Err(lie("it has an empty frame, or too many"));
        }
        let length_of = u32::try_from(length).map_err(io::Error::other)?;
        let (offset, stream_offset) = (self.artifact, self.frame_begin);
        self.frames.push(Frame { offset, length: length_of, stream_offset, stream_length });
        self.artifact += length as u64;
        self.frame_begin = self.stream;
        Ok(())
    }
}

fn lie(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the index is damaged: {what}"))
}

fn bytes<const LENGTH: usize>(records: &mut impl Read) -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    records.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(records: &mut impl Read, most: usize) -> io::Result<usize> {
    let number = u32::from_be_bytes(bytes(records)?) as usize;
    if number > most { Err(lie("it has a length that is too great")) } else { Ok(number) }
}

/// Writes a stream in frames, with its index.
pub struct FrameWriter<W: Write> {
    out: W,
    compressor: zstd::bulk::Compressor<'static>,
    frame: Vec<u8>,
    index: IndexWriter,
    hash: Sha256,
    stream_bytes: u64,
}

impl<W: Write> FrameWriter<W> {
    /// Writes to `out`, compressed to this level.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(out: W, level: i32) -> io::Result<Self> {
        let compressor = zstd::bulk::Compressor::new(level)?;
        let (frame, index) = (Vec::with_capacity(FRAME_BYTES + CHUNK_BYTES_MAX), IndexWriter::new()?);
        Ok(Self { out, compressor, frame, index, hash: Sha256::new(), stream_bytes: 0 })
    }

    /// Writes headers or padding.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn glue(&mut self, bytes: &[u8]) -> io::Result<()> {
        // So long that a frame could not hold it: it is divided.
        for part in bytes.chunks(GLUE_BYTES_MAX) {
            self.index.glue(part)?;
            self.take(part)?;
        }
        Ok(())
    }

    /// Writes a chunk of a file's content.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn chunk(&mut self, content: &[u8]) -> io::Result<()> {
        self.index.chunk(content)?;
        self.take(content)
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.stream_bytes += bytes.len() as u64;
        self.frame.extend_from_slice(bytes);
        if self.frame.len() >= FRAME_BYTES { self.end_frame() } else { Ok(()) }
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let compressed = self.compressor.compress(&self.frame)?;
        self.out.write_all(&compressed)?;
        self.frame.clear();
        self.index.frame(compressed.len())
    }

    /// Ends the stream; gives the writer, and the index unless it became too long.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<(W, Option<Vec<u8>>)> {
        if !self.frame.is_empty() {
            self.end_frame()?;
        }
        let digest = Digest::from_bytes(self.hash.finalize().into());
        let index = self.index.finish(self.stream_bytes, digest)?;
        Ok((self.out, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that no compressor makes shorter.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    fn cut(content: &[u8]) -> Vec<Vec<u8>> {
        Cutter::new(content, content.len() as u64).map(Result::unwrap).collect()
    }

    /// An artifact with its index, and the stream that it is.
    fn made(files: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (mut writer, mut stream) = (FrameWriter::new(Vec::new(), 3).unwrap(), Vec::new());
        for file in files {
            writer.glue(b"header").unwrap();
            stream.extend_from_slice(b"header");
            for chunk in cut(file) {
                writer.chunk(&chunk).unwrap();
                stream.extend_from_slice(&chunk);
            }
        }
        let (artifact, index) = writer.finish().unwrap();
        (artifact, index.unwrap(), stream)
    }

    #[test]
    fn contents_are_cut_at_the_same_places_wherever_they_stand() {
        let content = noise(7, 1_000_000);
        let chunks = cut(&content);
        assert_eq!(chunks.concat(), content);
        assert!(chunks.len() > 5 && chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));
        let moved = cut(&[&noise(8, 3000)[..], &content].concat());
        let same = moved.iter().filter(|chunk| chunks.contains(chunk)).count();
        assert!(same + 3 > chunks.len(), "{same} of {} chunks are the same", chunks.len());
        assert_eq!(cut(&content[..65_536]).len(), 1);
        assert!(cut(b"").is_empty());
    }

    #[test]
    fn an_index_says_where_everything_is() {
        let files = [noise(1, 400_000), b"small".to_vec(), noise(2, 100), noise(3, 300_000)];
        let (artifact, index, stream) = made(&files);
        let mut rebuilt = vec![0; stream.len()];
        let read = Index::read(&index[..], artifact.len() as u64, &mut |offset, bytes| {
            let at = usize::try_from(offset).unwrap();
            rebuilt[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        assert_eq!((read.stream_bytes, read.digest), (stream.len() as u64, Digest::of(&stream)));
        for (number, frame) in read.frames.iter().enumerate() {
            let at = usize::try_from(frame.offset).unwrap();
            let packed = &artifact[at..at + frame.length as usize];
            let unpacked = zstd::bulk::decompress(packed, frame.stream_length as usize).unwrap();
            for chunk in read.chunks_of(u32::try_from(number).unwrap()) {
                let from = usize::try_from(chunk.offset - frame.stream_offset).unwrap();
                let content = &unpacked[from..from + chunk.length as usize];
                assert_eq!(digest_of(content), chunk.digest);
                let at = usize::try_from(chunk.offset).unwrap();
                rebuilt[at..at + content.len()].copy_from_slice(content);
            }
        }
        assert_eq!(rebuilt, stream);
        // Whoever knows nothing of frames reads it as one stream.
        assert_eq!(zstd::decode_all(&artifact[..]).unwrap(), stream);
        assert_eq!(short(Digest::of(&files[1])), digest_of(&files[1]));
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let (artifact, index, _) = made(&[noise(1, 400_000), noise(2, 100)]);
        let length = artifact.len() as u64;
        let read = |index: &[u8], length| Index::read(index, length, &mut |_, _| Ok(()));
        assert!(read(&index, length).is_ok());
        assert!(read(&index, length - 1).is_err());
        assert!(read(&index[..index.len() / 2], length).is_err());
        assert!(read(b"no index", length).is_err());
        let records = zstd::decode_all(&index[..]).unwrap();
        let packed = |records: &[u8]| zstd::encode_all(records, 1).unwrap();
        assert!(read(&packed(&records), length).is_ok());
        assert!(read(&packed(&[&records[..], b"more"].concat()), length).is_err());
        for at in 0..records.len() {
            let mut spoiled = records.clone();
            spoiled[at] ^= 0x80;
            // A digest that is another is found when the stream is put together.
            if let Ok(index) = read(&packed(&spoiled), length) {
                let sum: u64 = index.frames.iter().map(|frame| u64::from(frame.length)).sum();
                assert_eq!(sum, length);
            }
        }
        // Endless glue, endless chunks, a frame of everything.
        let zeros = vec![0; GLUE_BYTES_MAX];
        let glue = [&b"G"[..], &length_of(&zeros).to_be_bytes(), &zeros].concat();
        assert!(read(&packed(&[&MAGIC[..], &glue.repeat(100)].concat()), length).is_err());
        let tiny = [&b"C"[..], &1_u32.to_be_bytes(), &[0; 16], b"F", &1_u32.to_be_bytes()].concat();
        assert!(read(&packed(&[&MAGIC[..], &tiny.repeat(CHUNKS_MAX + 1)].concat()), length).is_err());
        let huge = [&MAGIC[..], b"C", &u32::MAX.to_be_bytes(), &[0; 16]].concat();
        assert!(read(&packed(&huge), length).is_err());
    }

    #[test]
    fn what_has_too_many_chunks_has_no_index() {
        let mut index = IndexWriter::new().unwrap();
        for _ in 0..=CHUNKS_MAX {
            index.chunk(b"x").unwrap();
        }
        assert_eq!(index.finish(0, Digest::of(b"")).unwrap(), None);
    }
}
