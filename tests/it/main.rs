//! Tests across areas.

mod access;
mod golden;
mod identity;
mod schema;
mod statements;
