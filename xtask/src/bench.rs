//! `cargo xtask bench`: builds what is measured as it is shipped, and measures it.

use anyhow::Result;

use crate::process;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let packages = ["--package", "drover-server", "--package", "drover-agent"];
    process::run(process::cargo().args(["build", "--release", "--bins"]).args(packages))?;
    // The load itself is light: what is measured are the programs above.
    let mut command = process::cargo();
    command.args(["run", "--quiet", "--package", "drover-tests", "--bin", "drover-bench", "--"]).args(arguments);
    let measured = process::bin_dir()?.with_file_name("release");
    process::run(command.env(crate::test::BIN_DIR, measured))
}
