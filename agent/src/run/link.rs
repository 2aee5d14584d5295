//! One connection to the server: TLS, websocket, a task that reads and a task that writes.
//!
//! Invariant: a message that was handed to the writer is sent whole or the connection ends; no send is ever
//! cancelled half-way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use drover_shared::limits::{CONTROL_BYTES_MAX, DATA_BYTES_MAX};
use drover_shared::message::{ToAgent, ToServer};
use drover_shared::order::canonical;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};

/// Path of the agents' endpoint.
const PATH: &str = "/agent/v1/link";
/// Time for each of: connecting, TLS, websocket handshake.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// Time for the server to take what is sent.
const FLUSH_MAX: Duration = Duration::from_secs(30);
/// Control messages that wait for the writer.
const CONTROL_MAX: usize = 256;
/// Data frames that wait for the writer.
const DATA_MAX: usize = 4;
/// Messages that wait for the agent.
const INCOMING_MAX: usize = 8;
/// Messages written before they are flushed.
const BATCH_MAX: usize = 32;

/// What a connection is held over: the messages of a websocket.
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

/// What came over the connection.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A control message.
    Message(ToAgent),
    /// A data frame.
    Data(Vec<u8>),
    /// The connection is over, and why.
    Closed(String),
}

/// An open connection; dropping it closes it.
pub struct Link {
    incoming: mpsc::Receiver<Incoming>,
    control: mpsc::Sender<Message>,
    data: mpsc::Sender<Message>,
    tasks: [JoinHandle<()>; 2],
}

impl Link {
    /// Dials `url` (`wss://HOST:PORT`). `room` is notified whenever the writer can take more.
    ///
    /// # Errors
    /// The address is not usable, nobody answers, or the server is not the one that is trusted.
    pub(super) async fn dial(url: String, tls: Arc<ClientConfig>, room: Arc<Notify>) -> anyhow::Result<Self> {
        let address: Uri = format!("{}{PATH}", url.trim_end_matches('/')).parse().context("the server's address")?;
        if address.scheme_str() != Some("wss") {
            bail!("the server's address `{url}` does not begin with `wss://`");
        }
        let host = address.host().context("the server's address has no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = address.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.clone()).context("the server's name")?;
        let connected = timeout(CONNECT_MAX, TcpStream::connect((host, port))).await;
        let stream = connected.context("the server does not answer")?.context("the server cannot be reached")?;
        stream.set_nodelay(true)?;
        let handshake = timeout(CONNECT_MAX, TlsConnector::from(tls).connect(name, stream)).await;
        let stream = handshake.context("the server does not answer with TLS")?.context("TLS")?;
        let config = WebSocketConfig::default()
            .read_buffer_size(4096)
            .write_buffer_size(4096)
            .max_write_buffer_size(2 * CONTROL_BYTES_MAX)
            .max_message_size(Some(CONTROL_BYTES_MAX))
            .max_frame_size(Some(CONTROL_BYTES_MAX));
        let opened = timeout(CONNECT_MAX, Box::pin(client_async_with_config(address, stream, Some(config)))).await;
        let (socket, _) = opened.context("the server does not open a websocket")?.context("websocket")?;
        Ok(Self::over(socket, room))
    }

    /// A connection over something that is open.
    #[must_use]
    pub fn over(socket: impl Wire, room: Arc<Notify>) -> Self {
        let (sink, stream) = socket.split();
        let (to_agent, incoming) = mpsc::channel(INCOMING_MAX);
        let (control, control_out) = mpsc::channel(CONTROL_MAX);
        let (data, data_out) = mpsc::channel(DATA_MAX);
        let broken = to_agent.clone();
        let reader = tokio::spawn(read(stream, to_agent));
        let writer = tokio::spawn(async move {
            let reason = write(sink, control_out, data_out, room).await;
            let _ = broken.send(Incoming::Closed(reason)).await;
        });
        Self { incoming, control, data, tasks: [reader, writer] }
    }

    /// The next thing that comes.
    pub(super) async fn next(&mut self) -> Incoming {
        self.incoming.recv().await.unwrap_or_else(|| Incoming::Closed("the connection is over".to_owned()))
    }

    /// Whether a message of either lane can be taken now.
    #[must_use]
    pub(super) fn has_room(&self) -> bool {
        self.control.capacity() > 0 && self.data.capacity() > 0
    }

    /// Sends a control message; `ordered` puts it behind the data. There must be room.
    pub(super) fn send(&self, message: &ToServer, ordered: bool) {
        let lane = if ordered { &self.data } else { &self.control };
        // A closed lane shows as the end of the connection.
        let _ = lane.try_send(Message::text(canonical(message)));
    }

    /// Sends a data frame. There must be room.
    pub(super) fn send_data(&self, frame: Vec<u8>) {
        debug_assert!(frame.len() <= DATA_BYTES_MAX, "a frame is bounded by its chunk");
        let _ = self.data.try_send(Message::binary(frame));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn read(mut stream: SplitStream<impl Wire>, to_agent: mpsc::Sender<Incoming>) {
    loop {
        let incoming = match stream.next().await {
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(message) => Incoming::Message(message),
                Err(error) => Incoming::Closed(format!("the server sent a message that cannot be read: {error}")),
            },
            Some(Ok(Message::Binary(bytes))) => Incoming::Data(bytes.to_vec()),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Close(frame))) => {
                let reason = frame.map(|frame| frame.reason.to_string()).filter(|reason| !reason.is_empty());
                Incoming::Closed(reason.unwrap_or_else(|| "the server closed the connection".to_owned()))
            }
            Some(Err(error)) => Incoming::Closed(error.to_string()),
            None => Incoming::Closed("the connection is over".to_owned()),
        };
        let last = matches!(incoming, Incoming::Closed(_));
        if to_agent.send(incoming).await.is_err() || last {
            return;
        }
    }
}

async fn write(
    mut sink: SplitSink<impl Wire, Message>,
    mut control: mpsc::Receiver<Message>,
    mut data: mpsc::Receiver<Message>,
    room: Arc<Notify>,
) -> String {
    loop {
        let first = tokio::select! {
            biased;
            message = control.recv() => message,
            message = data.recv() => message,
        };
        let Some(first) = first else { return "the agent closed the connection".to_owned() };
        let sent = timeout(FLUSH_MAX, async {
            sink.feed(first).await?;
            for _ in 1..BATCH_MAX {
                let Some(message) = control.try_recv().or_else(|_| data.try_recv()).ok() else { break };
                sink.feed(message).await?;
            }
            sink.flush().await
        });
        match sent.await {
            Ok(Ok(())) => room.notify_one(),
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "the server does not take what is sent".to_owned(),
        }
    }
}
