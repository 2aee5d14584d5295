//! What the database knows of an agent's presence: signs of life, and that it has gone.
//!
//! Invariant: that an agent has gone is noted however long the database is away, unless it is back by then.

use std::collections::BTreeSet;
use std::time::Duration;

use drover_kernel::{Audit, Kernel, Result};
use drover_shared::limits::HEARTBEAT_DEADLINE_MS;
use drover_shared::words::ExecutionState as State;
use tokio::time::Instant;

use super::hub::Session;
use super::store;
use crate::engine::{self, Engine};
use crate::executions::store::Sendable;

/// Pause before it is noted again that an agent has gone.
const GONE_AGAIN: Duration = Duration::from_secs(2);

/// When a peer that was last heard at this moment counts as gone.
pub(super) fn gone_at(heard: Instant) -> Instant {
    heard + Duration::from_millis(HEARTBEAT_DEADLINE_MS)
}

/// Notes that an agent was heard, or is no longer there.
pub(super) async fn note_seen(kernel: &Kernel, session: &Session, connected: bool, skew_ms: Option<i64>) -> Result<()> {
    let mut tx = kernel.work().begin(session.organisation_id).await?;
    store::seen(&mut tx, &session.agent_id, session.epoch, connected, skew_ms).await?;
    tx.finish(Audit::none("a sign of life")).await
}

/// Says in the output of every task that was at work on a host when it was restarted that it was: whatever session is the first
/// that gets so far. What became of it its agent says.
pub(super) fn tell_of_restart(kernel: &Kernel, session: &Session, out: &[Sendable]) {
    let was_at_work = |one: &&Sendable| one.state == State::Running && session.was_restarted_since(one.dispatched_at);
    let tasks: BTreeSet<i64> = out.iter().filter(was_at_work).map(|execution| execution.task_id).collect();
    for task_id in tasks {
        let text = format!("{}: the host was restarted meanwhile", session.host_name);
        engine::say_and_wake(kernel, task_id, text);
    }
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

#[cfg(test)]
mod tests {
    use drover_shared::limits::HEARTBEAT_MS;

    use super::*;

    #[test]
    fn a_silent_peer_counts_as_gone_when_the_documents_say() {
        let said = include_str!("../../../../docs/deploying.md");
        let heard = Instant::now();
        let silence = gone_at(heard).duration_since(heard).as_secs();
        assert!(said.contains(&format!("nothing came for {silence} s counts as gone")));
        assert!(said.contains(&format!("a sign of life every {} s", HEARTBEAT_MS / 1000)));
        // What was said last may have been said just before, or was due.
        assert!(said.contains(&format!("{} to {silence} s after it fell silent", silence - HEARTBEAT_MS / 1000)));
    }
}
