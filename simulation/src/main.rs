//! `drover-simulate`: see `cargo xtask simulate`.

#![expect(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::process::ExitCode;

use clap::Parser;
use drover_shared::planted::Bug;
use drover_shared::words::Word as _;
use drover_simulation::{Accident, Met, simulate};

/// Runs server and agents under accidents that follow from a seed, and holds the promises against what happened.
#[derive(Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// One seed alone, with everything that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// A bug that is put in; see `drover_shared::planted`.
    #[arg(long)]
    bug: Option<String>,
    /// Puts in each bug in turn, and tells how many seeds it takes to find it.
    #[arg(long)]
    bugs: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.bugs {
        return find_bugs(arguments.from, arguments.seeds);
    }
    let bug = match arguments.bug.as_deref().map(Bug::parse).transpose() {
        Ok(bug) => bug,
        Err(error) => {
            println!("--bug: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (seeds, echo) = match arguments.seed {
        Some(seed) => (seed..seed + 1, true),
        None => (arguments.from..arguments.from + arguments.seeds, false),
    };
    let (mut failed, mut met) = (0, Met::new());
    for seed in seeds {
        let outcome = simulate(seed, bug, echo);
        let (lines, digest) = &outcome.trace;
        outcome.met.iter().for_each(|(accident, times)| *met.entry(*accident).or_default() += times);
        match outcome.promises {
            Ok(counted) => println!(
                "seed {seed}: {} faults, {} tasks, {} executions ({} lost, {} cancelled alone), {} bytes; {lines} lines, {}",
                outcome.met.values().sum::<u64>(),
                counted.tasks,
                counted.executions,
                counted.lost,
                counted.cancelled,
                counted.bytes,
                &digest[..12]
            ),
            Err((promise, why)) => {
                failed += 1;
                println!("seed {seed}: {promise} IS BROKEN: {why}; {lines} lines, {}", &digest[..12]);
            }
        }
    }
    let times = |accident: Accident| met.get(&accident).copied().unwrap_or_default();
    let met: Vec<String> = Accident::all().map(|accident| format!("{accident:?} {}", times(accident))).collect();
    println!("faults met: {}", met.join(", "));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says for each bug which seed finds it first.
fn find_bugs(from: u64, seeds: u64) -> ExitCode {
    let mut unfound = 0;
    for bug in Bug::ALL {
        let found = (from..from + seeds).find_map(|seed| {
            let outcome = simulate(seed, Some(*bug), false);
            outcome.promises.err().map(|(promise, why)| (seed, promise, why))
        });
        match found {
            Some((seed, promise, why)) => {
                println!("{bug}: {promise} by seed {seed}, after {} runs: {why}", seed - from + 1);
            }
            None => {
                unfound += 1;
                println!("{bug}: NOT FOUND in {seeds} runs");
            }
        }
    }
    if unfound == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
