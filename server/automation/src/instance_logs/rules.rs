//! Which piece of a log somebody asks for. Pure.
//!
//! Invariant: what belongs to the other mode is ignored, whatever it says; what is asked for has a bound.

use drover_kernel::fields::Name;
use drover_kernel::{Error, Result, api_words};
use drover_shared::instance::{LOG_BYTES_MAX, LOG_LINES_MAX, LOG_WAIT_MS_MAX, LogFile, LogPiece};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::operations::paths::PathOf;

const BLOCK_SIZE: u64 = 8_192;
const LINES: u64 = 1_000;

api_words! {
    /// Which log.
    pub enum LogType {
        /// What the application says.
        Stdout = "stdout",
        /// What it says of errors.
        Error = "error",
    }
}

api_words! {
    /// What is counted.
    pub enum Mode {
        /// Lines.
        Lines = "lines",
        /// Bytes.
        Bytes = "bytes",
    }
}

/// Which piece of which log. Members of the other mode are ignored.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Wish {
    /// `stdout` reads the application's `stdout_path`, `error` its `stderr_path`.
    #[schemars(with = "Option<LogType>")]
    log_type: Option<Name>,
    /// `bytes` unless said otherwise.
    #[schemars(with = "Option<Mode>")]
    mode: Option<Name>,
    /// Bytes: where to begin. Not together with `from_last_position`.
    #[schemars(with = "Option<u64>")]
    from_position: Option<Name>,
    /// Bytes: how far before the end to begin.
    #[schemars(with = "Option<u64>")]
    from_last_position: Option<Name>,
    /// Bytes: how many at most, 8192 unless said otherwise; more than 262144 are not given at a time.
    #[schemars(with = "Option<u64>")]
    block_size: Option<Name>,
    /// Lines: how many from the beginning, 1000 unless said otherwise; more than 10000, or than fit into 262144 bytes, are
    /// not given at a time.
    #[schemars(with = "Option<u64>")]
    lines: Option<Name>,
    /// Lines: how many to pass over from the beginning.
    #[schemars(with = "Option<u64>")]
    from_lines: Option<Name>,
    /// Lines: how many of the newest, 1000 unless said otherwise. This or the next one begins at the end.
    #[schemars(with = "Option<u64>")]
    latest_lines: Option<Name>,
    /// Lines: how many of the newest to leave out.
    #[schemars(with = "Option<u64>")]
    latest_lines_offset: Option<Name>,
    /// Bytes: the file that an earlier answer named; then this answer is what comes after `from_position` in it, wherever
    /// it is by now, or the beginning of the file that has taken its place.
    file: Option<Name>,
    /// Bytes, together with `file`: seconds to wait until something comes, 30 at most.
    #[schemars(with = "Option<u64>")]
    wait: Option<Name>,
}

fn word<T: drover_shared::words::Word>(given: Option<&Name>, field: &str, default: T) -> Result<T> {
    match given.filter(|given| !given.0.is_empty()) {
        Some(given) => T::parse(&given.0).map_err(|error| Error::invalid(field, error.to_string())),
        None => Ok(default),
    }
}

fn number(given: Option<&Name>, field: &str) -> Result<Option<u64>> {
    let Some(given) = given.filter(|given| !given.0.is_empty()) else { return Ok(None) };
    let wrong = || Error::invalid(field, "must be a whole number that is not negative");
    given.0.parse::<u64>().ok().filter(|number| i64::try_from(*number).is_ok()).map(Some).ok_or_else(wrong)
}

impl Wish {
    /// Which log, and which piece of it.
    pub(super) fn piece(&self) -> Result<(PathOf, LogPiece)> {
        let path = match word(self.log_type.as_ref(), "log_type", LogType::Stdout)? {
            LogType::Stdout => PathOf::Output,
            LogType::Error => PathOf::Error,
        };
        let piece = match word(self.mode.as_ref(), "mode", Mode::Bytes)? {
            Mode::Bytes => self.bytes()?,
            Mode::Lines => self.lines()?,
        };
        Ok((path, piece))
    }

    fn bytes(&self) -> Result<LogPiece> {
        let from = number(self.from_position.as_ref(), "from_position")?;
        let back = number(self.from_last_position.as_ref(), "from_last_position")?;
        let bytes = number(self.block_size.as_ref(), "block_size")?.unwrap_or(BLOCK_SIZE).min(LOG_BYTES_MAX);
        let wait = number(self.wait.as_ref(), "wait")?;
        if from.is_some() && back.is_some() {
            return Err(Error::invalid("from_last_position", "cannot be given together with from_position"));
        }
        let file = self.file.as_ref().filter(|file| !file.0.is_empty());
        let Some(file) = file else {
            return match (wait, back) {
                (Some(_), _) => Err(Error::invalid("wait", "needs the `file` of an earlier answer")),
                (None, Some(back)) => Ok(LogPiece::LastBytes { back, bytes }),
                (None, None) => Ok(LogPiece::Bytes { from: from.unwrap_or(0), bytes }),
            };
        };
        if back.is_some() {
            return Err(Error::invalid("from_last_position", "cannot be given together with file"));
        }
        let file = file_named(&file.0).ok_or_else(|| Error::invalid("file", "must be that of an earlier answer"))?;
        let wait_ms = wait.unwrap_or(0).saturating_mul(1_000);
        if wait_ms > LOG_WAIT_MS_MAX {
            return Err(Error::invalid("wait", format!("must be at most {} seconds", LOG_WAIT_MS_MAX / 1_000)));
        }
        if bytes == 0 {
            return Err(Error::invalid("block_size", "must be at least 1 together with file"));
        }
        Ok(LogPiece::Next { file, from: from.unwrap_or(0), bytes, wait_ms })
    }

    fn lines(&self) -> Result<LogPiece> {
        if self.latest_lines.is_some() || self.latest_lines_offset.is_some() {
            let lines = number(self.latest_lines.as_ref(), "latest_lines")?.unwrap_or(LINES).min(LOG_LINES_MAX);
            let skip = number(self.latest_lines_offset.as_ref(), "latest_lines_offset")?.unwrap_or(0);
            return Ok(LogPiece::LastLines { skip, lines });
        }
        let lines = number(self.lines.as_ref(), "lines")?.unwrap_or(LINES).min(LOG_LINES_MAX);
        let skip = number(self.from_lines.as_ref(), "from_lines")?.unwrap_or(0);
        Ok(LogPiece::Lines { skip, lines })
    }
}

/// A file as answers name it.
pub(super) fn name_of(file: LogFile) -> String {
    format!("{}-{}-{}", file.device, file.inode, file.made_ns)
}

fn file_named(name: &str) -> Option<LogFile> {
    let mut numbers = name.split('-').map(str::parse::<u64>);
    let (Some(Ok(device)), Some(Ok(inode)), Some(Ok(made_ns)), None) =
        (numbers.next(), numbers.next(), numbers.next(), numbers.next())
    else {
        return None;
    };
    Some(LogFile { device, inode, made_ns })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn piece(wish: serde_json::Value) -> Result<LogPiece, String> {
        let wish: Wish = serde_json::from_value(wish).unwrap();
        wish.piece().map(|(_, piece)| piece).map_err(|error| match error {
            Error::Invalid { field, .. } => field,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn what_is_asked_for() {
        let file = LogFile { device: 1, inode: 2, made_ns: 3 };
        assert_eq!(name_of(file), "1-2-3");
        for (wish, expected) in [
            (json!({}), LogPiece::Bytes { from: 0, bytes: 8192 }),
            (json!({"mode": " bytes", "from_position": "7", "lines": "x"}), LogPiece::Bytes { from: 7, bytes: 8192 }),
            (json!({"from_last_position": "0"}), LogPiece::LastBytes { back: 0, bytes: 8192 }),
            (
                json!({"from_last_position": "9", "block_size": "999999999"}),
                LogPiece::LastBytes { back: 9, bytes: 262_144 },
            ),
            (
                json!({"mode": "lines", "from_position": "-1", "from_last_position": "5"}),
                LogPiece::Lines { skip: 0, lines: 1000 },
            ),
            (json!({"mode": "lines", "from_lines": "3", "lines": "2"}), LogPiece::Lines { skip: 3, lines: 2 }),
            (json!({"mode": "lines", "lines": "99999999"}), LogPiece::Lines { skip: 0, lines: 10_000 }),
            (json!({"mode": "lines", "latest_lines": "5", "lines": "x"}), LogPiece::LastLines { skip: 0, lines: 5 }),
            (json!({"mode": "lines", "latest_lines_offset": "4"}), LogPiece::LastLines { skip: 4, lines: 1000 }),
            (
                json!({"file": "1-2-3", "from_position": "9", "wait": "30"}),
                LogPiece::Next { file, from: 9, bytes: 8192, wait_ms: 30_000 },
            ),
        ] {
            assert_eq!(piece(wish.clone()), Ok(expected), "{wish}");
        }
    }

    #[test]
    fn what_makes_no_sense_names_its_field() {
        for (wish, field) in [
            (json!({"log_type": "debug"}), "log_type"),
            (json!({"mode": "words"}), "mode"),
            (json!({"from_position": "1", "from_last_position": "1"}), "from_last_position"),
            (json!({"from_position": "-1"}), "from_position"),
            (json!({"block_size": "1.5"}), "block_size"),
            (json!({"from_position": "99999999999999999999"}), "from_position"),
            (json!({"mode": "lines", "lines": "-1"}), "lines"),
            (json!({"mode": "lines", "latest_lines": "x"}), "latest_lines"),
            (json!({"wait": "5"}), "wait"),
            (json!({"file": "1-2-3", "wait": "31"}), "wait"),
            (json!({"file": "1-2-3", "from_last_position": "1"}), "from_last_position"),
            (json!({"file": "1-2"}), "file"),
            (json!({"file": "1-2-3-4"}), "file"),
        ] {
            assert_eq!(piece(wish.clone()), Err(field.to_owned()), "{wish}");
        }
    }
}
