//! What the server under test is put together from: the server's own composition.

use std::path::Path;

use drover_kernel::db::Db;
use drover_kernel::{Clock, Kernel, Routes, Settings};

/// Puts the whole server together, with its stores under `data_directory`.
///
/// # Panics
/// When a store cannot be opened.
#[must_use]
pub fn assemble(db: Db, clock: Clock, settings: Settings, data_directory: &Path) -> (Kernel, Routes) {
    let kernel = drover_server::kernel(db, clock, settings, data_directory).expect("the server's stores");
    (kernel, drover_server::routes())
}
