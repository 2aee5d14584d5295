//! Tests across areas.

mod access;
mod deploys;
mod edge;
mod golden;
mod identity;
mod inventory;
mod probes;
mod schema;
mod scripts;
mod settings;
mod statements;
mod stories;
mod tasks;
