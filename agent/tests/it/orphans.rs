//! What a dead supervisor left where there is no cgroup: everything that can be told from others, and nobody else.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use drover_agent::spool::{CancelNote, Folder, Standing, Started};
use drover_agent::supervise::processes::{Session, Tree, cgroups_usable, forks};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::{Bench, bash, entry, is_root, pause, process_lives, start, wait_until};

/// Processes that a hook started in its several ways, each with a line of its own in a file.
fn pids(bench: &Bench) -> Vec<String> {
    let text = std::fs::read_to_string(bench.path("pids")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The supervisor is killed once the hook has started so many.
fn killed(bench: &Bench, hook: &str, count: usize) -> (Folder, Started) {
    let folder = bench.accept(&entry(vec![bash("pre_exec", hook)]));
    let mut supervisor = start(&folder);
    wait_until("the hook has started them", || pids(bench).len() == count);
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    let Standing::Lost(started) = folder.standing().unwrap() else { panic!("not lost") };
    assert!(started.session.is_some_and(|session| session.id == i32::try_from(supervisor.id()).unwrap()));
    (folder, started)
}

/// Without a mark in its environment, out of the session, forked twice, or without anything of its script's left open.
#[test]
fn whoever_hides_is_found_by_the_text_of_its_script_or_by_its_session() {
    let bench = Bench::new();
    let file = bench.path("pids").display().to_string();
    let note = format!("echo $$ >> {file}; exec sleep 1000");
    let hook = format!(
        "env -i bash -c '{note}' &\n\
         setsid env -i bash -c '{note}' &\n\
         (setsid env -i bash -c '{note}' >/dev/null 2>&1 </dev/null &)\n\
         python3 -c 'import subprocess\n\
nothing = subprocess.DEVNULL\n\
subprocess.Popen([\"bash\", \"-c\", \"{note}\"], env={{}}, close_fds=True, stdin=nothing, stdout=nothing, stderr=nothing)'\n\
         trap '' TERM\nwhile :; do sleep 1; done"
    );
    let (folder, started) = killed(&bench, &hook, 4);
    let without_cgroup = Started { cgroup: None, ..started.clone() };
    let verdict = Tree::orphaned(&without_cgroup, &folder.key().unwrap()).end(200, &mut pause);
    Tree::orphaned(&started, &folder.key().unwrap()).close();
    assert!(verdict.ended >= 5 && verdict.survivors.is_empty() && !verdict.certain, "{verdict:?}");
    for pid in pids(&bench) {
        assert!(!process_lives(&pid), "{pid} lives");
    }
}

/// As `cgexec`, `systemd-run --scope` and a session that PAM makes do it.
#[test]
fn whoever_was_moved_to_another_cgroup_ends_as_well_and_the_verdict_does_not_call_itself_certain() {
    if !is_root() || !cgroups_usable() {
        return eprintln!("SKIPPED: no processes can be moved between cgroups (v2) here");
    }
    for supervisor_lives in [true, false] {
        let bench = Bench::new();
        let elsewhere = Elsewhere::make(&bench);
        let hook = format!(
            "(setsid bash -c 'echo 0 > {}/cgroup.procs; echo $$ >> {}; exec sleep 1000' &)\n\
             trap '' TERM\nwhile :; do sleep 1; done",
            elsewhere.0.display(),
            bench.path("pids").display()
        );
        let verdict = if supervisor_lives {
            let mut entry = entry(vec![bash("pre_exec", &hook)]);
            entry.kill_grace_ms = 200;
            let folder = bench.accept(&entry);
            let mut supervisor = start(&folder);
            wait_until("it was moved", || pids(&bench).len() == 1);
            let note = CancelNote { reason: "cancelled by ada".to_owned(), timed_out: false };
            folder.write_cancel(&note).unwrap();
            kill(Pid::from_raw(i32::try_from(supervisor.id()).unwrap()), Signal::SIGTERM).unwrap();
            assert!(supervisor.wait().unwrap().success());
            folder.status().unwrap().unwrap().processes
        } else {
            let (folder, started) = killed(&bench, &hook, 1);
            assert!(started.cgroup.is_some());
            Tree::orphaned(&started, &folder.key().unwrap()).end(200, &mut pause)
        };
        assert!(!process_lives(&pids(&bench)[0]), "it lives, supervised: {supervisor_lives}");
        assert!(verdict.ended >= 3 && verdict.survivors.is_empty() && !verdict.certain, "{verdict:?}");
    }
}

/// A cgroup that no execution has.
struct Elsewhere(PathBuf);

impl Elsewhere {
    fn make(bench: &Bench) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).unwrap().split(' ').nth(4).unwrap();
        let name = format!("elsewhere-{}", bench.folder.path().file_name().unwrap().display());
        let folder = PathBuf::from(mount).join(name);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A leader of a session with a member, neither of which any execution knows.
fn strangers() -> (Child, i32, i32) {
    let script = "sleep 1000 & echo $$ $!; exec sleep 1000";
    let mut leader =
        Command::new("setsid").args(["bash", "-c", script]).env_clear().stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(leader.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let numbers: Vec<i32> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let member = format!("/proc/{}/comm", numbers[1]);
    wait_until("the member runs", || std::fs::read_to_string(&member).unwrap() == "sleep\n");
    (leader, numbers[0], numbers[1])
}

#[test]
fn a_session_whose_number_came_round_again_is_left_alone() {
    let bench = Bench::new();
    let key = bench.accept(&entry(vec![])).key().unwrap();
    let (mut leader, session, member) = strangers();
    let found = |forks: Option<u64>| {
        let session = Some(Session { id: session, forks });
        Tree::orphaned(&Started { session, ..Started::default() }, &key).count()
    };
    assert_eq!(found(forks()), 0, "somebody leads it: that is not the dead supervisor");
    kill(Pid::from_raw(session), Signal::SIGKILL).unwrap();
    leader.wait().unwrap();
    assert!(process_lives(&member.to_string()));
    assert_eq!(found(Some(u64::MAX)), 0, "nobody knows how many processes were made since then");
    assert_eq!(found(None), 0, "nobody counts them");
    assert_eq!(found(forks()), 1, "it cannot be another one yet");
    kill(Pid::from_raw(member), Signal::SIGKILL).unwrap();
}

/// Who may not end a process says which it is.
#[test]
fn what_cannot_be_ended_is_listed_with_its_state() {
    if !is_root() {
        return eprintln!("SKIPPED: only root can start what another account may not end");
    }
    let bench = Bench::new();
    let key = bench.accept(&entry(vec![])).key().unwrap();
    let (mut leader, session, member) = strangers();
    kill(Pid::from_raw(session), Signal::SIGKILL).unwrap();
    leader.wait().unwrap();
    let started = Started { session: Some(Session { id: session, forks: forks() }), ..Started::default() };
    let ending = std::thread::spawn(move || {
        become_somebody();
        Tree::orphaned(&started, &key).end(0, &mut pause)
    });
    let verdict = ending.join().unwrap();
    assert_eq!((verdict.ended, verdict.survivors_total), (0, 1));
    assert_eq!(verdict.survivors, [format!("{member} sleep (S)")]);
    assert!(process_lives(&member.to_string()));
    kill(Pid::from_raw(member), Signal::SIGKILL).unwrap();
}

/// This thread is another account from now on, and no other thread is.
#[expect(unsafe_code, reason = "the safe call changes the account of the whole process")]
fn become_somebody() {
    // SAFETY: it takes three numbers.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
    assert_eq!(changed, 0);
}
