//! What waits for output to become durable: acknowledgements, and news of executions behind their output.
//!
//! Invariants: an outcome is taken in only after all the output before it, and its channel is free from then on; what cannot be
//! kept now, because the disk is full for example, is asked for again after a pause, and ends no session.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use drover_kernel::{Error, Kernel, Result};
use drover_shared::message::{Finished, ToAgent};
use drover_shared::planted::{self, Bug};
use futures_util::TryStreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::holding_back::HeldBack;
use super::hub::Session;
use super::session::Ended;
use crate::engine::{self, News};
use crate::executions::store::Known;
use crate::logs::{AppendError, Pending, TaskLog};

/// Of what waits, how much is looked at together.
const NEWS_BATCH: usize = 64;

/// Where the output of a channel goes.
pub(super) struct Output {
    pub(super) log: TaskLog,
    pub(super) ordinal: u32,
    execution_id: String,
    attempt: i64,
    /// Set when the outcome of its execution is taken in: nothing comes through this channel any more.
    over: AtomicBool,
}

impl Output {
    pub(super) fn new(log: TaskLog, known: &Known) -> Result<Self, Ended> {
        let (execution_id, attempt) = (known.id.clone(), known.attempt);
        Ok(Self { log, ordinal: u32::try_from(known.ordinal)?, execution_id, attempt, over: AtomicBool::new(false) })
    }

    pub(super) fn is_of(&self, execution_id: &str, attempt: u32) -> bool {
        self.attempt == i64::from(attempt) && self.execution_id == execution_id
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// What waits for output to become durable, in order.
pub(super) enum Waiting {
    Output { channel: u32, output: Arc<Output>, pending: Pending },
    Accepted { execution_id: String, attempt: u32 },
    Finished { output: Option<(u32, Arc<Output>)>, news: Box<Finished> },
}

/// Acknowledges output, and takes in news after all output before them.
pub(super) async fn acknowledge(kernel: Kernel, session: Arc<Session>, mut waiting: mpsc::Receiver<Box<Waiting>>) {
    let mut batch = Vec::new();
    let mut held = Held::default();
    loop {
        let count = tokio::select! {
            biased;
            () = due(held.next()) => {
                ask_again(&session, &mut held).await;
                continue;
            }
            count = waiting.recv_many(&mut batch, NEWS_BATCH) => count,
        };
        if count == 0 {
            return;
        }
        let together = std::mem::take(&mut batch).into_iter();
        if let Err(Ended(reason)) = Box::pin(acknowledge_all(&kernel, &session, &mut held, together)).await {
            tracing::warn!(host = session.host_name, reason, "the session is ended; the agent will come back");
            session.closed.cancel();
            return;
        }
    }
}

/// Channels whose output or outcome cannot be kept at the time.
type Held = HeldBack<Arc<Output>>;

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Asks again for output that could not be kept, and so for the outcome behind it.
async fn ask_again(session: &Session, held: &mut Held) {
    for (channel, output) in held.due(Instant::now()) {
        session.send(ToAgent::OutputResume { channel, offset: output.log.durable(output.ordinal) }).await;
    }
}

async fn acknowledge_all(
    kernel: &Kernel,
    session: &Session,
    held: &mut Held,
    batch: impl Iterator<Item = Box<Waiting>>,
) -> Result<(), Ended> {
    let mut news = FuturesOrdered::new();
    for next in batch {
        match *next {
            Waiting::Output { channel, output, pending } => {
                acknowledge_output(session, held, (channel, output), pending).await?;
            }
            Waiting::Accepted { execution_id, attempt } => {
                news.push_back(take_news(kernel, session, News::Accepted(execution_id, attempt.into()), None));
            }
            Waiting::Finished { output, news: finished } => {
                if all_is_durable(session, held, output.as_ref(), &finished).await {
                    let over = Over { key: (finished.execution_id.clone(), finished.attempt), output };
                    news.push_back(take_news(kernel, session, News::Finished(finished), Some(over)));
                }
            }
        }
    }
    // All of them are taken in together.
    while let Some(outcome) = news.try_next().await? {
        match outcome {
            Outcome::Kept(Some((channel, _))) => held.kept(channel),
            Outcome::NotNow((channel, output)) => drop(held.refused(channel, output, Instant::now())),
            Outcome::Kept(None) => {}
        }
    }
    Ok(())
}

async fn acknowledge_output(
    session: &Session,
    held: &mut Held,
    (channel, output): (u32, Arc<Output>),
    pending: Pending,
) -> Result<(), Ended> {
    match pending.done().await {
        Ok(appended) => {
            held.kept(channel);
            session.send(ToAgent::OutputAck { channel, offset: appended.durable }).await;
        }
        // What comes behind something that could not be kept.
        Err(AppendError::Gap { .. }) if held.is_held(channel) => {}
        Err(AppendError::Gap { durable }) => {
            session.send(ToAgent::OutputResume { channel, offset: durable }).await;
        }
        Err(error @ (AppendError::Full | AppendError::Storage(_))) => {
            if held.refused(channel, output, Instant::now()) {
                tracing::warn!(host = session.host_name, %error, "output cannot be kept; it is asked for again");
            }
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Whether all output of an execution that is over has come. Else its agent says again that it is over, once it has sent
/// the rest.
async fn all_is_durable(session: &Session, held: &Held, output: Option<&(u32, Arc<Output>)>, news: &Finished) -> bool {
    let Some((channel, output)) = output else { return true };
    let durable = output.log.durable(output.ordinal);
    if planted::has(Bug::OutputOnTrust) {
        return true;
    }
    if durable < news.log_length && !held.is_held(*channel) {
        session.send(ToAgent::OutputResume { channel: *channel, offset: durable }).await;
    }
    durable >= news.log_length
}

/// An execution that is over when its news are taken in.
struct Over {
    key: (String, u32),
    output: Option<(u32, Arc<Output>)>,
}

/// What became of news; with the channel of an execution that is over.
enum Outcome {
    Kept(Option<(u32, Arc<Output>)>),
    /// The database takes nothing in at the time: the agent is asked to say it again.
    NotNow((u32, Arc<Output>)),
}

/// Takes news in, and tells the agent to forget the execution that is over.
async fn take_news(kernel: &Kernel, session: &Session, news: News, over: Option<Over>) -> Result<Outcome, Ended> {
    if let Some(Over { key: (execution_id, attempt), .. }) =
        over.as_ref().filter(|_| planted::has(Bug::ForgottenTooEarly))
    {
        session.send(ToAgent::Archived { execution_id: execution_id.clone(), attempt: *attempt }).await;
    }
    let accepted = match &news {
        News::Accepted(id, attempt) => Some((id.clone(), *attempt)),
        News::Finished(_) => None,
    };
    let taken = engine::take_in(kernel, session, news).await;
    if let Some((id, attempt)) = accepted {
        session.answered(&id, attempt);
    }
    match (taken, &over) {
        (Ok(_), _) => {}
        (Err(Error::Unavailable(reason)), over) => {
            tracing::warn!(host = session.host_name, reason, "news of an execution cannot be taken in at the time");
            return match over {
                // An order that was not heard to be accepted is sent again, unless its outcome comes before.
                None => Ok(Outcome::Kept(None)),
                Some(Over { output: Some(output), .. }) => Ok(Outcome::NotNow(output.clone())),
                Some(Over { output: None, .. }) => Err(Ended(reason)),
            };
        }
        (Err(error), _) => return Err(error.into()),
    }
    let Some(Over { key: (execution_id, attempt), output }) = over else { return Ok(Outcome::Kept(None)) };
    if let Some((_, output)) = &output {
        output.over.store(true, Ordering::Relaxed);
    }
    session.send(ToAgent::Archived { execution_id, attempt }).await;
    session.has_room_again();
    Ok(Outcome::Kept(output))
}
