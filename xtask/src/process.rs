//! Child processes: run them, see how they ended, and pass signals on.
//!
//! Invariant: after a signal the child in the foreground is asked to end and nothing new is started, so that the
//! guards of whatever else runs get their turn.

use std::env;
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static FOREGROUND: AtomicI32 = AtomicI32::new(0);

/// From now on SIGINT, SIGTERM and SIGHUP end the child in the foreground in place of this process.
pub fn watch_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::SeqCst);
        let child = FOREGROUND.load(Ordering::SeqCst);
        if child > 0 {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(child), Signal::SIGTERM);
        }
    })
    .context("cannot watch for signals")
}

/// Whether a signal asked this process to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Starts a child that gets this process's signals until it is waited for.
pub fn spawn(command: &mut Command) -> Result<Child> {
    if interrupted() {
        bail!("interrupted");
    }
    let child = command.spawn().with_context(|| format!("cannot start {}", name(command)))?;
    FOREGROUND.store(i32::try_from(child.id()).unwrap_or(0), Ordering::SeqCst);
    Ok(child)
}

/// Waits for the child in the foreground.
pub fn wait(child: &mut Child) -> Result<ExitStatus> {
    let status = child.wait().context("cannot wait for a child process")?;
    FOREGROUND.store(0, Ordering::SeqCst);
    if interrupted() {
        bail!("interrupted");
    }
    Ok(status)
}

/// Runs a command to its end, its output being ours; fails when it does.
pub fn run(command: &mut Command) -> Result<()> {
    let status = wait(&mut spawn(command)?)?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// As [`run`], with this on standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<()> {
    let mut child = spawn(command.stdin(Stdio::piped()))?;
    if let Some(mut to) = child.stdin.take() {
        // A child that does not want it says so by how it ends.
        let _ = to.write_all(input.as_bytes());
    }
    let status = wait(&mut child)?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command to its end and gives what it wrote to standard output; fails when it does, with its errors.
pub fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", name(command)))?;
    if !status.success() {
        bail!("{} ended with {status}: {}", shown(command), String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
}

/// Asks a process to end and insists after `grace`.
pub fn stop(child: &mut Child, first: Signal, grace: Duration) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
    if pid.as_raw() == 0 || matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    // Both may fail only because the process is gone, which is what is wanted.
    let _ = kill(pid, first);
    let ended = until(grace, || matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
    if !ended {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Looks at a condition until it holds; false when `limit` passes first.
pub fn until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The first program of this name in `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// Cargo, in the project's root.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::sources::root());
    // What cargo told this program about itself. Build scripts that read it, as ring's does, would run again each time
    // that somebody calls cargo by hand in between, and half of the dependencies after them.
    let told = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    command
}

/// Folder of the programs that cargo builds: this one is among them.
pub fn bin_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot find this program's own file")?;
    Ok(program.parent().context("this program's file has no folder")?.to_owned())
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
