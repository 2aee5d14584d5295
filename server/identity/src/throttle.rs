//! Slows down those who guess passwords: by login name and by address.
//!
//! Invariants: an attempt counts as failed until it has succeeded, so that attempts at the same time count as well;
//! one made while waiting does not count and prolongs nothing.

use std::net::IpAddr;
use std::time::Duration;

use drover_kernel::jobs::Work;
use drover_kernel::{Audit, DEFAULT_ORGANISATION, Error, Result, Tx, args, sql};

/// Failures in a row that cost nothing yet.
const FREE: i64 = 5;
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// Failures that nobody added to for this long are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);

/// Whose attempts are counted together.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    subjects: Vec<String>,
}

impl Attempt {
    /// An attempt with a login name from an address. Addresses come first, so that rows are always locked in one order.
    pub(crate) fn new(username: &str, address: Option<IpAddr>) -> Self {
        // A proxy on this machine speaks for everybody, so its address says nothing about anybody.
        let address = address.map(|address| address.to_canonical()).filter(|address| !address.is_loopback());
        let mut subjects: Vec<String> = address.map(network).into_iter().collect();
        subjects.push(format!("user {}", username.to_lowercase()));
        Self { subjects }
    }

    /// Counts the attempt as failed for the time being.
    ///
    /// # Errors
    /// [`Error::Limited`] when the last failures ask for a wait that is not over.
    pub(crate) async fn begin(&self, work: &Work) -> Result<()> {
        let mut tx = work.begin(DEFAULT_ORGANISATION).await?;
        let now = tx.now();
        let long_ago = now.millis() - millis(FORGET_AFTER);
        tx.run(
            sql!("DELETE FROM sign_in_failures WHERE organisation_id = $1 AND last_at < $2 AND blocked_until < $2"),
            args![DEFAULT_ORGANISATION, long_ago],
        )
        .await?;
        for subject in &self.subjects {
            let sql = sql!(
                "INSERT INTO sign_in_failures (organisation_id, subject, failures, blocked_until, last_at) \
                 VALUES ($1, $2, 1, 0, $3) ON CONFLICT (organisation_id, subject) DO UPDATE \
                 SET failures = sign_in_failures.failures + 1, last_at = excluded.last_at \
                 WHERE sign_in_failures.blocked_until <= excluded.last_at RETURNING failures"
            );
            let counted = tx.opt::<(i64,)>(sql, args![DEFAULT_ORGANISATION, subject, now]).await?;
            let Some((failures,)) = counted else {
                let sql =
                    sql!("SELECT blocked_until FROM sign_in_failures WHERE organisation_id = $1 AND subject = $2");
                let until: i64 = tx.value(sql, args![DEFAULT_ORGANISATION, subject]).await?;
                let milliseconds = u64::try_from(until - now.millis()).unwrap_or(0);
                return Err(Error::Limited { retry_seconds: milliseconds.div_ceil(1000).max(1) });
            };
            if let Some(wait) = wait_after(failures) {
                let sql =
                    sql!("UPDATE sign_in_failures SET blocked_until = $3 WHERE organisation_id = $1 AND subject = $2");
                tx.run_one(sql, args![DEFAULT_ORGANISATION, subject, now.after(wait)]).await?;
            }
        }
        tx.finish(Audit::none("attempts are not audited")).await
    }

    /// The attempt succeeded: the row of failures is over.
    pub(crate) async fn succeeded(&self, tx: &mut Tx) -> Result<()> {
        let sql = sql!("DELETE FROM sign_in_failures WHERE organisation_id = $1 AND subject IN ($2)");
        tx.run(sql, args![DEFAULT_ORGANISATION, self.subjects.clone()]).await?;
        Ok(())
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// What counts as one address: of IPv6 the network, since one customer has a whole one.
fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("address {address}"),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("address {a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

/// The wait after so many failures in a row.
fn wait_after(failures: i64) -> Option<Duration> {
    let doublings = u32::try_from(failures.checked_sub(FREE)?).ok()?;
    let seconds = 1_u64.checked_shl(doublings).filter(|seconds| *seconds < WAIT_MAX.as_secs());
    Some(seconds.map_or(WAIT_MAX, Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_quarter_of_an_hour() {
        for (failures, seconds) in
            [(1, None), (4, None), (5, Some(1)), (6, Some(2)), (14, Some(512)), (15, Some(900)), (900, Some(900))]
        {
            assert_eq!(wait_after(failures).map(|wait| wait.as_secs()), seconds, "{failures}");
        }
    }

    #[test]
    fn addresses_of_one_network_count_together() {
        for (address, expected) in [
            ("192.0.2.7", &["address 192.0.2.7", "user ann"][..]),
            ("::ffff:192.0.2.7", &["address 192.0.2.7", "user ann"]),
            ("2001:db8:1:2:3:4:5:6", &["address 2001:db8:1:2::/64", "user ann"]),
            ("127.0.0.1", &["user ann"]),
            ("::1", &["user ann"]),
        ] {
            assert_eq!(Attempt::new("Ann", Some(address.parse().unwrap())).subjects, expected);
        }
    }
}
