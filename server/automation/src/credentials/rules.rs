//! What a credential may be, and which repositories it can open. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_kernel::{Error, Result, api_words};

use crate::source::check::{self, Address};

api_words! {
    /// Kind of a credential.
    pub enum CredentialType {
        /// User name and password or token.
        Password = "PASSWORD",
        /// User name and private key.
        SshPrivateKey = "SSH_PRIVATE_KEY",
    }
}

/// Bytes of a password or token.
pub const PASSWORD_BYTES_MAX: usize = 4096;
/// Bytes of a private key.
pub const KEY_BYTES_MAX: usize = 16_384;

impl CredentialType {
    /// The interface's name of the member that holds the secret.
    #[must_use]
    pub fn member(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::SshPrivateKey => "private_key",
        }
    }

    /// Checks a secret of this kind; the reason never repeats any of it.
    ///
    /// # Errors
    /// Names the member.
    pub fn check(self, secret: &str) -> Result<()> {
        let checked = match self {
            // Each part of what git is told stands on a line of its own.
            Self::Password if secret.chars().any(char::is_control) => Err("must not contain control characters"),
            Self::Password => Ok(()),
            Self::SshPrivateKey => check_key(secret),
        };
        checked.map_err(|reason| Error::invalid(self.member(), reason))
    }
}

/// Checks a user name.
///
/// # Errors
/// Names the member `username`.
pub fn check_username(credential_type: CredentialType, username: &str) -> Result<()> {
    if username.chars().any(char::is_control) {
        return Err(Error::invalid("username", "must not contain control characters"));
    }
    if credential_type == CredentialType::SshPrivateKey && !username.is_empty() {
        check::account(username).map_err(|reason| Error::invalid("username", reason))?;
    }
    Ok(())
}

/// Whether a credential of this kind can open the repository at an address.
///
/// # Errors
/// Names the member `repository.credential`.
pub fn check_place(credential_type: CredentialType, username: &str, url: &str) -> Result<()> {
    let Ok(address) = check::address(url) else { return Ok(()) };
    let reason = match (credential_type, address) {
        (CredentialType::SshPrivateKey, Address::Http { .. }) => {
            "is a private key, which opens no repository over https or http: use a password or token"
        }
        (_, Address::Ssh { user: None, .. }) if username.is_empty() => {
            "has no username, and the address of the repository names no account either"
        }
        (_, Address::Ssh { user: None, .. }) if check::account(username).is_err() => {
            "has a username that no account on a host may have"
        }
        _ => return Ok(()),
    };
    Err(Error::invalid("repository.credential", reason))
}

/// Checks the form of a private key, PEM or OpenSSH's own. A key with a passphrase could never be used.
fn check_key(text: &str) -> std::result::Result<(), &'static str> {
    const FORM: &str = "must be one private key in PEM or OpenSSH form (`-----BEGIN ... PRIVATE KEY-----`)";
    const PASSPHRASE: &str = "is protected by a passphrase: store the key without one";
    let text = text.trim();
    let (label, rest) = text.strip_prefix("-----BEGIN ").and_then(|rest| rest.split_once("-----")).ok_or(FORM)?;
    let end = format!("-----END {label}-----");
    let body = rest.strip_suffix(end.as_str()).ok_or(FORM)?;
    if !label.ends_with("PRIVATE KEY") || body.contains("-----") {
        return Err(FORM);
    }
    if label.contains("ENCRYPTED") || body.contains("ENCRYPTED") {
        return Err(PASSPHRASE);
    }
    let content: String = body.split_whitespace().collect();
    let content = BASE64.decode(content).map_err(|_| FORM)?;
    if label == "OPENSSH PRIVATE KEY" {
        let cipher = content.strip_prefix(b"openssh-key-v1\0").and_then(first_field).ok_or(FORM)?;
        if cipher != b"none" {
            return Err(PASSPHRASE);
        }
    } else if content.is_empty() {
        return Err(FORM);
    }
    Ok(())
}

/// The first of the fields that each have their length before them.
fn first_field(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(result: Result<()>) -> String {
        match result {
            Ok(()) => String::new(),
            Err(Error::Invalid { field, .. }) => field,
            Err(other) => panic!("{other}"),
        }
    }

    fn openssh(cipher: &[u8]) -> String {
        let mut content = b"openssh-key-v1\0".to_vec();
        content.extend(u32::try_from(cipher.len()).unwrap().to_be_bytes());
        content.extend(cipher);
        content.extend([0; 40]);
        format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n", BASE64.encode(content))
    }

    #[test]
    fn keys_are_keys_without_passphrase() {
        let pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----\n";
        for good in [openssh(b"none"), openssh(b"none").replace('\n', "\r\n"), pem.to_owned()] {
            assert_eq!(field(CredentialType::SshPrivateKey.check(&good)), "", "{good}");
        }
        let protected = pem.replace("\nMIIB", "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIB");
        for bad in [
            "",
            "ssh-ed25519 AAAA",
            &openssh(b"aes256-ctr"),
            &protected,
            &pem.replace("RSA", "ENCRYPTED"),
            &pem.repeat(2),
            &pem.replace("END RSA", "END EC"),
            &pem.replace("MIIB", "?"),
            &pem.replace("MIIB", ""),
            &pem.replace("PRIVATE", "PUBLIC"),
            &openssh(b"none").replace("b3BlbnNzaC", "b3BlbnNzaD"),
        ] {
            assert_eq!(field(CredentialType::SshPrivateKey.check(bad)), "private_key", "{bad}");
        }
    }

    #[test]
    fn passwords_and_names_fit_on_a_line() {
        assert_eq!(field(CredentialType::Password.check("")), "");
        assert_eq!(field(CredentialType::Password.check(" p:w é \\ ' $x ")), "");
        assert_eq!(field(CredentialType::Password.check("a\nb")), "password");
        assert_eq!(field(check_username(CredentialType::Password, "ada@example.com")), "");
        assert_eq!(field(check_username(CredentialType::Password, "a\rb")), "username");
        assert_eq!(field(check_username(CredentialType::SshPrivateKey, "")), "");
        assert_eq!(field(check_username(CredentialType::SshPrivateKey, "a b")), "username");
    }

    #[test]
    fn a_credential_fits_its_place() {
        use CredentialType::{Password, SshPrivateKey};
        for (credential_type, username, url, good) in [
            (Password, "ada", "https://h/x", true),
            (SshPrivateKey, "git", "https://h/x", false),
            (SshPrivateKey, "git", "ssh://h/x", true),
            (SshPrivateKey, "", "ssh://git@h/x", true),
            (SshPrivateKey, "", "ssh://h/x", false),
            (Password, "a b", "h:x", false),
            (Password, "a b", "git@h:x", true),
            (Password, "", "/srv/x", true),
        ] {
            assert_eq!(field(check_place(credential_type, username, url)).is_empty(), good, "{username} {url}");
        }
    }
}
