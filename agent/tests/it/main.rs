//! The agent's tests with real processes, in one binary.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bench;
mod bombs;
mod cancels;
mod delta;
mod fetching;
mod health;
mod hooks;
mod hostile;
mod instances;
mod kept;
mod kill;
mod lost;
mod orphans;
mod probes;
mod releases;
mod run;
mod secrets;
mod server;
mod session;
mod spool;
mod spool_size;
