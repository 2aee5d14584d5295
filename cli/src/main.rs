//! `drover`: the command line for people and pipelines.
//!
//! Owns nothing but the caller's settings: everything else is the server's. Invariant: standard output carries what was
//! asked for, standard error what is said about it, and the exit code is one of those in [`failure`].

#![expect(clippy::print_stderr, reason = "messages for people go to standard error")]

mod api;
mod arguments;
mod channel;
mod clock;
mod commands;
mod download;
mod failure;
mod follow;
mod interrupt;
mod output;
mod records;
mod screen;
mod settings;
mod trust;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::Arguments;
use crate::failure::Result;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.global.json;
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if json && !failure.is_told {
                // Nothing is left to say it with if this fails, too.
                let _ = output::json(&failure.as_json());
            }
            eprintln!("error: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    interrupt::watch()?;
    commands::run(arguments)
}
