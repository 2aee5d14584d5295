//! Tests across areas.

mod access;
mod archives;
mod configuration;
mod credentials;
mod deploys;
mod edge;
mod golden;
mod identity;
mod instances;
mod inventory;
mod locks;
mod operations;
mod probes;
mod releases;
mod schedules;
mod schema;
mod scripts;
mod settings;
mod sources;
mod statements;
mod stories;
mod strangers;
mod tasks;
mod templates;
