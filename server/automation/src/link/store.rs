//! Agents and join tokens in the database.

use drover_kernel::db::Read;
use drover_kernel::{Error, Result, Time, Tx, args, row, sql};
use drover_shared::message::Hello;

row! {
    /// An enrolled agent.
    pub struct Agent {
        pub id: String,
        pub organisation_id: i64,
        pub host_id: i64,
        pub public_key: String,
    }
}

row! {
    /// A join token.
    pub struct JoinTokenRow {
        pub id: i64,
        pub organisation_id: i64,
        pub host_name: Option<String>,
        pub uses_left: i64,
        pub expires_at: Time,
    }
}

pub(crate) async fn insert_join_token(
    tx: &mut Tx,
    hash: &str,
    host_name: Option<&str>,
    uses: i64,
    expires_at: Time,
) -> Result<i64> {
    let arguments = args![tx.organisation_id(), hash, host_name, uses, expires_at, tx.now()];
    let sql = sql!(
        "INSERT INTO join_tokens (organisation_id, token_hash, host_name, uses_left, expires_at, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING id"
    );
    Ok(tx.value(sql, arguments).await?)
}

/// Takes one use of a join token, if it has one left.
pub(crate) async fn use_join_token(tx: &mut Tx, hash: &str) -> Result<Option<JoinTokenRow>> {
    let now = tx.now();
    let sql = sql!(
        "UPDATE join_tokens SET uses_left = uses_left - 1 WHERE token_hash = $1 AND uses_left > 0 AND expires_at > $2 \
         RETURNING id, organisation_id, host_name, uses_left, expires_at"
    );
    Ok(tx.opt(sql, args![hash, now]).await?)
}

pub(crate) async fn find(read: &mut Read, id: &str) -> Result<Option<Agent>> {
    let sql = sql!("SELECT id, organisation_id, host_id, public_key FROM agents WHERE id = $1");
    Ok(read.opt(sql, args![id]).await?)
}

/// The agent of a host of this name that enrolled with this key, if this join token was ever made.
pub(crate) async fn enrolled_before(
    read: &mut Read,
    hash: &str,
    name: &str,
    public_key: &str,
) -> Result<Option<String>> {
    let sql = sql!(
        "SELECT a.id FROM agents a JOIN hosts h ON h.id = a.host_id JOIN join_tokens j ON j.organisation_id = a.organisation_id \
         WHERE j.token_hash = $1 AND h.name = $2 AND a.public_key = $3"
    );
    Ok(read.values(sql, args![hash, name, public_key]).await?.pop())
}

pub(crate) async fn agent_of_host(read: &mut Read, host_id: i64) -> Result<Option<Agent>> {
    let sql = sql!("SELECT id, organisation_id, host_id, public_key FROM agents WHERE host_id = $1");
    Ok(read.opt(sql, args![host_id]).await?)
}

pub(crate) async fn host_name(read: &mut Read, host_id: i64) -> Result<String> {
    read.opt::<(String,)>(sql!("SELECT name FROM hosts WHERE id = $1"), args![host_id])
        .await?
        .map(|(name,)| name)
        .ok_or_else(|| Error::not_found("host"))
}

/// Adds an agent, in place of the one that the host had.
pub(crate) async fn replace(tx: &mut Tx, id: &str, host_id: i64, public_key: &str) -> Result<()> {
    let (organisation_id, now) = (tx.organisation_id(), tx.now());
    tx.run(sql!("DELETE FROM agents WHERE host_id = $1"), args![host_id]).await?;
    let sql = sql!(
        "INSERT INTO agents (id, organisation_id, host_id, public_key, connected, epoch, enrolled_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)"
    );
    tx.run(sql, args![id, organisation_id, host_id, public_key, false, 0_i64, now]).await?;
    Ok(())
}

row! {
    /// A session that was opened.
    pub struct Opened {
        pub epoch: i64,
        /// When its host was first heard after a restart, the last time.
        pub restarted_at: Option<Time>,
    }
}

/// Opens a session in the database. An agent that does not tell its boot says nothing of a restart.
pub(crate) async fn open_session(tx: &mut Tx, hello: &Hello) -> Result<Opened> {
    let now = tx.now();
    let abilities = serde_json::to_value(&hello.abilities).map_err(Error::internal)?;
    let sql = sql!(
        "UPDATE agents SET epoch = epoch + 1, connected = TRUE, last_seen_at = $2, version = $3, boot_id = $4, \
         abilities = $5, clock_skew_ms = $6, restarted_at = CASE WHEN boot_id <> $4 AND boot_id <> '' AND $4 <> '' THEN $2 \
         ELSE restarted_at END WHERE id = $1 RETURNING epoch, restarted_at"
    );
    let skew = hello.time_ms.saturating_sub(now.millis());
    let arguments =
        args![hello.agent_id.as_str(), now, hello.agent_version.as_str(), hello.boot_id.as_str(), abilities, skew];
    Ok(tx.one(sql, arguments).await?)
}

/// Whether no newer session of an agent was opened than the one with this epoch; none is until the transaction has ended.
pub(crate) async fn is_newest(tx: &mut Tx, agent_id: &str, epoch: i64) -> Result<bool> {
    let sql = sql!("UPDATE agents SET epoch = epoch WHERE id = $1 AND epoch = $2");
    Ok(tx.run(sql, args![agent_id, epoch]).await? == 1)
}

/// Notes a sign of life of the session with this epoch.
pub(crate) async fn seen(tx: &mut Tx, agent_id: &str, epoch: i64, connected: bool, skew_ms: Option<i64>) -> Result<()> {
    let now = tx.now();
    let sql = sql!(
        "UPDATE agents SET last_seen_at = $3, connected = $4, clock_skew_ms = COALESCE($5, clock_skew_ms) \
         WHERE id = $1 AND epoch = $2"
    );
    tx.run(sql, args![agent_id, epoch, now, connected, skew_ms]).await?;
    Ok(())
}

/// No join token works any more.
pub(crate) async fn forget_join_tokens(tx: &mut Tx) -> Result<()> {
    tx.run(sql!("UPDATE join_tokens SET uses_left = 0 WHERE uses_left > 0"), args![]).await?;
    Ok(())
}

/// Nobody is connected.
pub(crate) async fn disconnect_all(tx: &mut Tx) -> Result<()> {
    tx.run(sql!("UPDATE agents SET connected = FALSE WHERE connected"), args![]).await?;
    Ok(())
}
