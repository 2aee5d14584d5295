//! Users: who there is.
//!
//! Owns the table of users and its routes. Invariants: login names are unique whatever their case and never change; the
//! display name is the login name until another is set; one enabled administrator always remains.

use drover_kernel::call::{Administrator, SelfOrAdministrator};
use drover_kernel::db::{Condition, OnDuplicate as _, Read};
use drover_kernel::fields::{Flag, Line, Name};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Page, Paging, Path, Query, Reply, Result, Routes, Tx,
    api_words, args, row, sql, when,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::password;

pub(crate) fn routes() -> Routes {
    Routes::tagged("users")
        .get("/users/", "users-list", "List users.", list)
        .post("/users/", "user-create", "Create a user.", create)
        .get("/users/{id}/", "user-detail", "Read one user.", detail)
        .patch("/users/{id}/", "user-update", "Change a user's contact data.", update)
        .post("/users/{id}/actions/enable/", "user-enable", "Let a barred user in again.", enable)
        .post("/users/{id}/actions/disable/", "user-disable", "Bar a user from the platform.", disable)
}

api_words! {
    /// Whether an account may be used.
    pub(crate) enum UserStatus {
        /// It may.
        Enabled = "enabled",
        /// Its sign-ins and tokens do not work.
        Disabled = "disabled",
    }
}

row! {
    /// One user.
    pub(crate) struct UserRow {
        pub(crate) id: i64,
        pub(crate) organisation_id: i64,
        pub(crate) username: String,
        pub(crate) name: String,
        pub(crate) email: String,
        pub(crate) phone: String,
        pub(crate) status: UserStatus,
        pub(crate) administrator: bool,
        pub(crate) password_hash: Option<String>,
    }
}

/// An account.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "User")]
pub(crate) struct UserOut {
    /// Id.
    id: i64,
    /// Login name.
    username: String,
    /// Display name; the username when none was set.
    name: String,
    /// E-mail address.
    email: String,
    /// Mobile number.
    phone: String,
    /// Whether the account may be used.
    status: UserStatus,
    /// Whether everything is allowed.
    administrator: bool,
}

impl From<UserRow> for UserOut {
    fn from(user: UserRow) -> Self {
        Self {
            id: user.id,
            username: user.username,
            name: user.name,
            email: user.email,
            phone: user.phone,
            status: user.status,
            administrator: user.administrator,
        }
    }
}

/// The user of this id within the organisation.
///
/// # Errors
/// Not found.
pub(crate) async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<UserRow> {
    let sql = sql!(
        "SELECT id, organisation_id, username, name, email, phone, status, administrator, password_hash FROM users \
         WHERE organisation_id = $1 AND id = $2"
    );
    read.opt(sql, args![organisation_id, id]).await?.ok_or_else(|| Error::not_found("user"))
}

/// The user of this login name, of whatever organisation and case.
pub(crate) async fn find_by_username(read: &mut Read, username: &str) -> Result<Option<UserRow>> {
    let sql = sql!(
        "SELECT id, organisation_id, username, name, email, phone, status, administrator, password_hash FROM users \
         WHERE lower(username) = lower($1)"
    );
    Ok(read.opt(sql, args![username]).await?)
}

/// An audit entry about a user.
pub(crate) fn entry(action: &str, user: &UserRow) -> AuditEntry {
    AuditEntry::new(AuditList::General, action, "user", user.id, user.username.as_str())
}

#[derive(Deserialize, JsonSchema)]
struct UserFilter {
    /// Login name, whole.
    username: Option<Name>,
    /// Part of the e-mail address.
    email: Option<Line>,
    /// Part of the mobile number.
    phone: Option<Line>,
    /// Whether the account may be used.
    status: Option<UserStatus>,
}

async fn list(
    call: Call<Administrator>,
    paging: Paging,
    Query(filter): Query<UserFilter>,
) -> Result<Reply<Page<UserOut>>> {
    let mut conditions = Vec::new();
    if let Some(username) = filter.username {
        conditions.push(when!("lower(u.username) = lower($1)", username.0));
    }
    if let Some(email) = filter.email {
        conditions.push(when!("lower(u.email) LIKE $1 ESCAPE '\\'", Condition::pattern(&email.0)));
    }
    if let Some(phone) = filter.phone {
        conditions.push(when!("lower(u.phone) LIKE $1 ESCAPE '\\'", Condition::pattern(&phone.0)));
    }
    if let Some(status) = filter.status {
        conditions.push(when!("u.status = $1", status));
    }
    let (count, users) = paging
        .read::<UserRow>(
            &mut call.read().await?,
            sql!("SELECT COUNT(*) FROM users u WHERE u.organisation_id = $1/* filters */"),
            sql!(
                "SELECT u.id, u.organisation_id, u.username, u.name, u.email, u.phone, u.status, u.administrator, \
                 u.password_hash FROM users u WHERE u.organisation_id = $1/* filters */ ORDER BY u.id"
            ),
            args![call.organisation_id()],
            &conditions,
        )
        .await?;
    Ok(Reply::new(paging.page(count, users.into_iter().map(UserOut::from).collect())))
}

async fn detail(call: Call<SelfOrAdministrator>, Path(id): Path<i64>) -> Result<Reply<UserOut>> {
    let user = load(&mut call.read().await?, call.organisation_id(), id).await?;
    Ok(Reply::new(user.into()))
}

#[derive(Deserialize, JsonSchema)]
struct NewUser {
    /// Login name; unique.
    username: Name,
    /// First password; without one the user cannot sign in until an administrator sets one.
    password: Option<String>,
    /// Display name.
    name: Option<Name>,
    /// E-mail address.
    email: Option<Line>,
    /// Mobile number.
    phone: Option<Line>,
    /// Whether the account may be used.
    status: Option<UserStatus>,
    /// Whether everything is allowed.
    administrator: Option<Flag>,
}

/// What a user is made of.
pub(crate) struct Fresh {
    pub(crate) username: String,
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) phone: String,
    pub(crate) status: UserStatus,
    pub(crate) administrator: bool,
    pub(crate) password_hash: Option<String>,
}

/// Adds a user.
///
/// # Errors
/// A conflict when the login name is taken.
pub(crate) async fn insert(tx: &mut Tx, fresh: Fresh) -> Result<UserRow> {
    let sql = sql!(
        "INSERT INTO users (organisation_id, username, name, email, phone, status, administrator, password_hash, \
         created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         RETURNING id, organisation_id, username, name, email, phone, status, administrator, password_hash"
    );
    let name = if fresh.name.is_empty() { fresh.username.clone() } else { fresh.name };
    let arguments = args![
        tx.organisation_id(),
        fresh.username,
        name,
        fresh.email,
        fresh.phone,
        fresh.status,
        fresh.administrator,
        fresh.password_hash,
        tx.now()
    ];
    tx.one(sql, arguments).await.on_duplicate(|| Error::conflict("a user of this username exists"))
}

fn check_username(username: &str) -> Result<()> {
    if username.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Err(Error::invalid("username", "must not contain blanks"));
    }
    Ok(())
}

async fn create(call: Call<Administrator>, Body(body): Body<NewUser>) -> Result<Reply<UserOut>> {
    let username = body.username.required("username")?;
    check_username(&username)?;
    let password_hash = match body.password {
        Some(password) => {
            password::check_length("password", &password)?;
            Some(password::hash(password).await?)
        }
        None => None,
    };
    let fresh = Fresh {
        username,
        name: body.name.unwrap_or_default().0,
        email: body.email.unwrap_or_default().0,
        phone: body.phone.unwrap_or_default().0,
        status: body.status.unwrap_or(UserStatus::Enabled),
        administrator: body.administrator.is_some_and(|flag| flag.0),
        password_hash,
    };
    let mut tx = call.begin().await?;
    let user = insert(&mut tx, fresh).await?;
    let audit = Audit::of(entry("create", &user).detail(format!("administrator: {}", user.administrator)));
    tx.commit(audit, user.into()).await
}

#[derive(Deserialize, JsonSchema)]
struct UserChange {
    /// Display name; an empty one is the login name again.
    name: Option<Name>,
    /// E-mail address.
    email: Option<Line>,
    /// Mobile number.
    phone: Option<Line>,
    /// Whether everything is allowed; administrators alone may change it.
    administrator: Option<Flag>,
}

/// Writes down what differs, and puts the new value in place.
fn change<T: PartialEq + std::fmt::Display>(member: &str, present: &mut T, wanted: Option<T>, said: &mut Vec<String>) {
    if let Some(wanted) = wanted.filter(|wanted| wanted != present) {
        said.push(format!("{member}: {present} -> {wanted}"));
        *present = wanted;
    }
}

async fn update(
    call: Call<SelfOrAdministrator>,
    Path(id): Path<i64>,
    Body(body): Body<UserChange>,
) -> Result<Reply<UserOut>> {
    let by_administrator = call.caller()?.administrator;
    let mut tx = call.begin().await?;
    if body.administrator.is_some() {
        lock_administrators(&mut tx).await?;
    }
    let mut user = load_locked(&mut tx, id).await?;
    let was_administrator = user.administrator;
    let mut said = Vec::new();
    let name = body.name.map(|text| text.non_empty().unwrap_or_else(|| user.username.clone()));
    change("name", &mut user.name, name, &mut said);
    change("email", &mut user.email, body.email.map(|text| text.0), &mut said);
    change("phone", &mut user.phone, body.phone.map(|text| text.0), &mut said);
    change("administrator", &mut user.administrator, body.administrator.map(|flag| flag.0), &mut said);
    if said.is_empty() {
        return Ok(Reply::new(user.into()));
    }
    if user.administrator != was_administrator && !by_administrator {
        return Err(Error::Forbidden("administrators alone may change administrator".to_owned()));
    }
    if was_administrator && !user.administrator {
        keep_an_administrator(&mut tx, id).await?;
    }
    let sql = sql!(
        "UPDATE users SET name = $3, email = $4, phone = $5, administrator = $6 WHERE organisation_id = $1 AND id = $2"
    );
    let arguments = args![user.organisation_id, id, &user.name, &user.email, &user.phone, user.administrator];
    tx.run_one(sql, arguments).await?;
    let audit = Audit::of(entry("update", &user).detail(said.join("; ")));
    tx.commit(audit, user.into()).await
}

/// Takes the lock on every administrator, so that two cannot lose the rank at the same time. Goes before any other lock.
async fn lock_administrators(tx: &mut Tx) -> Result<()> {
    let sql = sql!("UPDATE users SET administrator = administrator WHERE organisation_id = $1 AND administrator");
    let organisation_id = tx.organisation_id();
    tx.run(sql, args![organisation_id]).await?;
    Ok(())
}

/// Refuses when no other enabled administrator remains. The administrators are locked.
async fn keep_an_administrator(tx: &mut Tx, id: i64) -> Result<()> {
    let sql = sql!(
        "SELECT COUNT(*) FROM users WHERE organisation_id = $1 AND administrator AND status = 'enabled' AND id <> $2"
    );
    let organisation_id = tx.organisation_id();
    if tx.value::<i64>(sql, args![organisation_id, id]).await? == 0 {
        return Err(Error::conflict("this is the last administrator who is enabled"));
    }
    Ok(())
}

/// The user of this id, who stays as read until the transaction ends.
async fn load_locked(tx: &mut Tx, id: i64) -> Result<UserRow> {
    let organisation_id = tx.organisation_id();
    let sql = sql!("UPDATE users SET status = status WHERE organisation_id = $1 AND id = $2");
    tx.run(sql, args![organisation_id, id]).await?;
    load(tx, organisation_id, id).await
}

async fn set_status(tx: &mut Tx, user: &UserRow, status: UserStatus) -> Result<()> {
    let sql = sql!("UPDATE users SET status = $3 WHERE organisation_id = $1 AND id = $2");
    tx.run_one(sql, args![user.organisation_id, user.id, status]).await
}

async fn enable(call: Call<Administrator>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    let user = load_locked(&mut tx, id).await?;
    if user.status == UserStatus::Enabled {
        return tx.commit(Audit::none("was enabled before"), Message::success()).await;
    }
    set_status(&mut tx, &user, UserStatus::Enabled).await?;
    tx.commit(Audit::of(entry("enable", &user)), Message::success()).await
}

async fn disable(call: Call<Administrator>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    lock_administrators(&mut tx).await?;
    let user = load_locked(&mut tx, id).await?;
    if user.status == UserStatus::Disabled {
        return tx.commit(Audit::none("was disabled before"), Message::success()).await;
    }
    if user.administrator {
        keep_an_administrator(&mut tx, id).await?;
    }
    set_status(&mut tx, &user, UserStatus::Disabled).await?;
    let sessions = tx.run(sql!("DELETE FROM sessions WHERE user_id = $1"), args![id]).await?;
    let tokens = tx.run(sql!("DELETE FROM auth_tokens WHERE user_id = $1"), args![id]).await?;
    let detail = format!("ended {sessions} sessions and {tokens} tokens");
    tx.commit(Audit::of(entry("disable", &user).detail(detail)), Message::success()).await
}
