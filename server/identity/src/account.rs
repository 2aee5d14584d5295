//! What users do with their own account: read it with all it may do, change its password.
//!
//! Invariant: a password is changed by who knows the present one, or by an administrator for somebody else; either way
//! the other sessions of the user end.

use std::collections::BTreeMap;

use drover_kernel::call::{Caller, SelfOrAdministrator, SignedIn};
use drover_kernel::{Audit, Body, Call, Error, Message, Path, Reply, Result, Routes, args, sql};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::module_grants::ModuleGrantOut;
use crate::roles::{RoleOut, roles_of};
use crate::throttle::Attempt;
use crate::users::{self, UserOut};
use crate::{password, rights};

pub(crate) fn routes() -> Routes {
    Routes::tagged("users")
        .get("/users/me/", "user-current", "Read the calling user, with roles and module rights.", current)
        .post("/users/{id}/actions/change-password/", "user-change-password", "Change one's password.", change_password)
}

#[derive(Serialize, JsonSchema)]
struct CurrentUserOut {
    #[serde(flatten)]
    user: UserOut,
    /// Roles held.
    roles: Vec<RoleOut>,
    /// Effective rights on every module, direct ones and those through roles together.
    permissions: Vec<ModuleGrantOut>,
}

async fn current(call: Call<SignedIn>) -> Result<Reply<CurrentUserOut>> {
    let caller = call.caller()?;
    let mut read = call.read().await?;
    let user = users::load(&mut read, caller.organisation_id, caller.user_id).await?;
    let roles = roles_of(&mut read, caller.user_id).await?;
    Ok(Reply::new(CurrentUserOut { user: user.into(), roles, permissions: effective_grants(caller) }))
}

fn effective_grants(caller: &Caller) -> Vec<ModuleGrantOut> {
    let flags = |module: &'static rights::Module| -> BTreeMap<String, bool> {
        module
            .rights
            .iter()
            .map(|right| {
                let (of, name) = right.same_as.unwrap_or((module.name, right.name));
                (right.name.to_owned(), caller.has_module_right(of, name))
            })
            .collect()
    };
    rights::MODULES.iter().map(|module| ModuleGrantOut::new(module.name, flags(module))).collect()
}

#[derive(Deserialize, JsonSchema)]
struct PasswordChange {
    /// Present password; an administrator who sets somebody else's may leave it out.
    original_password: Option<String>,
    /// Future password: 8 to 1024 characters.
    new_password: String,
}

async fn change_password(
    call: Call<SelfOrAdministrator>,
    Path(id): Path<i64>,
    Body(body): Body<PasswordChange>,
) -> Result<Reply<Message>> {
    let caller = call.caller()?.clone();
    let user = users::load(&mut call.read().await?, caller.organisation_id, id).await?;
    password::check_length("new_password", &body.new_password)?;
    let mut attempt = None;
    match body.original_password {
        Some(original) => {
            // Whoever finds an open session must not guess faster than at the door.
            let counted = Attempt::new(&user.username, call.client().address);
            counted.begin(&call.kernel().work()).await?;
            if !password::fits(original, user.password_hash.clone()).await? {
                return Err(Error::Coded {
                    status: 400,
                    code: 300_001,
                    message: "the present password is wrong".to_owned(),
                    field: Some("original_password".to_owned()),
                });
            }
            attempt = Some(counted);
        }
        None if caller.user_id == id => return Err(Error::invalid("original_password", "is missing")),
        None => {}
    }
    let password_hash = password::hash(body.new_password).await?;
    let mut tx = call.begin().await?;
    let sql = sql!(
        "UPDATE users SET password_hash = $3 WHERE organisation_id = $1 AND id = $2 \
         AND COALESCE(password_hash, '') = $4"
    );
    let unchanged = user.password_hash.clone().unwrap_or_default();
    tx.run_one(sql, args![user.organisation_id, id, password_hash, unchanged]).await?;
    if let Some(attempt) = attempt {
        attempt.succeeded(&mut tx).await?;
    }
    // Of another user's sessions none has this id.
    let kept = caller.session_id.unwrap_or(0);
    let ended = tx.run(sql!("DELETE FROM sessions WHERE user_id = $1 AND id <> $2"), args![id, kept]).await?;
    let audit = Audit::of(users::entry("change_password", &user).detail(format!("ended {ended} other sessions")));
    tx.commit(audit, Message::success()).await
}
