//! Routes as data: method, path, permission and description stand beside the handler.
//!
//! Invariant: [`Routes`] takes only handlers whose first argument is a [`Call<P>`], so no route is without a permission;
//! the same list makes the router, the API description, `golden/routes.txt` and the access test.

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::json;

use crate::Result;
use crate::call::{Call, Need, Permission};
use crate::kernel::Kernel;

/// Base path of the API.
pub const BASE: &str = "/api/v1";

/// A successful answer: always 200, a JSON body.
#[derive(Debug)]
pub struct Reply<T> {
    body: T,
    headers: HeaderMap,
}

impl<T> Reply<T> {
    /// An answer.
    pub fn new(body: T) -> Self {
        Self { body, headers: HeaderMap::new() }
    }

    /// Adds a header; one that is not plain text is left out.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }
}

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        (self.headers, axum::Json(self.body)).into_response()
    }
}

/// The plain answer `{"message": "success"}`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Message {
    /// `success`.
    pub message: &'static str,
}

impl Message {
    /// `success`.
    #[must_use]
    pub fn success() -> Self {
        Self { message: "success" }
    }
}

/// What an operation's description is put together from.
#[derive(Debug, Default)]
pub struct OperationDoc {
    /// Query parameters: name and schema.
    pub query: Vec<(String, Schema)>,
    /// Body.
    pub body: Option<Schema>,
    /// Type of a body that is bytes and no JSON.
    pub bytes: Option<&'static str>,
    /// Answer.
    pub answer: Option<Schema>,
    /// Whether the operation is a websocket.
    pub websocket: bool,
}

/// What may follow the call in a handler's arguments: it describes itself.
pub trait Argument {
    /// Adds this argument to the description.
    fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator);
}

/// Whoever does not ask for a websocket is told so by the handler, after the right to it was checked.
impl Argument for std::result::Result<WebSocketUpgrade, WebSocketUpgradeRejection> {
    fn describe(operation: &mut OperationDoc, _: &mut SchemaGenerator) {
        operation.websocket = true;
    }
}

/// Headers that a handler reads by itself, such as a range.
impl Argument for HeaderMap {
    fn describe(_: &mut OperationDoc, _: &mut SchemaGenerator) {}
}

/// What a handler may answer: it describes itself.
pub trait Answer {
    /// Adds the answer to the description.
    fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator);
}

impl<T: JsonSchema> Answer for Result<Reply<T>> {
    fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator) {
        operation.answer = Some(schemas.subschema_for::<T>());
    }
}

impl Answer for Result<Response> {
    fn describe(_: &mut OperationDoc, _: &mut SchemaGenerator) {}
}

/// Handlers that begin with a [`Call`]: the only ones that can be routes.
///
/// A handler that asks for no permission does not compile, whether it takes nothing or something else first:
///
/// ```compile_fail,E0277
/// async fn open() -> drover_kernel::Result<drover_kernel::Reply<u8>> {
///     Ok(drover_kernel::Reply::new(1))
/// }
/// let _ = drover_kernel::Routes::tagged("test").get("/test/", "test", "Test.", open);
/// ```
///
/// ```compile_fail,E0277
/// use drover_kernel::{Path, Reply, Result, Routes};
/// async fn open(_: Path<i64>) -> Result<Reply<u8>> {
///     Ok(Reply::new(1))
/// }
/// let _ = Routes::tagged("test").get("/test/{id}/", "test", "Test.", open);
/// ```
///
/// With a permission the same one compiles:
///
/// ```
/// use drover_kernel::{Call, Path, Reply, Result, Routes, permission};
/// permission!(pub Look, "test.look", "Look", SignedIn);
/// async fn open(_: Call<Look>, _: Path<i64>) -> Result<Reply<u8>> {
///     Ok(Reply::new(1))
/// }
/// let _ = Routes::tagged("test").get("/test/{id}/", "test", "Test.", open);
/// ```
#[diagnostic::on_unimplemented(
    message = "a route's handler must be `async fn(Call<Permission>, …) -> Result<Reply<…>>`",
    label = "the first argument is not a `Call<_>`, or another argument does not describe itself"
)]
pub trait Guarded<T> {
    /// Name, summary and need of the permission.
    fn permission() -> (&'static str, &'static str, Need);
    /// Describes arguments and answer.
    fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator);
}

macro_rules! guarded {
    ($($argument:ident),*) => {
        impl<F, Fut, Out, M, P, $($argument),*> Guarded<(M, Call<P>, $($argument,)*)> for F
        where
            F: FnOnce(Call<P>, $($argument),*) -> Fut,
            Fut: Future<Output = Out>,
            Out: Answer,
            P: Permission,
            $($argument: Argument,)*
        {
            fn permission() -> (&'static str, &'static str, Need) {
                (P::NAME, P::SUMMARY, P::NEED)
            }
            #[expect(clippy::allow_attributes, reason = "without arguments nothing is described")]
            #[allow(unused_variables, reason = "without arguments nothing is described")]
            fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator) {
                $($argument::describe(operation, schemas);)*
                Out::describe(operation, schemas);
            }
        }
    };
}

guarded!();
guarded!(A);
guarded!(A, B);
guarded!(A, B, C);
guarded!(A, B, C, D);

type Describe = fn(&mut OperationDoc, &mut SchemaGenerator);

/// One route.
#[derive(Clone)]
pub struct Route {
    /// Method.
    pub method: Method,
    /// Whole path with `{parameters}`.
    pub path: String,
    /// Id of the operation: also the action of its audit entries where those have no name of their own.
    pub operation: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Group in the description.
    pub tag: &'static str,
    /// Name of the permission.
    pub permission: &'static str,
    /// What the permission is for.
    pub permission_summary: &'static str,
    /// What the permission asks.
    pub need: Need,
    /// Describes arguments and answer.
    pub describe: Describe,
    handler: MethodRouter<Kernel>,
}

impl Route {
    pub(crate) fn handler(&self) -> MethodRouter<Kernel> {
        self.handler.clone()
    }
}

/// A list of routes under one group.
#[derive(Clone)]
pub struct Routes {
    tag: &'static str,
    base: &'static str,
    routes: Vec<Route>,
}

impl Routes {
    /// An empty list; paths count from [`BASE`].
    #[must_use]
    pub fn tagged(tag: &'static str) -> Self {
        Self { tag, base: BASE, routes: Vec::new() }
    }

    /// Adds another list.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        self
    }

    /// Every route.
    #[must_use]
    pub fn all(&self) -> &[Route] {
        &self.routes
    }

    fn add<T, H>(
        mut self,
        method: Method,
        path: &str,
        operation: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self
    where
        T: 'static,
        H: Handler<T, Kernel> + Guarded<T>,
    {
        let (permission, permission_summary, need) = H::permission();
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
        self.routes.push(Route {
            method,
            path: format!("{}{path}", self.base),
            operation,
            summary,
            tag: self.tag,
            permission,
            permission_summary,
            need,
            describe: H::describe,
            handler: on(filter, handler),
        });
        self
    }

    /// Adds a GET route.
    #[must_use]
    pub fn get<T: 'static, H>(self, path: &str, operation: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: Handler<T, Kernel> + Guarded<T>,
    {
        self.add(Method::GET, path, operation, summary, handler)
    }

    /// Adds a POST route.
    #[must_use]
    pub fn post<T: 'static, H>(self, path: &str, operation: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: Handler<T, Kernel> + Guarded<T>,
    {
        self.add(Method::POST, path, operation, summary, handler)
    }

    /// Adds a PATCH route.
    #[must_use]
    pub fn patch<T: 'static, H>(self, path: &str, operation: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: Handler<T, Kernel> + Guarded<T>,
    {
        self.add(Method::PATCH, path, operation, summary, handler)
    }

    /// Adds a DELETE route.
    #[must_use]
    pub fn delete<T: 'static, H>(self, path: &str, operation: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: Handler<T, Kernel> + Guarded<T>,
    {
        self.add(Method::DELETE, path, operation, summary, handler)
    }

    /// One line for each route: method, path, permission, what it asks. The text of `golden/routes.txt`.
    #[must_use]
    pub fn listing(&self) -> String {
        let mut lines: Vec<String> = self
            .routes
            .iter()
            .map(|route| {
                let need = match route.need {
                    Need::Public => "public".to_owned(),
                    Need::SignedIn => "signed in".to_owned(),
                    Need::Administrator => "administrator".to_owned(),
                    Need::SelfOrAdministrator => "self or administrator".to_owned(),
                    Need::Module { module, right } => format!("module {module}: {right}"),
                    Need::Resource { kind, right } => format!("{kind} of the path: {right}"),
                    Need::Named { kind, right } => format!("{kind} of the body: {right}"),
                };
                format!("{:6} {:72} {:40} {need}", route.method.as_str(), route.path, route.permission)
            })
            .collect();
        lines.sort_by_key(|line| line.split_whitespace().nth(1).map(str::to_owned));
        lines.join("\n") + "\n"
    }
}

/// The API's description as OpenAPI 3.1.
#[must_use]
pub fn openapi(routes: &Routes, version: &str) -> serde_json::Value {
    let mut settings = schemars::generate::SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut schemas = settings.into_generator();
    let error = schemas.subschema_for::<crate::error::ErrorBody>();
    let mut paths: std::collections::BTreeMap<String, serde_json::Map<String, serde_json::Value>> =
        std::collections::BTreeMap::new();
    for route in routes.all() {
        let mut doc = OperationDoc::default();
        (route.describe)(&mut doc, &mut schemas);
        let path = route.path.strip_prefix(BASE).unwrap_or(&route.path).to_owned();
        let mut parameters: Vec<_> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| {
                let kind = if matches!(name, "channel" | "execution_id") { "string" } else { "integer" };
                json!({"name": name, "in": "path", "required": true, "schema": {"type": kind}})
            })
            .collect();
        for (name, schema) in &doc.query {
            let description = schema.get("description").cloned().unwrap_or_default();
            parameters.push(json!({"name": name, "in": "query", "description": description, "schema": schema}));
        }
        let success = match (&doc.answer, doc.websocket) {
            (_, true) => json!({"101": {"description": "The websocket is open"}}),
            (Some(schema), _) => {
                json!({"200": {"description": "Done", "content": {"application/json": {"schema": schema}}}})
            }
            (None, _) => json!({"200": {"description": "Done"}}),
        };
        let mut operation = json!({
            "operationId": route.operation,
            "summary": route.summary,
            "tags": [route.tag],
            "parameters": parameters,
            "responses": success,
            "x-permission": route.permission,
        });
        operation["responses"]["default"] =
            json!({"description": "Failed", "content": {"application/json": {"schema": error}}});
        if let Some(body) = doc.body {
            operation["requestBody"] = json!({"content": {"application/json": {"schema": body}}});
        }
        if let Some(kind) = doc.bytes {
            operation["requestBody"] = json!({"content": {kind: {"schema": {"type": "string", "format": "binary"}}}});
        }
        if route.need == Need::Public {
            operation["security"] = json!([]);
        }
        paths.entry(path).or_default().insert(route.method.as_str().to_lowercase(), operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Drover", "version": version, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": BASE}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`Authorization: Token VALUE` works as well"},
                "session": {"type": "apiKey", "in": "cookie", "name": crate::call::SESSION_COOKIE},
            },
        },
    })
}
