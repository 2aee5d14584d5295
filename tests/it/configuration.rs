//! Where a setting comes from: a flag wins over the environment, the environment over the file.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

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

/// A server that was started with these limits of open files, as the kernel and its log tell of it once it serves.
fn open_files(limits: &str) -> (String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits}; exec \"$0\" \"$@\"")]).arg(binary("drover-server"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.path());
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server's program");
    let mut lines = BufReader::new(server.stdout.take().expect("its answers")).lines();
    let served = lines.any(|line| line.is_ok_and(|line| line.starts_with("Serving")));
    let told = fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap_or_default();
    server.kill().expect("it runs");
    let mut log = String::new();
    server.stderr.take().expect("its log").read_to_string(&mut log).expect("text");
    server.wait().expect("its end");
    assert!(served, "{log}");
    let line = told.lines().find(|line| line.starts_with("Max open files")).expect("a limit").to_owned();
    (line.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(" "), log)
}

#[test]
fn the_server_has_as_many_files_open_as_it_may_and_says_when_that_is_little() {
    let (limits, log) = open_files("ulimit -Sn 256; ulimit -Hn 4000");
    assert_eq!(limits, "4000 4000");
    assert!(log.contains("few files may be open"), "{log}");
    let (limits, log) = open_files("ulimit -Sn 256");
    let (soft, hard) = limits.split_once(' ').expect("two numbers");
    assert_eq!(soft, hard);
    let is_enough = hard == "unlimited" || hard.parse::<u64>().is_ok_and(|most| most >= 21_000);
    assert_eq!(!log.contains("few files may be open"), is_enough, "{hard}: {log}");
}
