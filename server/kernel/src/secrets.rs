//! Secrets at rest: sealed with a key that is never in the database.
//!
//! Owns the key ring and the form of a sealed value, `v1.KEY.BASE64` with the key's id, a random nonce, and AES-256-GCM
//! over the value. Invariants: a sealed value opens only for what it was sealed about, so a row copied over another one
//! does not open; new values are sealed with the first key of the ring and the others still open what they sealed.

use std::fmt;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{hkdf, hmac};
use zeroize::Zeroizing;

use crate::key_file;
use crate::{Error, Result};

/// The key file below the data directory.
const FILE: &str = "keys/secrets.key";

/// Keys that a ring may hold: the present one and those before it.
const KEYS_MAX: usize = 16;

/// Largest value that is sealed, in bytes.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;

const KEY_BYTES: usize = 32;
const VERSION: &str = "v1";

/// A key ring as the operator writes it: keys of 64 hexadecimal digits, the present one first.
#[derive(Clone)]
pub struct KeyText(Zeroizing<String>);

impl From<String> for KeyText {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("******")
    }
}

struct RingKey {
    id: String,
    seal: LessSafeKey,
    digest: hmac::Key,
}

/// Seals and opens stored secrets.
pub struct Sealer {
    // Never empty.
    keys: Vec<RingKey>,
}

impl Sealer {
    /// Takes the operator's keys if there are any, and those of `<data directory>/keys/secrets.key`, which is made when
    /// there is no key at all. A key file beside operator's keys only opens what it sealed before. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be used or a key is malformed; the text names which.
    pub fn load(data_directory: &Path, operator: Option<&KeyText>) -> io::Result<Self> {
        let path = data_directory.join(FILE);
        let mut keys = match operator {
            Some(text) => parse(&text.0).map_err(|why| broken(format!("the secret key: {why}")))?,
            None => Vec::new(),
        };
        if keys.is_empty() || path.exists() {
            let content = Zeroizing::new(key_file::keep(&path, make)?);
            let text = std::str::from_utf8(&content).map_err(|_| broken(format!("{FILE} is not text")))?;
            keys.extend(parse(text).map_err(|why| broken(format!("{FILE}: {why}")))?);
        }
        if keys.is_empty() {
            return Err(broken(format!("{FILE} holds no key")));
        }
        Ok(Self { keys })
    }

    /// Seals `plain`. `about` says whose it is, as table, row and member: `secrets/17/value`. It must be the same when
    /// the value is opened.
    ///
    /// # Errors
    /// When it is larger than [`SECRET_BYTES_MAX`], or the machine has no random numbers.
    pub fn seal(&self, about: &str, plain: &[u8]) -> Result<String> {
        if plain.len() > SECRET_BYTES_MAX {
            return Err(Error::invalid("", format!("must have at most {SECRET_BYTES_MAX} bytes")));
        }
        let key = &self.keys[0];
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Error::internal("the machine has no random numbers"))?;
        let mut sealed = plain.to_vec();
        key.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(about), &mut sealed)
            .map_err(|_| Error::internal("a secret cannot be sealed"))?;
        let mut content = nonce.to_vec();
        content.append(&mut sealed);
        Ok(format!("{VERSION}.{}.{}", key.id, BASE64.encode(content)))
    }

    /// Opens what [`seal`](Self::seal) made about the same thing.
    ///
    /// # Errors
    /// An internal error that says whether the key is missing or the value was damaged or moved. It names `about`,
    /// never the value.
    pub fn open(&self, about: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>> {
        let damaged =
            || Error::internal(format!("the secret of {about} is damaged, or was sealed about something else"));
        let mut parts = sealed.splitn(3, '.');
        let (Some(VERSION), Some(id), Some(content)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(damaged());
        };
        let Some(key) = self.keys.iter().find(|key| key.id == id) else {
            return Err(Error::internal(format!(
                "the secret of {about} needs the key {id}, which this server has not"
            )));
        };
        let mut content = Zeroizing::new(BASE64.decode(content).map_err(|_| damaged())?);
        let Some((nonce, value)) = content.split_first_chunk_mut::<NONCE_LEN>() else { return Err(damaged()) };
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key.seal.open_in_place(nonce, Aad::from(about), value).map_err(|_| damaged())?;
        Ok(Zeroizing::new(plain.to_vec()))
    }

    /// Whether a value was sealed with the present key, so that it need not be sealed anew.
    #[must_use]
    pub fn is_present(&self, sealed: &str) -> bool {
        sealed.split('.').nth(1) == Some(self.keys[0].id.as_str())
    }

    /// A keyed digest of `content`, which tells nothing to who has the database alone.
    #[must_use]
    pub fn fingerprint(&self, content: &[u8]) -> String {
        let key = &self.keys[0];
        format!("{}.{}", key.id, hex::encode(hmac::sign(&key.digest, content)))
    }

    /// Whether `fingerprint` is that of `content`, under whichever key of the ring it was made.
    #[must_use]
    pub fn fits(&self, content: &[u8], fingerprint: &str) -> bool {
        let Some((id, digest)) = fingerprint.split_once('.') else { return false };
        let (Some(key), Ok(digest)) = (self.keys.iter().find(|key| key.id == id), hex::decode(digest)) else {
            return false;
        };
        hmac::verify(&key.digest, content, &digest).is_ok()
    }
}

fn broken(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The content of a new key file.
fn make() -> io::Result<Vec<u8>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    SystemRandom::new().fill(&mut *key).map_err(|_| io::Error::other("the machine has no random numbers"))?;
    Ok(format!("{}\n", hex::encode(*key)).into_bytes())
}

fn parse(text: &str) -> Result<Vec<RingKey>, String> {
    let words = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = words.flat_map(|line| line.split([',', ' ', '\t'])).map(str::trim).filter(|word| !word.is_empty());
    let mut keys = Vec::new();
    for word in words {
        if keys.len() == KEYS_MAX {
            return Err(format!("there may be {KEYS_MAX} keys"));
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        hex::decode_to_slice(word, &mut *bytes)
            .map_err(|_| format!("key {} is not {} hexadecimal digits", keys.len() + 1, KEY_BYTES * 2))?;
        keys.push(derive(&bytes).map_err(|_| "a key cannot be derived".to_owned())?);
    }
    Ok(keys)
}

/// What one key is used for gets keys of its own, so that no use tells anything about another.
fn derive(key: &[u8; KEY_BYTES]) -> Result<RingKey, ring::error::Unspecified> {
    let root = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, key);
    let mut id = [0; 32];
    root.expand(&[b"drover key id v1"], hkdf::HKDF_SHA256)?.fill(&mut id)?;
    let seal = UnboundKey::from(root.expand(&[b"drover seal v1"], &AES_256_GCM)?);
    let digest = hmac::Key::from(root.expand(&[b"drover fingerprint v1"], hmac::HMAC_SHA256)?);
    Ok(RingKey { id: hex::encode(&id[..4]), seal: LessSafeKey::new(seal), digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const OTHER: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn sealer(keys: &str) -> Sealer {
        let folder = tempfile::tempdir().unwrap();
        Sealer::load(folder.path(), Some(&KeyText::from(keys.to_owned()))).unwrap()
    }

    fn why(result: Result<Zeroizing<Vec<u8>>>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_secret_opens_only_for_what_it_was_sealed_about() {
        let sealer = sealer(ONE);
        let sealed = sealer.seal("secrets/1/value", b"correct horse").unwrap();
        assert_eq!(&**sealer.open("secrets/1/value", &sealed).unwrap(), b"correct horse");
        assert!(!sealed.contains("correct"), "{sealed}");
        assert_ne!(sealed, sealer.seal("secrets/1/value", b"correct horse").unwrap(), "nonces differ");
        assert!(why(sealer.open("secrets/2/value", &sealed)).contains("secrets/2/value"));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let sealer = sealer(ONE);
        let sealed = sealer.seal("a", b"value").unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(sealer.open("a", std::str::from_utf8(&changed).unwrap()).is_err(), "{at}");
        }
        for text in ["", "v1", "v1.", "v1..", "plain text", &sealed[..sealed.len() - 4]] {
            assert!(sealer.open("a", text).is_err(), "{text}");
        }
        assert!(sealer.seal("a", &vec![0; SECRET_BYTES_MAX + 1]).is_err());
        assert!(sealer.seal("a", &vec![0; SECRET_BYTES_MAX]).is_ok());
    }

    #[test]
    fn a_new_key_comes_first_and_the_old_one_still_opens() {
        let old = sealer(ONE);
        let (sealed, print) = (old.seal("a", b"value").unwrap(), old.fingerprint(b"request"));
        let both = sealer(&format!("{OTHER},{ONE}"));
        assert_eq!(&**both.open("a", &sealed).unwrap(), b"value");
        assert!(old.is_present(&sealed) && !both.is_present(&sealed));
        assert!(both.is_present(&both.seal("a", b"value").unwrap()));
        assert!(both.fits(b"request", &print) && !both.fits(b"another", &print));
        let new = sealer(OTHER);
        assert!(why(new.open("a", &sealed)).contains("which this server has not"));
        assert!(!new.fits(b"request", &print));
    }

    #[test]
    fn the_key_file_is_made_once_private_and_stays_usable_beside_an_operators_key() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let sealed = Sealer::load(folder.path(), None).unwrap().seal("a", b"value").unwrap();
        assert!(Sealer::load(folder.path(), None).unwrap().open("a", &sealed).is_ok());
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
        let moved = Sealer::load(folder.path(), Some(&KeyText::from(ONE.to_owned()))).unwrap();
        assert!(moved.open("a", &sealed).is_ok() && !moved.is_present(&sealed));
    }

    #[test]
    fn malformed_keys_are_refused_without_being_shown() {
        let folder = tempfile::tempdir().unwrap();
        let text = KeyText::from("abcd".to_owned());
        assert!(!format!("{text:?}").contains("abcd"));
        let error = Sealer::load(folder.path(), Some(&text)).err().unwrap().to_string();
        assert!(error.contains("key 1 is not 64 hexadecimal digits") && !error.contains("abcd"), "{error}");
        std::fs::create_dir_all(folder.path().join("keys")).unwrap();
        std::fs::write(folder.path().join(FILE), "# none\n").unwrap();
        assert!(Sealer::load(folder.path(), None).err().unwrap().to_string().contains("holds no key"));
    }
}
