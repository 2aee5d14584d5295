//! Control messages: the JSON half of the link, one text frame each.
//!
//! A session goes: the server sends [`ToAgent::Challenge`]; a new agent sends [`ToServer::Enrol`] and gets
//! [`ToAgent::Enrolled`]; the agent sends [`ToServer::Hello`], signed, with everything it holds; the server answers
//! [`ToAgent::Welcome`] with what it wants of that and from which offset. After that either side speaks freely.
//! Invariant: a message whose type is unknown decodes as `Unknown` and is skipped, so that peers of different age
//! understand each other; golden files under `golden/wire/` hold what has been sent once and must decode for ever.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::instance::{LogAnswer, LogQuestion, Observation, Watched};
use crate::order::Order;
use crate::secret::Secrets;
use crate::words::{ExecutionState, StepState};

/// Prefix of what an agent signs to prove who it is; the challenge's nonce and the agent's id follow.
const HELLO_PREFIX: &str = "drover-hello-v1";

/// Word in the features of [`Hello`] of an agent that answers [`ToAgent::Inspect`].
pub const INSPECT_FEATURE: &str = "inspect";

/// Word in the features of [`Hello`] of an agent that knows the action [`Script`](crate::words::Action::Script).
pub const SCRIPT_FEATURE: &str = "scripts";

/// Word in the features of [`Hello`] of an agent that knows [`shared_paths`](crate::order::Entry::shared_paths).
pub const SHARED_PATHS_FEATURE: &str = "shared_paths";

/// The bytes that an agent signs for its hello.
#[must_use]
pub fn hello_bytes(nonce: &str, agent_id: &str) -> Vec<u8> {
    format!("{HELLO_PREFIX}\0{nonce}\0{agent_id}").into_bytes()
}

/// From server to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    /// First message of a session.
    Challenge {
        /// Random text that the agent signs.
        nonce: String,
        /// Lowest and highest protocol version that the server speaks.
        versions: (u32, u32),
        /// The server's clock, milliseconds since 1970 UTC.
        time_ms: i64,
    },
    /// The agent is known from now on.
    Enrolled {
        /// Its id, which it keeps with its key.
        agent_id: String,
        /// The CA that signs the server's certificates, PEM: the agent trusts this one alone.
        ca_pem: String,
        /// Ed25519 public key that signs orders, in base64.
        signing_key: String,
    },
    /// The session ends here, and why. The agent shows the reason; `retry` says whether it may come back by itself.
    Refused {
        /// For people.
        reason: String,
        /// Whether trying again later makes sense.
        retry: bool,
    },
    /// The session is open.
    Welcome {
        /// Protocol version of this session.
        version: u32,
        /// Fencing number of this session: frames of an older one are refused.
        epoch: i64,
        /// Interval of heartbeats in milliseconds.
        heartbeat_ms: u64,
        /// Silence after which the peer counts as gone, in milliseconds.
        deadline_ms: u64,
        /// Output that may be under way for each execution beyond the acknowledged offset, in bytes.
        output_window_bytes: u64,
        /// What the server says to each execution that the hello listed.
        holdings: Vec<HoldingAnswer>,
    },
    /// Run this. A repeated order for the same execution and attempt is answered with the state it has.
    Run {
        /// What to run.
        order: Order,
        /// Values of the secrets that the entry names, no more and no fewer.
        #[serde(default, skip_serializing_if = "Secrets::is_empty")]
        secrets: Secrets,
    },
    /// Say what is kept under a deploy path; answered by [`ToServer::Inspected`].
    Inspect(Inspect),
    /// Watch the processes of these instances from now on, and no others; answered by [`ToServer::Observed`] with all of
    /// them, and again with each that changes.
    Watch {
        /// The instances, at most [`WATCHED_MAX`](crate::instance::WATCHED_MAX).
        instances: Vec<Watched>,
    },
    /// Give a piece of a log; answered by [`ToServer::Log`].
    ReadLog(LogQuestion),
    /// End this execution's processes.
    Cancel {
        /// Execution.
        execution_id: String,
        /// Attempt.
        attempt: u32,
        /// For people: who or which rule.
        reason: String,
        /// Whether the time ran out, which makes the outcome `timed_out` in place of `cancelled`.
        timed_out: bool,
    },
    /// Output up to this offset is durable on the server. Also grants the window beyond it.
    OutputAck {
        /// Channel of the execution in this session.
        channel: u32,
        /// Durable length in record bytes.
        offset: u64,
    },
    /// Output does not join on: send again from this offset.
    OutputResume {
        /// Channel of the execution in this session.
        channel: u32,
        /// Durable length in record bytes.
        offset: u64,
    },
    /// The server has everything of this execution: forget it.
    Archived {
        /// Execution.
        execution_id: String,
        /// Attempt.
        attempt: u32,
    },
    /// The artifact cannot be had.
    ArtifactRefused {
        /// Channel of the transfer in this session.
        channel: u32,
        /// For people.
        reason: String,
    },
    /// Answers a heartbeat.
    HeartbeatAck {},
    /// A message of a newer server.
    #[serde(other)]
    Unknown,
}

/// From agent to server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToServer {
    /// Asks to be taken in.
    Enrol {
        /// Secret part of the join token.
        secret: String,
        /// Name of the host.
        name: String,
        /// The agent's Ed25519 public key, in base64.
        public_key: String,
    },
    /// Opens a session.
    Hello(Box<Hello>),
    /// The order is in the spool, durable: this execution will be carried out or accounted for.
    Accepted {
        /// Execution.
        execution_id: String,
        /// Attempt.
        attempt: u32,
        /// Channel on which its output comes in this session.
        channel: u32,
    },
    /// The order is not taken and nothing was started.
    Rejected {
        /// Execution.
        execution_id: String,
        /// Attempt.
        attempt: u32,
        /// For people.
        reason: String,
        /// Whether it would be taken later, once there is room.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        no_room: bool,
    },
    /// How an execution ended. Sent again until [`ToAgent::Archived`] comes.
    Finished(Box<Finished>),
    /// Answers [`ToAgent::Inspect`].
    Inspected(Box<Inspected>),
    /// What is seen of instances: all of them after [`ToAgent::Watch`], then those that changed.
    Observed {
        /// What is seen.
        instances: Vec<Observation>,
    },
    /// Answers [`ToAgent::ReadLog`].
    Log(Box<LogAnswer>),
    /// Asks for an artifact from an offset.
    Fetch {
        /// Channel of the transfer, chosen by the agent.
        channel: u32,
        /// SHA-256 of the archive.
        digest: Digest,
        /// First byte wanted.
        offset: u64,
        /// Execution that needs it: the server sends only what one of the agent's orders names.
        execution_id: String,
        /// What of it is wanted; the offset, and those of the frames that come, count within that.
        #[serde(default, skip_serializing_if = "Part::is_whole")]
        part: Part,
    },
    /// Artifact bytes up to this offset are written; grants the window beyond it.
    FetchAck {
        /// Channel of the transfer.
        channel: u32,
        /// Length that the agent has.
        offset: u64,
    },
    /// The agent needs no more of this transfer.
    FetchDone {
        /// Channel of the transfer.
        channel: u32,
    },
    /// A sign of life.
    Heartbeat {
        /// The host's wall clock, milliseconds since 1970 UTC.
        time_ms: i64,
    },
    /// A message of a newer agent.
    #[serde(other)]
    Unknown,
}

/// What of an artifact is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// Its [index](crate::chunks).
    Index,
    /// These parts, one behind the other: in ascending order, none within another, at most
    /// [`RANGES_MAX`](crate::limits::RANGES_MAX).
    Ranges(Vec<Range>),
}

impl Part {
    /// Whether it is all of it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Whole)
    }
}

/// A part of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl From<(u64, u64)> for Range {
    fn from((offset, length): (u64, u64)) -> Self {
        Self { offset, length }
    }
}

impl From<Range> for (u64, u64) {
    fn from(range: Range) -> Self {
        (range.offset, range.length)
    }
}

/// Who the agent is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Id from enrolment.
    pub agent_id: String,
    /// Highest protocol version that the agent speaks within the server's range.
    pub version: u32,
    /// Names of optional abilities; unknown ones are ignored.
    #[serde(default)]
    pub features: Vec<String>,
    /// Ed25519 signature of [`hello_bytes`], in base64.
    pub signature: String,
    /// Version of the agent's program.
    pub agent_version: String,
    /// `/proc/sys/kernel/random/boot_id`: tells a reboot from a restart.
    pub boot_id: String,
    /// The host's wall clock, milliseconds since 1970 UTC.
    pub time_ms: i64,
    /// What the agent may do on its host.
    pub abilities: Abilities,
    /// Every execution in the spool.
    #[serde(default)]
    pub holdings: Vec<Holding>,
}

/// What an agent may do on its host; shown with the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// Account that the agent runs as.
    pub user: String,
    /// Whether it may run scripts as other accounts and hand files to them.
    pub other_users: bool,
    /// Whether each execution gets a cgroup of its own, so that ending it takes every process.
    pub cgroups: bool,
    /// Operating system in words, such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default)]
    pub os: String,
    /// Size of its spool in bytes: it takes no orders beyond that. None of one that knows no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_bytes_max: Option<u64>,
}

/// An execution in the agent's spool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Execution.
    pub execution_id: String,
    /// Attempt.
    pub attempt: u32,
    /// Channel on which its output comes in this session.
    pub channel: u32,
    /// Length of its log so far in record bytes.
    pub log_length: u64,
    /// Whether its outcome is known: a [`ToServer::Finished`] follows once the output is across.
    pub finished: bool,
    /// The agent was restarted before it started this and its secrets are gone: it waits for the order to come again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_order: bool,
}

/// What the server says to a holding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingAnswer {
    /// Execution.
    pub execution_id: String,
    /// Attempt.
    pub attempt: u32,
    /// Whether the server wants it; if not, the agent ends and forgets it.
    pub wanted: bool,
    /// Length of the output that the server has, durable: go on from here.
    pub offset: u64,
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Execution.
    pub execution_id: String,
    /// Attempt.
    pub attempt: u32,
    /// One of the states that are over.
    pub state: ExecutionState,
    /// For people: what failed and why; none when all went well.
    pub reason: Option<String>,
    /// Every step of the order.
    pub steps: Vec<StepOutcome>,
    /// Length of the whole log in record bytes: the execution is over when the server has all of it.
    pub log_length: u64,
    /// Whether output beyond the limit was left out; the log says so where it happened.
    pub output_truncated: bool,
    /// What became of the processes.
    pub processes: ProcessVerdict,
    /// Releases now kept under the deploy path; none when the order touched none.
    #[serde(default)]
    pub releases: Option<Vec<Release>>,
}

/// What became of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepOutcome {
    /// Name as in [`Step::name`](crate::order::Step::name).
    pub name: String,
    /// State at the end.
    pub state: StepState,
    /// Exit code of a script that exited.
    pub exit_code: Option<i32>,
    /// Signal that ended a script.
    pub signal: Option<i32>,
    /// For people: why it failed.
    pub error: Option<String>,
    /// Start, milliseconds since 1970 UTC; none when it was skipped.
    pub started_ms: Option<i64>,
    /// Duration by the monotonic clock in milliseconds.
    pub duration_ms: Option<u64>,
    /// Where its records begin in the log.
    pub log_start: u64,
    /// Where its records end.
    pub log_end: u64,
}

/// What became of the processes of an execution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessVerdict {
    /// Processes that had to be ended by signal.
    pub ended: u32,
    /// Processes that are still there, as `pid command (state)`; the first of them.
    pub survivors: Vec<String>,
    /// How many those are in all; left out when there are none, and by agents that do not count them.
    #[serde(default, skip_serializing_if = "is_none")]
    pub survivors_total: u32,
    /// Whether a cgroup made sure that none was missed.
    pub certain: bool,
    /// Whether a process outlived its script and was left alone, as a service started by a hook is.
    #[serde(default)]
    pub left_running: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
fn is_none(count: &u32) -> bool {
    *count == 0
}

/// A release under the deploy path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Name of the folder.
    pub name: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the archive it came from.
    pub artifact_digest: Digest,
    /// Digest of its manifest.
    pub tree_digest: Digest,
    /// Whether `current` points at it.
    pub current: bool,
    /// When it was unpacked, milliseconds since 1970 UTC.
    pub installed_ms: i64,
}

/// Asks what is kept under a deploy path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspect {
    /// Names the request in its answer; chosen by the server.
    pub request: u64,
    /// Absolute path.
    pub deploy_path: String,
    /// Only this release; all of them when none is named.
    #[serde(default)]
    pub release: Option<String>,
    /// Whether to compare every file with the manifest, which reads all of it. Without it only sizes are counted.
    #[serde(default)]
    pub compare: bool,
    /// Time that it may take, in milliseconds; what is not done by then is left out.
    pub timeout_ms: u64,
}

/// What is kept under a deploy path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspected {
    /// As asked.
    pub request: u64,
    /// For people: why there is no answer, or why it is not complete.
    #[serde(default)]
    pub reason: Option<String>,
    /// The releases, the newest first, at most [`INSPECTED_RELEASES_MAX`](crate::limits::INSPECTED_RELEASES_MAX).
    #[serde(default)]
    pub releases: Vec<InspectedRelease>,
    /// Space that is free on the file system of the deploy path, in bytes.
    #[serde(default)]
    pub free_bytes: Option<u64>,
}

/// A kept release, looked at closely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedRelease {
    /// What its manifest says.
    #[serde(flatten)]
    pub release: Release,
    /// Whether it is the one that was current before.
    pub previous: bool,
    /// Files, folders and links in it, as far as they were counted.
    pub members: u64,
    /// Space that they take on disk, in bytes.
    pub disk_bytes: u64,
    /// How it differs from its manifest; none when it was not compared to the end.
    #[serde(default)]
    pub drift: Option<Drift>,
}

/// How a release differs from its manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// Whether the manifest itself is not the one whose digest it carries.
    #[serde(default)]
    pub manifest_damaged: bool,
    /// Members that are not as they were unpacked: path and how they differ.
    #[serde(default)]
    pub changed: Vec<(String, String)>,
    /// Members that are gone.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Members that came later.
    #[serde(default)]
    pub added: Vec<String>,
    /// Further differences, which are not listed: see [`INSPECTED_PATHS_MAX`](crate::limits::INSPECTED_PATHS_MAX).
    #[serde(default)]
    pub more: u64,
}

impl Drift {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Payload of a record of stream [`Event`](crate::record::Stream::Event).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepEvent {
    /// Name of the step.
    pub step: String,
    /// `running`, then how it ended.
    pub state: StepState,
    /// Exit code of a script that exited.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// For people: why it failed.
    #[serde(default)]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_from_the_future_is_skipped() {
        let newer = r#"{"type":"teleport","to":"mars"}"#;
        assert_eq!(serde_json::from_str::<ToAgent>(newer).unwrap(), ToAgent::Unknown);
        assert_eq!(serde_json::from_str::<ToServer>(newer).unwrap(), ToServer::Unknown);
    }
}
