//! The credential of one repository: which of the stored ones, or one of its own.
//!
//! Invariant: nobody sends a secret that they could not read to a place of their choosing. So a stored credential is
//! named, and a repository that has a credential is moved or has its host's key or certificate changed, only by who may
//! manage credentials; everybody else gives a secret anew.

use drover_kernel::fields::{Id, Name, Patch, Secret};
use drover_kernel::{Error, Result, Tx};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::Value;
use zeroize::Zeroizing;

use super::rules::{self, CredentialType, KEY_BYTES_MAX, PASSWORD_BYTES_MAX};
use super::store::{self, Credential, CredentialRow, Owner};
use crate::settings::rules::{RepositoryType, Values};

const FIELD: &str = "repository.credential";

/// A repository's credential as callers send it: the id of a stored one, alone or in an object, or an object that holds
/// one.
pub(crate) enum CredentialBody {
    /// A stored one.
    Stored(i64),
    /// One of its own; without a secret the present one stays.
    Inline { credential_type: CredentialType, username: Option<String>, secret: Option<Zeroizing<String>> },
}

impl std::fmt::Debug for CredentialBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stored(id) => write!(f, "Stored({id})"),
            Self::Inline { credential_type, .. } => write!(f, "Inline({credential_type})"),
        }
    }
}

impl<'de> Deserialize<'de> for CredentialBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Object {
            #[serde(default)]
            id: Option<Id>,
            #[serde(rename = "type")]
            credential_type: Option<CredentialType>,
            username: Option<Name>,
            password: Option<Secret<PASSWORD_BYTES_MAX>>,
            private_key: Option<Secret<KEY_BYTES_MAX>>,
        }
        let value = Value::deserialize(deserializer)?;
        if !value.is_object() {
            return Id::deserialize(value)
                .map(|id| Self::Stored(id.0))
                .map_err(|_| de::Error::custom("must be the id of a credential, or an object that holds one"));
        }
        let body = Object::deserialize(value).map_err(de::Error::custom)?;
        if let Some(id) = body.id {
            return Ok(Self::Stored(id.0));
        }
        let guessed = match (&body.password, &body.private_key) {
            (None, Some(_)) => CredentialType::SshPrivateKey,
            _ => CredentialType::Password,
        };
        let credential_type = body.credential_type.unwrap_or(guessed);
        let secret = match credential_type {
            CredentialType::Password => body.password.map(set),
            CredentialType::SshPrivateKey => body.private_key.map(set),
        };
        let Some(secret) = secret else {
            return Err(de::Error::custom(format!("has no {}", credential_type.member())));
        };
        let username = body.username.map(|name| name.0);
        Ok(Self::Inline { credential_type, username, secret })
    }
}

fn set<const MAX: usize>(secret: Secret<MAX>) -> Option<Zeroizing<String>> {
    match secret {
        Secret::Set(text) => Some(text),
        Secret::Keep => None,
    }
}

impl JsonSchema for CredentialBody {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RepositoryCredentialChoice".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"oneOf": [{"type": "integer"}, {"type": "object", "properties": {
            "id": {"type": ["integer", "null"]},
            "type": {"type": "string", "enum": ["PASSWORD", "SSH_PRIVATE_KEY"]},
            "username": {"type": "string"},
            "password": {"type": "string"},
            "private_key": {"type": "string"},
        }}]})
    }
}

/// What deciding about a credential needs to know.
pub(crate) struct Asked<'a> {
    /// What the change says.
    pub said: Patch<CredentialBody>,
    /// What counted before the change.
    pub before: &'a Values,
    /// Whose repository it is.
    pub owner: Owner,
    /// Who asks.
    pub creator: &'a str,
    /// Whether they may manage credentials.
    pub may_manage: bool,
}

/// Gives the repository of `values` the credential that was asked for, or the one it had; tells whether a secret was set.
///
/// # Errors
/// Names `repository.credential`; forbidden where somebody would use a secret that is not theirs.
pub(crate) async fn settle(tx: &mut Tx, values: &mut Values, mut asked: Asked<'_>) -> Result<bool> {
    let Some(repository) = &mut values.repository else { return Ok(false) };
    if repository.repository_type == RepositoryType::Archive {
        repository.credential_id = None;
        return match asked.said {
            Patch::Value(_) => Err(Error::invalid(FIELD, "is for a repository elsewhere, and not for ARCHIVE")),
            Patch::Absent | Patch::Null => Ok(false),
        };
    }
    let before = asked.before.repository.as_ref();
    // Whom a secret is sent to is said by what the host is known by as well.
    let has_moved = before.is_some_and(|before| {
        (&before.url, &before.host_key, &before.ca_certificate)
            != (&repository.url, &repository.host_key, &repository.ca_certificate)
    });
    let organisation_id = tx.organisation_id();
    let present = match before.and_then(|before| before.credential_id) {
        Some(id) => store::find(tx, organisation_id, id).await?,
        None => None,
    };
    let mut is_new = false;
    let chosen = match std::mem::take(&mut asked.said) {
        Patch::Null => None,
        Patch::Absent => {
            // A repository that the change does not touch is as it was.
            check_move(present.as_ref(), has_moved, asked.may_manage)?;
            match &present {
                Some(present) => Some(adopt(tx, present, &asked).await?),
                None => None,
            }
        }
        Patch::Value(CredentialBody::Stored(id)) => {
            let found = store::find(tx, organisation_id, id).await?.filter(|row| !row.is_inline());
            let found = found.ok_or_else(|| Error::invalid(FIELD, format!("there is no credential {id}")))?;
            let is_present = present.as_ref().is_some_and(|present| present.id == id);
            if !(asked.may_manage || is_present && !has_moved) {
                return Err(forbidden("to name a stored credential"));
            }
            Some(found.id)
        }
        Patch::Value(CredentialBody::Inline { credential_type, username, secret }) => {
            let same = present.as_ref().filter(|present| present.credential_type == credential_type);
            let username = username.or_else(|| same.map(|same| same.username.clone())).unwrap_or_default();
            rules::check_username(credential_type, &username).map_err(|error| error.under(FIELD))?;
            match &secret {
                Some(secret) => credential_type.check(secret).map_err(|error| error.under(FIELD))?,
                None if same.is_some_and(CredentialRow::is_inline) => check_move(same, has_moved, asked.may_manage)?,
                None => {
                    let field = format!("{FIELD}.{}", credential_type.member());
                    return Err(Error::invalid(field, "is missing: ****** stands for a secret that is not there"));
                }
            }
            is_new = secret.is_some();
            let credential = Credential { credential_type, name: None, username, secret };
            Some(put(tx, credential, same, &asked).await?)
        }
    };
    repository.credential_id = chosen;
    if let Some(id) = chosen
        && let Some(row) = store::find(tx, organisation_id, id).await?
    {
        rules::check_place(row.credential_type, &row.username, &repository.url)?;
    }
    Ok(is_new)
}

fn forbidden(what: &str) -> Error {
    let (module, right) = super::MANAGING;
    Error::Forbidden(format!("{what} needs the right {right} on the module {module}"))
}

/// Refuses to send a present secret elsewhere.
fn check_move(present: Option<&CredentialRow>, has_moved: bool, may_manage: bool) -> Result<()> {
    if has_moved && !may_manage && present.is_some() {
        return Err(forbidden(
            "to move a repository, or to change what its host is known by, and keep its credential, rather than to give \
             one anew,",
        ));
    }
    Ok(())
}

/// The id under which this owner may use a present credential: an inline one of somebody else's is copied.
async fn adopt(tx: &mut Tx, present: &CredentialRow, asked: &Asked<'_>) -> Result<i64> {
    if !present.is_inline() || present.owner() == Some(asked.owner) {
        return Ok(present.id);
    }
    copy(tx, present, asked.owner, asked.creator).await
}

/// Copies an inline credential for another owner, sealed anew.
pub(crate) async fn copy(tx: &mut Tx, row: &CredentialRow, owner: Owner, creator: &str) -> Result<i64> {
    let secret = store::open(tx.kernel(), row)?;
    let credential = Credential {
        credential_type: row.credential_type,
        name: None,
        username: row.username.clone(),
        secret: Some(secret),
    };
    store::insert(tx, &credential, Some(owner), creator).await
}

/// Stores an inline credential: in the present one's place if that is this owner's and of this kind.
async fn put(
    tx: &mut Tx,
    mut credential: Credential,
    present: Option<&CredentialRow>,
    asked: &Asked<'_>,
) -> Result<i64> {
    if let Some(own) = present.filter(|present| present.owner() == Some(asked.owner)) {
        store::update(tx, own.id, &credential).await?;
        return Ok(own.id);
    }
    if credential.secret.is_none()
        && let Some(other) = present
    {
        credential.secret = Some(store::open(tx.kernel(), other)?);
    }
    store::insert(tx, &credential, Some(asked.owner), asked.creator).await
}
