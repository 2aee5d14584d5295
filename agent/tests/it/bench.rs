//! What the tests share: a data directory, sealed orders, and the built program.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drover_agent::clock;
use drover_agent::spool::{Accepted, Folder, Key, Spool, boot_id};
use drover_shared::Digest;
use drover_shared::message::Finished;
use drover_shared::order::{Entry, Order, Statement, Step, canonical};
use drover_shared::record::{Stream, records};
use drover_shared::words::{Action, Language};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_drover-agent");

/// Number of an account that is not root; it need not have a name.
const STRANGER: u32 = 65_534;

/// A data directory that lasts as long as the test.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) timeout_ms: u64,
}

pub(crate) fn entry(steps: Vec<Step>) -> Entry {
    Entry {
        action: Action::Upgrade,
        task_id: 7,
        host: "web-1".to_owned(),
        application: "shop.web".to_owned(),
        instance_id: Some(3),
        version: "1.0".to_owned(),
        deploy_path: None,
        run_user: None,
        steps,
        environment: BTreeMap::from([("COLOUR".to_owned(), "green".to_owned())]),
        output_bytes_max: 1 << 30,
        kill_grace_ms: 300,
        secrets: Vec::new(),
        shared_paths: Vec::new(),
    }
}

pub(crate) fn bash(name: &str, content: &str) -> Step {
    script(name, Language::Bash, content, None)
}

pub(crate) fn script(name: &str, language: Language, content: &str, running_user: Option<&str>) -> Step {
    let (name, content, running_user) = (name.to_owned(), content.to_owned(), running_user.map(str::to_owned));
    Step::Script { name, language, content, running_user, timeout_ms: None }
}

/// A new execution id.
pub(crate) fn execution_id() -> String {
    let random = Digest::of(format!("{:?}{:?}", Instant::now(), std::thread::current().id()).as_bytes()).to_string();
    format!("{}-{}-7{}-8{}-{}", &random[..8], &random[8..12], &random[13..16], &random[17..20], &random[20..32])
}

pub(crate) fn statement(execution_id: &str, agent_id: &str, entry: &str, timeout_ms: u64) -> Statement {
    Statement {
        execution_id: execution_id.to_owned(),
        attempt: 1,
        agent_id: agent_id.to_owned(),
        plan_digest: Digest::of(b"plan"),
        entry_digest: Digest::of(entry.as_bytes()),
        timeout_ms,
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), timeout_ms: 60_000 }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn accept(&self, entry: &Entry) -> Folder {
        accept_in(&self.data_dir(), entry, self.timeout_ms)
    }

    /// As [`Bench::run`], by a supervisor that is not root, whoever runs the tests.
    pub(crate) fn run_without_root(&self, entry: &Entry) -> (Finished, Folder) {
        if !is_root() {
            return self.run(entry);
        }
        let folder = self.accept(entry);
        // The program may lie where only root gets to.
        let program = self.path("drover-agent");
        std::fs::copy(PROGRAM, &program).unwrap();
        give_away(self.folder.path());
        let mut command = Command::new(program);
        command.arg("supervise").arg(folder.path()).stdin(Stdio::null()).current_dir("/").uid(STRANGER).gid(STRANGER);
        let status = command.status().unwrap();
        assert!(status.success(), "supervise ended with {status}");
        let finished = folder.status().unwrap().expect("a status");
        (finished, folder)
    }

    /// Accepts, supervises, and reads what came of it.
    pub(crate) fn run(&self, entry: &Entry) -> (Finished, Folder) {
        let folder = self.accept(entry);
        supervise(&folder);
        let finished = folder.status().unwrap().expect("a status");
        (finished, folder)
    }
}

/// Gives a folder and all below it to an account that is not root.
fn give_away(path: &Path) {
    std::os::unix::fs::lchown(path, Some(STRANGER), Some(STRANGER)).unwrap();
    if std::fs::symlink_metadata(path).unwrap().is_dir() {
        for item in std::fs::read_dir(path).unwrap() {
            give_away(&item.unwrap().path());
        }
    }
}

pub(crate) fn accept_in(data_dir: &Path, entry: &Entry, timeout_ms: u64) -> Folder {
    std::fs::create_dir_all(data_dir).unwrap();
    let id = execution_id();
    let entry = canonical(entry);
    let order = Order::seal(&statement(&id, "agent", &entry, timeout_ms), entry, |_| Vec::new());
    let now = clock::now();
    let (wall_ms, monotonic_ms) = (now.wall_ms, now.monotonic_ms);
    let accepted = Accepted { order, wall_ms, monotonic_ms, boot_id: boot_id(), at_once: false, spool_bytes_max: None };
    Spool::open(data_dir).unwrap().accept(&Key::new(&id, 1).unwrap(), &accepted).unwrap()
}

pub(crate) fn command(folder: &Folder) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("supervise").arg(folder.path()).stdin(Stdio::null());
    command
}

pub(crate) fn supervise(folder: &Folder) {
    let status = command(folder).status().unwrap();
    assert!(status.success(), "supervise ended with {status}");
}

pub(crate) fn start(folder: &Folder) -> Child {
    command(folder).spawn().unwrap()
}

/// The bytes of one stream, joined.
pub(crate) fn stream(folder: &Folder, stream: Stream) -> Vec<u8> {
    let log = std::fs::read(folder.log()).unwrap();
    let all: Vec<_> = records(&log).collect::<Result<_, _>>().expect("whole records");
    all.into_iter().filter(|record| record.stream == stream).flat_map(|record| record.payload.to_vec()).collect()
}

pub(crate) fn text(folder: &Folder, of: Stream) -> String {
    String::from_utf8(stream(folder, of)).unwrap()
}

/// Waits for a condition, at most a minute: the machine may be busy.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: did not happen in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn process_lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The pause between two looks at a process tree that is being ended, which the caller of that hands in.
pub(crate) fn pause(milliseconds: u64) {
    std::thread::park_timeout(Duration::from_millis(milliseconds));
}
