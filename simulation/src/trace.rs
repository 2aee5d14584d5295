//! What happened, line by line, and its digest: two runs of a seed have the same.
//!
//! Ids are made at random: in the trace they have numbers, in the order in which they appear.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drover_shared::Digest;

/// Length of an id in its usual form.
const ID_BYTES: usize = 36;

#[derive(Debug, Default)]
struct Kept {
    lines: Vec<String>,
    names: BTreeMap<String, usize>,
    echo: bool,
}

/// The trace of a run; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Kept>>);

impl Trace {
    /// An empty trace, which is also printed as it grows if `echo` is set.
    #[must_use]
    pub(crate) fn new(echo: bool) -> Self {
        Self(Arc::new(Mutex::new(Kept { echo, ..Kept::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line; ids in it get their numbers.
    #[expect(clippy::print_stdout, reason = "a trace that is followed")]
    pub(crate) fn say(&self, now_ms: u64, line: &str) {
        let mut kept = self.lock();
        let line = format!("{now_ms:>8} {}", kept.named(line));
        if kept.echo {
            println!("{line}");
        }
        kept.lines.push(line);
    }

    /// The number of an id.
    #[must_use]
    pub(crate) fn number(&self, id: &str) -> usize {
        self.lock().number(id)
    }

    /// The last lines.
    #[must_use]
    pub(crate) fn tail(&self, count: usize) -> String {
        let kept = self.lock();
        kept.lines[kept.lines.len().saturating_sub(count)..].join("\n")
    }

    /// How many lines there are, and their digest.
    #[must_use]
    pub(crate) fn digest(&self) -> (usize, String) {
        let kept = self.lock();
        (kept.lines.len(), Digest::of(kept.lines.join("\n").as_bytes()).to_string())
    }

    /// Every line.
    #[must_use]
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }
}

impl Kept {
    fn number(&mut self, id: &str) -> usize {
        let next = self.names.len() + 1;
        *self.names.entry(id.to_owned()).or_insert(next)
    }

    fn named(&mut self, line: &str) -> String {
        let mut out = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(at) = id_in(rest) {
            let id = &rest[at..at + ID_BYTES];
            out.push_str(&rest[..at]);
            out.push_str(&format!("#{}", self.number(id)));
            rest = &rest[at + ID_BYTES..];
        }
        out + rest
    }
}

/// Where an id begins, if there is one.
fn id_in(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    (0..(bytes.len() + 1).saturating_sub(ID_BYTES)).find(|&at| {
        bytes[at..at + ID_BYTES].iter().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    })
}
