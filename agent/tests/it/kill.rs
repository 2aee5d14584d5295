//! Ends that are forced: timeouts, cancels, and what becomes of the processes.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use drover_agent::spool::{CancelNote, Folder, Standing, Started};
use drover_agent::supervise::processes::cgroups_usable;
use drover_shared::message::Finished;
use drover_shared::order::{Entry, Step};
use drover_shared::record::Stream;
use drover_shared::words::{ExecutionState, StepState};

use crate::bench::{
    Bench, PROGRAM, bash, command, entry, is_root, pause, process_lives, start, supervise, text, wait_until,
};

#[test]
fn a_timeout_ends_the_whole_tree() {
    let mut bench = Bench::new();
    bench.timeout_ms = 3_000;
    let folder = bench.accept(&stubborn(&bench));
    supervise(&folder);
    let finished = check_stubborn(&bench, &folder);
    assert_eq!(finished.processes.certain, cgroups_usable());
}

/// The step's own time runs out long before the execution's; an earlier one's does not count for it.
#[test]
fn a_step_that_takes_longer_than_it_may_ends_with_its_tree_and_nothing_follows() {
    let bench = Bench::new();
    let stubborn = stubborn(&bench).steps;
    let mut steps = vec![bash("global_pre_exec", "sleep 0.1"), stubborn[0].clone(), stubborn[1].clone()];
    for (step, limit) in steps.iter_mut().zip([50_000, 3_000]) {
        let Step::Script { timeout_ms, .. } = step else { panic!("a script") };
        *timeout_ms = Some(limit);
    }
    let (finished, folder) = bench.run(&entry(steps));
    check_ended(&bench, &finished);
    let reason = "the time of pre_exec (3 s) ran out";
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::TimedOut, Some(reason)));
    assert_eq!(finished.steps[0].state, StepState::Succeeded);
    assert_eq!(finished.steps[1].error, Some(format!("stopped: {reason}")));
    assert_eq!(finished.steps[2].state, StepState::Skipped);
    assert!(text(&folder, Stream::Notice).contains(&format!("pre_exec stopped: {reason}")));
}

#[test]
fn a_step_within_its_time_is_let_go_on() {
    let bench = Bench::new();
    let mut steps = vec![bash("pre_exec", "true"), bash("post_exec", "sleep 1.2")];
    let Step::Script { timeout_ms, .. } = &mut steps[0] else { panic!("a script") };
    *timeout_ms = Some(1_000);
    let (finished, _) = bench.run(&entry(steps));
    assert_eq!((finished.state, finished.reason), (ExecutionState::Succeeded, None));
}

#[test]
fn without_a_cgroup_the_whole_tree_is_ended_too() {
    let mut bench = Bench::new();
    bench.timeout_ms = 3_000;
    let folder = bench.accept(&stubborn(&bench));
    let mut supervisor = command(&folder);
    let mut certain = cgroups_usable();
    if is_root() {
        // Another account may write to no cgroup of root's.
        let program = bench.path("drover-agent");
        std::fs::copy(PROGRAM, &program).unwrap();
        let given = Command::new("chown").args(["-R", "65534:65534"]).arg(bench.folder.path()).status().unwrap();
        assert!(given.success());
        supervisor = Command::new(program);
        supervisor.arg("supervise").arg(folder.path()).uid(65_534).gid(65_534).current_dir("/");
        certain = false;
    }
    assert!(supervisor.status().unwrap().success());
    let finished = check_stubborn(&bench, &folder);
    assert_eq!(finished.processes.certain, certain);
}

/// A hook with a child in another session and one that ignores TERM.
fn stubborn(bench: &Bench) -> Entry {
    let content = format!(
        "echo $$ >> {0}; setsid sleep 100 & echo $! >> {0}; (trap '' TERM; echo $BASHPID >> {0}; while :; do sleep 0.05; done) & sleep 100",
        bench.path("pids").display()
    );
    entry(vec![bash("pre_exec", &content), bash("post_exec", "echo no")])
}

fn check_stubborn(bench: &Bench, folder: &Folder) -> Finished {
    let finished = folder.status().unwrap().unwrap();
    assert_eq!(finished.state, ExecutionState::TimedOut);
    assert_eq!(finished.reason.as_deref(), Some("the time allowed (3 s) ran out"));
    check_ended(bench, &finished);
    assert_eq!(finished.steps[1].state, StepState::Skipped);
    assert!(text(folder, Stream::Notice).contains("stopped: the time allowed (3 s) ran out"));
    finished
}

/// All of the stubborn tree is gone.
fn check_ended(bench: &Bench, finished: &Finished) {
    let pids = std::fs::read_to_string(bench.path("pids")).unwrap();
    assert_eq!(pids.lines().count(), 3);
    for pid in pids.lines() {
        assert!(!process_lives(pid), "{pid} lives");
    }
    assert!(finished.processes.ended >= 4, "{:?}", finished.processes);
    assert!(finished.processes.survivors.is_empty());
}

#[test]
fn a_cancel_note_and_a_signal_end_the_execution() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![bash("pre_exec", "echo up; sleep 100")]));
    let mut child = start(&folder);
    wait_until("the hook starts", || text(&folder, Stream::Output) == "up\n");
    folder.write_cancel(&CancelNote { reason: "cancelled by ada".to_owned(), timed_out: false }).unwrap();
    let pid = nix::unistd::Pid::from_raw(folder.supervisor().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    let finished = folder.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Cancelled, Some("cancelled by ada")));
    assert!(finished.processes.ended >= 1);
}

#[test]
fn a_cancel_before_the_start_starts_nothing() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![bash("pre_exec", "echo up")]));
    folder.write_cancel(&CancelNote { reason: "too late".to_owned(), timed_out: true }).unwrap();
    supervise(&folder);
    let finished = folder.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.steps[0].state), (ExecutionState::TimedOut, StepState::Skipped));
    assert_eq!(text(&folder, Stream::Output), "");
}

#[test]
fn a_service_that_a_hook_started_lives_on() {
    let bench = Bench::new();
    let content = format!("setsid sleep 100 >/dev/null 2>&1 & echo $! > {}", bench.path("pid").display());
    let (finished, folder) = bench.run(&entry(vec![bash("post_exec", &content)]));
    assert_eq!(finished.state, ExecutionState::Succeeded);
    assert!(finished.processes.left_running);
    let pid = std::fs::read_to_string(bench.path("pid")).unwrap();
    assert!(process_lives(pid.trim()));
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    // Its cgroup is remembered, and removed once it is empty.
    let cgroup = folder.started().unwrap().unwrap().cgroup;
    folder.remove().unwrap();
    let spool = drover_agent::spool::Spool::open(&bench.data_dir()).unwrap();
    wait_until("the cgroup is gone", || {
        spool.remove_cgroups();
        !cgroup.as_ref().is_some_and(|path| path.is_dir())
    });
}

#[test]
fn a_child_that_holds_the_output_is_waited_for_briefly() {
    let bench = Bench::new();
    let content = format!("sleep 100 & echo $! > {}; echo out", bench.path("pid").display());
    let (finished, folder) = bench.run(&entry(vec![bash("pre_exec", &content), bash("post_exec", "echo next")]));
    assert_eq!(finished.state, ExecutionState::Succeeded);
    assert!(finished.processes.left_running);
    assert_eq!(text(&folder, Stream::Output), "out\nnext\n");
    let pid = std::fs::read_to_string(bench.path("pid")).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_killed_supervisor_leaves_a_lost_execution() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![bash("pre_exec", "echo up; sleep 100")]));
    let mut child = start(&folder);
    wait_until("the hook starts", || text(&folder, Stream::Output) == "up\n");
    assert!(matches!(folder.standing().unwrap(), Standing::Running));
    child.kill().unwrap();
    child.wait().unwrap();
    let Standing::Lost(started) = folder.standing().unwrap() else { panic!("not lost") };
    assert_eq!(started.boot_id, drover_agent::spool::boot_id());
    let key = folder.key().unwrap();
    let verdict = drover_agent::supervise::processes::Tree::orphaned(&started, &key).end(100, &mut pause);
    assert!(verdict.ended >= 1, "{verdict:?}");
    supervise(&folder);
    assert!(folder.status().unwrap().is_none(), "a lost execution must not start again");
}

#[test]
fn a_second_supervisor_does_nothing() {
    let bench = Bench::new();
    let folder = bench.accept(&entry(vec![bash("pre_exec", "echo once; sleep 1")]));
    let mut first = start(&folder);
    wait_until("the hook starts", || text(&folder, Stream::Output) == "once\n");
    assert!(command(&folder).status().unwrap().success());
    assert!(first.wait().unwrap().success());
    supervise(&folder);
    assert_eq!(text(&folder, Stream::Output), "once\n");
}

#[test]
fn without_cgroups_the_walk_through_proc_finds_them_all() {
    let bench = Bench::new();
    let folder = bench
        .accept(&entry(vec![bash("pre_exec", "setsid sleep 100 & setsid bash -c 'sleep 100 & wait' & sleep 100")]));
    let tree = Command::new("bash")
        .args(["-c", "setsid sleep 100 & sleep 100 & wait"])
        .env("DROVER_EXECUTION_ID", folder.key().unwrap().execution_id)
        .env("DROVER_ATTEMPT", "1")
        .spawn();
    let mut tree_child = tree.unwrap();
    let found = drover_agent::supervise::processes::Tree::orphaned(&Started::default(), &folder.key().unwrap());
    wait_until("three processes run", || found.count() == 3);
    let verdict = found.end(200, &mut |wait| {
        let _ = tree_child.try_wait();
        pause(wait);
    });
    assert_eq!((verdict.ended, verdict.certain, verdict.survivors.len()), (3, false, 0));
}
