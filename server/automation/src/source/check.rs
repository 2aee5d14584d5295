//! What may be asked for: the fields of a source are checked before any program sees them. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use url::Url;

use super::{GitSource, SourceError};

const URL_BYTES_MAX: usize = 2048;
const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 1024;

/// Keys that one host may have, and bytes of all of them.
const HOST_KEYS_MAX: usize = 8;
const HOST_KEYS_BYTES_MAX: usize = 16 * 1024;
/// Certificates that one repository may have, and bytes of all of them.
const CERTIFICATES_MAX: usize = 32;
const CERTIFICATES_BYTES_MAX: usize = 256 * 1024;

/// Where a repository is, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// A folder on the server.
    Local,
    /// A web server.
    Http {
        /// Whether it is spoken to through TLS.
        secure: bool,
    },
    /// A host that is logged in to.
    Ssh {
        /// Account, if the address names one.
        user: Option<String>,
        /// Name or number of the host, without brackets.
        host: String,
        /// Port, 22 when the address names none.
        port: u16,
    },
}

/// Checks every field.
///
/// # Errors
/// [`SourceError::Invalid`] names the field and what is wrong with it.
pub(super) fn check(source: &GitSource) -> Result<Address, SourceError> {
    let address = address(&source.url).map_err(|reason| invalid("repository.url", reason))?;
    branch(&source.branch).map_err(|reason| invalid("repository.branch", reason))?;
    name(&source.version).map_err(|reason| invalid("version", reason))?;
    path(source.path.as_deref())?;
    Ok(address)
}

fn invalid(field: &'static str, reason: &'static str) -> SourceError {
    SourceError::Invalid { field, reason }
}

/// What a repository's address says.
///
/// # Errors
/// What is wrong with it; goes on after the field's name.
pub(crate) fn address(text: &str) -> Result<Address, &'static str> {
    const FORMS: &str = "must begin with https://, http://, ssh://, file:/// or /, or be user@host:path";
    if text.is_empty() {
        return Err("must not be empty");
    }
    if text.len() > URL_BYTES_MAX {
        return Err("is longer than 2048 bytes");
    }
    if text.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return Err("must not contain blanks or control characters");
    }
    // A single slash: two would name a host on some systems.
    let local = text.strip_prefix("file://").unwrap_or(text);
    if local.starts_with('/') {
        return if local.starts_with("//") { Err(FORMS) } else { Ok(Address::Local) };
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return web(text);
    }
    if text.starts_with("ssh://") {
        return shell(text);
    }
    match text.split_once(':') {
        Some((host, path)) if !text.contains("://") && !host.contains('/') => short_shell(host, path).ok_or(FORMS),
        _ => Err(FORMS),
    }
}

fn web(text: &str) -> Result<Address, &'static str> {
    let parsed = Url::parse(text).map_err(|_| "is not a valid address")?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("must not hold a user name or password: they are a credential");
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err("names no host");
    }
    if parsed.fragment().is_some() {
        return Err("must not hold a fragment");
    }
    Ok(Address::Http { secure: parsed.scheme() == "https" })
}

/// `ssh://user@host:port/path`.
fn shell(text: &str) -> Result<Address, &'static str> {
    let parsed = Url::parse(text).map_err(|_| "is not a valid address")?;
    if parsed.password().is_some() {
        return Err("must not hold a password: it is a credential");
    }
    if parsed.fragment().is_some() || parsed.query().is_some() {
        return Err("must not hold a query or fragment");
    }
    if parsed.path().len() < 2 {
        return Err("names no path on the host");
    }
    let host = parsed.host_str().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let user = (!parsed.username().is_empty()).then(|| parsed.username().to_owned());
    if !is_host(host) || !user.as_deref().is_none_or(is_account) {
        return Err("names no host, or an account that cannot be");
    }
    Ok(Address::Ssh { user, host: host.to_owned(), port: parsed.port().unwrap_or(22) })
}

/// `user@host:path`, as scp writes it.
fn short_shell(host: &str, path: &str) -> Option<Address> {
    let (user, host) = match host.split_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, host),
    };
    // Two colons would name a helper program.
    let good = is_host(host) && user.is_none_or(is_account) && !path.is_empty() && !path.starts_with([':', '-']);
    good.then(|| Address::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port: 22 })
}

/// Neither options nor anything that a shell or the program would expand.
fn is_host(text: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || ".-_:".contains(character);
    !text.is_empty() && text.len() <= 255 && !text.starts_with('-') && text.chars().all(plain)
}

fn is_account(text: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || ".-_+".contains(character);
    !text.is_empty() && text.len() <= 64 && !text.starts_with('-') && text.chars().all(plain)
}

/// Whether an account at a repository's host may have this name; goes into a line of a configuration.
pub(crate) fn account(text: &str) -> Result<(), &'static str> {
    if is_account(text) { Ok(()) } else { Err("is no name that an account on a host may have") }
}

/// Checks the keys that a host may show: one a line, `ssh-ed25519 AAAA…`, as the host's `.pub` files have them.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn host_key(text: &str) -> Result<(), &'static str> {
    const FORM: &str = "must be lines of a key's type and the key, such as `ssh-ed25519 AAAA...`";
    if text.len() > HOST_KEYS_BYTES_MAX || text.lines().count() > HOST_KEYS_MAX {
        return Err("has more than 8 keys or 16 KiB");
    }
    if host_keys(text).count() == 0 {
        return Err("must not be empty; null trusts what the host shows first");
    }
    for (kind, key) in host_keys(text) {
        let blob = BASE64.decode(key).map_err(|_| FORM)?;
        let named = blob.get(4..4 + kind.len()).is_some_and(|name| name == kind.as_bytes());
        let length = u32::try_from(kind.len()).unwrap_or(u32::MAX);
        if !named || blob.get(..4) != Some(&length.to_be_bytes()) {
            return Err(FORM);
        }
    }
    Ok(())
}

/// Types and keys of a text that [`host_key`] has checked.
pub(crate) fn host_keys(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
        let mut words = line.split_whitespace();
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    })
}

/// Checks certificates in PEM.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn certificates(text: &str) -> Result<(), &'static str> {
    const FORM: &str = "must be certificates in PEM (`-----BEGIN CERTIFICATE-----`) and nothing else";
    if text.len() > CERTIFICATES_BYTES_MAX {
        return Err("is longer than 256 KiB");
    }
    if text.contains("PRIVATE KEY") {
        return Err("must not hold a private key");
    }
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|_| FORM)?;
        webpki_root(&certificate)?;
        count += 1;
    }
    match count {
        0 => Err(FORM),
        1..=CERTIFICATES_MAX => Ok(()),
        _ => Err("has more than 32 certificates"),
    }
}

fn webpki_root(certificate: &CertificateDer<'_>) -> Result<(), &'static str> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).map_err(|_| "holds a certificate that cannot be read")
}

/// What git itself asks of a branch's name.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn branch(text: &str) -> Result<(), &'static str> {
    name(text)?;
    if is_ref_name(text) { Ok(()) } else { Err("is no name that a branch may have") }
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
        let ssh = |user: Option<&str>, host: &str, port| {
            Ok(Address::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port })
        };
        for (text, expected) in [
            ("/srv/git/shop.git", Ok(Address::Local)),
            ("file:///srv/git/shop.git", Ok(Address::Local)),
            ("https://git.example.com:8443/a/b.git", Ok(Address::Http { secure: true })),
            ("http://h/x", Ok(Address::Http { secure: false })),
            ("ssh://git@host/x", ssh(Some("git"), "host", 22)),
            ("ssh://host:2222/~/x.git", ssh(None, "host", 2222)),
            ("ssh://git@[::1]:22/x", ssh(Some("git"), "::1", 22)),
            ("git@host.example.com:team/x.git", ssh(Some("git"), "host.example.com", 22)),
            ("host:x", ssh(None, "host", 22)),
        ] {
            assert_eq!(address(text), expected, "{text}");
        }
        let bad = [
            "",
            "shop.git",
            "../shop.git",
            "-u/x",
            "--upload-pack=x",
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
            "ssh://git:secret@host/x",
            "ssh://-oProxyCommand=id/x",
            "ssh://git@-x/y",
            "ssh://host",
            "ssh://host/",
            "ssh://a%20b@host/x",
            "ssh://host:0x/y",
            "-oProxyCommand=id:x",
            "git@-x:y",
            "git@host:",
            "git@host:-x",
            "a/b:c",
            "git@ho`id`st:x",
        ];
        for bad in bad {
            assert!(address(bad).is_err(), "{bad}");
        }
        assert!(address(&format!("/{}", "x".repeat(2048))).is_err());
    }

    #[test]
    fn host_keys_are_of_their_type() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJlYFz0hUk3S0Vw2vJFxQ1mUjlW0N0Q8mGm5kYyq0l4N";
        assert_eq!(host_key(key), Ok(()));
        assert_eq!(host_key(&format!("{key} comment\n\n{key}\n")), Ok(()));
        let other = key.replace("ssh-ed25519 ", "ssh-rsa ");
        for bad in
            ["", "\n", "ssh-ed25519", "ssh-ed25519 x", &other, &format!("host {key}"), &format!("{key}\n").repeat(9)]
        {
            assert!(host_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn certificates_are_certificates() {
        let made = rcgen::generate_simple_self_signed(vec!["git.example.com".to_owned()]).unwrap();
        let pem = made.cert.pem();
        assert_eq!(certificates(&pem), Ok(()));
        assert_eq!(certificates(&pem.repeat(2)), Ok(()));
        let spoiled = pem.replacen("MII", "MIX", 1);
        for bad in
            ["", "x", &pem[..80], &pem.repeat(33), &format!("{pem}{}", made.signing_key.serialize_pem()), &spoiled]
        {
            assert!(certificates(bad).is_err(), "{bad}");
        }
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
