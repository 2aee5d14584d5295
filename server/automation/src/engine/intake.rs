//! What many sessions say of executions at the same time, taken in together.
//!
//! A commit waits for the disk, however much is in it. Whoever brings news while others are being taken in waits for the
//! next transaction, which has everything that came meanwhile. Invariants: news get their answer after the commit, and
//! those of one session are taken in in their order; a task whose
//! last execution ends here ends in the same transaction; where something fails, each piece of news is taken in by itself, so
//! that nobody's news suffer from another's.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use drover_kernel::{Audit, Error, Kernel, Result, Tx};
use drover_shared::message::Finished;
use drover_shared::words::ExecutionState as State;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::{Engine, lock, results, step};
use crate::executions::store::{self as store, Known};
use crate::link::hub::Session;
use crate::tasks::store as task_store;

/// News that are taken in by one transaction.
const TOGETHER_MAX: usize = 128;

/// What an agent says of an execution.
pub(crate) enum News {
    /// It holds the order: id and attempt.
    Accepted(String, i64),
    /// How it ended; all of its output is durable.
    Finished(Box<Finished>),
}

struct Item {
    host_id: i64,
    organisation_id: i64,
    news: News,
    reply: oneshot::Sender<Result<Option<Known>>>,
}

/// News that wait. Bounded by the sessions, each of which waits for the answers to a bounded number.
#[derive(Default)]
pub(super) struct Intake {
    waiting: Mutex<VecDeque<Item>>,
    /// Held by whoever takes in what waits.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Takes news in; gives the execution as it was, if it belongs to the session's host and this is its present attempt.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn take_in(kernel: &Kernel, session: &Session, news: News) -> Result<Option<Known>> {
    let engine = kernel.part::<Engine>();
    let (reply, mut answer) = oneshot::channel();
    let (host_id, organisation_id) = (session.host_id, session.organisation_id);
    lock(&engine.intake.waiting).push_back(Item { host_id, organisation_id, news, reply });
    // Each turn takes in at least the oldest that waits.
    loop {
        let turn = tokio::select! {
            biased;
            answer = &mut answer => return answer.map_err(Error::internal)?,
            turn = engine.intake.turn.clone().lock_owned() => turn,
        };
        let owner = kernel.clone();
        // By itself, so that the end of this session in the middle leaves nobody else without an answer.
        let _ = kernel.spawn(async move { take_turn(&owner, turn).await }).await;
    }
}

/// Takes in what waits, and answers.
async fn take_turn(kernel: &Kernel, turn: OwnedMutexGuard<()>) {
    let items = kernel.part::<Engine>().intake.next();
    let outcomes = match together(kernel, &items).await {
        Ok(known) => known.into_iter().map(Ok).collect(),
        Err(error) => {
            tracing::debug!(%error, count = items.len(), "news could not be taken in together");
            one_by_one(kernel, &items).await
        }
    };
    for (item, outcome) in items.into_iter().zip(outcomes) {
        let _ = item.reply.send(outcome);
    }
    drop(turn);
}

impl Intake {
    /// The oldest that wait, all of one organisation.
    fn next(&self) -> Vec<Item> {
        let mut waiting = lock(&self.waiting);
        let organisation_id = waiting.front().map(|item| item.organisation_id);
        let same = waiting.iter().take_while(|item| Some(item.organisation_id) == organisation_id).count();
        waiting.drain(..same.min(TOGETHER_MAX)).collect()
    }
}

async fn one_by_one(kernel: &Kernel, items: &[Item]) -> Vec<Result<Option<Known>>> {
    let mut outcomes = Vec::with_capacity(items.len());
    for item in items {
        let outcome = match outcomes.last() {
            // Each would wait as long, to hear the same.
            Some(Err(Error::Unavailable(why))) => Err(Error::Unavailable(why.clone())),
            _ => together(kernel, std::slice::from_ref(item)).await.map(|mut known| known.pop().flatten()),
        };
        outcomes.push(outcome);
    }
    outcomes
}

/// One transaction for all of them, which are of one organisation.
async fn together(kernel: &Kernel, items: &[Item]) -> Result<Vec<Option<Known>>> {
    let Some(first) = items.first() else { return Ok(Vec::new()) };
    let mut tx = kernel.work().begin(first.organisation_id).await?;
    let named = items.iter().map(|item| item.execution().0.to_owned()).collect::<BTreeSet<_>>();
    let found = store::find_all(&mut tx, named.into_iter().collect()).await?;
    let mut all: HashMap<String, Known> = found.into_iter().map(|known| (known.id.clone(), known)).collect();
    let answers: Vec<Option<Known>> = items.iter().map(|item| item.find(&all).cloned()).collect();
    // What a session accepted it accepted before it said how that ended.
    let accepted = items.iter().filter(|item| matches!(item.news, News::Accepted(..)));
    let accepted: Vec<String> = accepted
        .filter_map(|item| item.find(&all))
        .filter(|known| known.state == State::Dispatched)
        .map(|known| known.id.clone())
        .collect();
    for id in &accepted {
        all.entry(id.clone()).and_modify(|known| known.state = State::Running);
    }
    if !accepted.is_empty() {
        store::accept(&mut tx, accepted).await?;
    }
    lock_tasks(&mut tx, items, &all).await?;
    let mut tasks = BTreeSet::new();
    // In the order in which whoever changes several instances does it.
    let mut ordered: Vec<&Item> = items.iter().collect();
    ordered.sort_by_key(|item| item.find(&all).and_then(|known| known.instance_id));
    for item in ordered {
        let (News::Finished(news), Some(known)) = (&item.news, item.find(&all)) else { continue };
        let known = known.clone();
        results::finished(&mut tx, &known, news).await?;
        // What goes by a rule has something to say before it ends, which waits for its log.
        if !known.by_rule {
            tasks.insert(known.task_id);
        }
        // Heard twice, it changes nothing.
        all.entry(known.id).and_modify(|known| known.state = news.state);
    }
    for task_id in tasks {
        if store::all_are_over(&mut tx, task_id).await? {
            step(&mut tx, task_id).await?;
        }
    }
    tx.finish(Audit::none("agents say how executions go")).await?;
    Ok(answers)
}

/// Locks the tasks that a failure may stop, and those that may end, in the order of their ids, as whoever sends does.
async fn lock_tasks(tx: &mut Tx, items: &[Item], all: &HashMap<String, Known>) -> Result<()> {
    let finished = items.iter().filter_map(|item| match &item.news {
        News::Finished(news) => item.find(all).map(|known| (known, news.state != State::Succeeded)),
        News::Accepted(..) => None,
    });
    let finished: Vec<(&Known, bool)> = finished.collect();
    if !finished.iter().any(|(known, failed)| *failed && known.by_rule) {
        return Ok(());
    }
    for task_id in finished.iter().map(|(known, _)| known.task_id).collect::<BTreeSet<_>>() {
        task_store::lock(tx, task_id).await?;
    }
    Ok(())
}

impl Item {
    /// Execution and attempt that it speaks of.
    fn execution(&self) -> (&str, i64) {
        match &self.news {
            News::Accepted(id, attempt) => (id, *attempt),
            News::Finished(news) => (&news.execution_id, news.attempt.into()),
        }
    }

    /// The execution, if it belongs to the session's host and this is its present attempt.
    fn find<'a>(&self, all: &'a HashMap<String, Known>) -> Option<&'a Known> {
        let (id, attempt) = self.execution();
        all.get(id).filter(|known| known.host_id == self.host_id && known.attempt == attempt)
    }
}
