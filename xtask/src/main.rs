//! `cargo xtask NAME`: what is done with the project besides building it.
//!
//! Owns the commands; each has a module. Invariant: whatever a command starts, it stops again, also when it fails or
//! is interrupted.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

mod bench;
mod bless;
mod check;
mod demo;
mod simulate;
mod sql;
mod test;
mod torture;

use std::process::ExitCode;

use anyhow::{Result, bail};
use xtask::{debian, postgres, process, scratch};

const USAGE: &str = "\
cargo xtask COMMAND

  test [--sqlite-only] [FILTER...]   run the tests, on SQLite and on a PostgreSQL of their own
  check [STEP...]                    what has to hold before a change lands: fmt tidy clippy sql docs bless
  tidy                               the rules over the tree alone
  sql                                prepare every SQL statement on both engines
  bless [--check]                    write the golden files anew; --check: they must not change
  torture [--minutes M] [--seed N]   kill everything at random under load, and compare what came of it
  simulate [--seeds N] [--from S]    server and agents on one thread, under accidents that follow from seeds
           [--seed S] [--bug NAME]   one seed, with all that happens; with a bug put in
           [--bugs]                  how many seeds it takes to find each bug that can be put in
  demo [--once]                      server, two agents, a real application: deploy, deploy, revert, and look at it
  bench [--json FILE]                figures of release builds, each beside its limit in the same run
";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            if process::interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn run() -> Result<ExitCode> {
    process::watch_signals()?;
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match command.as_str() {
        "test" => test::run(&rest),
        "check" => check::run(&rest).map(|()| ExitCode::SUCCESS),
        "tidy" => check::tidy().map(|()| ExitCode::SUCCESS),
        "sql" => sql::run().map(|()| ExitCode::SUCCESS),
        "bless" => bless::run(&rest).map(|()| ExitCode::SUCCESS),
        "bench" => bench::run(&rest).map(|()| ExitCode::SUCCESS),
        "simulate" => simulate::run(&rest).map(|()| ExitCode::SUCCESS),
        "torture" => torture::run(&rest).map(|()| ExitCode::SUCCESS),
        "demo" => demo::run(&rest).map(|()| ExitCode::SUCCESS),
        "" | "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("no command `{other}`\n\n{USAGE}"),
    }
}
