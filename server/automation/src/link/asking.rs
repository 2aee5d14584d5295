//! Questions to agents that somebody waits for, with an answer each.
//!
//! Invariants: a question has a deadline, and so has whoever asks; few of a kind are open at a time for each host, and few
//! more wait for their turn; an answer to what nobody asks any more is dropped. Nothing that holds a transaction asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_kernel::Error;
use drover_shared::instance::{self, LogAnswer, LogOutcome, LogPiece, LogQuestion};
use drover_shared::message::{INSPECT_FEATURE, Inspect, Inspected, ToAgent};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::{Semaphore, oneshot};

use super::hub::Session;

/// Inspections that may be open for one host.
const INSPECTIONS_MAX: usize = 8;
/// Pieces of logs that one host is asked for at a time, and that wait for their turn.
const READS_MAX: usize = 4;
const READS_WAITING_MAX: usize = 64;
/// Logs of one host that are followed at a time, and of these by one application. Who waits for the same shares a place.
const FOLLOWS_MAX: usize = 16;
const FOLLOWS_OF_ONE_MAX: usize = 4;

/// Time that an answer has on its way, beyond what the agent may take for it.
const WAY: Duration = Duration::from_secs(10);
/// Time that an agent may take for a piece of a log, beyond the wait for it.
const READING: Duration = Duration::from_secs(25);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The agent does not know such questions.
    TooOld,
    /// Too many are asking already.
    Busy,
    /// Those who follow logs of this application are too many.
    Crowded,
    /// The session ended before the answer came.
    Gone,
    /// Nothing came in time.
    Late,
}

impl Unanswered {
    /// What whoever asked is told.
    pub(crate) fn told(self, host: &str, what: &str) -> Error {
        match self {
            Self::TooOld => Error::conflict(format!("the agent of {host} is too old to look at {what}: update it")),
            Self::Busy => Error::Unavailable(format!("too many are asking {host} at the moment, try again")),
            Self::Crowded => Error::Unavailable(format!(
                "logs of this application are followed from {FOLLOWS_OF_ONE_MAX} places on {host} already, try again"
            )),
            Self::Gone => Error::Unavailable(format!("the agent of {host} went away before it answered, try again")),
            Self::Late => Error::Unavailable(format!("the agent of {host} did not answer in time, try again")),
        }
    }
}

/// Kinds of questions, each with room of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Inspection,
    Read,
    Follow,
}

impl Kind {
    fn most(self) -> usize {
        match self {
            Self::Inspection => INSPECTIONS_MAX,
            Self::Read => READS_MAX,
            Self::Follow => FOLLOWS_MAX,
        }
    }
}

/// What agents answer.
pub(super) enum Answer {
    Inspected(Inspected),
    Log(LogAnswer),
}

impl Answer {
    fn request(&self) -> u64 {
        match self {
            Self::Inspected(answer) => answer.request,
            Self::Log(answer) => answer.request,
        }
    }
}

/// Questions without an answer so far.
pub(crate) struct Questions {
    open: Mutex<Open>,
    /// Turns of those who read, and places of those who wait for one.
    turns: Semaphore,
    places: Semaphore,
    followed: Mutex<Vec<Followed>>,
}

/// What comes next of a log, for all who wait for it.
struct Followed {
    application_id: i64,
    wanted: (String, Option<String>, LogPiece),
    answer: WeakShared<Following>,
}

type Following = BoxFuture<'static, Result<LogOutcome, Unanswered>>;

impl Default for Questions {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            turns: Semaphore::new(READS_MAX),
            places: Semaphore::new(READS_MAX + READS_WAITING_MAX),
            followed: Mutex::default(),
        }
    }
}

#[derive(Default)]
struct Open {
    last: u64,
    waiting: HashMap<u64, (Kind, oneshot::Sender<Answer>)>,
}

impl Questions {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, kind: Kind) -> Option<Question<'_>> {
        let mut open = self.lock();
        if open.waiting.values().filter(|(other, _)| *other == kind).count() >= kind.most() {
            return None;
        }
        open.last += 1;
        let (sender, answer) = oneshot::channel();
        let request = open.last;
        open.waiting.insert(request, (kind, sender));
        drop(open);
        Some(Question { questions: self, request, answer })
    }

    /// Takes in an answer.
    pub(super) fn answered(&self, answer: Answer) {
        if let Some((_, waiting)) = self.lock().waiting.remove(&answer.request()) {
            // Who asked may have gone away.
            let _ = waiting.send(answer);
        }
    }
}

/// An open question; dropping it gives it up.
struct Question<'a> {
    questions: &'a Questions,
    request: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.questions.lock().waiting.remove(&self.request);
    }
}

impl Session {
    /// Asks what is kept under a deploy path, of one release or of all; the agent may take so long for it.
    ///
    /// # Errors
    /// [`Unanswered`] says why there is no answer.
    pub(crate) async fn inspect(
        &self,
        deploy_path: String,
        release: Option<String>,
        compare: bool,
        allowed: Duration,
    ) -> Result<Inspected, Unanswered> {
        if !self.can(INSPECT_FEATURE) {
            return Err(Unanswered::TooOld);
        }
        let question = self.questions.begin(Kind::Inspection).ok_or(Unanswered::Busy)?;
        let timeout_ms = u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX);
        let inspect = Inspect { request: question.request, deploy_path, release, compare, timeout_ms };
        match self.exchange(question, ToAgent::Inspect(inspect), allowed + WAY).await? {
            Answer::Inspected(answer) => Ok(answer),
            Answer::Log(_) => Err(Unanswered::Gone),
        }
    }

    /// Asks for a piece of a log file of an application, which is read as this account.
    ///
    /// # Errors
    /// [`Unanswered`] says why there is no answer.
    pub(crate) async fn read_log(
        self: &Arc<Self>,
        application_id: i64,
        wanted: (String, Option<String>, LogPiece),
    ) -> Result<LogOutcome, Unanswered> {
        if !self.can(instance::FEATURE) {
            return Err(Unanswered::TooOld);
        }
        if let LogPiece::Next { .. } = wanted.2 {
            return self.followed(application_id, wanted)?.await;
        }
        let _place = self.questions.places.try_acquire().map_err(|_| Unanswered::Busy)?;
        let turn = tokio::time::timeout(WAY, self.questions.turns.acquire()).await;
        let _turn = turn.map_err(|_| Unanswered::Busy)?.map_err(|_| Unanswered::Gone)?;
        self.ask_log(Kind::Read, wanted).await
    }

    /// What comes next of a log: asked for once for all who wait for the same.
    fn followed(
        self: &Arc<Self>,
        application_id: i64,
        wanted: (String, Option<String>, LogPiece),
    ) -> Result<Shared<Following>, Unanswered> {
        let mut followed = self.questions.followed.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for these any more, or they have their answer.
        followed.retain(|one| one.answer.upgrade().is_some_and(|answer| answer.peek().is_none()));
        if let Some(same) = followed.iter().find(|one| one.wanted == wanted).and_then(|one| one.answer.upgrade()) {
            return Ok(same);
        }
        if followed.iter().filter(|one| one.application_id == application_id).count() >= FOLLOWS_OF_ONE_MAX {
            return Err(Unanswered::Crowded);
        }
        let (session, asked) = (self.clone(), wanted.clone());
        let answer = async move { session.ask_log(Kind::Follow, asked).await }.boxed().shared();
        followed.extend(answer.downgrade().map(|weak| Followed { application_id, wanted, answer: weak }));
        Ok(answer)
    }

    async fn ask_log(
        &self,
        kind: Kind,
        (path, running_user, piece): (String, Option<String>, LogPiece),
    ) -> Result<LogOutcome, Unanswered> {
        let wait_ms = if let LogPiece::Next { wait_ms, .. } = piece { wait_ms } else { 0 };
        let question = self.questions.begin(kind).ok_or(Unanswered::Busy)?;
        let asked = LogQuestion { request: question.request, path, running_user, piece };
        let allowed = READING + WAY + Duration::from_millis(wait_ms);
        match self.exchange(question, ToAgent::ReadLog(asked), allowed).await? {
            Answer::Log(LogAnswer { outcome: LogOutcome::Busy {}, .. }) => Err(Unanswered::Busy),
            Answer::Log(answer) => Ok(answer.outcome),
            Answer::Inspected(_) => Err(Unanswered::Gone),
        }
    }

    async fn exchange(
        &self,
        mut question: Question<'_>,
        message: ToAgent,
        allowed: Duration,
    ) -> Result<Answer, Unanswered> {
        let exchange = async {
            if !self.send(message).await {
                return Err(Unanswered::Gone);
            }
            tokio::select! {
                answer = &mut question.answer => answer.map_err(|_| Unanswered::Gone),
                () = self.closed.cancelled() => Err(Unanswered::Gone),
            }
        };
        tokio::time::timeout(allowed, exchange).await.unwrap_or(Err(Unanswered::Late))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(request: u64) -> Answer {
        Answer::Inspected(Inspected { request, reason: None, releases: Vec::new(), free_bytes: None })
    }

    #[test]
    fn an_answer_finds_its_question_and_others_are_dropped() {
        let questions = Questions::default();
        let (Some(mut first), Some(mut second)) = (questions.begin(Kind::Inspection), questions.begin(Kind::Read))
        else {
            panic!("room")
        };
        questions.answered(answer(second.request));
        questions.answered(answer(4711));
        assert_eq!(second.answer.try_recv().map(|answer| answer.request()), Ok(2));
        assert!(first.answer.try_recv().is_err());
        questions.answered(answer(second.request));
    }

    #[test]
    fn few_are_open_at_a_time_and_one_that_is_given_up_makes_room() {
        let questions = Questions::default();
        let mut open: Vec<_> = std::iter::from_fn(|| questions.begin(Kind::Follow)).take(FOLLOWS_MAX + 1).collect();
        assert_eq!(open.len(), FOLLOWS_MAX);
        assert!(questions.begin(Kind::Read).is_some(), "another kind has room of its own");
        open.pop();
        assert!(questions.begin(Kind::Follow).is_some());
    }
}
