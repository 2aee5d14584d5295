//! Cutting, indexes, and indexes that lie.

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
