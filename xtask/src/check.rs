//! `cargo xtask check`: what has to hold before a change lands, cheapest first.
//!
//! Invariant: it stops at the first step that fails, and names it.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::postgres::Postgres;
use crate::{bless, process, sql, test};

/// Every step in its order.
const STEPS: &[&str] = &["fmt", "tidy", "clippy", "sql", "docs", "bless"];

/// Runs the named steps, or all of them.
pub(crate) fn run(wanted: &[String]) -> Result<()> {
    if let Some(unknown) = wanted.iter().find(|name| !STEPS.contains(&name.as_str())) {
        bail!("no step `{unknown}`: there are {}", STEPS.join(", "));
    }
    let mut postgres = None;
    for name in STEPS.iter().filter(|name| wanted.is_empty() || wanted.iter().any(|word| word == *name)) {
        let start = Instant::now();
        println!("check: {name}");
        step(name, &mut postgres).with_context(|| format!("check `{name}` failed"))?;
        println!("check: {name} holds ({:.1} s)", start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn step(name: &str, postgres: &mut Option<Postgres>) -> Result<()> {
    match name {
        "fmt" => process::run(process::cargo().args(["fmt", "--all", "--check"])),
        "tidy" => tidy(),
        "clippy" => {
            process::run(process::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
        }
        "docs" => {
            let mut command = process::cargo();
            command.args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
            process::run(command.env("RUSTDOCFLAGS", "-D warnings"))
        }
        "sql" => sql::prepare(running(postgres)?),
        "bless" => bless::check(running(postgres)?),
        _ => bail!("no step `{name}`"),
    }
}

/// One PostgreSQL for all steps that need one.
fn running(postgres: &mut Option<Postgres>) -> Result<&Postgres> {
    Ok(match postgres {
        Some(running) => running,
        None => postgres.insert(test::start_postgres()?),
    })
}

/// Prints every place that breaks a rule of the tree.
pub(crate) fn tidy() -> Result<()> {
    let found = xtask::tidy::violations(&xtask::sources::root()).context("cannot read the tree")?;
    for violation in &found {
        println!("{violation}");
    }
    if !found.is_empty() {
        bail!("{} places break a rule of the tree", found.len());
    }
    Ok(())
}
