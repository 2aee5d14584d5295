//! What stands beside the core: for now, the audit as administrators read it.
//!
//! Invariant: nothing here writes the audit; entries come with the transactions of what they tell.

mod audit;

use drover_kernel::Routes;

/// Every route of this area.
#[must_use]
pub fn routes() -> Routes {
    audit::routes()
}
