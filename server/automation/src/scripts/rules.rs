//! What a deploy script may be.

use std::borrow::Cow;

use drover_kernel::{Error, Result, api_words};
use drover_shared::words::{Language, Word as _};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use crate::render;

/// Characters that a script may have.
pub const CONTENT_CHARACTERS_MAX: usize = 200_000;

api_words! {
    /// Engine that renders a script before it runs.
    pub enum TemplateEngine {
        /// Jinja templates.
        Jinja = "jinja",
    }
}

/// The text of a script, kept as it was sent to the byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Content(pub String);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let serde_json::Value::String(text) = serde_json::Value::deserialize(deserializer)? else {
            return Err(de::Error::custom("must be text"));
        };
        let bytes_max = render::Limits::default().source_bytes_max;
        if text.chars().count() > CONTENT_CHARACTERS_MAX {
            return Err(de::Error::custom(format!("must have at most {CONTENT_CHARACTERS_MAX} characters")));
        }
        if text.len() > bytes_max {
            return Err(de::Error::custom(format!("must have at most {bytes_max} bytes")));
        }
        if text.contains('\0') {
            return Err(de::Error::custom("must not contain the character NUL"));
        }
        if text.trim().is_empty() {
            return Err(de::Error::custom("must not be empty"));
        }
        Ok(Self(text))
    }
}

impl JsonSchema for Content {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "ScriptContent".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1, "maxLength": CONTENT_CHARACTERS_MAX})
    }
}

/// Numbers that the interface gives to what is wrong with a script.
const NAME_TAKEN: i64 = 30001;
const LANGUAGE_UNKNOWN: i64 = 30002;
const ENGINE_UNKNOWN: i64 = 30003;

fn coded(code: i64, field: &str, reason: &str) -> Error {
    Error::Coded { status: 500, code, message: format!("{field}: {reason}"), field: Some(field.to_owned()) }
}

/// The error of a name that another script has.
#[must_use]
pub fn name_taken(name: &str) -> Error {
    coded(NAME_TAKEN, "name", &format!("a script named `{name}` exists already"))
}

/// The language of this name.
///
/// # Errors
/// The interface's own number when there is none.
pub fn language(name: &str) -> Result<Language> {
    Language::parse(name).map_err(|error| coded(LANGUAGE_UNKNOWN, "language", &error.to_string()))
}

/// The engine of this name.
///
/// # Errors
/// The interface's own number when there is none.
pub fn engine(name: &str) -> Result<TemplateEngine> {
    TemplateEngine::parse(name).map_err(|error| coded(ENGINE_UNKNOWN, "template_engine", &error.to_string()))
}

/// Checks a script's name.
///
/// # Errors
/// Names the field `name`.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("name", "must not be empty"));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::invalid("name", "must not contain control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(value: serde_json::Value) -> Result<String, String> {
        serde_json::from_value::<Content>(value).map(|content| content.0).map_err(|error| error.to_string())
    }

    #[test]
    fn content_stays_as_it_is() {
        for text in ["  echo\r\n\n", "\u{feff}é\t ", "#!/bin/sh\n"] {
            assert_eq!(content(text.into()).as_deref(), Ok(text));
        }
        for bad in [serde_json::json!(1), "".into(), " \n".into(), "a\0".into(), "x".repeat(200_001).into()] {
            assert!(content(bad).is_err());
        }
        assert!(content("x".repeat(200_000).into()).is_ok());
        assert!(content("😀".repeat(70_000).into()).is_err(), "more bytes than can be rendered");
    }

    #[test]
    fn unknown_words_have_their_numbers() {
        let code = |error: Error| match error {
            Error::Coded { status, code, field, .. } => (status, code, field.unwrap_or_default()),
            other => panic!("{other}"),
        };
        assert_eq!(code(language("perl").unwrap_err()), (500, 30002, "language".to_owned()));
        assert_eq!(code(engine("mustache").unwrap_err()), (500, 30003, "template_engine".to_owned()));
        assert_eq!(language("bash").ok(), Some(Language::Bash));
    }
}
