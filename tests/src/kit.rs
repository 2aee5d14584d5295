//! What the server under test is put together from.

use std::sync::Arc;

use drover_identity::IdentityAuthority;
use drover_kernel::db::Db;
use drover_kernel::{Clock, Kernel, KernelBuilder, Routes, Settings};

/// Puts the areas together: the one place that knows which there are.
#[must_use]
pub fn assemble(db: Db, clock: Clock, settings: Settings) -> (Kernel, Routes) {
    let routes = drover_identity::routes().merge(drover_inventory::routes());
    let resources = drover_identity::resources().merge(drover_inventory::resources());
    let kernel = KernelBuilder::new(db, clock, settings, Arc::new(IdentityAuthority), resources).build();
    (kernel, routes)
}
