//! The order to run something on a host: what the server signs and the agent verifies.
//!
//! An order has two texts. The **entry** is one target's part of the plan, rendered when the task was made; it never
//! changes afterwards. The **statement** says who runs which entry when: it is made at dispatch, carries the entry's
//! digest and the plan's, and is signed. Both travel as the exact text that was digested or signed, so that no
//! re-encoding can change a byte. Invariant: an agent starts nothing whose signature, entry digest, agent id,
//! execution id or attempt does not agree.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::words::{Action, Language};

/// An order as it travels and as the agent keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// JSON of a [`Statement`], exactly as signed.
    pub statement: String,
    /// JSON of an [`Entry`], exactly as digested.
    pub entry: String,
    /// Ed25519 signature (RFC 8032) of [`signed_bytes`] of the statement, in base64.
    pub signature: String,
}

/// What the server signs: this host may run this entry as this attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Execution, a UUIDv7.
    pub execution_id: String,
    /// Counted from 1; a retry is a new attempt.
    pub attempt: u32,
    /// Agent that may run it.
    pub agent_id: String,
    /// Digest of the whole plan, as approved.
    pub plan_digest: Digest,
    /// Digest of the entry's text.
    pub entry_digest: Digest,
    /// Time the execution may take from the moment it is accepted, in milliseconds.
    pub timeout_ms: u64,
}

/// The bytes that are signed for a statement: a prefix keeps this signature from meaning anything else.
#[must_use]
pub fn signed_bytes(statement: &str) -> Vec<u8> {
    [b"drover-order-v1\0", statement.as_bytes()].concat()
}

/// One target's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What is being done.
    pub action: Action,
    /// Task that this belongs to; the number that people know.
    pub task_id: i64,
    /// Name of the host, for messages and the environment of hooks.
    pub host: String,
    /// Dotted full name of the application.
    pub application: String,
    /// Instance; none for a global hook.
    pub instance_id: Option<i64>,
    /// Version being installed or returned to.
    pub version: String,
    /// Folder that holds `releases/`, `current` and `shared/`; none when only hooks run.
    pub deploy_path: Option<String>,
    /// Account that owns the files; the agent's own when none is named.
    pub run_user: Option<String>,
    /// What is done, in order. A failing step skips the rest.
    pub steps: Vec<Step>,
    /// Further environment of every script; names begin with no `DROVER_`.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Names of the secrets that the scripts need, see [`secret`](crate::secret): the values come beside the order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Paths inside a release that lead to the same path below `shared/`, so that every version sees the same content.
    /// One that ends in `/` is a folder; another is a file unless a folder is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_paths: Vec<String>,
    /// Output kept at most, in bytes of records.
    pub output_bytes_max: u64,
    /// Time between TERM and KILL, in milliseconds.
    pub kill_grace_ms: u64,
}

/// One step of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Step {
    /// Runs a rendered script.
    Script {
        /// `pre_exec`, `post_exec`, `global_pre_exec` or `global_post_exec`.
        name: String,
        /// Interpreter.
        language: Language,
        /// The rendered text.
        content: String,
        /// Account to run as; the agent's own when none is named.
        running_user: Option<String>,
        /// Milliseconds it may take by itself; without it, and on an agent that does not know it, what the execution has left.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// Brings the artifact to the agent's cache, resumed where it broke off, verified by digest.
    Fetch {
        /// SHA-256 of the archive.
        digest: Digest,
        /// Length of the archive in bytes.
        size_bytes: u64,
        /// What it is made of, for an agent that has some of that already; one that does not know it fetches all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        index: Option<IndexOf>,
    },
    /// Unpacks the artifact (tar, zstd-compressed) into a new folder under `releases/`.
    Unpack {
        /// SHA-256 of the archive.
        digest: Digest,
        /// Name of the folder: `<version>-<short digest>`.
        release: String,
    },
    /// Checks that a kept release is whole, against the digest of its manifest.
    Verify {
        /// Name of the folder.
        release: String,
        /// Digest of the manifest that was written when the release was unpacked.
        tree_digest: Digest,
    },
    /// Makes `current` point at the release, in one rename.
    Switch {
        /// Name of the folder.
        release: String,
    },
    /// Asks until the host says that what was started works.
    Health {
        /// What is asked.
        probe: Probe,
        /// Milliseconds between two questions.
        interval_ms: u64,
        /// Milliseconds within which each is answered.
        timeout_ms: u64,
        /// Questions before it counts as unhealthy.
        retries: u32,
        /// Good answers in a row before it counts as healthy.
        successes: u32,
        /// Account for a command; the agent's own when none is named.
        running_user: Option<String>,
    },
    /// Removes old releases; never the current or the previous one.
    Prune {
        /// Releases kept besides the current one.
        keep: u32,
    },
}

/// The [index](crate::chunks) of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexOf {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its length in bytes.
    pub size_bytes: u64,
}

/// A question about what runs on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A bash script that ends with exit code 0.
    Command {
        /// The rendered text.
        content: String,
    },
    /// An address (http) that answers with a status of 200 to 299.
    Http {
        /// The address.
        url: String,
    },
    /// A host and port that take a connection.
    Tcp {
        /// `host:port`.
        address: String,
    },
}

impl Step {
    /// The name that logs, states and hooks show.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Script { name, .. } => name,
            Self::Fetch { .. } => "fetch",
            Self::Unpack { .. } => "unpack",
            Self::Verify { .. } => "verify",
            Self::Switch { .. } => "switch",
            Self::Health { .. } => "health",
            Self::Prune { .. } => "prune",
        }
    }
}

/// Why an order is refused before anything runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderError(pub String);

impl std::fmt::Display for OrderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OrderError {}

impl Order {
    /// Puts an order together; `sign` gives the Ed25519 signature of the bytes it is handed.
    #[must_use]
    pub fn seal(statement: &Statement, entry: String, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Self {
        let statement = canonical(statement);
        let signature = BASE64.encode(sign(&signed_bytes(&statement)));
        Self { statement, entry, signature }
    }

    /// Opens an order after every check but the agent's own identity: `verify` gets message and signature.
    ///
    /// # Errors
    /// [`OrderError`] names what does not agree.
    pub fn open(&self, verify: impl FnOnce(&[u8], &[u8]) -> bool) -> Result<(Statement, Entry), OrderError> {
        let fail = |why: &str| OrderError(why.to_owned());
        let signature = BASE64.decode(&self.signature).map_err(|_| fail("the signature is not base64"))?;
        if !verify(&signed_bytes(&self.statement), &signature) {
            return Err(fail("the signature is not the server's"));
        }
        let statement: Statement =
            serde_json::from_str(&self.statement).map_err(|error| OrderError(format!("statement: {error}")))?;
        if Digest::of(self.entry.as_bytes()) != statement.entry_digest {
            return Err(fail("the entry is not the one that was signed"));
        }
        let entry = serde_json::from_str(&self.entry).map_err(|error| OrderError(format!("entry: {error}")))?;
        Ok((statement, entry))
    }
}

/// The canonical text of a value: JSON without blanks, members in the order of declaration.
///
/// # Panics
/// When the value has a map with keys that are not text; the types of this crate have none.
#[must_use]
pub fn canonical<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| panic!("no canonical text: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        let entry = canonical(&Entry {
            action: Action::Upgrade,
            task_id: 1,
            host: "web-1".to_owned(),
            application: "shop".to_owned(),
            instance_id: Some(1),
            version: "1.0".to_owned(),
            deploy_path: None,
            run_user: None,
            steps: vec![Step::Prune { keep: 5 }],
            environment: BTreeMap::new(),
            secrets: Vec::new(),
            shared_paths: Vec::new(),
            output_bytes_max: 1,
            kill_grace_ms: 1,
        });
        let statement = Statement {
            execution_id: "e".to_owned(),
            attempt: 1,
            agent_id: "a".to_owned(),
            plan_digest: Digest::of(b"plan"),
            entry_digest: Digest::of(entry.as_bytes()),
            timeout_ms: 1,
        };
        Order::seal(&statement, entry, <[u8]>::to_vec)
    }

    #[test]
    fn an_order_opens_only_as_it_was_sealed() {
        let same = |message: &[u8], signature: &[u8]| message == signature;
        assert!(order().open(same).is_ok());
        let mut other = order();
        other.entry = other.entry.replace("web-1", "web-2");
        assert_eq!(other.open(same).unwrap_err().0, "the entry is not the one that was signed");
        let mut other = order();
        other.statement = other.statement.replace("\"attempt\":1", "\"attempt\":2");
        assert_eq!(other.open(same).unwrap_err().0, "the signature is not the server's");
    }
}
