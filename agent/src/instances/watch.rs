//! Watching pid files and the processes that they name: a look at a time, and what is news in it.
//!
//! A look costs a few system calls for each instance; a file is read again only when it is another one. Invariants: a
//! number that is used again is another process; what is news is told once; nobody is said to run whom this agent has not
//! seen.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use drover_shared::instance::{Observation, PATH_BYTES_MAX, ProcessState, REASON_BYTES_MAX, WATCHED_MAX, Watched};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::look::{self, Ask, Told, What};
use super::pid_file::{self, PidFile, Stamp};
use super::process::{self, Process};
use crate::clock;

/// Longest time that a look at one pid file may take, before its file system is said to hang.
const LOOKING: Duration = Duration::from_secs(5);
/// Looks that may hang: each keeps a thread.
const HANGING_MAX: usize = 32;
/// Longest time that reading the pid files of an account may take, and one of them.
const READING: Duration = Duration::from_secs(20);
const READING_ONE: Duration = Duration::from_secs(5);
/// Pid files of an account that cannot be read by themselves, before the rest is left for later.
const FAILURES_MAX: usize = 3;
/// How much later than its pid file a process may seem to have begun, in milliseconds.
const SLACK_MS: i64 = 10_000;
/// Looks after which a file that could not be read is tried again, though it is the same.
const LOOKS_UNCLEAR: u32 = 30;

/// The stamp of a pid file, and when the process that was known began, if it lives.
pub(crate) type Looked = (Stamp, Option<u64>);

/// What is known of an instance.
struct Seen {
    watched: Watched,
    stamp: Option<Stamp>,
    file: PidFile,
    /// The account that runs it, where the agent can tell.
    owner: Option<u32>,
    /// The process that was seen to be the instance's, and when it began.
    process: Option<(u32, u64, i64)>,
    /// What was said of it last, and whether whoever asks now has heard it.
    last: Option<Observation>,
    told: bool,
    looks: u32,
    /// A look at it that has not ended.
    hanging: Option<JoinHandle<()>>,
}

/// The instances that are watched.
#[derive(Default)]
pub(crate) struct Watching(Vec<Seen>);

impl Watching {
    /// Watches these from now on, and tells of all of them anew.
    pub(crate) fn set(&mut self, wanted: &[Watched]) {
        let mut before: BTreeMap<i64, Seen> =
            std::mem::take(&mut self.0).into_iter().map(|seen| (seen.watched.instance_id, seen)).collect();
        self.0.extend(wanted.iter().take(WATCHED_MAX).map(|watched| {
            let known = before.remove(&watched.instance_id).filter(|seen| seen.watched == *watched);
            known.map_or_else(|| Seen::new(watched.clone()), |seen| Seen { told: false, ..seen })
        }));
    }

    /// Whether there is anything to look at.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Looks at all of them and gives what is news. A file system that does not answer keeps only its own from being seen.
    pub(crate) async fn look(&mut self, look: fn(&str, Option<u32>) -> Looked) -> Vec<Observation> {
        let looked = self.look_at_all(look).await;
        self.read_changed(&looked).await;
        let looked = self.0.iter_mut().zip(looked);
        let news = looked.filter_map(|(seen, looked)| match looked {
            Some((_, started)) => seen.judge(started),
            None => seen.settle(unknown("the file system of the pid file does not answer")),
        });
        news.collect()
    }

    /// What the file system and `/proc` have of each, but for those that do not answer.
    async fn look_at_all(&mut self, look: fn(&str, Option<u32>) -> Looked) -> Vec<Option<Looked>> {
        let mut looked = vec![None; self.0.len()];
        let mut at = 0;
        while let Some(first) = self.next(at) {
            // One thread goes through all of them, and another through the rest if that comes to a stop.
            let asked: Vec<(usize, String, Option<u32>)> = (first..self.0.len())
                .filter(|index| !self.hangs(*index))
                .map(|index| {
                    let seen = &self.0[index];
                    (index, seen.watched.pid_path.clone(), seen.process.map(|(pid, ..)| pid))
                })
                .collect();
            let indices: Vec<usize> = asked.iter().map(|(index, ..)| *index).collect();
            let (sender, mut receiver) = mpsc::channel(asked.len().max(1));
            let looking = tokio::task::spawn_blocking(move || {
                let _ = asked.into_iter().try_for_each(|(_, path, pid)| sender.blocking_send(look(&path, pid)));
            });
            at = self.0.len();
            for index in indices {
                match tokio::time::timeout(LOOKING, receiver.recv()).await {
                    Ok(Some(found)) => looked[index] = Some(found),
                    Ok(None) => return looked,
                    Err(_) => {
                        self.0[index].hanging = Some(looking);
                        at = index + 1;
                        break;
                    }
                }
            }
        }
        looked
    }

    /// The next one from here on that can be looked at.
    fn next(&mut self, from: usize) -> Option<usize> {
        for seen in &mut self.0 {
            seen.hanging.take_if(|hanging| hanging.is_finished());
        }
        if self.0.iter().filter(|seen| seen.hanging.is_some()).count() >= HANGING_MAX {
            return None;
        }
        (from..self.0.len()).find(|index| !self.hangs(*index))
    }

    /// Whether a look at this one, or at another in its folder, has not ended.
    fn hangs(&self, index: usize) -> bool {
        let folder = |seen: &Seen| Path::new(&seen.watched.pid_path).parent().map(Path::to_owned);
        let mut hanging = self.0.iter().filter(|seen| seen.hanging.is_some());
        hanging.any(|seen| folder(seen) == folder(&self.0[index]))
    }

    /// Reads the files that are others than before, by one process for each account.
    async fn read_changed(&mut self, looked: &[Option<Looked>]) {
        let mut by_account: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
        for (index, (seen, looked)) in self.0.iter_mut().zip(looked).enumerate() {
            let Some((stamp, _)) = looked else { continue };
            seen.looks += 1;
            let retried = matches!(seen.file, PidFile::Unclear(_)) && seen.looks >= LOOKS_UNCLEAR;
            if seen.stamp != Some(*stamp) || retried {
                seen.stamp = Some(*stamp);
                seen.looks = 0;
                by_account.entry(seen.watched.running_user.clone()).or_default().push(index);
            }
        }
        for (running_user, indices) in by_account {
            if self.read_together(running_user.as_ref(), &indices, READING).await || indices.len() == 1 {
                continue;
            }
            // One of them keeps the others from being read: each by itself.
            let mut failures = 0;
            for index in indices {
                if failures < FAILURES_MAX && !self.read_together(running_user.as_ref(), &[index], READING_ONE).await {
                    failures += 1;
                }
            }
        }
    }

    /// Has a process read these; false when it gave no answer.
    async fn read_together(&mut self, running_user: Option<&String>, indices: &[usize], longest: Duration) -> bool {
        let paths = indices.iter().map(|index| self.0[*index].watched.pid_path.clone()).collect();
        let ask = Ask { running_user: running_user.cloned(), what: What::PidFiles(paths) };
        let told = look::ask(&ask, longest).await;
        let answered = told.is_ok();
        let unclear = |reason: String| (vec![PidFile::Unclear(reason); indices.len()], None);
        let (files, uid) = match told {
            Ok(Told::PidFiles(files, uid)) if files.len() == indices.len() => (files, Some(uid)),
            Ok(Told::Refused(reason)) | Err(reason) => unclear(reason),
            Ok(_) => unclear("its answer makes no sense".to_owned()),
        };
        for (index, file) in indices.iter().zip(files) {
            let seen = &mut self.0[*index];
            // Who is no root reads everything as itself, and says nothing of other accounts.
            seen.owner = uid.filter(|_| nix::unistd::geteuid().is_root());
            seen.file = file;
        }
        answered
    }
}

/// What the file system and `/proc` have: of a pid file, and of a process.
pub(crate) fn look_at(path: &str, pid: Option<u32>) -> Looked {
    (pid_file::stamp(path), pid.and_then(process::started))
}

fn unknown(reason: &str) -> Observation {
    Observation {
        instance_id: 0,
        state: ProcessState::Unknown,
        pid: None,
        since_ms: None,
        reason: Some(reason.to_owned()),
    }
}

impl Seen {
    fn new(watched: Watched) -> Self {
        let file = if watched.pid_path.len() > PATH_BYTES_MAX {
            PidFile::Unclear("the path is too long".to_owned())
        } else {
            PidFile::Missing
        };
        Self {
            watched,
            stamp: None,
            file,
            owner: None,
            process: None,
            last: None,
            told: false,
            looks: 0,
            hanging: None,
        }
    }

    /// What is to be said now, if it is news; with when the process began that was known before, if it still lives.
    fn judge(&mut self, started: Option<u64>) -> Option<Observation> {
        let PidFile::Names { pid, written_ms } = self.file else {
            self.process = None;
            return self.settle(match &self.file {
                PidFile::Unclear(reason) => unknown(reason),
                _ => Observation { state: ProcessState::Stopped, reason: None, ..unknown("") },
            });
        };
        if let Some((known, ticks, since_ms)) = self.process.filter(|(known, ..)| *known == pid) {
            if started == Some(ticks) {
                return self.settle(running(known, since_ms));
            }
            // Not forgotten as long as the file is the same: what has its number now is another one.
            return self.settle(crashed(pid));
        }
        let found = process::find(pid);
        let began = found.map(process::started_ms);
        let judged = verdict(pid, found, began, self.owner, written_ms);
        if let (ProcessState::Running, Some(found), Some(began)) = (judged.state, found, began) {
            self.process = Some((pid, found.started_ticks, began));
        }
        self.settle(judged)
    }

    /// Notes what is to be said, and gives it if it is news.
    fn settle(&mut self, mut judged: Observation) -> Option<Observation> {
        judged.instance_id = self.watched.instance_id;
        if let Some(reason) = &mut judged.reason {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        }
        let is_same =
            |last: &&Observation| (last.state, last.pid, &last.reason) == (judged.state, judged.pid, &judged.reason);
        match self.last.as_ref().filter(is_same) {
            Some(_) if self.told => return None,
            Some(last) => judged.since_ms = last.since_ms,
            // Whoever saw it otherwise before knows when it changed.
            None if judged.since_ms.is_none() && self.last.is_some() => judged.since_ms = Some(clock::wall_ms()),
            None => {}
        }
        self.told = true;
        self.last = Some(judged.clone());
        Some(judged)
    }
}

fn running(pid: u32, since_ms: i64) -> Observation {
    Observation { state: ProcessState::Running, pid: Some(pid), since_ms: Some(since_ms), reason: None, ..unknown("") }
}

fn crashed(pid: u32) -> Observation {
    let reason = format!("process {pid}, which the pid file names, is gone");
    Observation { state: ProcessState::Crashed, ..unknown(&reason) }
}

/// What a process is that a pid file names and that was not known before.
fn verdict(pid: u32, found: Option<Process>, began: Option<i64>, owner: Option<u32>, written_ms: i64) -> Observation {
    let (Some(found), Some(began)) = (found, began) else { return crashed(pid) };
    if began > written_ms.saturating_add(SLACK_MS) {
        let reason =
            format!("the process that the pid file names is gone; its number {pid} is another one's since then");
        return Observation { state: ProcessState::Crashed, ..unknown(&reason) };
    }
    match owner.filter(|owner| *owner != found.uid) {
        Some(_) => unknown(&format!("process {pid}, which the pid file names, runs as another account: {}", found.uid)),
        None => running(pid, began),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn seen(pid: u32, written_ms: i64) -> Seen {
        let watched = Watched { instance_id: 7, pid_path: "/x".to_owned(), running_user: None };
        Seen { file: PidFile::Names { pid, written_ms }, ..Seen::new(watched) }
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn a_process_runs_until_it_is_gone_and_each_is_told_once() {
        let mut child = sleeper();
        let mut instance = seen(child.id(), clock::wall_ms());
        let told = instance.judge(None).unwrap();
        assert_eq!((told.state, told.pid, told.instance_id), (ProcessState::Running, Some(child.id()), 7));
        assert!(told.since_ms.is_some());
        assert_eq!(instance.judge(process::started(child.id())), None);
        // Who asks anew hears the same.
        instance.told = false;
        assert_eq!(instance.judge(process::started(child.id())).as_ref(), Some(&told));
        child.kill().unwrap();
        child.wait().unwrap();
        let told = instance.judge(process::started(child.id())).unwrap();
        assert_eq!((told.state, told.pid), (ProcessState::Crashed, None));
        assert!(told.since_ms.is_some(), "it was seen to go");
        // Its number comes to another process: that is not the instance.
        assert_eq!(instance.judge(Some(1)), None);
        instance.file = PidFile::Missing;
        assert_eq!(instance.judge(None).unwrap().state, ProcessState::Stopped);
    }

    #[test]
    fn a_number_that_is_used_again_and_an_account_that_is_another_are_seen() {
        let mut child = sleeper();
        let found = process::find(child.id());
        let (began, own) = (found.map(process::started_ms), nix::unistd::geteuid().as_raw());
        let now = clock::wall_ms();
        for (written_ms, owner, state) in [
            (now, None, ProcessState::Running),
            (now, Some(own), ProcessState::Running),
            (now - 3_600_000, Some(own), ProcessState::Crashed),
            (now, Some(own + 1), ProcessState::Unknown),
        ] {
            assert_eq!(verdict(child.id(), found, began, owner, written_ms).state, state, "{written_ms} {owner:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(verdict(child.id(), None, None, None, now).state, ProcessState::Crashed);
    }

    #[tokio::test]
    async fn a_file_system_that_hangs_keeps_only_its_own_from_being_seen() {
        static HELD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        fn look(path: &str, pid: Option<u32>) -> Looked {
            if path.starts_with("/hangs/") {
                drop(HELD.blocking_lock());
            }
            look_at(path, pid)
        }
        let mut child = sleeper();
        let mut watching = Watching::default();
        let watched = |instance_id, path: &str| Watched { instance_id, pid_path: path.to_owned(), running_user: None };
        let all = [watched(1, "/there/a"), watched(2, "/hangs/b"), watched(3, "/hangs/c"), watched(4, "/there/d")];
        watching.set(&all);
        for seen in &mut watching.0 {
            seen.stamp = Some(pid_file::stamp("/there/a"));
            seen.file = PidFile::Names { pid: child.id(), written_ms: clock::wall_ms() };
        }
        let states = |news: Vec<Observation>| news.iter().map(|one| (one.instance_id, one.state)).collect::<Vec<_>>();
        let held = HELD.lock().await;
        let news = states(watching.look(look).await);
        use ProcessState::{Running, Unknown};
        assert_eq!(news, [(1, Running), (2, Unknown), (3, Unknown), (4, Running)]);
        assert_eq!(states(watching.look(look).await), []);
        drop(held);
        // It answers again.
        let mut news = Vec::new();
        while news.len() < 2 {
            news.extend(states(watching.look(look).await));
        }
        assert_eq!(news, [(2, Running), (3, Running)]);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_is_watched_already_is_known_and_told_again() {
        let mut watching = Watching::default();
        let watched = |instance_id, path: &str| Watched { instance_id, pid_path: path.to_owned(), running_user: None };
        watching.set(&[watched(1, "/a"), watched(2, "/b")]);
        watching.0[0].file = PidFile::Unclear("why".to_owned());
        assert!(watching.0[0].judge(None).is_some());
        watching.set(&[watched(3, "/c"), watched(1, "/a"), watched(2, "/other")]);
        assert_eq!(watching.0.iter().map(|seen| seen.watched.instance_id).collect::<Vec<_>>(), [3, 1, 2]);
        assert_eq!(watching.0[1].judge(None).unwrap().reason.as_deref(), Some("why"));
        let many: Vec<Watched> = (0..2_000).map(|id| watched(id, "/x")).collect();
        watching.set(&many);
        assert_eq!(watching.0.len(), WATCHED_MAX);
        watching.set(&[]);
        assert!(watching.is_empty());
    }
}
