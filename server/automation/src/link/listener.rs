//! The agents' listener: TLS with a certificate of the server's own CA, one websocket for each agent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use drover_kernel::Kernel;
use drover_shared::limits::CONTROL_BYTES_MAX;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::session::{self, Socket};

/// Path of the link.
const PATH: &str = "/agent/v1/link";
/// Time for TLS and the upgrade.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// Connections that shake hands at a time; the rest wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 256;
/// Connections at most.
const CONNECTIONS_MAX: usize = 20_000;
/// Bytes that may wait to be written to one agent.
const WRITE_BUFFER_MAX: usize = 8 * 1024 * 1024;

/// Listens; the address tells the port when any was asked for.
///
/// # Errors
/// When the address cannot be had.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves agents until the kernel stops.
pub async fn serve(kernel: Kernel, listener: TcpListener, tls: Arc<ServerConfig>) {
    let stop = kernel.stopping();
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(handshake) = handshakes.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
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
        let (kernel, acceptor) = (kernel.clone(), acceptor.clone());
        let spawner = kernel.clone();
        spawner.spawn(async move {
            let socket = tokio::time::timeout(HANDSHAKE, shake_hands(acceptor, stream)).await;
            drop(handshake);
            match socket {
                // The handshake's state is large and over: the session gets a task of its own.
                Ok(Ok(socket)) => {
                    let owner = kernel.clone();
                    owner.spawn(async move {
                        session::run(kernel, socket).await;
                        drop(connection);
                    });
                }
                Ok(Err(error)) => tracing::debug!(error, "no agent"),
                Err(_) => tracing::debug!("an agent took too long to connect"),
            }
        });
    }
}

async fn shake_hands(acceptor: TlsAcceptor, stream: TcpStream) -> Result<Socket, String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = acceptor.accept(stream).await.map_err(|error| error.to_string())?;
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(4096)
        .max_write_buffer_size(WRITE_BUFFER_MAX)
        .max_message_size(Some(CONTROL_BYTES_MAX))
        .max_frame_size(Some(CONTROL_BYTES_MAX));
    tokio_tungstenite::accept_hdr_async_with_config(stream, only_link, Some(config))
        .await
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
