//! Signing in and out.
//!
//! Owns the sessions. Invariants: a wrong name and a wrong password cannot be told apart, by answer or by time; a
//! session has an end that nothing moves; a user has a bounded number of them.

use std::time::Duration;

use axum::http::header::SET_COOKIE;
use drover_kernel::call::{Public, SESSION_COOKIE, SignedIn};
use drover_kernel::fields::Name;
use drover_kernel::{Audit, Body, Call, Error, Message, Reply, Result, Routes, Settings, Tx, args, sql};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::throttle::Attempt;
use crate::users::{self, UserOut, UserRow, UserStatus};
use crate::{password, secret};

/// Name of the cookie from which scripts of the console take the value of the CSRF header.
pub(crate) const CSRF_COOKIE: &str = "drover_csrf";

/// How long a session lasts.
const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// Sessions of one user; the oldest makes room.
const SESSIONS_MAX: i64 = 50;

pub(crate) fn routes() -> Routes {
    Routes::tagged("users").post("/users/actions/login/", "user-login", "Sign in with a password.", login).post(
        "/users/actions/logout/",
        "user-logout",
        "Sign out.",
        logout,
    )
}

#[derive(Deserialize, JsonSchema)]
struct Login {
    /// Login name.
    username: Name,
    /// Password.
    password: String,
}

#[derive(Serialize, JsonSchema)]
struct SignedInOut {
    /// Value to send in the Authorization header.
    token: String,
    /// Who signed in.
    user: UserOut,
    /// Value to send in the header X-CSRF-Token by those who come with the cookie.
    csrf_token: String,
}

fn refused() -> Error {
    Error::coded(401, 10002, "the username or the password is wrong, or the account is disabled")
}

async fn login(call: Call<Public>, Body(body): Body<Login>) -> Result<Reply<SignedInOut>> {
    let attempt = Attempt::new(&body.username.0, call.client().address);
    // Counted in a transaction of its own: what follows may fail, and must not undo it.
    attempt.begin(&call.kernel().work()).await?;
    let user = users::find_by_username(&mut call.read().await?, &body.username.0).await?;
    let user = user.filter(|user| user.status == UserStatus::Enabled);
    let stored = user.as_ref().and_then(|user| user.password_hash.clone());
    let fits = password::fits(body.password, stored).await?;
    let user = user.filter(|_| fits).ok_or_else(refused)?;

    let settings = call.kernel().settings().clone();
    let mut tx = call.begin().await?;
    lock_unchanged(&mut tx, &user).await?;
    attempt.succeeded(&mut tx).await?;
    let (token, csrf_token) = open_session(&mut tx, &user).await?;
    let cookies = [
        cookie(SESSION_COOKIE, &token, LIFETIME, true, &settings),
        cookie(CSRF_COOKIE, &csrf_token, LIFETIME, false, &settings),
    ];
    let answer = SignedInOut { token, user: user.into(), csrf_token };
    let reply = tx.commit_secret(Audit::none("signing in is not audited"), answer).await?;
    Ok(with_cookies(reply, &cookies))
}

/// Refuses when the user was disabled or got another password while this one was checked, and keeps both from
/// happening until the session is written.
async fn lock_unchanged(tx: &mut Tx, user: &UserRow) -> Result<()> {
    let sql = sql!("UPDATE users SET status = status WHERE id = $1 AND status = 'enabled' AND password_hash = $2");
    match tx.run(sql, args![user.id, user.password_hash.clone()]).await? {
        1 => Ok(()),
        _ => Err(refused()),
    }
}

async fn open_session(tx: &mut Tx, user: &UserRow) -> Result<(String, String)> {
    let now = tx.now();
    tx.run(sql!("DELETE FROM sessions WHERE expires_at <= $1"), args![now]).await?;
    let sql = sql!(
        "DELETE FROM sessions WHERE user_id = $1 AND id NOT IN \
         (SELECT id FROM sessions WHERE user_id = $1 ORDER BY id DESC LIMIT $2)"
    );
    tx.run(sql, args![user.id, SESSIONS_MAX - 1]).await?;
    let (token, csrf_token) = (secret::token()?, secret::token()?);
    let sql = sql!(
        "INSERT INTO sessions (organisation_id, user_id, token_hash, csrf_hash, created_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6)"
    );
    let arguments =
        args![user.organisation_id, user.id, secret::hash(&token), secret::hash(&csrf_token), now, now.after(LIFETIME)];
    tx.run(sql, arguments).await?;
    Ok((token, csrf_token))
}

async fn logout(call: Call<SignedIn>) -> Result<Reply<Message>> {
    let Some(session_id) = call.caller()?.session_id else {
        return Err(Error::conflict("an API token has no session that could end: delete the token instead"));
    };
    let settings = call.kernel().settings().clone();
    let mut tx = call.begin().await?;
    tx.run(sql!("DELETE FROM sessions WHERE id = $1"), args![session_id]).await?;
    let reply = tx.commit(Audit::none("signing out is not audited"), Message::success()).await?;
    let cookies = [
        cookie(SESSION_COOKIE, "", Duration::ZERO, true, &settings),
        cookie(CSRF_COOKIE, "", Duration::ZERO, false, &settings),
    ];
    Ok(with_cookies(reply, &cookies))
}

fn cookie(name: &str, value: &str, lifetime: Duration, http_only: bool, settings: &Settings) -> String {
    let http_only = if http_only { "; HttpOnly" } else { "" };
    let secure = if settings.secure { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={}; SameSite=Lax{http_only}{secure}", lifetime.as_secs())
}

fn with_cookies<T>(reply: Reply<T>, cookies: &[String]) -> Reply<T> {
    cookies.iter().fold(reply, |reply, cookie| reply.with_header(SET_COOKIE, cookie))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_carry_their_flags() {
        let plain = Settings::default();
        let secure = Settings { secure: true, ..Settings::default() };
        assert_eq!(
            cookie("drover_session", "v", LIFETIME, true, &secure),
            "drover_session=v; Path=/; Max-Age=43200; SameSite=Lax; HttpOnly; Secure"
        );
        assert_eq!(cookie("c", "", Duration::ZERO, false, &plain), "c=; Path=/; Max-Age=0; SameSite=Lax");
    }
}
