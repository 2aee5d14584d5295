//! `cargo xtask torture`: blows on real programs for as long as is wished.

#![expect(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use drover_kernel::Clock;
use drover_tests::Engine;
use drover_tests::torture::{Plan, run};

/// A run with one seed lasts this long; then another begins, with everything new.
const ROUND: Duration = Duration::from_secs(120);
const HOSTS: usize = 4;
const APPLICATIONS: usize = 4;

#[tokio::main]
async fn main() -> Result<()> {
    let (mut minutes, mut seed, mut engines) = (2, None, vec![Engine::Sqlite, Engine::Postgres]);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--minutes" => minutes = number(&word, words.next())?,
            "--seed" => seed = Some(number(&word, words.next())?),
            "--sqlite" => engines = vec![Engine::Sqlite],
            "--postgres" => engines = vec![Engine::Postgres],
            other => bail!("no option `{other}`: cargo xtask torture [--minutes M] [--seed N] [--sqlite | --postgres]"),
        }
    }
    let from_clock = || u64::try_from(Clock::system().now().millis()).unwrap_or(0);
    let first = seed.unwrap_or_else(from_clock);
    let mut left = Duration::from_secs(minutes * 60);
    for (seed, engine) in (first..).zip(engines.into_iter().cycle()) {
        let duration = left.min(ROUND);
        println!("{engine:?}, seed {seed}, {} s of blows", duration.as_secs());
        let plan = Plan { seed, duration, engine, hosts: HOSTS, applications: APPLICATIONS };
        println!("{}\n", Box::pin(run(plan)).await);
        left -= duration;
        if left.is_zero() {
            break;
        }
    }
    println!("everything agrees");
    Ok(())
}

fn number(option: &str, value: Option<String>) -> Result<u64> {
    let value = value.with_context(|| format!("{option} needs a number"))?;
    value.parse().with_context(|| format!("{option}: `{value}` is no number"))
}
