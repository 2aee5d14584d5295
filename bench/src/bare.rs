//! The least that a process with tokio and TLS costs: this program once more, which accepts connections, waits on them,
//! and does nothing else.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::machines::memory_kib;
use crate::report::float;
use crate::simulated::trusting_any_server;

/// The argument that makes this program such a process.
pub(crate) const ARGUMENT: &str = "bare";
/// What stands beside a figure.
pub(crate) const WHAT: &str = "a bare tokio with TLS";
/// Connections that are made at a time.
const CONNECTING: usize = 64;
/// Time for it to come to rest.
const REST: Duration = Duration::from_secs(1);

/// Is one: tells its address, and serves until it is killed.
#[expect(clippy::print_stdout, reason = "the one that started it reads its address")]
pub(crate) async fn serve() -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            while stream.read_u8().await.is_ok() {}
        });
    }
}

/// One that runs.
pub(crate) struct Bare {
    child: Child,
    address: String,
}

impl Bare {
    pub(crate) fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(ARGUMENT).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut address)?;
        Ok(Self { child, address: address.trim().to_owned() })
    }

    pub(crate) async fn memory_mib(&self) -> Result<f64> {
        tokio::time::sleep(REST).await;
        Ok(memory_kib(self.child.id(), "VmRSS:")? / 1024.0)
    }

    /// Kibibytes that it needs for each of so many connections over TLS that say nothing.
    pub(crate) async fn connection_kib(&self, count: usize) -> Result<f64> {
        let before = self.memory_mib().await?;
        let tls = trusting_any_server()?;
        let connecting = stream::iter(0..count).map(|_| connect(&tls, &self.address));
        let held: Vec<TlsStream<TcpStream>> = connecting.buffer_unordered(CONNECTING).try_collect().await?;
        let each = (self.memory_mib().await? - before) * 1024.0 / float(held.len());
        Ok(each)
    }
}

async fn connect(tls: &TlsConnector, address: &str) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    Ok(tls.connect(ServerName::try_from("localhost")?, stream).await?)
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
