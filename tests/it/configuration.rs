//! Where a setting comes from: a flag wins over the environment, the environment over the file.

use std::fs;
use std::process::Command;

use drover_tests::processes::binary;

/// The address that the server says it may not listen on, which tells whose word it took.
fn listens(file: &str, environment: Option<&str>, flag: Option<&str>) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("drover.toml");
    fs::write(&config, format!("listen = \"{file}\"\n")).expect("a file");
    let mut command = Command::new(binary("drover-server"));
    command.arg("serve").arg("--config").arg(&config).arg("--data-dir").arg(folder.path());
    command.env_remove("DROVER_LISTEN").env_remove("DROVER_CONFIG");
    command.envs(environment.map(|address| ("DROVER_LISTEN", address)));
    command.args(flag.iter().flat_map(|address| ["--listen", address]));
    let output = command.output().expect("the server's program");
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let address = said.split("listen: ").nth(1).unwrap_or_else(|| panic!("{said}"));
    address.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let (file, environment, flag) = ("0.0.0.0:1", Some("0.0.0.0:2"), Some("0.0.0.0:3"));
    assert_eq!(listens(file, None, None), "0.0.0.0:1");
    assert_eq!(listens(file, environment, None), "0.0.0.0:2");
    assert_eq!(listens(file, environment, flag), "0.0.0.0:3");
    assert_eq!(listens(file, None, flag), "0.0.0.0:3");
}
