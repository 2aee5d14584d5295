//! `cargo xtask sql`: every statement in the sources, prepared on both engines.
//!
//! The statements are collected and prepared by the test of that name in `tests/`; this runs it alone.

use anyhow::Result;

use crate::postgres::Postgres;
use crate::{process, test};

pub(crate) fn run() -> Result<()> {
    prepare(&test::start_postgres()?)
}

pub(crate) fn prepare(postgres: &Postgres) -> Result<()> {
    let mut command = test::runner(test::has_nextest(), &["--package", "drover-tests"]);
    process::run(command.arg("sql").env(test::POSTGRES_URL, postgres.url()))
}
