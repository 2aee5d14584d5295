//! From bytes to text: UTF-8 decoded for each stream by itself, whatever else is interleaved with it.
//!
//! Invariant: what comes out for a stream is `String::from_utf8_lossy` of all its bytes, wherever they were cut into
//! records; a character appears when its last byte has come.

use std::collections::HashMap;

use drover_shared::record::Stream;

/// Longest UTF-8 encoding of a character.
const CHARACTER_BYTES_MAX: usize = 4;

/// Whose bytes these are, and where they begin in the text of the task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) source: u32,
    pub(super) step: u16,
    pub(super) stream: Stream,
    pub(super) offset: u64,
}

/// Decoders of all streams of a task; only those in the middle of a character take room.
#[derive(Debug, Default)]
pub(super) struct Decoders {
    started: HashMap<(u32, Stream), Partial>,
}

/// The beginning of a character whose other bytes have not come yet.
#[derive(Debug, Clone, Copy)]
struct Partial {
    step: u16,
    bytes: [u8; CHARACTER_BYTES_MAX],
    length: usize,
    /// Where its first byte is in the text of the task.
    begins_at: u64,
    /// Begun before the place that the viewer asked for: not shown.
    hidden: bool,
}

impl Decoders {
    /// Decodes `bytes` of a stream, appending what is complete to `out`.
    pub(super) fn decode(&mut self, place: Place, bytes: &[u8], out: &mut String) {
        let stream = (place.source, place.stream);
        let mut rest = bytes;
        if let Some(partial) = self.started.remove(&stream) {
            if partial.step == place.step {
                match partial.join(rest, out) {
                    Ok(used) => rest = &rest[used..],
                    Err(longer) => {
                        self.started.insert(stream, longer);
                        return;
                    }
                }
            } else {
                partial.give_up(out);
            }
        }
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => return out.push_str(text),
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            out.push_str(std::str::from_utf8(valid).unwrap_or_default());
            let Some(invalid) = error.error_len() else {
                let begins_at = place.offset + (bytes.len() - after.len()) as u64;
                self.started.insert(stream, Partial::new(place.step, begins_at, after));
                return;
            };
            out.push(char::REPLACEMENT_CHARACTER);
            rest = &after[invalid..];
        }
    }

    /// Hides the characters that have begun so far: their last bytes will show nothing.
    pub(super) fn hide_started(&mut self) {
        for partial in self.started.values_mut() {
            partial.hidden = true;
        }
    }

    /// Whether no stream is in the middle of a character.
    pub(super) fn are_idle(&self) -> bool {
        self.started.is_empty()
    }

    /// Where the first of the characters that have begun begins.
    pub(super) fn begun_at(&self) -> Option<u64> {
        self.started.values().filter(|partial| !partial.hidden).map(|partial| partial.begins_at).min()
    }

    /// Ends all streams and gives those that end in the middle of a character, which will never be whole.
    pub(super) fn finish(&mut self) -> Vec<Place> {
        let visible = self.started.drain().filter(|(_, partial)| !partial.hidden);
        let mut left: Vec<_> = visible
            .map(|((source, stream), partial)| Place { source, step: partial.step, stream, offset: partial.begins_at })
            .collect();
        left.sort_by_key(|place| place.offset);
        left
    }
}

impl Partial {
    fn new(step: u16, begins_at: u64, begun: &[u8]) -> Self {
        let mut bytes = [0; CHARACTER_BYTES_MAX];
        bytes[..begun.len()].copy_from_slice(begun);
        Self { step, bytes, length: begun.len(), begins_at, hidden: false }
    }

    /// Completes the character with the bytes that follow and says how many it took; the longer beginning if they do
    /// not suffice.
    fn join(mut self, following: &[u8], out: &mut String) -> Result<usize, Self> {
        let begun = self.length;
        for taken in 0..=following.len() {
            match std::str::from_utf8(&self.bytes[..self.length]) {
                Ok(character) => {
                    if !self.hidden {
                        out.push_str(character);
                    }
                    return Ok(taken);
                }
                // The last byte does not belong to it: it starts something of its own.
                Err(error) if error.error_len().is_some() => {
                    self.give_up(out);
                    return Ok(taken.saturating_sub(1));
                }
                Err(_) => {}
            }
            if taken < following.len() {
                self.bytes[begun + taken] = following[taken];
                self.length += 1;
            }
        }
        Err(self)
    }

    fn give_up(self, out: &mut String) {
        if !self.hidden {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: Place = Place { source: 1, step: 0, stream: Stream::Output, offset: 0 };

    fn decode(pieces: &[&[u8]]) -> String {
        let (mut decoders, mut out) = (Decoders::default(), String::new());
        for piece in pieces {
            decoders.decode(OUTPUT, piece, &mut out);
        }
        for _ in decoders.finish() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
        out
    }

    #[test]
    fn every_cut_gives_the_same_text() {
        let samples: [&[u8]; 9] = [
            "a\u{1f600}é€\u{10ffff}z".as_bytes(),
            b"\xff\xfe\x80\x80a",
            b"\xf0\x9f\x98",
            b"\xf0\x9f\xf0\x9f\x98\x80",
            b"\xe2\x82\xe2\x82\xac\xe2",
            b"\xc3\xc3\xa9\xed\xa0\x80\xf4\x90\x80\x80",
            b"\xf0\x80\x80\x80\xc0\xaf",
            b"\xe0\xa4\x41\xf1\x80\x41",
            b"",
        ];
        for sample in samples {
            let whole = String::from_utf8_lossy(sample);
            for first in 0..=sample.len() {
                for second in first..=sample.len() {
                    let pieces = [&sample[..first], &sample[first..second], &sample[second..]];
                    assert_eq!(decode(&pieces), whole, "{sample:x?} cut at {first} and {second}");
                }
            }
            let bytes: Vec<&[u8]> = sample.chunks(1).collect();
            assert_eq!(decode(&bytes), whole, "{sample:x?} byte by byte");
        }
    }

    #[test]
    fn streams_do_not_mix() {
        let (mut decoders, mut out) = (Decoders::default(), String::new());
        let smile = "\u{1f600}".as_bytes();
        let error = Place { stream: Stream::Error, ..OUTPUT };
        decoders.decode(OUTPUT, &smile[..2], &mut out);
        decoders.decode(error, &smile[..3], &mut out);
        decoders.decode(Place { source: 2, ..OUTPUT }, b"plain", &mut out);
        decoders.decode(error, &smile[3..], &mut out);
        decoders.decode(OUTPUT, &smile[2..], &mut out);
        assert_eq!(out, "plain\u{1f600}\u{1f600}");
        decoders.decode(OUTPUT, &smile[..2], &mut out);
        decoders.decode(Place { step: 1, ..OUTPUT }, b"next", &mut out);
        assert_eq!(out, "plain\u{1f600}\u{1f600}\u{fffd}next");
    }
}
