//! A client with one kept connection for requests, and a websocket for each task that it follows.

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::machines::Machines;

pub(crate) struct Client {
    connection: BufStream<TcpStream>,
    address: String,
    token: String,
}

impl Client {
    pub(crate) async fn connect(machines: &Machines) -> Result<Self> {
        Self::connect_to(machines.address().to_owned(), machines.token().to_owned()).await
    }

    pub(crate) async fn connect_to(address: String, token: String) -> Result<Self> {
        let connection = TcpStream::connect(&address).await?;
        connection.set_nodelay(true)?;
        Ok(Self { connection: BufStream::new(connection), address, token })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Value> {
        self.call("GET", path, "").await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", path, &body.to_string()).await
    }

    pub(crate) async fn patch(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.call("PATCH", path, &body.to_string()).await
    }

    async fn call(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        let request = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nhost: {}\r\nauthorization: Token {}\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        );
        self.connection.write_all(request.as_bytes()).await?;
        self.connection.flush().await?;
        let (mut status, mut length) = (String::new(), 0);
        self.connection.read_line(&mut status).await?;
        loop {
            let mut line = String::new();
            self.connection.read_line(&mut line).await?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().context("content-length")?;
            }
        }
        let mut answer = vec![0; length];
        self.connection.read_exact(&mut answer).await?;
        if !status.contains(" 200 ") {
            bail!("{method} {path}: {} {}", status.trim_end(), String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Makes a sub-task; gives the address of its output.
    pub(crate) async fn run(&mut self, deploy_task: i64, instances: &[i64]) -> Result<String> {
        let body = json!({"instances": instances, "version": "1"});
        let receipt = self.post(&format!("/applications/deploy-tasks/{deploy_task}/sub-upgrade-tasks/"), &body).await?;
        Ok(receipt["task_output"].as_str().context("task_output")?.to_owned())
    }

    /// Fetches what an address gives, on a connection of its own; gives its length in bytes.
    pub(crate) async fn fetch(&self, path: &str) -> Result<usize> {
        let stream = TcpStream::connect(&self.address).await?;
        let request = format!(
            "GET /api/v1{path} HTTP/1.1\r\nhost: {}\r\nauthorization: Token {}\r\nconnection: close\r\n\r\n",
            self.address, self.token
        );
        let mut connection = BufStream::with_capacity(256 * 1024, 1024, stream);
        connection.write_all(request.as_bytes()).await?;
        connection.flush().await?;
        let mut line = String::new();
        connection.read_line(&mut line).await?;
        ensure!(line.contains(" 200 "), "{path}: {line}");
        while line.trim_end() != "" {
            line.clear();
            connection.read_line(&mut line).await?;
        }
        let (mut length, mut piece) = (0, vec![0; 256 * 1024]);
        loop {
            match connection.read(&mut piece).await? {
                0 => return Ok(length),
                count => length += count,
            }
        }
    }

    /// Follows a task.
    pub(crate) async fn open(&self, address: &str) -> Result<WebSocketStream<TcpStream>> {
        let mut request = address.into_client_request()?;
        request.headers_mut().insert("authorization", format!("Token {}", self.token).parse()?);
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(tokio_tungstenite::client_async(request, stream).await?.0)
    }

    /// Follows a task to its end; gives the final state.
    pub(crate) async fn follow(&self, address: &str) -> Result<String> {
        let mut socket = self.open(address).await?;
        while let Some(message) = socket.next().await {
            if let Message::Close(Some(frame)) = message? {
                ensure!(u16::from(frame.code) == 1000, "closed with {}", frame.code);
                return Ok(frame.reason.to_string());
            }
        }
        bail!("{address} ended without a close frame")
    }
}
