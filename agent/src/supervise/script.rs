//! Script steps: a rendered text, run by its interpreter as its user, with every byte of its output in the log.
//!
//! Invariant: the script's text is only ever in memory that its own user may read; it is on no command line, in no
//! file with a name, and gone when the script ends, whatever lives on of what it started.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use drover_shared::order::Entry;
use drover_shared::record::Stream;
use drover_shared::secret;
use drover_shared::words::Language;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use zeroize::Zeroizing;

use crate::accounts::{self, Account};
use crate::clock;
use crate::log::LogWriter;
use crate::release;
use crate::supervise::mask::Masker;
use crate::supervise::members;
use crate::supervise::spawn::{self, Program};
use crate::supervise::watch::Watch;
use crate::supervise::{Context, StepEnd};

/// Time that a process which outlives its script may hold the script's output open, in milliseconds.
const DRAIN_MS_MAX: u64 = 2_000;
/// Bytes read from a pipe at once.
const READ_BYTES: usize = 64 * 1024;
/// Longest wait in one poll, in milliseconds.
const POLL_MS_MAX: u64 = 1_000;
/// Used when the agent itself has no `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The script's part of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script<'a> {
    /// Index of the step.
    pub(crate) index: u16,
    /// Name of the step.
    pub(crate) name: &'a str,
    /// Interpreter.
    pub(crate) language: Language,
    /// Rendered text.
    pub(crate) content: &'a str,
    /// Account.
    pub(crate) running_user: Option<&'a str>,
    /// Seconds after which it is ended, with 124 or 137 as its status.
    pub(crate) limit_s: Option<u64>,
    /// Milliseconds after which the whole execution is ended.
    pub(crate) timeout_ms: Option<u64>,
}

/// Runs a script to its end, or until the execution has to stop.
pub(crate) fn run(context: &mut Context, script: Script<'_>) -> StepEnd {
    let (child, mut pump) = match start(context, script) {
        Ok(started) => started,
        Err(error) => return StepEnd::failed(error),
    };
    if let Some(timeout_ms) = script.timeout_ms {
        context.watch.limit(script.name, timeout_ms);
    }
    let end = attend(context, script, child, &mut pump);
    context.watch.lift_limit();
    end
}

/// Stays with a script until it ends.
fn attend(context: &mut Context, script: Script<'_>, child: Pid, pump: &mut Pump) -> StepEnd {
    let exit = loop {
        let wait = context.watch.left_ms().min(POLL_MS_MAX);
        if let Err(error) = pump.turn(&mut context.log, &context.watch, wait) {
            return log_failed(context, pump, &error);
        }
        if let Some(status) = context.watch.reap(child) {
            break status;
        }
        if let Some(stop) = context.watch.stop() {
            context.end_processes(&mut |log, watch, wait| pump.drain(log, watch, wait));
            pump.rest(&mut context.log, &context.watch, 200);
            let _ = pump.finish(&mut context.log);
            return StepEnd::Stopped(stop);
        }
    };
    let until = clock::monotonic_ms() + DRAIN_MS_MAX;
    while pump.open() && clock::monotonic_ms() < until {
        let wait = until.saturating_sub(clock::monotonic_ms()).min(POLL_MS_MAX);
        if let Err(error) = pump.turn(&mut context.log, &context.watch, wait) {
            return log_failed(context, pump, &error);
        }
    }
    if let Err(error) = pump.finish(&mut context.log) {
        return log_failed(context, pump, &error);
    }
    if pump.open() {
        context.verdict.left_running = true;
        let line = format!("{}: a process that outlives the script holds its output open; going on", script.name);
        let _ = context.log.notice(script.index, &line);
    }
    ending(exit)
}

fn start(context: &Context, script: Script<'_>) -> Result<(Pid, Pump), String> {
    let account = accounts::find(script.running_user)?;
    let (interpreter, path) = interpreter(script.language)?;
    let mark = members::mark(&context.statement.execution_id, context.statement.attempt);
    let text = Text::new(&mark, &Zeroizing::new(context.secrets.fill(script.content)))
        .map_err(|error| format!("the script cannot be handed over: {error}"))?;
    let folder = working_folder(&context.entry);
    let text_path = format!("/proc/self/fd/{}", text.0.as_raw_fd());
    let (file, arguments) = match script.limit_s {
        None => (interpreter, vec![text_path]),
        Some(seconds) => {
            let interpreter = interpreter.to_string_lossy().into_owned();
            (found("timeout", &path)?, vec!["--kill-after=1".to_owned(), seconds.to_string(), interpreter, text_path])
        }
    };
    let program = Program {
        file: &file,
        arguments,
        environment: environment(context, script, &account, &path),
        folder: &folder,
        account: &account,
    };
    let started = spawn::spawn(&program, &context.tree)
        .map_err(|error| format!("the script cannot be started as `{}`: {error}", account.name))?;
    let pump = Pump {
        index: script.index,
        output: Some(started.output),
        error: Some(started.error),
        buffer: vec![0; READ_BYTES],
        maskers: context
            .patterns
            .as_ref()
            .map(|patterns| [Masker::new(patterns.clone()), Masker::new(patterns.clone())]),
        _text: text,
    };
    Ok((started.pid, pump))
}

/// The text in a nameless file that the interpreter inherits, and with it all that the script starts: emptied at the
/// end, so that a service which lives on does not hold the values of secrets open.
struct Text(File);

impl Text {
    fn new(name: &str, content: &str) -> io::Result<Self> {
        let mut text = Self(File::from(memfd_create(name, MFdFlags::empty())?));
        text.0.write_all(content.as_bytes())?;
        Ok(text)
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let _ = self.0.set_len(0);
    }
}

fn interpreter(language: Language) -> Result<(PathBuf, String), String> {
    let name = match language {
        Language::Bash => "bash",
        Language::Python => "python3",
    };
    let path = std::env::var("PATH").ok().filter(|path| !path.is_empty()).unwrap_or_else(|| PATH_DEFAULT.to_owned());
    let file = found(name, &path).map_err(|missing| format!("interpreter {missing}"))?;
    Ok((file, path))
}

fn found(name: &str, path: &str) -> Result<PathBuf, String> {
    let found = std::env::split_paths(path).map(|folder| folder.join(name)).find(|file| is_program(file));
    found.ok_or_else(|| format!("`{name}` is not installed on this host"))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.is_absolute() && fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn working_folder(entry: &Entry) -> PathBuf {
    let Some(deploy_path) = entry.deploy_path.as_deref() else { return PathBuf::from("/") };
    let layout = release::Layout::new(deploy_path);
    let folder = layout.folder_of(entry).map(|name| layout.release(&name)).filter(|path| path.is_dir());
    folder.unwrap_or_else(|| if layout.root().is_dir() { layout.root().to_owned() } else { PathBuf::from("/") })
}

fn environment(context: &Context, script: Script<'_>, account: &Account, path: &str) -> BTreeMap<String, String> {
    let (entry, statement) = (&context.entry, &context.statement);
    let mut all = entry.environment.clone();
    let mut set = |name: &str, value: String| drop(all.insert(name.to_owned(), value));
    if !entry.environment.contains_key("PATH") {
        set("PATH", path.to_owned());
    }
    if !entry.environment.contains_key("LANG") {
        set("LANG", "C.UTF-8".to_owned());
    }
    set("HOME", account.home.clone());
    set("USER", account.name.clone());
    set("LOGNAME", account.name.clone());
    set("SHELL", account.shell.clone());
    set("DROVER_ACTION", entry.action.to_string());
    set("DROVER_APPLICATION", entry.application.clone());
    set("DROVER_VERSION", entry.version.clone());
    set("DROVER_HOST", entry.host.clone());
    set("DROVER_TASK_ID", entry.task_id.to_string());
    set("DROVER_EXECUTION_ID", statement.execution_id.clone());
    set("DROVER_ATTEMPT", statement.attempt.to_string());
    set("DROVER_STEP", script.name.to_owned());
    // Another script, which may run as another account, has no business with what this one asks for.
    for name in secret::asked(script.content) {
        if let Some(value) = context.secrets.0.get(&name) {
            set(&secret::variable(&name), value.clone());
        }
    }
    if let Some(instance) = entry.instance_id {
        set("DROVER_INSTANCE_ID", instance.to_string());
    }
    if let Some(deploy_path) = entry.deploy_path.as_deref() {
        let layout = release::Layout::new(deploy_path);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        set("DROVER_DEPLOY_PATH", deploy_path.to_owned());
        set("DROVER_CURRENT_PATH", text(&layout.current()));
        set("DROVER_SHARED_PATH", text(&layout.shared()));
        let new = layout.folder_of(entry);
        if let Some(name) = &new {
            set("DROVER_RELEASE_PATH", text(&layout.release(name)));
        }
        if let Some(name) = layout.previous_of(new.as_deref()) {
            set("DROVER_PREVIOUS_RELEASE_PATH", text(&layout.release(&name)));
        }
    }
    all
}

fn ending(status: WaitStatus) -> StepEnd {
    match status {
        WaitStatus::Exited(_, 0) => StepEnd::Succeeded { exit_code: Some(0) },
        WaitStatus::Exited(_, code) => {
            StepEnd::Failed { error: format!("exited with status {code}"), exit_code: Some(code), signal: None }
        }
        WaitStatus::Signaled(_, signal, _) => StepEnd::Failed {
            error: format!("was ended by signal {} ({signal})", signal as i32),
            exit_code: None,
            signal: Some(signal as i32),
        },
        other => StepEnd::failed(format!("ended in an unknown way: {other:?}")),
    }
}

fn log_failed(context: &mut Context, pump: &mut Pump, error: &io::Error) -> StepEnd {
    context.end_processes(&mut |_, watch, wait| pump.discard(watch, wait));
    StepEnd::failed(format!("stopped because its output cannot be kept: {}", crate::describe(error)))
}

/// The script's two pipes.
struct Pump {
    index: u16,
    output: Option<File>,
    error: Option<File>,
    buffer: Vec<u8>,
    /// For output and error, where there are secrets.
    maskers: Option<[Masker; 2]>,
    /// Lasts as long as the script.
    _text: Text,
}

impl Pump {
    fn open(&self) -> bool {
        self.output.is_some() || self.error.is_some()
    }

    /// Waits for output, a signal, or `wait_ms`, and puts what came into the log.
    fn turn(&mut self, log: &mut LogWriter, watch: &Watch, wait_ms: u64) -> io::Result<()> {
        let flush_in = log.flush_at_ms().map(|at| at.saturating_sub(clock::monotonic_ms()));
        let (output, error) = self.wait(watch, flush_in.map_or(wait_ms, |flush| flush.min(wait_ms)));
        let mut first = Ok(());
        let (index, maskers) = (self.index, &mut self.maskers);
        let mut keep = |stream, bytes: &[u8]| {
            let at = usize::from(stream == Stream::Error);
            match maskers {
                Some(maskers) => log.output(index, stream, &maskers[at].pass(bytes), clock::now()),
                None => log.output(index, stream, bytes, clock::now()),
            }
        };
        if output {
            first = read(&mut self.output, &mut self.buffer, |bytes| keep(Stream::Output, bytes));
        }
        if error {
            first = first.and(read(&mut self.error, &mut self.buffer, |bytes| keep(Stream::Error, bytes)));
        }
        first?;
        if log.flush_at_ms().is_some_and(|at| clock::monotonic_ms() >= at) {
            log.flush()?;
        }
        Ok(())
    }

    /// The script is over: what was held back for its secrets goes into the log.
    fn finish(&mut self, log: &mut LogWriter) -> io::Result<()> {
        for (masker, stream) in self.maskers.iter_mut().flatten().zip([Stream::Output, Stream::Error]) {
            log.output(self.index, stream, &masker.finish(), clock::now())?;
        }
        Ok(())
    }

    /// A turn whose failure to write changes nothing any more.
    fn drain(&mut self, log: &mut LogWriter, watch: &Watch, wait_ms: u64) {
        let _ = self.turn(log, watch, wait_ms);
        watch.reap(Pid::from_raw(0));
    }

    /// Reads on without keeping anything, so that the processes can end.
    fn discard(&mut self, watch: &Watch, wait_ms: u64) {
        let (output, error) = self.wait(watch, wait_ms);
        if output {
            let _ = read(&mut self.output, &mut self.buffer, |_| Ok(()));
        }
        if error {
            let _ = read(&mut self.error, &mut self.buffer, |_| Ok(()));
        }
        watch.reap(Pid::from_raw(0));
    }

    /// What is still in the pipes after their writers are gone.
    fn rest(&mut self, log: &mut LogWriter, watch: &Watch, wait_ms: u64) {
        let until = clock::monotonic_ms() + wait_ms;
        while self.open() && clock::monotonic_ms() < until {
            self.drain(log, watch, 10);
        }
    }

    fn wait(&self, watch: &Watch, wait_ms: u64) -> (bool, bool) {
        let mut descriptors = vec![PollFd::new(watch.descriptor(), PollFlags::POLLIN)];
        if let Some(pipe) = &self.output {
            descriptors.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        if let Some(pipe) = &self.error {
            descriptors.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        let timeout = PollTimeout::try_from(u32::try_from(wait_ms).unwrap_or(u32::MAX)).unwrap_or(PollTimeout::ZERO);
        if poll(&mut descriptors, timeout).is_err() {
            return (false, false);
        }
        let mut ready = descriptors.iter().skip(1).map(|one| one.any().unwrap_or(false));
        let output = self.output.is_some() && ready.next().unwrap_or(false);
        let error = self.error.is_some() && ready.next().unwrap_or(false);
        (output, error)
    }
}

fn read(pipe: &mut Option<File>, buffer: &mut [u8], mut keep: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let Some(open) = pipe else { return Ok(()) };
    match open.read(buffer) {
        Ok(0) => *pipe = None,
        Ok(length) => return keep(&buffer[..length]),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(_) => *pipe = None,
    }
    Ok(())
}
