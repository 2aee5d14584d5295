//! `release list`, `release drift`: what the hosts of an application really keep.
//!
//! Invariant: a host that cannot be asked does not hide what the others say; the command fails then, after them.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::rollout::{Application, Instance};
use crate::api::Server;
use crate::arguments::Targets;
use crate::failure::{Failure, Result};
use crate::output::{self, Column, cell};

/// Differences of one host that people are shown.
const SHOWN_MAX: usize = 50;

const RELEASES: &[Column] = &[
    ("HOST", |release| cell(release, "hostname")),
    ("RELEASE", |release| cell(release, "name")),
    ("VERSION", |release| cell(release, "version")),
    ("USE", |release| match (release["current"].as_bool(), release["previous"].as_bool()) {
        (Some(true), _) => "current".to_owned(),
        (_, Some(true)) => "previous".to_owned(),
        _ => String::new(),
    }),
    ("SIZE", |release| size(&release["used_bytes"])),
    ("INSTALLED", |release| cell(release, "installed_time")),
];

/// Commands on releases.
#[derive(Debug, Subcommand)]
pub(crate) enum Release {
    /// Ask the hosts which releases they keep, how large they are, and how much room is left
    List(List),
    /// Ask the hosts how the release in use differs from what was installed; exits with 2 on differences
    Drift(Drifting),
}

/// Options of `release list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Application, by id or full name
    application: String,
    #[command(flatten)]
    asked: Asked,
}

/// Options of `release drift`.
#[derive(Debug, Args)]
pub(crate) struct Drifting {
    /// Application, by id or full name
    application: String,
    /// Compare the release of this name, as `release list` shows it, in place of the one in use
    #[arg(long, value_name = "RELEASE", default_value = "current")]
    release: String,
    #[command(flatten)]
    asked: Asked,
}

/// Who is asked.
#[derive(Debug, Args)]
struct Asked {
    /// Only these hosts, separated by commas
    #[arg(long = "host", alias = "hosts", value_name = "HOST", value_delimiter = ',')]
    hosts: Vec<String>,
    /// Seconds that each host may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=300))]
    timeout: u16,
}

pub(super) fn run(server: &Server, release: &Release, json: bool) -> Result<()> {
    match release {
        Release::List(list) => {
            let told = ask(server, &list.application, &list.asked, &[])?;
            show(&told, json, listed)
        }
        Release::Drift(drift) => {
            let wish = [("compare", "true"), ("release", drift.release.as_str())];
            let told = ask(server, &drift.application, &drift.asked, &wish)?;
            show(&told, json, drifted)?;
            differing(&told)
        }
    }
}

/// What one host says, or why it says nothing.
struct Told {
    host: String,
    answer: Result<Value>,
}

fn ask(server: &Server, application: &str, asked: &Asked, wish: &[(&str, &str)]) -> Result<Vec<Told>> {
    let application = Application::find(server, application)?;
    let targets = Targets { hosts: asked.hosts.clone(), all: false };
    let seconds = asked.timeout.to_string();
    let mut query = vec![("timeout", seconds.as_str())];
    query.extend_from_slice(wish);
    let longest = Duration::from_secs(u64::from(asked.timeout) + 30);
    let one = |Instance { id, host }: Instance| {
        let path = format!("/applications/{}/instances/{id}/releases/", application.id);
        let answer = server.wait_for(&path, &query, longest);
        match answer {
            // The server itself says nothing, and will not for the next host.
            Err(failure) if failure.answer.is_none() => Err(failure),
            answer => Ok(Told { host, answer }),
        }
    };
    application.instances(server, &targets)?.into_iter().map(one).collect()
}

/// Shows what was told, and fails when a host said nothing or not all of it.
fn show(told: &[Told], json: bool, people: fn(&[&Value]) -> Result<()>) -> Result<()> {
    let answers: Vec<&Value> = told.iter().filter_map(|told| told.answer.as_ref().ok()).collect();
    if json {
        let object = |told: &Told| match &told.answer {
            Ok(answer) => answer.clone(),
            Err(failure) => {
                let mut object = Map::from_iter([("hostname".to_owned(), told.host.clone().into())]);
                object.extend(failure.as_json().as_object().cloned().unwrap_or_default());
                Value::Object(object)
            }
        };
        output::json(&json!({ "results": told.iter().map(object).collect::<Vec<_>>() }))?;
    } else {
        people(&answers)?;
    }
    let mut failed = Vec::new();
    for Told { host, answer } in told {
        match answer {
            Err(failure) => failed.push(failure.message.clone()),
            Ok(answer) if answer["complete"] == false => failed.push(format!("{host}: {}", cell(answer, "reason"))),
            Ok(_) => {}
        }
    }
    // Each host's own object has it for programs.
    if failed.is_empty() { Ok(()) } else { Err(Failure { is_told: true, ..Failure::failed(failed.join("; ")) }) }
}

fn listed(answers: &[&Value]) -> Result<()> {
    let mut rows = Vec::new();
    for answer in answers {
        for release in answer["releases"].as_array().into_iter().flatten() {
            let mut row = release.clone();
            row["hostname"] = answer["hostname"].clone();
            rows.push(row);
        }
    }
    output::table(RELEASES, &rows)?;
    output::line("")?;
    for answer in answers {
        let host = cell(answer, "hostname");
        output::line(&match answer["deploy_path"].as_str() {
            None => format!("{host}: nothing was deployed so far"),
            Some(path) => {
                let (used, free) = (size(&answer["used_bytes"]), size(&answer["free_bytes"]));
                format!("{host}: {used} used, {free} free at {path}")
            }
        })?;
    }
    Ok(())
}

fn drifted(answers: &[&Value]) -> Result<()> {
    for answer in answers {
        for release in answer["releases"].as_array().into_iter().flatten() {
            let (host, name, drift) = (cell(answer, "hostname"), cell(release, "name"), &release["drift"]);
            let head = match drift["count"].as_u64() {
                None => "was not compared".to_owned(),
                Some(0) => "is as it was installed".to_owned(),
                Some(1) => "has 1 difference".to_owned(),
                Some(count) => format!("has {count} differences"),
            };
            output::line(&format!("{host} {name} {head}"))?;
            let lines = differences(drift);
            for line in lines.iter().take(SHOWN_MAX) {
                output::line(&format!("  {line}"))?;
            }
            let unlisted = drift["unlisted"].as_u64().unwrap_or(0);
            let rest = unlisted + u64::try_from(lines.len().saturating_sub(SHOWN_MAX)).unwrap_or(0);
            if rest > 0 {
                output::line(&format!("  and {rest} more"))?;
            }
        }
    }
    Ok(())
}

fn differences(drift: &Value) -> Vec<String> {
    let list = |name: &str| drift[name].as_array().cloned().unwrap_or_default();
    let mut lines = Vec::new();
    if drift["manifest_damaged"] == true {
        lines.push("the host's own list of what was installed is damaged".to_owned());
    }
    let changed = |one: &Value| format!("changed  {} ({})", cell(one, "path"), cell(one, "difference"));
    lines.extend(list("changed").iter().map(changed));
    for (name, word) in [("missing", "missing "), ("extra", "extra   ")] {
        lines.extend(list(name).iter().map(|path| format!("{word} {}", path.as_str().unwrap_or_default())));
    }
    lines
}

/// Fails as `plan` does when there is something to see.
fn differing(told: &[Told]) -> Result<()> {
    let releases = told.iter().filter_map(|told| told.answer.as_ref().ok()?["releases"].as_array());
    let drifts = releases.flatten().filter_map(|release| release["drift"]["count"].as_u64());
    match drifts.filter(|count| *count > 0).count() {
        0 => Ok(()),
        1 => Err(Failure::differs("1 host differs")),
        hosts => Err(Failure::differs(format!("{hosts} hosts differ"))),
    }
}

/// Bytes as people read them.
fn size(bytes: &Value) -> String {
    let Some(bytes) = bytes.as_u64() else { return "?".to_owned() };
    let mut whole = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if whole < 10 * 1024 {
            return format!("{whole} {unit}");
        }
        whole /= 1024;
    }
    format!("{whole} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = [0, 10_239, 10_240, 5_000_000, 123_456_789_012].map(|bytes: u64| size(&json!(bytes)));
        assert_eq!(shown, ["0 B", "10239 B", "10 KiB", "4882 KiB", "114 GiB"]);
        assert_eq!(size(&Value::Null), "?");
    }
}
