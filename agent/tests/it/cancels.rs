//! A cancel at each moment of an execution: while it waits, in each of its steps, when it is over, and a second time. What
//! comes before a supervisor is there is in `run.rs`, `fetching.rs` and `secrets.rs`.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;

use drover_agent::release::manifest::{self, Body};
use drover_agent::spool::{CancelNote, Folder};
use drover_shared::Digest;
use drover_shared::message::{Finished, ToAgent};
use drover_shared::order::{Probe, Step};
use drover_shared::record::Stream;
use drover_shared::words::{ExecutionState, StepState};
use nix::fcntl::AT_FDCWD;
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tar::{EntryType, Header};

use crate::bench::{Bench, bash, entry, execution_id, start, stream, supervise, text, wait_until};
use crate::releases::{Site, archive, names};
use crate::run::{Gathered, fetch_request, finish};
use crate::server::{Server, agent, run};

const FILES: usize = 20_000;

/// More than any disk reads while a test runs.
const ENDLESS_BYTES: u64 = 1 << 40;

/// Nearly as much as an archive may unpack to: to read it takes a quarter of a minute at best.
const LONG_BYTES: u64 = 60 << 30;

fn note(reason: &str) -> CancelNote {
    CancelNote { reason: reason.to_owned(), timed_out: false }
}

fn tell(folder: &Folder, signal: Signal) {
    kill(Pid::from_raw(folder.supervisor().unwrap()), signal).unwrap();
}

fn has_begun(folder: &Folder, step: &str) -> bool {
    let begun = format!("\"step\":\"{step}\",\"state\":\"running\"");
    folder.log().exists() && String::from_utf8(stream(folder, Stream::Event)).unwrap().contains(&begun)
}

fn cancel(folder: &Folder) {
    folder.write_cancel(&note("cancelled by ada")).unwrap();
    tell(folder, Signal::SIGTERM);
}

/// Cancels while a step is at work, and gives what came of it.
fn cancelled_in(folder: &Folder, step: &str) -> Finished {
    let mut supervisor = start(folder);
    wait_until("the step has begun", || has_begun(folder, step));
    cancel(folder);
    assert!(supervisor.wait().unwrap().success());
    let finished = folder.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
    finished
}

/// A folder that nobody can open until the test lets them, as on a disk that hangs.
struct Held(Fanotify);

impl Held {
    /// None where this machine lets no test have such a thing.
    #[expect(clippy::print_stderr, reason = "a test that was skipped says so")]
    fn new(path: &Path) -> Option<Self> {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let held = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC).and_then(|fanotify| {
            let opening = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ONDIR;
            fanotify.mark(MarkFlags::FAN_MARK_ADD, opening, AT_FDCWD, Some(path)).map(|()| Self(fanotify))
        });
        held.inspect_err(|error| eprintln!("SKIPPED: only root can make others wait for a folder: {error}")).ok()
    }

    /// Lets a supervisor on, to its end, and each time looks first. This process must not open the folder meanwhile.
    fn let_on(self, supervisor: &mut Child, mut look: impl FnMut()) {
        wait_until("the supervisor ends", || {
            for event in self.0.read_events().unwrap_or_default() {
                look();
                self.0.write_response(FanotifyResponse::new(event.fd().unwrap(), Response::FAN_ALLOW)).unwrap();
            }
            supervisor.try_wait().unwrap().is_some_and(|status| status.success())
        });
    }
}

/// As [`cancelled_in`], at the moment in which the step opens what is held.
fn cancelled_at(folder: &Folder, step: &str, held: Held) -> Finished {
    let mut cancelled = false;
    held.let_on(&mut start(folder), || {
        if !cancelled && has_begun(folder, step) {
            cancel(folder);
            cancelled = true;
        }
    });
    assert!(cancelled, "{step} did not open it");
    folder.status().unwrap().unwrap()
}

/// Which step was stopped; all before it went well, and none after it began.
fn check_stopped_at(finished: &Finished, at: usize) {
    for (index, step) in finished.steps.iter().enumerate() {
        let expected = match index.cmp(&at) {
            std::cmp::Ordering::Less => StepState::Succeeded,
            std::cmp::Ordering::Equal => StepState::Failed,
            std::cmp::Ordering::Greater => StepState::Skipped,
        };
        assert_eq!(step.state, expected, "{}: {finished:?}", step.name);
    }
    assert_eq!(finished.steps[at].error.as_deref(), Some("stopped: cancelled by ada"));
}

#[test]
fn in_each_hook() {
    for (at, name) in ["pre_exec", "post_exec"].into_iter().enumerate() {
        let bench = Bench::new();
        let script = |hook: &str| bash(hook, if hook == name { "sleep 1000" } else { "true" });
        let folder = bench.accept(&entry(vec![script("pre_exec"), script("post_exec"), bash("last", "true")]));
        let finished = cancelled_in(&folder, name);
        check_stopped_at(&finished, at);
        assert!(finished.processes.ended >= 1, "{finished:?}");
    }
}

#[test]
fn while_it_unpacks() {
    let site = Site::new();
    let names: Vec<String> = (0..FILES).map(|number| format!("file-{number}")).collect();
    let members: Vec<_> = names.iter().map(|name| (name.as_str(), EntryType::Regular, "", b"x".as_slice())).collect();
    let digest = site.cache(&archive(&members));
    let release = "1.0-abc".to_owned();
    let steps = vec![Step::Unpack { digest, release: release.clone() }, Step::Switch { release }, bash("last", "true")];
    let folder = site.bench.accept(&site.entry(steps));
    let finished = cancelled_in(&folder, "unpack");
    check_stopped_at(&finished, 0);
    assert_eq!(finished.releases.as_deref(), Some(&[][..]), "a part of a release is none");
    assert!(!site.layout().current().exists());
}

/// A member by itself may take minutes, before anything is made.
#[test]
fn while_it_looks_through_a_long_member() {
    let site = Site::new();
    let (digest, release) = (Digest::of(b"long"), "1.0-abc".to_owned());
    let mut header = Header::new_gnu();
    header.set_path("long").unwrap();
    header.set_mode(0o644);
    header.set_size(LONG_BYTES);
    header.set_cksum();
    std::fs::create_dir_all(site.bench.data_dir().join("artifacts")).unwrap();
    let path = site.bench.data_dir().join("artifacts").join(format!("{digest}.tar"));
    std::fs::write(&path, header.as_bytes()).unwrap();
    File::options().append(true).open(&path).unwrap().set_len(LONG_BYTES + 2_048).unwrap();
    let folder = site.bench.accept(&site.entry(vec![Step::Unpack { digest, release }, bash("last", "true")]));
    check_stopped_at(&cancelled_in(&folder, "unpack"), 0);
    assert!(!site.deploy.exists(), "it was heard before the end of the member");
}

#[test]
fn while_it_verifies() {
    let site = Site::new();
    assert_eq!(site.install("1-a", 9).reason, None);
    assert_eq!(site.install("2-b", 9).reason, None);
    let file = Body::File { mode: 0o755, size: ENDLESS_BYTES, sha256: Digest::of(b"nobody knows") };
    let (lines, tree_digest) = manifest::lines(&[("app.txt".to_owned(), file)].into());
    let note = site.layout().notes().join("1-a.json");
    let about = std::fs::read_to_string(&note).unwrap().lines().next().unwrap().to_owned();
    std::fs::write(&note, format!("{about}\n{lines}")).unwrap();
    let endless = site.layout().release("1-a").join("app.txt");
    File::options().write(true).open(endless).unwrap().set_len(ENDLESS_BYTES).unwrap();
    let release = "1-a".to_owned();
    let steps = vec![Step::Verify { release: release.clone(), tree_digest }, Step::Switch { release }];
    let folder = site.bench.accept(&site.entry(steps));
    check_stopped_at(&cancelled_in(&folder, "verify"), 0);
    assert_eq!(site.layout().current_name().as_deref(), Some("2-b"));
    assert!(
        text(&folder, Stream::Notice).contains("stopped: cancelled by ada (0 processes ended, 0 left); current is 2-b")
    );
}

/// The switch is one rename: it is not begun, or done.
#[test]
fn while_it_switches() {
    let site = Site::new();
    for release in ["1-a", "2-b"] {
        assert_eq!(site.install(release, 9).reason, None);
    }
    let switch = |release: &str| Step::Switch { release: release.to_owned() };
    let folder = site.bench.accept(&site.entry(vec![bash("pre_exec", "sleep 1000"), switch("1-a")]));
    check_stopped_at(&cancelled_in(&folder, "pre_exec"), 0);
    assert_eq!(site.layout().current_name().as_deref(), Some("2-b"));
    assert!(text(&folder, Stream::Notice).contains("; current is 2-b"));

    let folder = site.bench.accept(&site.entry(vec![switch("1-a"), bash("post_exec", "echo no")]));
    let Some(held) = Held::new(&site.deploy) else { return };
    let finished = cancelled_at(&folder, "switch", held);
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
    let states: Vec<StepState> = finished.steps.iter().map(|step| step.state).collect();
    assert_eq!(states, [StepState::Succeeded, StepState::Skipped]);
    assert_eq!(names(&finished), [("2-b", false), ("1-a", true)]);
    assert_eq!(text(&folder, Stream::Output), "");
    assert!(text(&folder, Stream::Notice).contains("; current is 1-a"));

    // Where nothing follows there was nothing left to end.
    let folder = site.bench.accept(&site.entry(vec![switch("2-b")]));
    let finished = cancelled_at(&folder, "switch", Held::new(&site.deploy).unwrap());
    assert_eq!((finished.state, finished.reason), (ExecutionState::Succeeded, None));
    assert_eq!(site.layout().current_name().as_deref(), Some("2-b"));
}

/// What is deployed stays, what was removed is told, and the next one removes the rest.
#[test]
fn while_it_prunes() {
    let site = Site::new();
    for release in ["1-a", "2-b", "3-c", "4-d"] {
        assert_eq!(site.install(release, 9).reason, None);
    }
    let (switch, prune) = (Step::Switch { release: "4-d".to_owned() }, Step::Prune { keep: 0 });
    let folder = site.bench.accept(&site.entry(vec![switch.clone(), bash("post_exec", "true"), prune.clone()]));
    // The newest of those that go has its turn first.
    let Some(held) = Held::new(&site.layout().release("1-a")) else { return };
    let finished = cancelled_at(&folder, "prune", held);
    check_stopped_at(&finished, 2);
    assert_eq!(finished.state, ExecutionState::Cancelled);
    assert_eq!(names(&finished), [("4-d", true), ("3-c", false)]);
    assert_eq!(std::fs::read(site.layout().current().join("app.txt")).unwrap(), b"4-d");
    let told = text(&folder, Stream::Notice);
    assert!(told.contains("prune: removed 2-b") && !told.contains("removed 1-a"), "{told}");
    assert!(told.contains("; current is 4-d"), "{told}");
    let half_done = || std::fs::read_dir(site.layout().releases()).unwrap().count();
    assert_eq!(half_done(), 3);
    assert_eq!(site.run(vec![switch, prune]).reason, None);
    assert_eq!(half_done(), 2);
}

#[test]
fn while_it_asks_for_health_and_between_two_questions() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let hangs = Probe::Command { content: "sleep 1000".to_owned() };
    for (probe, successes) in [(hangs, 1), (Probe::Tcp { address }, 2)] {
        let bench = Bench::new();
        let (interval_ms, timeout_ms, retries) = (50_000, 50_000, 5);
        let health = Step::Health { probe, interval_ms, timeout_ms, retries, successes, running_user: None };
        let folder = bench.accept(&entry(vec![bash("post_exec", "true"), health, bash("last", "true")]));
        check_stopped_at(&cancelled_in(&folder, "health"), 1);
    }
}

#[test]
fn a_second_one_changes_nothing() {
    let bench = Bench::new();
    let hook = "trap 'echo told' TERM; echo up; while :; do sleep 0.05; done";
    let mut order = entry(vec![bash("pre_exec", hook)]);
    order.kill_grace_ms = 2_000;
    let folder = bench.accept(&order);
    let mut supervisor = start(&folder);
    wait_until("the hook starts", || text(&folder, Stream::Output) == "up\n");
    folder.write_cancel(&note("cancelled by ada")).unwrap();
    tell(&folder, Signal::SIGTERM);
    wait_until("it is told", || text(&folder, Stream::Output).contains("told"));
    folder.write_cancel(&note("cancelled by bob")).unwrap();
    tell(&folder, Signal::SIGTERM);
    assert!(supervisor.wait().unwrap().success());
    let finished = folder.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
}

#[test]
fn after_its_end_it_stays_as_it_was() {
    let bench = Bench::new();
    let (finished, folder) = bench.run(&entry(vec![bash("pre_exec", "true")]));
    folder.write_cancel(&note("too late")).unwrap();
    supervise(&folder);
    assert_eq!(finished.state, ExecutionState::Succeeded);
    assert_eq!(folder.status().unwrap(), Some(finished));
}

/// A host whose disk takes no note: whoever was told to end says that, and blames nobody else.
#[tokio::test]
async fn without_a_note_it_ends_all_the_same() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let cancel = |id: &str| {
        let reason = "cancelled by ada".to_owned();
        ToAgent::Cancel { execution_id: id.to_owned(), attempt: 1, reason, timed_out: false }
    };
    let folder = |id: &str| Folder::at(&bench.data_dir().join("spool").join(format!("{id}.1")));
    let spoil = |id: &str| std::fs::create_dir(folder(id).path().join("cancel")).unwrap();

    let id = execution_id();
    peer.send(&run(server.order(&id, &entry(vec![bash("pre_exec", "echo up; sleep 100")]), 60_000))).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |so_far| so_far.text() == "up\n").await);
    spoil(&id);
    peer.send(&cancel(&id)).await;
    assert!(gathered.gather(&mut peer, |_| false).await);
    let finished = gathered.finished.unwrap();
    assert_eq!(finished.state, ExecutionState::Cancelled);
    assert!(finished.reason.as_ref().unwrap().contains("could not write down"), "{:?}", finished.reason);

    // One that waits is not begun for want of a note.
    let id = execution_id();
    let fetch = Step::Fetch { digest: Digest::of(b"never"), size_bytes: 5, index: None };
    peer.send(&run(server.order(&id, &entry(vec![fetch, bash("pre_exec", "echo no")]), 60_000))).await;
    let mut gathered = Gathered::default();
    fetch_request(&mut peer, &mut gathered, 0).await;
    spoil(&id);
    peer.send(&cancel(&id)).await;
    finish(&mut peer, &mut gathered).await;
    assert_eq!(gathered.text(), "");
    let finished = gathered.finished.unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
    assert_eq!(finished.steps[1].state, StepState::Skipped, "{finished:?}");
}
