//! The closed set of values that go into a statement.

use drover_shared::words::Word;
use serde_json::Value as JsonValue;

use crate::clock::Time;

/// One argument of a statement. Nulls are typed, because PostgreSQL asks for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// BIGINT.
    Integer(Option<i64>),
    /// TEXT.
    Text(Option<String>),
    /// BOOLEAN.
    Boolean(Option<bool>),
    /// BYTEA or BLOB.
    Bytes(Option<Vec<u8>>),
    /// JSONB or TEXT.
    Json(Option<JsonValue>),
    /// Stands for as many placeholders as it has elements: `IN ($1)`.
    Integers(Vec<i64>),
    /// Stands for as many placeholders as it has elements: `IN ($1)`.
    Texts(Vec<String>),
}

macro_rules! into_value {
    ($($type:ty => $variant:ident, $convert:expr;)+) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self { Self::$variant(Some($convert(value))) }
        }
        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self { Self::$variant(value.map($convert)) }
        }
    )+};
}

into_value! {
    i64 => Integer, |value| value;
    i32 => Integer, i64::from;
    u32 => Integer, i64::from;
    u16 => Integer, i64::from;
    bool => Boolean, |value| value;
    String => Text, |value| value;
    &str => Text, str::to_owned;
    Vec<u8> => Bytes, |value| value;
    JsonValue => Json, |value| value;
    Time => Integer, Time::millis;
    drover_shared::Digest => Text, |value: drover_shared::Digest| value.to_string();
}

/// Enumerations that are columns: a trait of this crate, so that other crates' words may be absent as well.
pub trait WordColumn: Word {}

impl<W: WordColumn> From<Option<W>> for Value {
    fn from(word: Option<W>) -> Self {
        word.map(|word| word.as_str()).into()
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.clone()))
    }
}

impl From<Vec<i64>> for Value {
    fn from(values: Vec<i64>) -> Self {
        Self::Integers(values)
    }
}

impl From<Vec<String>> for Value {
    fn from(values: Vec<String>) -> Self {
        Self::Texts(values)
    }
}

/// Puts arguments together: `args![id, name]`.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { ::std::vec![$($crate::db::Value::from($value)),*] };
}
