//! The agents' listener: TLS with a certificate of the server's own CA, one websocket for each agent.
//!
//! Invariant: accepting waits for no peer, and for nothing that a peer may hold.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use drover_kernel::Kernel;
use drover_shared::limits::CONTROL_BYTES_MAX;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::admission::{Admission, Bounds, Visitor};
use super::session;

/// Boxed, because it is handed on several times, and a future keeps room for each.
type Socket = Box<WebSocketStream<TlsStream<TcpStream>>>;

/// Path of the link.
const PATH: &str = "/agent/v1/link";
/// Connections that shake hands at a time, of all addresses and of one; and connections of one address that are no
/// agents yet.
pub(super) const ADMITTED_MAX: Bounds = Bounds { turns: 256, turns_of_one: 128, visitors_of_one: 8_192 };
/// Connections at most.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Bytes that may wait to be written to one agent.
const WRITE_BUFFER_MAX: usize = 8 * 1024 * 1024;

/// Listens; the address tells the port when any was asked for.
///
/// # Errors
/// When the address cannot be had.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// How long a peer may take until it is connected.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For its first byte.
    pub first_byte: Duration,
    /// For its turn, TLS and the upgrade.
    pub handshake: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first_byte: Duration::from_secs(10), handshake: Duration::from_secs(20) }
    }
}

/// Serves agents until the kernel stops.
pub async fn serve(kernel: Kernel, listener: TcpListener, tls: Arc<ServerConfig>, patience: Patience) {
    let stop = kernel.stopping();
    let acceptor = TlsAcceptor::from(tls);
    let admission = Admission::new(ADMITTED_MAX);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok((stream, address)) => (stream, address.ip()),
            Err(error) => {
                // Out of file descriptors: serving who is there matters more than accepting.
                tracing::warn!(%error, "cannot accept an agent");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(connection) = connections.clone().try_acquire_owned() else {
            tracing::warn!("more than {CONNECTIONS_MAX} agents, one is turned away");
            continue;
        };
        let Some(visitor) = admission.arrive(address) else {
            tracing::debug!(%address, "too many connections of one address that are no agents yet");
            continue;
        };
        let (kernel, acceptor, stop) = (kernel.clone(), acceptor.clone(), stop.clone());
        let spawner = kernel.clone();
        spawner.spawn(async move {
            let socket = tokio::select! {
                socket = let_in(visitor, stream, acceptor, patience) => socket,
                () = stop.cancelled() => return,
            };
            match socket {
                // The handshake's state is large and over: the session gets a task of its own.
                Ok(socket) => {
                    let owner = kernel.clone();
                    owner.spawn(async move {
                        session::converse(kernel, socket).await;
                        drop(connection);
                    });
                }
                Err(error) => tracing::debug!(error, "no agent"),
            }
        });
    }
}

/// From a connection to a websocket. Who says nothing takes no turn of those who do.
async fn let_in(
    visitor: Visitor,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    patience: Patience,
) -> Result<Socket, String> {
    let first = tokio::time::timeout(patience.first_byte, stream.peek(&mut [0; 1])).await;
    match first.map_err(|_| "it says nothing")?.map_err(|error| error.to_string())? {
        0 => return Err("it hung up at once".to_owned()),
        _ => stream.set_nodelay(true).map_err(|error| error.to_string())?,
    }
    let handshake = async {
        let _turn = visitor.turn().await;
        Box::pin(shake_hands(acceptor, stream)).await
    };
    tokio::time::timeout(patience.handshake, handshake).await.map_err(|_| "it took too long to connect")?
}

async fn shake_hands(acceptor: TlsAcceptor, stream: TcpStream) -> Result<Socket, String> {
    let stream = acceptor.accept(stream).await.map_err(|error| error.to_string())?;
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .write_buffer_size(4096)
        .max_write_buffer_size(WRITE_BUFFER_MAX)
        .max_message_size(Some(CONTROL_BYTES_MAX))
        .max_frame_size(Some(CONTROL_BYTES_MAX));
    tokio_tungstenite::accept_hdr_async_with_config(stream, only_link, Some(config))
        .await
        .map(Box::new)
        .map_err(|error| error.to_string())
}

#[expect(clippy::result_large_err, reason = "the websocket library's callback has this form")]
fn only_link(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() == PATH {
        return Ok(response);
    }
    let mut refused = ErrorResponse::new(Some("agents dial another path\n".to_owned()));
    *refused.status_mut() = StatusCode::NOT_FOUND;
    Err(refused)
}
