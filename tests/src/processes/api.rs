//! A client of the API over a real socket.

use std::time::Duration;

use serde_json::Value;
use ureq::http::{Method, Request};

use crate::waiting::wait_within;

/// Longest call.
const CALL: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a call was answered.
#[derive(Debug)]
pub struct ApiAnswer {
    /// HTTP status.
    pub status: u16,
    /// Body, null when it is no JSON.
    pub body: Value,
    request: String,
}

impl ApiAnswer {
    /// The body, after checking the status.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "checking the status is enough for many calls")]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.request, self.body);
        self.body
    }
}

/// A file that was fetched, or a part of it.
pub struct Download {
    status: u16,
    bytes: Vec<u8>,
}

impl Download {
    /// The bytes, after checking the status.
    #[track_caller]
    #[must_use]
    pub fn expect_bytes(self, status: u16) -> Vec<u8> {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(500)]));
        self.bytes
    }
}

/// Somebody who calls the API; cheap to clone. Paths count from its base.
#[derive(Clone)]
pub struct Api {
    agent: ureq::Agent,
    base: String,
    token: String,
}

impl Api {
    /// Calls the server at `url` with this token.
    #[must_use]
    pub fn new(url: &str, token: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(CALL))
            // A server that was stopped and started does not know the old connections.
            .max_idle_connections(0)
            .proxy(None)
            .build();
        Self { agent: config.new_agent(), base: format!("{url}/api/v1"), token: token.to_owned() }
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Sends GET.
    pub async fn get(&self, path: &str) -> ApiAnswer {
        self.send(Method::GET, path, Value::Null).await
    }

    /// Sends POST; null sends no body.
    pub async fn post(&self, path: &str, body: Value) -> ApiAnswer {
        self.send(Method::POST, path, body).await
    }

    /// Sends PATCH.
    pub async fn patch(&self, path: &str, body: Value) -> ApiAnswer {
        self.send(Method::PATCH, path, body).await
    }

    /// Fetches a file, from a byte on when one is given.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn download(&self, path: &str, from: Option<usize>) -> Download {
        let mut request = Request::builder().uri(format!("{}{path}", self.base));
        request = request.header("authorization", format!("Token {}", self.token));
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let request = request.body(()).expect("a request");
        let (agent, path) = (self.agent.clone(), path.to_owned());
        let fetching = tokio::task::spawn_blocking(move || {
            let mut response = agent.run(request).unwrap_or_else(|error| panic!("{path}: {error}"));
            let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX * 4).read_to_vec();
            let bytes = body.unwrap_or_else(|error| panic!("{path}: {error}"));
            Download { status: response.status().as_u16(), bytes }
        });
        fetching.await.expect("the download does not panic")
    }

    /// Whether the server is ready, as its probe says; none when it does not answer.
    pub async fn readiness(&self) -> Option<ApiAnswer> {
        let base = self.base.trim_end_matches("/api/v1").to_owned();
        let probing = Self { base, ..self.clone() };
        probing.try_send(Method::GET, "/readyz", Value::Null, None).await.ok()
    }

    /// The body that GET gives, if the server answers and says 200.
    pub async fn try_get(&self, path: &str) -> Option<Value> {
        let answer = self.try_send(Method::GET, path, Value::Null, None).await.ok()?;
        (answer.status == 200).then_some(answer.body)
    }

    /// Sends POST with a key by which the server knows a repeated one, as often as it takes until it answers, whatever
    /// happens to it meanwhile.
    ///
    /// # Panics
    /// When it does not answer within `longest`.
    pub async fn post_until_answered(&self, path: &str, body: Value, key: &str, longest: Duration) -> ApiAnswer {
        let mut answer = None;
        wait_within(longest, &format!("an answer to POST {path}"), async || {
            let sent = self.try_send(Method::POST, path, body.clone(), Some(key)).await;
            // While it starts, stops, or has no database, it says so.
            answer = sent.ok().filter(|answer| answer.status < 500);
            answer.is_some()
        })
        .await;
        answer.expect("it was waited for")
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> ApiAnswer {
        let what = format!("{method} {path}");
        self.try_send(method, path, body, None).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Value,
        key: Option<&str>,
    ) -> Result<ApiAnswer, ureq::Error> {
        let request = format!("{method} {path} {body}");
        let content = if body.is_null() { String::new() } else { body.to_string() };
        let mut built = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.base))
            .header("authorization", format!("Token {}", self.token))
            .header("content-type", "application/json");
        if let Some(key) = key {
            built = built.header("idempotency-key", key);
        }
        let agent = self.agent.clone();
        let calling = tokio::task::spawn_blocking(move || {
            let mut response =
                if method == Method::GET { agent.run(built.body(())?)? } else { agent.run(built.body(content)?)? };
            let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
            let body = serde_json::from_str(&text).unwrap_or(Value::Null);
            Ok(ApiAnswer { status: response.status().as_u16(), body, request })
        });
        calling.await.expect("the call does not panic")
    }
}
