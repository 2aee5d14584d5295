//! What an upload may say of itself, and how far it is. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_kernel::{Error, Result, api_words};
use drover_shared::Digest;

api_words! {
    /// Where an archive stands.
    pub enum State {
        /// Not all of it has come.
        Receiving = "receiving",
        /// All of it has come, and it is being looked at and packed.
        Checking = "checking",
        /// It can be deployed.
        Ready = "ready",
        /// It was not taken; the reason says why.
        Refused = "refused",
    }
}

/// Length of one archive, in bytes.
pub const SIZE_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// Archives of one application that have not come whole.
pub const UNFINISHED_MAX: i64 = 5;
/// Archives of all applications of an organisation that have not come whole.
pub const UNFINISHED_OF_ORGANISATION_MAX: i64 = 100;
/// Archives of one application.
pub const ARCHIVES_MAX: i64 = 1_000;

const VERSION_BYTES_MAX: usize = 255;
const NAME_BYTES_MAX: usize = 255;
const METADATA_BYTES_MAX: usize = 4096;

/// What is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Version that it is deployed as.
    pub version: String,
    /// Name of its file.
    pub name: String,
    /// SHA-256 of all of it.
    pub sha256: Digest,
    /// Its length.
    pub size_bytes: u64,
}

/// Reads what the headers of a creation say: `Upload-Length` and `Upload-Metadata`, as tus 1.0 has them.
///
/// # Errors
/// Names the header, or the member of the metadata.
pub fn announced(length: Option<&str>, metadata: Option<&str>) -> Result<Announced> {
    let length = length.ok_or_else(|| Error::invalid("Upload-Length", "is missing"))?;
    let size_bytes: u64 =
        length.trim().parse().map_err(|_| Error::invalid("Upload-Length", "is no number of bytes"))?;
    if size_bytes == 0 {
        return Err(Error::invalid("Upload-Length", "must not be 0: there is no empty archive"));
    }
    if size_bytes > SIZE_BYTES_MAX {
        let message = format!("an archive has at most {SIZE_BYTES_MAX} bytes");
        return Err(Error::Coded { status: 413, code: 10007, message, field: Some("Upload-Length".to_owned()) });
    }
    let mut members = members(metadata.ok_or_else(|| Error::invalid("Upload-Metadata", "is missing"))?)?;
    let mut member = |name: &str| {
        let found = members.remove(name).filter(|value| !value.is_empty());
        found.ok_or_else(|| Error::invalid(format!("Upload-Metadata.{name}"), "is missing"))
    };
    let version = member("version")?;
    check_version(&version).map_err(|reason| Error::invalid("Upload-Metadata.version", reason))?;
    let sha256 = member("sha256")?.to_ascii_lowercase();
    let sha256 = sha256.parse().map_err(|reason| Error::invalid("Upload-Metadata.sha256", reason))?;
    let name = member("filename").unwrap_or_else(|_| version.clone());
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Error::invalid("Upload-Metadata.filename", "is longer than 255 bytes or holds control characters"));
    }
    Ok(Announced { version, name, sha256, size_bytes })
}

/// Names and values in base64, divided by commas.
fn members(text: &str) -> Result<BTreeMap<String, String>> {
    const FORM: &str = "must be names and values in base64, such as `version MS4w,sha256 NGY4…`";
    if text.len() > METADATA_BYTES_MAX {
        return Err(Error::invalid("Upload-Metadata", "is longer than 4096 bytes"));
    }
    let mut members = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once(' ').unwrap_or((part, ""));
        let value = BASE64.decode(value.trim()).map_err(|_| Error::invalid("Upload-Metadata", FORM))?;
        let value =
            String::from_utf8(value).map_err(|_| Error::invalid("Upload-Metadata", "holds a value that is no text"))?;
        if members.insert(name.to_owned(), value).is_some() {
            return Err(Error::invalid(format!("Upload-Metadata.{name}"), "is there twice"));
        }
    }
    Ok(members)
}

fn check_version(text: &str) -> Result<(), &'static str> {
    if text.len() > VERSION_BYTES_MAX {
        return Err("is longer than 255 bytes");
    }
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err("must not begin or end with blanks, nor hold control characters");
    }
    Ok(())
}

/// Digest that a piece has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum(pub Digest);

/// Reads `Upload-Checksum`.
///
/// # Errors
/// Names the header.
pub fn checksum(text: Option<&str>) -> Result<Option<Checksum>> {
    const FORM: &str = "must be `sha256` and the digest in base64";
    let Some(text) = text else { return Ok(None) };
    let digest = text.trim().strip_prefix("sha256 ").and_then(|value| BASE64.decode(value.trim()).ok());
    let digest = digest.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let digest = digest.ok_or_else(|| Error::invalid("Upload-Checksum", FORM))?;
    Ok(Some(Checksum(Digest::from_bytes(digest))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(members: &[(&str, &str)]) -> String {
        members.iter().map(|(name, value)| format!("{name} {}", BASE64.encode(value))).collect::<Vec<_>>().join(",")
    }

    /// The field that is refused.
    fn refused(length: Option<&str>, metadata: Option<&str>) -> String {
        match announced(length, metadata).unwrap_err() {
            Error::Invalid { field, .. } => field,
            Error::Coded { field, .. } => field.unwrap_or_default(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_announced_is_read() {
        let digest = Digest::of(b"x");
        let text = metadata(&[("version", "1.0 é"), ("sha256", &digest.to_string().to_uppercase())]);
        let found = announced(Some("12"), Some(&text)).unwrap();
        let name = "1.0 é".to_owned();
        assert_eq!(found, Announced { version: name.clone(), name, sha256: digest, size_bytes: 12 });
        let text = format!("{text},filename {}, relativePath ", BASE64.encode("shop.zip"));
        assert_eq!(announced(Some("12"), Some(&text)).unwrap().name, "shop.zip");
    }

    #[test]
    fn eight_gibibytes_are_taken_and_no_byte_more() {
        let text = metadata(&[("version", "1"), ("sha256", &Digest::of(b"x").to_string())]);
        assert_eq!(announced(Some("8589934592"), Some(&text)).unwrap().size_bytes, 8 << 30);
        let error = announced(Some("8589934593"), Some(&text)).unwrap_err();
        assert!(matches!(error, Error::Coded { status: 413, .. }), "{error}");
    }

    #[test]
    fn nonsense_is_named() {
        let digest = Digest::of(b"x").to_string();
        let good = metadata(&[("version", "1"), ("sha256", &digest)]);
        for length in [None, Some(""), Some("-1"), Some("x"), Some("0"), Some("8589934593")] {
            assert_eq!(refused(length, Some(&good)), "Upload-Length", "{length:?}");
        }
        for text in [None, Some("version 1.0"), Some("version ?"), Some("version /w=="), Some(&*"x".repeat(5000))] {
            assert_eq!(refused(Some("1"), text), "Upload-Metadata", "{text:?}");
        }
        let cases = [
            (metadata(&[("sha256", &digest)]), "version"),
            (metadata(&[("version", ""), ("sha256", &digest)]), "version"),
            (metadata(&[("version", " 1"), ("sha256", &digest)]), "version"),
            (metadata(&[("version", &"x".repeat(256)), ("sha256", &digest)]), "version"),
            (metadata(&[("version", "1"), ("version", "2"), ("sha256", &digest)]), "version"),
            (metadata(&[("version", "1")]), "sha256"),
            (metadata(&[("version", "1"), ("sha256", "abc")]), "sha256"),
            (metadata(&[("version", "1"), ("sha256", &digest), ("filename", "a\nb")]), "filename"),
        ];
        for (text, field) in cases {
            assert_eq!(refused(Some("1"), Some(&text)), format!("Upload-Metadata.{field}"), "{text}");
        }
    }

    #[test]
    fn checksums() {
        assert_eq!(checksum(None).unwrap(), None);
        let digest = Digest::of(b"x");
        let bytes = hex::decode(digest.to_string()).unwrap();
        let text = format!("sha256 {}", BASE64.encode(bytes));
        assert_eq!(checksum(Some(&text)).unwrap(), Some(Checksum(digest)));
        for bad in ["", "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=", "sha256", "sha256 eA==", "sha256 ?"] {
            assert!(checksum(Some(bad)).is_err(), "{bad}");
        }
    }
}
