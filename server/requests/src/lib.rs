//! Resource requests, tickets and maintenance windows.
//!
//! The area has its place and its direction already: it may call identity and inventory, and nothing calls it.

use drover_kernel::Routes;

/// Routes of this area.
#[must_use]
pub fn routes() -> Routes {
    Routes::tagged("resource-requests")
}
