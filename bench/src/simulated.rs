//! Agents that run nothing: they speak the real protocol over real TLS connections, from this one process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_shared::limits::PROTOCOL_VERSIONS;
use drover_shared::message::{Abilities, Hello, ToAgent, ToServer, hello_bytes};
use drover_shared::token::JoinToken;
use futures_util::{SinkExt as _, StreamExt as _};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Up to so long an agent waits before it dials again: at first, and at most. The real agent's.
const BACK_OFF_MS: (u64, u64) = (1_000, 30_000);
/// A session that lived for so long was a good one.
const LASTING: Duration = Duration::from_secs(30);

/// What an agent tells the bench.
#[derive(Debug)]
pub(crate) enum News {
    /// It was welcomed.
    Welcomed,
    /// An order came.
    Order(Instant),
}

/// What all of them need to reach the server.
#[derive(Clone)]
pub(crate) struct Way {
    address: String,
    secret: String,
    tls: TlsConnector,
}

impl Way {
    /// From a join token.
    pub(crate) fn new(token: &str) -> Result<Self> {
        let token = JoinToken::decode(token).map_err(anyhow::Error::msg)?;
        let address = token.url.trim_start_matches("wss://").to_owned();
        Ok(Self { address, secret: token.secret, tls: trusting_any_server()? })
    }
}

/// TLS without a look at who the server is.
pub(crate) fn trusting_any_server() -> Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// One of them.
pub(crate) struct Simulated {
    way: Way,
    name: String,
    key: Ed25519KeyPair,
    agent_id: Option<String>,
    news: UnboundedSender<News>,
}

impl Simulated {
    pub(crate) fn new(way: &Way, name: String, news: UnboundedSender<News>) -> Result<Self> {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| anyhow!("no key"))?;
        let key = Ed25519KeyPair::from_pkcs8(key.as_ref()).map_err(|_| anyhow!("no key"))?;
        Ok(Self { way: way.clone(), name, key, agent_id: None, news })
    }

    /// Makes its host known, and hangs up.
    pub(crate) async fn enrol(&mut self) -> Result<()> {
        let mut socket = self.dial().await?;
        let ToAgent::Challenge { .. } = hear(&mut socket).await? else { bail!("no challenge") };
        let public_key = BASE64.encode(self.key.public_key().as_ref());
        say(&mut socket, &ToServer::Enrol { secret: self.way.secret.clone(), name: self.name.clone(), public_key })
            .await?;
        match hear(&mut socket).await? {
            ToAgent::Enrolled { agent_id, .. } => self.agent_id = Some(agent_id),
            other => bail!("{other:?}"),
        }
        Ok(())
    }

    /// Stays connected for ever; comes back as the real agent does.
    pub(crate) async fn live(self) {
        let mut pause = BACK_OFF_MS.0;
        loop {
            let begun = Instant::now();
            if self.session().await.is_ok_and(|welcomed| welcomed) && begun.elapsed() >= LASTING {
                pause = BACK_OFF_MS.0;
            }
            tokio::time::sleep(Duration::from_millis(up_to(pause))).await;
            pause = (pause * 2).min(BACK_OFF_MS.1);
        }
    }

    /// One session to its end; whether it was welcomed.
    async fn session(&self) -> Result<bool> {
        let mut socket = self.dial().await?;
        let ToAgent::Challenge { nonce, .. } = hear(&mut socket).await? else { bail!("no challenge") };
        say(&mut socket, &ToServer::Hello(Box::new(self.hello(&nonce)?))).await?;
        let ToAgent::Welcome { heartbeat_ms, .. } = hear(&mut socket).await? else { bail!("not welcome") };
        let _ = self.news.send(News::Welcomed);
        // The first heartbeats do not come all at once.
        let mut heartbeat = tokio::time::interval_at(
            tokio::time::Instant::now() + Duration::from_millis(up_to(heartbeat_ms)),
            Duration::from_millis(heartbeat_ms),
        );
        let mut channel = 0;
        loop {
            tokio::select! {
                _ = heartbeat.tick() => {
                    if say(&mut socket, &ToServer::Heartbeat { time_ms: 0 }).await.is_err() {
                        return Ok(true);
                    }
                }
                message = socket.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        if let Ok(ToAgent::Run { order, .. }) = serde_json::from_str(&text) {
                            let _ = self.news.send(News::Order(Instant::now()));
                            let statement: drover_shared::order::Statement = serde_json::from_str(&order.statement)?;
                            channel += 1;
                            let (execution_id, attempt) = (statement.execution_id, statement.attempt);
                            say(&mut socket, &ToServer::Accepted { execution_id, attempt, channel }).await?;
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Ok(true),
                },
            }
        }
    }

    fn hello(&self, nonce: &str) -> Result<Hello> {
        let agent_id = self.agent_id.clone().context("not enrolled")?;
        let signature = BASE64.encode(self.key.sign(&hello_bytes(nonce, &agent_id)).as_ref());
        Ok(Hello {
            agent_id,
            version: PROTOCOL_VERSIONS.1,
            features: Vec::new(),
            signature,
            agent_version: "0".to_owned(),
            boot_id: "simulated".to_owned(),
            time_ms: 0,
            abilities: Abilities::default(),
            holdings: Vec::new(),
        })
    }

    async fn dial(&self) -> Result<Socket> {
        let stream = TcpStream::connect(&self.way.address).await?;
        stream.set_nodelay(true)?;
        let host = self.way.address.rsplit_once(':').context("an address without a port")?.0.to_owned();
        let stream = self.way.tls.connect(ServerName::try_from(host)?, stream).await?;
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(4096);
        let url = format!("wss://{}/agent/v1/link", self.way.address);
        Ok(Box::pin(client_async_with_config(url, stream, Some(config))).await?.0)
    }
}

async fn say(socket: &mut Socket, message: &ToServer) -> Result<()> {
    Ok(socket.send(Message::text(serde_json::to_string(message)?)).await?)
}

async fn hear(socket: &mut Socket) -> Result<ToAgent> {
    loop {
        match socket.next().await.context("hung up")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => bail!("closed"),
            _ => {}
        }
    }
}

fn up_to(pause: u64) -> u64 {
    let mut random = [0; 4];
    let _ = ring::rand::SecureRandom::fill(&SystemRandom::new(), &mut random);
    u64::from(u32::from_be_bytes(random)) % (pause + 1)
}

/// Takes any server's certificate, but checks its signature as the real agent does: the work is the same.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
