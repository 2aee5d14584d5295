//! What the server asks an agent about instances: whether their processes live, and what stands in their logs.
//!
//! Data alone; the messages that carry it are in [`message`](crate::message).

use serde::{Deserialize, Serialize};

/// Word in the features of [`Hello`](crate::message::Hello) of an agent that knows
/// [`Watch`](crate::message::ToAgent::Watch) and [`ReadLog`](crate::message::ToAgent::ReadLog).
pub const FEATURE: &str = "instances";

/// Instances that one agent watches.
pub const WATCHED_MAX: usize = 1_000;
/// Length of a path, in bytes.
pub const PATH_BYTES_MAX: usize = 4_095;
/// Log in one answer, in bytes of the file: escaped as JSON it fits into a control message.
pub const LOG_BYTES_MAX: u64 = 256 * 1024;
/// Lines in one answer.
pub const LOG_LINES_MAX: u64 = 10_000;
/// How far a log is searched for the beginning of a line, in bytes.
pub const LOG_SEARCH_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Longest wait for a log to grow, in milliseconds.
pub const LOG_WAIT_MS_MAX: u64 = 30_000;
/// Length of a reason, in bytes.
pub const REASON_BYTES_MAX: usize = 500;

crate::words! {
    /// What a host sees of an instance's process.
    pub enum ProcessState {
        /// The process that the pid file names lives.
        Running = "running",
        /// There is no pid file.
        Stopped = "stopped",
        /// The pid file names a process that is not there.
        Crashed = "crashed",
        /// Nobody can say.
        Unknown = "unknown",
    }
}

/// An instance that an agent watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Instance.
    pub instance_id: i64,
    /// Absolute path of the file that names its process.
    pub pid_path: String,
    /// Account that it runs as, and that the file is read as; the agent's own when none is named.
    #[serde(default)]
    pub running_user: Option<String>,
}

/// What an agent sees of an instance's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Instance.
    pub instance_id: i64,
    /// What it is.
    pub state: ProcessState,
    /// The process, if it lives.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Since when, milliseconds since 1970 UTC by the host's clock; none when nobody saw it begin.
    #[serde(default)]
    pub since_ms: Option<i64>,
    /// For people: why, unless it runs or is stopped.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Asks for a piece of a log file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuestion {
    /// Names the question in its answer; chosen by the server.
    pub request: u64,
    /// Absolute path.
    pub path: String,
    /// Account that the file is read as; the agent's own when none is named.
    #[serde(default)]
    pub running_user: Option<String>,
    /// Which piece.
    pub piece: LogPiece,
}

/// A piece of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum LogPiece {
    /// Bytes from an offset on.
    Bytes {
        /// Offset from the beginning.
        from: u64,
        /// How many at most.
        bytes: u64,
    },
    /// Bytes from so many before the end on.
    LastBytes {
        /// How many before the end it begins.
        back: u64,
        /// How many at most.
        bytes: u64,
    },
    /// Lines from the beginning.
    Lines {
        /// Lines to pass over.
        skip: u64,
        /// Lines to give.
        lines: u64,
    },
    /// The newest lines.
    LastLines {
        /// Newest lines to leave out.
        skip: u64,
        /// Lines to give, those before.
        lines: u64,
    },
    /// What comes after an offset of a file that was read before, as soon as there is something.
    Next {
        /// The file that was read.
        file: LogFile,
        /// Offset in it.
        from: u64,
        /// How many bytes at most.
        bytes: u64,
        /// Time to wait for something, in milliseconds.
        wait_ms: u64,
    },
}

/// Which file it is, whatever it is called by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFile {
    /// Device.
    pub device: u64,
    /// Number on the device.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970, because numbers are used again; 0 where the file system does not say.
    pub made_ns: u64,
}

/// Answers a [`LogQuestion`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAnswer {
    /// As asked.
    pub request: u64,
    /// What came of it.
    pub outcome: LogOutcome,
}

/// What came of a [`LogQuestion`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LogOutcome {
    /// The piece.
    Slice(LogSlice),
    /// There is no such file.
    Missing {},
    /// It cannot be read, and why.
    Refused {
        /// For people.
        reason: String,
    },
    /// The agent is reading too much at the moment.
    Busy {},
}

/// A piece of a log file, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSlice {
    /// The text: whole characters, with U+FFFD for what is none.
    pub content: String,
    /// Bytes of the file that it stands for.
    pub length: u64,
    /// Offset of the byte after it.
    pub position: u64,
    /// Length of the file.
    pub total_length: u64,
    /// How many lines it has; none when bytes were asked for.
    #[serde(default)]
    pub lines: Option<u64>,
    /// Which file it is.
    pub file: LogFile,
    /// What happened to the file since it was read before.
    #[serde(default)]
    pub event: Option<LogEvent>,
}

crate::words! {
    /// What happened to a log file while it was followed.
    pub enum LogEvent {
        /// Another file has its name, and what came before was read to its end.
        Rotated = "rotated",
        /// Another file has its name, and nobody knows what came at the end of the former one.
        Replaced = "replaced",
        /// It is shorter than what was read of it: it begins anew.
        Truncated = "truncated",
    }
}
