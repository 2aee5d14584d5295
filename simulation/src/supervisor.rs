//! A supervisor whose hooks are data: it does what a real one does with the spool, one small piece at a time, and may be
//! killed between any two.

use std::fs::File;
use std::io::{self, Write as _};

use drover_agent::clock;
use drover_agent::log::LogWriter;
use drover_agent::spool::{Folder, Key, Started};
use drover_shared::message::{Finished, ProcessVerdict, StepEvent, StepOutcome};
use drover_shared::order::{Entry, Statement, Step};
use drover_shared::record::{Stream, records};
use drover_shared::words::{Action, ExecutionState as State, StepState};
use nix::fcntl::Flock;
use tokio::sync::oneshot;

use crate::chance::Chance;
use crate::truth::Truth;

/// What a hook does, one after the other.
#[derive(Debug, Clone)]
enum Act {
    /// Says a line.
    Say(String),
    /// Does nothing until then, in milliseconds from its turn.
    Sleep(u64),
    /// Leaves a process behind.
    Fork,
    /// Ends with this status.
    Exit(i32),
    /// Never ends by itself.
    Hang,
}

enum Stage {
    Begin,
    Step { index: usize, acts: Vec<Act>, begun_ms: u64, wall_ms: i64, log_start: u64, wake_ms: Option<u64> },
    Next { index: usize },
    Stopping { grace: u32 },
    Conclude,
    Name(Box<Finished>),
    Over,
}

/// Why it stops early.
#[derive(Debug, Clone)]
enum Stop {
    Cancelled(String),
    TimedOut(String),
}

/// A supervisor at work.
pub(crate) struct Supervisor {
    pub pid: i32,
    pub key: Key,
    pub told: bool,
    folder: Folder,
    exited: Option<oneshot::Sender<()>>,
    stage: Stage,
    work: Option<Work>,
    tries: u32,
    seed: u64,
}

/// What it has once it has the lock.
struct Work {
    lock: Flock<File>,
    log: LogWriter,
    statement: Statement,
    entry: Entry,
    deadline_ms: u64,
    outcomes: Vec<StepOutcome>,
    failure: Option<String>,
    stop: Option<Stop>,
    verdict: ProcessVerdict,
}

/// Processes that hooks have left on a host, and whose they are.
pub(crate) type Processes = Vec<Key>;

impl Supervisor {
    pub(crate) fn new(pid: i32, key: Key, folder: &Folder, exited: oneshot::Sender<()>, seed: u64) -> Self {
        let folder = folder.clone();
        let (exited, stage) = (Some(exited), Stage::Begin);
        Self { pid, key, told: false, folder, exited, stage, work: None, tries: 0, seed }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// `kill -9`: what is in memory is gone, what its hooks run lives on.
    pub(crate) fn kill(&mut self, truth: &mut Truth, why: &'static str) {
        if self.is_over() {
            return;
        }
        let deed = truth.of(&self.key);
        if self.work.is_some() && deed.ended.is_none() {
            deed.kept = Some(said_in(&self.folder));
            deed.unknown = Some(why);
        }
        self.end();
    }

    /// Its host loses its power: of its log some of what was not durable may be gone. True when it is.
    pub(crate) fn lose_power(&mut self, truth: &mut Truth, chance: &mut Chance) -> io::Result<bool> {
        let wrote = self.work.is_some() && truth.of(&self.key).ended.is_none();
        self.kill(truth, "the host was restarted");
        if !wrote || chance.percent(40) {
            return Ok(false);
        }
        let log = File::options().write(true).open(self.folder.log())?;
        let length = log.metadata()?.len();
        let left = if chance.percent(30) { 0 } else { chance.between(0, length) };
        log.set_len(left)?;
        let deed = truth.of(&self.key);
        deed.kept = Some(said_in(&self.folder));
        deed.torn = true;
        Ok(left < length)
    }

    fn end(&mut self) {
        self.work = None;
        self.stage = Stage::Over;
        if let Some(exited) = self.exited.take() {
            let _ = exited.send(());
        }
    }

    /// Does the next small piece. Gives what to say of it.
    pub(crate) fn advance(&mut self, truth: &mut Truth, processes: &mut Processes) -> String {
        match self.try_advance(truth, processes) {
            Ok(said) => said,
            Err(error) => {
                self.kill(truth, "it could not go on");
                format!("ends: {error}")
            }
        }
    }

    fn try_advance(&mut self, truth: &mut Truth, processes: &mut Processes) -> io::Result<String> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Begin => self.begin(truth, processes),
            Stage::Next { index } => self.next_step(index, truth),
            Stage::Step { index, acts, begun_ms, wall_ms, log_start, wake_ms } => {
                let step = Running { index, begun_ms, wall_ms, log_start };
                self.act(&step, acts, wake_ms, truth, processes)
            }
            Stage::Stopping { grace } => self.stopping(grace, processes),
            Stage::Conclude => self.conclude(truth, processes),
            Stage::Name(finished) => {
                self.folder.name_status()?;
                truth.of(&self.key).ended = Some(finished.state);
                self.end();
                Ok(format!("is over: {}", finished.state))
            }
            Stage::Over => Ok("was over".to_owned()),
        }
    }

    fn begin(&mut self, truth: &mut Truth, processes: &Processes) -> io::Result<String> {
        let Some(mut lock) = self.folder.lock()? else {
            self.tries += 1;
            if self.tries < 10 {
                self.stage = Stage::Begin;
                return Ok("finds the lock taken".to_owned());
            }
            self.end();
            return Ok("gives the lock up".to_owned());
        };
        if self.folder.started()?.is_some() || self.folder.status()?.is_some() {
            self.end();
            return Ok("has nothing to do".to_owned());
        }
        lock.set_len(0)?;
        lock.write_all(self.pid.to_string().as_bytes())?;
        let accepted = self.folder.accepted()?;
        let (statement, entry) = accepted.open()?;
        let (now, boot_id) = (clock::now(), clock::boot_id());
        let left = statement.timeout_ms.saturating_sub(accepted.elapsed_ms(&boot_id, now));
        let log = LogWriter::open(&self.folder.log(), entry.output_bytes_max)?;
        self.folder.write_started(&Started { boot_id, ..Started::default() }, !accepted.at_once)?;
        match (entry.instance_id, entry.action) {
            (Some(id), _) => truth.begins(&self.key, format!("instance {id}"), processes),
            (None, Action::Script) => truth.begins(&self.key, format!("host {}", entry.host), processes),
            (None, _) => {}
        }
        self.work = Some(Work {
            lock,
            log,
            deadline_ms: now.monotonic_ms.saturating_add(left),
            statement,
            entry,
            outcomes: Vec::new(),
            failure: None,
            stop: None,
            verdict: ProcessVerdict::default(),
        });
        self.stage = Stage::Next { index: 0 };
        Ok("has the lock".to_owned())
    }

    fn stop(&mut self) -> Option<Stop> {
        let work = self.work.as_ref()?;
        if let Some(note) = self.folder.cancel() {
            let stop = if note.timed_out { Stop::TimedOut(note.reason) } else { Stop::Cancelled(note.reason) };
            return Some(stop);
        }
        let late = clock::monotonic_ms() >= work.deadline_ms;
        late.then(|| Stop::TimedOut("the time allowed ran out".to_owned()))
    }

    fn next_step(&mut self, index: usize, truth: &mut Truth) -> io::Result<String> {
        let stop = self.stop();
        let seed = self.seed;
        let key = self.key.clone();
        let Some(work) = &mut self.work else { return Ok("has no work".to_owned()) };
        let Some(step) = work.entry.steps.get(index).cloned() else {
            self.stage = Stage::Conclude;
            return Ok("is through".to_owned());
        };
        if work.stop.is_none() {
            work.stop = stop;
        }
        if work.failure.is_some() || work.stop.is_some() {
            work.outcomes.push(outcome(&step, StepState::Skipped, work.log.length()));
            self.stage = Stage::Next { index: index + 1 };
            return Ok(format!("skips {}", step.name()));
        }
        let log_start = work.log.length();
        work.log.event(at(index), &event(&step, StepState::Running, None))?;
        work.log.flush()?;
        *truth.of(&key).starts.entry(step.name().to_owned()).or_default() += 1;
        let now = clock::now();
        let acts = acts(seed, index);
        let (begun_ms, wall_ms) = (now.monotonic_ms, now.wall_ms);
        self.stage = Stage::Step { index, acts, begun_ms, wall_ms, log_start, wake_ms: None };
        Ok(format!("starts {}", step.name()))
    }

    fn act(
        &mut self,
        step: &Running,
        mut acts: Vec<Act>,
        wake_ms: Option<u64>,
        truth: &mut Truth,
        processes: &mut Processes,
    ) -> io::Result<String> {
        let now = clock::now();
        if let Some(stop) = self.stop() {
            return self.stopped(step, stop);
        }
        let Some(work) = &mut self.work else { return Ok("has no work".to_owned()) };
        if work.log.flush_at_ms().is_some_and(|due| now.monotonic_ms >= due) {
            work.log.flush()?;
        }
        let said;
        let mut wakes = None;
        match acts.first().cloned() {
            Some(Act::Sleep(_)) if wake_ms.is_some_and(|wake| now.monotonic_ms < wake) => {
                (said, wakes) = ("sleeps".to_owned(), wake_ms);
            }
            Some(Act::Sleep(_)) if wake_ms.is_some() => {
                acts.remove(0);
                said = "wakes".to_owned();
            }
            Some(Act::Sleep(span)) => {
                wakes = Some(now.monotonic_ms + span);
                said = "falls asleep".to_owned();
            }
            Some(Act::Hang) => said = "hangs".to_owned(),
            Some(Act::Say(line)) => {
                acts.remove(0);
                truth.of(&self.key).said.extend_from_slice(line.as_bytes());
                work.log.output(at(step.index), Stream::Output, line.as_bytes(), now)?;
                said = format!("says {} bytes", line.len());
            }
            Some(Act::Fork) => {
                acts.remove(0);
                processes.push(self.key.clone());
                said = "forks".to_owned();
            }
            Some(Act::Exit(status)) => return self.step_over(step, Some(status)),
            None => return self.step_over(step, Some(0)),
        }
        let Running { index, begun_ms, wall_ms, log_start } = *step;
        self.stage = Stage::Step { index, acts, begun_ms, wall_ms, log_start, wake_ms: wakes };
        Ok(said)
    }

    fn stopped(&mut self, step: &Running, stop: Stop) -> io::Result<String> {
        if let Some(work) = &mut self.work {
            work.stop = Some(stop);
        }
        self.step_over(step, None)?;
        self.stage = Stage::Stopping { grace: 2 };
        Ok("is stopped".to_owned())
    }

    fn step_over(&mut self, step: &Running, status: Option<i32>) -> io::Result<String> {
        let Some(work) = &mut self.work else { return Ok("has no work".to_owned()) };
        let Some(of) = work.entry.steps.get(step.index).cloned() else { return Ok("has no step".to_owned()) };
        let (state, error) = match status {
            Some(0) => (StepState::Succeeded, None),
            Some(status) => (StepState::Failed, Some(format!("exited with status {status}"))),
            None => (StepState::Failed, Some("stopped".to_owned())),
        };
        if status.is_some_and(|status| status != 0) {
            work.failure = error.as_ref().map(|error| format!("{} {error}", of.name()));
        }
        work.log.event(at(step.index), &event(&of, state, error.clone()))?;
        work.log.flush()?;
        work.outcomes.push(StepOutcome {
            exit_code: status,
            error,
            started_ms: Some(step.wall_ms),
            duration_ms: Some(clock::monotonic_ms().saturating_sub(step.begun_ms)),
            log_start: step.log_start,
            ..outcome(&of, state, work.log.length())
        });
        self.stage = Stage::Next { index: step.index + 1 };
        Ok(format!("ends {} {state:?}", of.name()))
    }

    /// TERM first, which a process may ignore, KILL after the grace.
    fn stopping(&mut self, grace: u32, processes: &mut Processes) -> io::Result<String> {
        if grace > 0 {
            self.stage = Stage::Stopping { grace: grace - 1 };
            return Ok("waits for its processes".to_owned());
        }
        let before = processes.len();
        processes.retain(|of| *of != self.key);
        let index = self.work.as_mut().map_or(0, |work| {
            work.verdict.ended = u32::try_from(before - processes.len()).unwrap_or(0);
            work.outcomes.len()
        });
        self.stage = Stage::Next { index };
        Ok(format!("has ended {} processes", before - processes.len()))
    }

    fn conclude(&mut self, truth: &mut Truth, processes: &mut Processes) -> io::Result<String> {
        let key = self.key.clone();
        let Some(work) = &mut self.work else { return Ok("has no work".to_owned()) };
        let well = work.outcomes.iter().all(|outcome| outcome.state == StepState::Succeeded);
        if well {
            // The last step was done before the stop came.
            work.stop = None;
        }
        if work.stop.is_some() {
            processes.retain(|of| *of != key);
        } else if processes.contains(&key) {
            work.verdict.left_running = true;
            truth.of(&key).left_running = true;
        }
        work.verdict.certain = true;
        let (state, reason) = match (&work.stop, &work.failure) {
            (Some(Stop::Cancelled(reason)), _) => (State::Cancelled, Some(reason.clone())),
            (Some(Stop::TimedOut(reason)), _) => (State::TimedOut, Some(reason.clone())),
            (None, Some(reason)) => (State::Failed, Some(reason.clone())),
            (None, None) => (State::Succeeded, None),
        };
        work.log.sync()?;
        let releases = match (work.entry.instance_id, work.entry.action) {
            (Some(id), Action::Upgrade | Action::Revert) => Some(truth.serves(id, &work.entry.version, well)),
            _ => None,
        };
        let finished = Finished {
            execution_id: work.statement.execution_id.clone(),
            attempt: work.statement.attempt,
            state,
            reason,
            steps: work.outcomes.clone(),
            log_length: work.log.length(),
            output_truncated: work.log.truncated(),
            processes: work.verdict.clone(),
            releases,
        };
        self.folder.draft_status(&finished)?;
        // From here on whoever looks finds how it ended.
        truth.of(&key).ended = Some(state);
        self.stage = Stage::Name(Box::new(finished));
        debug_assert!(work.lock.metadata().is_ok(), "the lock is held to the end");
        Ok("has written how it ended".to_owned())
    }
}

/// A step under way.
struct Running {
    index: usize,
    begun_ms: u64,
    wall_ms: i64,
    log_start: u64,
}

/// What a hook does: it follows from the seed of its execution alone.
fn acts(seed: u64, index: usize) -> Vec<Act> {
    let mut chance = Chance::of(seed, 1 + index as u64);
    let mut acts = Vec::new();
    if chance.percent(10) {
        // What cannot work at all says so at once.
        return vec![Act::Exit(1)];
    }
    // Some say all at once, and some talk on and on.
    let (count, quiet_ms) = *chance.one_of(&[(4, 3_000), (12, 1_500), (40, 400)]);
    for number in 0..chance.below(count) {
        let width = *chance.one_of(&[0, 10, 100, 3_000, 40_000]);
        acts.push(Act::Say(format!("step {index} line {number:06} {}\n", "=".repeat(width))));
        match chance.below(12) {
            0..3 => acts.push(Act::Sleep(chance.between(1, quiet_ms))),
            3 => acts.push(Act::Fork),
            _ => {}
        }
    }
    match chance.below(40) {
        0 => acts.push(Act::Hang),
        1..7 => acts.push(Act::Exit(3)),
        _ => acts.push(Act::Exit(0)),
    }
    acts
}

fn at(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

fn event(step: &Step, state: StepState, error: Option<String>) -> StepEvent {
    StepEvent { step: step.name().to_owned(), state, exit_code: None, error }
}

fn outcome(step: &Step, state: StepState, at: u64) -> StepOutcome {
    StepOutcome {
        name: step.name().to_owned(),
        state,
        exit_code: None,
        signal: None,
        error: None,
        started_ms: None,
        duration_ms: None,
        log_start: at,
        log_end: at,
    }
}

/// How many bytes of hooks there are in a spool folder.
pub(crate) fn said_in(folder: &Folder) -> usize {
    let bytes = std::fs::read(folder.log()).unwrap_or_default();
    let whole = records(&bytes).map_while(Result::ok);
    whole.filter(|record| record.stream == Stream::Output).map(|record| record.payload.len()).sum()
}
