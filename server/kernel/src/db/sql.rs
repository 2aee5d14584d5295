//! Statement texts: literals, and the two ways in which one is put together from several.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{DbError, PARAMETERS_MAX, Value};

/// A statement. Made by [`sql!`](crate::sql!), which is how `cargo xtask sql` finds every text there is.
#[derive(Debug, Clone)]
pub struct Sql(Cow<'static, str>);

impl Sql {
    /// Wraps a literal; call [`sql!`](crate::sql!) instead.
    #[doc(hidden)]
    #[must_use]
    pub const fn literal(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }

    pub(super) fn assembled(text: String) -> Self {
        Self(Cow::Owned(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This statement with ` AND `-joined conditions put in place of its one `/* filters */`, arguments appended.
    #[must_use]
    pub fn filtered(&self, conditions: &[Condition], arguments: &mut Vec<Value>) -> Self {
        let mut text = String::new();
        for condition in conditions {
            text.push_str(" AND (");
            // Placeholders of a condition count from $1; here they go behind the statement's own.
            text.push_str(&renumber(condition.sql.as_str(), arguments.len()));
            text.push(')');
            arguments.extend(condition.arguments.iter().cloned());
        }
        Self(Cow::Owned(self.0.replacen("/* filters */", &text, 1)))
    }

    /// This statement limited to one page.
    #[must_use]
    pub(crate) fn paged(&self, limit: i64, offset: i64) -> Self {
        Self(Cow::Owned(format!("{} LIMIT {limit} OFFSET {offset}", self.0)))
    }
}

/// One condition of a list, with arguments counted from `$1`.
#[derive(Debug, Clone)]
pub struct Condition {
    /// A boolean expression.
    pub sql: Sql,
    /// Its arguments.
    pub arguments: Vec<Value>,
}

impl Condition {
    /// A condition that holds.
    #[must_use]
    pub fn new(sql: Sql, arguments: Vec<Value>) -> Self {
        Self { sql, arguments }
    }

    /// This condition about the table that has `alias` in the statement, which is put in place of each `/* row */`.
    #[must_use]
    pub fn about(mut self, alias: &'static str) -> Self {
        self.sql = Sql(Cow::Owned(self.sql.as_str().replace("/* row */", alias)));
        self
    }

    /// This condition or another.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        let second = renumber(other.sql.as_str(), self.arguments.len());
        self.sql = Sql(Cow::Owned(format!("({}) OR ({second})", self.sql.as_str())));
        self.arguments.extend(other.arguments);
        self
    }

    /// A condition that has this one in place of its `/* condition */`; it has no arguments of its own.
    #[must_use]
    pub fn within(mut self, outer: &Self) -> Self {
        self.sql = Sql(Cow::Owned(outer.sql.as_str().replace("/* condition */", self.sql.as_str())));
        self
    }

    /// A part of a text, ignoring case: the argument for `lower(x) LIKE $1 ESCAPE '\'`.
    #[must_use]
    pub fn pattern(part: &str) -> Value {
        let mut pattern = String::from("%");
        for character in part.to_lowercase().chars() {
            if matches!(character, '%' | '_' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern.push('%');
        pattern.into()
    }
}

/// Marks a literal as a statement: `sql!("SELECT …")`.
#[macro_export]
macro_rules! sql {
    ($text:literal) => {
        $crate::db::Sql::literal($text)
    };
}

/// A condition of a list: `when!("h.id = $1", id)`.
#[macro_export]
macro_rules! when {
    ($text:literal $(, $argument:expr)* $(,)?) => {
        $crate::db::Condition::new($crate::db::Sql::literal($text), $crate::args![$($argument),*])
    };
}

/// Adds `by` to the number of every placeholder.
fn renumber(text: &str, by: usize) -> String {
    rewrite(text, |number, out| {
        let _ = write!(out, "${}", number + by);
    })
}

/// Copies `text`, handing the number of every `$n` to `placeholder`.
fn rewrite(text: &str, mut placeholder: impl FnMut(usize, &mut String)) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        match rest[at + 1..at + 1 + digits].parse() {
            Ok(number) => placeholder(number, &mut out),
            Err(_) => out.push('$'),
        }
        rest = &rest[at + 1 + digits..];
    }
    out.push_str(rest);
    out
}

/// Gives every element of a list argument a placeholder of its own: `IN ($1)` becomes `IN ($1, $2)`.
pub(super) fn expand(sql: Sql, arguments: Vec<Value>) -> Result<(String, Vec<Value>), DbError> {
    if !arguments.iter().any(|value| matches!(value, Value::Integers(_) | Value::Texts(_))) {
        return Ok((sql.0.into_owned(), arguments));
    }
    let mut flat = Vec::with_capacity(arguments.len() + 16);
    // For each argument, where its first element went and how many there are.
    let mut places = Vec::with_capacity(arguments.len());
    for value in arguments {
        let start = flat.len() + 1;
        match value {
            // An empty list still needs something that no row equals.
            Value::Integers(values) if values.is_empty() => flat.push(Value::Integer(None)),
            Value::Texts(values) if values.is_empty() => flat.push(Value::Text(None)),
            Value::Integers(values) => flat.extend(values.into_iter().map(Value::from)),
            Value::Texts(values) => flat.extend(values.into_iter().map(Value::from)),
            single => flat.push(single),
        }
        places.push((start, flat.len() + 1 - start));
    }
    if flat.len() > PARAMETERS_MAX {
        return Err(DbError::inconsistent("*", format!("more than {PARAMETERS_MAX} arguments for one statement")));
    }
    let text = rewrite(sql.as_str(), |number, out| {
        let (start, count) = places.get(number.wrapping_sub(1)).copied().unwrap_or((number, 1));
        for index in 0..count {
            let _ = write!(out, "{}${}", if index == 0 { "" } else { ", " }, start + index);
        }
    });
    Ok((text, flat))
}

/// Repeats the last parenthesis of an insert, the `VALUES` of one row, for `count` rows.
pub(super) fn repeat_values(text: &str, width: usize, count: usize) -> String {
    let at = text.to_ascii_uppercase().rfind("VALUES").map_or(text.len(), |at| at + "VALUES".len());
    let (head, values) = text.split_at(at);
    let mut out = head.to_owned();
    for row in 0..count {
        out.push_str(if row == 0 { " " } else { ", " });
        out.push_str(&renumber(values.trim(), row * width));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_as_many_placeholders() {
        let (text, arguments) =
            expand(sql!("a = $1 AND b IN ($2) AND c = $3 AND d IN ($2)"), crate::args![1_i64, vec![7_i64, 8], "x"])
                .unwrap();
        assert_eq!(text, "a = $1 AND b IN ($2, $3) AND c = $4 AND d IN ($2, $3)");
        assert_eq!(arguments, crate::args![1_i64, 7_i64, 8_i64, "x"]);
        assert_eq!(expand(sql!("b IN ($1)"), crate::args![Vec::<i64>::new()]).unwrap().0, "b IN ($1)");
    }

    #[test]
    fn rows_and_filters_are_renumbered() {
        assert_eq!(
            repeat_values("INSERT INTO t (a, b) VALUES ($1, $2)", 2, 2),
            "INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4)"
        );
        let mut arguments = crate::args![1_i64];
        let conditions = [Condition::new(sql!("x = $1 OR y = $1"), crate::args!["z"])];
        let text = sql!("SELECT 1 FROM t WHERE o = $1/* filters */ ORDER BY id").filtered(&conditions, &mut arguments);
        assert_eq!(text.as_str(), "SELECT 1 FROM t WHERE o = $1 AND (x = $2 OR y = $2) ORDER BY id");
        assert_eq!(arguments.len(), 2);
    }
}
