//! Members of bodies and queries that are read generously and checked strictly.
//!
//! Numbers may come as text, one object may stand for an array of one, texts are trimmed. Whatever is too long, too
//! many or of the wrong kind is refused with a reason; the extractor adds the member's name.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use drover_shared::words::Word;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use zeroize::Zeroizing;

/// Elements that an array in a request may have.
pub const ELEMENTS_MAX: usize = 10_000;

/// A number, sent as a number or as digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Number(pub i64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || de::Error::custom("must be a whole number");
        match Value::deserialize(deserializer)? {
            Value::Number(number) => number.as_i64().map(Self).ok_or_else(wrong),
            Value::String(text) => text.trim().parse().map(Self).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

/// An id, sent as a number or as digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub i64);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // In two steps, so that a missing member is still told from a wrong one.
        let value = Value::deserialize(deserializer)?;
        Number::deserialize(value)
            .map(|number| Self(number.0))
            .map_err(|_| de::Error::custom("must be an id, a number"))
    }
}

/// A switch, sent as true, false, 0, 1 or such a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let word = match &value {
            Value::Bool(flag) => return Ok(Self(*flag)),
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.trim().to_ascii_lowercase(),
            _ => String::new(),
        };
        match word.as_str() {
            "1" | "true" => Ok(Self(true)),
            "0" | "false" => Ok(Self(false)),
            _ => Err(de::Error::custom("must be true or false")),
        }
    }
}

/// A text of at most `MAX` characters, trimmed; a number counts as its digits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Text<const MAX: usize>(pub String);

/// A name: one line of at most 200 characters.
pub type Name = Text<200>;
/// A line or path.
pub type Line = Text<2000>;
/// Free text.
pub type Prose = Text<20_000>;

impl<const MAX: usize> Text<MAX> {
    /// The text, if there is any.
    #[must_use]
    pub fn non_empty(self) -> Option<String> {
        (!self.0.is_empty()).then_some(self.0)
    }

    /// The text, or an error that names the member when it is empty.
    ///
    /// # Errors
    /// When it is empty.
    pub fn required(self, field: &str) -> crate::Result<String> {
        self.non_empty().ok_or_else(|| crate::Error::invalid(field, "must not be empty"))
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            _ => return Err(de::Error::custom("must be text")),
        };
        if text.chars().count() > MAX {
            return Err(de::Error::custom(format!("must have at most {MAX} characters")));
        }
        // PostgreSQL stores no NUL in a text.
        if text.contains('\0') {
            return Err(de::Error::custom("must not contain the character NUL"));
        }
        Ok(Self(text))
    }
}

/// What stands in an answer where a secret would.
pub const MASK: &str = "******";

/// A secret of at most `MAX` bytes in a body. It is taken as it is, blanks and line ends included; [`MASK`], which
/// answers show instead of it, means that the present one stays.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret<const MAX: usize> {
    /// The present value stays, if there is one.
    Keep,
    /// The new value; empty means that there is to be none.
    Set(Zeroizing<String>),
}

impl<const MAX: usize> fmt::Debug for Secret<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Secret<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Value::String(text) = Value::deserialize(deserializer)? else {
            return Err(de::Error::custom("must be text"));
        };
        let text = Zeroizing::new(text);
        match text.len() {
            _ if *text == MASK => Ok(Self::Keep),
            length if length > MAX => Err(de::Error::custom(format!("must have at most {MAX} bytes"))),
            _ => Ok(Self::Set(text)),
        }
    }
}

/// A secret in an answer: [`MASK`] when there is one, otherwise nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masked(pub bool);

impl Serialize for Masked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0 { MASK } else { "" })
    }
}

/// An array, or one element that stands for an array of one. At most [`ELEMENTS_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Many<T>(pub Vec<T>);

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

struct ManyVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ManyVisitor<T> {
    type Value = Many<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Many<T>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element()? {
            if elements.len() == ELEMENTS_MAX {
                return Err(de::Error::custom(format!("must have at most {ELEMENTS_MAX} elements")));
            }
            elements.push(element);
        }
        Ok(Many(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Many<T>, A::Error> {
        T::deserialize(de::value::MapAccessDeserializer::new(map)).map(|element| Many(vec![element]))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Many<T>, E> {
        T::deserialize(de::value::I64Deserializer::new(number)).map(|element| Many(vec![element]))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Many<T>, E> {
        T::deserialize(de::value::U64Deserializer::new(number)).map(|element| Many(vec![element]))
    }

    /// A text may list several, separated by commas, as queries do.
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Many<T>, E> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let elements: Result<Vec<T>, E> =
            parts.map(|part| T::deserialize(de::value::StrDeserializer::new(part))).collect();
        elements.map(Many)
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Many<T>, E> {
        self.visit_str(&text)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ManyVisitor(PhantomData))
    }
}

/// `{"id": 1}`, or the bare id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The id.
    pub id: Id,
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Object {
            id: Id,
        }
        match Value::deserialize(deserializer)? {
            object @ Value::Object(_) => {
                Object::deserialize(object).map(|object| Self { id: object.id }).map_err(de::Error::custom)
            }
            bare => Id::deserialize(bare).map(|id| Self { id }).map_err(de::Error::custom),
        }
    }
}

/// A member of a change: left out, set to nothing, or set. Needs `#[serde(default)]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Patch<T> {
    /// Left out: stays as it is.
    #[default]
    Absent,
    /// Sent as null.
    Null,
    /// Sent with a value.
    Value(T),
}

impl<T> Patch<T> {
    /// The value if one was sent.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// The same with the value, if one was sent, made into another.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Patch<U> {
        match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Value(value) => Patch::Value(make(value)),
        }
    }

    /// What the member is after the change: `present` unless something was sent.
    pub fn or(self, present: Option<T>) -> Option<T> {
        match self {
            Self::Absent => present,
            Self::Null => None,
            Self::Value(value) => Some(value),
        }
    }

    /// Whether anything was sent.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<T>::deserialize(deserializer).map(|value| value.map_or(Self::Null, Self::Value))
    }
}

macro_rules! schema {
    ($type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

schema!(Number, "Number", {"type": "integer"});
schema!(Id, "Id", {"type": "integer"});
schema!(Flag, "Flag", {"type": "boolean"});
schema!(Masked, "Masked", {"type": "string", "enum": ["", MASK]});

impl<const MAX: usize> JsonSchema for Secret<MAX> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Secret{MAX}").into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "writeOnly": true, "maxLength": MAX})
    }
}

impl<const MAX: usize> JsonSchema for Text<MAX> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Text{MAX}").into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": MAX})
    }
}

impl<T: JsonSchema> JsonSchema for Many<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Many{}", T::schema_name()).into()
    }
    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "array", "maxItems": ELEMENTS_MAX, "items": schemas.subschema_for::<T>()})
    }
}

impl JsonSchema for Reference {
    fn schema_name() -> Cow<'static, str> {
        "Reference".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]})
    }
}

impl<T: JsonSchema> JsonSchema for Patch<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        <Option<T>>::json_schema(schemas)
    }
    fn _schemars_private_is_option() -> bool {
        true
    }
}

/// Declares an enumeration that is stored and sent as text, and described in the API.
#[macro_export]
macro_rules! api_words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($body:tt)* }) => {
        ::drover_shared::words! { $(#[$meta])* $vis enum $name { $($body)* } }
        $crate::word_column!($name);
        $crate::word_schema!($name);
    };
}

/// Stands for a word in the description of the API, where the word itself knows nothing of that:
/// `#[schemars(with = "Words<Action>")]`.
pub struct Words<W>(PhantomData<W>);

impl<W: Word> JsonSchema for Words<W> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Words".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<&str> = W::ALL.iter().map(Word::as_str).collect();
        json_schema!({"type": "string", "enum": words})
    }
}

/// Describes an enumeration of words in the API.
#[macro_export]
macro_rules! word_schema {
    ($name:ident) => {
        impl ::schemars::JsonSchema for $name {
            // In place: several enumerations bear one name, such as `Status`.
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                let words: Vec<&str> =
                    <Self as ::drover_shared::words::Word>::ALL.iter().map(::drover_shared::words::Word::as_str).collect();
                ::schemars::json_schema!({"type": "string", "enum": words})
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_taken_as_it_is_and_the_mask_keeps_the_present_one() {
        let read = |json: &str| serde_json::from_str::<Secret<8>>(json);
        assert_eq!(read(r#"" p w\n""#).unwrap(), Secret::Set(Zeroizing::new(" p w\n".to_owned())));
        assert_eq!(read(r#""******""#).unwrap(), Secret::Keep);
        assert_eq!(format!("{:?}", read(r#""hidden""#).unwrap()), MASK);
        for wrong in [r#""123456789""#, "5", "null"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(serde_json::to_string(&[Masked(true), Masked(false)]).unwrap(), r#"["******",""]"#);
    }
}
