//! The application tree in the database: the one place where names and parents change.
//!
//! Invariant: whoever changes a name or a parent holds the organisation's tree, so that two moves cannot close a loop
//! together, and leaves every full name below right, in the same transaction.

use drover_kernel::db::OnDuplicate as _;
use drover_kernel::{Error, Result, Tx, args, row, sql};

use super::rules::{self, Move};
use super::store::{self, ApplicationRow, Details};

row! {
    struct SubtreeRow {
        dots: i64,
        characters: i64,
    }
}

/// Waits until nobody else changes the organisation's tree; until the transaction ends nobody else does.
///
/// # Errors
/// When the database is not available.
pub(super) async fn hold(tx: &mut Tx) -> Result<()> {
    let touch = sql!(
        "INSERT INTO application_trees (organisation_id, revision) VALUES ($1, 1) \
         ON CONFLICT (organisation_id) DO UPDATE SET revision = application_trees.revision + 1"
    );
    let arguments = args![tx.organisation_id()];
    Ok(tx.run(touch, arguments).await.map(drop)?)
}

fn taken(full_name: &str) -> Error {
    Error::conflict(format!("name: there is an application `{full_name}` already"))
}

async fn parent_name(tx: &mut Tx, parent_id: Option<i64>) -> Result<Option<String>> {
    let organisation_id = tx.organisation_id();
    match parent_id {
        Some(parent_id) => Ok(Some(store::load(tx, organisation_id, parent_id).await?.full_name)),
        None => Ok(None),
    }
}

/// Adds an application below a parent and gives its id. The tree must be held.
///
/// # Errors
/// Invalid `parent_app` when the tree would be too deep, a conflict when a sibling has this name.
pub(super) async fn insert(tx: &mut Tx, name: &str, parent_id: Option<i64>, details: &Details) -> Result<i64> {
    let parent = parent_name(tx, parent_id).await?;
    let full_name = rules::place(Move { present: None, parent: parent.as_deref(), name, subtree: (0, 0) })
        .map_err(|reason| Error::invalid("parent_app", reason))?;
    let insert = sql!(
        "INSERT INTO applications (organisation_id, name, full_name, parent_id, description, application_type, \
         run_user, directory, startup_cmd, stop_cmd, stdout_path, stderr_path, pid_path, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING id"
    );
    let arguments = args![
        tx.organisation_id(),
        name,
        full_name.as_str(),
        parent_id,
        details.description.as_str(),
        details.application_type.as_str(),
        details.run_user.as_str(),
        details.directory.as_str(),
        details.startup_cmd.as_str(),
        details.stop_cmd.as_str(),
        details.stdout_path.as_str(),
        details.stderr_path.as_str(),
        details.pid_path.as_str(),
        tx.now()
    ];
    tx.value(insert, arguments).await.on_duplicate(|| taken(&full_name))
}

/// Gives an application a name and a parent, and everything below it the full names that follow. The tree must be held.
///
/// # Errors
/// Invalid `field` when it would stand below itself or too deep, a conflict when a sibling has this name.
pub(super) async fn place(tx: &mut Tx, id: i64, name: &str, parent_id: Option<i64>, field: &str) -> Result<()> {
    let organisation_id = tx.organisation_id();
    let present: ApplicationRow = store::load(tx, organisation_id, id).await?;
    if present.name == name && present.parent_id == parent_id {
        return Ok(());
    }
    let parent = parent_name(tx, parent_id).await?;
    let subtree = subtree(tx, &present.full_name).await?;
    let asked = Move { present: Some(&present.full_name), parent: parent.as_deref(), name, subtree };
    let full_name = rules::place(asked).map_err(|reason| Error::invalid(field, reason))?;
    let update = sql!(
        "UPDATE applications SET name = $3, full_name = $4, parent_id = $5 WHERE organisation_id = $1 AND id = $2"
    );
    let arguments = args![organisation_id, id, name, full_name.as_str(), parent_id];
    tx.run(update, arguments).await.on_duplicate(|| taken(&full_name))?;
    let below = sql!(
        "UPDATE applications SET full_name = CAST($3 AS TEXT) || substr(full_name, length(CAST($2 AS TEXT)) + 1) \
         WHERE organisation_id = $1 \
         AND substr(full_name, 1, length(CAST($2 AS TEXT)) + 1) = CAST($2 AS TEXT) || '.'"
    );
    tx.run(below, args![organisation_id, present.full_name, full_name]).await?;
    Ok(())
}

/// Dots and characters of the longest full names at and below a node.
async fn subtree(tx: &mut Tx, full_name: &str) -> Result<(usize, usize)> {
    let longest = sql!(
        "SELECT CAST(COALESCE(MAX(length(full_name) - length(replace(full_name, '.', ''))), 0) AS BIGINT) AS dots, \
         CAST(COALESCE(MAX(length(full_name)), 0) AS BIGINT) AS characters FROM applications \
         WHERE organisation_id = $1 \
         AND substr(full_name || '.', 1, length(CAST($2 AS TEXT)) + 1) = CAST($2 AS TEXT) || '.'"
    );
    let arguments = args![tx.organisation_id(), full_name];
    let row: SubtreeRow = tx.one(longest, arguments).await?;
    Ok((usize::try_from(row.dots).unwrap_or(0), usize::try_from(row.characters).unwrap_or(0)))
}
