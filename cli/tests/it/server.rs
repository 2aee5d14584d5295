//! A server to test against: real sockets, prepared answers, and a memory of what it was asked.
//!
//! Invariant: an answer that was not prepared is a 404 that says so, and each connection of the channel plays the next
//! prepared script.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Method and path with query.
    pub(crate) line: String,
    pub(crate) authorization: String,
    /// All headers.
    pub(crate) head: String,
    pub(crate) body: Value,
}

/// What a connection of the channel does.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Sends records in one frame.
    Send(Vec<Value>),
    /// Ends the connection without a word.
    Break,
    /// Closes with this code and reason.
    Close(u16, &'static str),
    /// Answers the upgrade with this status in place of accepting it.
    Refuse(u16),
    /// Says nothing until the other side goes.
    Hold,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, VecDeque<(u16, Value)>>,
    scripts: VecDeque<Vec<Step>>,
    asked: Vec<Asked>,
}

/// A running server; it ends with the test's process.
#[derive(Clone)]
pub(crate) struct Server {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Server {
    /// Starts without TLS.
    pub(crate) fn start() -> Self {
        Self::listen(None)
    }

    /// Starts with TLS and gives the certificate to trust, in PEM.
    pub(crate) fn start_with_tls() -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        (Self::listen(Some(Arc::new(config))), made.cert.pem())
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = Self { address: listener.local_addr().unwrap(), scheme, state: Arc::default() };
        let serving = server.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (server, tls) = (serving.clone(), tls.clone());
                thread::spawn(move || server.accept(socket, tls));
            }
        });
        server
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Prepares an answer to a method and path; several are given in turn, the last one for ever.
    pub(crate) fn on(&self, line: &str, status: u16, answer: Value) -> &Self {
        let line = line.replacen(' ', " /api/v1", 1);
        self.state.0.lock().unwrap().answers.entry(line).or_default().push_back((status, answer));
        self
    }

    /// Prepares what the next connection of the channel does.
    pub(crate) fn channel(&self, script: Vec<Step>) -> &Self {
        self.state.0.lock().unwrap().scripts.push_back(script);
        self
    }

    /// An application `shop` on two hosts, a deploy task that goes well, and its sub-task with this end.
    pub(crate) fn with_shop(&self, status: &str) -> &Self {
        let instances = json!([
            { "id": 11, "hostid": 1, "hostname": "web-1", "status": "running" },
            { "id": 12, "hostid": 2, "hostname": "web-2", "status": "running" },
        ]);
        let sub_task = json!({
            "task_id": "34", "deploy_task_id": 7, "kind": "upgrade", "version": "v1", "status": status,
            "task_output": "ws://elsewhere:1/api/v1/channel/secret", "output": "old lines\n",
            "instances": [
                { "id": 11, "hostname": "web-1", "status": "succeeded", "error": null },
                { "id": 12, "hostname": "web-2", "status": if status == "finished" { "succeeded" } else { "failed" },
                  "error": if status == "finished" { Value::Null } else { json!("post_exec: exit code 3") } },
            ],
        });
        let receipt = json!({ "task_id": "34", "task_output": sub_task["task_output"] });
        let applications = json!([
            { "id": 3, "full_name": "shop.old" }, { "id": 4, "full_name": "shop" }
        ]);
        let success = json!({ "message": "success" });
        self.on("GET /applications/", 200, page(applications))
            .on("GET /applications/4/", 200, json!({ "id": 4, "full_name": "shop" }))
            .on("GET /applications/4/instances/", 200, page(instances))
            .on("POST /applications/deploy-tasks/", 200, json!({ "message": "success", "id": 7 }))
            .on("POST /applications/deploy-tasks/7/actions/approve/", 200, success.clone())
            .on("POST /applications/deploy-tasks/7/actions/start/", 200, success)
            .on("POST /applications/deploy-tasks/7/sub-upgrade-tasks/", 200, receipt.clone())
            .on("POST /applications/deploy-tasks/7/sub-revert-tasks/", 200, receipt)
            .on("GET /tasks/34/output/", 200, json!("old lines\n"))
            .on("GET /applications/deploy-tasks/7/sub-upgrade-tasks/34/", 200, sub_task.clone())
            .on("GET /applications/deploy-tasks/7/sub-revert-tasks/34/", 200, sub_task.clone())
            .on(
                "GET /applications/deploy-tasks/7/",
                200,
                json!({ "id": 7, "application_id": 4, "version": "v1", "package_source": "app", "status": "approved",
                        "sub_tasks": [sub_task] }),
            )
    }

    /// Everything that was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.0.lock().unwrap().asked.clone()
    }

    /// The lines of what was asked that begin so.
    pub(crate) fn lines(&self, begin: &str) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).filter(|line| line.starts_with(begin)).collect()
    }

    /// The body of the only request whose line begins so.
    pub(crate) fn body(&self, begin: &str) -> Value {
        let found: Vec<Asked> = self.asked().into_iter().filter(|asked| asked.line.starts_with(begin)).collect();
        assert_eq!(found.len(), 1, "{begin}: {found:?}");
        found[0].body.clone()
    }

    /// Waits until something that begins so was asked.
    pub(crate) fn wait_for(&self, begin: &str) {
        let (state, changed) = &*self.state;
        let missing = |state: &mut State| !state.asked.iter().any(|asked| asked.line.starts_with(begin));
        let (state, wait) = changed.wait_timeout_while(state.lock().unwrap(), PATIENCE, missing).unwrap();
        assert!(!wait.timed_out(), "`{begin}` was not asked: {:?}", state.asked);
    }

    fn accept(&self, socket: TcpStream, tls: Option<Arc<ServerConfig>>) {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        match tls {
            None => self.serve(socket),
            Some(config) => self.serve(StreamOwned::new(ServerConnection::new(config).unwrap(), socket)),
        }
    }

    /// Serves one request; the connection ends with it.
    fn serve(&self, mut stream: impl Read + Write) {
        let Some((head, body)) = request(&mut stream) else { return };
        let header = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
        };
        let line = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
        let path = line.split('?').next().unwrap_or_default().to_owned();
        let asked = Asked {
            line,
            authorization: header("authorization").unwrap_or_default(),
            head: head.clone(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        let (state, changed) = &*self.state;
        let (answer, script) = {
            let mut state = state.lock().unwrap();
            state.asked.push(asked);
            changed.notify_all();
            let script = header("sec-websocket-key").is_some().then(|| state.scripts.pop_front().unwrap_or_default());
            let answers = state.answers.get_mut(&path);
            let answer =
                answers.and_then(|turns| if turns.len() > 1 { turns.pop_front() } else { turns.front().cloned() });
            (answer, script)
        };
        if let Some(script) = script {
            return play(stream, &header("sec-websocket-key").unwrap_or_default(), script);
        }
        let unknown = || (404, json!({ "error_code": 10004, "message": format!("not prepared: {path}") }));
        let (status, answer) = answer.unwrap_or_else(unknown);
        // A text is given as it is.
        let text = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
        respond(&mut stream, status, &text);
    }
}

/// A page with everything.
pub(crate) fn page(results: Value) -> Value {
    json!({ "count": results.as_array().map_or(0, Vec::len), "prev": null, "next": null, "results": results })
}

fn request(stream: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().filter_map(|line| line.split_once(": "));
            let length = length.filter(|(key, _)| key.eq_ignore_ascii_case("content-length"));
            let length: usize = length.filter_map(|(_, value)| value.parse().ok()).next().unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Some((head, bytes[end + 4..end + 4 + length].to_vec()));
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
        }
    }
}

fn respond(stream: &mut impl Write, status: u16, body: &str) {
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n");
    // The client may have gone; its own test says whether that is right.
    let _ = write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
    let _ = stream.flush();
}

fn play<S: Read + Write>(mut stream: S, key: &str, script: Vec<Step>) {
    if let Some(Step::Refuse(status)) = script.first() {
        return respond(&mut stream, *status, "{\"error_code\":1,\"message\":\"no channel for you\"}");
    }
    let accept = derive_accept_key(key.as_bytes());
    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n";
    write!(stream, "{head}sec-websocket-accept: {accept}\r\n\r\n").unwrap();
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, Some(WebSocketConfig::default()));
    for step in script {
        match step {
            Step::Send(records) => {
                let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
                socket.send(Message::text(lines)).unwrap();
            }
            Step::Close(code, reason) => {
                let frame = CloseFrame { code: code.into(), reason: reason.into() };
                let _ = socket.close(Some(frame));
                while socket.read().is_ok() {}
            }
            Step::Hold => while socket.read().is_ok() {},
            Step::Break | Step::Refuse(_) => return,
        }
    }
}
