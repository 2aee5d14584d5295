//! One error type for the server and its one mapping to HTTP.
//!
//! Invariant: what reaches a client never carries internals; those go to the log, once, with the request's id.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Result of whatever may end a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is signed in, or with a credential that is not valid.
    #[error("sign in first: {0}")]
    Unauthenticated(String),
    /// The caller may see the thing but not do this to it.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such thing, or none that the caller may see.
    #[error("{0}")]
    NotFound(String),
    /// The path does not know this method.
    #[error("this address does not know that method")]
    MethodNotAllowed,
    /// Something in the request is missing, malformed or not allowed.
    #[error("{field}: {reason}")]
    Invalid {
        /// Which member, parameter or header, as a path such as `instances[0].id`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The present state does not allow this.
    #[error("{0}")]
    Conflict(String),
    /// An answer that the contract gives a number of its own.
    #[error("{message}")]
    Coded {
        /// HTTP status.
        status: u16,
        /// The number.
        code: i64,
        /// For people.
        message: String,
        /// Which member, if one is to blame.
        field: Option<String>,
    },
    /// The body is larger than allowed.
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// Too many attempts.
    #[error("too many attempts, try again in {retry_seconds} s")]
    Limited {
        /// When another attempt makes sense.
        retry_seconds: u64,
    },
    /// Something that the server needs is not there for the moment.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of ours; the text is for the log alone.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// A member that is missing, malformed or not allowed.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// The present state does not allow this.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict(message.into())
    }

    /// There is none, or none that the caller may see. `what` is a noun with article, such as `a host`.
    pub fn not_found(what: &str) -> Self {
        Self::NotFound(format!("there is no such {what}"))
    }

    /// A fault of ours.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }

    /// An answer with a number of its own.
    pub fn coded(status: u16, code: i64, message: impl Into<String>) -> Self {
        Self::Coded { status, code, message: message.into(), field: None }
    }

    /// Puts `prefix` before the field of an [`Invalid`](Self::Invalid), when an inner part was checked alone.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        match self {
            Self::Invalid { field, reason } if field.is_empty() => Self::Invalid { field: prefix.to_owned(), reason },
            Self::Invalid { field, reason } => Self::Invalid { field: format!("{prefix}.{field}"), reason },
            other => other,
        }
    }

    fn status_and_code(&self) -> (StatusCode, i64) {
        match self {
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, 10000),
            Self::Invalid { .. } => (StatusCode::BAD_REQUEST, 10001),
            Self::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, 10002),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, 10003),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, 10004),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, 10005),
            Self::Conflict(_) => (StatusCode::CONFLICT, 10006),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, 10007),
            Self::Limited { .. } => (StatusCode::TOO_MANY_REQUESTS, 10008),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, 10009),
            Self::Coded { status, code, .. } => {
                (StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), *code)
            }
        }
    }
}

/// Body of a failed call.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody {
    /// Number of the error; from 30001 on it means something only with its endpoint.
    pub error_code: i64,
    /// For people.
    pub message: String,
    /// Member, parameter or header that is to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Id of the request, which the server's log carries too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, error_code) = self.status_and_code();
        let request_id = crate::trace::current_request_id();
        let message = if let Self::Internal(detail) = &self {
            tracing::error!(detail, "request failed inside the server");
            "the server failed inside; its log has the details under the request's id".to_owned()
        } else {
            self.to_string()
        };
        let field = match &self {
            Self::Invalid { field, .. } if !field.is_empty() => Some(field.clone()),
            Self::Coded { field, .. } => field.clone(),
            _ => None,
        };
        let mut response = (status, axum::Json(ErrorBody { error_code, message, field, request_id })).into_response();
        if let Self::Limited { retry_seconds } = self {
            response.headers_mut().insert("retry-after", retry_seconds.into());
        }
        response
    }
}
