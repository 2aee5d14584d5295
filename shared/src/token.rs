//! Join tokens: how an agent finds and trusts its server the first time.
//!
//! A token is `drover-join-1.` and the base64url text of a JSON object with the address to dial, the SHA-256 of the
//! CA certificate in DER, and a secret. The fingerprint makes enrolment safe without a public CA; the secret is
//! what the server checks, and it keeps only its hash.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

const PREFIX: &str = "drover-join-1.";

/// The parts of a join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Address of the server's agent listener, `wss://HOST:PORT`.
    pub url: String,
    /// SHA-256 of the CA certificate in DER.
    pub ca_fingerprint: Digest,
    /// 256 random bits in hexadecimal.
    pub secret: String,
}

impl JoinToken {
    /// The text that people pass on.
    #[must_use]
    pub fn encode(&self) -> String {
        format!("{PREFIX}{}", BASE64.encode(crate::order::canonical(self)))
    }

    /// Reads the text.
    ///
    /// # Errors
    /// A sentence for people when it is no join token.
    pub fn decode(text: &str) -> Result<Self, String> {
        let body = text.trim().strip_prefix(PREFIX).ok_or("a join token begins with `drover-join-1.`")?;
        let bytes = BASE64.decode(body).map_err(|_| "the join token is cut off or damaged".to_owned())?;
        serde_json::from_slice(&bytes).map_err(|_| "the join token is cut off or damaged".to_owned())
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken")
            .field("url", &self.url)
            .field("ca_fingerprint", &self.ca_fingerprint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_copying_and_nothing_else() {
        let token = JoinToken {
            url: "wss://127.0.0.1:8441".to_owned(),
            ca_fingerprint: Digest::of(b"ca"),
            secret: "s".to_owned(),
        };
        let text = token.encode();
        assert_eq!(JoinToken::decode(&format!(" {text}\n")), Ok(token));
        assert!(JoinToken::decode(&text[..text.len() - 9]).is_err());
        assert!(JoinToken::decode("hello").is_err());
    }
}
