//! The server's own keys: the CA that agents trust, and the key that signs orders.
//!
//! Both are files in the data directory that only the server's account can read, made at first use. Invariant: a key
//! that exists is never replaced; two processes that start at once agree on one.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_kernel::key_file;
use drover_shared::Digest;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The CA and the signing key.
pub struct Keys {
    ca_pem: String,
    ca_key_pem: String,
    signing: Ed25519KeyPair,
}

impl Keys {
    /// Reads the keys under `<data directory>/keys`, making what is missing.
    ///
    /// # Errors
    /// When the folder cannot be written or a key in it is damaged.
    pub fn open(data_directory: &Path) -> Result<Self> {
        let folder = data_directory.join("keys");
        // Key and certificate are one file, so that they cannot come from two processes.
        let ca = keep(&folder.join("ca.pem"), make_ca)?;
        let ca = String::from_utf8(ca).context("keys/ca.pem is not text")?;
        let at = ca.find("-----BEGIN CERTIFICATE-----").context("keys/ca.pem holds no certificate")?;
        let signing = keep(&folder.join("signing.pk8"), make_signing)?;
        let signing =
            Ed25519KeyPair::from_pkcs8(&signing).map_err(|_| anyhow::anyhow!("keys/signing.pk8 is damaged"))?;
        Ok(Self { ca_pem: ca[at..].to_owned(), ca_key_pem: ca[..at].to_owned(), signing })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of the CA's certificate in DER, as join tokens carry it.
    ///
    /// # Errors
    /// When the certificate is damaged.
    pub fn ca_fingerprint(&self) -> Result<Digest> {
        Ok(Digest::of(&CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).context("keys/ca.pem")?))
    }

    /// The public half of the signing key, in base64.
    #[must_use]
    pub fn signing_key(&self) -> String {
        BASE64.encode(self.signing.public_key().as_ref())
    }

    /// An Ed25519 signature.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signing.sign(message).as_ref().to_vec()
    }

    /// TLS for the agents' listener: a certificate of the CA for this run, valid for the given names.
    ///
    /// # Errors
    /// When the CA is damaged.
    pub fn server_config(&self, names: Vec<String>) -> Result<Arc<ServerConfig>> {
        let ca_key = KeyPair::from_pem(&self.ca_key_pem).context("keys/ca.pem holds no key")?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem, ca_key).context("keys/ca.pem")?;
        let key = KeyPair::generate().context("make a key")?;
        let mut parameters = CertificateParams::new(names).context("names of the agents' listener")?;
        parameters.distinguished_name = named("drover-server");
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(&key, &issuer).context("sign a certificate")?;
        let chain = vec![
            certificate.der().clone(),
            CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).context("keys/ca.pem")?,
        ];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow::anyhow!("key: {error}"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

/// Names that a certificate for this address must carry, the loopback ones included.
#[must_use]
pub fn certificate_names(host: &str) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = host.trim_matches(['[', ']']);
    let unspecified = host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    if !host.is_empty() && !unspecified && !names.iter().any(|name| name == host) {
        names.push(host.to_owned());
    }
    names
}

/// Random text of 256 bits in hexadecimal.
///
/// # Errors
/// When the system has no randomness.
pub fn random_secret() -> Result<String> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system has no randomness"))?;
    Ok(hex::encode(bytes))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn make_ca() -> Result<Vec<u8>> {
    let key = KeyPair::generate().context("make a key")?;
    let mut parameters = CertificateParams::new(Vec::new()).context("CA")?;
    parameters.distinguished_name = named("Drover CA");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = parameters.self_signed(&key).context("sign the CA")?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()).into_bytes())
}

fn make_signing() -> Result<Vec<u8>> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("the system has no randomness"))?;
    Ok(document.as_ref().to_vec())
}

fn keep(file: &Path, make: fn() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    key_file::keep(file, || make().map_err(io::Error::other)).with_context(|| format!("keep {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let first = Keys::open(folder.path()).unwrap();
        let second = Keys::open(folder.path()).unwrap();
        assert_eq!(first.ca_fingerprint().unwrap(), second.ca_fingerprint().unwrap());
        assert_eq!(first.signing_key(), second.signing_key());
        assert!(first.server_config(certificate_names("drover.example")).is_ok());
        for name in ["ca.pem", "signing.pk8"] {
            let mode = std::fs::metadata(folder.path().join("keys").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name}");
        }
    }
}
