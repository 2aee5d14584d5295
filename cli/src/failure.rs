//! How a command ends when it does not succeed.
//!
//! Invariant: the exit codes below are an interface; each failure has exactly one.

use serde_json::{Value, json};

/// The work was carried out and went wrong, or the server failed.
pub(crate) const FAILED: u8 = 1;
/// The command was wrong, what it asks for is not possible now, or what was compared differs.
pub(crate) const USAGE: u8 = 2;
/// Nobody is signed in, or the caller may not do this.
pub(crate) const NOT_ALLOWED: u8 = 3;
/// There is no such thing, or none that the caller may see.
pub(crate) const NOT_FOUND: u8 = 4;
/// The server does not answer.
pub(crate) const UNREACHABLE: u8 = 5;
/// The time that the caller wanted to wait is over; the work goes on.
pub(crate) const TIMED_OUT: u8 = 124;
/// Ctrl-C; the work goes on.
pub(crate) const INTERRUPTED: u8 = 130;

/// What every command answers.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A failure with its exit code.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    /// What the process exits with.
    pub(crate) code: u8,
    /// For people.
    pub(crate) message: String,
    /// What the server said, when it said something.
    pub(crate) answer: Option<Answer>,
    /// Whether what was written to standard output says it to programs already.
    pub(crate) is_told: bool,
}

/// The body of a failed call.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    pub(crate) error_code: Option<i64>,
    pub(crate) message: String,
    pub(crate) field: Option<String>,
    pub(crate) request_id: Option<String>,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), answer: None, is_told: false }
    }

    /// The work went wrong.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    /// The command is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// What was shown has differences.
    pub(crate) fn differs(message: impl Into<String>) -> Self {
        Self { is_told: true, ..Self::new(USAGE, message) }
    }

    /// Nobody is signed in.
    pub(crate) fn not_allowed(message: impl Into<String>) -> Self {
        Self::new(NOT_ALLOWED, message)
    }

    /// There is no such thing.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(NOT_FOUND, message)
    }

    /// The server does not answer.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(UNREACHABLE, message)
    }

    /// Whether trying again may help.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.code == UNREACHABLE
    }

    /// The caller does not want to wait any longer.
    pub(crate) fn timed_out(message: impl Into<String>) -> Self {
        Self::new(TIMED_OUT, message)
    }

    /// The server answered with this status and body.
    pub(crate) fn answered(status: u16, answer: Answer) -> Self {
        let code = match status {
            401 | 403 => NOT_ALLOWED,
            404 => NOT_FOUND,
            400..=428 => USAGE,
            429 | 502..=504 => UNREACHABLE,
            _ => FAILED,
        };
        let mut remarks = Vec::new();
        remarks.extend(answer.field.as_ref().map(|field| format!("field {field}")));
        remarks.extend(answer.request_id.as_ref().map(|id| format!("request {id}")));
        let mut message = answer.message.clone();
        if message.is_empty() {
            message = format!("the server answered {status}");
        }
        if !remarks.is_empty() {
            message = format!("{message} ({})", remarks.join(", "));
        }
        Self { code, message, answer: Some(answer), is_told: false }
    }

    /// As an object for programs.
    pub(crate) fn as_json(&self) -> Value {
        let answer = self.answer.clone().unwrap_or_default();
        let message = if answer.message.is_empty() { &self.message } else { &answer.message };
        json!({
            "error": {
                "exit_code": self.code,
                "message": message,
                "error_code": answer.error_code,
                "field": answer.field,
                "request_id": answer.request_id,
            }
        })
    }
}

/// Standard output is gone, or full: nothing more can be said there.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_exit_code() {
        for (status, code) in [(400, 2), (401, 3), (403, 3), (404, 4), (409, 2), (413, 2), (429, 5), (500, 1), (503, 5)]
        {
            assert_eq!(Failure::answered(status, Answer::default()).code, code, "{status}");
        }
    }

    #[test]
    fn people_see_field_and_request() {
        let answer = Answer {
            error_code: Some(10001),
            message: "version: missing".to_owned(),
            field: Some("version".to_owned()),
            request_id: Some("r1".to_owned()),
        };
        let failure = Failure::answered(400, answer);
        assert_eq!(failure.message, "version: missing (field version, request r1)");
        assert_eq!(failure.as_json()["error"]["message"], "version: missing");
    }
}
