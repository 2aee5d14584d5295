//! Passwords: argon2id, off the threads that serve requests, a few at a time.
//!
//! Invariant: checking costs the same whether or not there is a password to check against.

use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use drover_kernel::{Error, Result};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::secret;

/// Characters that a password has at least and at most.
const CHARACTERS_MIN: usize = 8;
const CHARACTERS_MAX: usize = 1024;

/// Each takes 19 MiB and a core for some tens of milliseconds.
static LANES: Semaphore = Semaphore::const_new(4);

/// How long a request waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Stands in where there is no password: nothing fits it, at the usual cost.
const NOTHING_FITS: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Checks the length of a future password.
///
/// # Errors
/// Names `field`.
pub(crate) fn check_length(field: &str, password: &str) -> Result<()> {
    let characters = password.chars().take(CHARACTERS_MAX + 1).count();
    if (CHARACTERS_MIN..=CHARACTERS_MAX).contains(&characters) {
        return Ok(());
    }
    Err(Error::invalid(field, format!("must have {CHARACTERS_MIN} to {CHARACTERS_MAX} characters")))
}

/// What is stored of a password.
pub(crate) async fn hash(password: String) -> Result<String> {
    in_lane(move || {
        let salt = SaltString::encode_b64(&secret::salt()?).map_err(Error::internal)?;
        Ok(Argon2::default().hash_password(password.as_bytes(), &salt).map_err(Error::internal)?.to_string())
    })
    .await
}

/// Whether a password fits what is stored; nothing fits where nothing is stored.
pub(crate) async fn fits(password: String, stored: Option<String>) -> Result<bool> {
    // Longer than any password can be: wrong, and not worth hashing.
    if password.len() > CHARACTERS_MAX * 4 {
        return Ok(false);
    }
    in_lane(move || {
        let stored = stored.as_deref().unwrap_or(NOTHING_FITS);
        let parsed = PasswordHash::new(stored).map_err(Error::internal)?;
        Ok(Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok())
    })
    .await
}

async fn lane() -> Result<SemaphorePermit<'static>> {
    match tokio::time::timeout(WAIT_MAX, LANES.acquire()).await {
        Ok(permit) => permit.map_err(Error::internal),
        Err(_) => Err(Error::Unavailable("too many sign-ins at once, try again".to_owned())),
    }
}

async fn in_lane<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let permit = lane().await?;
    tokio::task::spawn_blocking(move || {
        // Held here, so that a request that is given up does not make room before its work is over.
        let _permit = permit;
        work()
    })
    .await
    .map_err(Error::internal)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        for (password, fine) in
            [("", false), ("1234567", false), ("12345678", true), ("pässwörd", true), (" 234567 ", true)]
        {
            assert_eq!(check_length("password", password).is_ok(), fine, "{password}");
        }
        assert!(check_length("password", &"x".repeat(1024)).is_ok());
        assert!(check_length("password", &"x".repeat(1025)).is_err());
    }

    #[tokio::test]
    async fn only_the_same_password_fits() {
        let stored = hash("correct horse".to_owned()).await.unwrap();
        assert!(stored.starts_with("$argon2id$"));
        assert!(fits("correct horse".to_owned(), Some(stored.clone())).await.unwrap());
        assert!(!fits("correct horse ".to_owned(), Some(stored)).await.unwrap());
        assert!(!fits(String::new(), None).await.unwrap());
    }
}
