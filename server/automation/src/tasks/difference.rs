//! What may differ between two plans of one target besides the texts of its scripts, in lines that can be compared.
//!
//! Invariant: whatever the digest of a plan covers of a target is in a script, in what is fetched, in the release that
//! is switched to, or here. Secrets are named only.

use drover_shared::order::{Entry, Step, canonical};

use super::premises::LastEntry;
use super::store::Source;

/// What holds for the whole task.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Time it may take, in seconds.
    pub timeout_s: i64,
    /// Releases kept besides the current one.
    pub keep_backups: i64,
}

impl Terms {
    /// Those of what last ran.
    pub(super) fn of_last(last: &LastEntry) -> Self {
        Self { timeout_s: last.timeout_s, keep_backups: last.keep_backups }
    }
}

/// The settings before and now, a line each. What is said of a step that only one of them has is left out: that step is
/// a difference of its own.
pub(super) fn settings(before: (&Entry, Terms), now: (&Entry, Terms)) -> (String, String) {
    (lines(before, now.0), lines(now, before.0))
}

fn lines((entry, terms): (&Entry, Terms), other: &Entry) -> String {
    // Every field is named here, so that a new one cannot be left out.
    let Entry {
        action: _,
        task_id: _,
        host,
        application,
        instance_id: _,
        version,
        deploy_path,
        run_user,
        steps,
        environment,
        secrets,
        shared_paths,
        output_bytes_max,
        kill_grace_ms,
    } = entry;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name}: {value}\n"));
    // Equal on each host otherwise, so that equal differences are told once.
    if *host != other.host {
        line("host", host);
    }
    line("application", application);
    line("version", version);
    for (name, value) in [("deploy path", deploy_path), ("owner of the files", run_user)] {
        if let Some(value) = value {
            line(name, value);
        }
    }
    shared_paths.iter().for_each(|path| line("shared path", path));
    environment.iter().for_each(|(name, value)| line("environment", &format!("{name}={}", canonical(value))));
    secrets.iter().for_each(|name| line("secret", name));
    line("timeout", &format!("{} s", terms.timeout_s));
    line("kept releases", &terms.keep_backups.to_string());
    line("output at most", &format!("{output_bytes_max} bytes"));
    line("time to end", &format!("{kill_grace_ms} ms"));
    for step in steps.iter().filter(|step| other.steps.iter().any(|other| other.name() == step.name())) {
        if let Some(terms) = of_step(step) {
            line(step.name(), &terms);
        }
    }
    text
}

/// How a step runs what its text says.
fn of_step(step: &Step) -> Option<String> {
    let account = |user: &Option<String>| user.as_ref().map(|user| format!(", as {user}")).unwrap_or_default();
    match step {
        Step::Script { language, running_user, timeout_ms, .. } => {
            let time = timeout_ms.map(|limit| format!(", within {limit} ms")).unwrap_or_default();
            Some(format!("{language}{}{time}", account(running_user)))
        }
        Step::Health { probe, interval_ms, timeout_ms, retries, successes, running_user } => {
            let kind = match probe {
                drover_shared::order::Probe::Command { .. } => "command",
                drover_shared::order::Probe::Http { .. } => "http",
                drover_shared::order::Probe::Tcp { .. } => "tcp",
            };
            Some(format!(
                "{kind}, every {interval_ms} ms, answered within {timeout_ms} ms, {successes} good of {retries}{}",
                account(running_user)
            ))
        }
        Step::Fetch { .. } | Step::Unpack { .. } | Step::Verify { .. } | Step::Switch { .. } | Step::Prune { .. } => {
            None
        }
    }
}

/// What is fetched, and from where; nothing if nothing is.
pub(super) fn fetched(source: Option<&Source>, commit: Option<&str>) -> String {
    let Some(commit) = commit else { return String::new() };
    let mut text = String::new();
    if let Some(source) = source {
        for (name, value) in [("repository", &source.url), ("branch", &source.branch), ("path", &source.path)] {
            if !value.is_empty() {
                text.push_str(&format!("{name} {value}\n"));
            }
        }
    }
    text.push_str(&format!("commit {commit}\n"));
    text
}

/// The release that an entry switches to, if it is known.
pub(super) fn switched(entry: &Entry) -> Option<&str> {
    entry.steps.iter().find_map(|step| match step {
        Step::Switch { release } => Some(release.as_str()),
        _ => None,
    })
}
