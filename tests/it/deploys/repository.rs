//! A real git repository of a test's own.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

/// A repository in a folder of its own, which goes with it.
pub(crate) struct Repository {
    folder: TempDir,
}

impl Repository {
    /// A repository with one commit on `main`.
    pub(crate) fn new() -> Self {
        let repository = Self { folder: tempfile::tempdir().expect("a folder") };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.commit("index.html", "one\n");
        repository
    }

    /// Writes a file and commits it; gives the commit.
    pub(crate) fn commit(&self, file: &str, content: &str) -> String {
        let path = self.folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("a file");
        self.git(&["add", "."]);
        self.git(&["commit", "--quiet", "--message", file]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// The repository as deploy settings name it.
    pub(crate) fn settings(&self) -> Value {
        json!({"type": "GIT", "url": format!("file://{}", self.folder.path().display()), "branch": "main"})
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.current_dir(self.folder.path()).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        command.args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]).args(arguments);
        let output = command.output().expect("git");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }
}
