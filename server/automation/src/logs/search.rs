//! Searching a log, line by line, without holding more of it than one read.
//!
//! Invariants: a search ends after so many matches, so much answer and so much text, and says where to go on; going on
//! from there misses no line and gives none twice. Matching is linear in the text, whatever the pattern.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use drover_shared::record::Stream;
use regex::bytes::{Regex, RegexBuilder};

use super::error::ReadError;
use super::lines::{Line, Lines};
use super::scan::Scan;

/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1000;
/// Memory of a compiled pattern, and of its cache while it matches.
const COMPILED_BYTES_MAX: usize = 1024 * 1024;
/// Longest part of a line that is given.
const SHOWN_BYTES_MAX: usize = 4096;
/// Text that is read again to go on, for lines that were unfinished when the search stopped.
const READ_AGAIN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of lines in one answer; the last match may go beyond.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
    /// Whether many lines may be tried at once, to see whether any of them matches.
    by_blocks: bool,
}

impl Pattern {
    /// A text, or a regular expression in the syntax of the `regex` crate.
    ///
    /// # Errors
    /// Why it is none, as a sentence for people.
    pub fn new(text: &str, is_regex: bool, ignore_case: bool) -> Result<Self, String> {
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        if text.len() > PATTERN_BYTES_MAX {
            return Err(format!("must have at most {PATTERN_BYTES_MAX} bytes"));
        }
        if text.contains('\n') {
            return Err("must not span lines".to_owned());
        }
        let escaped = if is_regex { text.to_owned() } else { regex::escape(text) };
        let mut builder = RegexBuilder::new(&escaped);
        builder.case_insensitive(ignore_case).multi_line(true).crlf(true).nest_limit(50);
        builder.size_limit(COMPILED_BYTES_MAX).dfa_size_limit(COMPILED_BYTES_MAX);
        let regex = builder.build().map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "is too large a regular expression".to_owned(),
            // Its last line says what is wrong; those before draw an arrow.
            error => {
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                format!("is no regular expression: {reason}")
            }
        })?;
        // Ends of the text are other places in a block of lines than in a line.
        let by_blocks = !(is_regex && (text.contains("\\A") || text.contains("\\z") || changes_modes(text)));
        Ok(Self { regex, by_blocks })
    }
}

/// Whether a pattern may change what `^`, `$` and `.` mean, as `(?-m)` does; letters' case has nothing to do with that.
fn changes_modes(pattern: &str) -> bool {
    pattern.split("(?").skip(1).any(|group| {
        let flags = group.split(|letter: char| !letter.is_ascii_alphabetic() && letter != '-').next().unwrap_or("");
        // What follows a `P` is the name of a group.
        !matches!(flags, "" | "i" | "P")
    })
}

/// Where a search goes on: it reads from `from`, and lines that were known at `seen` or before were given already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Where to read on in the text of the task.
    pub from: u64,
    /// Lines that were known by then were given, see [`Line::known`].
    pub seen: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.seen)
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse().map_err(|_| "must be an offset in bytes, or what `next` said");
        match text.split_once('-') {
            None => Ok(Self { from: number(text)?, seen: 0 }),
            Some((from, seen)) => Ok(Self { from: number(from)?, seen: number(seen)? }),
        }
    }
}

/// What a search may give.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Matches; those that were known at the same moment as the last one come on top.
    pub matches: usize,
    /// Lines before and after each.
    pub context: usize,
    /// Bytes of the task's text that are read.
    pub text_bytes: u64,
}

/// A line that was found, or one near it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Ordinal of the execution; 0 is the server itself.
    pub source: u32,
    /// Index of the step.
    pub step: u16,
    /// Where it came from.
    pub stream: Stream,
    /// Milliseconds since 1970 by the host's clock.
    pub time_ms: i64,
    /// Where the line begins in the text of the task.
    pub offset: u64,
    /// The line, or the part around the match when it is long. U+FFFD for what is no UTF-8.
    pub text: String,
    /// Whether `text` is only a part.
    pub cut: bool,
}

/// A match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The line.
    pub line: Shown,
    /// Lines before it, as people see them.
    pub before: Vec<Shown>,
    /// Lines after it.
    pub after: Vec<Shown>,
}

/// A search under way.
#[derive(Debug)]
pub struct Search {
    pattern: Pattern,
    bounds: Bounds,
    begin: Cursor,
    scan: Scan,
    lines: Lines,
    before: VecDeque<Shown>,
    hits: Vec<Hit>,
    shown_bytes: usize,
    /// Nothing is tried before this place: it was tried with the block that it is in.
    tried_to: u64,
    /// Where to go on, once there are enough matches; then only lines after the last one are wanted.
    full: Option<Cursor>,
    /// When the line of the last match was known.
    last_known: u64,
    over: bool,
}

impl Search {
    /// Begins; `scan` has to begin at `begin.from`.
    #[must_use]
    pub fn new(pattern: Pattern, bounds: Bounds, begin: Cursor, scan: Scan) -> Self {
        Self {
            pattern,
            bounds,
            begin,
            scan,
            lines: Lines::default(),
            before: VecDeque::new(),
            hits: Vec::new(),
            shown_bytes: 0,
            tried_to: 0,
            full: None,
            last_known: 0,
            over: false,
        }
    }

    /// Goes on for about `text_bytes`; false when the search is over.
    ///
    /// # Errors
    /// [`ReadError`] when the file cannot be read or is damaged.
    pub fn advance(&mut self, text_bytes: u64) -> Result<bool, ReadError> {
        let pause = self.scan.text_offset().saturating_add(text_bytes);
        while !self.over && self.scan.text_offset() < pause {
            match self.scan.next_entry()? {
                Some(entry) => {
                    let read = entry.offset.saturating_sub(self.begin.from.max(self.begin.seen / 2));
                    if self.full.is_none() && entry.stream.is_text() && read >= self.bounds.text_bytes {
                        let from = self.lines.begun_at().unwrap_or(entry.offset).min(entry.offset);
                        self.full = Some(cursor(from, 2 * entry.offset + 1));
                        self.over = true;
                        return Ok(false);
                    }
                    self.lines.push(entry);
                }
                None => {
                    self.lines.finish(self.scan.text_offset());
                    self.take_lines();
                    self.over = true;
                }
            }
            self.take_lines();
        }
        Ok(!self.over)
    }

    /// What was found, and where to go on when there may be more.
    #[must_use]
    pub fn found(self) -> (Vec<Hit>, Option<Cursor>) {
        (self.hits, self.full)
    }

    /// How far it has come in the text of the task.
    #[must_use]
    pub fn text_offset(&self) -> u64 {
        self.scan.text_offset()
    }

    fn take_lines(&mut self) {
        while !self.over {
            self.skip_block();
            let is_enough = self.full.is_none() && self.is_enough();
            let Some(line) = self.lines.next_line() else { return };
            let known = line.known;
            // Only here it is sure that nothing more came with the last match.
            let fills = is_enough && known > self.last_known;
            let offset = line.offset;
            let found = self.full.is_none() && !fills && known > self.begin.seen;
            let found = found.then(|| self.pattern.regex.find(line.text)).flatten().map(|found| found.start());
            let shown = match found {
                Some(at) => shown(&line, at),
                None if self.bounds.context > 0 || fills => shown(&line, 0),
                None => continue,
            };
            if fills {
                let from = self.lines.begun_at().map_or(offset, |begun| begun.min(offset));
                self.full = Some(cursor(from, self.last_known));
            }
            self.over = self.full.is_some() && self.is_complete();
            if self.over {
                return;
            }
            self.add_after(&shown);
            if found.is_some() {
                self.shown_bytes += shown.text.len();
                self.shown_bytes += self.before.iter().map(|line| line.text.len()).sum::<usize>();
                let before = self.before.iter().cloned().collect();
                self.hits.push(Hit { line: shown.clone(), before, after: Vec::new() });
                self.last_known = known;
            }
            if self.bounds.context > 0 {
                self.before.push_back(shown);
                if self.before.len() > self.bounds.context {
                    self.before.pop_front();
                }
            }
        }
    }

    fn is_enough(&self) -> bool {
        self.hits.len() >= self.bounds.matches || self.shown_bytes >= ANSWER_BYTES_MAX
    }

    /// Whether the last match has all the lines after it that were asked for.
    fn is_complete(&self) -> bool {
        self.hits.last().is_none_or(|hit| hit.after.len() >= self.bounds.context)
    }

    fn add_after(&mut self, shown: &Shown) {
        for hit in self.hits.iter_mut().rev().take(self.bounds.context) {
            if hit.after.len() < self.bounds.context {
                self.shown_bytes += shown.text.len();
                hit.after.push(shown.clone());
            }
        }
    }

    /// Passes over whole lines that do not match, but for those that a match behind them may want before it.
    fn skip_block(&mut self) {
        if !self.pattern.by_blocks || self.is_enough() || !self.is_complete() {
            return;
        }
        let Some((offset, block)) = self.lines.block() else { return };
        if offset < self.tried_to {
            return;
        }
        let (to, tried) = match self.pattern.regex.find(block) {
            None => (block.len(), block.len()),
            // A match of nothing may stand behind the last newline: then it is none of a line here.
            Some(found) => {
                let begin = memchr::memrchr(b'\n', &block[..found.start()]).map_or(0, |at| at + 1);
                let end = memchr::memchr(b'\n', &block[found.start()..]).map_or(0, |at| at + 1);
                (begin, found.start() + end)
            }
        };
        let mut keep = to;
        for _ in 0..self.bounds.context {
            if keep == 0 {
                break;
            }
            keep = memchr::memrchr(b'\n', &block[..keep - 1]).map_or(0, |at| at + 1);
        }
        self.tried_to = offset + tried.max(to) as u64;
        if keep > 0 {
            self.lines.pass(keep);
            if self.bounds.context > 0 {
                self.before.clear();
            }
        }
    }
}

/// Where to go on; the beginning of a line that has not ended for very long is not read again.
fn cursor(from: u64, seen: u64) -> Cursor {
    Cursor { from: from.max((seen / 2).saturating_sub(READ_AGAIN_BYTES_MAX)), seen }
}

/// A line as it is given: whole, or the part around `at`.
fn shown(line: &Line<'_>, at: usize) -> Shown {
    let text = line.text.strip_suffix(b"\r").unwrap_or(line.text);
    let begin = if text.len() <= SHOWN_BYTES_MAX { 0 } else { at.saturating_sub(SHOWN_BYTES_MAX / 4) };
    let part = &text[begin.min(text.len())..text.len().min(begin + SHOWN_BYTES_MAX)];
    Shown {
        source: line.source,
        step: line.step,
        stream: line.stream,
        time_ms: line.time_ms,
        offset: line.offset,
        text: String::from_utf8_lossy(part).into_owned(),
        cut: part.len() < text.len(),
    }
}
