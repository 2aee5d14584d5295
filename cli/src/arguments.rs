//! The command line's words: commands, options and their help.

mod rollout;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::rollout::Rollout;
use crate::commands::lock::Place;

const EXIT_CODES: &str = "\
Exit codes:
  0    finished
  1    failed
  2    wrong usage or bad input, or not possible in the present state;
       of `plan` and `release drift`: there are differences
  3    not signed in, or not allowed
  4    not found
  5    server not reachable
  124  timed out waiting; the work goes on
  130  interrupted; the work goes on";

/// Deploys applications and shows what happens on their hosts.
#[derive(Debug, Parser)]
#[command(name = "drover", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Address of the server, such as https://drover.example.com
    #[arg(long, global = true, env = "DROVER_URL", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// API token; better given in the environment than on the command line
    #[arg(long, global = true, env = "DROVER_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Trust the certificates in this PEM file in place of the public ones
    #[arg(long, global = true, env = "DROVER_CA", value_name = "FILE")]
    pub(crate) ca: Option<std::path::PathBuf>,
    /// Print JSON on standard output: one object, or one on each line while following
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Sign in and keep a token for this machine
    Login(Login),
    /// Revoke the kept token and forget it
    Logout,
    /// Show who is signed in
    Whoami,
    /// Deploy a version: make the task, approve and start it, roll it out, follow it
    Deploy(Deploy),
    /// Take an application back to a version that its hosts keep, or had once
    Revert(Revert),
    /// Show what a started or waiting deploy task would do, and how it differs from what last ran; exits with 2 on changes
    Plan(Plan),
    /// Approve a deploy task that waits for review
    Approve(Approve),
    /// Hold a running sub-task: nothing more of it starts
    Pause(Action),
    /// Let a held sub-task go on
    Resume(Action),
    /// Let a sub-task start that waits for other tasks, without them
    Proceed(Action),
    /// Let the other hosts follow a canary that went well
    Promote(Action),
    /// Stop a rollout: nothing more starts; what was changed goes back if it was made so
    Refuse(Action),
    /// End a sub-task with everything that it runs, or what it does on some hosts
    Cancel(Cancel),
    /// Take hosts out of a sub-task before their turn
    Skip(Skip),
    /// Say what became of hosts of which nobody knows how a sub-task ended there
    Answer(Answer),
    /// Try again what failed in a sub-task, from the failed step on
    Retry(Retry),
    /// Give a task another place in the queue
    Prioritise(Prioritise),
    /// List tasks that wait until what they change is free, in their order
    Queue(crate::commands::lock::List),
    /// List what tasks have, who waits for it, and what is stuck
    Locks(crate::commands::lock::Locks),
    /// Act on what a task has
    #[command(subcommand)]
    Lock(crate::commands::lock::Command),
    /// Look at deploy tasks and act on them
    #[command(subcommand)]
    Task(Task),
    /// Run a stored script on hosts, and follow it
    Run(crate::commands::run::Run),
    /// Look at the instances of an application; start, stop and restart them
    #[command(subcommand)]
    Instance(crate::commands::instance::Command),
    /// Upload archives to deploy from, look at them and delete them
    #[command(subcommand)]
    Archive(crate::commands::archive::Command),
    /// Have something run by itself, again and again
    #[command(subcommand)]
    Schedule(crate::commands::schedule::Command),
    /// Show the output of a task
    Logs(Logs),
    /// Look at the releases that hosts keep
    #[command(subcommand)]
    Release(crate::commands::release::Release),
    /// Look at hosts
    #[command(subcommand)]
    Host(Host),
    /// Look at applications
    #[command(subcommand)]
    App(App),
}

/// Options of `login`.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Who signs in; asked for when it is left out
    #[arg(long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password from standard input in place of asking for it
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// Options of `deploy`.
#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// Application, by id or full name
    #[arg(required_unless_present = "task")]
    pub(crate) application: Option<String>,
    /// Version to deploy: a tag, commit or branch, or a label
    #[arg(long, value_name = "VERSION", required_unless_present = "task")]
    pub(crate) version: Option<String>,
    /// Go on with this deploy task in place of making one
    #[arg(long, value_name = "ID", conflicts_with_all = ["application", "version", "level", "description"])]
    pub(crate) task: Option<u64>,
    /// Deploy this application as well, in a version of its own or the same; each goes after those that it requires
    #[arg(long, value_name = "APPLICATION[=VERSION]",
        conflicts_with_all = ["task", "source", "hosts", "no_approve", "no_start", "at"])]
    pub(crate) with: Vec<String>,
    /// Path inside the repository; the whole tree when it is left out
    #[arg(long, value_name = "PATH")]
    pub(crate) source: Option<String>,
    #[command(flatten)]
    pub(crate) targets: Targets,
    /// Importance of the task
    #[arg(long, value_enum, ignore_case = true, default_value = "C")]
    pub(crate) level: Level,
    /// What goes live
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) description: String,
    #[command(flatten)]
    pub(crate) rollout: Rollout,
    /// Make the task and leave its review to somebody else
    #[arg(long)]
    pub(crate) no_approve: bool,
    /// Make and approve the task, but do not start it
    #[arg(long)]
    pub(crate) no_start: bool,
    /// Have it start by itself at this time, such as 2026-12-01T02:00+01:00, exactly as it was approved
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with_all = ["task", "no_start"])]
    pub(crate) at: Option<i64>,
    #[command(flatten)]
    pub(crate) following: Following,
}

/// A time with its distance from UTC, as seconds since 1970 UTC.
fn time(text: &str) -> Result<i64, String> {
    let seconds = chrono::DateTime::parse_from_rfc3339(text).map(|time| time.timestamp());
    let minutes = || chrono::DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M%#z").map(|time| time.timestamp());
    seconds.or_else(|_| minutes()).map_err(|_| "write it as 2026-12-01T02:00+01:00 or 2026-12-01T01:00:00Z".to_owned())
}

/// Options of `plan`.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Deploy task, by id
    #[arg(value_name = "TASK_ID")]
    pub(crate) task: u64,
    #[command(flatten)]
    pub(crate) targets: Targets,
    #[command(flatten)]
    pub(crate) rollout: Rollout,
}

/// Options of what is done to a sub-task.
#[derive(Debug, Args)]
pub(crate) struct Action {
    /// Deploy task and sub-task, such as 12/34; with the task alone its newest sub-task
    #[arg(value_name = "TASK_ID[/SUBTASK_ID]", value_parser = log_target)]
    pub(crate) target: LogTarget,
    /// Why; shown in the output and the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
}

/// Options of `cancel`.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    #[command(flatten)]
    pub(crate) action: Action,
    /// End it on these hosts alone, separated by commas; the others go on
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
    /// End this execution alone, such as a hook that runs once; `drover task show --json` names them
    #[arg(long, value_name = "ID")]
    pub(crate) execution: Option<String>,
}

/// Options of `skip`.
#[derive(Debug, Args)]
pub(crate) struct Skip {
    #[command(flatten)]
    pub(crate) action: Action,
    /// Hosts to take out, separated by commas
    #[arg(long, value_name = "HOST", value_delimiter = ',', required = true)]
    pub(crate) hosts: Vec<String>,
}

/// Options of `answer`.
#[derive(Debug, Args)]
#[group(id = "said", required = true, multiple = false, args = ["done", "give_up"])]
pub(crate) struct Answer {
    /// Deploy task, with one of its sub-tasks; the newest one when none is named. A task that starts, stops or restarts
    /// instances is /TASK_ID
    #[arg(value_name = "TASK_ID[/SUBTASK_ID]", value_parser = log_target)]
    pub(crate) target: LogTarget,
    /// Hosts, separated by commas
    #[arg(long, value_name = "HOST", value_delimiter = ',', required = true)]
    pub(crate) hosts: Vec<String>,
    /// It did there what it was to do
    #[arg(long)]
    pub(crate) done: bool,
    /// It is there as it is: whatever comes next may change it
    #[arg(long)]
    pub(crate) give_up: bool,
    /// How you know; shown in the output and the audit
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

/// Options of `prioritise`.
#[derive(Debug, Args)]
pub(crate) struct Prioritise {
    #[command(flatten)]
    pub(crate) action: Action,
    /// -100 to 100: the more the earlier
    #[arg(long, value_name = "N", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-100..=100))]
    pub(crate) priority: i64,
}

/// Options of `retry`.
#[derive(Debug, Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    pub(crate) action: Action,
    /// Only on these hosts, separated by commas; when left out on all that did not succeed, but for lost and skipped ones
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
    /// Run every step again, in place of going on at the failed one
    #[arg(long)]
    pub(crate) from_the_beginning: bool,
    #[command(flatten)]
    pub(crate) rollout: Rollout,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Wait at most so many seconds, then exit with 124 while the work goes on
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) wait: Option<u32>,
    /// Do not wait: print the sub-task's id and exit
    #[arg(long)]
    pub(crate) no_follow: bool,
}

/// Options of `revert`.
#[derive(Debug, Args)]
pub(crate) struct Revert {
    /// Application, by id or full name
    pub(crate) application: String,
    /// Version to return to
    #[arg(long, value_name = "VERSION")]
    pub(crate) version: String,
    #[command(flatten)]
    pub(crate) targets: Targets,
    #[command(flatten)]
    pub(crate) following: Following,
}

/// Which hosts.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Targets {
    /// Only on these hosts, separated by commas
    #[arg(long, value_name = "HOST", value_delimiter = ',', conflicts_with = "all")]
    pub(crate) hosts: Vec<String>,
    /// On every host of the application, which is the default
    #[arg(long)]
    pub(crate) all: bool,
}

/// How to wait.
#[derive(Debug, Clone, Args)]
pub(crate) struct Following {
    /// Seconds that the work may take; the deploy settings' when it is left out
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Wait at most so many seconds, then exit with 124 while the work goes on
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) wait: Option<u32>,
    /// Do not wait: print the sub-task's id and exit
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// Do not ask at a terminal whether to go on
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// Importance of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum Level {
    S,
    A,
    B,
    C,
    I,
}

impl Level {
    /// The letter.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::S => "S",
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::I => "I",
        }
    }
}

/// Commands on deploy tasks.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Show one task with its sub-tasks
    Show(TaskId),
    /// List tasks, newest first
    List(TaskList),
    /// Approve a task that waits for review
    Approve(Approve),
    /// Turn a task down
    Reject(TaskId),
    /// Start an approved task
    Start(TaskId),
    /// End a task
    Close(TaskId),
}

/// Which task.
#[derive(Debug, Args)]
pub(crate) struct TaskId {
    /// Id of the deploy task
    pub(crate) id: u64,
}

/// Options of `approve`.
#[derive(Debug, Args)]
pub(crate) struct Approve {
    /// Id of the deploy task
    pub(crate) id: u64,
    /// Only if this is still its plan: the digest that `drover plan` shows last
    #[arg(long, value_name = "DIGEST")]
    pub(crate) plan: Option<String>,
}

/// Options of `task list`.
#[derive(Debug, Args)]
pub(crate) struct TaskList {
    /// Only of this application, by id or full name
    #[arg(long = "app", value_name = "APPLICATION")]
    pub(crate) application: Option<String>,
    /// Only in this state
    #[arg(long, value_parser = ["wait_review", "approved", "rejected", "running", "closed"])]
    pub(crate) status: Option<String>,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Deploy task and sub-task, such as 12/34; with the task alone its newest sub-task
    #[arg(value_name = "TASK_ID[/SUBTASK_ID]", value_parser = log_target)]
    pub(crate) target: LogTarget,
    /// Go on as output comes, until the sub-task ends; exits as `deploy` does
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Begin at this offset in bytes
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    pub(crate) from: u64,
    /// Only what this host said
    #[arg(long, value_name = "NAME", conflicts_with = "follow")]
    pub(crate) host: Option<String>,
    /// Time and host before each line, and lines for steps
    #[arg(long, short, conflicts_with = "follow")]
    pub(crate) timestamps: bool,
    /// Only the lines that have this text; fails when there is none
    #[arg(long, short, value_name = "TEXT", conflicts_with_all = ["follow", "download"])]
    pub(crate) grep: Option<String>,
    /// With --grep: TEXT is a regular expression
    #[arg(long, short = 'E', requires = "grep")]
    pub(crate) regex: bool,
    /// With --grep: letters match whatever their case is
    #[arg(long, short, requires = "grep")]
    pub(crate) ignore_case: bool,
    /// With --grep: so many lines before and after each, at most 20
    #[arg(long, short = 'C', value_name = "LINES", requires = "grep", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=20))]
    pub(crate) context: u8,
    /// Write it to this file; one that has the beginning gets the rest, one with anything else is left alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["follow", "from"])]
    pub(crate) download: Option<std::path::PathBuf>,
    /// With --follow: wait at most so many seconds, then exit with 124
    #[arg(long, value_name = "SECONDS", requires = "follow", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) wait: Option<u32>,
}

/// Whose output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogTarget {
    /// Deploy task; none for a task that belongs to none.
    pub(crate) task: Option<u64>,
    pub(crate) sub_task: Option<String>,
}

/// Commands on hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// List hosts
    List(Named),
}

/// Commands on applications.
#[derive(Debug, Subcommand)]
pub(crate) enum App {
    /// List applications
    List(Named),
}

/// Options of lists of named things.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Only those with this text in their name
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

/// How much of a list.
#[derive(Debug, Clone, Args)]
pub(crate) struct Limit {
    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
}

fn log_target(text: &str) -> Result<LogTarget, String> {
    let (task, sub_task) = text.split_once('/').map_or((text, None), |(task, rest)| (task, Some(rest)));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = || "write the deploy task's id, TASK_ID/SUBTASK_ID, or /ID for a task without a deploy task".to_owned();
    if sub_task.is_some_and(|id| !digits(id)) {
        return Err(wrong());
    }
    let task = match (task, sub_task) {
        ("", Some(_)) => None,
        (task, _) => Some(task.parse().map_err(|_| wrong())?),
    };
    Ok(LogTarget { task, sub_task: sub_task.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn good_lines_are_understood() {
        for line in [
            "drover login --url http://x --username a --password-stdin",
            "drover deploy shop --version v1 --hosts a,b --level b --timeout 5 --json",
            "drover deploy shop --version v1 --all --no-follow -y",
            "drover deploy --task 7 --wait 3",
            "drover deploy --task 7 --source app --hosts a",
            "drover revert shop.web --version v1",
            "drover task show 3",
            "drover task list --app shop --status running --limit 5",
            "drover logs -f 12/34 --from 9",
            "drover logs 12 --grep x -E -i -C 2 --host a --timestamps",
            "drover logs 12 --download file --host a",
            "drover --json app list --name x",
            "drover deploy shop --version v1 --canary 1 --batch 25% --max-failures any --auto-revert",
            "drover deploy shop --version v1 --health-tcp 127.0.0.1:80 --pause 5",
            "drover plan 7 --hosts a --batch 1",
            "drover promote 12/34 --reason good",
            "drover skip 12 --hosts a,b",
            "drover cancel 12/34 --reason wrong",
            "drover cancel /34 --hosts a,b",
            "drover cancel 12 --execution 0190a5a0-0000-7000-8000-000000000001",
            "drover retry 12/34 --hosts a --from-the-beginning --no-follow",
            "drover retry 12/34 --queue",
            "drover deploy shop --version v1 --queue --priority -5 --wait 3",
            "drover instance restart shop --queue",
            "drover prioritise 12/34 --priority -3 --reason later",
            "drover queue --app shop --limit 5",
            "drover locks --wanted",
            "drover schedule create nightly --cron @daily --restart shop --hosts a,b --batch 25% --missed once --jitter 60",
            "drover schedule create release --cron @weekly --deploy-task 7 --overlap cancel_old",
            "drover schedule next nightly --count 3",
            "drover schedule pause nightly --reason holiday",
            "drover lock break shop --host web-1 --reason stuck --whole-task",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn bad_lines_are_refused() {
        for line in [
            "drover",
            "drover deploy shop",
            "drover deploy --version v1",
            "drover deploy --task 7 --version v1",
            "drover deploy shop --version v1 --hosts a --all",
            "drover deploy shop --version v1 --timeout 0",
            "drover deploy shop --version v1 --level Z",
            "drover task list --status done",
            "drover schedule create nightly --cron @daily",
            "drover schedule create nightly --cron @daily --restart shop --stop shop",
            "drover schedule create nightly --restart shop",
            "drover schedule create release --cron @weekly --deploy-task 7 --hosts a",
            "drover logs x",
            "drover logs 1/",
            "drover logs 1/x",
            "drover logs 1 --wait 5",
            "drover logs 1 -E",
            "drover logs 1 -f --grep x",
            "drover logs 1 --grep x -C 21",
            "drover logs 1 --download x --from 3",
            "drover host list --limit 0",
            "drover deploy shop --version v1 --promote-after 5",
            "drover deploy shop --version v1 --health-tcp a:1 --health-http http://a",
            "drover skip 12",
            "drover promote",
            "drover deploy shop --version v1 --priority 5",
            "drover deploy shop --version v1 --queue --priority 101",
            "drover prioritise 12",
            "drover lock break shop --host web-1",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn log_targets_are_read() {
        assert_eq!(log_target("/34"), Ok(LogTarget { task: None, sub_task: Some("34".to_owned()) }));
        assert!(log_target("/").is_err() && log_target("").is_err() && log_target("x/1").is_err());
        assert_eq!(log_target("12"), Ok(LogTarget { task: Some(12), sub_task: None }));
        assert_eq!(log_target("12/034"), Ok(LogTarget { task: Some(12), sub_task: Some("034".to_owned()) }));
    }
}
