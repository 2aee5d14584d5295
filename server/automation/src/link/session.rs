//! One session with one agent, from the first message to the last.
//!
//! Three tasks share a session: this one reads, a second writes (so that no send is cancelled half way), a third
//! acknowledges in order what became durable (`acknowledging.rs`). Invariant: what is sent is sent whole, and nothing is
//! read of a session that is closed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use drover_kernel::{Audit, Error, Kernel, Result};
use drover_shared::frame::{FrameError, Header, Kind};
use drover_shared::limits::{
    HEARTBEAT_DEADLINE_MS, HEARTBEAT_MS, HOLDINGS_MAX, OUTPUT_WINDOW_BYTES, PROTOCOL_VERSIONS,
};
use drover_shared::message::{Finished, Hello, Holding, HoldingAnswer, ToAgent, ToServer, hello_bytes};
use drover_shared::planted::{self, Bug};
use drover_shared::words::ExecutionState as State;
use futures_util::future::try_join_all;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, Message};

use super::acknowledging::{Output, Waiting, acknowledge};
use super::asking::Answer;
use super::enrol::{EnrolRefused, enrol};
use super::hub::Session;
use super::keys::random_secret;
use super::presence::{gone_at, note_gone, note_seen, tell_of_restart};
use super::{store, transfer};
use crate::engine::{self, Engine, News};
use crate::executions::store::{self as execution_store, Known};
use crate::logs::{OpenError, TaskLog};
use crate::tasks::store as task_store;
use crate::watching;

/// What a session is held over: the messages of a websocket. Handed on several times, for each of which a future keeps
/// room: so it is a small thing, such as a box.
pub trait Wire:
    Stream<Item = Result<Message, tungstenite::Error>> + Sink<Message, Error = tungstenite::Error> + Unpin + Send + 'static
{
}

impl<W> Wire for W where
    W: Stream<Item = Result<Message, tungstenite::Error>>
        + Sink<Message, Error = tungstenite::Error>
        + Unpin
        + Send
        + 'static
{
}

/// Time for the messages before the session is open.
const OPENING: Duration = Duration::from_secs(20);
/// Time for one write: an agent that does not read for so long is gone.
const WRITE: Duration = Duration::from_secs(30);
/// Control messages and data frames that wait to be written, and output that waits to become durable.
const CONTROL_QUEUE: usize = 1024;
const DATA_QUEUE: usize = 16;
const DURABLE_QUEUE: usize = 256;
/// Holdings of a new session that are taken in at the same time, by a few commits.
const HOLDINGS_TOGETHER: usize = 512;
/// Open channels beyond which those are looked for that are no longer needed.
const CHANNELS_SWEPT: usize = 64;
/// Transfers that one agent may have under way.
const TRANSFERS_MAX: usize = 16;
/// Optional abilities of one agent that are remembered, and the length of a name.
const FEATURES_MAX: usize = 64;
const FEATURE_BYTES_MAX: usize = 64;
/// Interval at which a sign of life reaches the database.
const SEEN: Duration = Duration::from_secs(60);

/// Why a session ends before the agent ends it.
pub(super) struct Ended(pub(super) String);

impl<E: std::fmt::Display> From<E> for Ended {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Holds a session with whoever is at the other end, until its end.
pub async fn converse(kernel: Kernel, mut socket: impl Wire) {
    // What happens once or seldom is boxed: ten thousand idle sessions hold what waiting for a message takes.
    let opened = tokio::time::timeout(OPENING, Box::pin(open(&kernel, &mut socket))).await;
    let (session, hello, control, turn) = match opened {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return,
        Ok(Err(Ended(reason))) => return tracing::info!(reason, "an agent's session did not open"),
        Err(_) => return tracing::info!("an agent took too long to say who it is"),
    };
    tracing::info!(host = session.host_name, epoch = session.epoch, "agent connected");
    let (sink, stream) = socket.split();
    let (data, frames) = mpsc::channel(DATA_QUEUE);
    let writer = kernel.spawn(write(session.clone(), sink, control, frames));
    let (durable, waiting) = mpsc::channel(DURABLE_QUEUE);
    let acknowledger = kernel.spawn(acknowledge(kernel.clone(), session.clone(), waiting));
    let mut reader = Reader {
        kernel: kernel.clone(),
        session: session.clone(),
        channels: HashMap::new(),
        unopened: HashMap::new(),
        transfers: HashMap::new(),
        durable,
        data,
    };
    let outcome = match Box::pin(reader.welcome(hello, turn)).await {
        Ok(()) => reader.read(stream).await,
        Err(ended) => Err(ended),
    };
    let reason = outcome.err().map_or_else(|| "the agent hung up".to_owned(), |Ended(reason)| reason);
    tracing::info!(host = session.host_name, reason, "agent disconnected");
    session.closed.cancel();
    drop(reader);
    let _ = acknowledger.await;
    let _ = writer.await;
    let present = kernel.part::<Engine>().hub.remove(&session);
    if present {
        Box::pin(note_gone(&kernel, &session)).await;
    }
}

async fn say(socket: &mut impl Wire, message: &ToAgent) -> Result<(), Ended> {
    let text = serde_json::to_string(message)?;
    socket.send(Message::text(text)).await.map_err(Ended::from)
}

async fn hear(socket: &mut impl Wire) -> Result<ToServer, Ended> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).map_err(Ended::from),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) | None => return Err(Ended("hung up before it said who it is".to_owned())),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// The last part keeps orders back until the agent has been welcomed.
type Opened = (Arc<Session>, Box<Hello>, mpsc::Receiver<Box<ToAgent>>, OwnedMutexGuard<()>);

/// Challenge, enrolment if the agent is new, hello. None when the agent was refused.
async fn open(kernel: &Kernel, socket: &mut impl Wire) -> Result<Option<Opened>, Ended> {
    let engine = kernel.part::<Engine>();
    let hub = &engine.hub;
    let (nonce, challenge) = (random_secret()?, hub.challenge());
    let time_ms = kernel.clock().now().millis();
    say(socket, &ToAgent::Challenge { nonce: nonce.clone(), versions: PROTOCOL_VERSIONS, time_ms }).await?;
    let mut message = hear(socket).await?;
    if let ToServer::Enrol { secret, name, public_key } = &message {
        match enrol(kernel, secret, name, public_key).await? {
            Ok(agent_id) => {
                let (ca_pem, signing_key) = (engine.keys.ca_pem().to_owned(), engine.keys.signing_key());
                say(socket, &ToAgent::Enrolled { agent_id, ca_pem, signing_key }).await?;
            }
            Err(EnrolRefused(reason)) => return refuse(socket, reason, false).await,
        }
        message = hear(socket).await?;
    }
    let ToServer::Hello(hello) = message else { return Err(Ended("did not say hello".to_owned())) };
    let agent = {
        let _turn = hub.opening().await;
        store::find(&mut kernel.work().read().await?, &hello.agent_id).await?
    };
    let Some(agent) = agent else {
        return refuse(socket, "this agent is not enrolled here, or its host was removed".to_owned(), false).await;
    };
    let key = BASE64.decode(&agent.public_key)?;
    let signature = BASE64.decode(&hello.signature)?;
    let proved = UnparsedPublicKey::new(&ED25519, key).verify(&hello_bytes(&nonce, &agent.id), &signature);
    if proved.is_err() {
        return refuse(socket, "the agent's key is not the one that was enrolled".to_owned(), false).await;
    }
    if !(PROTOCOL_VERSIONS.0..=PROTOCOL_VERSIONS.1).contains(&hello.version) {
        return refuse(socket, "the agent speaks another version of the protocol".to_owned(), true).await;
    }
    if hello.holdings.len() > HOLDINGS_MAX {
        return refuse(socket, format!("the agent holds more than {HOLDINGS_MAX} executions"), true).await;
    }
    let outdated = || "what this agent says was overtaken by a newer connection of it".to_owned();
    if !hub.is_newest_answer(agent.host_id, challenge) {
        return refuse(socket, outdated(), true).await;
    }
    let opening = hub.opening().await;
    let mut tx = kernel.work().begin(agent.organisation_id).await?;
    let host_name = store::host_name(&mut tx, agent.host_id).await?;
    let opened = store::open_session(&mut tx, &hello).await?;
    tx.finish(Audit::none("an agent connects")).await?;
    drop(opening);
    let (sender, control) = mpsc::channel(CONTROL_QUEUE);
    let session = Arc::new(Session::new(&agent, host_name, opened, features(&hello), sender));
    let turn = session.sending.clone().lock_owned().await;
    if !hub.is_newest_answer(agent.host_id, challenge) {
        return refuse(socket, outdated(), true).await;
    }
    if !hub.register(&session) {
        return refuse(socket, "a newer session of this agent is open".to_owned(), true).await;
    }
    Ok(Some((session, hello, control, turn)))
}

/// What the agent says that it can do, as far as anybody could ask for.
fn features(hello: &Hello) -> Vec<String> {
    let known = |name: &&String| name.len() <= FEATURE_BYTES_MAX;
    hello.features.iter().filter(known).take(FEATURES_MAX).cloned().collect()
}

async fn refuse(socket: &mut impl Wire, reason: String, retry: bool) -> Result<Option<Opened>, Ended> {
    tracing::info!(reason, "an agent is refused");
    say(socket, &ToAgent::Refused { reason, retry }).await?;
    let _ = socket.close().await;
    Ok(None)
}

/// Writes control messages before data, until the session is over.
async fn write(
    session: Arc<Session>,
    mut sink: SplitSink<impl Wire, Message>,
    mut control: mpsc::Receiver<Box<ToAgent>>,
    mut frames: mpsc::Receiver<Vec<u8>>,
) {
    loop {
        let message = tokio::select! {
            biased;
            () = session.closed.cancelled() => break,
            Some(message) = control.recv() => match serde_json::to_string(&message) {
                Ok(text) => Message::text(text),
                Err(error) => {
                    tracing::error!(%error, "a message cannot be written as JSON");
                    continue;
                }
            },
            Some(frame) = frames.recv() => Message::binary(frame),
            else => break,
        };
        if !matches!(tokio::time::timeout(WRITE, sink.send(message)).await, Ok(Ok(()))) {
            break;
        }
    }
    session.closed.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), sink.close()).await;
}

/// Whether news of an execution still matter: those of a lost one are the truth that was missing.
fn is_awaited(state: State) -> bool {
    !state.is_over() || state == State::Lost
}

struct Reader {
    kernel: Kernel,
    session: Arc<Session>,
    /// Channels of this session, and which execution each is.
    channels: HashMap<u32, Arc<Output>>,
    /// Channels whose output could not be opened at the time: tried again, and what came meanwhile is asked for again.
    unopened: HashMap<u32, Known>,
    /// Transfers under way: the agent's acknowledged offset of each.
    transfers: HashMap<u32, watch::Sender<u64>>,
    durable: mpsc::Sender<Box<Waiting>>,
    data: mpsc::Sender<Vec<u8>>,
}

impl Reader {
    /// Says what is wanted of the agent's holdings, and sends again what it never got.
    async fn welcome(&mut self, hello: Box<Hello>, turn: OwnedMutexGuard<()>) -> Result<(), Ended> {
        let known = self.take_holdings_in(&hello.holdings).await?;
        let mut answers = Vec::with_capacity(hello.holdings.len());
        let mut unwanted = Vec::new();
        for (holding, known) in hello.holdings.iter().zip(known) {
            let wanted = known.filter(|known| is_awaited(known.state));
            if let Some(known) = wanted.as_ref().filter(|known| known.state == State::Lost && !holding.finished) {
                // It goes on, although it was given up.
                if let Some(object) = known.object() {
                    self.session.is_at_work(&known.id, object);
                }
                unwanted.extend(known.answered.then(|| (known.id.clone(), known.attempt)));
            }
            let mut offset = 0;
            if let Some(known) = &wanted {
                // The agent keeps what cannot be taken in: it hears neither that it is wanted nor that it is not.
                let Some(output) = self.open_output(holding.channel, known).await? else { continue };
                offset = output.log.durable(output.ordinal);
                if planted::has(Bug::OutputOnTrust) {
                    offset = holding.log_length;
                }
            }
            answers.push(HoldingAnswer {
                execution_id: holding.execution_id.clone(),
                attempt: holding.attempt,
                wanted: wanted.is_some(),
                offset,
            });
        }
        self.session
            .send(ToAgent::Welcome {
                version: hello.version,
                epoch: self.session.epoch,
                heartbeat_ms: HEARTBEAT_MS,
                deadline_ms: HEARTBEAT_DEADLINE_MS,
                output_window_bytes: OUTPUT_WINDOW_BYTES,
                holdings: answers,
            })
            .await;
        self.account_for_missing(&hello).await?;
        for (id, attempt) in unwanted {
            self.session.cancel_one(&id, attempt, "somebody said meanwhile what became of it", false).await;
        }
        drop(turn);
        watching::look_after(&self.kernel, [self.session.host_id]);
        if let Err(error) = engine::dispatch_hosts(&self.kernel, [self.session.host_id]).await {
            // The turn may have failed for what others have to send: that is no reason to end this session.
            tracing::warn!(host = self.session.host_name, %error, "orders could not be sent; the sweep tries again");
        }
        Ok(())
    }

    /// The executions that the agent holds, as far as they are known here; whatever it was sent it has accepted.
    async fn take_holdings_in(&self, holdings: &[Holding]) -> Result<Vec<Option<Known>>, Ended> {
        let mut known = Vec::with_capacity(holdings.len());
        for some in holdings.chunks(HOLDINGS_TOGETHER) {
            self.check_present()?;
            let news = some.iter().map(|one| News::Accepted(one.execution_id.clone(), one.attempt.into()));
            let taken = news.map(|news| engine::take_in(&self.kernel, &self.session, news));
            known.extend(try_join_all(taken).await?);
        }
        Ok(known)
    }

    /// A session whose place a newer one has taken ends, whatever it was about to do.
    fn check_present(&self) -> Result<(), Ended> {
        if self.session.closed.is_cancelled() { Err(Ended("the session was closed".to_owned())) } else { Ok(()) }
    }

    /// Executions that were sent to this host and that its agent does not hold: an order that never arrived is sent
    /// again, one that was accepted is lost.
    async fn account_for_missing(&self, hello: &Hello) -> Result<(), Ended> {
        let engine = self.kernel.part::<Engine>();
        let opening = engine.hub.opening().await;
        let out = execution_store::out_on_host(&mut self.kernel.work().read().await?, self.session.host_id).await?;
        drop(opening);
        tell_of_restart(&self.kernel, &self.session, &out);
        let held: HashMap<&str, &Holding> = hello.holdings.iter().map(|one| (one.execution_id.as_str(), one)).collect();
        for execution in out {
            self.check_present()?;
            let holding = held.get(execution.id.as_str());
            if holding.is_some_and(|holding| !holding.needs_order) {
                continue;
            }
            if let (Some(reason), None, State::Dispatched) = (&execution.withdrawn, holding, execution.state) {
                engine::withdraw(&self.kernel, &self.session, &execution.id, execution.attempt, reason).await?;
            } else if let (Some(reason), Some(_)) = (&execution.withdrawn, holding) {
                // It waits for its secrets, and gets none: its agent ends what has not begun.
                self.session.cancel_one(&execution.id, execution.attempt, reason, false).await;
            } else if execution.state == State::Dispatched || holding.is_some() {
                engine::send_missing(&self.kernel, &self.session, &execution, holding.is_some()).await?;
            } else {
                let restarted = self.session.was_restarted_since(execution.dispatched_at);
                let first = if restarted { "the host was restarted, and " } else { "" };
                let reason =
                    format!("{first}the agent no longer knows of it: its data directory was emptied or replaced");
                engine::lost(&self.kernel, &self.session, &execution.id, execution.attempt, &reason).await?;
            }
        }
        Ok(())
    }

    /// Opens the channel of an execution, unless its task's file of output cannot be opened: one that is damaged must not
    /// keep the host from everything else.
    async fn open_output(&mut self, channel: u32, known: &Known) -> Result<Option<Arc<Output>>, Ended> {
        let log = match self.log(known.task_id).await {
            Ok(log) => log,
            Err(error) => {
                // What is damaged stays so; what the system refuses, too many open files for example, it may do later.
                if matches!(error, OpenError::Storage { .. }) {
                    self.unopened.insert(channel, known.clone());
                }
                return Ok(None);
            }
        };
        if self.channels.len() >= CHANNELS_SWEPT {
            self.close_channels();
        }
        let output = Arc::new(Output::new(log, known)?);
        self.channels.insert(channel, output.clone());
        Ok(Some(output))
    }

    /// Tries again what could not be opened: its agent sends what was not taken in since.
    async fn open_again(&mut self, channel: u32) -> Result<(), Ended> {
        let Some(known) = self.unopened.remove(&channel) else { return Ok(()) };
        if let Some(output) = self.open_output(channel, &known).await? {
            let offset = output.log.durable(output.ordinal);
            self.session.send(ToAgent::OutputResume { channel, offset }).await;
        }
        Ok(())
    }

    /// Whose outcome is taken in needs no channel, and its task's file may be closed, and removed.
    fn close_channels(&mut self) {
        self.channels.retain(|_, output| !output.is_over());
    }

    async fn log(&self, task_id: i64) -> Result<TaskLog, OpenError> {
        let opened = self.kernel.part::<Engine>().logs.task(task_id).await;
        opened.inspect_err(|error| tracing::error!(task_id, %error, "the output of a task cannot be opened"))
    }

    async fn read(&mut self, mut stream: SplitStream<impl Wire>) -> Result<(), Ended> {
        let stop = self.kernel.stopping();
        let mut heard = Instant::now();
        let mut seen = heard;
        loop {
            let session = self.session.clone();
            let message = tokio::select! {
                biased;
                () = session.closed.cancelled() => return Err(Ended("the session was closed".to_owned())),
                () = stop.cancelled() => return Err(Ended("the server stops".to_owned())),
                message = tokio::time::timeout_at(gone_at(heard), stream.next()) => message,
            };
            if message.is_ok() {
                heard = Instant::now();
            }
            match message {
                Err(_) => return Err(Ended(format!("nothing was heard for {} s", heard.elapsed().as_secs()))),
                Ok(None | Some(Ok(Message::Close(_)))) => return Ok(()),
                Ok(Some(Ok(Message::Text(text)))) => Box::pin(self.control(serde_json::from_str(&text)?)).await?,
                Ok(Some(Ok(Message::Binary(frame)))) => Box::pin(self.frame(frame)).await?,
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Err(error.into()),
            }
            if seen.elapsed() > SEEN {
                seen = Instant::now();
                if let Err(error) = Box::pin(note_seen(&self.kernel, &self.session, true, None)).await {
                    // It is heard all the same: no reason to break off what it does.
                    tracing::warn!(host = self.session.host_name, %error, "a sign of life cannot be noted");
                }
            }
        }
    }

    async fn control(&mut self, message: ToServer) -> Result<(), Ended> {
        match message {
            ToServer::Accepted { execution_id, attempt, channel } => {
                let mut read = self.kernel.work().read().await?;
                let known = execution_store::find(&mut read, self.session.host_id, &execution_id).await?;
                drop(read);
                match known.filter(|known| known.attempt == i64::from(attempt)) {
                    Some(known) => {
                        self.open_output(channel, &known).await?;
                        self.durable.send(Box::new(Waiting::Accepted { execution_id, attempt })).await?;
                    }
                    None => drop(self.session.send(ToAgent::Archived { execution_id, attempt }).await),
                }
            }
            ToServer::Rejected { execution_id, attempt, reason, no_room } => {
                self.refused(&execution_id, attempt, &reason, no_room).await?;
            }
            ToServer::Finished(news) => {
                if let Some(output) = self.output_of(&news).await? {
                    self.durable.send(Box::new(Waiting::Finished { output, news })).await?;
                }
            }
            ToServer::Fetch { channel, digest, offset, execution_id, part } => {
                self.fetch(channel, transfer::Wanted { digest, part, from: offset }, &execution_id).await?;
            }
            ToServer::FetchAck { channel, offset } => {
                if let Some(acknowledged) = self.transfers.get(&channel) {
                    acknowledged.send_replace(offset);
                }
            }
            ToServer::FetchDone { channel } => drop(self.transfers.remove(&channel)),
            ToServer::Heartbeat { .. } => {
                self.close_channels();
                for channel in self.unopened.keys().copied().collect::<Vec<_>>() {
                    self.open_again(channel).await?;
                }
                let _ = self.session.send(ToAgent::HeartbeatAck {}).await;
            }
            ToServer::Enrol { .. } | ToServer::Hello(_) => return Err(Ended("said hello twice".to_owned())),
            ToServer::Inspected(answer) => self.session.questions.answered(Answer::Inspected(*answer)),
            ToServer::Log(answer) => self.session.questions.answered(Answer::Log(*answer)),
            ToServer::Observed { instances } => {
                if let Err(error) = watching::observed(&self.kernel, &self.session, instances).await {
                    tracing::warn!(host = self.session.host_name, %error, "what a host sees cannot be noted; it is asked again");
                    watching::tell_anew(&self.kernel, self.session.host_id);
                }
            }
            ToServer::Unknown => {}
        }
        Ok(())
    }

    /// The agent does not take an order. What cannot be noted at the time comes again with the order.
    async fn refused(&self, id: &str, attempt: u32, reason: &str, no_room: bool) -> Result<(), Ended> {
        let (kernel, session) = (&self.kernel, &self.session);
        let noted = if no_room {
            engine::put_back(kernel, session, id, attempt.into(), reason).await
        } else {
            engine::rejected(kernel, session, id, attempt.into(), reason).await
        };
        session.answered(id, attempt.into());
        engine::let_others_in(kernel, session.host_id, id);
        match noted {
            Err(Error::Unavailable(why)) => {
                tracing::warn!(host = session.host_name, why, "that an order is refused cannot be noted at the time");
                Ok(())
            }
            noted => Ok(noted?),
        }
    }

    /// The channel and log of an execution that is over, if this server still wants to hear of it. Nothing at all when its
    /// output cannot be taken in: then the agent keeps both.
    async fn output_of(&mut self, news: &Finished) -> Result<Option<Option<(u32, Arc<Output>)>>, Ended> {
        let unopened = self.unopened.iter().find(|(_, known)| known.id == news.execution_id);
        if let Some(channel) = unopened.map(|(channel, _)| *channel) {
            self.open_again(channel).await?;
        }
        let open = self.channels.iter().find(|(_, output)| output.is_of(&news.execution_id, news.attempt));
        if let Some((channel, output)) = open {
            return Ok(Some(Some((*channel, output.clone()))));
        }
        let mut read = self.kernel.work().read().await?;
        let known = execution_store::find(&mut read, self.session.host_id, &news.execution_id).await?;
        drop(read);
        let wanted = known.filter(|known| known.attempt == i64::from(news.attempt) && is_awaited(known.state));
        let Some(known) = wanted else { return Ok(Some(None)) };
        let Ok(log) = self.log(known.task_id).await else { return Ok(None) };
        // Without a channel there is no output of it in this session, and what came in an earlier one is durable.
        if log.durable(u32::try_from(known.ordinal)?) < news.log_length {
            return Err(Ended("output is missing that has no channel".to_owned()));
        }
        Ok(Some(None))
    }

    async fn fetch(&mut self, channel: u32, asked: transfer::Wanted, id: &str) -> Result<(), Ended> {
        let mut read = self.kernel.work().read().await?;
        let known = execution_store::find(&mut read, self.session.host_id, id).await?;
        let task = match &known {
            Some(known) => task_store::find(&mut read, known.task_id).await?,
            None => None,
        };
        drop(read);
        // Transfers that ended, refused ones too, make room.
        self.transfers.retain(|_, acknowledged| !acknowledged.is_closed());
        let wanted = task.is_some_and(|task| task.artifact_digest == Some(asked.digest));
        if !wanted || self.transfers.len() >= TRANSFERS_MAX {
            let reason =
                if wanted { "too many transfers at a time" } else { "no order of this host names this artifact" };
            self.session.send(ToAgent::ArtifactRefused { channel, reason: reason.to_owned() }).await;
            return Ok(());
        }
        let (acknowledged, watch) = watch::channel(asked.from);
        self.transfers.insert(channel, acknowledged);
        let artifacts = self.kernel.part::<Engine>().artifacts.clone();
        let sending = transfer::send(self.session.clone(), artifacts, self.data.clone(), channel, asked, watch);
        self.kernel.spawn(sending);
        Ok(())
    }

    async fn frame(&mut self, frame: Bytes) -> Result<(), Ended> {
        let (header, body) = match Header::decode(&frame) {
            Ok(parts) => parts,
            Err(FrameError::Unknown) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // A channel that is not open belongs to an execution that is no longer wanted.
        let (Kind::Output, Some(output)) = (header.kind, self.channels.get(&header.channel).cloned()) else {
            return Ok(());
        };
        let body = frame.slice_ref(body);
        let pending = output.log.enqueue(output.ordinal, header.offset, header.flags, header.raw_length, body).await?;
        self.durable.send(Box::new(Waiting::Output { channel: header.channel, output, pending })).await?;
        Ok(())
    }
}
