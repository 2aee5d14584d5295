//! `cargo xtask simulate`: server and agents on one thread, under accidents that follow from a seed.

use anyhow::Result;

use crate::process;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    // As the tests are built: what is put in on purpose is in no optimised build.
    process::run(process::cargo().args(["build", "--workspace", "--bins"]))?;
    process::run(std::process::Command::new(process::bin_dir()?.join("drover-simulate")).args(arguments))
}
