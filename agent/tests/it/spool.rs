//! The spool where the disk takes no more: a device that is always full, and files that may not grow.

use std::process::Command;

use drover_agent::spool::{Accepted, CancelNote, Folder, Key, Spool, Standing, Started};
use drover_shared::Digest;
use drover_shared::message::{StepOutcome, ToServer};
use drover_shared::order::Step;
use drover_shared::record::Stream;
use drover_shared::words::{ExecutionState, StepState};

use crate::bench::{Bench, PROGRAM, bash, entry, execution_id, supervise, text};
use crate::run::Gathered;
use crate::server::{Server, agent_under, run};

/// Runs what follows with files of at most so many bytes.
pub(crate) fn limited(bytes: u64) -> [String; 3] {
    ["sh".to_owned(), "-c".to_owned(), format!("ulimit -f {} && exec \"$0\" \"$@\"", bytes / 512)]
}

#[test]
fn a_full_disk_fails_the_step_with_that_reason() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![bash("pre_exec", "echo no"), bash("post_exec", "echo no")]));
    std::fs::remove_file(folder.log()).unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.log()).unwrap();
    supervise(&folder);
    let finished = folder.status().unwrap().unwrap();
    assert_eq!(finished.state, ExecutionState::Failed);
    assert_eq!(
        finished.steps.iter().map(|step| step.state).collect::<Vec<_>>(),
        [StepState::Failed, StepState::Skipped]
    );
    assert_eq!(finished.reason.as_deref(), Some("pre_exec its output cannot be kept: the disk is full"));
}

#[test]
fn output_that_cannot_be_kept_ends_the_hook() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![bash("pre_exec", "sleep 100 & head -c 4000000 /dev/zero; sleep 100")]));
    let [shell, option, limit] = limited(1 << 20);
    let status = Command::new(shell).args([option, limit]).arg(PROGRAM).arg("supervise").arg(folder.path()).status();
    assert!(status.unwrap().success());
    let finished = folder.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.steps[0].state), (ExecutionState::Failed, StepState::Failed));
    let reason = finished.reason.unwrap();
    assert!(reason.contains("its output cannot be kept: the file would be larger than this system allows"), "{reason}");
    assert!(finished.processes.ended >= 1);
    assert!(finished.processes.survivors.is_empty());
}

/// Where the mark of a start cannot be kept no hook may run: here because it leads into a folder that is not there.
#[test]
fn what_keeps_a_supervisor_from_starting_is_the_outcome() {
    let bench = Bench::new();
    let hook = bash("pre_exec", &format!("touch {}", bench.path("ran").display()));
    let block = |folder: &Folder| {
        std::fs::remove_file(folder.path().join("started")).unwrap();
        std::os::unix::fs::symlink(bench.path("gone/started"), folder.path().join("started")).unwrap();
    };
    let folder = bench.accept(&entry(vec![hook.clone()]));
    block(&folder);
    supervise(&folder);
    let finished = folder.status().unwrap().expect("an outcome");
    assert_eq!((finished.state, finished.steps[0].state), (ExecutionState::Failed, StepState::Skipped));
    let reason = finished.reason.unwrap();
    assert_eq!(reason, "nothing was started: No such file or directory (os error 2)");
    assert!(text(&folder, Stream::Notice).contains(&reason));
    assert_eq!(finished.log_length, std::fs::metadata(folder.log()).unwrap().len());

    // What is cancelled needs no mark.
    let folder = bench.accept(&entry(vec![hook]));
    block(&folder);
    folder.write_cancel(&CancelNote { reason: "cancelled by ada".to_owned(), timed_out: false }).unwrap();
    supervise(&folder);
    let finished = folder.status().unwrap().expect("an outcome");
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
    assert!(!bench.path("ran").exists());
}

/// Mounts a small file system of its own, copies a data directory there, fills it up, supervises, and copies back.
const ON_A_FULL_DISK: &str = r#"
set -e
mkdir "$1/disk"
mount -t tmpfs -o size=1m none "$1/disk"
cp -a --sparse=never "$1/data" "$1/disk/data"
dd if=/dev/zero of="$1/disk/rest" bs=4k 2> "$1/filled" && exit 10
"$2" supervise "$1/disk/data/spool/$3" || code=$?
rm "$1/disk/rest"
cp -a "$1/disk/data" "$1/after"
exit $code
"#;

/// As above on a disk that took the order and then took no more, where this machine lets a test have such a disk.
#[test]
fn a_disk_that_is_full_when_the_supervisor_starts_is_the_outcome() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![bash("pre_exec", &format!("touch {}", bench.path("ran").display()))]));
    let own_disk = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(bench.folder.path());
        command.arg(PROGRAM).arg(folder.path().file_name().unwrap());
        command.output()
    };
    if !own_disk("mount -t tmpfs none /mnt").is_ok_and(|output| output.status.success()) {
        return;
    }
    let output = own_disk(ON_A_FULL_DISK).unwrap();
    assert!(output.status.success(), "{output:?}");
    let after = bench.path("after").join("spool").join(folder.path().file_name().unwrap());
    let finished = Folder::at(&after).status().unwrap().expect("an outcome");
    assert_eq!((finished.state, finished.steps[0].state), (ExecutionState::Failed, StepState::Skipped));
    assert_eq!(finished.reason.as_deref(), Some("nothing was started: the disk is full"));
    assert!(!bench.path("ran").exists());
}

/// Without its secrets a hook cannot start; what made it pointless before is the reason all the same.
#[test]
fn a_failed_fetch_is_the_reason_although_the_secrets_are_gone() {
    let bench = Bench::new();
    let fetch = Step::Fetch { digest: Digest::of(b"x"), size_bytes: 1, index: None };
    let mut entry = entry(vec![fetch, bash("pre_exec", "echo {{ secret.word }}")]);
    entry.secrets = vec!["word".to_owned()];
    let folder = bench.accept(&entry);
    let outcome = StepOutcome {
        name: "fetch".to_owned(),
        state: StepState::Failed,
        exit_code: None,
        signal: None,
        error: Some("the disk is full".to_owned()),
        started_ms: None,
        duration_ms: None,
        log_start: 0,
        log_end: 0,
    };
    folder.write_fetched(&[(0, outcome)]).unwrap();
    supervise(&folder);
    let finished = folder.status().unwrap().expect("an outcome");
    assert_eq!(finished.state, ExecutionState::Failed);
    assert_eq!(finished.reason.as_deref(), Some("fetch: the disk is full"));
}

/// After a loss of power the mark of a start may be gone. An order that was going to start at once is called lost then,
/// and one that waited for something is started.
#[test]
fn after_a_loss_of_power_nothing_starts_twice() {
    let bench = Bench::new();
    let accepted = bench.accept(&entry(vec![])).accepted().unwrap();
    let spool = Spool::open(&bench.data_dir()).unwrap();
    for (at_once, other_boot) in [(true, true), (true, false), (false, true), (false, false)] {
        let boot_id = if other_boot { "another boot".to_owned() } else { accepted.boot_id.clone() };
        let accepted = Accepted { at_once, boot_id, ..accepted.clone() };
        let folder = spool.accept(&Key::new(&execution_id(), 1).unwrap(), &accepted).unwrap();
        let lost = matches!(folder.standing().unwrap(), Standing::Lost(_));
        assert_eq!(lost, at_once && other_boot, "{at_once} {other_boot}");
    }
}

/// A host without descriptors or locks to spare says nothing of its supervisors.
#[test]
fn a_lock_that_cannot_be_looked_at_says_nothing_about_its_supervisor() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![]));
    folder.write_started(&Started { boot_id: drover_agent::spool::boot_id(), ..Started::default() }, true).unwrap();
    std::fs::remove_file(folder.path().join("lock")).unwrap();
    std::fs::create_dir(folder.path().join("lock")).unwrap();
    let standing = folder.standing();
    assert!(standing.is_err(), "{standing:?}");
}

/// Nobody knows how it ended, and that is what is said of it.
#[test]
fn a_damaged_outcome_is_none() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![]));
    folder.write_started(&Started { boot_id: drover_agent::spool::boot_id(), ..Started::default() }, true).unwrap();
    std::fs::write(folder.path().join("status.json"), "{").unwrap();
    let standing = folder.standing();
    assert!(matches!(standing, Ok(Standing::Lost(_))), "{standing:?}");
}

#[tokio::test]
async fn an_order_that_cannot_be_kept_is_rejected_and_the_agent_goes_on() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let mut limited_agent = agent_under(&limited(32 * 1024), &bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    for _ in 0..2 {
        let hook = bash("pre_exec", &format!("touch {}", bench.path("ran").display()));
        let order = server.order(&execution_id(), &entry(vec![hook]), 10_000);
        peer.send(&run(order)).await;
        let ToServer::Rejected { reason, .. } = peer.message().await else { panic!("not rejected") };
        assert_eq!(reason, "the order cannot be kept: the file would be larger than this system allows");
        assert!(std::fs::read_dir(bench.data_dir().join("spool")).unwrap().next().is_none());
    }
    assert!(!bench.path("ran").exists());

    // Nothing of it stands in the way once there is room.
    limited_agent.kill().await.unwrap();
    drop(peer);
    let _agent = crate::server::agent(&bench.data_dir(), None);
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let order = server.order(&execution_id(), &entry(vec![bash("pre_exec", "echo room")]), 10_000);
    peer.send(&run(order)).await;
    let mut gathered = Gathered::default();
    assert!(gathered.gather(&mut peer, |_| false).await);
    assert_eq!(gathered.text(), "room\n");
}

/// A folder that was forgotten becomes another execution's, and has nothing of the first one in it.
#[test]
fn a_forgotten_folder_is_used_again_empty() {
    let bench = Bench::new();
    let first = bench.accept(&entry(vec![bash("pre_exec", "echo first")]));
    supervise(&first);
    let spool = Spool::open(&bench.data_dir()).unwrap();
    let spare = spool.forget(&first).unwrap().expect("there is room");
    assert!(!first.path().exists(), "the execution is forgotten at once");
    assert!(spool.list().unwrap().is_empty());
    assert!(!spare.exists(), "what an earlier agent left is removed");

    let second = bench.accept(&entry(vec![bash("pre_exec", "echo second; exit 3")]));
    supervise(&second);
    spool.recycle(spool.forget(&second).unwrap().expect("there is room"));
    let accepted = bench.accept(&entry(vec![bash("pre_exec", "echo third")])).accepted().unwrap();
    let key = Key::new(&execution_id(), 1).unwrap();
    let third = spool.accept(&key, &accepted).unwrap();
    assert!(!third.path().with_file_name("spare-1").exists(), "the spare folder is the execution's now");
    assert!(matches!(third.standing().unwrap(), Standing::Waiting), "nothing is known of it yet");
    assert_eq!(std::fs::metadata(third.log()).unwrap().len(), 0);
    supervise(&third);
    assert_eq!(third.status().unwrap().unwrap().state, ExecutionState::Succeeded);
    assert_eq!(text(&third, Stream::Output), "third\n");
    assert!(spool.accept(&key, &accepted).is_err(), "an execution has its folder once");
}
