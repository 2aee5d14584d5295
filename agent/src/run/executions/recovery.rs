//! What an earlier agent left in the spool.
//!
//! Invariant: what the server may have been told of is held again, however little of it can be read; only an order that
//! nobody was told of is dropped.

use std::io;

use drover_shared::order::{Entry, Statement};
use drover_shared::secret::Secrets;

use super::super::fetching::artifacts;
use super::{Execution, Executions, Stage, length};
use crate::clock;
use crate::describe;
use crate::session::Session;
use crate::spool::{Accepted, Folder, Key, Standing};
use crate::supervise::lost::{self, Obstacle};

impl Executions {
    /// Reads the spool after a start of the agent.
    ///
    /// # Errors
    /// The spool cannot be read.
    pub(in crate::run) fn recover(&mut self, session: &mut Session) -> io::Result<()> {
        self.spool.remove_cgroups();
        for key in self.spool.list()? {
            let folder = self.spool.folder(&key);
            match read_order(&folder) {
                Ok(order) => self.recover_one(&key, folder, order, session),
                Err(error) if error.kind() == io::ErrorKind::InvalidData && never_told(&folder) => {
                    tracing::warn!(%key, %error, "an order that was never accepted is removed");
                    folder.remove()?;
                }
                Err(error) => self.hold_unreadable(&key, folder, &error, session),
            }
        }
        Ok(())
    }

    fn recover_one(
        &mut self,
        key: &Key,
        folder: Folder,
        (accepted, statement, entry): (Accepted, Statement, Entry),
        session: &mut Session,
    ) {
        let now = clock::now();
        let left = statement.timeout_ms.saturating_sub(accepted.elapsed_ms(&self.boot_id, now));
        let standing = folder.standing();
        let mut execution = Execution {
            order_bytes: length(&accepted.order),
            deadline_ms: now.monotonic_ms.saturating_add(left),
            timeout_ms: statement.timeout_ms,
            secrets: entry.secrets.is_empty().then(Secrets::default),
            artifacts: artifacts(&entry),
            ..unread(folder)
        };
        match standing {
            Ok(Standing::Finished(finished)) => {
                session.hold(key.clone(), finished.log_length, Some(*finished));
                self.all.insert(key.clone(), execution);
            }
            Ok(Standing::Running) => {
                tracing::info!(%key, "goes on under its supervisor");
                self.look_after(key, execution, session);
            }
            Ok(Standing::Waiting) => {
                session.hold(key.clone(), log_length(&execution.folder), None);
                if execution.secrets.is_none() {
                    session.needs_order(key);
                }
                execution.entry = Some(Box::new(entry));
                self.all.insert(key.clone(), execution);
                self.advance(key, session);
            }
            Ok(Standing::Lost(started)) => {
                session.hold(key.clone(), 0, None);
                execution.stage = Stage::Ending;
                let case = lost::Case { folder: execution.folder.clone(), started, boot_id: self.boot_id.clone() };
                self.all.insert(key.clone(), execution);
                self.settle_lost(key, case);
            }
            Err(error) => {
                tracing::error!(%key, %error, "the spool folder cannot be read, trying again");
                self.look_after(key, execution, session);
            }
        }
    }

    /// Holds an execution of which no more is known than that it was accepted.
    fn hold_unreadable(&mut self, key: &Key, folder: Folder, error: &io::Error, session: &mut Session) {
        tracing::error!(%key, %error, "the order in the spool cannot be read");
        let reason = format!("its order in the spool cannot be read: {}", describe(error));
        let obstacle = Some(Obstacle::before_all(reason));
        self.look_after(key, Execution { obstacle, ..unread(folder) }, session);
    }

    /// Has the sweep look after an execution whose supervisor lives, or may live.
    fn look_after(&mut self, key: &Key, mut execution: Execution, session: &mut Session) {
        session.hold(key.clone(), log_length(&execution.folder), None);
        execution.watch = self.watcher.add(key, &execution.folder);
        execution.stage = Stage::Running { own: false };
        // Who cancelled it may have ended before the supervisor was told.
        execution.untold = execution.folder.cancel().is_some();
        self.running += 1;
        self.all.insert(key.clone(), execution);
        self.examine(key, session);
    }
}

fn unread(folder: Folder) -> Execution {
    Execution {
        folder,
        order_bytes: 0,
        stage: Stage::Finished,
        deadline_ms: u64::MAX,
        timeout_ms: u64::MAX,
        entry: None,
        secrets: None,
        artifacts: Default::default(),
        log: None,
        watch: None,
        discard: false,
        obstacle: None,
        untold: false,
    }
}

fn read_order(folder: &Folder) -> io::Result<(Accepted, Statement, Entry)> {
    let accepted = folder.accepted()?;
    let (statement, entry) = accepted.open()?;
    Ok((accepted, statement, entry))
}

/// Whether nobody was told that a damaged order is accepted: it is durable before that, and started after it.
fn never_told(folder: &Folder) -> bool {
    folder.supervised().is_ok_and(|lives| !lives)
        && folder.started().is_ok_and(|started| started.is_none())
        && folder.status().is_ok_and(|status| status.is_none())
}

fn log_length(folder: &Folder) -> u64 {
    std::fs::metadata(folder.log()).map_or(0, |meta| meta.len())
}
