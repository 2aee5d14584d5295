//! A client of the server under test: requests in, status and JSON out, no socket between.

use std::net::{IpAddr, SocketAddr};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use drover_kernel::http::Service;
use drover_kernel::routes::BASE;
use serde_json::Value;
use tower::ServiceExt as _;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Characters of a request's body that a failed check shows.
const SHOWN_CHARACTERS_MAX: usize = 2000;

/// What a request was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as JSON, as a JSON string when it is none, null when it is empty.
    pub body: Value,
    /// Body as it came.
    pub bytes: Vec<u8>,
    request: String,
}

impl Answer {
    /// The body, after checking the status.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "checking the status is enough for many tests")]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.request, self.body);
        self.body
    }

    /// The body of an error, after checking status and number.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "checking the number is enough for many tests")]
    pub fn expect_error(self, status: u16, error_code: i64) -> Value {
        let request = self.request.clone();
        let body = self.expect(status);
        assert_eq!(body["error_code"], error_code, "{request}: {body}");
        body
    }

    /// The text of a header, empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    }

    /// The value of a cookie that is set.
    #[must_use]
    pub fn cookie(&self, name: &str) -> Option<String> {
        let set = self.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok());
        set.filter_map(|cookie| cookie.split(';').next()?.split_once('='))
            .find_map(|(found, value)| (found == name).then(|| value.to_owned()))
    }
}

/// Somebody who sends requests; cheap to clone. Paths count from the base of the API.
#[derive(Clone)]
pub struct Client {
    service: Service,
    headers: HeaderMap,
    address: Option<IpAddr>,
}

impl Client {
    #[must_use]
    pub fn anonymous(service: Service) -> Self {
        Self { service, headers: HeaderMap::new(), address: None }
    }

    /// The text of a header that is sent with each request, empty when there is none.
    pub(crate) fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    }

    /// The same client, at this address.
    ///
    /// # Panics
    /// When it is no address.
    #[must_use]
    pub fn at_address(&self, address: &str) -> Self {
        Self { address: Some(address.parse().expect("an address")), ..self.clone() }
    }

    /// The same client with one more header on each request, in place of one of that name.
    ///
    /// # Panics
    /// When it is no header.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        let name: HeaderName = name.parse().expect("name of a header");
        client.headers.insert(name, HeaderValue::from_str(value).expect("value of a header"));
        client
    }

    /// The same client with a token or session value.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        self.with_header("authorization", &format!("Token {token}"))
    }

    /// Sends GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Value::Null).await
    }

    /// Sends POST; null sends no body.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    /// Sends PATCH.
    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, body).await
    }

    /// Sends DELETE without a body.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, Value::Null).await
    }

    /// Sends DELETE with a body.
    pub async fn delete_with(&self, path: &str, body: Value) -> Answer {
        self.send(Method::DELETE, path, body).await
    }

    /// Sends any request; null sends no body.
    pub async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.send_text(method, path, text).await
    }

    /// Sends a body as it stands, JSON or not.
    ///
    /// # Panics
    /// When the path is none, or the answer too large.
    pub async fn send_text(&self, method: Method, path: &str, body: String) -> Answer {
        let text = format!("{} {}", path, body.chars().take(SHOWN_CHARACTERS_MAX).collect::<String>());
        self.with_header("content-type", "application/json").send_told(method, path, body.into(), text).await
    }

    /// Sends bytes as they stand, or as they come.
    pub async fn send_bytes(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        self.send_told(method, path, body.into(), path.to_owned()).await
    }

    async fn send_told(&self, method: Method, path: &str, body: Body, text: String) -> Answer {
        // A path from the very root begins with two slashes.
        let uri = path.strip_prefix("//").map_or_else(|| format!("{BASE}{path}"), |rest| format!("/{rest}"));
        let text = format!("{method} {text}");
        let mut request = Request::builder().method(method).uri(uri).body(body).expect("a request");
        *request.headers_mut() = self.headers.clone();
        if let Some(address) = self.address {
            request.extensions_mut().insert(ConnectInfo(SocketAddr::from((address, 4711))));
        }
        let response = match self.service.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, ANSWER_BYTES_MAX).await.expect("the answer's body");
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))
        };
        Answer { status: parts.status.as_u16(), headers: parts.headers, body, bytes: bytes.into(), request: text }
    }
}

/// A user who is signed in; sends requests as a [`Client`].
#[derive(Clone)]
pub struct TestUser {
    /// Id.
    pub id: i64,
    /// Login name.
    pub username: String,
    pub(crate) client: Client,
}

impl std::ops::Deref for TestUser {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}
