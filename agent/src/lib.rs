//! The agent: keeps one connection to its server and runs what the server signed.
//!
//! The agent process owns the connection and the artifact cache; each execution belongs to a supervisor process of
//! its own ([`supervise`]), and the two meet in the spool ([`spool`]) alone. Invariant: whatever is killed, the spool
//! tells whether a hook may have run, and no hook is started twice for one attempt.

pub mod accounts;
pub mod clock;
pub mod durable;
pub mod identity;
pub mod instances;
pub mod log;
pub mod release;
pub mod run;
pub mod session;
pub mod spool;
pub mod supervise;
pub mod tls;

/// The error in words; a full disk is called by its name.
#[must_use]
pub fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        std::io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_owned(),
        std::io::ErrorKind::FileTooLarge => "the file would be larger than this system allows".to_owned(),
        _ => error.to_string(),
    }
}
