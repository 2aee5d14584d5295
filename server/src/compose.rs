//! Puts the server together: every area's routes, kinds of objects, background work and parts.
//!
//! Nothing is decided here; what an area needs it gets as a value.

pub mod backup;
pub mod config;
pub mod gc;
pub mod keeping;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use drover_automation::archives::Archives;
use drover_automation::artifacts::ArtifactStore;
use drover_automation::channel::Viewers;
use drover_automation::engine::Engine;
use drover_automation::link::keys::Keys;
use drover_automation::logs::{LogStore, Options};
use drover_automation::source::{Limits, Sources};
use drover_identity::IdentityAuthority;
use drover_kernel::db::Db;
use drover_kernel::http::{ReadyCheck, Service, service};
use drover_kernel::jobs::Jobs;
use drover_kernel::resources::Resources;
use drover_kernel::room::Room;
use drover_kernel::{Clock, Kernel, KernelBuilder, Routes, Sealer, Settings};

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Every route of the server.
#[must_use]
pub fn routes() -> Routes {
    Routes::tagged("drover")
        .merge(drover_identity::routes())
        .merge(drover_inventory::routes())
        .merge(drover_automation::routes())
        .merge(drover_requests::routes())
        .merge(drover_edge::routes())
}

/// Every kind of object that rights are spoken about.
#[must_use]
pub fn resources() -> Resources {
    drover_identity::resources().merge(drover_inventory::resources()).merge(drover_automation::resources())
}

/// Every background handler.
#[must_use]
pub fn jobs() -> Jobs {
    drover_automation::jobs()
}

/// A kernel without the engine: enough for the command line's work on the database.
///
/// # Errors
/// When the keys under the data directory cannot be used.
pub fn bare_kernel(db: Db, clock: Clock, settings: Settings, data_directory: &Path) -> Result<Kernel> {
    Ok(builder(db, clock, settings, data_directory)?.build())
}

fn builder(db: Db, clock: Clock, settings: Settings, data_directory: &Path) -> Result<KernelBuilder> {
    let sealer = Sealer::load(data_directory, settings.secret_key.as_ref()).context("keys of stored secrets")?;
    Ok(KernelBuilder::new(db, clock, settings, Arc::new(IdentityAuthority), resources(), sealer))
}

/// The whole kernel, with its stores under the data directory.
///
/// # Errors
/// When a folder cannot be used, or another server has it.
pub fn kernel(db: Db, clock: Clock, settings: Settings, data_directory: &Path) -> Result<Kernel> {
    let keys = Keys::open(data_directory)?;
    let logs = LogStore::open(&data_directory.join("logs"), Options::default()).context("output")?;
    let room = Arc::new(Room::new(data_directory, settings.disk_reserve_bytes));
    let artifacts = ArtifactStore::open(&data_directory.join("artifacts")).context("artifacts")?.within(room.clone());
    let sources =
        Sources::open(&data_directory.join("sources"), artifacts.clone(), Limits::default()).context("sources")?;
    let archives = Archives::open(&data_directory.join("uploads")).context("uploads")?;
    Ok(builder(db, clock, settings, data_directory)?
        .part(room)
        .part(Arc::new(Engine::new(logs, artifacts, sources, keys)))
        .part(Arc::new(archives))
        .part(Arc::new(Viewers::default()))
        .build())
}

/// The HTTP service of a kernel.
#[must_use]
pub fn http(kernel: &Kernel) -> Service {
    service(kernel, &routes(), VERSION, ready_checks(kernel))
}

/// What has to be well, besides the database, for a server to be ready.
#[must_use]
pub fn ready_checks(kernel: &Kernel) -> Vec<ReadyCheck> {
    let owner = kernel.clone();
    let disk = ReadyCheck::of("the disk of the data directory", move || {
        let room = owner.part::<Room>();
        async move { room.check().await }
    });
    let owner = kernel.clone();
    let output = ReadyCheck::of("the disk of the output", move || {
        let engine = owner.part::<Engine>();
        async move { if engine.logs.is_full() { Err("the disk that holds the output is full".to_owned()) } else { Ok(()) } }
    });
    let owner = kernel.clone();
    let sweep = ReadyCheck::of("the engine", move || {
        let turns = owner.part::<Engine>().check_sweep(owner.clock().now());
        async move { turns }
    });
    vec![disk, output, sweep]
}
