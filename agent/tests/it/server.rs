//! A small server to run the agent against: the other end of the protocol, driven by the test.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_shared::Digest;
use drover_shared::frame::{FLAG_END, FLAG_ZSTD, Header, Kind};
use drover_shared::message::{Hello, HoldingAnswer, ToAgent, ToServer, hello_bytes};
use drover_shared::order::{Entry, Order, canonical};
use drover_shared::secret::Secrets;
use drover_shared::token::JoinToken;
use futures_util::{SinkExt as _, StreamExt as _};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::bench::{PROGRAM, statement};

/// The machine may be busy.
const WAIT: Duration = Duration::from_secs(60);

/// Listens like a server and signs like one.
pub(crate) struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    key: Ed25519KeyPair,
    ca_pem: String,
    pub(crate) token: JoinToken,
    public_key: Option<String>,
    /// Window that a welcome grants.
    pub(crate) window: u64,
    /// Silence after which a session is over, in milliseconds.
    pub(crate) deadline_ms: u64,
}

/// One connection of an agent.
pub(crate) struct Peer {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

/// What an agent sent.
#[derive(Debug)]
pub(crate) enum Got {
    Message(ToServer),
    /// Header and uncompressed body.
    Data(Header, Vec<u8>),
}

impl Server {
    pub(crate) async fn start() -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        let chain = vec![leaf.der().clone(), ca_certificate.der().clone()];
        let private = PrivateKeyDer::try_from(leaf_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = JoinToken {
            url: format!("wss://{}", listener.local_addr().unwrap()),
            ca_fingerprint: Digest::of(ca_certificate.der()),
            secret: "open sesame".to_owned(),
        };
        Self {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            key: Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap(),
            ca_pem: ca_certificate.pem(),
            token,
            public_key: None,
            window: 1 << 20,
            deadline_ms: 45_000,
        }
    }

    /// Waits for a connection; none if its TLS handshake fails.
    pub(crate) async fn accept(&self) -> Option<Peer> {
        let (stream, _) = tokio::time::timeout(WAIT, self.listener.accept()).await.expect("no connection").unwrap();
        stream.set_nodelay(true).unwrap();
        let stream = self.acceptor.accept(stream).await.ok()?;
        #[expect(clippy::result_large_err, reason = "the websocket library says so")]
        let path = |request: &tokio_tungstenite::tungstenite::handshake::server::Request, response| {
            assert_eq!(request.uri().path(), "/agent/v1/link");
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, path).await.unwrap();
        Some(Peer { socket })
    }

    /// Waits for a connection and opens a session; `answer` says what is wanted of what the agent holds.
    pub(crate) async fn open(&mut self, answer: impl Fn(&str) -> (bool, u64)) -> (Peer, Hello) {
        let mut peer = self.accept().await.expect("a TLS session");
        peer.send(&ToAgent::Challenge { nonce: "nonce".to_owned(), versions: (1, 1), time_ms: 0 }).await;
        let mut message = peer.message().await;
        if let ToServer::Enrol { secret, public_key, name } = &message {
            assert_eq!((secret.as_str(), name.as_str()), ("open sesame", "web-1"));
            self.public_key = Some(public_key.clone());
            let (agent_id, ca_pem) = ("agent-1".to_owned(), self.ca_pem.clone());
            let signing_key = BASE64.encode(self.key.public_key().as_ref());
            peer.send(&ToAgent::Enrolled { agent_id, ca_pem, signing_key }).await;
            message = peer.message().await;
        }
        let ToServer::Hello(hello) = message else { panic!("no hello: {message:?}") };
        let public = BASE64.decode(self.public_key.as_ref().expect("enrolled")).unwrap();
        let signature = BASE64.decode(&hello.signature).unwrap();
        UnparsedPublicKey::new(&ED25519, public).verify(&hello_bytes("nonce", "agent-1"), &signature).unwrap();
        let holdings = hello.holdings.iter().map(|holding| {
            let (wanted, offset) = answer(&holding.execution_id);
            HoldingAnswer { execution_id: holding.execution_id.clone(), attempt: holding.attempt, wanted, offset }
        });
        let holdings = holdings.collect();
        let (heartbeat_ms, deadline_ms, output_window_bytes) = (15_000, self.deadline_ms, self.window);
        peer.send(&ToAgent::Welcome { version: 1, epoch: 1, heartbeat_ms, deadline_ms, output_window_bytes, holdings })
            .await;
        (peer, *hello)
    }

    pub(crate) fn order(&self, id: &str, entry: &Entry, timeout_ms: u64) -> Order {
        let entry = canonical(entry);
        let statement = statement(id, "agent-1", &entry, timeout_ms);
        Order::seal(&statement, entry, |bytes| self.key.sign(bytes).as_ref().to_vec())
    }
}

impl Peer {
    pub(crate) async fn send(&mut self, message: &ToAgent) {
        self.socket.send(Message::text(canonical(message))).await.unwrap();
    }

    pub(crate) async fn send_artifact(&mut self, channel: u32, offset: u64, body: &[u8], end: bool) {
        let flags = if end { FLAG_END } else { 0 };
        let raw_length = u32::try_from(body.len()).unwrap();
        let header = Header { kind: Kind::Artifact, flags, channel, sequence: 0, offset, raw_length };
        self.socket.send(Message::binary(header.encode(body))).await.unwrap();
    }

    /// The next message or frame; none at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Got> {
        loop {
            match tokio::time::timeout(WAIT, self.socket.next()).await.expect("the agent says nothing") {
                Some(Ok(Message::Text(text))) => return Some(Got::Message(serde_json::from_str(&text).unwrap())),
                Some(Ok(Message::Binary(frame))) => {
                    let (header, body) = Header::decode(&frame).unwrap();
                    let raw = header.raw_length as usize;
                    let body = match header.flags & FLAG_ZSTD {
                        0 => body.to_vec(),
                        _ => zstd::bulk::decompress(body, raw).unwrap(),
                    };
                    assert_eq!(body.len(), raw);
                    return Some(Got::Data(header, body));
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next message; data is not expected.
    pub(crate) async fn message(&mut self) -> ToServer {
        match self.next().await.expect("the agent hung up") {
            Got::Message(message) => message,
            Got::Data(header, _) => panic!("unexpected data: {header:?}"),
        }
    }
}

/// An order that needs no secrets, as it is sent.
pub(crate) fn run(order: Order) -> ToAgent {
    ToAgent::Run { order, secrets: Secrets::default() }
}

/// Starts the agent; it is killed with the value, its supervisors are not.
pub(crate) fn agent(data_dir: &Path, join: Option<&JoinToken>) -> Child {
    agent_under(&[], data_dir, join)
}

/// As [`agent`], started by another command that becomes it.
pub(crate) fn agent_under(wrapper: &[String], data_dir: &Path, join: Option<&JoinToken>) -> Child {
    let mut words = wrapper.iter().map(String::as_str).chain([PROGRAM]);
    let mut command = Command::new(words.next().unwrap_or(PROGRAM));
    command.args(words).args(["run", "--name", "web-1", "--data-dir"]).arg(data_dir).kill_on_drop(true);
    command.env_remove("DROVER_JOIN").stdin(Stdio::null()).stderr(Stdio::piped());
    if let Some(token) = join {
        command.arg("--join").arg(token.encode());
    }
    command.spawn().unwrap()
}

/// Stops the agent as a service manager does.
pub(crate) async fn stop(mut agent: Child) {
    let pid = i32::try_from(agent.id().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(WAIT, agent.wait()).await.expect("the agent does not end").unwrap();
    assert!(status.success(), "{status}");
}
