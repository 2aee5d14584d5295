//! `cargo xtask bench`: builds what is measured as it is shipped, and measures it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::postgres::Postgres;
use crate::process;

/// How agents are shipped, and where the one to measure is.
const AGENT_PROFILE: &str = "agent";
const AGENT: &str = "DROVER_BENCH_AGENT";
/// The same for hosts without the usual libc; measured where that can be built.
const MUSL_AGENT: &str = "DROVER_BENCH_AGENT_MUSL";
/// The row that needs a PostgreSQL.
const WITH_POSTGRES: &str = "postgres";
/// Where its address is.
const POSTGRES: &str = "DROVER_BENCH_POSTGRES";

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let packages = ["drover-server", "drover", "drover-bench"];
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    process::run(process::cargo().args(["build", "--release", "--bins"]).args(packages))?;
    let agent = ["build", "--profile", AGENT_PROFILE, "--package", "drover-agent"];
    process::run(process::cargo().args(agent))?;
    let musl = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let has_musl = can_build_for(&musl)?;
    if has_musl {
        process::run(process::cargo().args(agent).args(["--target", &musl]))?;
    }
    let measured = process::bin_dir()?.with_file_name("release");
    let mut command = Command::new(measured.join("drover-bench"));
    command.args(arguments).env(crate::test::BIN_DIR, &measured);
    command.env(AGENT, measured.with_file_name(AGENT_PROFILE).join("drover-agent"));
    if has_musl {
        command.env(MUSL_AGENT, measured.with_file_name(musl).join(AGENT_PROFILE).join("drover-agent"));
    }
    if !arguments.iter().any(|argument| argument == "--json") {
        command.arg("--json").arg(file(&measured)?);
    }
    // What follows `--json` is no row.
    let named = |at: usize| !arguments[at].starts_with("--") && (at == 0 || arguments[at - 1] != "--json");
    let all = !(0..arguments.len()).any(named);
    let postgres = match all || arguments.iter().any(|argument| argument == WITH_POSTGRES) {
        true => Some(Postgres::durable()?),
        false => None,
    };
    if let Some(postgres) = &postgres {
        command.env(POSTGRES, postgres.url());
    }
    process::run(&mut command)
}

/// Whether Rust's own library and a C compiler for this target are installed.
fn can_build_for(target: &str) -> Result<bool> {
    let folder = process::output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]))?;
    let compiler = Command::new("musl-gcc").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    Ok(Path::new(folder.trim()).exists() && compiler.is_ok_and(|status| status.success()))
}

/// Where the figures go if nobody says: `target/bench.json`.
fn file(measured: &Path) -> Result<std::path::PathBuf> {
    let target = measured.parent().context("a folder for what is built")?;
    Ok(target.join("bench.json"))
}
