//! How long an operator wants to keep what is over. Areas decide by it; here is nothing but the figures.

use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);

/// How long what is over is kept. None: for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Output of a task, from its end on.
    pub output: Option<Duration>,
    /// Bytes of all output together; beyond them the output of the tasks that ended first goes.
    pub output_bytes: Option<u64>,
    /// Artifact of a task, from its end on.
    pub artifacts: Option<Duration>,
    /// A task, from its end on.
    pub tasks: Option<Duration>,
    /// Newest tasks, and newest deploy tasks, of each application that stay whatever their age.
    pub tasks_least: u32,
    /// An entry of the audit, from when it was written on.
    pub audit: Option<Duration>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            output: Some(180 * DAY),
            output_bytes: None,
            artifacts: Some(180 * DAY),
            tasks: Some(365 * DAY),
            tasks_least: 50,
            audit: None,
        }
    }
}

impl Retention {
    /// Keeps everything for ever.
    #[must_use]
    pub fn for_ever() -> Self {
        Self { output: None, output_bytes: None, artifacts: None, tasks: None, tasks_least: 0, audit: None }
    }
}
