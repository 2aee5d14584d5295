//! The variables of hook scripts. What each means is said once, in `docs/templates.md`.
//!
//! Invariant: nothing here depends on the time or on chance, so a plan that is rendered again is the same plan. None of
//! it is secret: of secrets the names are known, and what stands for their values.
#![expect(missing_docs, reason = "docs/templates.md describes every variable, and a test keeps it complete")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use drover_shared::secret;
use drover_shared::words::Action;
use minijinja::value::Value;
use serde::Serialize;

/// Everything that a script may name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Context {
    pub action: Action,
    pub task: Task,
    pub deploy_task: Option<DeployTask>,
    pub application: Option<Application>,
    pub version: String,
    pub previous_version: Option<String>,
    pub deploy_path: Option<String>,
    pub release_path: Option<String>,
    pub host: Host,
    pub instance: Option<Instance>,
    #[serde(skip)]
    pub instances: Targets,
    pub hook: String,
    pub running_user: String,
    pub keep_backups: i64,
    pub source: Source,
    pub vars: BTreeMap<String, serde_json::Value>,
    pub params: BTreeMap<String, serde_json::Value>,
    #[serde(skip)]
    pub secrets: SecretNames,
}

/// See [`Context::task`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Task {
    pub creator: String,
}

/// See [`Context::deploy_task`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeployTask {
    pub id: i64,
    pub version: String,
    pub level: String,
    pub description: String,
    pub creator: String,
}

/// See [`Context::application`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Application {
    pub id: i64,
    pub name: String,
    pub full_name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub directory: String,
    pub run_user: String,
    pub startup_cmd: String,
    pub stop_cmd: String,
    pub stdout_path: String,
    pub stderr_path: String,
    pub pid_path: String,
}

/// See [`Context::host`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    pub id: i64,
    pub name: String,
    pub ip_addresses: Vec<String>,
    pub os_type: String,
    pub location: String,
    pub environment: Option<String>,
    #[serde(rename = "type")]
    pub kind: String,
}

/// See [`Context::instance`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instance {
    pub id: i64,
    pub version: Option<String>,
}

/// One of [`Context::instances`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    pub id: i64,
    pub host: String,
    pub version: Option<String>,
}

/// Every target of a task, in a form that the contexts of all of them share: copies cost nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets(pub(super) Value);

impl FromIterator<Target> for Targets {
    fn from_iter<I: IntoIterator<Item = Target>>(targets: I) -> Self {
        let members = |target: Target| {
            Value::from_pairs([
                ("id", Value::from(target.id)),
                ("host", Value::from(target.host)),
                ("version", target.version.map_or(Value::from(()), Value::from)),
            ])
        };
        Self(targets.into_iter().map(members).collect())
    }
}

/// See [`Context::source`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    #[serde(rename = "type")]
    pub kind: String,
    pub url: String,
    pub branch: String,
    pub path: String,
}

/// Names of the secrets that scripts may ask for; scripts see a placeholder for each. Copies cost nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretNames {
    pub(super) values: Value,
    names: Arc<BTreeSet<String>>,
}

impl SecretNames {
    /// The names.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

impl FromIterator<String> for SecretNames {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let names: BTreeSet<String> = names.into_iter().collect();
        let values = Value::from_pairs(names.iter().map(|name| (name.clone(), Value::from(secret::placeholder(name)))));
        Self { values, names: Arc::new(names) }
    }
}
