//! Calls to the server's API.
//!
//! Invariant: every call has a deadline, the answer's size has a bound, and the token leaves in no address and no
//! message.

use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde_json::Value;
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, BodyReader, SendBody};
use url::Url;

use crate::failure::{Answer, Failure, Result};
use crate::settings::Target;
use crate::trust;

const CONNECT: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(60);
/// Longest part of a download or an upload; a longer one goes on with the next part.
const DOWNLOAD: Duration = Duration::from_secs(3600);
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The largest page that the server gives.
const PAGE: usize = 100;

/// What was opened.
pub(crate) enum Opened {
    /// The bytes from the wanted place on.
    Part(BodyReader<'static>),
    /// There is nothing at the wanted place; this is how much there is.
    Nothing {
        /// Length in bytes, when the server says it.
        length: Option<u64>,
    },
}

/// A server, with the token to call it by.
pub(crate) struct Server {
    agent: Agent,
    url: Url,
    token: Option<String>,
    tls: Arc<ClientConfig>,
}

impl Server {
    /// Gets ready; nothing is sent yet.
    pub(crate) fn new(target: &Target) -> Result<Self> {
        let certificates = target.ca.as_deref().map(trust::certificates).transpose()?.unwrap_or_default();
        let mut tls = TlsConfig::builder();
        if !certificates.is_empty() {
            let roots = certificates.iter().map(|one| Certificate::from_der(one).to_owned()).collect();
            tls = tls.root_certs(RootCerts::Specific(Arc::new(roots)));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(CALL))
            .user_agent(concat!("drover/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build();
        let tls = trust::client(&certificates)?;
        Ok(Self { agent: config.new_agent(), url: target.url.clone(), token: target.token.clone(), tls })
    }

    /// Takes another token from now on.
    pub(crate) fn with_token(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// What the `Authorization` header says.
    pub(crate) fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Token {token}"))
    }

    /// TLS for websockets.
    pub(crate) fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    /// Fails when nobody is signed in, before the server has to say so.
    pub(crate) fn require_token(&self) -> Result<()> {
        match self.token {
            Some(_) => Ok(()),
            None => Err(Failure::not_allowed(format!(
                "not signed in at {}: use `drover login`, or give a token in DROVER_TOKEN",
                self.url
            ))),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, &[], None)
    }

    /// What is found with these parameters.
    pub(crate) fn find(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        self.call(Method::GET, path, query, None)
    }

    /// As [`find`](Self::find), for what takes its time.
    pub(crate) fn wait_for(&self, path: &str, query: &[(&str, &str)], longest: Duration) -> Result<Value> {
        self.call_within(Method::GET, path, query, None, longest)
    }

    /// Opens what may be long, from a byte on.
    pub(crate) fn open(&self, path: &str, query: &[(&str, &str)], from: u64) -> Result<Opened> {
        let address = self.address(path, query);
        let mut request = Request::builder().method(Method::GET).uri(&address);
        if let Some(authorization) = self.authorization() {
            request = request.header("authorization", authorization);
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let request = request.body(()).map_err(|error| Failure::usage(format!("cannot call {address}: {error}")))?;
        let request = self.agent.configure_request(request).timeout_global(Some(DOWNLOAD));
        let answer = self.agent.run(request.timeout_recv_response(Some(CALL)).build());
        let answer = answer.map_err(|error| self.not_reached(&error))?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => Ok(Opened::Part(answer.into_body().into_reader())),
            StatusCode::OK => {
                let mut body = answer.into_body().into_reader();
                // It has no ranges: what is there already is passed over.
                io::copy(&mut (&mut body).take(from), &mut io::sink())
                    .map_err(|error| Failure::unreachable(format!("the answer of {address} broke off: {error}")))?;
                Ok(Opened::Part(body))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let range = answer.headers().get("content-range").and_then(|value| value.to_str().ok());
                let length = range.and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
                Ok(Opened::Nothing { length })
            }
            _ => {
                let wrong = Failure::failed(format!("{address} answered {} in place of a file", answer.status()));
                Err(read(&address, answer).err().unwrap_or(wrong))
            }
        }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, &[], Some(body))
    }

    /// A POST that has nothing to say beyond its address.
    pub(crate) fn act(&self, path: &str) -> Result<Value> {
        self.call(Method::POST, path, &[], Some(&Value::Object(serde_json::Map::new())))
    }

    /// Announces an upload, as tus 1.0 has it; gives what the server says of it.
    pub(crate) fn announce(&self, path: &str, length: u64, metadata: &str) -> Result<Value> {
        let headers = [("upload-length", length.to_string()), ("upload-metadata", metadata.to_owned())];
        self.upload(Method::POST, path, &headers, 0, &mut io::empty())
    }

    /// Sends a part of an upload from its offset on.
    pub(crate) fn append(&self, path: &str, offset: u64, length: u64, bytes: &mut dyn io::Read) -> Result<()> {
        let kind = "application/offset+octet-stream".to_owned();
        let headers = [("upload-offset", offset.to_string()), ("content-type", kind)];
        self.upload(Method::PATCH, path, &headers, length, bytes).map(drop)
    }

    fn upload(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        length: u64,
        bytes: &mut dyn io::Read,
    ) -> Result<Value> {
        let address = self.address(path, &[]);
        let mut request = Request::builder().method(method).uri(&address).header("tus-resumable", "1.0.0");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(authorization) = self.authorization() {
            request = request.header("authorization", authorization);
        }
        let request = request.header("content-length", length.to_string()).body(SendBody::from_reader(bytes));
        let request = request.map_err(|error| Failure::usage(format!("cannot call {address}: {error}")))?;
        let request = self.agent.configure_request(request).timeout_global(Some(DOWNLOAD));
        let answer = self.agent.run(request.timeout_recv_response(Some(CALL)).build());
        read(&address, answer.map_err(|error| self.not_reached(&error))?)
    }

    pub(crate) fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, &[], None)
    }

    /// The first `limit` results of a list.
    pub(crate) fn list(&self, path: &str, filters: &[(&str, &str)], limit: usize) -> Result<Vec<Value>> {
        let size = limit.clamp(1, PAGE).to_string();
        let mut found = Vec::new();
        // Each page but the last is full, so this many hold whatever is wanted.
        for page in 1..=limit.div_ceil(PAGE) {
            let page = page.to_string();
            let mut query = vec![("page", page.as_str()), ("page_size", size.as_str())];
            query.extend_from_slice(filters);
            let mut answer = self.call(Method::GET, path, &query, None)?;
            let Some(Value::Array(results)) = answer.get_mut("results").map(Value::take) else {
                return Err(Failure::failed(format!("the server's answer to {path} is no list")));
            };
            found.extend(results);
            if answer["next"].is_null() {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    fn address(&self, path: &str, query: &[(&str, &str)]) -> String {
        let mut address = format!("{}/api/v1{path}", self.url.as_str().trim_end_matches('/'));
        if !query.is_empty() {
            let mut pairs = url::form_urlencoded::Serializer::new(String::new());
            address.push('?');
            address.push_str(&pairs.extend_pairs(query).finish());
        }
        address
    }

    fn call(&self, method: Method, path: &str, query: &[(&str, &str)], body: Option<&Value>) -> Result<Value> {
        self.call_within(method, path, query, body, CALL)
    }

    fn call_within(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
        longest: Duration,
    ) -> Result<Value> {
        let address = self.address(path, query);
        let mut request = Request::builder().method(method).uri(&address).header("accept", "application/json");
        if let Some(authorization) = self.authorization() {
            request = request.header("authorization", authorization);
        }
        let wrong = |error: ureq::http::Error| Failure::usage(format!("cannot call {address}: {error}"));
        let answer = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body.to_string());
                let request = self.agent.configure_request(request.map_err(wrong)?);
                self.agent.run(request.timeout_global(Some(longest)).build())
            }
            None => {
                let request = self.agent.configure_request(request.body(()).map_err(wrong)?);
                self.agent.run(request.timeout_global(Some(longest)).build())
            }
        };
        match answer {
            Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && self.token.is_some() => read(&address, answer)
                .map_err(|failure| Failure {
                    message: format!("{}; sign in with `drover login`", failure.message),
                    ..failure
                }),
            Ok(answer) => read(&address, answer),
            Err(error) => Err(self.not_reached(&error)),
        }
    }

    fn not_reached(&self, error: &ureq::Error) -> Failure {
        let hint = match error {
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => "; a certificate of your own CA is trusted with --ca FILE",
            ureq::Error::Io(inner) if inner.to_string().contains("certificate") => {
                "; a certificate of your own CA is trusted with --ca FILE"
            }
            _ => "",
        };
        Failure::unreachable(format!("cannot reach {}: {error}{hint}", self.url))
    }
}

fn read(address: &str, mut answer: Response<Body>) -> Result<Value> {
    let status = answer.status();
    let bytes = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
    let bytes = bytes.map_err(|error| Failure::unreachable(format!("the answer of {address} broke off: {error}")))?;
    let value = serde_json::from_slice::<Value>(&bytes);
    match (status, value) {
        (StatusCode::OK | StatusCode::CREATED, Ok(value)) => Ok(value),
        (StatusCode::NO_CONTENT, _) => Ok(Value::Null),
        (status, Ok(value)) if !status.is_success() && !status.is_redirection() => {
            Err(Failure::answered(status.as_u16(), serde_json::from_value(value).unwrap_or_default()))
        }
        (status, _) if status.is_success() || status.is_redirection() => {
            Err(Failure::failed(format!("{address} answered {status}, not as a Drover server does: is --url right?")))
        }
        (status, _) => {
            let message = format!("{address} answered {status} without saying why");
            Err(Failure::answered(status.as_u16(), Answer { message, ..Answer::default() }))
        }
    }
}
