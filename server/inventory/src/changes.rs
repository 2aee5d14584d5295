//! What a change did, in words: the values before and after, for the audit.
//!
//! Invariant: values are cut to a bounded length, and members that follow from others are left out by the caller.

use serde::Serialize;
use serde_json::Value;

/// Characters of one value that the audit keeps.
const VALUE_CHARACTERS_MAX: usize = 500;

/// Members of two records that differ, as `name: "a" → "b"`, separated by semicolons; empty when none does.
#[must_use]
pub fn between(before: &impl Serialize, after: &impl Serialize, leave_out: &[&str]) -> String {
    let (before, after) = (members(before), members(after));
    let names = after.keys().chain(before.keys().filter(|name| !after.contains_key(*name)));
    let parts = names.filter(|name| !leave_out.contains(&name.as_str())).filter_map(|name| {
        let (old, new) = (before.get(name).unwrap_or(&Value::Null), after.get(name).unwrap_or(&Value::Null));
        (old != new).then(|| format!("{name}: {} → {}", shown(old), shown(new)))
    });
    parts.collect::<Vec<_>>().join("; ")
}

/// The members of a record that hold something, as `name: "a"`, separated by semicolons.
#[must_use]
pub fn of(record: &impl Serialize, leave_out: &[&str]) -> String {
    let held = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    let members = members(record);
    let parts = members
        .iter()
        .filter(|(name, value)| !leave_out.contains(&name.as_str()) && held(value))
        .map(|(name, value)| format!("{name}: {}", shown(value)));
    parts.collect::<Vec<_>>().join("; ")
}

fn members(record: &impl Serialize) -> serde_json::Map<String, Value> {
    match serde_json::to_value(record) {
        Ok(Value::Object(members)) => members,
        _ => serde_json::Map::new(),
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_CHARACTERS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let before = json!({"name": "a", "cpu": 1, "gone": true, "follows": 1});
        let after = json!({"name": "b", "cpu": 1, "follows": 2});
        assert_eq!(between(&before, &after, &["follows"]), r#"name: "a" → "b"; gone: true → null"#);
        assert_eq!(between(&before, &before, &[]), "");
        assert_eq!(of(&json!({"name": "a", "text": "", "ids": [], "cpu": 0}), &[]), r#"cpu: 0; name: "a""#);
    }

    #[test]
    fn long_values_are_cut() {
        let text = between(&json!({"a": ""}), &json!({"a": "é".repeat(2000)}), &[]);
        assert!(text.chars().count() < 600, "{text}");
    }
}
