//! What applications may be called, and where they may stand in the tree.
//!
//! Names are joined by dots, so none may hold one. Invariant: the full name of an application is its parent's, a dot
//! and its own; no application stands below itself.

use drover_kernel::{Error, Result, api_words};

api_words! {
    /// Capacity in which a person is responsible for an application.
    pub enum Capacity {
        /// Development.
        Dev = "dev",
        /// Operations.
        Ops = "ops",
        /// Quality assurance.
        Qa = "qa",
        /// Product management.
        Pm = "pm",
    }
}

/// Levels that the tree may have.
pub const DEPTH_MAX: usize = 32;
/// Characters that a full name may have.
pub const FULL_NAME_CHARACTERS_MAX: usize = 2000;

/// Checks an application's own name.
///
/// # Errors
/// Names the field `name`.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("name", "must not be empty"));
    }
    if name.chars().any(|character| character == '.' || character.is_control()) {
        return Err(Error::invalid("name", "must not contain dots or control characters"));
    }
    Ok(())
}

/// Checks the name of an account on a host; an empty one stands for none.
///
/// # Errors
/// Names the field.
pub fn check_account(field: &str, name: &str) -> Result<()> {
    let body = name.strip_suffix('$').unwrap_or(name);
    let mut bytes = body.bytes();
    let first = bytes.next().is_none_or(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let rest = bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'));
    if first && rest && name.len() <= 32 && name != "$" {
        return Ok(());
    }
    let reason =
        "must be the name of an account: at most 32 small letters, digits, - and _, beginning with a letter or _";
    Err(Error::invalid(field, reason))
}

/// A place in the tree that an application shall take.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    /// Its present full name; none when it is new.
    pub present: Option<&'a str>,
    /// Full name of the parent that it shall have.
    pub parent: Option<&'a str>,
    /// Name that it shall have.
    pub name: &'a str,
    /// Dots and characters of the longest full names in its present subtree, itself included.
    pub subtree: (usize, usize),
}

/// The full name after a move.
///
/// # Errors
/// A reason for people: it would stand below itself, too deep, or its full name would be too long.
pub fn place(asked: Move<'_>) -> Result<String, String> {
    if let (Some(present), Some(parent)) = (asked.present, asked.parent)
        && is_within(parent, present)
    {
        return Err(format!("would close a loop: {parent} is {present} or stands below it"));
    }
    let full_name = match asked.parent {
        Some(parent) => format!("{parent}.{}", asked.name),
        None => asked.name.to_owned(),
    };
    let measure = |name: &str| (name.matches('.').count(), name.chars().count());
    let (dots, characters) = measure(&full_name);
    let (present_dots, present_characters) = asked.present.map_or((dots, characters), measure);
    let below = (asked.subtree.0.saturating_sub(present_dots), asked.subtree.1.saturating_sub(present_characters));
    let (below_dots, below_characters) = if asked.present.is_some() { below } else { (0, 0) };
    if dots + below_dots >= DEPTH_MAX {
        return Err(format!("the tree would have more than {DEPTH_MAX} levels"));
    }
    if characters + below_characters > FULL_NAME_CHARACTERS_MAX {
        return Err(format!("a full name would have more than {FULL_NAME_CHARACTERS_MAX} characters"));
    }
    Ok(full_name)
}

/// Whether `full_name` is `root` or below it.
fn is_within(full_name: &str, root: &str) -> bool {
    full_name.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_accounts() {
        for (name, good) in
            [("shop", true), ("Shop 2", true), ("商店", true), ("", false), ("a.b", false), ("a\n", false)]
        {
            assert_eq!(check_name(name).is_ok(), good, "{name:?}");
        }
        for (name, good) in [
            ("", true),
            ("www-data", true),
            ("_apt", true),
            ("web01$", true),
            ("Root", false),
            ("1st", false),
            ("a b", false),
            ("$", false),
            ("a$b", false),
            (&*"a".repeat(33), false),
        ] {
            assert_eq!(check_account("run_user", name).is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn places_in_the_tree() {
        let check = |present: Option<&str>, parent: Option<&str>, name: &str, longest: &str, expected: Option<&str>| {
            let subtree = (longest.matches('.').count(), longest.chars().count());
            let found = place(Move { present, parent, name, subtree });
            assert_eq!(found.as_deref().ok(), expected, "{present:?} below {parent:?} as {name}: {found:?}");
        };
        check(None, None, "a", "", Some("a"));
        check(None, Some("a.b"), "c", "", Some("a.b.c"));
        check(Some("a"), Some("ab"), "a", "a.x", Some("ab.a"));
        check(Some("a"), Some("a"), "a", "a", None);
        check(Some("a"), Some("a.b.c"), "a", "a.b.c", None);
        check(Some("a.b"), Some("a"), "c", "a.b", Some("a.c"));
        let deep = vec!["x"; DEPTH_MAX].join(".");
        check(Some("x"), None, "x", &deep, Some("x"));
        check(Some("x"), Some("y"), "x", &deep, None);
        check(None, Some(&deep), "x", "", None);
        let long = format!("a.{}", "b".repeat(FULL_NAME_CHARACTERS_MAX - 2));
        check(Some("a"), None, "c", &long, Some("c"));
        check(Some("a"), None, "cc", &long, None);
    }
}
