//! Executions: one entry of a plan on one host.
//!
//! Invariants: an execution's state moves only by `rules`; it is sent in one session of its host's agent, marked as
//! sent before it is, and answered for by that agent from then on.

pub mod rules;
pub mod store;
