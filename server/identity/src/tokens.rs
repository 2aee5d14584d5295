//! API tokens: secrets with which programs act as the user who made them.
//!
//! Owns the table of tokens. Invariants: a value is shown in the creating answer alone and stored as a hash; a token is
//! seen and changed by its creator and by administrators.

use drover_kernel::call::{Caller, SignedIn};
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Id, MASK, Name, Prose};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Page, Paging, Path, Query, Reply, Result, Routes, Tx,
    args, row, sql, when,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::secret;

pub(crate) fn routes() -> Routes {
    Routes::tagged("auth-tokens")
        .get("/auth-tokens/", "auth-tokens-list", "List API tokens.", list)
        .post("/auth-tokens/", "auth-token-create", "Make an API token.", create)
        .get("/auth-tokens/{id}/", "auth-token-detail", "Read one token.", detail)
        .patch("/auth-tokens/{id}/", "auth-token-update", "Change a token's name or description.", update)
        .patch(
            "/auth-tokens/",
            "auth-token-update-by-body",
            "Change the token that the body names by id, or by a name that fits exactly one.",
            update_by_body,
        )
        .delete("/auth-tokens/{id}/", "auth-token-delete", "Revoke a token.", delete)
}

row! {
    struct TokenRow {
        id: i64,
        name: String,
        description: String,
        creator: String,
    }
}

/// A secret for API access.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AuthToken")]
struct TokenOut {
    /// Id.
    id: i64,
    /// Name.
    name: String,
    /// The secret, in the answer that creates it; `******` in all others.
    value: String,
    /// What it is for.
    description: String,
    /// Username that made it.
    creator: String,
}

impl TokenOut {
    fn new(token: TokenRow, value: String) -> Self {
        Self { id: token.id, name: token.name, value, description: token.description, creator: token.creator }
    }

    fn masked(token: TokenRow) -> Self {
        Self::new(token, MASK.to_owned())
    }
}

/// The user whose tokens a caller may see; all when none.
fn only_of(caller: &Caller) -> Option<i64> {
    (!caller.administrator).then_some(caller.user_id)
}

async fn load(read: &mut Read, organisation_id: i64, id: i64, only_of: Option<i64>) -> Result<TokenRow> {
    let sql = sql!(
        "SELECT t.id, t.name, t.description, u.username AS creator FROM auth_tokens t JOIN users u ON u.id = t.user_id \
         WHERE t.organisation_id = $1 AND t.id = $2 AND t.user_id = COALESCE($3, t.user_id)"
    );
    read.opt(sql, args![organisation_id, id, only_of]).await?.ok_or_else(|| Error::not_found("token"))
}

fn entry(action: &str, token: &TokenRow) -> AuditEntry {
    AuditEntry::new(AuditList::General, action, "auth_token", token.id, token.name.as_str())
}

#[derive(Deserialize, JsonSchema)]
struct TokenFilter {
    /// Part of the name.
    name: Option<Name>,
    /// The value, whole.
    value: Option<Name>,
    /// Part of the description.
    description: Option<Prose>,
}

async fn list(
    call: Call<SignedIn>,
    paging: Paging,
    Query(filter): Query<TokenFilter>,
) -> Result<Reply<Page<TokenOut>>> {
    let mut conditions = Vec::new();
    if let Some(user_id) = only_of(call.caller()?) {
        conditions.push(when!("t.user_id = $1", user_id));
    }
    if let Some(name) = filter.name {
        conditions.push(when!("lower(t.name) LIKE $1 ESCAPE '\\'", Condition::pattern(&name.0)));
    }
    if let Some(value) = filter.value {
        conditions.push(when!("t.token_hash = $1", secret::hash(&value.0)));
    }
    if let Some(description) = filter.description {
        conditions.push(when!("lower(t.description) LIKE $1 ESCAPE '\\'", Condition::pattern(&description.0)));
    }
    let (count, tokens) = paging
        .read::<TokenRow>(
            &mut call.read().await?,
            sql!("SELECT COUNT(*) FROM auth_tokens t WHERE t.organisation_id = $1/* filters */"),
            sql!(
                "SELECT t.id, t.name, t.description, u.username AS creator FROM auth_tokens t \
                 JOIN users u ON u.id = t.user_id WHERE t.organisation_id = $1/* filters */ ORDER BY t.id"
            ),
            args![call.organisation_id()],
            &conditions,
        )
        .await?;
    Ok(Reply::new(paging.page(count, tokens.into_iter().map(TokenOut::masked).collect())))
}

async fn detail(call: Call<SignedIn>, Path(id): Path<i64>) -> Result<Reply<TokenOut>> {
    let only_of = only_of(call.caller()?);
    let token = load(&mut call.read().await?, call.organisation_id(), id, only_of).await?;
    Ok(Reply::new(TokenOut::masked(token)))
}

#[derive(Deserialize, JsonSchema)]
struct NewToken {
    /// Name.
    name: Name,
    /// What the token is for.
    description: Option<Prose>,
}

/// Adds a token of a user; gives its id and value.
pub(crate) async fn insert(tx: &mut Tx, user_id: i64, name: &str, description: &str) -> Result<(i64, String)> {
    let value = secret::token()?;
    let sql = sql!(
        "INSERT INTO auth_tokens (organisation_id, user_id, name, description, token_hash, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING id"
    );
    let arguments = args![tx.organisation_id(), user_id, name, description, secret::hash(&value), tx.now()];
    let id: i64 = tx.value(sql, arguments).await?;
    Ok((id, value))
}

async fn create(call: Call<SignedIn>, Body(body): Body<NewToken>) -> Result<Reply<TokenOut>> {
    let name = body.name.required("name")?;
    let description = body.description.unwrap_or_default().0;
    let (user_id, creator) = (call.caller()?.user_id, call.caller()?.username.clone());
    let mut tx = call.begin().await?;
    let (id, value) = insert(&mut tx, user_id, &name, &description).await?;
    let token = TokenRow { id, name, description, creator };
    tx.commit_secret(Audit::of(entry("create", &token)), TokenOut::new(token, value)).await
}

#[derive(Deserialize, JsonSchema)]
struct TokenChange {
    /// Name.
    name: Option<Name>,
    /// What the token is for.
    description: Option<Prose>,
}

async fn update(call: Call<SignedIn>, Path(id): Path<i64>, Body(body): Body<TokenChange>) -> Result<Reply<TokenOut>> {
    change(call, id, body).await
}

#[derive(Deserialize, JsonSchema)]
struct NamedTokenChange {
    /// Id of the token.
    id: Option<Id>,
    /// With an id the new name; without one the present name of exactly one token of the caller.
    name: Option<Name>,
    /// What the token is for.
    description: Option<Prose>,
}

#[derive(Deserialize, JsonSchema)]
struct QueryId {
    /// Id of the token, unless the body has it.
    id: Option<Id>,
}

async fn update_by_body(
    call: Call<SignedIn>,
    Query(query): Query<QueryId>,
    Body(body): Body<NamedTokenChange>,
) -> Result<Reply<TokenOut>> {
    if let Some(Id(id)) = body.id.or(query.id) {
        return change(call, id, TokenChange { name: body.name, description: body.description }).await;
    }
    let name = body.name.ok_or_else(|| Error::invalid("id", "is missing, and no name either"))?;
    let sql = sql!("SELECT id FROM auth_tokens WHERE organisation_id = $1 AND user_id = $2 AND name = $3 LIMIT 2");
    let arguments = args![call.organisation_id(), call.caller()?.user_id, name.0];
    let ids: Vec<i64> = call.read().await?.values(sql, arguments).await?;
    match ids[..] {
        [id] => change(call, id, TokenChange { name: None, description: body.description }).await,
        [] => Err(Error::invalid("name", "fits none of your tokens")),
        _ => Err(Error::invalid("name", "fits several of your tokens: send the id")),
    }
}

async fn change(call: Call<SignedIn>, id: i64, body: TokenChange) -> Result<Reply<TokenOut>> {
    let only_of = only_of(call.caller()?);
    let name = body.name.map(|name| name.required("name")).transpose()?;
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    // Locks it, so that two changes at the same time do not undo each other.
    let sql = sql!("UPDATE auth_tokens SET name = name WHERE organisation_id = $1 AND id = $2");
    tx.run(sql, args![organisation_id, id]).await?;
    let mut token = load(&mut tx, organisation_id, id, only_of).await?;
    let mut said = Vec::new();
    if let Some(name) = name.filter(|name| *name != token.name) {
        said.push(format!("name: {} -> {name}", token.name));
        token.name = name;
    }
    if let Some(description) = body.description.map(|text| text.0).filter(|text| *text != token.description) {
        said.push(format!("description: {} -> {description}", token.description));
        token.description = description;
    }
    if said.is_empty() {
        return Ok(Reply::new(TokenOut::masked(token)));
    }
    let sql = sql!("UPDATE auth_tokens SET name = $3, description = $4 WHERE organisation_id = $1 AND id = $2");
    tx.run_one(sql, args![organisation_id, id, &token.name, &token.description]).await?;
    let audit = Audit::of(entry("update", &token).detail(said.join("; ")));
    tx.commit(audit, TokenOut::masked(token)).await
}

async fn delete(call: Call<SignedIn>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let only_of = only_of(call.caller()?);
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let token = load(&mut tx, organisation_id, id, only_of).await?;
    let sql = sql!("DELETE FROM auth_tokens WHERE organisation_id = $1 AND id = $2");
    tx.run_one(sql, args![organisation_id, id]).await?;
    let audit = Audit::of(entry("delete", &token).detail(format!("of {}", token.creator)));
    tx.commit(audit, Message::success()).await
}
