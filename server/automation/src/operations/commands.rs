//! The scripts that start and stop an instance: the application's own commands, and around them what its process file
//! says. Pure.
//!
//! Invariants: with a process file nothing is started twice, and a start or a stop has gone well only when the process
//! is really there or really gone; without one the command's own end is believed.

use drover_kernel::{Error, Result};
use drover_shared::order::{Entry, Step};
use drover_shared::words::{Action, Language};

use crate::render;
use crate::tasks::plan::{self, Draft, Input};
use crate::tasks::premises::{Application, Target};
use crate::tasks::rules::Role;

/// Tenths of a second that a process has to appear or to go.
const PATIENCE_TENTHS: u32 = 300;

/// What each target is told to do.
///
/// # Errors
/// A conflict when the application has no command for it, an invalid field when a command does not render.
pub(super) fn draft(input: &Input) -> Result<Vec<Draft>> {
    check(&input.application, input.action)?;
    let batches = input.rollout.as_ref().map(|rollout| rollout.batches(input.targets.len())).unwrap_or_default();
    let mut drafts = Vec::with_capacity(input.targets.len());
    for (index, target) in input.targets.iter().enumerate() {
        drafts.push(Draft {
            role: Role::Instance,
            ordinal: i64::try_from(index + 1).map_err(Error::internal)?,
            instance_id: Some(target.instance_id),
            host_id: target.host_id,
            host_name: target.host_name.clone(),
            batch: batches.get(index).copied().unwrap_or(0),
            entry: entry(input, target)?,
        });
    }
    Ok(drafts)
}

fn check(application: &Application, action: Action) -> Result<()> {
    let Application { startup_cmd, stop_cmd, pid_path, .. } = application;
    let missing = match action {
        Action::Start | Action::Restart if startup_cmd.trim().is_empty() => "startup_cmd",
        Action::Stop | Action::Restart if stop_cmd.trim().is_empty() && pid_path.trim().is_empty() => {
            "stop_cmd, and no pid_path"
        }
        _ => return Ok(()),
    };
    Err(Error::conflict(format!("the application has no {missing}: there is no way to {action} its instances")))
}

fn entry(input: &Input, target: &Target) -> Result<Entry> {
    let deploy_path = plan::deploy_path(input, target)?;
    let mut entry = plan::bare(input, target, deploy_path.clone());
    entry.instance_id = Some(target.instance_id);
    entry.version = target.version.clone().unwrap_or_default();
    let parts: &[&str] = match input.action {
        Action::Restart => &["stop", "start"],
        Action::Stop => &["stop"],
        _ => &["start"],
    };
    for part in parts {
        let running_user = entry.run_user.clone();
        let context = plan::context(input, target, part, deploy_path.as_deref(), running_user.as_deref());
        let rendered = |field: &str, text: &str| {
            render::render_within(field, text, &context, &input.work)
                .map_err(|error| Error::invalid(field, error.to_string()))
        };
        let process_file = rendered("pid_path", input.application.pid_path.trim())?;
        let content = if *part == "start" {
            start(&rendered("startup_cmd", &input.application.startup_cmd)?, &process_file)
        } else {
            stop(&rendered("stop_cmd", &input.application.stop_cmd)?, &process_file)
        };
        let (name, language, timeout_ms) = ((*part).to_owned(), Language::Bash, None);
        entry.steps.push(Step::Script { name, language, content, running_user, timeout_ms });
    }
    plan::name_secrets(input, target, &mut entry)?;
    plan::check_size(&entry)?;
    Ok(entry)
}

/// One word for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Shell functions: the process that the file names, if it lives, and whether a process lives.
fn functions(process_file: &str) -> String {
    format!(
        r#"pid_path={}
lives() {{ [ -d "/proc/$1" ] && ! grep -qs '^State:[[:space:]]*[ZX]' "/proc/$1/status"; }}
serving() {{
  local pid
  pid=$(head -n 1 -- "$pid_path" 2>/dev/null | tr -cd 0-9)
  [ -n "$pid" ] && lives "$pid" && echo "$pid"
}}
"#,
        quoted(process_file)
    )
}

fn start(command: &str, process_file: &str) -> String {
    if process_file.is_empty() {
        return format!("{command}\n");
    }
    format!(
        r#"{}if pid=$(serving); then
  echo "already running as process $pid"
  exit 0
fi
(
{command}
) || exit
for ((tenth = 0; tenth < {PATIENCE_TENTHS}; tenth++)); do
  if pid=$(serving); then
    echo "running as process $pid"
    exit 0
  fi
  sleep 0.1
done
echo "the command ended well, but $pid_path names no living process" >&2
exit 1
"#,
        functions(process_file)
    )
}

fn stop(command: &str, process_file: &str) -> String {
    if process_file.is_empty() {
        return format!("{command}\n");
    }
    let command = if command.trim().is_empty() { "kill -TERM \"$pid\"" } else { command };
    format!(
        r#"{}if ! pid=$(serving); then
  echo "not running"
  exit 0
fi
(
{command}
) || exit
for ((tenth = 0; tenth < {PATIENCE_TENTHS}; tenth++)); do
  if ! lives "$pid"; then
    echo "process $pid has ended"
    exit 0
  fi
  sleep 0.1
done
echo "process $pid still runs" >&2
exit 1
"#,
        functions(process_file)
    )
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    fn run(script: &str) -> Output {
        Command::new("bash").args(["-c", script]).output().expect("bash")
    }

    #[test]
    fn a_process_is_started_once_and_stopped_for_good() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("it's.pid");
        let file = file.to_str().expect("text");
        let command = format!("sleep 600 >/dev/null 2>&1 &\necho $! > {}", quoted(file));
        let begin = run(&start(&command, file));
        assert!(begin.status.success(), "{begin:?}");
        let again = run(&start(&command, file));
        assert!(String::from_utf8_lossy(&again.stdout).starts_with("already running as process "), "{again:?}");
        let end = run(&stop("", file));
        assert!(String::from_utf8_lossy(&end.stdout).contains("has ended"), "{end:?}");
        let over = run(&stop("exit 7", file));
        assert_eq!(String::from_utf8_lossy(&over.stdout), "not running\n");
    }

    #[test]
    fn a_command_that_fails_is_a_failure() {
        assert_eq!(run(&start("exit 7", "/nowhere/at/all")).status.code(), Some(7));
        assert_eq!(run(&start("exit 7", "")).status.code(), Some(7));
        assert_eq!(run(&stop("false", "")).status.code(), Some(1));
    }
}
