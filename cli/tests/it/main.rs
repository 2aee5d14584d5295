//! The command line as a whole: the real program against a server on a real socket.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod deploying;
mod following;
mod reaching;
mod server;
mod signing_in;
mod uploading;

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use server::Server;

/// A person with a home folder of their own.
struct Person {
    home: TempDir,
    server: Server,
}

/// What a command did.
#[derive(Debug)]
struct Ended {
    code: i32,
    output: String,
    errors: String,
}

impl Person {
    fn at(server: &Server) -> Self {
        Self { home: tempfile::tempdir().unwrap(), server: server.clone() }
    }

    /// A command of this person, signed in by the environment.
    fn command(&self, line: &str) -> Command {
        let mut command = self.stranger(line);
        command.env("DROVER_URL", self.server.url()).env("DROVER_TOKEN", "t0ken");
        command
    }

    /// A command of somebody who has given neither address nor token.
    fn stranger(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
        command.args(line.split_whitespace()).env_clear().env("HOME", self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> Ended {
        ended(&self.command(line).output().unwrap())
    }
}

impl Ended {
    /// Standard output, a JSON value on each line.
    fn json(&self) -> Vec<Value> {
        let lines = self.output.lines();
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }
}

fn ended(Output { status, stdout, stderr }: &Output) -> Ended {
    Ended {
        code: status.code().unwrap_or(-1),
        output: String::from_utf8(stdout.clone()).unwrap(),
        errors: String::from_utf8(stderr.clone()).unwrap(),
    }
}

fn with_input(command: &mut Command, input: &str) -> Ended {
    let mut child: Child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    ended(&child.wait_with_output().unwrap())
}
