//! `instance logs`: the end of an instance's log, and what comes next.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::rollout::Application;
use crate::api::Server;
use crate::arguments::Targets;
use crate::failure::{Failure, Result};
use crate::output;

/// Seconds that the server waits for the log to grow.
const WAIT: &str = "20";
/// Longest time for an answer to that.
const ANSWER: Duration = Duration::from_secs(120);
/// Bytes of one answer.
const BLOCK: &str = "262144";
/// How long a server or an agent that is away is asked again, and the pause between two attempts.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_secs(2);

/// Options of `instance logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Application, by id or full name
    application: String,
    /// Host of the instance, or the instance's id
    instance: String,
    /// The log of errors (`stderr_path`) in place of the other (`stdout_path`)
    #[arg(long)]
    error: bool,
    /// Newest lines to show
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    lines: u32,
    /// Go on with what comes next, over rotations of the file
    #[arg(short, long)]
    follow: bool,
}

pub(super) fn run(server: &Server, logs: &Logs, json: bool) -> Result<()> {
    let application = Application::find(server, &logs.application)?;
    let instances = application.instances(server, &Targets::default())?;
    let by_host = instances.iter().find(|instance| instance.host == logs.instance);
    let instance = by_host.or_else(|| instances.iter().find(|instance| instance.id.to_string() == logs.instance));
    let missing =
        || Failure::not_found(format!("{} has no instance on or called {}", application.full_name, logs.instance));
    let instance = instance.ok_or_else(missing)?;
    let path = format!("/applications/{}/instances/{}/log/", application.id, instance.id);
    let log_type = if logs.error { "error" } else { "stdout" };
    let lines = logs.lines.to_string();
    let query = [("log_type", log_type), ("mode", "lines"), ("latest_lines", &lines)];
    let slice = server.find(&path, &query)?;
    let given = slice["lines"].as_u64().unwrap_or(0);
    let is_cut = given < u64::from(logs.lines) && slice["position"].as_u64() > slice["length"].as_u64();
    if is_cut && !json {
        eprintln!("drover: the {given} newest lines: more are not given at a time");
    }
    show(&slice, json)?;
    if !logs.follow {
        return Ok(());
    }
    follow(server, &path, log_type, slice, json)
}

fn follow(server: &Server, path: &str, log_type: &str, mut slice: Value, json: bool) -> Result<()> {
    let mut heard = Instant::now();
    let mut is_told = false;
    loop {
        let (position, file) = (slice["position"].to_string(), output::cell(&slice, "file"));
        let query = [
            ("log_type", log_type),
            ("from_position", &position),
            ("file", &file),
            ("block_size", BLOCK),
            ("wait", WAIT),
        ];
        match server.wait_for(path, &query, ANSWER) {
            Ok(next) => {
                (heard, is_told) = (Instant::now(), false);
                show(&next, json)?;
                slice = next;
            }
            // Nothing is lost: what is asked for next begins where the last answer ended.
            Err(failure) if failure.is_unreachable() && heard.elapsed() < PATIENCE => {
                if !is_told && !json {
                    eprintln!("drover: {}; trying again", failure.message);
                }
                is_told = true;
                std::thread::sleep(PAUSE);
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Shows a piece, and what happened to the file before it.
fn show(slice: &Value, json: bool) -> Result<()> {
    if json {
        let is_news = slice["length"].as_u64() != Some(0) || !slice["event"].is_null();
        return if is_news { output::json(slice) } else { Ok(()) };
    }
    match slice["event"].as_str() {
        Some("rotated") => eprintln!("drover: the log was rotated: from here on it is the new file"),
        Some("replaced") => {
            eprintln!("drover: another file has taken the log's place, and the end of the former one is gone")
        }
        Some("truncated") => eprintln!("drover: the log was cut off and begins anew"),
        _ => {}
    }
    output::text(slice["content"].as_str().unwrap_or_default())
}
