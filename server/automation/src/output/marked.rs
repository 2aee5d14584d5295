//! Output with time and host before each line, and a line for each step that begins or ends.
//!
//! A line is `TIME HOST SIGN TEXT`. The sign says what it is: `|` standard output, `!` standard error, `*` a notice of
//! Drover's, `=` a step. The text is what was written, byte by byte.

use std::collections::HashMap;
use std::io::Write as _;

use bytes::Bytes;
use drover_kernel::{Kernel, Time};
use drover_shared::message::StepEvent;
use drover_shared::record::Stream;
use drover_shared::words::Word as _;

use crate::logs::{Entry, Lines, ReadError, Scan};

/// Bytes in one piece; the last line goes beyond.
const PIECE_BYTES: usize = 256 * 1024;

/// Makes the lines.
pub(super) struct Marked {
    scan: Scan,
    lines: Lines,
    hosts: HashMap<u32, String>,
    kernel: Kernel,
    /// The time that was shown last, since many lines share it.
    shown: (i64, String),
    over: bool,
}

impl Marked {
    pub(super) fn new(scan: Scan, hosts: HashMap<u32, String>, kernel: Kernel) -> Self {
        Self { scan, lines: Lines::default(), hosts, kernel, shown: (i64::MIN, String::new()), over: false }
    }

    /// The next lines; none at the end.
    pub(super) fn next_piece(&mut self) -> Result<Option<Bytes>, ReadError> {
        let mut out = Vec::new();
        while out.len() < PIECE_BYTES && !self.over {
            let entry = self.scan.next_entry()?;
            let event = entry.as_ref().filter(|entry| entry.stream == Stream::Event).cloned();
            match entry {
                Some(entry) => self.lines.push(entry),
                None => {
                    self.lines.finish(self.scan.text_offset());
                    self.over = true;
                }
            }
            self.take_lines(&mut out);
            if let Some(event) = event {
                self.mark(&event, &mut out);
            }
        }
        Ok((!out.is_empty()).then(|| out.into()))
    }

    fn take_lines(&mut self, out: &mut Vec<u8>) {
        while let Some(line) = self.lines.next_line() {
            let sign = match line.stream {
                Stream::Output => b'|',
                Stream::Error => b'!',
                Stream::Notice | Stream::Event => b'*',
            };
            if self.shown.0 != line.time_ms {
                self.shown = (line.time_ms, self.kernel.show_millis(Time::from_millis(line.time_ms)));
            }
            let host = self.hosts.get(&line.source).map_or("?", String::as_str);
            out.extend_from_slice(self.shown.1.as_bytes());
            out.push(b' ');
            out.extend_from_slice(host.as_bytes());
            out.extend_from_slice(&[b' ', sign, b' ']);
            out.extend_from_slice(line.text);
            out.push(b'\n');
        }
    }

    fn mark(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        let time = self.kernel.show_millis(Time::from_millis(entry.time_ms));
        let host = self.hosts.get(&entry.source).map_or("?", String::as_str);
        let text = match serde_json::from_slice::<StepEvent>(&entry.payload) {
            Ok(event) => {
                let code = event.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
                let error = event.error.map(|error| format!(": {}", error.replace('\n', " "))).unwrap_or_default();
                format!("{} {}{code}{error}", event.step, event.state.as_str())
            }
            Err(_) => String::from_utf8_lossy(&entry.payload).replace('\n', " "),
        };
        // Writing to memory does not fail.
        let _ = writeln!(out, "{time} {host} = {text}");
    }
}
