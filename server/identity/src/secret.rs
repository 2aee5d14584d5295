//! Secret values: made at random, kept as hashes, compared in constant time.
//!
//! Invariant: the value itself exists only in the answer that hands it out and in the requests that show it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use drover_kernel::{Error, Result};
use drover_shared::Digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use subtle::ConstantTimeEq as _;

fn random<const BYTES: usize>() -> Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::internal("the machine has no random numbers"))?;
    Ok(bytes)
}

/// A token: 256 random bits as 64 hexadecimal digits.
pub(crate) fn token() -> Result<String> {
    random::<32>().map(hex::encode)
}

/// A first password that nobody chose: 144 random bits as 24 characters.
pub(crate) fn password() -> Result<String> {
    random::<18>().map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
}

/// A salt for a password's hash.
pub(crate) fn salt() -> Result<[u8; 16]> {
    random()
}

/// What is stored of a token. Random bits need no slow hash.
pub(crate) fn hash(token: &str) -> String {
    Digest::of(token.as_bytes()).to_string()
}

/// Whether a token is the one whose hash is stored.
pub(crate) fn fits(token: &str, stored_hash: &str) -> bool {
    hash(token).as_bytes().ct_eq(stored_hash.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_fit_their_hash_alone() {
        let (one, other) = (token().unwrap(), token().unwrap());
        assert_eq!((one.len(), password().unwrap().len()), (64, 24));
        assert_ne!(one, other);
        assert!(fits(&one, &hash(&one)));
        assert!(!fits(&other, &hash(&one)) && !fits("", &hash(&one)));
    }
}
