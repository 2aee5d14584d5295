//! What a handler takes from a request besides the call: path, query and body, each with errors that name the field.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::fields::{Id, Many, Reference};
use crate::kernel::Kernel;
use crate::routes::{Argument, OperationDoc};
use crate::{Error, Result};

/// Parameters of the path, in its order. A number that is none is not found.
pub struct Path<T>(pub T);

/// What a path's parameters can be read as.
pub trait PathValues: Sized {
    /// Reads them, or gives nothing when they are not of this form.
    fn read(values: &[String]) -> Option<Self>;
}

impl PathValues for i64 {
    fn read(values: &[String]) -> Option<Self> {
        values.first()?.parse().ok()
    }
}

impl PathValues for (i64, i64) {
    fn read(values: &[String]) -> Option<Self> {
        Some((values.first()?.parse().ok()?, values.get(1)?.parse().ok()?))
    }
}

/// What the last parameter belongs to, and that one as a text.
impl<T: PathValues> PathValues for (T, String) {
    fn read(values: &[String]) -> Option<Self> {
        let (last, before) = values.split_last()?;
        Some((T::read(before)?, last.clone()))
    }
}

impl PathValues for String {
    fn read(values: &[String]) -> Option<Self> {
        values.first().cloned()
    }
}

impl<T: PathValues> FromRequestParts<Kernel> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, kernel: &Kernel) -> Result<Self> {
        let found = RawPathParams::from_request_parts(parts, kernel).await.map_err(Error::internal)?;
        let values: Vec<String> = found.iter().map(|(_, value)| value.to_owned()).collect();
        T::read(&values).map(Path).ok_or_else(|| Error::not_found("thing"))
    }
}

impl<T> Argument for Path<T> {
    /// Parameters of the path are described from the path itself.
    fn describe(_: &mut OperationDoc, _: &mut SchemaGenerator) {}
}

/// Parameters of the query. Unknown ones are ignored; a repeated one becomes an array.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Kernel> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Kernel) -> Result<Self> {
        parse_value(query_object(parts.uri.query().unwrap_or(""))).map(Query)
    }
}

impl<T: JsonSchema> Argument for Query<T> {
    fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator) {
        let schema = T::json_schema(schemas);
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            for (name, schema) in properties {
                if let Ok(schema) = schema.clone().try_into() {
                    operation.query.push((name.clone(), schema));
                }
            }
        }
    }
}

/// The query as an object; empty values are left out, since forms send them for what was not filled in.
pub(crate) fn query_object(query: &str) -> Value {
    let mut object = Map::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if value.trim().is_empty() {
            continue;
        }
        let value = Value::String(value.into_owned());
        match object.get_mut(name.as_ref()) {
            None => {
                object.insert(name.into_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    Value::Object(object)
}

/// Reads a value with errors that name the member.
fn parse_value<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| named(&error))
}

fn named<E: std::fmt::Display>(error: &serde_path_to_error::Error<E>) -> Error {
    let path = error.path().to_string();
    let mut reason = error.inner().to_string();
    if let Some((text, _)) = reason.split_once(" at line ") {
        reason = text.to_owned();
    }
    // serde names a missing member in its text alone.
    if let Some(member) = reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        let field = if path == "." { member.to_owned() } else { format!("{path}.{member}") };
        return Error::invalid(field, "is missing");
    }
    Error::invalid(if path == "." { "body".to_owned() } else { path }, reason)
}

/// The JSON body. Unknown members are ignored; an empty body counts as `{}`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Kernel> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, kernel: &Kernel) -> Result<Self> {
        let bytes = read_body(request, kernel).await?;
        parse_body(&bytes).map(Body)
    }
}

async fn read_body(request: Request, kernel: &Kernel) -> Result<Bytes> {
    let limit_bytes = kernel.settings().body_bytes_max;
    axum::body::to_bytes(request.into_body(), limit_bytes).await.map_err(|error| {
        let too_large =
            std::error::Error::source(&error).is_some_and(|source| source.to_string().contains("length limit"));
        if too_large { Error::TooLarge { limit_bytes } } else { Error::invalid("body", "could not be read to its end") }
    })
}

fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let text = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { bytes };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = match serde_path_to_error::deserialize(&mut deserializer) {
        Ok(value) => value,
        Err(error) if error.inner().is_syntax() || error.inner().is_eof() => {
            return Err(Error::invalid("body", format!("is not JSON: {}", error.inner())));
        }
        Err(error) => return Err(named(&error)),
    };
    deserializer.end().map_err(|error| Error::invalid("body", format!("is not JSON: {error}")))?;
    Ok(value)
}

impl<T: JsonSchema> Argument for Body<T> {
    fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator) {
        operation.body = Some(schemas.subschema_for::<T>());
    }
}

/// Type of a body that goes on from an offset, as tus 1.0 has it.
pub const OFFSET_OCTETS: &str = "application/offset+octet-stream";

/// The body as it comes, piece by piece and of any length: the handler bounds it.
pub struct Pieces(pub axum::body::BodyDataStream);

impl FromRequest<Kernel> for Pieces {
    type Rejection = Error;

    async fn from_request(request: Request, _: &Kernel) -> Result<Self> {
        Ok(Self(request.into_body().into_data_stream()))
    }
}

impl Argument for Pieces {
    fn describe(operation: &mut OperationDoc, _: &mut SchemaGenerator) {
        operation.bytes = Some(OFFSET_OCTETS);
    }
}

/// A list of ids: `[{"id": 1}]`, bare ids, or repeated `?id=` where an intermediary drops the body of a DELETE.
/// None given is an error: never "all".
pub struct Ids(pub Vec<i64>);

#[derive(Deserialize)]
struct QueryIds {
    #[serde(default)]
    id: Many<Id>,
}

impl FromRequest<Kernel> for Ids {
    type Rejection = Error;

    async fn from_request(request: Request, kernel: &Kernel) -> Result<Self> {
        let QueryIds { id } = parse_value(query_object(request.uri().query().unwrap_or("")))?;
        let bytes = read_body(request, kernel).await?;
        let mut ids: Vec<i64> = if bytes.iter().all(u8::is_ascii_whitespace) {
            id.0.into_iter().map(|id| id.0).collect()
        } else {
            parse_body::<Many<Reference>>(&bytes)?.0.into_iter().map(|reference| reference.id.0).collect()
        };
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return Err(Error::invalid("id", "give at least one"));
        }
        Ok(Self(ids))
    }
}

impl Argument for Ids {
    fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator) {
        operation.body = Some(schemas.subschema_for::<Many<Reference>>());
    }
}
