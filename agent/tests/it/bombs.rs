//! Scripts that make processes faster than anybody ends them. Each makes a bounded number, and ends by itself.

use drover_agent::spool::{Folder, Started};
use drover_agent::supervise::PIDS_MAX;
use drover_agent::supervise::processes::{Tree, pids_limited};
use drover_shared::message::Finished;
use drover_shared::order::Step;
use drover_shared::record::Stream;
use drover_shared::words::{ExecutionState, Language};

use crate::bench::{Bench, bash, command, entry, is_root, script, text};

/// 127 shells, none of which cares for TERM; a minute at most.
const BUSHY: &str = "trap '' TERM\n\
    grow() { if [ $1 -gt 0 ]; then grow $(($1 - 1)) & grow $(($1 - 1)) & wait; else sleep 60; fi; }\n\
    grow 6 & echo up; wait";

/// Four processes, each of which makes another one and ends, again and again, for 20 s at most.
const FLEEING: &str = "import os, signal, sys, time\n\
    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
    print('up', flush=True)\n\
    end = time.monotonic() + 20\n\
    for _ in range(4):\n\
    \x20if os.fork() == 0:\n\
    \x20 while time.monotonic() < end:\n\
    \x20  if os.fork(): os._exit(0)\n\
    \x20  time.sleep(0.001)\n\
    \x20 os._exit(0)\n\
    time.sleep(20)\n";

fn check(folder: &Folder, finished: &Finished) {
    assert_eq!(finished.state, ExecutionState::TimedOut, "{finished:?}");
    assert_eq!(finished.processes.survivors_total, 0, "{finished:?}");
    assert_eq!(text(folder, Stream::Output), "up\n");
    let left = Tree::orphaned(&Started::default(), &folder.key().unwrap());
    assert_eq!(left.count(), 0, "processes are left");
}

/// Under a supervisor with a cgroup where there is one, and under one that may not make any.
fn check_both(step: Step) {
    let mut bench = Bench::new();
    bench.timeout_ms = 5_000;
    let order = entry(vec![step]);
    let (finished, folder) = bench.run(&order);
    check(&folder, &finished);
    let (finished, folder) = bench.run_without_root(&order);
    check(&folder, &finished);
    assert!(!finished.processes.certain || !is_root());
}

#[test]
fn many_that_ignore_their_end_are_ended() {
    check_both(bash("pre_exec", BUSHY));
}

#[test]
fn those_that_flee_are_ended() {
    check_both(script("pre_exec", Language::Python, FLEEING, None));
}

#[test]
fn a_script_has_no_more_processes_than_it_may() {
    if !pids_limited() {
        return eprintln!("SKIPPED: the kernel does not count the processes of a cgroup (v2) here");
    }
    let mut bench = Bench::new();
    bench.timeout_ms = 5_000;
    let folder = bench.accept(&entry(vec![bash("pre_exec", BUSHY)]));
    assert!(command(&folder).env(PIDS_MAX, "32").status().unwrap().success());
    let finished = folder.status().unwrap().unwrap();
    assert!(text(&folder, Stream::Error).contains("fork"), "nothing was refused");
    assert!(finished.processes.ended <= 32 && finished.processes.certain, "{finished:?}");
    check(&folder, &finished);
}
