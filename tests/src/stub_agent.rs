//! An agent that only talks: the messages of a real one over the real link, with no host behind them.
//!
//! For what a real agent never does, such as being older than its server. It enrols a host of its own; its epoch and
//! its orders are the server's. Invariant: no wait is longer than a minute.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use drover_agent::identity::AgentKey;
use drover_agent::tls::{trusting_ca, trusting_fingerprint};
use drover_automation::engine::Engine;
use drover_automation::link;
use drover_automation::link::enrol::JoinTokenOptions;
use drover_automation::link::keys::certificate_names;
use drover_shared::frame::{Header, Kind};
use drover_shared::message::{Abilities, Finished, Hello, Holding, ProcessVerdict, ToAgent, ToServer, hello_bytes};
use drover_shared::order::Statement;
use drover_shared::record::{Record, Stream};
use drover_shared::token::JoinToken;
use drover_shared::words::ExecutionState;
use futures_util::{SinkExt as _, StreamExt as _};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::server::TestServer;
use crate::waiting::DEADLINE;

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Path of the link.
const PATH: &str = "/agent/v1/link";

/// Listens for agents as the server's program does, until the server ends.
///
/// # Panics
/// When there is no port.
pub async fn listen(server: &TestServer) -> SocketAddr {
    listen_with(server, link::Patience::default()).await
}

/// As [`listen`], with this patience for peers that are no agents yet.
///
/// # Panics
/// When there is no port.
pub async fn listen_with(server: &TestServer, patience: link::Patience) -> SocketAddr {
    let kernel = server.kernel().clone();
    let listener = link::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let tls = kernel.part::<Engine>().keys.server_config(certificate_names("127.0.0.1")).expect("a certificate");
    kernel.spawn(link::serve(kernel.clone(), listener, tls, patience));
    address
}

/// How an order ended, with nothing more to say of it: no output, no steps.
#[must_use]
pub fn finished(statement: &Statement, state: ExecutionState) -> Finished {
    Finished {
        execution_id: statement.execution_id.clone(),
        attempt: statement.attempt,
        state,
        reason: (state != ExecutionState::Succeeded).then(|| "it did not work".to_owned()),
        steps: Vec::new(),
        log_length: 0,
        output_truncated: false,
        processes: ProcessVerdict::default(),
        releases: None,
    }
}

/// A connection over which an agent was challenged.
pub struct Knock {
    socket: Option<Socket>,
    nonce: String,
}

/// An enrolled agent.
pub struct StubAgent {
    address: SocketAddr,
    features: Vec<String>,
    key: AgentKey,
    /// What it enrolled with.
    secret: String,
    agent_id: String,
    ca_pem: String,
    boot_id: String,
    socket: Option<Socket>,
}

impl StubAgent {
    /// Enrols an agent for a host and opens its session.
    ///
    /// # Panics
    /// When the server does not let it in.
    pub async fn enrol(server: &TestServer, address: SocketAddr, host: &str, features: &[&str]) -> Self {
        let keys = &server.kernel().part::<Engine>().keys;
        let options = JoinTokenOptions {
            url: format!("wss://{address}"),
            host_name: Some(host.to_owned()),
            ttl: Duration::from_secs(3600),
            uses: 1,
        };
        let token = link::create_join_token(&server.work(), keys, options).await.expect("a join token");
        let token = JoinToken::decode(&token).expect("the token's parts");
        let tls = trusting_fingerprint(token.ca_fingerprint).expect("TLS");
        let mut agent = Self {
            address,
            features: features.iter().map(|&name| name.to_owned()).collect(),
            key: AgentKey::generate().expect("a key"),
            secret: token.secret,
            agent_id: String::new(),
            ca_pem: String::new(),
            boot_id: "boot".to_owned(),
            socket: Some(dial(address, tls).await),
        };
        let ToAgent::Challenge { nonce, .. } = agent.hear().await else { panic!("no challenge") };
        let (secret, name, public_key) = (agent.secret.clone(), host.to_owned(), agent.key.public());
        agent.say(&ToServer::Enrol { secret, name, public_key }).await;
        let ToAgent::Enrolled { agent_id, ca_pem, .. } = agent.hear().await else { panic!("not enrolled") };
        (agent.agent_id, agent.ca_pem) = (agent_id, ca_pem);
        agent.hello(&nonce, Vec::new()).await;
        agent
    }

    /// As [`enrol`](Self::enrol), for the only agent of a test: the server listens for it, and it can do nothing special.
    pub async fn alone(server: &TestServer, host: &str) -> Self {
        Self::enrol(server, listen(server).await, host, &[]).await
    }

    /// Comes back in a new session with these executions in its spool.
    ///
    /// # Panics
    /// When the server does not let it in.
    pub async fn come_back(&mut self, holdings: Vec<Holding>) {
        self.socket = None;
        self.socket = Some(dial(self.address, trusting_ca(&self.ca_pem).expect("TLS")).await);
        let ToAgent::Challenge { nonce, .. } = self.hear().await else { panic!("no challenge") };
        self.hello(&nonce, holdings).await;
    }

    /// As [`come_back`](Self::come_back), while the former session is still open; gives that one.
    ///
    /// # Panics
    /// When the server does not let it in.
    pub async fn come_back_beside(&mut self, holdings: Vec<Holding>) -> Former {
        let former = self.socket.take().expect("a session");
        self.come_back(holdings).await;
        Former(former)
    }

    /// Enrols with the same token once more, as one that never heard the answer, or with a key of its own as somebody else
    /// would. Gives the answer.
    ///
    /// # Panics
    /// When the server says nothing.
    pub async fn enrol_again(&mut self, host: &str, as_another: bool) -> ToAgent {
        self.socket = Some(dial(self.address, trusting_ca(&self.ca_pem).expect("TLS")).await);
        let ToAgent::Challenge { .. } = self.hear().await else { panic!("no challenge") };
        let other = AgentKey::generate().expect("a key");
        let public_key = if as_another { other.public() } else { self.key.public() };
        let (secret, name) = (self.secret.clone(), host.to_owned());
        self.say(&ToServer::Enrol { secret, name, public_key }).await;
        self.hear().await
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.agent_id
    }

    /// Opens a further connection, over which it is challenged and has not answered.
    ///
    /// # Panics
    /// When the server does not challenge it.
    pub async fn knock(&mut self) -> Knock {
        let before = self.socket.take();
        self.socket = Some(dial(self.address, trusting_ca(&self.ca_pem).expect("TLS")).await);
        let ToAgent::Challenge { nonce, .. } = self.hear().await else { panic!("no challenge") };
        Knock { socket: std::mem::replace(&mut self.socket, before), nonce }
    }

    /// What it said over that connection, with these executions in its spool, arrives. Gives the server's answer.
    ///
    /// # Panics
    /// When the server says nothing.
    pub async fn arrive(&mut self, knock: &mut Knock, holdings: Vec<Holding>) -> ToAgent {
        std::mem::swap(&mut self.socket, &mut knock.socket);
        self.introduce(&knock.nonce, holdings).await;
        let answer = self.hear().await;
        std::mem::swap(&mut self.socket, &mut knock.socket);
        answer
    }

    /// Will find its server here from now on.
    pub fn moves_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// Its host is restarted: from the next session on it is in another boot.
    pub fn restart(&mut self) {
        self.socket = None;
        self.boot_id.push_str(" again");
    }

    /// Hangs up.
    pub fn leave(&mut self) {
        self.socket = None;
    }

    async fn hello(&mut self, nonce: &str, holdings: Vec<Holding>) {
        self.introduce(nonce, holdings).await;
        let ToAgent::Welcome { .. } = self.hear().await else { panic!("not welcome") };
    }

    async fn introduce(&mut self, nonce: &str, holdings: Vec<Holding>) {
        let hello = Hello {
            agent_id: self.agent_id.clone(),
            version: 1,
            features: self.features.clone(),
            signature: self.key.sign(&hello_bytes(nonce, &self.agent_id)),
            agent_version: "stub".to_owned(),
            boot_id: self.boot_id.clone(),
            time_ms: 0,
            abilities: Abilities::default(),
            holdings,
        };
        self.say(&ToServer::Hello(Box::new(hello))).await;
    }

    /// Says something.
    ///
    /// # Panics
    /// When the session is over.
    pub async fn say(&mut self, message: &ToServer) {
        assert!(self.try_say(message).await, "the session is closed");
    }

    /// Says something. False when the session is over.
    pub async fn try_say(&mut self, message: &ToServer) -> bool {
        let text = serde_json::to_string(message).expect("a message");
        match &mut self.socket {
            Some(socket) => socket.send(Message::text(text)).await.is_ok(),
            None => false,
        }
    }

    /// The next message of the server.
    ///
    /// # Panics
    /// When the session ends, or nothing comes within a minute.
    pub async fn hear(&mut self) -> ToAgent {
        self.try_hear().await.expect("the session is closed")
    }

    /// The next message of the server. None when the session ends.
    ///
    /// # Panics
    /// When nothing comes within a minute.
    pub async fn try_hear(&mut self) -> Option<ToAgent> {
        let socket = self.socket.as_mut()?;
        loop {
            let next = tokio::time::timeout(DEADLINE, socket.next()).await.expect("a message within a minute");
            match next?.ok()? {
                Message::Text(text) => return Some(serde_json::from_str(&text).expect("a message")),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// The next order, before which nothing else is said.
    ///
    /// # Panics
    /// When something else is.
    pub async fn order(&mut self) -> Statement {
        let order = match self.hear().await {
            ToAgent::Run { order, .. } => order,
            other => panic!("no order: {other:?}"),
        };
        serde_json::from_str(&order.statement).expect("a statement")
    }

    /// Accepts an order, whose output comes on this channel.
    pub async fn accept_on(&mut self, statement: &Statement, channel: u32) {
        let Statement { execution_id, attempt, .. } = statement.clone();
        self.say(&ToServer::Accepted { execution_id, attempt, channel }).await;
    }

    /// Accepts an order.
    pub async fn accept(&mut self, statement: &Statement) {
        self.accept_on(statement, 1).await;
    }

    /// Sends a line that an execution wrote, at this offset of its log. Gives the length of the log after it.
    ///
    /// # Panics
    /// When the session is over.
    pub async fn output(&mut self, channel: u32, offset: u64, line: &str) -> u64 {
        let mut raw = Vec::new();
        Record { time_ms: 0, step: 0, stream: Stream::Output, payload: line.as_bytes() }.encode(&mut raw);
        let raw_length = u32::try_from(raw.len()).expect("a short line");
        let header = Header { kind: Kind::Output, flags: 0, channel, sequence: 0, offset, raw_length };
        let socket = self.socket.as_mut().expect("a session");
        socket.send(Message::binary(header.encode(&raw))).await.expect("an open session");
        offset + u64::from(raw_length)
    }

    /// Says how an order ended.
    pub async fn end(&mut self, finished: Finished) {
        self.say(&ToServer::Finished(Box::new(finished))).await;
    }

    /// Says that an order ended well.
    pub async fn succeed(&mut self, statement: &Statement) {
        self.end(finished(statement, ExecutionState::Succeeded)).await;
    }

    /// Waits until the server says that it may forget an execution.
    ///
    /// # Panics
    /// When that is another one.
    pub async fn archived(&mut self, statement: &Statement) {
        loop {
            if let ToAgent::Archived { execution_id, .. } = self.hear().await {
                assert_eq!(execution_id, statement.execution_id);
                return;
            }
        }
    }

    /// What the server has said up to now: it is asked something, and what comes before its answer is all there is.
    ///
    /// # Panics
    /// When the session ends.
    pub async fn heard(&mut self) -> Vec<ToAgent> {
        self.try_heard().await.expect("the session is closed")
    }

    /// As [`heard`](Self::heard); none when the session is over.
    pub async fn try_heard(&mut self) -> Option<Vec<ToAgent>> {
        let nobodys = "0190a5a0-0000-7000-8000-000000000001";
        let (execution_id, attempt) = (nobodys.to_owned(), 1);
        if !self.try_say(&ToServer::Accepted { execution_id, attempt, channel: u32::MAX }).await {
            return None;
        }
        let mut heard = Vec::new();
        loop {
            match self.try_hear().await? {
                ToAgent::Archived { execution_id, .. } if execution_id == nobodys => return Some(heard),
                message => heard.push(message),
            }
        }
    }
}

/// The end of an agent's former session.
pub struct Former(Socket);

impl Former {
    /// Says something although a newer session is open, and waits until the server hangs up.
    ///
    /// # Panics
    /// When it does not hang up within a minute.
    pub async fn says_too_late(&mut self, message: &ToServer) {
        // It may have hung up already.
        let _ = self.0.send(Message::text(serde_json::to_string(message).expect("a message"))).await;
        let end = async { while matches!(self.0.next().await, Some(Ok(message)) if !message.is_close()) {} };
        tokio::time::timeout(DEADLINE, end).await.expect("the end of the former session");
    }
}

async fn dial(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Socket {
    let stream = TcpStream::connect(address).await.expect("the server listens");
    let name = ServerName::from(address.ip());
    let stream = TlsConnector::from(tls).connect(name, stream).await.expect("TLS");
    client_async(format!("wss://{address}{PATH}"), stream).await.expect("a websocket").0
}
