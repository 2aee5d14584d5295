//! `cargo xtask bless`: writes the golden files anew, so that review sees every change of what others rely on.
//!
//! Golden files are written by the tests whose names contain `golden`, when `DROVER_BLESS` is `1`.

use std::process::Command;

use anyhow::{Result, bail};

use crate::postgres::Postgres;
use crate::{process, test};

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let postgres = test::start_postgres()?;
    match arguments {
        [] => bless(&postgres),
        [flag] if flag == "--check" => check(&postgres),
        _ => bail!("cargo xtask bless [--check]"),
    }
}

fn bless(postgres: &Postgres) -> Result<()> {
    let mut command = test::runner(test::has_nextest(), &["--workspace"]);
    process::run(command.arg("golden").env("DROVER_BLESS", "1").env(test::POSTGRES_URL, postgres.url()))
}

/// Fails when the golden files do not say what the project does.
pub(crate) fn check(postgres: &Postgres) -> Result<()> {
    bless(postgres)?;
    process::run(git().args(["diff", "--exit-code", "--stat", "--", "golden"]))
        .map_err(|_| anyhow::anyhow!("golden files changed: look at them with `git diff golden` and commit them"))?;
    let new = process::output(git().args(["ls-files", "--others", "--exclude-standard", "--", "golden"]))?;
    if !new.is_empty() {
        bail!("new golden files are not committed:\n{new}");
    }
    Ok(())
}

fn git() -> Command {
    let mut command = Command::new("git");
    command.current_dir(xtask::sources::root());
    command
}
