//! The HTTP side of a server: aliases settled before routing, request ids, limits, probes, the API's description.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use tower::Layer as _;
use tower::util::{MapRequest, MapRequestLayer};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::Error;
use crate::call::{Client, OriginalUri};
use crate::idempotency::remember_request;
use crate::kernel::Kernel;
use crate::routes::{BASE, Routes, openapi};
use crate::trace::with_request_id;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters that a client's own request id may have.
const ID_CHARACTERS_MAX: usize = 200;

/// Time for all checks of readiness: whoever asks waits for no more than a few seconds.
const READY_MAX: Duration = Duration::from_secs(2);

type Checking = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Answers whether a part of the server is ready, or why not.
#[derive(Clone)]
pub struct ReadyCheck {
    part: &'static str,
    check: Arc<dyn Fn() -> Checking + Send + Sync>,
}

impl ReadyCheck {
    /// A check of this part.
    pub fn of<F>(part: &'static str, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { part, check: Arc::new(move || Box::pin(check())) }
    }
}

/// The whole service: what a listener serves and what tests call in process.
pub type Service = MapRequest<Router, fn(Request) -> Request>;

/// Makes the service of these routes.
#[must_use]
pub fn service(kernel: &Kernel, routes: &Routes, version: &str, ready: Vec<ReadyCheck>) -> Service {
    let mut by_path: HashMap<&str, MethodRouter<Kernel>> = HashMap::new();
    for route in routes.all() {
        let present = by_path.remove(route.path.as_str()).unwrap_or_default();
        by_path.insert(&route.path, present.merge(route.handler()));
    }
    let description: Arc<serde_json::Value> = Arc::new(openapi(routes, version));
    let mut router = Router::new();
    for (path, handler) in by_path {
        router = router.route(path, handler);
    }
    let router = router
        .route(&format!("{BASE}/openapi.json"), get(move || async move { Json((*description).clone()) }))
        .route(&format!("{BASE}/docs/"), get(|| async { Html(include_str!("docs.html")) }))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(move |State(kernel): State<Kernel>| readyz(kernel, ready.clone())))
        .route("/metrics", get(metrics))
        .fallback(|| async { Error::not_found("address") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(kernel.clone(), remember_request))
        .layer(middleware::from_fn_with_state(kernel.clone(), observe))
        .with_state(kernel.clone());
    MapRequestLayer::new(settle_address as fn(Request) -> Request).layer(router)
}

async fn readyz(kernel: Kernel, checks: Vec<ReadyCheck>) -> Result<&'static str, Error> {
    if kernel.stopping().is_cancelled() {
        return Err(Error::Unavailable("the server is stopping".to_owned()));
    }
    let until = Instant::now() + READY_MAX;
    let database = ReadyCheck::of("the database", move || {
        let kernel = kernel.clone();
        async move { kernel.check_database().await.map_err(|error| error.to_string()) }
    });
    for ReadyCheck { part, check } in std::iter::once(&database).chain(&checks) {
        let none = |_| Err(format!("{part} gives no answer within {} s", READY_MAX.as_secs()));
        tokio::time::timeout_at(until.into(), check()).await.unwrap_or_else(none).map_err(Error::Unavailable)?;
    }
    Ok("ready\n")
}

async fn metrics(State(kernel): State<Kernel>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], kernel.metrics().render())
}

/// Settles what the contract allows in addresses: singular first segments, and a missing slash at the end.
fn settle_address(mut request: Request) -> Request {
    let original = request.uri().clone();
    if let Some(rest) = original.path().strip_prefix(BASE).and_then(|rest| rest.strip_prefix('/')) {
        let mut segments: Vec<&str> = rest.split('/').filter(|segment| !segment.is_empty()).collect();
        match segments.first_mut() {
            Some(first) if *first == "application" => *first = "applications",
            Some(first) if *first == "host" => *first = "hosts",
            _ => {}
        }
        if let [first, _, third, ..] = segments.as_mut_slice()
            && *first == "applications"
            && *third == "instance"
        {
            *third = "instances";
        }
        if let [first, second, ..] = segments.as_mut_slice()
            && *first == "common-utils"
            && *second == "jump-server-log"
        {
            *second = "jump-server-logs";
        }
        let file = segments.last().is_some_and(|last| last.ends_with(".json"));
        let slash = if file || segments.first() == Some(&"channel") { "" } else { "/" };
        let query = original.query().map(|query| format!("?{query}")).unwrap_or_default();
        if let Ok(uri) = format!("{BASE}/{}{slash}{query}", segments.join("/")).parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    request.extensions_mut().insert(OriginalUri(original));
    request
}

fn client_address(kernel: &Kernel, request: &Request) -> Option<IpAddr> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>()?.0.ip();
    Some(kernel.settings().proxies.client(peer, request.headers()))
}

/// Gives the request its id, counts and logs it.
async fn observe(State(kernel): State<Kernel>, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain =
        |id: &&str| !id.is_empty() && id.len() <= ID_CHARACTERS_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
    let id = given.filter(plain).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    let client = Client { address: client_address(&kernel, &request), host: None };
    request.extensions_mut().insert(client);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let started = Instant::now();
    let span = tracing::info_span!("request", id, %method, route);
    let mut response = with_request_id(id.clone(), next.run(request)).instrument(span).await;
    let seconds = started.elapsed().as_secs_f64();
    let status = response.status().as_u16();
    kernel.metrics().request(method.as_str(), &route, status, seconds);
    tracing::debug!(request_id = id, %method, route, status, seconds, "request");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn every_spelling_of_an_address_is_settled() {
        for (given, expected) in [
            ("/api/v1/application", "/api/v1/applications/"),
            ("/api/v1/application/7/instance/8/log?mode=lines", "/api/v1/applications/7/instances/8/log/?mode=lines"),
            ("/api/v1/host/3/authorization/roles/", "/api/v1/hosts/3/authorization/roles/"),
            ("/api/v1/users/3/application/perms", "/api/v1/users/3/application/perms/"),
            ("/api/v1/openapi.json", "/api/v1/openapi.json"),
            ("/api/v1/channel/abc", "/api/v1/channel/abc"),
            ("/healthz", "/healthz"),
        ] {
            let request = Request::builder().uri(given).body(Body::empty()).unwrap();
            assert_eq!(settle_address(request).uri().to_string(), expected);
        }
    }
}
