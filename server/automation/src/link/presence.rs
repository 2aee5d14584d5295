//! What the database knows of an agent's presence: signs of life, and that it has gone.
//!
//! Invariant: that an agent has gone is noted however long the database is away, unless it is back by then.

use std::time::Duration;

use drover_kernel::{Audit, Kernel, Result};

use super::hub::Session;
use super::store;
use crate::engine::Engine;

/// Pause before it is noted again that an agent has gone.
const GONE_AGAIN: Duration = Duration::from_secs(2);

/// Notes that an agent was heard, or is no longer there.
pub(super) async fn note_seen(kernel: &Kernel, session: &Session, connected: bool, skew_ms: Option<i64>) -> Result<()> {
    let mut tx = kernel.work().begin(session.organisation_id).await?;
    store::seen(&mut tx, &session.agent_id, session.epoch, connected, skew_ms).await?;
    tx.finish(Audit::none("a sign of life")).await
}

/// Notes that an agent has gone as soon as the database takes it, unless it is back by then.
pub(super) async fn note_gone(kernel: &Kernel, session: &Session) {
    let stop = kernel.stopping();
    while let Err(error) = note_seen(kernel, session, false, None).await {
        tracing::warn!(host = session.host_name, %error, "cannot note that an agent has gone, trying again");
        tokio::select! {
            () = tokio::time::sleep(GONE_AGAIN) => {}
            () = stop.cancelled() => return,
        }
        if kernel.part::<Engine>().hub.find(session.host_id).is_some() {
            return;
        }
    }
}
