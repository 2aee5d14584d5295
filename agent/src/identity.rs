//! Who the agent is: its id, its key, and the server it trusts.
//!
//! Invariants: the file is written once, whole, after enrolment, and only its owner may read it; the key is kept before
//! the server hears of it, so that an agent that dies in between enrols as the same one.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_shared::order::canonical;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};

use crate::durable;

/// The agent's key until `identity.json` is there.
const ENROLMENT_KEY: &str = "enrolling.key";

/// What enrolment left in `identity.json`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Address to dial, `wss://HOST:PORT`.
    pub url: String,
    /// Name of the host.
    pub name: String,
    /// Id that the server gave.
    pub agent_id: String,
    /// The one CA that is trusted, PEM.
    pub ca_pem: String,
    /// The agent's Ed25519 key, PKCS #8 in base64.
    private_key: String,
    /// The server's Ed25519 public key, in base64.
    pub signing_key: String,
}

/// The agent's key pair.
pub struct AgentKey {
    pair: Ed25519KeyPair,
    document: String,
}

impl AgentKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> anyhow::Result<Self> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| anyhow!("no key can be made"))?;
        Self::from_document(BASE64.encode(document.as_ref()))
    }

    /// The key that this data directory enrols with: the one of an earlier try, if there was one, else a new one, kept.
    ///
    /// # Errors
    /// It cannot be kept, or what was kept cannot be used.
    pub fn of_enrolment(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(ENROLMENT_KEY);
        match std::fs::read_to_string(&path) {
            Ok(document) => Self::from_document(document).with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Self::generate()?;
                let kept = durable::write_atomic(&path, key.document.as_bytes(), 0o600);
                kept.with_context(|| format!("{} cannot be written", path.display()))?;
                Ok(key)
            }
            Err(error) => bail!("{} cannot be read: {error}", path.display()),
        }
    }

    fn from_document(document: String) -> anyhow::Result<Self> {
        let bytes = BASE64.decode(&document).context("the agent's key is not base64")?;
        let pair =
            Ed25519KeyPair::from_pkcs8(&bytes).map_err(|error| anyhow!("the agent's key is damaged: {error}"))?;
        Ok(Self { pair, document })
    }

    /// The same key once more.
    ///
    /// # Errors
    /// It is damaged.
    pub fn copy(&self) -> anyhow::Result<Self> {
        Self::from_document(self.document.clone())
    }

    /// The public half, in base64.
    #[must_use]
    pub fn public(&self) -> String {
        BASE64.encode(self.pair.public_key().as_ref())
    }

    /// The signature of a message, in base64.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> String {
        BASE64.encode(self.pair.sign(message).as_ref())
    }
}

impl Identity {
    /// Puts an identity together after enrolment.
    #[must_use]
    pub fn new(url: &str, name: &str, key: &AgentKey, enrolled: (String, String, String)) -> Self {
        let (agent_id, ca_pem, signing_key) = enrolled;
        let private_key = key.document.clone();
        Self { url: url.to_owned(), name: name.to_owned(), agent_id, ca_pem, private_key, signing_key }
    }

    /// Reads the identity of a data directory; none before enrolment.
    ///
    /// # Errors
    /// The file is there and cannot be used.
    pub fn load(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read(path(data_dir)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => bail!("{} cannot be read: {error}", path(data_dir).display()),
        };
        serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is damaged", path(data_dir).display()))
    }

    /// Writes it, durably, for the agent's account alone.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn save(&self, data_dir: &Path) -> io::Result<()> {
        durable::write_atomic(&path(data_dir), canonical(self).as_bytes(), 0o600)?;
        let _ = std::fs::remove_file(data_dir.join(ENROLMENT_KEY));
        Ok(())
    }

    /// The agent's key.
    ///
    /// # Errors
    /// It is damaged.
    pub fn key(&self) -> anyhow::Result<AgentKey> {
        AgentKey::from_document(self.private_key.clone())
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("identity.json")
}
