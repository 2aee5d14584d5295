//! Lines of text out of records that are cut anywhere and interleaved.
//!
//! Invariants: every byte of text is in exactly one line; a line has the time of its first byte; lines come in the order
//! in which it is known that they have ended. What is held of unfinished lines has a bound: beyond it, and beyond the longest line, a line is
//! given in pieces.

use std::collections::BTreeMap;

use drover_shared::record::Stream;

use super::scan::Entry;

/// Longest line that is kept in one piece.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of unfinished lines that are held for all streams together.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A line, or a piece of a very long one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Ordinal of the execution; 0 is the server itself.
    pub source: u32,
    /// Index of the step.
    pub step: u16,
    /// Where it came from.
    pub stream: Stream,
    /// Milliseconds since 1970 by the host's clock.
    pub time_ms: i64,
    /// Where it begins in the text of the task.
    pub offset: u64,
    /// Where it ends, its newline included.
    pub end: u64,
    /// When it was known that it has ended: grows from line to line, and is the same from wherever the log is read. Lines
    /// that something else than their newline ended may share it.
    pub known: u64,
    /// The bytes without the newline.
    pub text: &'a [u8],
}

/// The beginning of a line whose end has not come.
#[derive(Debug)]
struct Begun {
    step: u16,
    time_ms: i64,
    offset: u64,
    /// Where it ends so far.
    end: u64,
    text: Vec<u8>,
}

type Place = (u32, Stream);

/// Puts lines together.
#[derive(Debug, Default)]
pub struct Lines {
    begun: BTreeMap<Place, Begun>,
    held: usize,
    /// The record whose lines are being given.
    entry: Option<Entry>,
    /// Lines of which nothing more comes, to be given next.
    given_up: Vec<(Place, Begun, u64)>,
    /// Keeps what the last given line borrows.
    shown: Vec<u8>,
}

impl Lines {
    /// Takes the next record; its lines come from [`next_line`](Self::next_line). Events have none.
    pub fn push(&mut self, entry: Entry) {
        debug_assert!(self.entry.is_none(), "the lines of the record before were not all taken");
        let place = (entry.source, entry.stream);
        if !entry.stream.is_text() {
            self.end_source(entry.source, entry.offset);
            return;
        }
        if self.begun.get(&place).is_some_and(|begun| begun.step != entry.step) {
            self.give_up(place, entry.offset);
        }
        self.entry = Some(entry);
    }

    /// Ends the unfinished lines of a source: a step is over, or begins.
    fn end_source(&mut self, source: u32, at: u64) {
        for stream in [Stream::Output, Stream::Error, Stream::Notice] {
            self.give_up((source, stream), at);
        }
    }

    fn give_up(&mut self, place: Place, at: u64) {
        if let Some(begun) = self.begun.remove(&place) {
            self.held -= begun.text.len();
            self.given_up.push((place, begun, 2 * at + 1));
        }
    }

    /// Ends every unfinished line: nothing more comes after this place in the text.
    pub fn finish(&mut self, at: u64) {
        let mut places: Vec<(u64, Place)> = self.begun.iter().map(|(place, begun)| (begun.end, *place)).collect();
        places.sort_unstable_by_key(|(end, _)| *end);
        places.into_iter().for_each(|(_, place)| self.give_up(place, at));
    }

    /// Where the first of the unfinished lines begins.
    pub fn begun_at(&self) -> Option<u64> {
        let left = self.entry.as_ref().map(|entry| entry.offset);
        let given_up = self.given_up.iter().map(|(_, begun, _)| begun.offset);
        self.begun.values().map(|begun| begun.offset).chain(given_up).chain(left).min()
    }

    /// Whole lines at the front of what is left of the record, in one piece; none when a line is unfinished there.
    pub(super) fn block(&self) -> Option<(u64, &[u8])> {
        let entry = self.entry.as_ref()?;
        if !self.given_up.is_empty() || self.begun.contains_key(&(entry.source, entry.stream)) {
            return None;
        }
        let length = memchr::memrchr(b'\n', &entry.payload)? + 1;
        Some((entry.offset, &entry.payload[..length]))
    }

    /// Passes over whole lines at the front of [`block`](Self::block): `length` bytes that end with a newline.
    pub(super) fn pass(&mut self, length: usize) {
        if let Some(entry) = &mut self.entry {
            entry.offset += length as u64;
            bytes::Buf::advance(&mut entry.payload, length);
            if entry.payload.is_empty() {
                self.entry = None;
            }
        }
    }

    /// The next line that has ended; none until more is pushed.
    pub fn next_line(&mut self) -> Option<Line<'_>> {
        if !self.given_up.is_empty() {
            let (place, begun, known) = self.given_up.remove(0);
            return Some(self.show(place, begun, known));
        }
        let entry = self.entry.as_mut()?;
        let place = (entry.source, entry.stream);
        let before = self.begun.get(&place).map_or(0, |begun| begun.text.len());
        let room = LINE_BYTES_MAX - before;
        let newline = memchr::memchr(b'\n', &entry.payload[..entry.payload.len().min(room + 1)]);
        let (length, used) = match newline {
            Some(at) => (at, at + 1),
            None => (entry.payload.len().min(room), entry.payload.len().min(room)),
        };
        let ended = newline.is_some() || length == room;
        let (step, time_ms, offset) = (entry.step, entry.time_ms, entry.offset);
        let piece = entry.payload.split_to(used).slice(..length);
        entry.offset += used as u64;
        let end = entry.offset;
        if entry.payload.is_empty() {
            self.entry = None;
        }
        let begun = self.begun.entry(place).or_insert_with(|| Begun { step, time_ms, offset, end, text: Vec::new() });
        begun.text.extend_from_slice(&piece);
        begun.end = end;
        self.held += piece.len();
        if ended {
            let begun = self.begun.remove(&place)?;
            self.held -= begun.text.len();
            return Some(self.show(place, begun, 2 * end));
        }
        if self.held > HELD_BYTES_MAX {
            self.finish(end);
            return self.next_line();
        }
        None
    }

    fn show(&mut self, (source, stream): Place, begun: Begun, known: u64) -> Line<'_> {
        let Begun { step, time_ms, offset, end, text } = begun;
        self.shown = text;
        Line { source, step, stream, time_ms, offset, end, known, text: &self.shown }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(source: u32, step: u16, offset: u64, text: &str) -> Entry {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        Entry { source, step, stream: Stream::Output, time_ms: offset.cast_signed(), offset, payload }
    }

    fn lines(entries: Vec<Entry>) -> Vec<(u32, u64, u64, String)> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let mut take = |lines: &mut Lines| {
            while let Some(line) = lines.next_line() {
                found.push((line.source, line.offset, line.end, String::from_utf8_lossy(line.text).into_owned()));
            }
        };
        for entry in entries {
            lines.push(entry);
            take(&mut lines);
        }
        lines.finish(u64::MAX / 4);
        take(&mut lines);
        assert_eq!((lines.held, lines.begun_at()), (0, None));
        found
    }

    #[test]
    fn lines_are_whole_however_they_were_cut() {
        let text = "one\n\ntwo three\nfour";
        let expected = [("one", 0, 4), ("", 4, 5), ("two three", 5, 15), ("four", 15, 19)];
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let cuts = [0, first, second, text.len()];
                let entries = cuts.windows(2).filter(|cut| cut[0] < cut[1]);
                let entries = entries.map(|cut| entry(1, 0, cut[0] as u64, &text[cut[0]..cut[1]])).collect();
                let expected: Vec<_> =
                    expected.iter().map(|(text, from, to)| (1, *from, *to, (*text).to_owned())).collect();
                assert_eq!(lines(entries), expected, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn sources_do_not_mix_and_steps_end_lines() {
        let entries = vec![
            entry(1, 0, 0, "begun "),
            entry(2, 0, 6, "other\n"),
            entry(1, 0, 12, "ended\nleft"),
            entry(1, 1, 22, "next\n"),
        ];
        let expected = [
            (2, 6, 12, "other".to_owned()),
            (1, 0, 18, "begun ended".to_owned()),
            (1, 18, 22, "left".to_owned()),
            (1, 22, 27, "next".to_owned()),
        ];
        assert_eq!(lines(entries), expected);
    }

    #[test]
    fn very_long_lines_come_in_pieces() {
        let long = "x".repeat(LINE_BYTES_MAX * 2 + 10);
        let found = lines(vec![entry(1, 0, 0, &long), entry(1, 0, long.len() as u64, "\nend\n")]);
        let lengths: Vec<usize> = found.iter().map(|(_, _, _, text)| text.len()).collect();
        assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX, 10, 3]);
    }
}
