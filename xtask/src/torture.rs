//! `cargo xtask torture`: kills real programs at random under load, and compares everything at the end.

use anyhow::Result;

use crate::process;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    crate::test::need_programs()?;
    process::run(process::cargo().args(["build", "--workspace", "--bins"]))?;
    let programs = process::bin_dir()?;
    let mut command = std::process::Command::new(programs.join("drover-torture"));
    process::run(command.args(arguments).env(crate::test::BIN_DIR, &programs))
}
