//! Instances: their processes are watched and their logs read, as the account that they run as and no other.

use std::fs::{self, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use drover_shared::instance::{
    FEATURE, LOG_BYTES_MAX, LogEvent, LogFile, LogOutcome, LogPiece, LogQuestion, LogSlice, Observation, ProcessState,
    Watched,
};
use drover_shared::message::{ToAgent, ToServer};

use crate::bench::{Bench, bash, entry, execution_id, is_root};
use crate::server::{Got, Peer, Server, agent, run};

/// An account of every Debian that owns nothing.
const STRANGER: &str = "nobody";

/// An agent with an open session, and a folder that every account can get to.
struct Scene {
    bench: Bench,
    server: Server,
    _agent: tokio::process::Child,
    peer: Peer,
    request: u64,
}

impl Scene {
    async fn open() -> Self {
        let bench = Bench::new();
        fs::set_permissions(bench.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut server = Server::start().await;
        let agent = agent(&bench.data_dir(), Some(&server.token));
        let (peer, hello) = server.open(|_| (true, 0)).await;
        assert!(hello.features.iter().any(|feature| feature == FEATURE));
        Self { bench, server, _agent: agent, peer, request: 0 }
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.bench.path(name);
        fs::write(&path, content).unwrap();
        text(&path)
    }

    async fn ask(&mut self, path: &str, running_user: Option<&str>, piece: LogPiece) {
        self.request += 1;
        let running_user = running_user.map(str::to_owned);
        let question = LogQuestion { request: self.request, path: path.to_owned(), running_user, piece };
        self.peer.send(&ToAgent::ReadLog(question)).await;
    }

    /// The next message that is no sign of life.
    async fn hear(&mut self) -> ToServer {
        loop {
            match self.peer.next().await.expect("the agent hung up") {
                Got::Message(ToServer::Heartbeat { .. }) | Got::Data(..) => {}
                Got::Message(message) => return message,
            }
        }
    }

    async fn answer(&mut self) -> (u64, LogOutcome) {
        match self.hear().await {
            ToServer::Log(answer) => (answer.request, answer.outcome),
            other => panic!("{other:?}"),
        }
    }

    async fn read_as(&mut self, path: &str, running_user: Option<&str>, piece: LogPiece) -> LogOutcome {
        self.ask(path, running_user, piece).await;
        let (request, outcome) = self.answer().await;
        assert_eq!(request, self.request);
        outcome
    }

    async fn read(&mut self, path: &str, piece: LogPiece) -> LogSlice {
        match self.read_as(path, None, piece).await {
            LogOutcome::Slice(slice) => slice,
            other => panic!("{path} {piece:?}: {other:?}"),
        }
    }

    async fn refused(&mut self, path: &str, running_user: Option<&str>) -> String {
        match self.read_as(path, running_user, LogPiece::Bytes { from: 0, bytes: 100 }).await {
            LogOutcome::Refused { reason } => reason,
            other => panic!("{path}: {other:?}"),
        }
    }

    /// What is said of an instance next, until its state is this one.
    async fn observed(&mut self, instance_id: i64, state: ProcessState) -> Observation {
        loop {
            let ToServer::Observed { instances } = self.hear().await else { continue };
            if let Some(found) = instances.into_iter().find(|one| one.instance_id == instance_id && one.state == state)
            {
                return found;
            }
        }
    }

    async fn watch(&mut self, instances: &[(i64, &str, Option<&str>)]) {
        let instances = instances.iter().map(|(instance_id, path, user)| Watched {
            instance_id: *instance_id,
            pid_path: (*path).to_owned(),
            running_user: user.map(str::to_owned),
        });
        self.peer.send(&ToAgent::Watch { instances: instances.collect() }).await;
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn append(path: &str, content: &str) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(content.as_bytes()).unwrap();
}

fn next(slice: &LogSlice, wait_ms: u64) -> LogPiece {
    LogPiece::Next { file: slice.file, from: slice.position, bytes: LOG_BYTES_MAX, wait_ms }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").spawn().unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn pieces_by_bytes_and_by_lines_from_both_ends() {
    let mut scene = Scene::open().await;
    let log = scene.write("app.log", "one\ntwo €\nthree\nfour".as_bytes());
    let total = 22;
    for (piece, content, position, lines) in [
        (LogPiece::Bytes { from: 0, bytes: 5 }, "one\nt", 5, None),
        (LogPiece::Bytes { from: 4, bytes: 6 }, "two ", 8, None),
        (LogPiece::Bytes { from: 8, bytes: 1 }, "€", 11, None),
        (LogPiece::Bytes { from: 100, bytes: 10 }, "", total, None),
        (LogPiece::LastBytes { back: 0, bytes: 10 }, "", total, None),
        (LogPiece::LastBytes { back: 6, bytes: 3 }, "e\nf", 19, None),
        (LogPiece::LastBytes { back: 1000, bytes: 3 }, "one", 3, None),
        (LogPiece::Lines { skip: 0, lines: 2 }, "one\ntwo €\n", 12, Some(2)),
        (LogPiece::Lines { skip: 2, lines: 100 }, "three\nfour", total, Some(2)),
        (LogPiece::Lines { skip: 9, lines: 1 }, "", total, Some(0)),
        (LogPiece::LastLines { skip: 0, lines: 2 }, "three\nfour", total, Some(2)),
        (LogPiece::LastLines { skip: 1, lines: 2 }, "two €\nthree\n", 18, Some(2)),
        (LogPiece::LastLines { skip: 3, lines: 100 }, "one\n", 4, Some(1)),
        (LogPiece::LastLines { skip: 100, lines: 1 }, "", 0, Some(0)),
        (LogPiece::LastLines { skip: 0, lines: 0 }, "", total, Some(0)),
    ] {
        let slice = scene.read(&log, piece).await;
        let found = (slice.content.as_str(), slice.position, slice.lines, slice.total_length);
        assert_eq!(found, (content, position, lines, total), "{piece:?}");
        assert_eq!(slice.length, content.len() as u64);
    }
    let empty = scene.write("empty.log", b"");
    for piece in [LogPiece::Lines { skip: 0, lines: 5 }, LogPiece::LastLines { skip: 0, lines: 5 }] {
        let slice = scene.read(&empty, piece).await;
        assert_eq!((slice.content.as_str(), slice.lines), ("", Some(0)));
    }
    let strange = scene.write("strange.log", b"a\xff\nb\n");
    let slice = scene.read(&strange, LogPiece::LastLines { skip: 0, lines: 5 }).await;
    assert_eq!((slice.content.as_str(), slice.length, slice.position), ("a\u{fffd}\nb\n", 5, 5));
}

#[tokio::test]
async fn a_huge_file_is_read_where_it_is_asked_for() {
    let mut scene = Scene::open().await;
    let log = scene.write("huge.log", b"first\nsecond\n");
    let mut file = OpenOptions::new().write(true).open(&log).unwrap();
    let length = 1 << 30;
    file.seek(SeekFrom::Start(length - 19)).unwrap();
    file.write_all(b"\nlast but one\nlast\n").unwrap();
    drop(file);
    let slice = scene.read(&log, LogPiece::LastLines { skip: 0, lines: 2 }).await;
    assert_eq!((slice.content.as_str(), slice.position), ("last but one\nlast\n", length));
    let slice = scene.read(&log, LogPiece::Lines { skip: 1, lines: 1 }).await;
    assert_eq!(slice.content, "second\n");
    let slice = scene.read(&log, LogPiece::LastBytes { back: 5, bytes: 100 }).await;
    assert_eq!(slice.content, "last\n");
    // A line of a gigabyte: the end of it, no more than an answer may have.
    let slice = scene.read(&log, LogPiece::LastLines { skip: 2, lines: 1 }).await;
    assert_eq!((slice.length, slice.lines), (LOG_BYTES_MAX, Some(1)));
    for piece in [LogPiece::Lines { skip: 3, lines: 1 }, LogPiece::LastLines { skip: 3, lines: 1 }] {
        let outcome = scene.read_as(&log, None, piece).await;
        assert!(matches!(&outcome, LogOutcome::Refused { reason } if reason.contains("256 MiB")), "{outcome:?}");
    }
    // Many lines: as many whole ones as fit.
    let line = format!("{}\n", "x".repeat(999));
    let many = scene.write("many.log", line.repeat(1_000).as_bytes());
    for piece in [LogPiece::Lines { skip: 0, lines: 1_000 }, LogPiece::LastLines { skip: 0, lines: 1_000 }] {
        let slice = scene.read(&many, piece).await;
        assert_eq!((slice.lines, slice.length), (Some(262), 262_000), "{piece:?}");
    }
}

#[tokio::test]
async fn what_is_no_log_is_not_read() {
    let mut scene = Scene::open().await;
    let fifo = scene.bench.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let folder = text(scene.bench.folder.path());
    for path in [&*text(&fifo), &*folder, "/dev/zero"] {
        assert_eq!(scene.refused(path, None).await, "it is no regular file", "{path}");
    }
    // What the kernel makes up while it is read has no end, and links lead there as well as names.
    let link = scene.bench.path("link.log");
    symlink("/proc/self/status", &link).unwrap();
    for path in ["/proc/self/status", "/sys/kernel/uevent_seqnum", &*text(&link)] {
        if Path::new(path).exists() {
            assert_eq!(scene.refused(path, None).await, "what is below /proc and /sys is no log", "{path}");
        }
    }
    let own = text(&scene.bench.data_dir().join("identity.json"));
    assert_eq!(scene.refused(&own, None).await, "it belongs to the agent");
    let shm = tempfile::Builder::new().tempfile_in("/dev/shm").unwrap();
    if is_root() {
        let reason = scene.refused(&text(shm.path()), None).await;
        assert!(reason.starts_with("what is below /dev is not read as root"), "{reason}");
    }
    assert_eq!(scene.refused("etc/passwd", None).await, "the path is not absolute");
    assert_eq!(scene.refused(&"/x".repeat(3_000), None).await, "the path is too long");
    for path in ["/nowhere/at/all.log".to_owned(), format!("{}/inside", scene.write("file", b""))] {
        let outcome = scene.read_as(&path, None, LogPiece::Lines { skip: 0, lines: 1 }).await;
        assert_eq!(outcome, LogOutcome::Missing {}, "{path}");
    }
    let reason = scene.refused("/etc/passwd", Some("nobody-of-that-name")).await;
    assert_eq!(reason, "user `nobody-of-that-name` does not exist on this host");
}

#[tokio::test]
async fn only_what_the_account_may_read_is_read() {
    if !is_root() {
        // Only root may become somebody else, and without that everything is read as oneself.
        return;
    }
    let mut scene = Scene::open().await;
    let secret = scene.write("secret.log", b"not for everybody\n");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let link = scene.bench.path("link.log");
    symlink(&secret, &link).unwrap();
    let of_group = scene.write("group.log", b"for root's group\n");
    fs::set_permissions(&of_group, fs::Permissions::from_mode(0o640)).unwrap();
    let hidden = scene.bench.path("hidden");
    fs::create_dir(&hidden).unwrap();
    fs::write(hidden.join("open.log"), "in a folder that is closed\n").unwrap();
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700)).unwrap();
    let own = text(&scene.bench.data_dir().join("identity.json"));
    let maps = format!("/proc/{}/maps", std::process::id());
    for path in [&*secret, &*text(&link), &*of_group, &*text(&hidden.join("open.log")), &*own, "/etc/shadow", &*maps] {
        let reason = scene.refused(path, Some(STRANGER)).await;
        assert!(reason.contains("ermission denied"), "{path}: {reason}");
    }
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let slice = scene.read_as(&text(&link), Some(STRANGER), LogPiece::Bytes { from: 0, bytes: 3 }).await;
    assert!(matches!(slice, LogOutcome::Slice(slice) if slice.content == "not"));
    // As with logs, so with pid files: that it is one is all that may be said.
    let pid = scene.write("root.pid", std::process::id().to_string().as_bytes());
    fs::set_permissions(&pid, fs::Permissions::from_mode(0o600)).unwrap();
    scene.watch(&[(1, &pid, Some(STRANGER))]).await;
    let told = scene.observed(1, ProcessState::Unknown).await;
    assert!(told.reason.is_some_and(|reason| reason.contains("ermission denied")));
    // A process of somebody else is not the instance's, whatever the file says.
    fs::set_permissions(&pid, fs::Permissions::from_mode(0o644)).unwrap();
    let told = scene.observed(1, ProcessState::Unknown).await;
    assert_eq!((told.pid, told.reason.is_some_and(|reason| reason.contains("another account"))), (None, true));
}

#[tokio::test]
async fn a_log_that_is_followed_loses_nothing_when_it_is_renamed() {
    let mut scene = Scene::open().await;
    let log = scene.write("app.log", b"one\n");
    let slice = scene.read(&log, LogPiece::LastLines { skip: 0, lines: 10 }).await;
    let none = scene.read(&log, next(&slice, 0)).await;
    assert_eq!((none.content.as_str(), none.position, none.file), ("", 4, slice.file));
    // It waits, and has what comes.
    scene.ask(&log, None, next(&slice, 30_000)).await;
    append(&log, "two\n");
    let (_, outcome) = scene.answer().await;
    let LogOutcome::Slice(slice) = outcome else { panic!("{outcome:?}") };
    assert_eq!((slice.content.as_str(), slice.event), ("two\n", None));
    // The writer has it open still after it was renamed, and goes on in a new one only then.
    append(&log, "three\n");
    let former = format!("{log}.1");
    fs::rename(&log, &former).unwrap();
    append(&former, "four\n");
    let slice = scene.read(&log, next(&slice, 0)).await;
    assert_eq!((slice.content.as_str(), slice.event), ("three\nfour\n", None), "nothing has its name");
    append(&log, "");
    append(&former, "five\n");
    let slice = scene.read(&log, next(&slice, 0)).await;
    assert_eq!(slice.content, "five\n", "the new one is empty: the former may still be written to");
    append(&former, "six\n");
    append(&log, "seven\n");
    let slice = scene.read(&log, next(&slice, 0)).await;
    assert_eq!((slice.content.as_str(), slice.event), ("six\n", None), "the rest of the former comes first");
    let slice = scene.read(&log, next(&slice, 0)).await;
    assert_eq!((slice.content.as_str(), slice.event), ("seven\n", Some(LogEvent::Rotated)));
    let slice = scene.read(&log, next(&slice, 0)).await;
    assert_eq!((slice.content.as_str(), slice.event), ("", None));
    // Cut off.
    fs::write(&log, "new\n").unwrap();
    let slice = scene.read(&log, next(&slice, 0)).await;
    assert_eq!((slice.content.as_str(), slice.event), ("new\n", Some(LogEvent::Truncated)));
    // Gone, with another in its place.
    let other = scene.write("other.log", b"other\n");
    fs::rename(&other, &log).unwrap();
    let slice = scene.read(&log, next(&slice, 0)).await;
    assert_eq!((slice.content.as_str(), slice.event), ("other\n", Some(LogEvent::Replaced)));
    // Half a character waits for its rest, and is given when none can come.
    OpenOptions::new().append(true).open(&log).unwrap().write_all(b"\xe2\x82").unwrap();
    let half = scene.read(&log, next(&slice, 0)).await;
    assert_eq!((half.content.as_str(), half.position), ("", slice.position));
    OpenOptions::new().append(true).open(&log).unwrap().write_all(b"\xac\xe2").unwrap();
    let whole = scene.read(&log, next(&half, 0)).await;
    assert_eq!(whole.content, "€");
    fs::rename(&log, &former).unwrap();
    append(&log, "last\n");
    let rest = scene.read(&log, next(&whole, 0)).await;
    assert_eq!(rest.content, "\u{fffd}");
    assert_eq!(scene.read(&log, next(&rest, 0)).await.content, "last\n");
}

#[tokio::test]
async fn few_logs_are_followed_at_a_time() {
    let mut scene = Scene::open().await;
    let log = scene.write("app.log", b"one\n");
    let slice = scene.read(&log, LogPiece::LastLines { skip: 0, lines: 10 }).await;
    for _ in 0..17 {
        scene.ask(&log, None, next(&slice, 30_000)).await;
    }
    let (request, outcome) = scene.answer().await;
    assert_eq!((request, outcome), (18, LogOutcome::Busy {}));
    // That keeps nobody from reading.
    assert_eq!(scene.read(&log, LogPiece::Bytes { from: 0, bytes: 3 }).await.content, "one");
    append(&log, "two\n");
    for _ in 0..16 {
        let (_, outcome) = scene.answer().await;
        assert!(matches!(outcome, LogOutcome::Slice(slice) if slice.content == "two\n"));
    }
    scene.ask(&log, None, next(&slice, 30_000)).await;
    assert!(matches!(scene.answer().await.1, LogOutcome::Slice(_)), "there is room again");
    let strange = LogFile { device: 1, inode: 1, made_ns: 1 };
    let piece = LogPiece::Next { file: strange, from: 9, bytes: 100, wait_ms: 0 };
    assert_eq!(scene.read(&log, piece).await.event, Some(LogEvent::Replaced));
}

#[tokio::test]
async fn a_process_is_watched_from_its_start_to_its_crash() {
    let mut scene = Scene::open().await;
    let (path, other) = (text(&scene.bench.path("app.pid")), scene.write("other.pid", b"none\n"));
    scene.watch(&[(7, &path, None), (8, &other, None)]).await;
    let ToServer::Observed { instances } = scene.hear().await else { panic!("nothing is observed") };
    let states: Vec<_> = instances.iter().map(|one| (one.instance_id, one.state)).collect();
    assert_eq!(states, [(7, ProcessState::Stopped), (8, ProcessState::Unknown)], "all of them at first");
    let first = sleeper();
    fs::write(&path, format!("{}\n", first.id())).unwrap();
    let told = scene.observed(7, ProcessState::Running).await;
    assert_eq!(told.pid, Some(first.id()));
    assert!(told.since_ms.is_some());
    // Another one takes its place within one look: it is another process.
    let second = sleeper();
    fs::write(&path, format!("{}\n", second.id())).unwrap();
    end(first);
    loop {
        let told = scene.observed(7, ProcessState::Running).await;
        if told.pid == Some(second.id()) {
            break;
        }
    }
    end(second);
    let told = scene.observed(7, ProcessState::Crashed).await;
    assert!(told.since_ms.is_some() && told.reason.is_some_and(|reason| reason.contains("is gone")));
    fs::remove_file(&path).unwrap();
    scene.observed(7, ProcessState::Stopped).await;
    // The end of an execution has it look at once, and who asks anew hears of all.
    let mut steps =
        entry(vec![bash("start", &format!("setsid sleep 600 > /dev/null 2>&1 < /dev/null & echo $! > {path}"))]);
    steps.instance_id = Some(7);
    let order = scene.server.order(&execution_id(), &steps, 60_000);
    scene.peer.send(&run(order)).await;
    let told = scene.observed(7, ProcessState::Running).await;
    scene.watch(&[(7, &path, None)]).await;
    let ToServer::Observed { instances } = scene.hear_observed().await else { panic!("nothing is observed") };
    assert_eq!(instances, std::slice::from_ref(&told));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(told.pid.unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    scene.observed(7, ProcessState::Crashed).await;
}

impl Scene {
    async fn hear_observed(&mut self) -> ToServer {
        loop {
            let message = self.hear().await;
            if matches!(message, ToServer::Observed { .. }) {
                return message;
            }
        }
    }
}

#[tokio::test]
async fn a_thousand_instances_are_watched_and_no_more() {
    let mut scene = Scene::open().await;
    let child = sleeper();
    let path: PathBuf = scene.bench.path("app.pid");
    fs::write(&path, child.id().to_string()).unwrap();
    let path = text(&path);
    let many: Vec<(i64, &str, Option<&str>)> = (0..2_000).map(|id| (id, path.as_str(), None)).collect();
    scene.watch(&many).await;
    let ToServer::Observed { instances } = scene.hear_observed().await else { panic!("nothing is observed") };
    assert_eq!(instances.len(), 1_000);
    assert!(instances.iter().all(|one| one.state == ProcessState::Running));
    end(child);
    let ToServer::Observed { instances } = scene.hear_observed().await else { panic!("nothing is observed") };
    assert!(instances.iter().all(|one| one.state == ProcessState::Crashed));
}
