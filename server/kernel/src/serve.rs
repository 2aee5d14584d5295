//! The listener for people and pipelines: HTTP/1.1, with TLS of its own or behind a proxy's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::http::Service;
use crate::kernel::Kernel;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 20_000;
/// Time for the TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(20);

/// Serves until the kernel stops; requests under way are answered.
pub async fn serve(kernel: Kernel, listener: TcpListener, service: Service, tls: Option<Arc<ServerConfig>>) {
    let stop = kernel.stopping();
    let acceptor = tls.map(TlsAcceptor::from);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (owner, service, acceptor) = (kernel.clone(), service.clone(), acceptor.clone());
        kernel.spawn(async move {
            greet(owner, stream, address, service, acceptor).await;
            drop(place);
        });
    }
}

async fn greet(
    kernel: Kernel,
    stream: TcpStream,
    address: SocketAddr,
    service: Service,
    acceptor: Option<TlsAcceptor>,
) {
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => converse(kernel, stream, address, service).await,
        Some(acceptor) => match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => converse(kernel, stream, address, service).await,
            Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS"),
            Err(_) => tracing::debug!(%address, "TLS took too long"),
        },
    }
}

async fn converse<S>(kernel: Kernel, stream: S, address: SocketAddr, service: Service)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(address));
        service.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let stop = kernel.stopping();
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%address, %error, "connection ended");
    }
}
