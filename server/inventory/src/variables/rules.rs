//! Which variables there may be, and which of several of one name counts. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

/// Variables of one object.
pub(crate) const VARIABLES_MAX: usize = 200;
/// Bytes of one value, as JSON.
pub(crate) const VALUE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of all values of one object, as JSON.
pub(crate) const TOTAL_BYTES_MAX: usize = 64 * 1024;
const NAME_CHARACTERS_MAX: usize = 64;

/// Values by name.
pub(crate) type Variables = BTreeMap<String, Value>;

/// Whether templates and shells can both name it.
pub(crate) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= NAME_CHARACTERS_MAX
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Checks what an object's variables shall be.
///
/// # Errors
/// Which member, and what is wrong with it.
pub(crate) fn check(variables: &Variables) -> Result<(), (String, String)> {
    let wrong = |name: &str, why: String| Err((format!("variables.{name}"), why));
    let mut total = 0;
    for (name, value) in variables {
        if !is_name(name) {
            let shown: String = name.chars().take(NAME_CHARACTERS_MAX).collect();
            let why = "a name is a letter or _, then letters, digits and _, 64 at most".to_owned();
            return wrong(&shown, why);
        }
        match value {
            Value::String(text) if text.contains('\0') => {
                return wrong(name, "must not contain the character NUL".to_owned());
            }
            Value::String(_) | Value::Number(_) | Value::Bool(_) => {}
            Value::Null | Value::Array(_) | Value::Object(_) => {
                return wrong(name, "must be text, a number, true or false".to_owned());
            }
        }
        let bytes = value.to_string().len();
        if bytes > VALUE_BYTES_MAX {
            return wrong(name, format!("must have at most {VALUE_BYTES_MAX} bytes"));
        }
        total += bytes;
    }
    if variables.len() > VARIABLES_MAX {
        return Err(("variables".to_owned(), format!("there may be at most {VARIABLES_MAX}")));
    }
    if total > TOTAL_BYTES_MAX {
        return Err(("variables".to_owned(), format!("must have at most {TOTAL_BYTES_MAX} bytes together")));
    }
    Ok(())
}

/// What one target sees, from the widest set to the narrowest: of one name the narrowest counts.
pub(crate) fn merged<'a>(sets: impl IntoIterator<Item = Option<&'a Variables>>) -> Variables {
    let mut merged = Variables::new();
    for set in sets.into_iter().flatten() {
        merged.extend(set.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    merged
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn variables(value: Value) -> Variables {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn names_kinds_and_sizes_are_checked() {
        assert_eq!(check(&variables(json!({"a": "", "_B9": 1.5, "debug": false}))), Ok(()));
        for (value, field) in [
            (json!({"": 1}), "variables."),
            (json!({"9a": 1}), "variables.9a"),
            (json!({"a-b": 1}), "variables.a-b"),
            (json!({"ä": 1}), "variables.ä"),
            (json!({"x".repeat(65): 1}), &*format!("variables.{}", "x".repeat(64))),
            (json!({"a": null}), "variables.a"),
            (json!({"a": [1]}), "variables.a"),
            (json!({"a": "\u{0}"}), "variables.a"),
            (json!({"a": "x".repeat(VALUE_BYTES_MAX)}), "variables.a"),
        ] {
            assert_eq!(check(&variables(value)).unwrap_err().0, field);
        }
        let many: Variables = (0..=VARIABLES_MAX).map(|number| (format!("v{number}"), json!(1))).collect();
        assert_eq!(check(&many).unwrap_err().0, "variables");
        let large: Variables = (0..9).map(|number| (format!("v{number}"), json!("x".repeat(8000)))).collect();
        assert_eq!(check(&large).unwrap_err().0, "variables");
    }

    #[test]
    fn the_narrowest_counts() {
        let (wide, narrow) = (variables(json!({"a": 1, "b": 1})), variables(json!({"b": 2, "c": 2})));
        assert_eq!(merged([Some(&wide), None, Some(&narrow)]), variables(json!({"a": 1, "b": 2, "c": 2})));
    }
}
