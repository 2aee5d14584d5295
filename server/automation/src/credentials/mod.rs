//! Credentials of repositories: passwords and private keys that are written and never read again.
//!
//! Invariants: a secret is sealed before it is stored and leaves only towards the program that fetches; answers, audit
//! and errors show `******` in its place; a credential that a repository uses is not deleted; naming a stored credential
//! for a repository, or moving a repository that has one elsewhere, needs the right to manage credentials.

pub(crate) mod choice;
pub mod rules;
pub mod store;

use drover_inventory::changes;
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Id, Masked, Name, Patch, Secret};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Page, Paging, Path, Query, Reply, Result, Routes,
    permission, when,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::rules::{CredentialType, KEY_BYTES_MAX, PASSWORD_BYTES_MAX};
use self::store::{Credential, CredentialRow};

permission!(
    pub Manage,
    "repository_credentials.manage",
    "See and change repository credentials",
    Module { module: "deploy_template", right: "enable_deploy_template_mgmt" }
);

/// Module and right that managing credentials takes.
pub(crate) const MANAGING: (&str, &str) = ("deploy_template", "enable_deploy_template_mgmt");

/// Routes of credentials.
pub fn routes() -> Routes {
    let passwords = "/applications/repository-credentials/password/";
    let password = "/applications/repository-credentials/password/{id}/";
    let keys = "/applications/repository-credentials/ssh-private-key/";
    let key = "/applications/repository-credentials/ssh-private-key/{id}/";
    Routes::tagged("credentials")
        .get(passwords, "password-credentials-list", "List stored password credentials.", list_passwords)
        .post(passwords, "password-credential-create", "Store a password credential.", create_password)
        .patch(
            passwords,
            "password-credential-update-named",
            "Change the password credential that the body names.",
            update_named_password,
        )
        .get(password, "password-credential-detail", "Read one password credential.", read_password)
        .patch(password, "password-credential-update", "Change a password credential.", update_password)
        .delete(password, "password-credential-delete", "Delete a password credential.", delete_password)
        .get(keys, "ssh-credentials-list", "List stored key credentials.", list_keys)
        .post(keys, "ssh-credential-create", "Store a key credential.", create_key)
        .get(key, "ssh-credential-detail", "Read one key credential.", read_key)
        .patch(key, "ssh-credential-update", "Change a key credential.", update_key)
        .delete(key, "ssh-credential-delete", "Delete a key credential.", delete_key)
}

/// Login by password or token.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PasswordCredential")]
pub struct PasswordOut {
    /// Id; null for one that belongs to one repository alone.
    id: Option<i64>,
    /// Name to recognise it by.
    name: Option<String>,
    /// `PASSWORD`.
    #[serde(rename = "type")]
    credential_type: CredentialType,
    /// Account name.
    username: String,
    /// `******`, or nothing when there is none.
    #[schemars(with = "String")]
    password: Masked,
}

/// Login by private key.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SshPrivateKeyCredential")]
pub struct KeyOut {
    /// Id; null for one that belongs to one repository alone.
    id: Option<i64>,
    /// Name to recognise it by.
    name: Option<String>,
    /// `SSH_PRIVATE_KEY`.
    #[serde(rename = "type")]
    credential_type: CredentialType,
    /// Account name.
    username: String,
    /// `******`.
    #[schemars(with = "String")]
    private_key: Masked,
}

/// How to log in to a repository.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RepositoryCredential")]
#[serde(untagged)]
pub enum CredentialOut {
    /// By password.
    Password(PasswordOut),
    /// By private key.
    Key(KeyOut),
}

impl From<&CredentialRow> for PasswordOut {
    fn from(row: &CredentialRow) -> Self {
        Self {
            id: (!row.is_inline()).then_some(row.id),
            name: row.name.clone(),
            credential_type: row.credential_type,
            username: row.username.clone(),
            password: Masked(!row.sealed_secret.is_empty()),
        }
    }
}

impl From<&CredentialRow> for KeyOut {
    fn from(row: &CredentialRow) -> Self {
        let PasswordOut { id, name, credential_type, username, password } = row.into();
        Self { id, name, credential_type, username, private_key: password }
    }
}

impl From<&CredentialRow> for CredentialOut {
    fn from(row: &CredentialRow) -> Self {
        match row.credential_type {
            CredentialType::Password => Self::Password(row.into()),
            CredentialType::SshPrivateKey => Self::Key(row.into()),
        }
    }
}

/// A password credential. A change keeps what is left out; `******` keeps the password.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "PasswordCredentialProperties")]
struct PasswordBody {
    /// Name to recognise the credential by.
    #[serde(default)]
    name: Patch<Name>,
    /// Account name.
    username: Option<Name>,
    /// Password or token.
    password: Option<Secret<PASSWORD_BYTES_MAX>>,
}

/// A change of the password credential that has this id, or else this name.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "PasswordCredentialChange")]
struct NamedPasswordBody {
    /// Id; without it the credential is found by its name, which exactly one must have.
    id: Option<Id>,
    /// Name.
    #[serde(default)]
    name: Patch<Name>,
    /// Account name.
    username: Option<Name>,
    /// Password or token.
    password: Option<Secret<PASSWORD_BYTES_MAX>>,
}

/// Names the credential in the address in place of the body.
#[derive(Debug, Deserialize, JsonSchema)]
struct NamedPassword {
    /// Id, if the body gives none.
    id: Option<Id>,
}

/// A key credential. A change keeps what is left out; `******` keeps the key.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "SshPrivateKeyCredentialProperties")]
struct KeyBody {
    /// Name to recognise the credential by.
    #[serde(default)]
    name: Patch<Name>,
    /// Account name; the one in the repository's address counts first.
    username: Option<Name>,
    /// Private key in PEM or OpenSSH form, without a passphrase. Required when a credential is made.
    private_key: Option<Secret<KEY_BYTES_MAX>>,
}

/// What a body asks for, whichever kind it is of.
struct Change {
    name: Patch<Name>,
    username: Option<Name>,
    secret: Option<Zeroizing<String>>,
}

/// The new secret, if one was sent.
fn secret<const MAX: usize>(said: Option<Secret<MAX>>) -> Option<Zeroizing<String>> {
    match said {
        Some(Secret::Set(text)) => Some(text),
        Some(Secret::Keep) | None => None,
    }
}

impl From<PasswordBody> for Change {
    fn from(body: PasswordBody) -> Self {
        Self { name: body.name, username: body.username, secret: secret(body.password) }
    }
}

impl From<KeyBody> for Change {
    fn from(body: KeyBody) -> Self {
        Self { name: body.name, username: body.username, secret: secret(body.private_key) }
    }
}

impl Change {
    /// The credential after this change; a new one when there is none before.
    fn credential(self, credential_type: CredentialType, before: Option<&CredentialRow>) -> Result<Credential> {
        let name = match self.name {
            Patch::Absent => before.and_then(|row| row.name.clone()),
            Patch::Null => None,
            Patch::Value(name) => name.non_empty(),
        };
        if name.as_ref().is_some_and(|name| name.chars().any(char::is_control)) {
            return Err(Error::invalid("name", "must not contain control characters"));
        }
        let username = self.username.map(|name| name.0).or_else(|| before.map(|row| row.username.clone()));
        let username = username.unwrap_or_default();
        rules::check_username(credential_type, &username)?;
        match &self.secret {
            Some(secret) => credential_type.check(secret)?,
            None if before.is_none() && credential_type == CredentialType::SshPrivateKey => {
                return Err(Error::invalid("private_key", "is missing"));
            }
            None => {}
        }
        Ok(Credential { credential_type, name, username, secret: self.secret })
    }
}

/// A credential as the audit tells it: that there is a secret, and nothing of it.
fn told(row: &CredentialRow) -> serde_json::Value {
    serde_json::json!({"name": row.name, "type": row.credential_type, "username": row.username})
}

fn entry(action: &str, row: &CredentialRow, detail: String) -> AuditEntry {
    let name = row.name.clone().unwrap_or_else(|| row.username.clone());
    AuditEntry::new(AuditList::General, action, "repository_credential", row.id, name).detail(detail)
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ListFilters {
    /// Part of the name.
    name: Option<Name>,
    /// Account name.
    username: Option<Name>,
}

async fn list<T: for<'a> From<&'a CredentialRow>>(
    call: Call<Manage>,
    credential_type: CredentialType,
    filters: ListFilters,
    paging: Paging,
) -> Result<Reply<Page<T>>> {
    let mut conditions = Vec::new();
    if let Some(name) = filters.name {
        conditions.push(when!(r"lower(c.name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0)));
    }
    conditions.extend(filters.username.map(|name| when!("lower(c.username) = lower($1)", name.0)));
    let mut read = call.read().await?;
    let organisation_id = call.organisation_id();
    let (count, rows) = store::list(&mut read, &paging, organisation_id, credential_type, &conditions).await?;
    Ok(Reply::new(paging.page(count, rows.iter().map(T::from).collect())))
}

async fn read_one<T: for<'a> From<&'a CredentialRow>>(
    call: Call<Manage>,
    credential_type: CredentialType,
    id: i64,
) -> Result<Reply<T>> {
    let mut read = call.read().await?;
    Ok(Reply::new(T::from(&store::load(&mut read, call.organisation_id(), credential_type, id).await?)))
}

async fn create<T: for<'a> From<&'a CredentialRow> + Serialize>(
    call: Call<Manage>,
    credential_type: CredentialType,
    change: Change,
) -> Result<Reply<T>> {
    let credential = change.credential(credential_type, None)?;
    let creator = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let id = store::insert(&mut tx, &credential, None, &creator).await?;
    let made = store::load(&mut tx, organisation_id, credential_type, id).await?;
    let entry = entry("add", &made, changes::of(&told(&made), &[]));
    tx.commit(Audit::of(entry), T::from(&made)).await
}

async fn update<T: for<'a> From<&'a CredentialRow> + Serialize>(
    call: Call<Manage>,
    credential_type: CredentialType,
    id: i64,
    change: Change,
) -> Result<Reply<T>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    store::hold(&mut tx, id).await?;
    let before = store::load(&mut tx, organisation_id, credential_type, id).await?;
    let credential = change.credential(credential_type, Some(&before))?;
    check_uses(&mut tx, &before, &credential).await?;
    store::update(&mut tx, id, &credential).await?;
    let after = store::load(&mut tx, organisation_id, credential_type, id).await?;
    let mut detail = changes::between(&told(&before), &told(&after), &[]);
    if credential.secret.is_some() {
        let separator = if detail.is_empty() { "" } else { "; " };
        detail = format!("{detail}{separator}{}: changed", credential_type.member());
    }
    let entries = if detail.is_empty() { vec![] } else { vec![entry("update", &after, detail)] };
    tx.commit(Audit::all(entries), T::from(&after)).await
}

/// Refuses a user name without which the repositories that use the credential could not be logged in to.
async fn check_uses(read: &mut Read, before: &CredentialRow, credential: &Credential) -> Result<()> {
    if before.username == credential.username {
        return Ok(());
    }
    for url in store::addresses(read, before.id).await? {
        rules::check_place(credential.credential_type, &credential.username, &url)
            .map_err(|_| Error::invalid("username", format!("the repository {url} could not be logged in to")))?;
    }
    Ok(())
}

async fn remove(call: Call<Manage>, credential_type: CredentialType, id: i64) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let row = store::load(&mut tx, organisation_id, credential_type, id).await?;
    let used_by = store::used_by(&mut tx, id).await?;
    if !used_by.is_empty() {
        return Err(Error::conflict(format!(
            "the credential {id} is used by the repository of: {}",
            used_by.join(", ")
        )));
    }
    store::delete(&mut tx, id).await?;
    let entry = entry("delete", &row, changes::of(&told(&row), &[]));
    tx.commit(Audit::of(entry), Message::success()).await
}

async fn list_passwords(
    call: Call<Manage>,
    filters: Query<ListFilters>,
    paging: Paging,
) -> Result<Reply<Page<PasswordOut>>> {
    list(call, CredentialType::Password, filters.0, paging).await
}

async fn create_password(call: Call<Manage>, body: Body<PasswordBody>) -> Result<Reply<PasswordOut>> {
    create(call, CredentialType::Password, body.0.into()).await
}

async fn read_password(call: Call<Manage>, id: Path<i64>) -> Result<Reply<PasswordOut>> {
    read_one(call, CredentialType::Password, id.0).await
}

async fn update_password(call: Call<Manage>, id: Path<i64>, body: Body<PasswordBody>) -> Result<Reply<PasswordOut>> {
    update(call, CredentialType::Password, id.0, body.0.into()).await
}

async fn update_named_password(
    call: Call<Manage>,
    address: Query<NamedPassword>,
    Body(body): Body<NamedPasswordBody>,
) -> Result<Reply<PasswordOut>> {
    let NamedPasswordBody { id, name, username, password } = body;
    if let (Some(one), Some(other)) = (&id, &address.0.id)
        && one.0 != other.0
    {
        return Err(Error::invalid("id", format!("is {} in the body and {} in the address", one.0, other.0)));
    }
    let id = match (id.or(address.0.id), &name) {
        (Some(id), _) => id.0,
        (None, Patch::Value(name)) if !name.0.is_empty() => {
            let mut read = call.read().await?;
            let found = store::named(&mut read, call.organisation_id(), CredentialType::Password, &name.0).await?;
            match found[..] {
                [id] => id,
                [] => return Err(Error::invalid("name", "no password credential has this name")),
                _ => return Err(Error::invalid("name", "several password credentials have this name: give the id")),
            }
        }
        _ => return Err(Error::invalid("id", "is missing; a name that one credential has serves as well")),
    };
    update(call, CredentialType::Password, id, Change { name, username, secret: secret(password) }).await
}

async fn delete_password(call: Call<Manage>, id: Path<i64>) -> Result<Reply<Message>> {
    remove(call, CredentialType::Password, id.0).await
}

async fn list_keys(call: Call<Manage>, filters: Query<ListFilters>, paging: Paging) -> Result<Reply<Page<KeyOut>>> {
    list(call, CredentialType::SshPrivateKey, filters.0, paging).await
}

async fn create_key(call: Call<Manage>, body: Body<KeyBody>) -> Result<Reply<KeyOut>> {
    create(call, CredentialType::SshPrivateKey, body.0.into()).await
}

async fn read_key(call: Call<Manage>, id: Path<i64>) -> Result<Reply<KeyOut>> {
    read_one(call, CredentialType::SshPrivateKey, id.0).await
}

async fn update_key(call: Call<Manage>, id: Path<i64>, body: Body<KeyBody>) -> Result<Reply<KeyOut>> {
    update(call, CredentialType::SshPrivateKey, id.0, body.0.into()).await
}

async fn delete_key(call: Call<Manage>, id: Path<i64>) -> Result<Reply<Message>> {
    remove(call, CredentialType::SshPrivateKey, id.0).await
}
