//! Join tokens and enrolment.

use std::time::Duration;

use anyhow::Context as _;
use drover_kernel::jobs::Work;
use drover_kernel::{Audit, AuditEntry, AuditList, DEFAULT_ORGANISATION, Kernel, Result};
use drover_shared::Digest;
use drover_shared::token::JoinToken;

use super::keys::{Keys, random_secret};
use super::store;
use crate::engine::Engine;

/// Characters of a host's name.
const NAME_CHARACTERS_MAX: usize = 200;
/// An Ed25519 public key in base64.
const PUBLIC_KEY_CHARACTERS: usize = 44;

/// What a new join token allows.
#[derive(Debug, Clone)]
pub struct JoinTokenOptions {
    /// Address that agents dial.
    pub url: String,
    /// The one host that may use it; any when none is named.
    pub host_name: Option<String>,
    /// How long it works.
    pub ttl: Duration,
    /// How many hosts may use it.
    pub uses: u32,
}

/// Makes a join token; only its hash is stored.
///
/// # Errors
/// When database or keys are not available.
pub async fn create_join_token(work: &Work, keys: &Keys, options: JoinTokenOptions) -> anyhow::Result<String> {
    let secret = random_secret()?;
    let token = JoinToken { url: options.url, ca_fingerprint: keys.ca_fingerprint()?, secret };
    let mut tx = work.begin(DEFAULT_ORGANISATION).await.context("database")?;
    let expires_at = tx.now().after(options.ttl);
    let hash = Digest::of(token.secret.as_bytes()).to_string();
    let host_name = options.host_name.as_deref();
    let id = store::insert_join_token(&mut tx, &hash, host_name, options.uses.into(), expires_at).await?;
    let detail = format!("{} uses", options.uses);
    let entry =
        AuditEntry::new(AuditList::General, "create", "join_token", id, host_name.unwrap_or("any host")).detail(detail);
    tx.finish(Audit::of(entry)).await?;
    Ok(token.encode())
}

/// Why an agent is not taken in.
pub(crate) struct EnrolRefused(pub(crate) String);

/// Takes an agent in: its id, or why not.
pub(crate) async fn enrol(
    kernel: &Kernel,
    secret: &str,
    name: &str,
    public_key: &str,
) -> Result<Result<String, EnrolRefused>> {
    let refuse = |why: String| Ok(Err(EnrolRefused(why)));
    let named = !name.trim().is_empty() && name.trim() == name && name.chars().count() <= NAME_CHARACTERS_MAX;
    if !named || name.chars().any(char::is_control) {
        return refuse(format!("a host's name has 1 to {NAME_CHARACTERS_MAX} characters and no blanks around it"));
    }
    if public_key.len() != PUBLIC_KEY_CHARACTERS {
        return refuse("the public key is no Ed25519 key in base64".to_owned());
    }
    let mut tx = kernel.work().begin(DEFAULT_ORGANISATION).await?;
    let hash = Digest::of(secret.as_bytes()).to_string();
    // It did not hear the answer, or did not live to keep it. Whoever it is has to prove the key all the same.
    if let Some(known) = store::enrolled_before(&mut tx, &hash, name, public_key).await? {
        return Ok(Ok(known));
    }
    let Some(token) = store::use_join_token(&mut tx, &hash).await? else {
        return refuse("the join token is unknown, used up or too old".to_owned());
    };
    if token.host_name.as_deref().is_some_and(|only| only != name) {
        return refuse("the join token is for another host".to_owned());
    }
    let (host_id, created) = drover_inventory::hosts::store::find_or_create(&mut tx, name).await?;
    // A token for any host must not take over one that is enrolled; one made for this host is meant to.
    if token.host_name.is_none() && store::agent_of_host(&mut tx, host_id).await?.is_some() {
        return refuse(format!("{name} is enrolled already; to enrol it anew make a join token for this host"));
    }
    let id = uuid::Uuid::now_v7().to_string();
    store::replace(&mut tx, &id, host_id, public_key).await?;
    let mut entries = vec![AuditEntry::new(AuditList::General, "enrol", "agent", host_id, name)];
    if created {
        let detail = "registered by its agent";
        entries.push(AuditEntry::new(AuditList::Host, "add", "host", host_id, name).detail(detail));
    }
    // The agent that the host had is nobody from now on.
    tx.after_commit(move |kernel| {
        if let Some(former) = kernel.part::<Engine>().hub.find(host_id) {
            former.closed.cancel();
        }
    });
    tx.finish(Audit::all(entries)).await?;
    Ok(Ok(id))
}
