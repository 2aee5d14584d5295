//! The link to agents: their listener, enrolment, sessions, and what travels through them.
//!
//! Invariants: a session belongs to one enrolled agent that has proved its key; a host has one session at a time, and
//! the epoch in the database tells the present one from all before; what a session takes in is durable before it is
//! acknowledged.

mod acknowledging;
mod admission;
pub(crate) mod asking;
pub mod enrol;
mod holding_back;
pub mod hub;
pub mod keys;
mod listener;
mod presence;
mod session;
mod store;
mod transfer;

pub use enrol::create_join_token;
pub use listener::{CONNECTIONS_MAX, Patience, bind, serve};
pub use session::{Wire, converse};
pub(crate) use store::is_newest;

use drover_kernel::jobs::Work;
use drover_kernel::{Audit, DEFAULT_ORGANISATION, Result, Tx};

/// After a restore: nobody is connected, and what let agents join then lets nobody join any more, since it may have been
/// used up since.
pub(crate) async fn start_anew(tx: &mut Tx) -> Result<()> {
    store::disconnect_all(tx).await?;
    store::forget_join_tokens(tx).await
}

/// At the start of a server: nobody is connected to it yet.
///
/// # Errors
/// When the database is not available.
pub async fn forget_connections(work: &Work) -> Result<()> {
    let mut tx = work.begin(DEFAULT_ORGANISATION).await?;
    store::disconnect_all(&mut tx).await?;
    tx.finish(Audit::none("the server starts")).await
}
