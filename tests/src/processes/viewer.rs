//! Somebody who watches the output of a task.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Longest wait for the next frame.
const FRAME: Duration = Duration::from_secs(60);
/// Bytes that the kernel may take for a slow viewer, and that it reads at once.
const SLOW_BYTES: u32 = 2048;

/// What a viewer is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Text, or JSON lines.
    Text(String),
    /// The end.
    Closed(Closing),
}

/// How the server closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// Close code; 1000 is the normal end.
    pub code: u16,
    /// The final state at the normal end.
    pub reason: String,
}

/// An open view.
pub struct Viewer {
    socket: WebSocketStream<TcpStream>,
}

impl Viewer {
    /// Opens the view at `url`, with query if there is one.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn open(url: &str, token: &str) -> Self {
        Self::try_open(url, token).await.unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// As [`open`](Self::open), for what may be refused.
    ///
    /// # Errors
    /// What the server answers in place of a view.
    pub async fn try_open(url: &str, token: &str) -> Result<Self, String> {
        Self::connect(url, token, false).await
    }

    /// Opens a view that takes little at a time and lets the rest wait at the server.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn open_slow(url: &str, token: &str) -> Self {
        Self::connect(url, token, true).await.unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    async fn connect(url: &str, token: &str, slow: bool) -> Result<Self, String> {
        let mut request = url.into_client_request().expect("the address of a channel");
        let authorization = HeaderValue::from_str(&format!("Token {token}")).expect("a token");
        request.headers_mut().insert("authorization", authorization);
        let address = request.uri().authority().expect("an absolute address").as_str().parse().expect("host and port");
        let socket = TcpSocket::new_v4().expect("a socket");
        let mut config = WebSocketConfig::default();
        if slow {
            socket.set_recv_buffer_size(SLOW_BYTES).expect("a small buffer");
            config = config.read_buffer_size(SLOW_BYTES as usize);
        }
        let stream = socket.connect(address).await.expect("the server answers");
        let opened = client_async_with_config(request, stream, Some(config)).await;
        let (socket, _) = opened.map_err(|error| error.to_string())?;
        Ok(Self { socket })
    }

    /// What comes next.
    ///
    /// # Panics
    /// When nothing comes within a minute.
    pub async fn next(&mut self) -> Seen {
        loop {
            let message = timeout(FRAME, self.socket.next()).await.expect("a frame within a minute");
            match message {
                Some(Ok(Message::Text(text))) => return Seen::Text(text.as_str().to_owned()),
                Some(Ok(Message::Close(Some(frame)))) => {
                    let code = frame.code.into();
                    return Seen::Closed(Closing { code, reason: frame.reason.as_str().to_owned() });
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => panic!("a channel sends text alone"),
                Some(Ok(Message::Close(None)) | Err(_)) | None => {
                    return Seen::Closed(Closing { code: 0, reason: "the connection broke".to_owned() });
                }
            }
        }
    }

    /// Reads until the text holds `wanted`, and gives the text so far.
    ///
    /// # Panics
    /// When the output ends before.
    pub async fn until(&mut self, wanted: &str) -> String {
        let mut text = String::new();
        while !text.contains(wanted) {
            match self.next().await {
                Seen::Text(piece) => text.push_str(&piece),
                Seen::Closed(closing) => panic!("the output ended ({closing:?}) without {wanted:?}: {text}"),
            }
        }
        text
    }

    /// Everything until the end.
    pub async fn rest(&mut self) -> (String, Closing) {
        let mut text = String::new();
        loop {
            match self.next().await {
                Seen::Text(piece) => text.push_str(&piece),
                Seen::Closed(closing) => return (text, closing),
            }
        }
    }
}
