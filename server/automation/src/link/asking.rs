//! Questions to agents that somebody waits for, with an answer each.
//!
//! Invariants: a question has a deadline, and so has whoever asks; few are open at a time for each host; an answer to
//! what nobody asks any more is dropped. Nothing that holds a transaction asks.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_shared::message::{INSPECT_FEATURE, Inspect, Inspected, ToAgent};
use tokio::sync::oneshot;

use super::hub::Session;

/// Questions that may be open for one host.
const QUESTIONS_MAX: usize = 8;

/// Time that an answer has on its way, beyond what the agent may take for it.
const WAY: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The agent does not know such questions.
    TooOld,
    /// Too many are asking already.
    Busy,
    /// The session ended before the answer came.
    Gone,
    /// Nothing came in time.
    Late,
}

/// Questions without an answer so far.
#[derive(Default)]
pub(crate) struct Questions(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Inspected>>,
}

impl Questions {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Option<Question<'_>> {
        let mut open = self.lock();
        if open.waiting.len() >= QUESTIONS_MAX {
            return None;
        }
        open.last += 1;
        let (sender, answer) = oneshot::channel();
        let request = open.last;
        open.waiting.insert(request, sender);
        drop(open);
        Some(Question { questions: self, request, answer })
    }

    /// Takes in an answer.
    pub(super) fn answered(&self, answer: Inspected) {
        if let Some(waiting) = self.lock().waiting.remove(&answer.request) {
            // Who asked may have gone away.
            let _ = waiting.send(answer);
        }
    }
}

/// An open question; dropping it gives it up.
struct Question<'a> {
    questions: &'a Questions,
    request: u64,
    answer: oneshot::Receiver<Inspected>,
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
        let mut question = self.questions.begin().ok_or(Unanswered::Busy)?;
        let timeout_ms = u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX);
        let inspect = Inspect { request: question.request, deploy_path, release, compare, timeout_ms };
        let exchange = async {
            if !self.send(ToAgent::Inspect(inspect)).await {
                return Err(Unanswered::Gone);
            }
            tokio::select! {
                answer = &mut question.answer => answer.map_err(|_| Unanswered::Gone),
                () = self.closed.cancelled() => Err(Unanswered::Gone),
            }
        };
        tokio::time::timeout(allowed + WAY, exchange).await.unwrap_or(Err(Unanswered::Late))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(request: u64) -> Inspected {
        Inspected { request, reason: None, releases: Vec::new(), free_bytes: None }
    }

    #[test]
    fn an_answer_finds_its_question_and_others_are_dropped() {
        let questions = Questions::default();
        let (Some(mut first), Some(mut second)) = (questions.begin(), questions.begin()) else { panic!("room") };
        questions.answered(answer(second.request));
        questions.answered(answer(4711));
        assert_eq!(second.answer.try_recv().map(|answer| answer.request), Ok(2));
        assert!(first.answer.try_recv().is_err());
        questions.answered(answer(second.request));
    }

    #[test]
    fn few_are_open_at_a_time_and_one_that_is_given_up_makes_room() {
        let questions = Questions::default();
        let mut open: Vec<_> = std::iter::from_fn(|| questions.begin()).take(QUESTIONS_MAX + 1).collect();
        assert_eq!(open.len(), QUESTIONS_MAX);
        open.pop();
        assert!(questions.begin().is_some());
    }
}
