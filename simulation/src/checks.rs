//! The promises, held against what really happened. Everything is over when this looks.

use std::collections::{BTreeMap, BTreeSet};

use drover_agent::spool::Key;
use drover_automation::executions::rules::{Event, step};
use drover_kernel::{row, sql};
use drover_shared::words::{ExecutionState as State, Word as _};
use serde_json::Value;

use crate::truth::Deed;
use crate::world::World;

row! {
    /// An execution as the server tells of it.
    struct Told {
        id: String,
        task_id: i64,
        ordinal: i64,
        attempt: i64,
        state: String,
        reason: Option<String>,
        dispatched_at: Option<i64>,
        answer: Option<String>,
        instance_id: Option<i64>,
        has_former: i64,
        role: String,
        excluded: bool,
    }
}

row! {
    /// A move of an execution.
    struct Moved {
        task_id: i64,
        execution_id: String,
        role: String,
        object: String,
        reason: Option<String>,
        old: String,
        new: String,
    }
}

row! {
    /// A task that is over.
    struct Task {
        id: i64,
        outcome: Option<String>,
        rollout: Option<String>,
        stop_reason: Option<String>,
        origin: Option<String>,
        origin_task_id: Option<i64>,
    }
}

/// States that are failures of a rollout.
const FAILED: [&str; 3] = ["failed", "timed_out", "lost"];

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// Tasks.
    pub tasks: usize,
    /// Executions.
    pub executions: usize,
    /// Bytes that hooks said.
    pub bytes: usize,
    /// Executions of which nobody knows how they ended.
    pub lost: usize,
    /// Executions that were cancelled alone.
    pub cancelled: usize,
}

/// What does not agree: promise and sentence.
pub(crate) type Broken = (&'static str, String);

/// Holds everything against the truth.
///
/// # Errors
/// The first promise that is broken.
pub(crate) fn check(world: &mut World) -> Result<Counted, Broken> {
    let (tasks, executions, moves) = read(world);
    every_request_is_one_task(world, &tasks)?;
    states_never_go_back(&moves)?;
    nothing_starts_after_too_many_failures(&tasks, &moves)?;
    nothing_stops_without_failures(&tasks, &executions, &moves)?;
    who_is_cancelled_alone_is_taken_out(world, &executions)?;
    one_at_a_time(world, &executions, &moves)?;
    what_follows_follows(&tasks, &executions, &moves)?;
    what_asks_for_it_is_taken_back(&tasks, &executions, &moves)?;
    let cancelled = world.people.cancelled.len();
    let mut counted = Counted { tasks: tasks.len(), executions: executions.len(), cancelled, ..Counted::default() };
    let mut known = BTreeSet::new();
    for told in &executions {
        let attempt = u32::try_from(told.attempt).unwrap_or(0);
        let key = Key { execution_id: told.id.clone(), attempt };
        let deed = world.truth.deeds.get(&key).cloned().unwrap_or_default();
        agrees(told, &deed, world.apart)?;
        lost_for_a_reason(told, &deed, &moves)?;
        counted.lost += usize::from(told.state == "lost");
        counted.bytes += output_agrees(world, told, &deed)?;
        nothing_lives_on(world, told, &key, &deed)?;
        known.insert(key);
    }
    if let Some(key) = world.truth.deeds.keys().find(|key| !known.contains(key)) {
        return Err(("P1", format!("{key} was run and nobody knows of it")));
    }
    Ok(counted)
}

fn read(world: &World) -> (Vec<Task>, Vec<Told>, Vec<Moved>) {
    let server = world.server.as_ref().expect("the server is up at the end");
    server.run(async {
        let mut read = server.kernel().work().read().await.expect("a connection");
        let tasks = sql!("SELECT id, outcome, rollout, stop_reason, origin, origin_task_id FROM tasks ORDER BY id");
        let executions = sql!(
            "SELECT id, task_id, ordinal, attempt, state, reason, dispatched_at, answer, instance_id, role, excluded, \
             CASE WHEN revert_entry IS NULL THEN 0 ELSE 1 END AS has_former FROM executions \
             ORDER BY task_id, ordinal"
        );
        let moves = drover_kernel::db::Sql::literal(
            "SELECT task_id, execution_id, role, object, reason, old, new FROM moves ORDER BY number",
        );
        (
            read.all(tasks, vec![]).await.expect("tasks"),
            read.all(executions, vec![]).await.expect("executions"),
            read.all(moves, vec![]).await.expect("moves"),
        )
    })
}

/// P1: what was accepted is there, is over, and is there once.
fn every_request_is_one_task(world: &World, tasks: &[Task]) -> Result<(), Broken> {
    let there: BTreeMap<i64, &Task> = tasks.iter().map(|task| (task.id, task)).collect();
    for id in &world.people.accepted {
        let Some(task) = there.get(id) else {
            return Err(("P1", format!("task {id} was accepted and is gone")));
        };
        if task.outcome.is_none() {
            return Err(("P1", format!("task {id} never ended")));
        }
    }
    Ok(())
}

/// Every move is one that the rules have.
fn states_never_go_back(moves: &[Moved]) -> Result<(), Broken> {
    for moved in moves {
        let (Ok(old), Ok(new)) = (State::parse(&moved.old), State::parse(&moved.new)) else {
            return Err(("states", format!("{moved:?}")));
        };
        if !Event::ALL.iter().any(|event| step(old, *event) == Ok(new)) {
            return Err(("states", format!("{} went from {old} to {new}", moved.execution_id)));
        }
    }
    Ok(())
}

/// P6: after the failures that a rollout allows nothing more of it is sent.
fn nothing_starts_after_too_many_failures(tasks: &[Task], moves: &[Moved]) -> Result<(), Broken> {
    for task in tasks {
        let Some(rollout) = &task.rollout else { continue };
        let rollout: Value = serde_json::from_str(rollout).unwrap_or_default();
        let Some(allowed) = rollout["max_failures"].as_u64() else { continue };
        let mut failed = BTreeSet::new();
        let mut stopped = false;
        for moved in moves.iter().filter(|moved| moved.task_id == task.id && moved.role == "instance") {
            if moved.old == "queued" && moved.new == "dispatched" && stopped {
                let text =
                    format!("{} of task {} was sent after {} failures", moved.execution_id, task.id, failed.len());
                return Err(("P6", text));
            }
            match moved.new.as_str() {
                new if FAILED.contains(&new) => drop(failed.insert(moved.execution_id.clone())),
                "succeeded" => drop(failed.remove(&moved.execution_id)),
                _ => {}
            }
            stopped |= failed.len() as u64 > allowed;
        }
    }
    Ok(())
}

/// A rollout that was stopped for failures had more of them than it allows: who was taken out is none.
fn nothing_stops_without_failures(tasks: &[Task], executions: &[Told], moves: &[Moved]) -> Result<(), Broken> {
    for task in tasks.iter().filter(|task| task.stop_reason.as_ref().is_some_and(|why| why.ends_with(" may"))) {
        let rollout: Value = serde_json::from_str(task.rollout.as_deref().unwrap_or_default()).unwrap_or_default();
        let failed = |told: &&Told| {
            let of = moves.iter().filter(|moved| moved.execution_id == told.id);
            told.task_id == task.id && of.into_iter().any(|moved| FAILED.contains(&moved.new.as_str()))
        };
        let failures = executions.iter().filter(|told| told.role == "instance").filter(failed).count() as u64;
        if rollout["max_failures"].as_u64().is_none_or(|allowed| failures <= allowed) {
            let text = format!("task {} was stopped ({:?}) after {failures} failures", task.id, task.stop_reason);
            return Err(("P6", text));
        }
    }
    Ok(())
}

/// What somebody cancelled alone is over, and when it ended by that it is no failure of its task.
fn who_is_cancelled_alone_is_taken_out(world: &World, executions: &[Told]) -> Result<(), Broken> {
    for told in executions.iter().filter(|told| world.people.cancelled.contains(&told.id)) {
        if told.role == "instance" && told.state == "cancelled" && !told.excluded {
            return Err(("cancel", format!("{} of task {} was cancelled alone and counts", told.id, told.task_id)));
        }
    }
    Ok(())
}

/// Locks: what one at a time may change is changed by one at a time, on its host and as the server sees it. What is lost is
/// somebody else's only after a person has said what became of it.
fn one_at_a_time(world: &World, executions: &[Told], moves: &[Moved]) -> Result<(), Broken> {
    if let Some(both) = world.truth.together.first() {
        return Err(("locks", both.clone()));
    }
    let answered: BTreeSet<&str> =
        executions.iter().filter(|told| told.answer.is_some()).map(|told| told.id.as_str()).collect();
    let mut held: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for moved in moves.iter().filter(|moved| moved.role == "instance") {
        let (object, id, new) = (moved.object.as_str(), moved.execution_id.as_str(), moved.new.as_str());
        let holder = held.get(object).copied();
        match (new, holder) {
            ("dispatched", Some((other, state))) if other != id && (state != "lost" || !answered.contains(other)) => {
                return Err(("locks", format!("{id} was sent while {other} was {state}, both at {object}")));
            }
            ("dispatched", _) => drop(held.insert(object, (id, new))),
            ("running" | "lost", Some((other, _))) if other == id => drop(held.insert(object, (id, new))),
            (_, Some((other, _))) if other == id => drop(held.remove(object)),
            _ => {}
        }
    }
    Ok(())
}

/// What is tried again had not succeeded, and is tried again once; what is taken back was stopped, asked for that, and had
/// begun; an answer is one of something that was lost.
fn what_follows_follows(tasks: &[Task], executions: &[Told], moves: &[Moved]) -> Result<(), Broken> {
    let was = |id: &str, state: &str| moves.iter().any(|moved| moved.execution_id == id && moved.new == state);
    let mut followed = BTreeSet::new();
    for task in tasks {
        let (Some(origin), Some(of)) = (&task.origin, task.origin_task_id) else { continue };
        let what = format!("task {}, made from {of} as {origin}", task.id);
        for told in executions.iter().filter(|told| told.task_id == task.id && told.instance_id.is_some()) {
            // What was taken back before it was sent tried nothing.
            if told.dispatched_at.is_some() && !followed.insert((origin.clone(), of, told.instance_id)) {
                return Err(("follow", format!("{what} is not the first to do that to {:?}", told.instance_id)));
            }
            let former = executions.iter().find(|one| one.task_id == of && one.instance_id == told.instance_id);
            let Some(former) = former else {
                return Err(("follow", format!("{what} has {:?}, which that had not", told.instance_id)));
            };
            // Who was lost may have come back since with what it did.
            let right = match origin.as_str() {
                "retry" => former.state != "succeeded" || was(&former.id, "lost"),
                _ => former.dispatched_at.is_some(),
            };
            if !right {
                return Err(("follow", format!("{what} has {:?}, which was {}", told.instance_id, former.state)));
            }
        }
        let Some(of) = tasks.iter().find(|one| one.id == of) else {
            return Err(("follow", format!("{what} follows nothing")));
        };
        if origin == "auto_revert"
            && (!of.takes_back() || of.stop_reason.is_none() || of.outcome.as_deref() != Some("failed"))
        {
            return Err(("follow", format!("{what}, which is {:?} ({:?})", of.outcome, of.stop_reason)));
        }
    }
    for told in executions.iter().filter(|told| told.answer.is_some()) {
        if !was(&told.id, "lost") {
            return Err(("follow", format!("{} was answered and never lost", told.id)));
        }
    }
    Ok(())
}

impl Task {
    fn takes_back(&self) -> bool {
        self.rollout.as_deref().is_some_and(|rollout| rollout.contains("\"auto_revert\":true"))
    }
}

/// A rollout that was stopped and asks for that takes back what it changed, where nobody changed it since.
fn what_asks_for_it_is_taken_back(tasks: &[Task], executions: &[Told], moves: &[Moved]) -> Result<(), Broken> {
    let failed = |task: &&Task| task.stop_reason.is_some() && task.outcome.as_deref() == Some("failed");
    for task in tasks.iter().filter(|task| task.takes_back()).filter(failed) {
        let back = tasks
            .iter()
            .find(|one| one.origin_task_id == Some(task.id) && one.origin.as_deref() == Some("auto_revert"));
        for told in executions.iter().filter(|told| told.task_id == task.id && told.has_former == 1) {
            let later = executions.iter().filter(|one| one.instance_id == told.instance_id && one.task_id > task.id);
            let since = later.count();
            let came_late = moves.iter().any(|moved| moved.execution_id == told.id && moved.new == "lost");
            if told.state != "succeeded" || came_late || since > 0 {
                continue;
            }
            let what = back.map_or("by nothing".to_owned(), |back| format!("by {}, which leaves it out", back.id));
            return Err(("follow", format!("{} of task {} is taken back {what}", told.id, task.id)));
        }
    }
    Ok(())
}

/// P1 and P6: hooks started at most once, and the state is what happened.
fn agrees(told: &Told, deed: &Deed, apart: bool) -> Result<(), Broken> {
    let what = || {
        format!(
            "execution {} of task {} is {} ({:?}): {}",
            told.ordinal, told.task_id, told.state, told.reason, told.id
        )
    };
    for (hook, count) in &deed.starts {
        if *count > 1 {
            return Err(("P1", format!("{hook} started {count} times: {}", what())));
        }
    }
    let state = State::parse(&told.state).map_err(|_| ("states", what()))?;
    if !state.is_over() {
        return Err(("P1", format!("it never ended: {}", what())));
    }
    if told.dispatched_at.is_none() && !deed.starts.is_empty() {
        return Err(("P1", format!("it was never sent and ran: {}", what())));
    }
    match (deed.ended, state) {
        (Some(ended), state) if ended == state => Ok(()),
        (Some(ended), _) => Err(("P1", format!("it ended {ended}: {}", what()))),
        (None, State::Succeeded) => Err(("P1", format!("it never ran to its end: {}", what()))),
        // Its order never came, and its time ran out meanwhile.
        (None, State::Lost) if apart && deed.starts.is_empty() && ran_out(told.reason.as_ref()) => Ok(()),
        (None, State::Lost) if deed.unknown.is_none() => {
            Err(("P1", format!("nothing happened that could have lost it: {}", what())))
        }
        (None, State::Lost) => Ok(()),
        // Killed after its first hook, nobody can know how it ended.
        (None, _) if deed.unknown.is_some() && !deed.starts.is_empty() => {
            Err(("P1", format!("it was {} and nobody can know that: {}", deed.unknown.unwrap_or_default(), what())))
        }
        (None, _) if !deed.starts.is_empty() => Err(("P1", format!("it never ended on its host: {}", what()))),
        (None, _) => Ok(()),
    }
}

/// Whether its time ran out before its host said anything.
fn ran_out(reason: Option<&String>) -> bool {
    reason.is_some_and(|reason| reason.starts_with("the time ran out"))
}

/// Epochs: only who knows what a host has by now says of something that it is lost, whatever became of it since.
fn lost_for_a_reason(told: &Told, deed: &Deed, moves: &[Moved]) -> Result<(), Broken> {
    let mut lost = moves.iter().filter(|moved| moved.execution_id == told.id && moved.new == "lost");
    match lost.find(|moved| deed.unknown.is_none() && !ran_out(moved.reason.as_ref())) {
        Some(moved) => Err(("epochs", format!("{} was lost without a reason: {:?}", told.id, moved.reason))),
        None => Ok(()),
    }
}

/// P2: what the server has of an execution is what its hooks said.
fn output_agrees(world: &mut World, told: &Told, deed: &Deed) -> Result<usize, Broken> {
    let path = format!("/tasks/{}/output/?format=json&execution={}", told.task_id, told.id);
    let server = world.server.as_mut().expect("the server is up at the end");
    let answer = server.ask(&mut world.now_ms, "GET", &path, &Value::Null, "read");
    let Some((200, body)) = answer else { return Err(("P2", format!("{path}: {answer:?}"))) };
    // One line is JSON by itself.
    let lines = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    let records = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let stdout = records.filter(|record| record["stream"] == "stdout");
    let seen: String = stdout.filter_map(|record| record["text"].as_str().map(str::to_owned)).collect();
    let kept = deed.kept.unwrap_or(deed.said.len());
    // After a loss of power the server may have more than the disk.
    let agrees = if deed.torn {
        seen.len() >= kept && deed.said.starts_with(seen.as_bytes())
    } else {
        seen.as_bytes() == &deed.said[..kept]
    };
    if !agrees {
        let common = seen.bytes().zip(&deed.said).take_while(|(one, other)| one == *other).count();
        let text = format!(
            "execution {} of task {} ({}): {} bytes were said, {kept} kept, {} are told, {common} the same",
            told.id,
            told.task_id,
            told.state,
            deed.said.len(),
            seen.len()
        );
        return Err(("P2", text));
    }
    Ok(kept)
}

/// P3: what was stopped or lost has no process any more.
fn nothing_lives_on(world: &World, told: &Told, key: &Key, deed: &Deed) -> Result<(), Broken> {
    if deed.left_running || !matches!(told.state.as_str(), "cancelled" | "timed_out" | "lost") {
        return Ok(());
    }
    let left: usize =
        world.hosts.iter().map(|host| host.machine.lock().processes.iter().filter(|of| *of == key).count()).sum();
    if left > 0 {
        return Err(("P3", format!("{left} processes of {key} live on, which is {}", told.state)));
    }
    Ok(())
}
