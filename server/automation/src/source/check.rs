//! What may be asked for: the fields of a source are checked before any program sees them. Pure.

use url::Url;

use super::{GitSource, SourceError};

const URL_BYTES_MAX: usize = 2048;
const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 1024;

/// Checks every field.
///
/// # Errors
/// [`SourceError::Invalid`] names the field and what is wrong with it.
pub(super) fn check(source: &GitSource) -> Result<(), SourceError> {
    url(&source.url).map_err(|reason| invalid("repository.url", reason))?;
    name(&source.branch).map_err(|reason| invalid("repository.branch", reason))?;
    if !is_ref_name(&source.branch) {
        return Err(invalid("repository.branch", "is no name that a branch may have"));
    }
    name(&source.version).map_err(|reason| invalid("version", reason))?;
    path(source.path.as_deref()).map(drop)
}

fn invalid(field: &'static str, reason: &'static str) -> SourceError {
    SourceError::Invalid { field, reason }
}

fn url(text: &str) -> Result<(), &'static str> {
    const FORMS: &str = "must begin with https://, http://, file:/// or /";
    if text.is_empty() {
        return Err("must not be empty");
    }
    if text.len() > URL_BYTES_MAX {
        return Err("is longer than 2048 bytes");
    }
    if text.chars().any(|character| character.is_control() || character == ' ') {
        return Err("holds a space or control character");
    }
    // A single slash: two would name a host on some systems.
    let local = text.strip_prefix("file://").unwrap_or(text);
    if local.starts_with('/') {
        return if local.starts_with("//") { Err(FORMS) } else { Ok(()) };
    }
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return Err(FORMS);
    }
    let parsed = Url::parse(text).map_err(|_| "is no valid URL")?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("must not hold credentials: they have fields of their own");
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err("names no host");
    }
    if parsed.fragment().is_some() {
        return Err("must not hold a fragment");
    }
    Ok(())
}

fn name(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("must not be empty");
    }
    if text.len() > NAME_BYTES_MAX {
        return Err("is longer than 255 bytes");
    }
    if text.starts_with('-') {
        return Err("must not begin with a hyphen");
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    Ok(())
}

/// Whether a branch or tag may have this name (`git help check-ref-format`).
pub(super) fn is_ref_name(text: &str) -> bool {
    let forbidden = |character: char| character.is_control() || " ~^:?*[\\".contains(character);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    !text.contains(forbidden)
        && !text.contains("..")
        && !text.contains("@{")
        && text != "@"
        && !text.ends_with('.')
        && text.split('/').all(part)
}

/// The path inside the repository, cleaned; none for the whole tree.
pub(super) fn path(text: Option<&str>) -> Result<Option<String>, SourceError> {
    let field = "path";
    let text = text.unwrap_or("");
    if text.len() > PATH_BYTES_MAX {
        return Err(invalid(field, "is longer than 1024 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(field, "holds a control character"));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(invalid(field, "must not hold `..`"));
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_these_forms_of_url_are_taken() {
        for good in
            ["/srv/git/shop.git", "file:///srv/git/shop.git", "https://git.example.com:8443/a/b.git", "http://h/x"]
        {
            assert_eq!(url(good), Ok(()), "{good}");
        }
        let bad = [
            "",
            "shop.git",
            "../shop.git",
            "-u/x",
            "--upload-pack=x",
            "ssh://git@host/x",
            "git@host:x",
            "git://host/x",
            "ext::sh -c id",
            "ext::sh",
            "//host/x",
            "file://host/x",
            "file:////host/x",
            "https://",
            "https://user@host/x",
            "https://user:secret@host/x",
            "https://host/x\ny",
            "https://host/x y",
            "https://host/x#y",
            "FILE:///x",
        ];
        for bad in bad {
            assert!(url(bad).is_err(), "{bad}");
        }
        assert!(url(&format!("/{}", "x".repeat(2048))).is_err());
    }

    #[test]
    fn names_cannot_be_options_or_other_expressions() {
        for bad in ["", "-x", "--all", "a\nb", "a\0", &"x".repeat(256)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
        for good in ["main", "v1.0", "release/2026-11", "a@b", "ü"] {
            assert!(name(good).is_ok() && is_ref_name(good), "{good}");
        }
        for bad in
            ["a..b", "a b", "a~1", "a^", "a:b", "@{u}", "@", "x.lock", "a//b", "/a", "a/", ".a", "a.", "a\\b", "a*"]
        {
            assert!(!is_ref_name(bad), "{bad}");
        }
    }

    #[test]
    fn paths_stay_inside() {
        for whole in [None, Some(""), Some("."), Some("/"), Some("./")] {
            assert_eq!(path(whole).unwrap(), None);
        }
        assert_eq!(path(Some("/dist//web/./app/")).unwrap().as_deref(), Some("dist/web/app"));
        for bad in ["..", "a/../b", "/..", "a\nb", &"x".repeat(1025)] {
            assert!(path(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
