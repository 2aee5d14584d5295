//! The link to agents: their listener, enrolment, sessions, and what travels through them.
//!
//! Invariants: a session belongs to one enrolled agent that has proved its key; a host has one session at a time, and
//! the epoch in the database tells the present one from all before; what a session takes in is durable before it is
//! acknowledged.

pub mod enrol;
pub mod hub;
pub mod keys;
mod listener;
mod session;
mod store;
mod transfer;

pub use enrol::create_join_token;
pub use listener::{bind, serve};
pub use store::forget_connections;
