//! Settings of retention: how long what is over is kept, and how much of it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use drover_kernel::retention::Retention;
use drover_shared::size::size;

/// How long what is over is kept.
#[derive(Debug, Clone, Default, Args)]
pub struct KeepArgs {
    /// Time for which a task's output is kept from its end on, such as 180d or never; never: for ever [default: 180d]
    #[arg(long, env = "DROVER_KEEP_OUTPUT", value_name = "DAYS")]
    pub(crate) keep_output: Option<String>,
    /// Size of all output together, such as 100G; beyond it the oldest goes first [default: no limit]
    #[arg(long, env = "DROVER_KEEP_OUTPUT_SIZE", value_name = "SIZE")]
    pub(crate) keep_output_size: Option<String>,
    /// Time for which a task's artifact is kept that no revert needs, such as 90d or never [default: 180d]
    #[arg(long, env = "DROVER_KEEP_ARTIFACTS", value_name = "DAYS")]
    pub(crate) keep_artifacts: Option<String>,
    /// Time for which a task is kept that nothing needs, such as 365d or never [default: 365d]
    #[arg(long, env = "DROVER_KEEP_TASKS", value_name = "DAYS")]
    pub(crate) keep_tasks: Option<String>,
    /// Newest tasks of each application that are kept whatever their age [default: 50]
    #[arg(long, env = "DROVER_KEEP_TASKS_LEAST", value_name = "COUNT")]
    pub(crate) keep_tasks_least: Option<u32>,
    /// Time for which the audit is kept, such as 3650d or never; no shorter than that of tasks [default: never]
    #[arg(long, env = "DROVER_KEEP_AUDIT", value_name = "DAYS")]
    pub(crate) keep_audit: Option<String>,
}

/// Settles flags and environment, file and defaults.
///
/// # Errors
/// Names the setting and what is wrong with it.
pub(crate) fn settle(given: KeepArgs, file: KeepArgs) -> Result<Retention> {
    let usual = Retention::default();
    let kept = |name: &str, text: Option<String>, usual: Option<Duration>| match text {
        None => Ok(usual),
        Some(text) => days(&text).with_context(|| format!("{name}: `{text}` is neither days, such as 180d, nor never")),
    };
    let output_bytes = match given.keep_output_size.or(file.keep_output_size) {
        None => usual.output_bytes,
        Some(text) => Some(size(&text).with_context(|| format!("keep_output_size: `{text}` is no size such as 100G"))?),
    };
    let tasks = kept("keep_tasks", given.keep_tasks.or(file.keep_tasks), usual.tasks)?;
    let audit = kept("keep_audit", given.keep_audit.or(file.keep_audit), usual.audit)?;
    if audit.is_some_and(|audit| tasks.is_none_or(|tasks| audit < tasks)) {
        bail!("keep_audit: shorter than keep_tasks: the audit says who approved the tasks that there are");
    }
    Ok(Retention {
        output: kept("keep_output", given.keep_output.or(file.keep_output), usual.output)?,
        output_bytes,
        artifacts: kept("keep_artifacts", given.keep_artifacts.or(file.keep_artifacts), usual.artifacts)?,
        tasks,
        tasks_least: given.keep_tasks_least.or(file.keep_tasks_least).unwrap_or(usual.tasks_least),
        audit,
    })
}

/// A number of days with `d`, at least one; or `never`, which is no time at all.
fn days(text: &str) -> Option<Option<Duration>> {
    if text.trim() == "never" {
        return Some(None);
    }
    let days: u32 = text.trim().strip_suffix('d')?.parse().ok()?;
    (1..=36_500).contains(&days).then(|| Some(days * Duration::from_hours(24)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_said_in_days_and_sizes() {
        assert_eq!(settle(KeepArgs::default(), KeepArgs::default()).expect("defaults"), Retention::default());
        let given = KeepArgs { keep_output: Some("30d".to_owned()), keep_tasks_least: Some(7), ..KeepArgs::default() };
        let file = KeepArgs {
            keep_output: Some("1d".to_owned()),
            keep_output_size: Some("2G".to_owned()),
            keep_artifacts: Some("90d".to_owned()),
            keep_tasks: Some("never".to_owned()),
            keep_tasks_least: None,
            keep_audit: Some("never".to_owned()),
        };
        let day = Duration::from_hours(24);
        let expected = Retention {
            output: Some(30 * day),
            output_bytes: Some(2 << 30),
            artifacts: Some(90 * day),
            tasks: None,
            tasks_least: 7,
            audit: None,
        };
        assert_eq!(settle(given, file).expect("settings"), expected);
        for text in ["", "0d", "180", "1h", "-1d", "36501d", "for ever"] {
            let file = KeepArgs { keep_tasks: Some(text.to_owned()), ..KeepArgs::default() };
            let error = settle(KeepArgs::default(), file).expect_err(text).to_string();
            assert!(error.starts_with(&format!("keep_tasks: `{text}`")), "{error}");
        }
        for (audit, tasks, fits) in [("365d", None, true), ("364d", None, false), ("3650d", Some("never"), false)] {
            let (keep_audit, keep_tasks) = (Some(audit.to_owned()), tasks.map(str::to_owned));
            let file = KeepArgs { keep_audit, keep_tasks, ..KeepArgs::default() };
            let settled = settle(file, KeepArgs::default());
            assert_eq!(settled.is_ok(), fits, "{audit} beside {tasks:?}");
            assert!(settled.err().is_none_or(|error| error.to_string().starts_with("keep_audit: ")));
        }
        let file = KeepArgs { keep_output_size: Some("much".to_owned()), ..KeepArgs::default() };
        assert!(
            settle(KeepArgs::default(), file).is_err_and(|error| error.to_string().starts_with("keep_output_size"))
        );
    }
}
