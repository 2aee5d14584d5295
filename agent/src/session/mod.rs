//! The agent's side of the protocol, without input or output.
//!
//! Facts come in: what the server says ([`Session::handle_message`], [`Session::handle_data`]), what happens on the
//! host ([`Session::log_grew`], [`Session::finished`], …) and what time it is ([`Session::handle_timeout`]). What is to
//! be done comes out of [`Session::next_output`], and which piece of a log to send next out of
//! [`Session::next_read`]. One session object lasts as long as the agent; connections come and go below it.
//! Invariants: output leaves in order and without gaps from the offset that the server named, never beyond the
//! window; an order is handed out at most once for each execution and attempt, and only in the session that it came in.

mod orders;
mod shipping;
mod transfers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use drover_shared::Digest;
use drover_shared::frame::{FrameError, Header, Kind};
use drover_shared::instance::{self, LogAnswer, LogQuestion, Observation, Watched};
use drover_shared::message::{
    Abilities, Finished, Hello, Holding, HoldingAnswer, INSPECT_FEATURE, Inspect, Inspected, SCRIPT_FEATURE,
    SHARED_PATHS_FEATURE, ToAgent, ToServer, hello_bytes,
};
use drover_shared::order::{Entry, Order, Statement};
use drover_shared::secret::{self, Secrets};

use crate::clock::Now;
use crate::identity::AgentKey;
use crate::spool::{Key, TAKEN_BYTES};
pub use shipping::Read;
use shipping::Shipping;
use transfers::Transfer;

/// Time for the handshake, in milliseconds.
const HANDSHAKE_MS_MAX: u64 = 20_000;

/// What the session is told about the agent.
pub struct Profile {
    /// Name of the host, for enrolment.
    pub name: String,
    /// Secret of the join token; needed until the agent is enrolled.
    pub secret: Option<String>,
    /// Id, once enrolled.
    pub agent_id: Option<String>,
    /// The agent's key.
    pub key: AgentKey,
    /// The server's public key in base64, once enrolled.
    pub signing_key: String,
    /// Id of this boot.
    pub boot_id: String,
    /// What the agent may do.
    pub abilities: Abilities,
    /// Lowest and highest version of the protocol that it speaks.
    pub versions: (u32, u32),
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Output {
    /// Send this, before any data.
    Send(ToServer),
    /// Send this, after the data that is already on its way.
    SendAfterData(ToServer),
    /// Keep this identity, then call [`Session::enrolled`]: agent id, CA, signing key.
    Enrolled(String, String, String),
    /// The session is open.
    Welcomed,
    /// Put this into the spool, then call [`Session::accepted`] or [`Session::rejected`], then start it.
    Run(Box<NewOrder>),
    /// An execution that waits for its secrets, see [`Session::needs_order`], gets them.
    Secrets(Key, Secrets),
    /// Look at a deploy path, then call [`Session::inspected`].
    Inspect(Inspect),
    /// Watch these instances, and no others; what is seen goes to [`Session::observed`].
    Watch(Vec<Watched>),
    /// Read a piece of a log, then call [`Session::log_read`].
    ReadLog(LogQuestion),
    /// End this execution: reason, and whether its time ran out.
    Cancel(Key, String, bool),
    /// The server has everything: remove it from the spool, then call [`Session::removed`].
    Forget(Key),
    /// The server does not want it: end it and remove it, then call [`Session::removed`].
    Discard(Key),
    /// A piece of an artifact: write it at the offset, then call [`Session::artifact_written`].
    Artifact(Digest, u64, Vec<u8>),
    /// The server has sent all that it has of what was asked for of an artifact; it ends at this offset.
    ArtifactEnded(Digest, u64),
    /// The server cannot send this artifact, and why.
    ArtifactRefused(Digest, String),
    /// Close the connection, and why; `true` to dial again.
    Close(String, bool),
}

/// An order that passed every check.
#[derive(Debug)]
pub struct NewOrder {
    /// Names it.
    pub key: Key,
    /// As it came.
    pub order: Order,
    /// What it says.
    pub statement: Statement,
    /// What is to be done.
    pub entry: Entry,
    /// Values that its scripts need; kept in memory alone.
    pub secrets: Secrets,
}

enum Phase {
    Offline,
    /// Until the time given, the server's next message of the handshake is awaited; with its challenge once it came.
    Handshake {
        until_ms: u64,
        challenge: Option<Challenge>,
    },
    Open(Open),
}

/// What the server's first message settles.
struct Challenge {
    nonce: String,
    /// Version of the protocol that this session is spoken in.
    version: u32,
}

struct Open {
    window: u64,
    heartbeat_ms: u64,
    deadline_ms: u64,
    heartbeat_at_ms: u64,
    heard_ms: u64,
}

enum Channel {
    Execution(Key),
    Transfer(Digest),
}

/// The state machine; see the module.
pub struct Session {
    profile: Profile,
    phase: Phase,
    executions: BTreeMap<Key, Shipping>,
    /// Executions whose log has bytes that were not sent.
    unsent: BTreeSet<Key>,
    served: Option<Key>,
    transfers: BTreeMap<Digest, Transfer>,
    channels: BTreeMap<u32, Channel>,
    next_channel: u32,
    outputs: VecDeque<Output>,
}

impl Session {
    /// A session that is not connected and holds nothing.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            phase: Phase::Offline,
            executions: BTreeMap::new(),
            unsent: BTreeSet::new(),
            served: None,
            transfers: BTreeMap::new(),
            channels: BTreeMap::new(),
            next_channel: 1,
            outputs: VecDeque::new(),
        }
    }

    /// A connection is there; the server speaks first.
    pub fn connected(&mut self, now: Now) {
        self.disconnected();
        self.phase = Phase::Handshake { until_ms: now.monotonic_ms + HANDSHAKE_MS_MAX, challenge: None };
    }

    /// The connection is gone; what was to be sent over it is forgotten.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Offline;
        self.channels.clear();
        self.next_channel = 1;
        self.outputs.retain(|output| !matches!(output, Output::Send(_) | Output::SendAfterData(_) | Output::Close(..)));
        self.drop_orders();
        for shipping in self.executions.values_mut() {
            shipping.detach();
        }
        for transfer in self.transfers.values_mut() {
            transfer.channel = None;
        }
    }

    /// What the server said.
    pub fn handle_message(&mut self, message: ToAgent, now: Now) {
        if let Phase::Open(open) = &mut self.phase {
            open.heard_ms = now.monotonic_ms;
        }
        match (message, &self.phase) {
            (ToAgent::Unknown | ToAgent::HeartbeatAck {}, _) | (_, Phase::Offline) => {}
            (ToAgent::Refused { reason, retry }, _) => self.close(format!("the server refused: {reason}"), retry),
            (ToAgent::Challenge { nonce, versions, .. }, Phase::Handshake { challenge: None, .. }) => {
                self.challenged(nonce, versions, now);
            }
            (ToAgent::Enrolled { agent_id, ca_pem, signing_key }, Phase::Handshake { challenge: Some(_), .. })
                if self.profile.agent_id.is_none() =>
            {
                self.outputs.push_back(Output::Enrolled(agent_id, ca_pem, signing_key));
            }
            (
                ToAgent::Welcome { version, heartbeat_ms, deadline_ms, output_window_bytes, holdings, .. },
                Phase::Handshake { challenge: Some(challenge), .. },
            ) if self.profile.agent_id.is_some() => {
                if version != challenge.version {
                    return self
                        .close(format!("the server chose protocol version {version}, which was not offered"), true);
                }
                let window = output_window_bytes;
                let heartbeat_ms = heartbeat_ms.max(10);
                let (heartbeat_at_ms, heard_ms) = (now.monotonic_ms + heartbeat_ms, now.monotonic_ms);
                self.phase = Phase::Open(Open { window, heartbeat_ms, deadline_ms, heartbeat_at_ms, heard_ms });
                self.welcomed(&holdings);
            }
            (message, Phase::Open(_)) => self.handle_open(message),
            (_, Phase::Handshake { .. }) => self.close("the server broke the order of the handshake".to_owned(), true),
        }
    }

    /// A data frame from the server.
    pub fn handle_data(&mut self, frame: &[u8], now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        open.heard_ms = now.monotonic_ms;
        match Header::decode(frame) {
            Ok((header, body)) if header.kind == Kind::Artifact => self.handle_artifact(header, body),
            Ok(_) | Err(FrameError::Unknown) => {}
            Err(error) => self.close(format!("the server sent a bad frame: {error}"), true),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        match &mut self.phase {
            Phase::Offline => {}
            Phase::Handshake { until_ms, .. } if now.monotonic_ms >= *until_ms => {
                self.close("the server did not finish the handshake in time".to_owned(), true);
            }
            Phase::Handshake { .. } => {}
            Phase::Open(open) if now.monotonic_ms >= open.heard_ms + open.deadline_ms => {
                let silence = open.deadline_ms;
                self.close(format!("the server was silent for {silence} ms"), true);
            }
            Phase::Open(open) if now.monotonic_ms >= open.heartbeat_at_ms => {
                open.heartbeat_at_ms = now.monotonic_ms + open.heartbeat_ms;
                self.outputs.push_back(Output::Send(ToServer::Heartbeat { time_ms: now.wall_ms }));
            }
            Phase::Open(_) => {}
        }
    }

    /// When [`Session::handle_timeout`] and [`Session::next_read`] want to be called next, by the monotonic clock.
    #[must_use]
    pub fn next_timeout_ms(&self) -> Option<u64> {
        match &self.phase {
            Phase::Offline => None,
            Phase::Handshake { until_ms, .. } => Some(*until_ms),
            Phase::Open(open) => {
                let flush = self.next_flush_ms(open.window).unwrap_or(u64::MAX);
                Some(open.heartbeat_at_ms.min(open.heard_ms + open.deadline_ms).min(flush))
            }
        }
    }

    /// The next thing to do.
    pub fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether the server has welcomed this connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// The identity is kept: the agent introduces itself.
    pub fn enrolled(&mut self, agent_id: String, signing_key: String, now: Now) {
        self.profile.agent_id = Some(agent_id);
        self.profile.signing_key = signing_key;
        self.profile.secret = None;
        self.greet(now);
    }

    fn challenged(&mut self, nonce: String, versions: (u32, u32), now: Now) {
        let (lowest, highest) = self.profile.versions;
        if versions.1 < lowest || versions.0 > highest {
            let (low, high) = versions;
            let reason =
                format!("the server speaks protocol versions {low} to {high}, this agent {lowest} to {highest}");
            return self.close(reason, true);
        }
        if let Phase::Handshake { challenge, .. } = &mut self.phase {
            *challenge = Some(Challenge { nonce, version: highest.min(versions.1) });
        }
        match (&self.profile.agent_id, &self.profile.secret) {
            (Some(_), _) => self.greet(now),
            (None, Some(secret)) => {
                let (secret, name, public_key) = (secret.clone(), self.profile.name.clone(), self.profile.key.public());
                self.outputs.push_back(Output::Send(ToServer::Enrol { secret, name, public_key }));
            }
            (None, None) => self.close("the agent is not enrolled and has no join token".to_owned(), false),
        }
    }

    fn greet(&mut self, now: Now) {
        let Phase::Handshake { challenge: Some(Challenge { nonce, version }), .. } = &self.phase else { return };
        let version = *version;
        let Some(agent_id) = self.profile.agent_id.clone() else { return };
        let signature = self.profile.key.sign(&hello_bytes(nonce, &agent_id));
        for (key, shipping) in &mut self.executions {
            let channel = self.next_channel;
            self.next_channel += 1;
            shipping.channel = Some(channel);
            self.channels.insert(channel, Channel::Execution(key.clone()));
        }
        let holdings = self.executions.iter().map(|(key, shipping)| Holding {
            execution_id: key.execution_id.clone(),
            attempt: key.attempt,
            channel: shipping.channel.unwrap_or(0),
            log_length: shipping.log_length,
            finished: shipping.finished.is_some(),
            needs_order: shipping.needs_order,
        });
        let hello = Hello {
            agent_id,
            version,
            features: [secret::FEATURE, INSPECT_FEATURE, SHARED_PATHS_FEATURE, instance::FEATURE, SCRIPT_FEATURE]
                .map(str::to_owned)
                .into(),
            signature,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.profile.boot_id.clone(),
            time_ms: now.wall_ms,
            abilities: self.profile.abilities.clone(),
            holdings: holdings.collect(),
        };
        self.outputs.push_back(Output::Send(ToServer::Hello(Box::new(hello))));
    }

    fn welcomed(&mut self, answers: &[HoldingAnswer]) {
        self.outputs.push_back(Output::Welcomed);
        for answer in answers {
            let key = Key { execution_id: answer.execution_id.clone(), attempt: answer.attempt };
            let Some(shipping) = self.executions.get_mut(&key) else { continue };
            if answer.wanted {
                shipping.resume(answer.offset);
            } else if !shipping.unwanted {
                shipping.unwanted = true;
                self.outputs.push_back(Output::Discard(key));
            }
        }
        let keys: Vec<Key> = self.executions.keys().cloned().collect();
        for key in keys {
            self.settle(&key);
        }
        self.request_all();
    }

    fn handle_open(&mut self, message: ToAgent) {
        let known = |sessions: &Self, execution_id: &str, attempt| {
            Key::new(execution_id, attempt).filter(|key| sessions.executions.contains_key(key))
        };
        match message {
            ToAgent::Run { order, secrets } => self.handle_run(order, secrets),
            ToAgent::Inspect(inspect) => self.outputs.push_back(Output::Inspect(inspect)),
            ToAgent::Watch { instances } => self.outputs.push_back(Output::Watch(instances)),
            ToAgent::ReadLog(question) => self.outputs.push_back(Output::ReadLog(question)),
            ToAgent::Cancel { execution_id, attempt, reason, timed_out } => {
                // Its order may still wait to be carried out; what nobody holds then is left alone.
                if let Some(key) = Key::new(&execution_id, attempt) {
                    self.outputs.push_back(Output::Cancel(key, reason, timed_out));
                }
            }
            ToAgent::OutputAck { channel, offset } => self.acknowledged(channel, offset),
            ToAgent::OutputResume { channel, offset } => self.resumed(channel, offset),
            ToAgent::Archived { execution_id, attempt } => {
                if let Some(key) = known(self, &execution_id, attempt)
                    && self.executions.get(&key).is_some_and(|shipping| shipping.finished.is_some())
                {
                    self.outputs.push_back(Output::Forget(key));
                }
            }
            ToAgent::ArtifactRefused { channel, reason } => self.artifact_refused(channel, reason),
            ToAgent::Challenge { .. } | ToAgent::Enrolled { .. } | ToAgent::Welcome { .. } => {
                self.close("the server broke the order of the session".to_owned(), true);
            }
            ToAgent::Refused { .. } | ToAgent::HeartbeatAck {} | ToAgent::Unknown => {}
        }
    }

    /// The order is durable in the spool; also answers a repeated order.
    pub fn accepted(&mut self, key: &Key) {
        let channel = self.channel_of(key);
        if self.is_open() {
            let (execution_id, attempt) = (key.execution_id.clone(), key.attempt);
            self.outputs.push_back(Output::Send(ToServer::Accepted { execution_id, attempt, channel }));
        }
        if let Some(shipping) = self.executions.get_mut(key) {
            shipping.finished_sent = false;
        }
        self.settle(key);
    }

    /// The order cannot be kept; nothing was started.
    pub fn rejected(&mut self, key: &Key, reason: String) {
        self.reject(key.execution_id.clone(), key.attempt, reason, false);
    }

    /// There is no room for the order at the time; nothing was started.
    pub fn has_no_room(&mut self, key: &Key, reason: String) {
        self.reject(key.execution_id.clone(), key.attempt, reason, true);
    }

    fn reject(&mut self, execution_id: String, attempt: u32, reason: String, no_room: bool) {
        tracing::warn!(execution_id, attempt, reason, "order rejected");
        self.outputs.push_back(Output::Send(ToServer::Rejected { execution_id, attempt, reason, no_room }));
    }

    /// Length of all logs together; one to which output is still to come counts with no less than what is always taken in.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        let taken = |one: &Shipping| if one.finished.is_some() { 0 } else { TAKEN_BYTES };
        self.executions.values().map(|one| one.log_length.max(taken(one))).sum()
    }

    /// The execution is no longer in the spool.
    pub fn removed(&mut self, key: &Key) {
        if let Some(channel) = self.executions.remove(key).and_then(|shipping| shipping.channel) {
            self.channels.remove(&channel);
        }
        self.unsent.remove(key);
    }

    /// An execution that is in the spool already: length of its log, and how it ended if it has.
    pub fn hold(&mut self, key: Key, log_length: u64, finished: Option<Finished>) {
        self.executions.insert(key.clone(), Shipping { log_length, ..Shipping::default() });
        match finished {
            Some(finished) => self.finished(&key, finished),
            None => self.settle(&key),
        }
    }

    /// An execution in the spool whose secrets are gone: the server is asked for its order again.
    pub fn needs_order(&mut self, key: &Key) {
        if let Some(shipping) = self.executions.get_mut(key) {
            shipping.needs_order = true;
        }
    }

    /// A deploy path was looked at.
    pub fn inspected(&mut self, answer: Inspected) {
        if self.is_open() {
            self.outputs.push_back(Output::Send(ToServer::Inspected(Box::new(answer))));
        }
    }

    /// News of instances.
    pub fn observed(&mut self, instances: Vec<Observation>) {
        if self.is_open() {
            self.outputs.push_back(Output::Send(ToServer::Observed { instances }));
        }
    }

    /// A piece of a log was read, or cannot be.
    pub fn log_read(&mut self, answer: LogAnswer) {
        if self.is_open() {
            self.outputs.push_back(Output::Send(ToServer::Log(Box::new(answer))));
        }
    }

    fn channel_of(&mut self, key: &Key) -> u32 {
        let shipping = self.executions.entry(key.clone()).or_default();
        if let Some(channel) = shipping.channel {
            return channel;
        }
        let channel = self.next_channel;
        self.next_channel += 1;
        shipping.channel = Some(channel);
        self.channels.insert(channel, Channel::Execution(key.clone()));
        channel
    }

    fn close(&mut self, reason: String, retry: bool) {
        self.phase = Phase::Offline;
        self.drop_orders();
        self.outputs.push_back(Output::Close(reason, retry));
    }

    /// Drops the orders that were not carried out yet: the server may give them up from now on, and sends those again
    /// that it still wants.
    fn drop_orders(&mut self) {
        self.outputs.retain(|output| !matches!(output, Output::Run(_)));
    }
}
