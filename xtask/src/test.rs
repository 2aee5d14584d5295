//! `cargo xtask test`: the whole suite, on both databases, with the real programs.
//!
//! Invariant: the last line of the output is `N passed, N failed`, and the exit status says the same.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::{io, thread};

use anyhow::{Context as _, Result};

use crate::postgres::Postgres;
use crate::{debian, process};

/// Names of the variables that tests read.
pub(crate) const POSTGRES_URL: &str = "DROVER_TEST_POSTGRES_URL";
pub(crate) const BIN_DIR: &str = "DROVER_BIN_DIR";

/// Programs that tests start, with Debian's packages that bring them.
const NEEDED: [(&str, &str); 4] =
    [("git", "git"), ("ssh", "openssh-client"), ("sshd", "openssh-server"), ("lighttpd", "lighttpd")];

/// What the runner counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

/// Runs the tests whose names contain one of the filters; all of them without filters.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (flags, filters): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|word| word.starts_with("--"));
    let sqlite_only = flags.iter().any(|flag| *flag == "--sqlite-only");
    if let Some(unknown) = flags.iter().find(|flag| **flag != "--sqlite-only") {
        anyhow::bail!("no option `{unknown}`: cargo xtask test [--sqlite-only] [FILTER...]");
    }
    need_programs()?;
    let libraries = format!("/usr/lib/{}-linux-gnu/libpam_wrapper.so", std::env::consts::ARCH);
    for (file, package) in
        [("/usr/lib/lighttpd/mod_openssl.so", "lighttpd-mod-openssl"), (&libraries, "libpam-wrapper")]
    {
        if !Path::new(file).is_file() {
            debian::install(package, &format!("The tests need {package}"))?;
        }
    }
    let postgres = if sqlite_only {
        println!("PostgreSQL IS LEFT OUT: only half of the database tests run.");
        None
    } else {
        Some(start_postgres()?)
    };
    let built = process::run(process::cargo().args(["build", "--workspace", "--bins", "--tests"]));
    let count = match built {
        Err(error) if process::interrupted() => return Err(error),
        Err(error) => {
            println!("The project does not build, which counts as one failure: {error:#}");
            Some(Count { passed: 0, failed: 1 })
        }
        Ok(()) => run_tests(postgres.as_ref(), &filters)?,
    };
    drop(postgres);
    let Count { passed, failed } = count.unwrap_or_else(|| {
        println!("The runner gave no summary, which counts as one failure.");
        Count { passed: 0, failed: 1 }
    });
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs the programs that tests start, where they are not there.
pub(crate) fn need_programs() -> Result<()> {
    for (program, package) in NEEDED {
        debian::need(program, package, &format!("The tests need {package}"))?;
    }
    Ok(())
}

/// Starts the database for tests and says so.
pub(crate) fn start_postgres() -> Result<Postgres> {
    let postgres = Postgres::start().context("cannot start PostgreSQL for the tests")?;
    println!("PostgreSQL runs for the tests and ends with them.");
    Ok(postgres)
}

/// A cargo command that runs tests: with nextest where it is installed.
pub(crate) fn runner(nextest: bool, packages: &[&str]) -> Command {
    let mut command = process::cargo();
    command.args(if nextest { &["nextest", "run"][..] } else { &["test", "--no-fail-fast"] }).args(packages);
    command
}

/// Whether cargo-nextest is installed.
pub(crate) fn has_nextest() -> bool {
    process::output(process::cargo().args(["nextest", "--version"])).is_ok()
}

fn run_tests(postgres: Option<&Postgres>, filters: &[&String]) -> Result<Option<Count>> {
    let nextest = has_nextest();
    let mut command = runner(nextest, &["--workspace"]);
    command.env(BIN_DIR, process::bin_dir()?);
    if !nextest {
        command.arg("--");
    }
    command.args(filters);
    match postgres {
        Some(postgres) => _ = command.env(POSTGRES_URL, postgres.url()),
        None if nextest => _ = command.args(["-E", "not test(::postgres)"]).env_remove(POSTGRES_URL),
        None => _ = command.args(["--skip", "::postgres"]).env_remove(POSTGRES_URL),
    }
    let (lines, success) = shown_and_kept(&mut command)?;
    let count = if nextest { nextest_count(&lines) } else { libtest_count(&lines) };
    // A runner that fails without a failed test did not do its work.
    let count = count.map(|count| if success || count.failed > 0 { count } else { Count { failed: 1, ..count } });
    match count {
        Some(count) if nextest && filters.is_empty() => doctests().map(|more| more.map(|more| count.plus(more))),
        count => Ok(count),
    }
}

/// What must not compile is shown in the kernel's documentation, which nextest does not run.
fn doctests() -> Result<Option<Count>> {
    let mut command = process::cargo();
    // The whole workspace has the features that everything was built with: with one package alone it is built anew.
    command.args(["test", "--doc", "--workspace"]);
    let (lines, _) = shown_and_kept(&mut command)?;
    Ok(libtest_count(&lines))
}

/// Runs a command, shows what it writes, and keeps it; the truth says whether it succeeded.
fn shown_and_kept(command: &mut Command) -> Result<(Vec<String>, bool)> {
    let mut child = process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let errors = child.stderr.take().context("no standard error")?;
    let output = child.stdout.take().context("no standard output")?;
    let errors = thread::spawn(move || copy(errors, io::stderr()));
    let mut lines = copy(output, io::stdout());
    lines.extend(errors.join().unwrap_or_default());
    let status = process::wait(&mut child)?;
    Ok((lines, status.success()))
}

/// Copies line by line and keeps those that may be a summary.
fn copy(from: impl io::Read, mut to: impl io::Write) -> Vec<String> {
    let mut kept = Vec::new();
    for line in BufReader::new(from).split(b'\n') {
        let Ok(line) = line else { break };
        // Whoever reads may have gone; the tests still count.
        let _ = to.write_all(&line).and_then(|()| to.write_all(b"\n"));
        let line = plain(&String::from_utf8_lossy(&line));
        if line.contains("passed") {
            kept.push(line);
        }
    }
    let _ = to.flush();
    kept
}

/// The line without terminal colours.
fn plain(line: &str) -> String {
    let mut pieces = line.split("\u{1b}[");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        plain.push_str(piece.split_once('m').map_or("", |(_, text)| text));
    }
    plain
}

/// Reads `Summary [1.0s] 9 tests run: 6 passed (1 slow), 2 failed, 1 timed out, 0 skipped`.
fn nextest_count(lines: &[String]) -> Option<Count> {
    let line = lines.iter().rev().find(|line| line.trim_start().starts_with("Summary ["))?;
    let (_, results) = line.split_once("run: ")?;
    let mut count = Count::default();
    for part in without_remarks(results).split(',') {
        let (number, what) = part.trim().split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match what {
            "passed" => count.passed += number,
            "skipped" => {}
            _ => count.failed += number,
        }
    }
    Some(count)
}

/// The text without what stands in parentheses.
fn without_remarks(text: &str) -> String {
    text.split('(').map(|piece| piece.split_once(')').map_or(piece, |(_, after)| after).trim_end()).collect()
}

/// Adds up lines such as `test result: FAILED. 3 passed; 1 failed; 0 ignored; …`.
fn libtest_count(lines: &[String]) -> Option<Count> {
    let mut count = None;
    for line in lines.iter().filter(|line| line.starts_with("test result: ")) {
        let total: &mut Count = count.get_or_insert_default();
        for part in line.split(". ").nth(1)?.split(';') {
            match part.trim().split_once(' ') {
                Some((number, "passed")) => total.passed += number.parse::<u64>().ok()?,
                Some((number, "failed")) => total.failed += number.parse::<u64>().ok()?,
                _ => {}
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(plain).collect()
    }

    #[test]
    fn summaries_of_nextest_are_read() {
        for (text, passed, failed) in [
            ("     Summary [   0.012s] 3 tests run: 3 passed, 0 skipped", 3, 0),
            ("Summary [ 9.1s] 9 tests run: 6 passed (1 slow, 1 leaky), 2 failed, 1 timed out, 4 skipped", 6, 3),
            ("Summary [ 1s] 1 test run: 0 passed, 1 exec failed, 0 skipped", 0, 1),
            ("\u{1b}[32;1mSummary\u{1b}[0m [ 1s] \u{1b}[1m5\u{1b}[0m/7 tests run: \u{1b}[1m5\u{1b}[0m passed", 5, 0),
        ] {
            assert_eq!(nextest_count(&lines(text)), Some(Count { passed, failed }), "{text}");
        }
        assert_eq!(nextest_count(&lines("3 passed")), None);
    }

    #[test]
    fn summaries_of_libtest_are_added_up() {
        let text = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\ntest result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.00s";
        assert_eq!(libtest_count(&lines(text)), Some(Count { passed: 4, failed: 2 }));
        assert_eq!(libtest_count(&[]), None);
    }
}
