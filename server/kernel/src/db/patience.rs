//! A bound for every wait for PostgreSQL. Where the other end is gone without a word, the system gives a connection up only
//! after a quarter of an hour, and everything that waits for one turn would stand as long.
//!
//! Invariant: whoever waits longer gets an error, and a connection that does not answer is given to nobody again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use super::DbError;

/// Time for a connection to say that it is well, once there was one that did not.
const PING: Duration = Duration::from_secs(5);

/// How long is waited, and whether it ever was in vain.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    at_most: Duration,
    in_vain: Arc<AtomicBool>,
}

impl Patience {
    pub(super) fn new(at_most: Duration) -> Self {
        Self { at_most, in_vain: Arc::default() }
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// Its own, or [`DbError::Unavailable`]; then nobody knows whether the statement was carried out.
    pub(super) async fn wait<T, E: Into<DbError>>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, DbError> {
        match timeout(self.at_most, answer).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(_) => {
                self.in_vain.store(true, Ordering::Relaxed);
                Err(DbError::Unavailable(format!("no answer for {} ms", self.at_most.as_millis())))
            }
        }
    }

    /// Looks at a connection that goes back to the others. Asking each costs a round trip, so none is asked until one kept
    /// somebody waiting in vain.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn check(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        if self.in_vain.load(Ordering::Relaxed) {
            let answer = timeout(PING, connection.ping()).await;
            answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        }
        Ok(true)
    }
}
