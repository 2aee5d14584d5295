//! The audit log: what a transaction says about itself.
//!
//! Invariant: no transaction commits without an [`Audit`]; [`Audit::none`] says in words why there is nothing to say.
//! Entries are written in the transaction of the change and never change afterwards. They go only where an operator has
//! set a time for them. They hold no secret.

use crate::jobs::Work;
use crate::tx::{Actor, Tx};
use crate::{Result, Time, args, row, sql};

/// Entries that are read at a time.
const PAGE: i64 = 1_000;

drover_shared::words! {
    /// Which of the audit lists an entry shows up in.
    pub enum AuditList {
        /// No list of its own: users, roles, tokens, scripts, tasks.
        General = "general",
        /// Hosts.
        Host = "host",
        /// Applications.
        Application = "application",
        /// DNS.
        Dns = "dns",
        /// Rights on modules.
        ModuleRight = "module_right",
        /// Rights on single objects.
        ResourceRight = "resource_right",
    }
}

crate::word_column!(AuditList);

/// One entry.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    list: AuditList,
    action: String,
    object_type: String,
    object_id: Option<i64>,
    object_name: String,
    detail: String,
    right_name: Option<String>,
    target_type: Option<String>,
    target_name: Option<String>,
}

impl AuditEntry {
    /// An entry about an object: what was done (`add`, `update`, `approve`, …) to which kind of object of which name.
    pub fn new(
        list: AuditList,
        action: impl Into<String>,
        object_type: impl Into<String>,
        object_id: i64,
        object_name: impl Into<String>,
    ) -> Self {
        Self {
            list,
            action: action.into(),
            object_type: object_type.into(),
            object_id: Some(object_id),
            object_name: object_name.into(),
            detail: String::new(),
            right_name: None,
            target_type: None,
            target_name: None,
        }
    }

    /// What happened, for people, with the values before and after. Never a secret.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The right that was granted or withdrawn, and the user or role it was.
    #[must_use]
    pub fn right(mut self, right: &str, target_type: &str, target_name: &str) -> Self {
        self.right_name = Some(right.to_owned());
        self.target_type = Some(target_type.to_owned());
        self.target_name = Some(target_name.to_owned());
        self
    }
}

row! {
    /// An entry that was written long ago.
    pub struct OldEntry {
        pub id: i64,
        pub organisation_id: i64,
        pub created_at: Time,
    }
}

/// The oldest entries that were written before a time, as many as are wanted at most.
///
/// # Errors
/// When the database is not available.
pub async fn written_before(work: &Work, before: Time, most: usize) -> Result<Vec<OldEntry>> {
    let sql = sql!("SELECT id, organisation_id, created_at FROM audit_entries WHERE id > $1 ORDER BY id LIMIT $2");
    let (mut old, mut beyond) = (Vec::new(), i64::MIN);
    while old.len() < most {
        let mut page: Vec<OldEntry> = work.read().await?.all(sql.clone(), args![beyond, PAGE]).await?;
        let Some(last) = page.last() else { break };
        beyond = last.id;
        page.retain(|entry| entry.created_at < before);
        // What comes behind a page of younger ones is younger still.
        if page.is_empty() {
            break;
        }
        old.extend(page);
    }
    old.truncate(most);
    Ok(old)
}

/// Removes entries. Gives how many went.
///
/// # Errors
/// When the database is not available.
pub async fn remove(tx: &mut Tx, ids: &[i64]) -> Result<u64> {
    Ok(tx.run(sql!("DELETE FROM audit_entries WHERE id IN ($1)"), args![ids.to_vec()]).await?)
}

/// What a transaction says about itself.
#[derive(Debug)]
pub struct Audit(Vec<AuditEntry>);

impl Audit {
    /// One entry.
    #[must_use]
    pub fn of(entry: AuditEntry) -> Self {
        Self(vec![entry])
    }

    /// Several entries; a call that turned out to change nothing has none.
    #[must_use]
    pub fn all(entries: Vec<AuditEntry>) -> Self {
        Self(entries)
    }

    /// Nothing that a person did: `why` is for the reader of the code.
    #[must_use]
    pub fn none(why: &'static str) -> Self {
        let _ = why;
        Self(Vec::new())
    }

    pub(crate) async fn write(self, tx: &mut Tx) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (operator_id, operator) = match tx.actor() {
            Actor::User { id, username } => (Some(*id), username.clone()),
            Actor::Anonymous => (None, "anonymous".to_owned()),
            Actor::System => (None, "system".to_owned()),
        };
        let (organisation_id, now, request_id) = (tx.organisation_id(), tx.now(), crate::trace::current_request_id());
        let rows = self
            .0
            .into_iter()
            .map(|entry| {
                args![
                    organisation_id,
                    entry.list,
                    entry.action,
                    entry.object_type,
                    entry.object_id,
                    entry.object_name,
                    entry.detail,
                    entry.right_name,
                    entry.target_type,
                    entry.target_name,
                    operator_id,
                    operator.as_str(),
                    now,
                    request_id.clone()
                ]
            })
            .collect();
        let sql = sql!(
            "INSERT INTO audit_entries (organisation_id, list, action, object_type, object_id, object_name, detail, \
             right_name, target_type, target_name, operator_id, operator, created_at, request_id) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
        );
        tx.write().insert_many(sql, rows).await?;
        Ok(())
    }
}
