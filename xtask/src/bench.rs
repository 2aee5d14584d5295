//! `cargo xtask bench`: builds what is measured as it is shipped, and measures it.

use anyhow::Result;

use crate::process;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let packages = ["--package", "drover-server", "--package", "drover-agent", "--package", "drover-tests"];
    process::run(process::cargo().args(["build", "--release", "--bins"]).args(packages))?;
    let mut command = process::cargo();
    command.args(["run", "--release", "--quiet", "--package", "drover-tests", "--bin", "drover-bench", "--"]);
    process::run(command.args(arguments))
}
