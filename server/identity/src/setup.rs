//! What an operator does on the command line before anybody can sign in.
//!
//! Invariant: nothing here changes a user who exists.

use drover_kernel::jobs::Work;
use drover_kernel::{Audit, AuditEntry, AuditList, DEFAULT_ORGANISATION, Error, Result, args, sql};

use crate::users::{self, Fresh, UserStatus};
use crate::{password, secret, tokens};

/// Login name of the first administrator.
const FIRST: &str = "admin";

/// Makes the administrator `admin` when there is no user at all. Returns the password if it was made up here rather
/// than given.
///
/// # Errors
/// When the given password is too short or too long, or the database is not available.
pub async fn ensure_administrator(work: &Work, password: Option<String>) -> Result<Option<String>> {
    if let Some(password) = &password {
        password::check_length("password", password)?;
    }
    let count: i64 = work.read().await?.value(sql!("SELECT COUNT(*) FROM users"), args![]).await?;
    if count > 0 {
        return Ok(None);
    }
    let (chosen, made) = match password {
        Some(password) => (password, None),
        None => {
            let made = secret::password()?;
            (made.clone(), Some(made))
        }
    };
    let password_hash = password::hash(chosen).await?;
    let mut tx = work.begin(DEFAULT_ORGANISATION).await?;
    let fresh = Fresh {
        username: FIRST.to_owned(),
        name: "Administrator".to_owned(),
        email: String::new(),
        phone: String::new(),
        status: UserStatus::Enabled,
        administrator: true,
        password_hash: Some(password_hash),
    };
    let user = match users::insert(&mut tx, fresh).await {
        Ok(user) => user,
        // Another server starts at the same time, and was first.
        Err(Error::Conflict(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    tx.finish(Audit::of(users::entry("create", &user).detail("first administrator"))).await?;
    Ok(made)
}

/// Makes an API token of an enabled user and returns its value.
///
/// # Errors
/// Not found when there is no such user, a conflict when the user is disabled.
pub async fn create_token(work: &Work, username: &str, name: &str) -> Result<String> {
    let user = users::find_by_username(&mut work.read().await?, username).await?;
    let user = user.ok_or_else(|| Error::not_found("user"))?;
    if user.status == UserStatus::Disabled {
        return Err(Error::conflict("this user is disabled"));
    }
    let mut tx = work.begin(user.organisation_id).await?;
    let (id, value) = tokens::insert(&mut tx, user.id, name, "made on the command line").await?;
    let entry = AuditEntry::new(AuditList::General, "create", "auth_token", id, name);
    tx.finish(Audit::of(entry.detail(format!("of {}", user.username)))).await?;
    Ok(value)
}
