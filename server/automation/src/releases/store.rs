//! What the database knows of the places of releases.

use drover_kernel::db::Read;
use drover_kernel::{Error, Result, args, sql};
use drover_shared::order::Entry;

/// The folder that an instance was last deployed into.
pub(super) async fn place(read: &mut Read, instance_id: i64) -> Result<Option<String>> {
    // Entries are JSON without blanks; one that has a folder says so at its beginning.
    let sql = sql!(
        "SELECT e.entry FROM executions e WHERE e.instance_id = $1 AND e.dispatched_at IS NOT NULL \
         AND e.entry LIKE '%\"deploy_path\":\"/%' ORDER BY e.id DESC LIMIT 1"
    );
    let found: Vec<String> = read.values(sql, args![instance_id]).await?;
    let Some(text) = found.first() else { return Ok(None) };
    let entry: Entry = serde_json::from_str(text).map_err(Error::internal)?;
    Ok(entry.deploy_path)
}

/// Name of the release in use, as the host last said.
pub(super) async fn current(read: &mut Read, instance_id: i64) -> Result<Option<String>> {
    let sql = sql!("SELECT release_name FROM instance_releases WHERE instance_id = $1 AND is_current");
    Ok(read.values(sql, args![instance_id]).await?.pop())
}
