//! The websocket that sends a sub-task's output.
//!
//! Invariant: a broken connection is made again a bounded number of times, from the place where it broke, so that the
//! viewer sees every record once; nothing waits without a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::{HeaderValue, Response};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Message, WebSocket};
use url::Url;

use crate::api::Server;
use crate::failure::{Failure, Result};
use crate::records::{Cursor, Record};

const CONNECT: Duration = Duration::from_secs(10);
/// How often deadlines are looked at while nothing comes.
const TICK: Duration = Duration::from_millis(250);
/// Silence after which the server is asked for a sign of life, and after which it counts as gone.
const ASK: Duration = Duration::from_secs(15);
const GONE: Duration = Duration::from_secs(45);
/// Longest body of a refusal that is read, in bytes.
const REFUSAL_MAX: u64 = 64 * 1024;
/// Attempts without a single record before giving up, which takes somewhat more than a minute.
const ATTEMPTS: u32 = 18;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Whoever looks at the output.
pub(crate) trait Viewer {
    /// A record, and how the server wrote it.
    fn record(&mut self, record: &Record, written: &str) -> Result<()>;
    /// What came together is complete: show it.
    fn show(&mut self) -> Result<()>;
    /// The connection broke and is being made again.
    fn lost(&mut self, why: &str);
}

/// Why a connection ended.
enum Broken {
    /// The output is complete; the final state.
    Complete(String),
    /// Trying again makes sense.
    Retry(String),
    /// It does not.
    Final(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

/// Reads the channel to its end and gives the final state that it closed with; `deadline` bounds the wait.
pub(crate) fn read(
    server: &Server,
    task_output: &str,
    from: u64,
    deadline: Option<Instant>,
    viewer: &mut dyn Viewer,
) -> Result<String> {
    let address = address(server.url(), task_output)?;
    let mut cursor = Cursor::new(from);
    let mut attempt = 0;
    loop {
        let before = cursor.clone();
        let why = match connection(server, &address, &mut cursor, deadline, viewer) {
            Broken::Complete(state) => return Ok(state),
            Broken::Final(failure) => return Err(failure),
            Broken::Retry(why) => why,
        };
        attempt = if cursor.next() > before.next() { 1 } else { attempt + 1 };
        if attempt >= ATTEMPTS {
            return Err(Failure::unreachable(format!("the output cannot be followed any more: {why}")));
        }
        if attempt == 1 {
            viewer.lost(&why);
        }
        let pause = PAUSE_MIN.saturating_mul(1 << (attempt - 1).min(10)).min(PAUSE_MAX);
        thread::sleep(deadline.map_or(pause, |end| pause.min(end.saturating_duration_since(Instant::now()))));
        in_time(deadline)?;
    }
}

fn in_time(deadline: Option<Instant>) -> Result<()> {
    match deadline {
        Some(end) if Instant::now() >= end => Err(Failure::timed_out("still running: not waiting any longer")),
        _ => Ok(()),
    }
}

/// The channel's address on the server that the token belongs to, whatever way there the server has in mind.
fn address(server: &Url, task_output: &str) -> Result<Url> {
    let wrong = || Failure::failed(format!("the server sent `{task_output}`, which is no address of a channel"));
    let channel = Url::parse(task_output).map_err(|_| wrong())?;
    let mut address = server.clone();
    let scheme = if server.scheme() == "https" { "wss" } else { "ws" };
    address.set_scheme(scheme).map_err(|()| wrong())?;
    address.set_path(channel.path());
    address.set_query(channel.query());
    Ok(address)
}

fn connection(
    server: &Server,
    address: &Url,
    cursor: &mut Cursor,
    deadline: Option<Instant>,
    viewer: &mut dyn Viewer,
) -> Broken {
    let mut address = address.clone();
    address.query_pairs_mut().append_pair("format", "json").append_pair("from", &cursor.next().to_string());
    let mut stream = match open(server, &address) {
        Ok(stream) => stream,
        Err(broken) => return broken,
    };
    let refusal = match upgrade(server, &address, &mut stream) {
        Ok(socket) => return follow(socket, cursor, deadline, viewer),
        Err(Refused::Broken(broken)) => return broken,
        Err(Refused::Answered(refusal)) => refusal,
    };
    refused(&refusal, &mut stream)
}

/// Reads what an accepted connection says until it breaks.
fn follow(
    mut socket: WebSocket<&mut Stream>,
    cursor: &mut Cursor,
    deadline: Option<Instant>,
    viewer: &mut dyn Viewer,
) -> Broken {
    if let Err(error) = socket.get_ref().tcp().set_read_timeout(Some(TICK)) {
        return Broken::Retry(error.to_string());
    }
    cursor.reconnected();
    let (mut heard, mut asked) = (Instant::now(), false);
    loop {
        if let Err(failure) = in_time(deadline) {
            return failure.into();
        }
        match socket.read() {
            Ok(message) => {
                (heard, asked) = (Instant::now(), false);
                if let Err(broken) = take(message, &mut socket, cursor, viewer) {
                    return broken;
                }
            }
            Err(tungstenite::Error::Io(error)) if is_pause(&error) => {
                if heard.elapsed() > GONE {
                    return Broken::Retry("the server fell silent".to_owned());
                }
                if heard.elapsed() > ASK && !asked {
                    asked = true;
                    if let Err(error) = socket.send(Message::Ping(Bytes::new())) {
                        return Broken::Retry(error.to_string());
                    }
                }
            }
            Err(error) => return Broken::Retry(error.to_string()),
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn take(
    message: Message,
    socket: &mut WebSocket<&mut Stream>,
    cursor: &mut Cursor,
    viewer: &mut dyn Viewer,
) -> std::result::Result<(), Broken> {
    match message {
        Message::Text(text) => {
            for line in text.lines().filter(|line| !line.is_empty()) {
                let record: Record = serde_json::from_str(line).map_err(|error| {
                    Failure::failed(format!("the server sent a record that this version does not read: {error}"))
                })?;
                if cursor.take(&record) {
                    viewer.record(&record, line)?;
                }
            }
            viewer.show()?;
            Ok(())
        }
        Message::Close(close) => {
            // Sends the answer to the close; the server may be gone already.
            let _ = socket.flush();
            Err(match close {
                Some(close) if close.code == CloseCode::Normal => Broken::Complete(close.reason.as_str().to_owned()),
                Some(close) => Broken::Retry(format!("closed with code {}: {}", close.code, close.reason.as_str())),
                None => Broken::Retry("closed without a reason".to_owned()),
            })
        }
        _ => Ok(()),
    }
}

/// Connects, with TLS where the address asks for it.
fn open(server: &Server, address: &Url) -> std::result::Result<Stream, Broken> {
    let host = address.host_str().unwrap_or_default().to_owned();
    let socket = connect(address).map_err(|error| Broken::Retry(format!("cannot reach {}: {error}", server.url())))?;
    if address.scheme() != "wss" {
        return Ok(Stream::Plain(socket));
    }
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|_| Failure::usage(format!("`{host}` cannot stand in a certificate")))?;
    let session = ClientConnection::new(server.tls(), name).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(Stream::Tls(Box::new(StreamOwned::new(session, socket))))
}

/// Why a connection did not become a websocket.
enum Refused {
    /// The server said so; the body may still be on its way.
    Answered(Box<Response<Option<Vec<u8>>>>),
    /// Something broke before it could.
    Broken(Broken),
}

fn upgrade<'a>(
    server: &Server,
    address: &Url,
    stream: &'a mut Stream,
) -> std::result::Result<WebSocket<&'a mut Stream>, Refused> {
    let broken = |failure: Failure| Refused::Broken(failure.into());
    let request = address.as_str().into_client_request();
    let mut request = request.map_err(|error| broken(Failure::failed(error.to_string())))?;
    if let Some(authorization) = server.authorization() {
        let value = HeaderValue::from_str(&authorization);
        let value = value.map_err(|_| broken(Failure::usage("the token holds characters that no token has")))?;
        request.headers_mut().insert("authorization", value);
    }
    match tungstenite::client::client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Interrupted(_)) => {
            Err(Refused::Broken(Broken::Retry("the server does not answer".to_owned())))
        }
        Err(HandshakeError::Failure(tungstenite::Error::Http(answer))) => Err(Refused::Answered(answer)),
        Err(HandshakeError::Failure(error)) => Err(Refused::Broken(Broken::Retry(error.to_string()))),
    }
}

/// What a refusal means. The handshake ends with the head, so the rest of the body is read here.
fn refused(answer: &Response<Option<Vec<u8>>>, rest: &mut impl Read) -> Broken {
    let mut body = answer.body().clone().unwrap_or_default();
    let length = answer.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    let missing = length.unwrap_or(REFUSAL_MAX).min(REFUSAL_MAX).saturating_sub(body.len() as u64);
    // A body that breaks off leaves the status, which says enough.
    let _ = rest.take(missing).read_to_end(&mut body);
    let status = answer.status().as_u16();
    let failure = Failure::answered(status, serde_json::from_slice(&body).unwrap_or_default());
    if (400..=428).contains(&status) { Broken::Final(failure) } else { Broken::Retry(failure.message) }
}

fn connect(address: &Url) -> io::Result<TcpStream> {
    let host = address.host_str().unwrap_or_default();
    let port = address.port_or_known_default().unwrap_or(80);
    let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host.trim_matches(['[', ']']), port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(CONNECT))?;
                socket.set_write_timeout(Some(CONNECT))?;
                return Ok(socket);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A connection with or without TLS.
#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(from),
            Self::Tls(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_channel_is_looked_for_where_the_server_was_found() {
        let address = |server: &str, output: &str| address(&Url::parse(server).unwrap(), output).map(String::from);
        let output = "ws://10.0.0.1:8440/api/v1/channel/abc";
        assert_eq!(address("https://drover.example", output).unwrap(), "wss://drover.example/api/v1/channel/abc");
        assert_eq!(address("http://127.0.0.1:1", output).unwrap(), "ws://127.0.0.1:1/api/v1/channel/abc");
        assert_eq!(address("http://a", "nonsense").expect_err("no address").code, 1);
    }

    #[test]
    fn a_refusal_that_comes_in_pieces_is_read_whole() {
        let body = br#"{"error_code":10003,"message":"no channel for you"}"#;
        let answer = Response::builder().status(403).header("content-length", body.len());
        let answer = answer.body(Some(body[..9].to_vec())).unwrap();
        let mut rest = body[9..20].chain(&body[20..]).chain(&b"what follows is not its own"[..]);
        let Broken::Final(failure) = refused(&answer, &mut rest) else { panic!("a 403 is final") };
        assert!(failure.message.contains("no channel for you"), "{}", failure.message);
    }
}
