//! Credentials in the database. Secrets go in and come out sealed.
//!
//! A credential is *stored*, with a name and an id that any repository may give, or *inline*: then it belongs to one
//! application's settings or one template, and goes with it.

use drover_kernel::db::{Condition, DbError, Read};
use drover_kernel::{Error, Paging, Result, Tx, args, row, sql};
use zeroize::Zeroizing;

use super::rules::CredentialType;

row! {
    /// A credential.
    pub struct CredentialRow {
        /// Id; stored and inline ones, passwords and keys have their ids from one row of numbers.
        pub id: i64,
        /// Kind.
        pub credential_type: CredentialType,
        /// Name to recognise it by.
        pub name: Option<String>,
        /// Account; empty for none.
        pub username: String,
        /// The secret, sealed; empty when there is none.
        pub sealed_secret: String,
        /// Settings that an inline one belongs to.
        pub settings_id: Option<i64>,
        /// Template that an inline one belongs to.
        pub template_id: Option<i64>,
    }
}

impl CredentialRow {
    /// Whether it belongs to one repository alone.
    #[must_use]
    pub fn is_inline(&self) -> bool {
        self.settings_id.is_some() || self.template_id.is_some()
    }

    /// Whom it belongs to, if to anybody.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        self.settings_id.map(Owner::Settings).or(self.template_id.map(Owner::Template))
    }
}

/// What an inline credential belongs to, and whose host key is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Deploy settings, by id.
    Settings(i64),
    /// A deploy template, by id.
    Template(i64),
}

impl Owner {
    fn ids(self) -> (Option<i64>, Option<i64>) {
        match self {
            Self::Settings(id) => (Some(id), None),
            Self::Template(id) => (None, Some(id)),
        }
    }
}

/// What a credential shall be; without a secret the present one stays.
#[derive(Clone)]
pub struct Credential {
    /// Kind.
    pub credential_type: CredentialType,
    /// Name to recognise it by.
    pub name: Option<String>,
    /// Account; empty for none.
    pub username: String,
    /// The secret in clear.
    pub secret: Option<Zeroizing<String>>,
}

/// What a secret is sealed about.
fn about(id: i64) -> String {
    format!("repository_credentials/{id}/secret")
}

/// One page of the organisation's stored credentials of a kind; conditions speak of `c`.
///
/// # Errors
/// When the database is not available.
pub async fn list(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    credential_type: CredentialType,
    conditions: &[Condition],
) -> Result<(i64, Vec<CredentialRow>)> {
    let count = sql!(
        "SELECT COUNT(*) FROM repository_credentials c WHERE c.organisation_id = $1 AND c.credential_type = $2 \
         AND c.settings_id IS NULL AND c.template_id IS NULL/* filters */"
    );
    let rows = sql!(
        "SELECT c.* FROM repository_credentials c WHERE c.organisation_id = $1 AND c.credential_type = $2 \
         AND c.settings_id IS NULL AND c.template_id IS NULL/* filters */ ORDER BY c.id"
    );
    paging.read(read, count, rows, args![organisation_id, credential_type], conditions).await
}

/// The credentials of these ids, stored and inline.
///
/// # Errors
/// When the database is not available.
pub async fn find_many(read: &mut Read, organisation_id: i64, ids: &[i64]) -> Result<Vec<CredentialRow>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = sql!("SELECT * FROM repository_credentials WHERE organisation_id = $1 AND id IN ($2) ORDER BY id");
    Ok(read.all(sql, args![organisation_id, ids.to_vec()]).await?)
}

/// One credential, stored or inline.
///
/// # Errors
/// When the database is not available.
pub async fn find(read: &mut Read, organisation_id: i64, id: i64) -> Result<Option<CredentialRow>> {
    Ok(find_many(read, organisation_id, &[id]).await?.pop())
}

/// A stored credential of a kind.
///
/// # Errors
/// Not found, or when the database is not available.
pub async fn load(
    read: &mut Read,
    organisation_id: i64,
    credential_type: CredentialType,
    id: i64,
) -> Result<CredentialRow> {
    let found = find(read, organisation_id, id).await?;
    let found = found.filter(|row| row.credential_type == credential_type && !row.is_inline());
    found.ok_or_else(|| Error::not_found("credential"))
}

/// Ids of the stored credentials of a kind that have this name; two at most.
///
/// # Errors
/// When the database is not available.
pub async fn named(
    read: &mut Read,
    organisation_id: i64,
    credential_type: CredentialType,
    name: &str,
) -> Result<Vec<i64>> {
    let sql = sql!(
        "SELECT id FROM repository_credentials WHERE organisation_id = $1 AND credential_type = $2 AND name = $3 \
         AND settings_id IS NULL AND template_id IS NULL ORDER BY id LIMIT 2"
    );
    Ok(read.values(sql, args![organisation_id, credential_type, name]).await?)
}

/// Adds a credential and gives its id.
///
/// # Errors
/// When the database refuses or the secret cannot be sealed.
pub async fn insert(tx: &mut Tx, credential: &Credential, owner: Option<Owner>, creator: &str) -> Result<i64> {
    let insert = sql!(
        "INSERT INTO repository_credentials (organisation_id, credential_type, name, username, sealed_secret, \
         settings_id, template_id, creator, created_at) VALUES ($1, $2, $3, $4, '', $5, $6, $7, $8) RETURNING id"
    );
    let (settings_id, template_id) = owner.map(Owner::ids).unwrap_or_default();
    let arguments = args![
        tx.organisation_id(),
        credential.credential_type,
        credential.name.clone(),
        credential.username.as_str(),
        settings_id,
        template_id,
        creator,
        tx.now()
    ];
    let id = tx.value(insert, arguments).await?;
    if let Some(secret) = &credential.secret {
        seal(tx, id, secret).await?;
    }
    Ok(id)
}

/// Changes a credential, which keeps its secret unless it is given another.
///
/// # Errors
/// When the database refuses or the secret cannot be sealed.
pub async fn update(tx: &mut Tx, id: i64, credential: &Credential) -> Result<()> {
    let update = sql!("UPDATE repository_credentials SET name = $2, username = $3 WHERE id = $1");
    tx.run_one(update, args![id, credential.name.clone(), credential.username.as_str()]).await?;
    match &credential.secret {
        Some(secret) => seal(tx, id, secret).await,
        None => Ok(()),
    }
}

async fn seal(tx: &mut Tx, id: i64, secret: &str) -> Result<()> {
    let sealed = match secret {
        "" => String::new(),
        secret => tx.kernel().sealer().seal(&about(id), secret.as_bytes())?,
    };
    tx.run_one(sql!("UPDATE repository_credentials SET sealed_secret = $2 WHERE id = $1"), args![id, sealed]).await
}

/// Opens the secret of a credential; empty when it has none.
///
/// # Errors
/// An internal error when the key is missing or the value was damaged.
pub fn open(kernel: &drover_kernel::Kernel, row: &CredentialRow) -> Result<Zeroizing<String>> {
    if row.sealed_secret.is_empty() {
        return Ok(Zeroizing::new(String::new()));
    }
    let opened = kernel.sealer().open(&about(row.id), &row.sealed_secret)?;
    let text = std::str::from_utf8(&opened).map_err(|_| Error::internal("a sealed secret is not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// What uses a credential: applications by full name, and templates.
///
/// # Errors
/// When the database is not available.
pub async fn used_by(read: &mut Read, id: i64) -> Result<Vec<String>> {
    let applications = sql!(
        "SELECT a.full_name FROM deploy_settings d JOIN applications a ON a.id = d.application_id \
         WHERE d.credential_id = $1 ORDER BY a.full_name"
    );
    let mut users: Vec<String> = read.values(applications, args![id]).await?;
    let templates = sql!("SELECT t.name FROM deploy_templates t WHERE t.credential_id = $1 ORDER BY t.name");
    let templates: Vec<String> = read.values(templates, args![id]).await?;
    users.extend(templates.into_iter().map(|name| format!("the deploy template {name}")));
    Ok(users)
}

/// Addresses of the repositories that use a credential.
///
/// # Errors
/// When the database is not available.
pub async fn addresses(read: &mut Read, id: i64) -> Result<Vec<String>> {
    let sql = sql!(
        "SELECT repository_url FROM deploy_settings WHERE credential_id = $1 AND repository_url IS NOT NULL \
         UNION SELECT repository_url FROM deploy_templates WHERE credential_id = $1 AND repository_url IS NOT NULL"
    );
    Ok(read.values(sql, args![id]).await?)
}

/// Removes a stored credential that no repository uses.
///
/// # Errors
/// A conflict when a repository came to use it meanwhile, not found when it is gone.
pub async fn delete(tx: &mut Tx, id: i64) -> Result<()> {
    let arguments = args![tx.organisation_id(), id];
    match tx.run(sql!("DELETE FROM repository_credentials WHERE organisation_id = $1 AND id = $2"), arguments).await {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::not_found("credential")),
        Err(DbError::Reference) => Err(Error::conflict("a repository came to use the credential just now")),
        Err(error) => Err(error.into()),
    }
}

/// Removes the inline credentials of an owner, except the one that is used.
///
/// # Errors
/// When the database refuses.
pub async fn sweep(tx: &mut Tx, owner: Owner, used: Option<i64>) -> Result<()> {
    let (settings_id, template_id) = owner.ids();
    let sql = sql!("DELETE FROM repository_credentials WHERE (settings_id = $1 OR template_id = $2) AND id <> $3");
    tx.run(sql, args![settings_id, template_id, used.unwrap_or(0)]).await?;
    Ok(())
}

/// Takes the row's lock before it is read, so that of two changes at the same time the second one sees the first.
pub(crate) async fn hold(tx: &mut Tx, id: i64) -> Result<()> {
    let sql = sql!("UPDATE repository_credentials SET username = username WHERE organisation_id = $1 AND id = $2");
    let organisation_id = tx.organisation_id();
    Ok(tx.run(sql, args![organisation_id, id]).await.map(drop)?)
}
