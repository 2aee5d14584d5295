//! The answer to who calls and what they may do.
//!
//! Invariants: two statements tell who a caller is, one tells their rights on any number of resources; nothing is
//! written; a disabled user is nobody.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use drover_kernel::call::{Authority, CSRF_HEADER, Caller, Credential};
use drover_kernel::db::Read;
use drover_kernel::{Error, Result, Time, args, row, sql};

use crate::{rights, secret};

/// The kernel's authority: reads the tables of this area.
#[derive(Debug, Clone, Copy, Default)]
pub struct IdentityAuthority;

#[async_trait]
impl Authority for IdentityAuthority {
    async fn authenticate(&self, read: &mut Read, credential: &Credential, now: Time) -> Result<Option<Caller>> {
        let (value, session_needed) = match credential {
            Credential::Token(value) => (value, false),
            Credential::Cookie { value, .. } => (value, true),
        };
        let Some(found) = find_credential(read, value, now).await? else { return Ok(None) };
        if session_needed && found.session_id.is_none() {
            return Ok(None);
        }
        if let Credential::Cookie { csrf, unsafe_method: true, .. } = credential {
            let stored = found.csrf_hash.as_deref().unwrap_or_default();
            if !csrf.as_deref().is_some_and(|csrf| secret::fits(csrf, stored)) {
                return Err(Error::Forbidden(format!(
                    "a request with the session cookie that changes something needs the header {CSRF_HEADER} with the \
                     session's value"
                )));
            }
        }
        let session_id = found.session_id;
        let user = UserOfCaller {
            id: found.id,
            organisation_id: found.organisation_id,
            username: found.username,
            administrator: found.administrator,
        };
        complete(read, user, session_id).await.map(Some)
    }

    async fn rights(&self, read: &mut Read, caller: &Caller, kind: &str, id: i64) -> Result<BTreeSet<String>> {
        Ok(rights_on_many(read, caller, kind, &[id]).await?.remove(&id).unwrap_or_default())
    }

    async fn rights_on_all(
        &self,
        read: &mut Read,
        caller: &Caller,
        kind: &str,
        ids: &[i64],
    ) -> Result<BTreeSet<String>> {
        if caller.administrator {
            return Ok(rights::every(kind));
        }
        let held = rights_on_many(read, caller, kind, ids).await?.into_values();
        Ok(held.reduce(|common, one| common.intersection(&one).cloned().collect()).unwrap_or_default())
    }
}

row! {
    struct FoundCredential {
        id: i64,
        organisation_id: i64,
        username: String,
        administrator: bool,
        session_id: Option<i64>,
        csrf_hash: Option<String>,
    }
}

async fn find_credential(read: &mut Read, value: &str, now: Time) -> Result<Option<FoundCredential>> {
    let sql = sql!(
        "SELECT u.id, u.organisation_id, u.username, u.administrator, s.id AS session_id, s.csrf_hash \
         FROM sessions s JOIN users u ON u.id = s.user_id \
         WHERE s.token_hash = $1 AND s.expires_at > $2 AND u.status = 'enabled' \
         UNION ALL \
         SELECT u.id, u.organisation_id, u.username, u.administrator, CAST(NULL AS BIGINT) AS session_id, \
         CAST(NULL AS TEXT) AS csrf_hash \
         FROM auth_tokens t JOIN users u ON u.id = t.user_id \
         WHERE t.token_hash = $1 AND u.status = 'enabled'"
    );
    Ok(read.opt(sql, args![secret::hash(value), now]).await?)
}

row! {
    struct UserOfCaller {
        id: i64,
        organisation_id: i64,
        username: String,
        administrator: bool,
    }
}

row! {
    struct Held {
        role_id: Option<i64>,
        module: Option<String>,
        right_name: Option<String>,
    }
}

/// Adds roles and rights on modules to what is known of a user.
async fn complete(read: &mut Read, user: UserOfCaller, session_id: Option<i64>) -> Result<Caller> {
    let sql = sql!(
        "SELECT ru.role_id AS role_id, m.module AS module, m.right_name AS right_name FROM role_users ru \
         LEFT JOIN module_rights m ON m.subject_type = 'role' AND m.subject_id = ru.role_id WHERE ru.user_id = $1 \
         UNION ALL \
         SELECT CAST(NULL AS BIGINT) AS role_id, module, right_name FROM module_rights \
         WHERE subject_type = 'user' AND subject_id = $1"
    );
    let held: Vec<Held> = read.all(sql, args![user.id]).await?;
    let mut roles = BTreeSet::new();
    let mut module_rights = BTreeSet::new();
    for row in held {
        roles.extend(row.role_id);
        if let (Some(module), Some(right)) = (row.module, row.right_name) {
            module_rights.insert((module, right));
        }
    }
    Ok(Caller {
        user_id: user.id,
        username: user.username,
        organisation_id: user.organisation_id,
        administrator: user.administrator,
        role_ids: roles.into_iter().collect(),
        module_rights: rights::effective(&module_rights),
        session_id,
    })
}

/// What a user of the organisation would be as a caller, for answers about the rights of others. None when there is no
/// such user.
///
/// # Errors
/// When the database is not available.
pub async fn caller_of(read: &mut Read, organisation_id: i64, user_id: i64) -> Result<Option<Caller>> {
    let sql =
        sql!("SELECT id, organisation_id, username, administrator FROM users WHERE organisation_id = $1 AND id = $2");
    match read.opt::<UserOfCaller>(sql, args![organisation_id, user_id]).await? {
        Some(user) => complete(read, user, None).await.map(Some),
        None => Ok(None),
    }
}

row! {
    struct Granted {
        resource_id: i64,
        right_name: String,
    }
}

/// Effective rights of a caller on several resources of one kind, `application` or `host`; every id is a key.
///
/// # Errors
/// When the kind carries no rights, or the database is not available.
pub async fn rights_on_many(
    read: &mut Read,
    caller: &Caller,
    kind: &str,
    ids: &[i64],
) -> Result<BTreeMap<i64, BTreeSet<String>>> {
    if rights::of_kind(kind).is_none() {
        return Err(Error::internal(format!("there are no rights on a {kind}")));
    }
    if caller.administrator {
        return Ok(ids.iter().map(|id| (*id, rights::every(kind))).collect());
    }
    let implied = rights::implied(kind, &caller.module_rights);
    let mut found: BTreeMap<i64, BTreeSet<String>> = ids.iter().map(|id| (*id, implied.clone())).collect();
    let sql = sql!(
        "SELECT resource_id, right_name FROM resource_rights \
         WHERE organisation_id = $1 AND resource_type = $2 AND resource_id IN ($3) \
         AND ((subject_type = 'user' AND subject_id = $4) OR (subject_type = 'role' AND subject_id IN ($5)))"
    );
    let arguments = args![caller.organisation_id, kind, ids.to_vec(), caller.user_id, caller.role_ids.clone()];
    for row in read.all::<Granted>(sql, arguments).await? {
        found.entry(row.resource_id).or_default().insert(row.right_name);
    }
    Ok(found)
}
