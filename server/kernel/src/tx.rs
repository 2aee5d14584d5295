//! Transactions: everything that one request or one piece of work writes.
//!
//! Invariants: beginning consumes the call, so a request has at most one; finishing takes an audit; dropped unfinished
//! it leaves nothing behind. What was asked with an idempotency key is remembered in the same transaction.

use serde::Serialize;

use crate::audit::Audit;
use crate::clock::Time;
use crate::db::Write;
use crate::idempotency::{self, Idempotency};
use crate::kernel::Kernel;
use crate::routes::Reply;
use crate::{Error, Result};

/// In whose name a transaction writes.
#[derive(Debug, Clone)]
pub enum Actor {
    /// A user.
    User {
        /// Id.
        id: i64,
        /// Login name.
        username: String,
    },
    /// Nobody who is signed in.
    Anonymous,
    /// Background work.
    System,
}

type AfterCommit = Box<dyn FnOnce(&Kernel) + Send>;

/// The write transaction of a request or of a piece of work. Dropped unfinished, it leaves nothing behind.
pub struct Tx {
    write: Write,
    kernel: Kernel,
    organisation_id: i64,
    actor: Actor,
    now: Time,
    idempotency: Option<Idempotency>,
    wake_queue: bool,
    after: Vec<AfterCommit>,
}

impl std::ops::Deref for Tx {
    type Target = Write;
    fn deref(&self) -> &Write {
        &self.write
    }
}

impl std::ops::DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Write {
        &mut self.write
    }
}

impl Tx {
    pub(crate) async fn begin_as(kernel: &Kernel, organisation_id: i64, actor: Actor) -> Result<Self> {
        Self::begin(kernel, organisation_id, actor, None).await
    }

    pub(crate) async fn begin(
        kernel: &Kernel,
        organisation_id: i64,
        actor: Actor,
        idempotency: Option<Idempotency>,
    ) -> Result<Self> {
        let write = kernel.db().write().await?;
        let now = kernel.clock().now();
        Ok(Self {
            write,
            kernel: kernel.clone(),
            organisation_id,
            actor,
            now,
            idempotency,
            wake_queue: false,
            after: Vec::new(),
        })
    }

    pub(crate) fn write(&mut self) -> &mut Write {
        &mut self.write
    }

    pub(crate) fn wakes_queue(&mut self) {
        self.wake_queue = true;
    }

    /// Organisation that everything written belongs to.
    pub fn organisation_id(&self) -> i64 {
        self.organisation_id
    }

    /// In whose name it is written.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// The acting user, if it is one.
    pub fn user_id(&self) -> Option<i64> {
        match &self.actor {
            Actor::User { id, .. } => Some(*id),
            Actor::Anonymous | Actor::System => None,
        }
    }

    /// When the transaction began; every time written by it is this one.
    pub fn now(&self) -> Time {
        self.now
    }

    /// The kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Runs a statement that must touch exactly one row.
    ///
    /// # Errors
    /// A conflict when it touches none: somebody else changed the row first.
    pub async fn run_one(&mut self, sql: crate::db::Sql, arguments: Vec<crate::db::Value>) -> Result<()> {
        match self.write.run(sql, arguments).await? {
            1 => Ok(()),
            0 => Err(Error::conflict("somebody else changed this at the same time, read it again")),
            count => Err(Error::internal(format!("a statement for one row touched {count}"))),
        }
    }

    /// Has `action` run right after the commit, and never without it. It must not block.
    pub fn after_commit(&mut self, action: impl FnOnce(&Kernel) + Send + 'static) {
        self.after.push(Box::new(action));
    }

    /// Commits with the audit, and gives the answer. A repeated request with the same idempotency key gets it again.
    ///
    /// # Errors
    /// When the database refuses; then nothing of the transaction stays.
    pub async fn commit<T: Serialize>(mut self, audit: Audit, answer: T) -> Result<Reply<T>> {
        if self.idempotency.is_some() {
            let text = serde_json::to_string(&answer).map_err(Error::internal)?;
            self.remember(Some(text)).await?;
        }
        self.finish(audit).await?;
        Ok(Reply::new(answer))
    }

    /// As [`commit`](Self::commit), for an answer with a secret in it: it is not kept, and a repeated request is told so.
    ///
    /// # Errors
    /// When the database refuses; then nothing of the transaction stays.
    pub async fn commit_secret<T: Serialize>(mut self, audit: Audit, answer: T) -> Result<Reply<T>> {
        self.remember(None).await?;
        self.finish(audit).await?;
        Ok(Reply::new(answer))
    }

    /// Commits with the audit, for work that answers nobody.
    ///
    /// # Errors
    /// When the database refuses; then nothing of the transaction stays.
    pub async fn finish(mut self, audit: Audit) -> Result<()> {
        audit.write(&mut self).await?;
        self.write.commit().await?;
        if self.wake_queue {
            self.kernel.queue_notify().notify_one();
        }
        for action in self.after {
            action(&self.kernel);
        }
        Ok(())
    }

    async fn remember(&mut self, answer: Option<String>) -> Result<()> {
        let Some(idempotency) = self.idempotency.take() else { return Ok(()) };
        idempotency::keep(&mut self.write, self.organisation_id, idempotency, answer, self.now).await
    }
}
