//! A simulated host: its clocks, its supervisors and what they leave, and the agent, which is the real one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_agent::clock::{self, Now};
use drover_agent::durable;
use drover_agent::run::{Host, Link, Options, Watcher, work};
use drover_agent::spool::{Folder, Key, Started};
use drover_shared::message::ProcessVerdict;
use drover_shared::secret::Secrets;
use futures_util::future::BoxFuture;
use rustls::ClientConfig;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::chance::Chance;
use crate::faults::Accident;
use crate::server::{START_MS, runtime};
use crate::supervisor::{Processes, Supervisor};
use crate::trace::Trace;
use crate::truth::Truth;
use crate::wire::End;

/// An agent that dials, and how it hears whether it is connected.
pub(crate) type Dialing = oneshot::Sender<io::Result<End>>;

/// What the agent and its supervisors share.
pub(crate) struct Machine {
    pub name: String,
    pub supervisors: Vec<Supervisor>,
    pub processes: Processes,
    pub dialing: Vec<Dialing>,
    boot: u32,
    booted_ms: u64,
    next_pid: i32,
    seed: u64,
    chance: Chance,
    trace: Trace,
}

/// A handle on a machine, which is what its agent asks.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Machine>>);

/// The agent's process.
struct Process {
    runtime: Runtime,
    working: JoinHandle<anyhow::Result<()>>,
    local_ms: u64,
}

/// A host.
pub(crate) struct Simulated {
    pub machine: Shared,
    folder: PathBuf,
    join: String,
    agent: Option<Process>,
    /// It gets no turns until then.
    pub paused_until_ms: u64,
    /// Its disk is full until then.
    pub full_until_ms: u64,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    fn tell_clock(&self, now_ms: u64) {
        let monotonic_ms = now_ms - self.booted_ms + 1_000;
        let wall_ms = START_MS + i64::try_from(now_ms).unwrap_or(i64::MAX);
        clock::tell(Now { monotonic_ms, wall_ms }, &format!("boot-{}-{}", self.name, self.boot));
    }
}

impl Host for Shared {
    fn supervise(&self, folder: &Folder, _: &Secrets) -> io::Result<BoxFuture<'static, ()>> {
        let mut machine = self.lock();
        let key = folder.key().ok_or_else(|| io::Error::other("a folder without a name"))?;
        let (exited, end) = oneshot::channel();
        let pid = machine.next_pid;
        machine.next_pid += 1;
        let number = machine.trace.number(&key.execution_id) as u64;
        let seed = Chance::of(machine.seed, (number << 8) + u64::from(key.attempt)).next();
        machine.supervisors.push(Supervisor::new(pid, key, folder, exited, seed));
        Ok(Box::pin(async move { drop(end.await) }))
    }

    fn tell(&self, supervisor: i32, _: bool) {
        let mut machine = self.lock();
        machine.supervisors.iter_mut().filter(|one| one.pid == supervisor).for_each(|one| one.told = true);
    }

    fn end_orphans(&self, _: &Started, key: &Key, _: u64) -> ProcessVerdict {
        let mut machine = self.lock();
        let before = machine.processes.len();
        machine.processes.retain(|of| of != key);
        let ended = u32::try_from(before - machine.processes.len()).unwrap_or(0);
        ProcessVerdict { ended, certain: true, ..ProcessVerdict::default() }
    }

    fn dial(&self, _: String, _: Arc<ClientConfig>, room: Arc<Notify>) -> BoxFuture<'static, anyhow::Result<Link>> {
        let (connected, connecting) = oneshot::channel();
        self.lock().dialing.push(connected);
        Box::pin(async move { Ok(Link::over(connecting.await??, room)) })
    }

    fn watcher(&self) -> Watcher {
        Watcher::blind()
    }

    fn up_to(&self, most: u64) -> u64 {
        self.lock().chance.between(0, most)
    }
}

impl Simulated {
    pub(crate) fn new(name: &str, folder: &Path, join: String, seed: u64, trace: &Trace) -> Self {
        let machine = Machine {
            name: name.to_owned(),
            supervisors: Vec::new(),
            processes: Vec::new(),
            dialing: Vec::new(),
            boot: 1,
            booted_ms: 0,
            next_pid: 1_000,
            seed,
            chance: Chance::of(seed, Chance::new(name.bytes().map(u64::from).sum()).next()),
            trace: trace.clone(),
        };
        let machine = Shared(Arc::new(Mutex::new(machine)));
        Self { machine, folder: folder.join(name), join, agent: None, paused_until_ms: 0, full_until_ms: 0 }
    }

    pub(crate) fn name(&self) -> String {
        self.machine.lock().name.clone()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.agent.is_some()
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self, now_ms: u64) {
        self.machine.lock().tell_clock(now_ms);
        let runtime = runtime();
        let options = Options {
            join: Some(self.join.clone()),
            name: Some(self.name()),
            data_dir: self.folder.clone(),
            spool_bytes_max: Some(1 << 40),
            pids_max: 1,
        };
        let host = Arc::new(self.machine.clone());
        let working = runtime.spawn(async move { Box::pin(work(options, host, std::future::pending())).await });
        self.agent = Some(Process { runtime, working, local_ms: now_ms });
    }

    /// Gives the agent a turn: everything that it can do now. Gives the time after it, and why the agent ended if it did.
    pub(crate) fn turn(&mut self, now_ms: u64) -> (u64, Option<String>) {
        let Some(agent) = &mut self.agent else { return (now_ms, None) };
        self.machine.lock().tell_clock(now_ms);
        durable::fill(now_ms < self.full_until_ms);
        let passed = now_ms.saturating_sub(agent.local_ms);
        agent.runtime.block_on(async {
            tokio::time::advance(Duration::from_millis(passed)).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
        durable::fill(false);
        agent.local_ms = now_ms + 1;
        if agent.working.is_finished() {
            let Some(Process { runtime, working, .. }) = self.agent.take() else { return (now_ms, None) };
            let end = match runtime.block_on(working) {
                Ok(Ok(())) => "it quit".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(error) => format!("a panic: {error}"),
            };
            return (now_ms + 1, Some(end));
        }
        (now_ms + 1, None)
    }

    /// `kill -9` of the agent; its supervisors go on.
    pub(crate) fn kill(&mut self) {
        self.agent = None;
        self.machine.lock().dialing.clear();
    }

    /// The power is gone and comes back. Gives what that took.
    pub(crate) fn reboot(&mut self, now_ms: u64, truth: &mut Truth) -> Vec<Accident> {
        self.kill();
        let mut lost = Vec::new();
        let mut machine = self.machine.lock();
        let Machine { supervisors, processes, chance, .. } = &mut *machine;
        for supervisor in supervisors.iter_mut() {
            if supervisor.lose_power(truth, chance).expect("a log") {
                lost.push(Accident::TornTail);
            }
        }
        supervisors.clear();
        processes.clear();
        // An order that was going to be started at once leaves no mark before it is: nobody can say whether it was.
        for folder in std::fs::read_dir(self.folder.join("spool")).into_iter().flatten().flatten() {
            let folder = Folder::at(&folder.path());
            let (Some(key), Ok(accepted)) = (folder.key(), folder.accepted()) else { continue };
            let deed = truth.of(&key);
            if accepted.at_once && deed.ended.is_none() && deed.unknown.is_none() {
                deed.unknown = Some("the host was restarted before it began");
            }
            if chance.percent(50) && forget_names(&folder, accepted.at_once) {
                lost.push(Accident::LostName);
            }
        }
        machine.boot += 1;
        machine.booted_ms = now_ms;
        lost
    }

    /// Lets one supervisor do its next small piece. Gives what it did.
    pub(crate) fn supervise(&mut self, which: usize, now_ms: u64, truth: &mut Truth) -> Option<String> {
        let mut machine = self.machine.lock();
        machine.tell_clock(now_ms);
        let Machine { supervisors, processes, .. } = &mut *machine;
        let supervisor = supervisors.get_mut(which)?;
        let said = supervisor.advance(truth, processes);
        let said = format!("{} {said}", supervisor.key);
        supervisors.retain(|one| !one.is_over());
        Some(said)
    }

    /// Kills one supervisor. Gives whose it was.
    pub(crate) fn kill_supervisor(&mut self, which: usize, truth: &mut Truth) -> Option<Key> {
        let mut machine = self.machine.lock();
        let supervisor = machine.supervisors.get_mut(which)?;
        let key = supervisor.key.clone();
        supervisor.kill(truth, "the supervisor was killed");
        machine.supervisors.retain(|one| !one.is_over());
        Some(key)
    }

    pub(crate) fn supervisors(&self) -> usize {
        self.machine.lock().supervisors.len()
    }

    /// Folders that are left in the spool.
    pub(crate) fn spooled(&self) -> usize {
        let folders = std::fs::read_dir(self.folder.join("spool")).into_iter().flatten().flatten();
        folders.filter(|folder| folder.path().join("order.json").exists()).count()
    }
}

/// A loss of power takes what was written and not made durable: the mark of a start that the order says already, and the
/// name of an outcome. True when there was one.
fn forget_names(folder: &Folder, at_once: bool) -> bool {
    let path = folder.path();
    let mark = path.join("started");
    let is_marked = at_once && std::fs::metadata(&mark).is_ok_and(|meta| meta.len() > 0);
    let marked = is_marked && std::fs::File::create(mark).is_ok();
    marked | std::fs::rename(path.join("status.json"), path.join("status.new")).is_ok()
}
