//! Bounds that both sides of the link enforce. A peer that breaks one is disconnected with a message naming it.

/// Protocol versions that this build speaks, lowest and highest.
pub const PROTOCOL_VERSIONS: (u32, u32) = (1, 1);

/// Largest control message (JSON text frame), in bytes. An order with its rendered scripts must fit.
pub const CONTROL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Largest body of a data frame before compression, in bytes.
pub const DATA_BYTES_MAX: usize = 256 * 1024;

/// Output that an agent may send for one execution beyond what the server has acknowledged as durable, in bytes.
pub const OUTPUT_WINDOW_BYTES: u64 = 1024 * 1024;

/// Artifact bytes that the server may send beyond what the agent has acknowledged.
pub const ARTIFACT_WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Ranges of an artifact that are asked for together.
pub const RANGES_MAX: usize = 10_000;

/// Largest payload of one log record, in bytes.
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Output of one stream that goes with a supervisor which is killed, at most, in bytes: a full pipe (64 KiB by pipe(7)),
/// what was read from it, and what waited to be written.
pub const OUTPUT_IN_FLIGHT_BYTES_MAX: usize = 3 * 64 * 1024;

/// Output kept for one execution unless its order says otherwise, in bytes of records.
pub const OUTPUT_BYTES_MAX_DEFAULT: u64 = 4 * 1024 * 1024 * 1024;

/// Executions that one agent holds at a time, finished but not yet archived ones included.
pub const HOLDINGS_MAX: usize = 10_000;

/// Interval of heartbeats and the silence after which the peer counts as gone, in milliseconds.
pub const HEARTBEAT_MS: u64 = 15_000;
/// See [`HEARTBEAT_MS`].
pub const HEARTBEAT_DEADLINE_MS: u64 = 45_000;

/// Time between TERM and KILL when a process tree is ended, in milliseconds.
pub const KILL_GRACE_MS_DEFAULT: u64 = 5_000;

/// Releases in one answer to an inspection.
pub const INSPECTED_RELEASES_MAX: usize = 200;
/// Paths in one answer to an inspection, each cut off after [`INSPECTED_PATH_BYTES_MAX`].
pub const INSPECTED_PATHS_MAX: usize = 500;
/// Length of a path in an answer to an inspection, in bytes.
pub const INSPECTED_PATH_BYTES_MAX: usize = 500;
