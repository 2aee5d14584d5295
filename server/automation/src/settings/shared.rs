//! Paths of a release that every version shares, such as uploads. Pure.
//!
//! Invariant: what is accepted here no agent refuses: plain paths inside a release, none within another.

/// Shared paths of one application.
const PATHS_MAX: usize = 100;
/// Length of one, in bytes.
const PATH_BYTES_MAX: usize = 1_000;

/// Checks what an application's shared paths shall be. One that ends in `/` is a folder.
///
/// # Errors
/// Which member, and what is wrong with it.
pub(super) fn check(paths: &[String]) -> Result<(), (String, String)> {
    if paths.len() > PATHS_MAX {
        return Err(("shared_paths".to_owned(), format!("there may be at most {PATHS_MAX}")));
    }
    for (index, path) in paths.iter().enumerate() {
        let wrong = |why: String| Err((format!("shared_paths[{index}]"), why));
        let plain = path.strip_suffix('/').unwrap_or(path);
        if plain.len() > PATH_BYTES_MAX {
            return wrong(format!("must have at most {PATH_BYTES_MAX} bytes"));
        }
        if path.chars().any(char::is_control) {
            return wrong("must not contain control characters".to_owned());
        }
        if path.starts_with('/') {
            return wrong("must be a path inside a release, which does not begin with `/`".to_owned());
        }
        if plain.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return wrong("must be a plain path: neither empty nor with the parts `.`, `..` or none".to_owned());
        }
        let before = paths[..index].iter().map(|other| other.strip_suffix('/').unwrap_or(other));
        if let Some(other) = before.into_iter().find(|other| within(plain, other) || within(other, plain)) {
            return wrong(format!("lies within `{other}`, or that within it: one of them is enough"));
        }
    }
    Ok(())
}

fn within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(paths: &[&str]) -> Option<String> {
        let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
        check(&paths).err().map(|(field, _)| field)
    }

    #[test]
    fn paths_are_plain_and_apart() {
        for good in [&[][..], &["uploads/", "config/local.toml", "uploads2"], &["a", "ab", "a-b/c/"], &["..."]] {
            assert_eq!(refused(good), None, "{good:?}");
        }
        let long = "x".repeat(PATH_BYTES_MAX + 1);
        for bad in ["", "/", "/etc", "..", "a/../b", "./a", "a//b", "a/./b", "a/..", "a\n", "a\0", "a//", &long] {
            assert_eq!(refused(&["ok", bad]).as_deref(), Some("shared_paths[1]"), "{bad:?}");
        }
        for bad in [["a", "a"], ["a/", "a"], ["a", "a/b"], ["a/b/c", "a/b/"]] {
            assert_eq!(refused(&bad).as_deref(), Some("shared_paths[1]"), "{bad:?}");
        }
        let many: Vec<String> = (0..=PATHS_MAX).map(|number| number.to_string()).collect();
        assert_eq!(check(&many).err().map(|(field, _)| field).as_deref(), Some("shared_paths"));
    }
}
