//! Which agents are connected to this server.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_kernel::Time;
use drover_shared::instance::Watched;
use drover_shared::message::ToAgent;
use drover_shared::order::Order;
use drover_shared::planted::{self, Bug};
use drover_shared::secret::Secrets;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::asking::Questions;
use super::store::Opened;
use crate::executions::store::Known;
use crate::locks::rules::Object;

/// Absences that are remembered, so that each is mentioned once; beyond that they are mentioned again.
const ABSENCES_MAX: usize = 100_000;

/// How long nothing is sent to an agent that has no room, unless something ends there before.
const NO_ROOM: Duration = Duration::from_secs(10);

/// Sessions that open at a time: when all agents come back at once, people still get their turn at the database.
const OPENING_MAX: usize = 8;

/// Places in the queue of messages that are left to those who may wait.
const ROOM_MIN: usize = 64;

/// Cancels that a session remembers, so that each is told once; beyond that they are told again.
const CANCELS_MAX: usize = 10_000;

/// An open session.
pub struct Session {
    /// Host.
    pub host_id: i64,
    /// Its name.
    pub host_name: String,
    /// Agent.
    pub agent_id: String,
    /// Organisation of the host.
    pub organisation_id: i64,
    /// Fencing number.
    pub epoch: i64,
    /// Optional abilities of the agent.
    pub features: Vec<String>,
    /// When its host was first heard after its last restart.
    restarted_at: Option<Time>,
    /// Held by whoever sends executions, so that there is one at a time, and until the agent has been welcomed.
    pub(crate) sending: Arc<tokio::sync::Mutex<()>>,
    /// Set when the session is over, or when a newer one has taken its place.
    pub(crate) closed: CancellationToken,
    /// What somebody waits for.
    pub(super) questions: Questions,
    control: mpsc::Sender<Box<ToAgent>>,
    /// What the agent was told to watch.
    pub(crate) watched: Mutex<Option<Vec<Watched>>>,
    /// Orders on their way, by execution and attempt: how often they were sent in this session without an answer that was
    /// noted. Bounded by what a host is sent.
    under_way: Mutex<HashMap<(String, i64), u32>>,
    /// Until when nothing is sent, because the agent said that it has no room.
    full_until: Mutex<Option<Instant>>,
    /// What the agent was told to end, by execution and attempt.
    cancelled: Mutex<HashMap<(String, i64), ToAgent>>,
    /// What the host still works at although it was given up as lost, by execution. Bounded by what an agent holds.
    at_work: Mutex<HashMap<String, Object>>,
}

impl Session {
    pub(crate) fn new(
        agent: &super::store::Agent,
        host_name: String,
        Opened { epoch, restarted_at }: Opened,
        features: Vec<String>,
        control: mpsc::Sender<Box<ToAgent>>,
    ) -> Self {
        Self {
            host_id: agent.host_id,
            host_name,
            agent_id: agent.id.clone(),
            organisation_id: agent.organisation_id,
            epoch,
            features,
            restarted_at,
            sending: Arc::default(),
            closed: CancellationToken::new(),
            questions: Questions::default(),
            control,
            watched: Mutex::default(),
            under_way: Mutex::default(),
            full_until: Mutex::default(),
            cancelled: Mutex::default(),
            at_work: Mutex::default(),
        }
    }

    /// Whether the host was restarted since it was sent something.
    pub(crate) fn was_restarted_since(&self, sent: Option<Time>) -> bool {
        self.restarted_at.zip(sent).is_some_and(|(restarted, sent)| sent < restarted)
    }

    /// Whether the agent has an optional ability.
    pub(crate) fn can(&self, feature: &str) -> bool {
        self.features.iter().any(|one| one == feature)
    }

    /// Whether messages can be queued without waiting for the agent to read. Whoever looks after many hosts asks first,
    /// and comes back.
    pub(crate) fn has_room(&self) -> bool {
        self.control.capacity() > ROOM_MIN
    }

    /// Queues a message, waiting while the queue is full. False when the session is over.
    pub(crate) async fn send(&self, message: ToAgent) -> bool {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => false,
            sent = self.control.send(Box::new(message)) => sent.is_ok(),
        }
    }

    /// Queues an order, as [`send`](Self::send) does; behind it the cancel that was told already, if there was one: an
    /// execution counts as sent a moment before its order is, and the agent drops a cancel of what it does not know.
    pub(crate) async fn send_order(&self, id: &str, attempt: i64, order: Order, secrets: Secrets) -> bool {
        *lock(&self.under_way).entry((id.to_owned(), attempt)).or_default() += 1;
        if !self.send(ToAgent::Run { order, secrets }).await {
            return false;
        }
        // One that is told from now on is queued behind the order by itself.
        let told = lock(&self.cancelled).get(&(id.to_owned(), attempt)).cloned();
        match told {
            Some(cancel) => self.send(cancel).await,
            None => true,
        }
    }

    /// Whether an order is on its way, waits at the agent, or its answer is being noted. It is not sent again meanwhile: a second one could be accepted
    /// after the first was refused.
    pub(crate) fn is_under_way(&self, id: &str, attempt: i64) -> bool {
        lock(&self.under_way).contains_key(&(id.to_owned(), attempt))
    }

    /// The agent has no room for more: nothing is sent for a while, or until something ends there.
    pub(crate) fn has_no_room(&self) {
        *lock(&self.full_until) = Some(Instant::now() + NO_ROOM);
    }

    /// Something has ended there, and may have made room.
    pub(super) fn has_room_again(&self) {
        *lock(&self.full_until) = None;
    }

    /// Whether the agent has said lately that it has no room.
    pub(crate) fn is_out_of_room(&self) -> bool {
        lock(&self.full_until).is_some_and(|until| Instant::now() < until)
    }

    /// The agent has answered an order, and that was noted, or could not be. By then it may have been put back and sent anew.
    pub(super) fn answered(&self, id: &str, attempt: i64) {
        if let Entry::Occupied(mut sent) = lock(&self.under_way).entry((id.to_owned(), attempt)) {
            *sent.get_mut() -= 1;
            if *sent.get() == 0 {
                sent.remove();
            }
        }
    }

    /// Tells the agent to end an attempt of an execution, once in a session: what it was told it does.
    pub(crate) async fn cancel(&self, execution: &Known, reason: &str, timed_out: bool) {
        self.cancel_one(&execution.id, execution.attempt, reason, timed_out).await;
    }

    /// As [`cancel`](Self::cancel), for who knows no more than its name.
    pub(crate) async fn cancel_one(&self, id: &str, attempt: i64, reason: &str, timed_out: bool) {
        let message = ToAgent::Cancel {
            execution_id: id.to_owned(),
            attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
            reason: reason.to_owned(),
            timed_out,
        };
        if self.is_told_first(id, attempt, &message) {
            self.send(message).await;
        }
    }

    /// Notes that the host still runs what was given up as lost: nothing else is sent for the same thing meanwhile.
    pub(crate) fn is_at_work(&self, id: &str, object: Object) {
        lock(&self.at_work).insert(id.to_owned(), object);
    }

    /// Notes that it has ended there. True when something may have waited for that.
    pub(crate) fn is_through(&self, id: &str) -> bool {
        lock(&self.at_work).remove(id).is_some()
    }

    /// Whether something may be sent that works at this.
    pub(crate) fn is_free(&self, object: Option<Object>) -> bool {
        object.is_none_or(|object| lock(&self.at_work).values().all(|busy| *busy != object))
    }

    /// Notes a cancel before it is sent. False when it was told before.
    fn is_told_first(&self, id: &str, attempt: i64, cancel: &ToAgent) -> bool {
        let mut cancelled = lock(&self.cancelled);
        if cancelled.len() >= CANCELS_MAX {
            cancelled.clear();
        }
        cancelled.insert((id.to_owned(), attempt), cancel.clone()).is_none()
    }
}

/// Every open session of this server.
pub struct Hub {
    sessions: Mutex<BTreeMap<i64, Arc<Session>>>,
    absences: Mutex<HashSet<(i64, i64)>>,
    opening: Semaphore,
    /// Challenges that were made, and for each host the newest that was answered. Kept when a session ends, for what is still
    /// on its way; bounded by the hosts that are enrolled.
    challenges: AtomicU64,
    answered: Mutex<HashMap<i64, u64>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            sessions: Mutex::default(),
            absences: Mutex::default(),
            opening: Semaphore::new(OPENING_MAX),
            challenges: AtomicU64::default(),
            answered: Mutex::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// The session of a host.
    #[must_use]
    pub fn find(&self, host_id: i64) -> Option<Arc<Session>> {
        lock(&self.sessions).get(&host_id).filter(|session| !session.closed.is_cancelled()).cloned()
    }

    /// A turn at the database for a session that opens; it ends with the value. Nobody waits for the network meanwhile.
    pub(super) async fn opening(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it, so that there always is one.
        self.opening.acquire().await.ok()
    }

    /// Hosts that have a session.
    pub(crate) fn hosts(&self) -> Vec<i64> {
        lock(&self.sessions).keys().copied().collect()
    }

    /// How many agents are connected.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.sessions).len()
    }

    /// The number of a new challenge.
    pub(super) fn challenge(&self) -> u64 {
        self.challenges.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether what a host's agent says in answer to this challenge counts. An agent leaves one connection before it dials
    /// the next, so what it said in answer to an older challenge than one that it has answered was on its way for long:
    /// it may hold much more by now.
    pub(super) fn is_newest_answer(&self, host_id: i64, challenge: u64) -> bool {
        let mut answered = lock(&self.answered);
        let newest = answered.entry(host_id).or_default();
        *newest = challenge.max(*newest);
        *newest == challenge || planted::has(Bug::NoFence)
    }

    /// Makes a session the one of its host; an older one is closed. False when a newer one is there already.
    pub(crate) fn register(&self, session: &Arc<Session>) -> bool {
        let mut sessions = lock(&self.sessions);
        if let Some(present) = sessions.get(&session.host_id) {
            // Epochs are counted for each agent: a host that was enrolled anew begins from the start.
            if present.agent_id == session.agent_id && present.epoch > session.epoch {
                return false;
            }
            present.closed.cancel();
        }
        sessions.insert(session.host_id, session.clone());
        drop(sessions);
        lock(&self.absences).retain(|(_, host_id)| *host_id != session.host_id);
        true
    }

    /// Forgets a session. True when it was still the one of its host.
    pub(crate) fn remove(&self, session: &Arc<Session>) -> bool {
        let mut sessions = lock(&self.sessions);
        let present = sessions.get(&session.host_id).is_some_and(|present| Arc::ptr_eq(present, session));
        if present {
            sessions.remove(&session.host_id);
        }
        present
    }

    /// Whether this is the first time that a task is seen waiting for a host.
    pub(crate) fn first_absence(&self, task_id: i64, host_id: i64) -> bool {
        let mut absences = lock(&self.absences);
        if absences.len() >= ABSENCES_MAX {
            absences.clear();
        }
        absences.insert((task_id, host_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::store::Agent;

    fn session(agent: &str, epoch: i64) -> Arc<Session> {
        let agent = Agent { id: agent.to_owned(), organisation_id: 1, host_id: 7, public_key: String::new() };
        let opened = Opened { epoch, restarted_at: None };
        Arc::new(Session::new(&agent, "web-1".to_owned(), opened, Vec::new(), mpsc::channel(1).0))
    }

    /// An execution counts as sent a moment before its order is: somebody may cancel it then, and the agent drops a
    /// cancel of what it does not know.
    #[tokio::test]
    async fn a_cancel_that_overtakes_its_order_is_told_again_behind_it() {
        let agent = Agent { id: "a".to_owned(), organisation_id: 1, host_id: 7, public_key: String::new() };
        let (sender, mut control) = mpsc::channel(16);
        let session =
            Session::new(&agent, "web-1".to_owned(), Opened { epoch: 1, restarted_at: None }, Vec::new(), sender);
        let order = || Order { statement: String::new(), entry: String::new(), signature: String::new() };
        let mut heard = || {
            let messages = std::iter::from_fn(|| control.try_recv().ok());
            let words = messages.map(|message| match *message {
                ToAgent::Run { .. } => "run".to_owned(),
                ToAgent::Cancel { execution_id, attempt, reason, timed_out } => {
                    format!("cancel {execution_id}.{attempt} {reason} {timed_out}")
                }
                other => panic!("{other:?}"),
            });
            words.collect::<Vec<_>>()
        };
        session.cancel_one("e", 1, "by ada", false).await;
        assert!(session.send_order("e", 1, order(), Secrets::default()).await);
        assert_eq!(heard(), ["cancel e.1 by ada false", "run", "cancel e.1 by ada false"]);
        session.cancel_one("e", 1, "by ada", false).await;
        assert!(session.send_order("f", 1, order(), Secrets::default()).await);
        assert_eq!(heard(), ["run"], "it is told no more often than that, and of no other");

        // Another attempt is another execution to the agent.
        assert!(session.send_order("e", 2, order(), Secrets::default()).await);
        session.cancel_one("e", 2, "too late", true).await;
        assert_eq!(heard(), ["run", "cancel e.2 too late true"]);
    }

    #[test]
    fn a_host_has_the_newest_session_alone() {
        let hub = Hub::default();
        let (first, second) = (session("a", 1), session("a", 2));
        assert!(hub.register(&first) && hub.register(&second));
        assert!(first.closed.is_cancelled() && !second.closed.is_cancelled());
        assert!(!hub.register(&session("a", 1)), "an older session comes too late");
        assert!(!hub.remove(&first), "the end of the old session leaves the new one");
        assert!(hub.find(7).is_some_and(|found| Arc::ptr_eq(&found, &second)));
    }

    #[test]
    fn an_agent_enrolled_anew_takes_the_place_of_the_former() {
        let hub = Hub::default();
        let (former, new) = (session("former", 57), session("new", 1));
        assert!(hub.register(&former) && hub.register(&new));
        assert!(former.closed.is_cancelled());
        assert!(!hub.remove(&former));
        assert!(hub.find(7).is_some_and(|found| Arc::ptr_eq(&found, &new)));
    }
}
