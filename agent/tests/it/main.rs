//! The agent's tests with real processes, in one binary.

mod bench;
mod hooks;
mod kill;
mod releases;
mod session;
mod spool;
