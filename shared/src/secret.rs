//! Secrets of an execution: values that travel beside an order, never inside it.
//!
//! An entry names the secrets that it needs, and a script of it may hold a placeholder, `@@drover-secret:NAME@@`, where a
//! value belongs: both are digested, approved and stored. The values come with the order over the link, stay in memory,
//! and reach a hook as environment variable `DROVER_SECRET_NAME` and in place of the placeholder, as they are: a
//! script that quotes the placeholder has to quote for the value, too. Invariant: no value is in a text that is signed,
//! stored or shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Secrets of one execution.
pub const SECRETS_MAX: usize = 100;
/// Length of one value, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Length of all values of one execution, in bytes.
pub const VALUES_BYTES_MAX: usize = 64 * 1024;
/// Shorter values, in bytes, are not masked in output: they occur by chance, and masking them would tell their place.
pub const MASKED_BYTES_MIN: usize = 4;
/// What stands in output in place of a value.
pub const MASK: &str = "******";
/// Word in the features of [`Hello`](crate::message::Hello) of an agent that knows secrets. To one that does not, an
/// order that needs them must not be sent.
pub const FEATURE: &str = "secrets";

const OPENING: &str = "@@drover-secret:";
const CLOSING: &str = "@@";
/// What every variable that holds a secret begins with.
const VARIABLE: &str = "DROVER_SECRET_";
const NAME_BYTES_MAX: usize = 64;

/// Values by name. Prints names only; the values are overwritten when they are dropped.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Whether this may be the name of a secret: an upper-case letter, then upper-case letters, digits and `_`, at most 64.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Name of the variable that holds a secret in a hook's environment.
#[must_use]
pub fn variable(name: &str) -> String {
    format!("{VARIABLE}{name}")
}

/// What stands in a script for the value of a secret.
#[must_use]
pub fn placeholder(name: &str) -> String {
    format!("{OPENING}{name}{CLOSING}")
}

/// A piece of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// As it is.
    Text(&'a str),
    /// Name of a secret whose value belongs here.
    Secret(&'a str),
}

/// Takes a script apart at its placeholders. What only looks like one is text.
pub fn pieces(script: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = script;
    let mut next = None;
    std::iter::from_fn(move || {
        if let Some(name) = next.take() {
            return Some(Piece::Secret(name));
        }
        if rest.is_empty() {
            return None;
        }
        let found = rest.match_indices(OPENING).find_map(|(at, _)| {
            let inner = &rest[at + OPENING.len()..];
            let name = &inner[..inner.find(CLOSING)?];
            is_name(name).then(|| (at, name, &inner[name.len() + CLOSING.len()..]))
        });
        let Some((at, name, after)) = found else {
            return Some(Piece::Text(std::mem::take(&mut rest)));
        };
        let text = &rest[..at];
        rest = after;
        if text.is_empty() {
            return Some(Piece::Secret(name));
        }
        next = Some(name);
        Some(Piece::Text(text))
    })
}

/// Names of the secrets that a script asks for.
pub fn names(script: &str) -> impl Iterator<Item = &str> {
    pieces(script).filter_map(|piece| match piece {
        Piece::Secret(name) => Some(name),
        Piece::Text(_) => None,
    })
}

/// Names of the secrets that a script asks for, by their placeholders or by their variables.
pub fn asked(script: &str) -> BTreeSet<String> {
    names(script).map(str::to_owned).chain(variables(script)).collect()
}

/// Names of the secrets whose variables a script mentions.
fn variables(script: &str) -> impl Iterator<Item = String> {
    script.match_indices(VARIABLE).filter_map(|(at, _)| {
        let inside = script[..at].ends_with(|before: char| before.is_ascii_alphanumeric() || before == '_');
        let rest = &script[at + VARIABLE.len()..];
        let is_part = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        let end = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        (!inside && is_name(&rest[..end])).then(|| rest[..end].to_owned())
    })
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

impl Secrets {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks them against the names that an entry needs.
    ///
    /// # Errors
    /// A sentence that names the secret and what is wrong with it.
    pub fn check(&self, needed: &[String]) -> Result<(), String> {
        if needed.len() > SECRETS_MAX {
            return Err(format!("secrets: {} are named, {SECRETS_MAX} are allowed", needed.len()));
        }
        if let Some(name) = needed.iter().find(|name| !is_name(name)) {
            return Err(format!("secrets: `{name}` is not allowed as a name"));
        }
        if let Some(name) = needed.iter().find(|name| !self.0.contains_key(*name)) {
            return Err(format!("secrets: the value of `{name}` did not come with the order"));
        }
        for (name, value) in &self.0 {
            if !needed.contains(name) {
                return Err(format!("secrets: `{name}` is not named in the order"));
            }
            if value.len() > VALUE_BYTES_MAX || value.contains('\0') {
                return Err(format!("secrets: `{name}` is longer than {VALUE_BYTES_MAX} bytes or contains a NUL"));
            }
        }
        if self.0.values().map(String::len).sum::<usize>() > VALUES_BYTES_MAX {
            return Err(format!("secrets: all values together are longer than {VALUES_BYTES_MAX} bytes"));
        }
        Ok(())
    }

    /// The script with the values in place of the placeholders; names that have no value stay as they are.
    #[must_use]
    pub fn fill(&self, script: &str) -> String {
        let mut filled = String::with_capacity(script.len());
        for piece in pieces(script) {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Secret(name) => match self.0.get(name) {
                    Some(value) => filled.push_str(value),
                    None => filled.push_str(&placeholder(name)),
                },
            }
        }
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_found_and_filled() {
        let secrets = Secrets(BTreeMap::from([("TOKEN".to_owned(), "@@drover-secret:OTHER@@".to_owned())]));
        let script = "a @@drover-secret:TOKEN@@@@drover-secret:NONE@@ @@drover-secret:bad name@@ @@drover-secret:X";
        assert_eq!(names(script).collect::<Vec<_>>(), ["TOKEN", "NONE"]);
        assert_eq!(
            secrets.fill(script),
            "a @@drover-secret:OTHER@@@@drover-secret:NONE@@ @@drover-secret:bad name@@ @@drover-secret:X"
        );
        let looks = "@@drover-secret:@@drover-secret:TOKEN@@";
        assert_eq!(pieces(looks).collect::<Vec<_>>(), [Piece::Text("@@drover-secret:"), Piece::Secret("TOKEN")]);
        assert_eq!(format!("{secrets:?}"), "{\"TOKEN\"}");
        let both = "@@drover-secret:TOKEN@@ ${DROVER_SECRET_KEY_2:?} $DROVER_SECRET_TOKEN $MY_DROVER_SECRET_X $DROVER_SECRET_x";
        assert_eq!(asked(both).into_iter().collect::<Vec<_>>(), ["KEY_2", "TOKEN"]);
    }

    #[test]
    fn what_does_not_agree_is_named() {
        let secrets = |name: &str, value: &str| Secrets(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        let needed = ["TOKEN".to_owned()];
        assert_eq!(secrets("TOKEN", "x").check(&needed), Ok(()));
        for (secrets, needed, expected) in [
            (Secrets::default(), &needed[..], "secrets: the value of `TOKEN` did not come with the order"),
            (secrets("TOKEN", "x"), &[], "secrets: `TOKEN` is not named in the order"),
            (secrets("TOKEN", "a\0b"), &needed, "secrets: `TOKEN` is longer than 16384 bytes or contains a NUL"),
            (secrets("TOKEN", "x"), &["to ken".to_owned()], "secrets: `to ken` is not allowed as a name"),
        ] {
            assert_eq!(secrets.check(needed), Err(expected.to_owned()));
        }
    }
}
