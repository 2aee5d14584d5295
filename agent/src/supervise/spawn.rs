//! Starting a script's process: the only place with `unsafe` code.
//!
//! The process is born inside the cgroup of its execution: moving one that lives has the kernel wait for a grace period
//! of several milliseconds. Where the kernel does not do that (before 5.7, or in a sandbox), it is moved. Invariant:
//! between birth and exec only system calls are made; whatever needs memory or a name service is ready before.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, c_char};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use crate::accounts::Account;
use crate::supervise::processes::Tree;

// The C library's own functions tell every thread that it knows of to change its identity, and in the new process it
// knows of threads that are not there. On old architectures the plain numbers are those of 16-bit ids.
#[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
use libc::{SYS_setgid as SET_GID, SYS_setgroups as SET_GROUPS, SYS_setuid as SET_UID};
#[cfg(any(target_arch = "x86", target_arch = "arm"))]
use libc::{SYS_setgid32 as SET_GID, SYS_setgroups32 as SET_GROUPS, SYS_setuid32 as SET_UID};

/// Of `clone3`: the new process is a member of the cgroup whose folder is given.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Exit status of a process that could not become the program; its parent knows why.
const NOT_STARTED: i32 = 127;

/// What is to be started, and as whom.
pub(crate) struct Program<'a> {
    pub(crate) file: &'a Path,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) folder: &'a Path,
    pub(crate) account: &'a Account,
}

/// A process, and the ends of its pipes.
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) output: File,
    pub(crate) error: File,
}

/// Everything that the new process uses: it must not ask for memory.
struct Prepared {
    file: CString,
    arguments: Texts,
    environment: Texts,
    folder: CString,
    identity: Option<Identity>,
    /// Nothing, and the writing ends of output and error: 0, 1 and 2 of the new process.
    streams: [OwnedFd; 3],
    /// Takes the number of the error of whatever fails; closes when the program runs.
    failed: OwnedFd,
}

struct Identity {
    groups: Vec<libc::gid_t>,
    gid: libc::gid_t,
    uid: libc::uid_t,
}

/// C strings, and the list of their addresses, which ends with a null.
struct Texts {
    _texts: Vec<CString>,
    addresses: Vec<*const c_char>,
}

/// The arguments of `clone3` as the kernel of the flag above knows them.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Starts a program inside the process tree, in a process group of its own, with nothing to read and two pipes.
///
/// # Errors
/// The process cannot be made, or may not become that account or that program.
pub(crate) fn spawn(program: &Program<'_>, tree: &Tree) -> io::Result<Started> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
    let ((output, output_end), (error, error_end), (failure, failed)) = (pipe()?, pipe()?, pipe()?);
    let account = program.account;
    let arguments = [program.file.as_os_str()].into_iter().chain(program.arguments.iter().map(OsStr::new));
    let variables = program.environment.iter().map(|(name, value)| format!("{name}={value}"));
    let prepared = Prepared {
        file: text(program.file.as_os_str())?,
        arguments: Texts::new(arguments.map(text).collect::<io::Result<_>>()?),
        environment: Texts::new(variables.map(|one| text(OsStr::new(&one))).collect::<io::Result<_>>()?),
        folder: text(program.folder.as_os_str())?,
        identity: account.changes.then(|| Identity {
            groups: account.groups.iter().map(|group| group.as_raw()).collect(),
            gid: account.gid.as_raw(),
            uid: account.uid.as_raw(),
        }),
        streams: [File::open("/dev/null")?.into(), output_end, error_end],
        failed,
    };
    let pid = match tree.folder()?.map(|folder| clone_into(folder.as_raw_fd(), &prepared)) {
        Some(Ok(pid)) => pid,
        // Whatever the reason, the older way says whether it can be done at all.
        Some(Err(_)) | None => fork_and_move(tree.door()?.as_ref(), &prepared)?,
    };
    drop(prepared);
    let mut number = [0; 4];
    match File::from(failure).read_exact(&mut number) {
        // The pipe closed with the exec: the program runs.
        Err(closed) if closed.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Started { pid, output: output.into(), error: error.into() })
        }
        read => {
            let _ = waitpid(pid, None);
            read.and(Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number))))
        }
    }
}

fn text(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

impl Texts {
    fn new(texts: Vec<CString>) -> Self {
        let addresses = texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        Self { _texts: texts, addresses }
    }
}

/// Makes the process inside the cgroup whose folder is given.
fn clone_into(folder: RawFd, prepared: &Prepared) -> io::Result<Pid> {
    let arguments = CloneArguments {
        flags: CLONE_INTO_CGROUP,
        exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or_default(),
        cgroup: u64::try_from(folder).unwrap_or_default(),
        ..CloneArguments::default()
    };
    #[expect(unsafe_code, reason = "no library makes a process inside a cgroup")]
    // SAFETY: the arguments live through the call and say their true size. Without CLONE_VM the new process has a copy of
    // this one's memory and one thread, as after fork, and `become_program` is made for that.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) };
    match pid {
        0 => become_program(prepared),
        pid if pid > 0 => Ok(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the process, which then enters through the door, if there is one.
fn fork_and_move(door: Option<&File>, prepared: &Prepared) -> io::Result<Pid> {
    #[expect(unsafe_code, reason = "the new process makes system calls only and allocates nothing")]
    // SAFETY: the new process calls `write` and `become_program`, which is made for that.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => match door.map_or(Ok(1), |door| nix::unistd::write(door, b"0")) {
            Ok(_) => become_program(prepared),
            Err(error) => give_up(prepared, error),
        },
    }
}

/// The rest of the new process's life as this program. System calls only.
fn become_program(prepared: &Prepared) -> ! {
    let error = exec(prepared).err().unwrap_or(Errno::UnknownErrno);
    give_up(prepared, error)
}

fn give_up(prepared: &Prepared, error: Errno) -> ! {
    let _ = nix::unistd::write(&prepared.failed, &(error as i32).to_ne_bytes());
    #[expect(unsafe_code, reason = "nothing that this process inherited may be run or written at its end")]
    // SAFETY: it ends the process.
    unsafe {
        libc::_exit(NOT_STARTED)
    }
}

fn exec(prepared: &Prepared) -> nix::Result<()> {
    let [input, output, error] = &prepared.streams;
    nix::unistd::dup2_stdin(input)?;
    nix::unistd::dup2_stdout(output)?;
    nix::unistd::dup2_stderr(error)?;
    nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    if let Some(Identity { groups, gid, uid }) = &prepared.identity {
        #[expect(unsafe_code, reason = "the safe calls speak to threads that this process does not have")]
        // SAFETY: the list of groups lives through its call and says its true length; the others take numbers.
        unsafe {
            Errno::result(libc::syscall(SET_GROUPS, groups.len(), groups.as_ptr()))?;
            Errno::result(libc::syscall(SET_GID, *gid))?;
            Errno::result(libc::syscall(SET_UID, *uid))?;
        }
    }
    nix::unistd::chdir(prepared.folder.as_c_str())?;
    // What the supervisor reads from its descriptor, and what Rust ignores, must reach the script and its services.
    SigSet::empty().thread_set_mask()?;
    #[expect(unsafe_code, reason = "exec as it is, without a list that is made anew")]
    // SAFETY: the default action is no handler; the strings and their lists live, and each list ends with a null.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(
            prepared.file.as_ptr(),
            prepared.arguments.addresses.as_ptr(),
            prepared.environment.addresses.as_ptr(),
        );
    }
    Err(Errno::last())
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::WaitStatus;

    use super::*;
    use crate::accounts;

    fn bash(script: &str, file: &str, tree: &Tree) -> io::Result<(String, Pid)> {
        let account = accounts::own();
        let program = Program {
            file: Path::new(file),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: BTreeMap::from([("COLOUR".to_owned(), "green".to_owned())]),
            folder: Path::new("/proc"),
            account: &account,
        };
        let mut started = spawn(&program, tree)?;
        let mut text = String::new();
        started.output.read_to_string(&mut text)?;
        Ok((text, started.pid))
    }

    #[test]
    fn a_program_gets_its_environment_folder_group_and_clean_signals() {
        let tree = Tree::prepare(&format!("spawn-{}", std::process::id()), 100);
        let script =
            "echo $COLOUR $PWD; ps -o pgid= -p $$; grep -E 'Sig(Blk|Ign)' /proc/self/status; cat /proc/self/cgroup";
        let (text, pid) = bash(script, "/bin/bash", &tree).unwrap();
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[..2], ["green /proc".to_owned(), pid.to_string()]);
        assert_eq!(lines[2], "SigBlk:\t0000000000000000");
        let ignored = u64::from_str_radix(lines[3].rsplit('\t').next().unwrap(), 16).unwrap();
        assert_eq!(ignored & (1 << (libc::SIGPIPE - 1)), 0, "{text}");
        let own = format!("drover-spawn-{}", std::process::id());
        let inside = lines[4..].iter().any(|line| line.starts_with("0::") && line.ends_with(&own));
        assert_eq!(inside, tree.cgroup().is_some(), "{text}");
        tree.close();
    }

    #[test]
    fn without_the_kernels_help_a_process_is_moved() {
        let tree = Tree::prepare(&format!("move-{}", std::process::id()), 100);
        let prepared = Prepared {
            file: c"/bin/sleep".to_owned(),
            arguments: Texts::new(vec![c"sleep".to_owned(), c"100".to_owned()]),
            environment: Texts::new(Vec::new()),
            folder: c"/".to_owned(),
            identity: None,
            streams: [(); 3].map(|()| File::open("/dev/null").unwrap().into()),
            failed: pipe2(OFlag::O_CLOEXEC).unwrap().1,
        };
        let pid = fork_and_move(tree.door().unwrap().as_ref(), &prepared).unwrap();
        while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() != "sleep\n" {
            std::thread::yield_now();
        }
        assert!(tree.cgroup().is_none() || tree.count() == 1);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        waitpid(pid, None).unwrap();
        tree.close();
    }

    #[test]
    fn what_cannot_be_started_says_why_and_leaves_no_process() {
        let tree = Tree::prepare(&format!("fail-{}", std::process::id()), 100);
        let error = bash("true", "/nowhere/bash", &tree).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = bash("true", "/proc/version", &tree).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        tree.close();
    }
}
