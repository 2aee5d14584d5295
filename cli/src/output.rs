//! Standard output: text for people or JSON for programs, never both.
//!
//! Invariant: a reader that goes away is a failure like any other, not a panic.

use std::io::{self, Write as _};

use serde_json::Value;

use crate::failure::Result;

/// Writes a line.
pub(crate) fn line(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Writes text as it is, at once.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes an object on a line of its own.
pub(crate) fn json(value: &Value) -> Result<()> {
    line(&value.to_string())
}

/// A column: its heading, and where its value is in an object.
pub(crate) type Column = (&'static str, fn(&Value) -> String);

/// Writes a table, columns as wide as they need to be.
pub(crate) fn table(columns: &[Column], rows: &[Value]) -> Result<()> {
    let mut lines = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|(_, cell)| cell(row)).collect()));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for cells in &lines {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        line(padded.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A member as people read it: nothing for null, one line at most.
pub(crate) fn cell(object: &Value, name: &str) -> String {
    match &object[name] {
        Value::Null => String::new(),
        Value::String(text) => text.lines().next().unwrap_or_default().to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_short() {
        let object = json!({ "a": "one\ntwo", "b": 3, "c": null });
        assert_eq!(["a", "b", "c", "d"].map(|name| cell(&object, name)), ["one", "3", "", ""]);
    }
}
