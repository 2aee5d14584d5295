//! A small client of the server's API: plain HTTP/1.0 over the loopback address, which is all the demo needs.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// The API of one server, as one user.
pub(super) struct Api {
    server: SocketAddr,
    token: Option<String>,
}

impl Api {
    pub(super) fn new(server: SocketAddr, token: Option<String>) -> Self {
        Self { server, token }
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", path, Some(body))
    }

    pub(super) fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        self.call("PATCH", path, Some(body))
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let token = self.token.as_ref().map(|token| format!("Authorization: Token {token}\r\n")).unwrap_or_default();
        let body = body.map(Value::to_string).unwrap_or_default();
        let (status, answer) = request(self.server, method, &format!("/api/v1{path}"), &token, &body)?;
        if status != 200 {
            bail!("{method} {path} answered {status}: {answer}");
        }
        serde_json::from_str(&answer).with_context(|| format!("{method} {path} answered no JSON: {answer}"))
    }
}

/// Asks for a page; its status and text.
pub(super) fn page(server: SocketAddr, path: &str) -> Result<(u16, String)> {
    request(server, "GET", path, "", "")
}

fn request(server: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Result<(u16, String)> {
    let asked = || format!("{method} http://{server}{path}");
    let mut socket = TcpStream::connect_timeout(&server, PATIENCE).with_context(asked)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    write!(
        socket,
        "{method} {path} HTTP/1.0\r\nHost: {server}\r\n{headers}{kind}Content-Length: {length}\r\n\r\n{body}"
    )
    .with_context(asked)?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).with_context(asked)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(asked)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).with_context(asked)?;
    Ok((status, body.to_owned()))
}
