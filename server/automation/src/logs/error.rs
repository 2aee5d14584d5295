//! What can go wrong with a log, in sentences for people.

/// Why a log or the store cannot be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the folder.
    #[error("the log folder {0} is in use by another server")]
    InUse(String),
    /// Ids are positive.
    #[error("{0} is no task id")]
    NoTask(i64),
    /// The file is not a log of this task, or of a newer layout.
    #[error("the log of task {task_id} cannot be read: {reason}")]
    Foreign {
        /// Task.
        task_id: i64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Damage before the end, which no interrupted write explains. Nothing is cut off.
    #[error("the log of task {task_id} is damaged at byte {at} of its file")]
    Damaged {
        /// Task.
        task_id: i64,
        /// Offset in the file.
        at: u64,
    },
    /// The file system refuses.
    #[error("cannot open {path}: {reason}")]
    Storage {
        /// File or folder.
        path: String,
        /// What the system says.
        reason: String,
    },
}

/// Why output is not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Bytes before these are missing: send again from `durable`.
    #[error("output before these bytes is missing: go on from byte {durable}")]
    Gap {
        /// Durable length of the source in record bytes.
        durable: u64,
    },
    /// The body is not what the protocol allows; nothing of it is stored.
    #[error("this output cannot be stored: {0}")]
    Malformed(&'static str),
    /// No room on the disk. Nothing of it is stored; later appends work again once there is room.
    #[error("the disk that holds the logs is full")]
    Full,
    /// The store was closed.
    #[error("the log store is closed")]
    Closed,
    /// The file system refuses.
    #[error("cannot write the log: {0}")]
    Storage(String),
}

/// Why a log cannot be read on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// A chunk is not what was written.
    #[error("the log of task {task_id} is damaged at byte {at} of its file: {reason}")]
    Damaged {
        /// Task.
        task_id: i64,
        /// Offset in the file.
        at: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file system refuses.
    #[error("cannot read the log of task {task_id}: {reason}")]
    Storage {
        /// Task.
        task_id: i64,
        /// What the system says.
        reason: String,
    },
}
