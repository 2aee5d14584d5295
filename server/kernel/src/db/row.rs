//! Rows of either engine, decoded once for both.

use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

use super::DbError;
use crate::clock::Time;

/// A row of either engine.
pub struct Row(pub(super) RowOf);

pub(super) enum RowOf {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What one column can be decoded to.
pub trait Column: Sized {
    /// Decodes the column of this name.
    ///
    /// # Errors
    /// [`DbError`] when there is no such column or it holds something else.
    fn decode(row: &Row, name: &str) -> Result<Self, DbError>;
}

/// What a whole row can be decoded to; derived by [`row!`](crate::row!).
pub trait FromRow: Sized {
    /// Decodes the row.
    ///
    /// # Errors
    /// [`DbError`] when a column is missing or holds something else.
    fn from_row(row: &Row) -> Result<Self, DbError>;
}

impl Row {
    /// The value of a column.
    ///
    /// # Errors
    /// [`DbError`] when there is no such column or it holds something else.
    pub fn get<C: Column>(&self, name: &str) -> Result<C, DbError> {
        C::decode(self, name)
    }

    fn is_null(&self, name: &str) -> Result<bool, DbError> {
        use sqlx::ValueRef as _;
        Ok(match &self.0 {
            RowOf::Sqlite(row) => row.try_get_raw(name)?.is_null(),
            RowOf::Postgres(row) => row.try_get_raw(name)?.is_null(),
        })
    }
}

macro_rules! native_column {
    ($($type:ty),+) => {$(
        impl Column for $type {
            fn decode(row: &Row, name: &str) -> Result<Self, DbError> {
                Ok(match &row.0 {
                    // SQLite's declared types do not bind, and an expression has none.
                    RowOf::Sqlite(row) => row.try_get_unchecked(name)?,
                    RowOf::Postgres(row) => row.try_get(name)?,
                })
            }
        }
        impl FromRow for ($type,) {
            fn from_row(row: &Row) -> Result<Self, DbError> {
                Ok((match &row.0 {
                    RowOf::Sqlite(row) => row.try_get_unchecked(0)?,
                    RowOf::Postgres(row) => row.try_get(0)?,
                },))
            }
        }
    )+};
}

native_column!(i64, bool, String, Vec<u8>, Option<i64>, Option<String>);

/// An optional column of a type that is not the driver's own.
impl<C: Column + OptionalColumn> Column for Option<C> {
    fn decode(row: &Row, name: &str) -> Result<Self, DbError> {
        if row.is_null(name)? { Ok(None) } else { C::decode(row, name).map(Some) }
    }
}

/// Types whose `Option` is decoded by looking for NULL first.
pub trait OptionalColumn {}

impl OptionalColumn for bool {}
impl OptionalColumn for Vec<u8> {}
impl OptionalColumn for Time {}
impl OptionalColumn for drover_shared::Digest {}
impl<T> OptionalColumn for Json<T> {}

impl Column for Time {
    fn decode(row: &Row, name: &str) -> Result<Self, DbError> {
        i64::decode(row, name).map(Self::from_millis)
    }
}

impl Column for drover_shared::Digest {
    fn decode(row: &Row, name: &str) -> Result<Self, DbError> {
        String::decode(row, name)?.parse().map_err(|reason| DbError::inconsistent(name, reason))
    }
}

/// A JSON column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> Column for Json<T> {
    fn decode(row: &Row, name: &str) -> Result<Self, DbError> {
        let value = match &row.0 {
            RowOf::Sqlite(row) => {
                let text: String = row.try_get_unchecked(name)?;
                serde_json::from_str(&text)
            }
            RowOf::Postgres(row) => {
                let value: serde_json::Value = row.try_get(name)?;
                serde_json::from_value(value)
            }
        };
        value.map(Json).map_err(|error| DbError::inconsistent(name, error))
    }
}

/// Makes a [`words!`](drover_shared::words!) enumeration a column and an argument.
#[macro_export]
macro_rules! word_column {
    ($($type:ty),+ $(,)?) => {$(
        impl $crate::db::Column for $type {
            fn decode(row: &$crate::db::Row, name: &str) -> ::std::result::Result<Self, $crate::db::DbError> {
                let text: ::std::string::String = row.get(name)?;
                <Self as ::drover_shared::words::Word>::parse(&text)
                    .map_err(|error| $crate::db::DbError::inconsistent(name, error))
            }
        }
        impl $crate::db::OptionalColumn for $type {}
        impl ::std::convert::From<$type> for $crate::db::Value {
            fn from(word: $type) -> Self { ::drover_shared::words::Word::as_str(&word).into() }
        }
        impl $crate::db::WordColumn for $type {}
    )+};
}

word_column!(
    drover_shared::words::ExecutionState,
    drover_shared::words::StepState,
    drover_shared::words::Language,
    drover_shared::words::Action,
    drover_shared::instance::ProcessState,
);

/// Declares a struct that a row decodes to, one column for each field.
#[macro_export]
macro_rules! row {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type),+ }

        impl $crate::db::FromRow for $name {
            fn from_row(row: &$crate::db::Row) -> ::std::result::Result<Self, $crate::db::DbError> {
                Ok(Self { $($field: row.get(stringify!($field))?),+ })
            }
        }
    };
}
