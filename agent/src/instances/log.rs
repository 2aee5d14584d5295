//! Pieces of a log file: by bytes, by lines from either end, and what comes next.
//!
//! A file may be huge, written to, renamed and cut off while it is read. Invariants: what is read for one answer has a
//! bound, wherever in the file it is; a file that is followed is told by what it is and not by its name, so that what was
//! written to it before another one took its name is still found.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use drover_shared::instance::{
    LOG_BYTES_MAX, LOG_LINES_MAX, LOG_SEARCH_BYTES_MAX, LOG_WAIT_MS_MAX, LogEvent, LogFile, LogOutcome, LogPiece,
    LogSlice,
};
use memchr::memchr_iter;
use nix::unistd::geteuid;

use super::pid_file::open_regular;
use super::text::{bytes_at, character_start, text_at, unfinished};
use crate::clock;

/// Bytes that are searched at a time.
const BLOCK_BYTES: u64 = 64 * 1024;
/// Pause between two looks at a file that is followed.
const PAUSE: Duration = Duration::from_millis(100);
/// The same while there is none.
const PAUSE_MISSING: Duration = Duration::from_secs(1);
/// Files beside a log among which its former one is looked for.
const SIBLINGS_MAX: usize = 10_000;

/// Reads a piece of a log, but for what is in the agent's `own` folder.
#[must_use]
pub fn read(path: &str, own: &Path, piece: LogPiece) -> LogOutcome {
    let open = || Log::open(path, own);
    let slice = match piece {
        LogPiece::Bytes { from, bytes } => open().and_then(|log| log.bytes(from, bytes, true)),
        LogPiece::LastBytes { back, bytes } => {
            open().and_then(|log| log.bytes(log.length.saturating_sub(back), bytes, true))
        }
        LogPiece::Lines { skip, lines } => open().and_then(|log| log.first(skip, lines)),
        LogPiece::LastLines { skip, lines } => open().and_then(|log| log.last(skip, lines)),
        LogPiece::Next { file, from, bytes, wait_ms } => {
            Following { path, own, former: None, file, from, bytes }.next(wait_ms.min(LOG_WAIT_MS_MAX))
        }
    };
    match slice {
        Ok(slice) => LogOutcome::Slice(slice),
        Err(error) if is_missing(&error) => LogOutcome::Missing {},
        Err(error) => LogOutcome::Refused { reason: crate::describe(&error) },
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Refuses files that are regular by name alone, and what belongs to nobody's application, wherever links led.
fn check_place(file: &File, own: &Path) -> io::Result<()> {
    let place = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let refused = |reason: &str| Err(io::Error::other(reason.to_owned()));
    if ["/proc", "/sys"].iter().any(|folder| place.starts_with(folder)) {
        return refused("what is below /proc and /sys is no log");
    }
    if place.starts_with(own) {
        return refused("it belongs to the agent");
    }
    if geteuid().is_root() && place.starts_with("/dev") {
        return refused("what is below /dev is not read as root: set a run_user");
    }
    Ok(())
}

/// An open log.
struct Log {
    file: File,
    id: LogFile,
    length: u64,
}

impl Log {
    fn open(path: &str, own: &Path) -> io::Result<Self> {
        let file = open_regular(path)?;
        check_place(&file, own)?;
        let meta = file.metadata()?;
        Ok(Self { file, id: identity(&meta), length: meta.len() })
    }

    fn slice(&self, content: String, (from, position): (u64, u64), lines: Option<u64>) -> LogSlice {
        let total_length = self.length.max(position);
        LogSlice { content, length: position - from, position, total_length, lines, file: self.id, event: None }
    }

    fn bytes(&self, from: u64, bytes: u64, over: bool) -> io::Result<LogSlice> {
        let from = from.min(self.length);
        // No more than it said to have: what never ends would be read for ever.
        let bytes = usize::try_from(bytes.min(LOG_BYTES_MAX).min(self.length - from)).unwrap_or(0);
        let text = text_at(&self.file, from, bytes, over)?;
        Ok(self.slice(text.content, (text.from, text.position), None))
    }

    /// Lines from the beginning.
    fn first(&self, skip: u64, lines: u64) -> io::Result<LogSlice> {
        let from = self.after_lines(skip)?;
        let most = usize::try_from(LOG_BYTES_MAX).unwrap_or(0);
        let buffer = bytes_at(&self.file, from, most)?;
        let ends = memchr_iter(b'\n', &buffer).map(|at| at + 1);
        let wanted = usize::try_from(lines.min(LOG_LINES_MAX)).unwrap_or(0);
        let (mut count, mut end) = (0, 0);
        for after in ends.take(wanted) {
            (count, end) = (count + 1, after);
        }
        // The last line may lack its end; one that is longer than everything together is cut.
        if count < wanted && end < buffer.len() && (buffer.len() < most || count == 0) {
            (count, end) = (count + 1, buffer.len() - unfinished(&buffer));
        }
        let content = String::from_utf8_lossy(&buffer[..end]).into_owned();
        Ok(self.slice(content, (from, from + end as u64), Some(count as u64)))
    }

    /// Where the first lines are over.
    fn after_lines(&self, mut lines: u64) -> io::Result<u64> {
        let mut at = 0;
        while lines > 0 && at < self.length {
            if at >= LOG_SEARCH_BYTES_MAX {
                return Err(too_far());
            }
            let block = bytes_at(&self.file, at, usize::try_from(BLOCK_BYTES).unwrap_or(0))?;
            let mut end = block.len();
            for index in memchr_iter(b'\n', &block) {
                lines -= 1;
                if lines == 0 {
                    end = index + 1;
                    break;
                }
            }
            if block.is_empty() {
                break;
            }
            at += end as u64;
        }
        Ok(at)
    }

    /// The newest lines.
    fn last(&self, skip: u64, lines: u64) -> io::Result<LogSlice> {
        let (end, _, found_all) = self.back(self.length, skip, LOG_SEARCH_BYTES_MAX)?;
        if !found_all {
            return Err(too_far());
        }
        let (mut from, mut count, _) = self.back(end, lines.min(LOG_LINES_MAX), LOG_BYTES_MAX)?;
        if count == 0 && lines > 0 && end > 0 {
            // One line that is longer than everything together: its end.
            (from, count) = (character_start(&self.file, end - LOG_BYTES_MAX)?, 1);
        }
        let buffer = bytes_at(&self.file, from, usize::try_from(end - from).unwrap_or(0))?;
        let length = buffer.len() - unfinished(&buffer);
        let content = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok(self.slice(content, (from, from + length as u64), Some(count)))
    }

    /// Where the last `lines` before an offset begin, how many of them were found no further back than `reach` bytes,
    /// and whether that is all that there are or were wanted. Reads backwards in blocks.
    fn back(&self, end: u64, lines: u64, reach: u64) -> io::Result<(u64, u64, bool)> {
        let floor = end.saturating_sub(reach);
        let (mut at, mut found, mut upper) = (end, 0, end);
        let mut block = vec![0; usize::try_from(BLOCK_BYTES).unwrap_or(0)];
        while found < lines && upper > floor {
            let lower = upper.saturating_sub(BLOCK_BYTES).max(floor);
            let part = &mut block[..usize::try_from(upper - lower).unwrap_or(0)];
            self.file
                .read_exact_at(part, lower)
                .map_err(|_| io::Error::other("it became shorter while it was read"))?;
            for index in memchr_iter(b'\n', part).rev() {
                let next = lower + index as u64 + 1;
                // The end of the last line begins no further one.
                if next < end {
                    (at, found) = (next, found + 1);
                    if found == lines {
                        break;
                    }
                }
            }
            upper = lower;
        }
        if found == lines {
            return Ok((at, found, true));
        }
        Ok(if floor == 0 { (0, if end > 0 { found + 1 } else { 0 }, true) } else { (at, found, false) })
    }
}

fn too_far() -> io::Error {
    let reach = LOG_SEARCH_BYTES_MAX / (1024 * 1024);
    io::Error::other(format!("the lines that are passed over have more than {reach} MiB: read it by bytes"))
}

fn identity(meta: &fs::Metadata) -> LogFile {
    let made = meta.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let made_ns = made.map_or(0, |elapsed| u64::try_from(elapsed.as_nanos()).unwrap_or(0));
    LogFile { device: meta.dev(), inode: meta.ino(), made_ns }
}

/// A log that was read up to an offset, and what comes next of it.
struct Following<'a> {
    path: &'a str,
    own: &'a Path,
    /// The file that was read, whatever it is called by now.
    former: Option<Log>,
    file: LogFile,
    from: u64,
    bytes: u64,
}

impl Following<'_> {
    /// Waits for what comes next; empty when nothing came.
    fn next(mut self, wait_ms: u64) -> io::Result<LogSlice> {
        let until = clock::monotonic_ms().saturating_add(wait_ms);
        loop {
            if let Some(slice) = self.look()? {
                return Ok(slice);
            }
            if clock::monotonic_ms() >= until {
                let total_length = self.former.as_ref().map_or(self.from, |former| former.length);
                let (position, file) = (self.from, self.file);
                let content = String::new();
                return Ok(LogSlice { content, length: 0, position, total_length, lines: None, file, event: None });
            }
            // What is gone is looked for in a whole folder.
            let pause = if self.former.is_some() { PAUSE } else { PAUSE_MISSING };
            std::thread::sleep(pause.min(Duration::from_millis(until.saturating_sub(clock::monotonic_ms()))));
        }
    }

    fn look(&mut self) -> io::Result<Option<LogSlice>> {
        // Before the end of the former file is looked at: who writes to the new one has left the other.
        let named = match Log::open(self.path, self.own) {
            Ok(log) => Some(log),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(error),
        };
        let successor = match named {
            Some(log) if log.id == self.file => {
                self.former = Some(log);
                None
            }
            other => other.filter(|log| log.length > 0),
        };
        if self.former.is_none() {
            self.former = find_beside(self.path, self.own, self.file);
        }
        if let Some(former) = &mut self.former {
            former.length = former.file.metadata()?.len();
            if former.length < self.from {
                let slice = former.bytes(0, self.bytes, false)?;
                return Ok(Some(LogSlice { event: Some(LogEvent::Truncated), ..slice }));
            }
            if former.length > self.from {
                let slice = former.bytes(self.from, self.bytes, successor.is_some())?;
                // Half a character waits for its rest.
                if slice.position > self.from {
                    return Ok(Some(slice));
                }
            }
        }
        let Some(successor) = successor else { return Ok(None) };
        let event = if self.former.is_some() { LogEvent::Rotated } else { LogEvent::Replaced };
        let slice = successor.bytes(0, self.bytes, false)?;
        Ok(Some(LogSlice { event: Some(event), ..slice }))
    }
}

/// The file that was read, under the name that it has got in the same folder.
fn find_beside(path: &str, own: &Path, wanted: LogFile) -> Option<Log> {
    let folder = fs::read_dir(Path::new(path).parent()?).ok()?;
    for entry in folder.take(SIBLINGS_MAX).flatten() {
        let path = entry.path();
        let is_it = |meta: fs::Metadata| meta.is_file() && identity(&meta) == wanted;
        if fs::symlink_metadata(&path).is_ok_and(is_it) {
            return Log::open(path.to_str()?, own).ok().filter(|log| log.id == wanted);
        }
    }
    None
}
