//! How much the spool of a host holds, all executions together.
//!
//! Each supervisor writes a log of its own and knows nothing of the others, so it looks at the whole spool from time to time,
//! the more often the less room is left, and writes on only as far as it found room. Invariant: together they go beyond
//! the bound by no more than a few steps, however many there are.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Folder, Key, RESERVE_BYTES};

/// Output of each execution that is always taken in: its place is counted from the moment that its order is accepted.
pub(crate) const TAKEN_BYTES: u64 = 256 * 1024;
/// How much a log may grow before the spool is looked at again: at least, and at most.
const STEP_BYTES: (u64, u64) = (128 * 1024, 16 * 1024 * 1024);
/// Steps into which the room that is left is divided: about twice as many as there are supervisors.
const STEPS: u64 = 256;

/// The bound of the spool as one log meets it.
#[derive(Debug)]
pub struct Bound {
    spool: PathBuf,
    bytes_max: u64,
    /// Length up to which the log may grow.
    granted: u64,
}

impl Bound {
    /// For the log of this folder.
    #[must_use]
    pub fn of(folder: &Folder, bytes_max: u64) -> Self {
        let spool = folder.path().parent().unwrap_or(Path::new("/")).to_owned();
        Self { spool, bytes_max, granted: TAKEN_BYTES }
    }

    /// Bytes of the whole spool.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// How long the log may become that has this length and is to have another one.
    pub(crate) fn longest(&mut self, length: u64, wanted: u64) -> u64 {
        if wanted > self.granted {
            self.granted = self.granted.max(length + step(self.bytes_max.saturating_sub(used(&self.spool))));
        }
        self.granted
    }
}

/// How far a log may grow where so much is left.
fn step(left: u64) -> u64 {
    if left == 0 { 0 } else { (left / STEPS).clamp(STEP_BYTES.0, STEP_BYTES.1) }
}

/// What an execution takes that has an order and a log of these lengths.
pub(crate) fn taken(order_bytes: u64, log_bytes: u64) -> u64 {
    order_bytes + log_bytes + RESERVE_BYTES.unsigned_abs()
}

/// What all executions in a spool take, in bytes. One that is forgotten meanwhile takes nothing.
fn used(spool: &Path) -> u64 {
    let length = |path: PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let items = fs::read_dir(spool).into_iter().flatten().flatten();
    let executions = items.filter(|item| Key::parse(&item.file_name().to_string_lossy()).is_some());
    executions.map(|item| taken(length(item.path().join("order.json")), length(item.path().join("log")))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_become_smaller_with_what_is_left() {
        const MIB: u64 = 1024 * 1024;
        let steps = [8 * 1024 * MIB, 2 * 1024 * MIB, 1024 * MIB, MIB, 1, 0].map(step);
        assert_eq!(steps, [16 * MIB, 8 * MIB, 4 * MIB, MIB / 8, MIB / 8, 0]);
        // As many as run at a time, each of which has just found the same room.
        assert!(128 * step(1024 * MIB) <= 512 * MIB);
    }
}
