//! What a deploy template may say.

use drover_kernel::{Error, Result};

use crate::settings::rules::{self, Values};

/// Checks everything that can be checked without looking elsewhere. Unlike settings, a template has to say where the
/// sources come from and where they go.
///
/// # Errors
/// Names the first field that is missing or wrong, as a caller spells it.
pub fn check(name: Option<&str>, values: &Values) -> Result<()> {
    if name.is_some_and(|name| name.chars().any(char::is_control)) {
        return Err(Error::invalid("name", "must not contain control characters"));
    }
    for (field, is_missing) in
        [("repository", values.repository.is_none()), ("deploy_path", values.deploy_path.is_none())]
    {
        if is_missing {
            return Err(Error::invalid(field, "is missing; a template has to have one"));
        }
    }
    rules::check(values)
}

/// What has to happen so that the applications linked to a template become those that are wanted.
#[derive(Debug, PartialEq, Eq)]
pub struct Links {
    /// To be linked, in the order they were named.
    pub added: Vec<i64>,
    /// To be unlinked.
    pub removed: Vec<i64>,
}

/// Compares the applications that are linked with those that are wanted.
#[must_use]
pub fn links(present: &[i64], wanted: &[i64]) -> Links {
    let mut added: Vec<i64> = Vec::new();
    for id in wanted {
        if !present.contains(id) && !added.contains(id) {
            added.push(*id);
        }
    }
    Links { added, removed: present.iter().copied().filter(|id| !wanted.contains(id)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_change_by_what_differs() {
        assert_eq!(links(&[1, 2], &[3, 2, 3, 4]), Links { added: vec![3, 4], removed: vec![1] });
        assert_eq!(links(&[1, 2], &[2, 1, 1]), Links { added: vec![], removed: vec![] });
        assert_eq!(links(&[1, 2], &[]), Links { added: vec![], removed: vec![1, 2] });
    }

    #[test]
    fn a_template_has_to_have_source_and_place() {
        let field = |error: Error| match error {
            Error::Invalid { field, .. } => field,
            other => panic!("{other}"),
        };
        assert_eq!(field(check(None, &Values::default()).unwrap_err()), "repository");
        assert_eq!(field(check(Some("a\u{7}"), &Values::default()).unwrap_err()), "name");
    }
}
