//! Which certificates are trusted.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::failure::{Failure, Result};

/// Reads the certificates of a PEM file.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |why: String| Failure::usage(format!("--ca {}: {why}", file.display()));
    let pem = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong("no certificate in it".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// TLS for websockets, trusting the given certificates, or the public ones without any.
pub(crate) fn client(certificates: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    if certificates.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|error| Failure::usage(format!("--ca: {error}")))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::failed(format!("no TLS: {error}")))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
