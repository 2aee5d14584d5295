//! Applications and what is linked to them in the database.

use drover_kernel::db::{Condition, DbError, Read, Value};
use drover_kernel::{Error, Paging, Result, Tx, args, row, sql};

use super::rules::Capacity;

row! {
    /// One node of the application tree.
    pub struct ApplicationRow {
        /// Id.
        pub id: i64,
        /// Name of the node.
        pub name: String,
        /// Names from the root to the node, joined by dots.
        pub full_name: String,
        /// Parent.
        pub parent_id: Option<i64>,
        /// Production line.
        pub production_id: Option<i64>,
        /// Free text.
        pub description: String,
        /// Kind of application.
        pub application_type: String,
        /// System account; empty when none was named.
        pub run_user: String,
        /// Deployment directory.
        pub directory: String,
        /// Start command.
        pub startup_cmd: String,
        /// Stop command.
        pub stop_cmd: String,
        /// Standard output file.
        pub stdout_path: String,
        /// Error output file.
        pub stderr_path: String,
        /// Pid file.
        pub pid_path: String,
    }
}

/// What a caller says of an application besides its place in the tree.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// Free text.
    pub description: String,
    /// Kind of application.
    pub application_type: String,
    /// System account.
    pub run_user: String,
    /// Deployment directory.
    pub directory: String,
    /// Start command.
    pub startup_cmd: String,
    /// Stop command.
    pub stop_cmd: String,
    /// Standard output file.
    pub stdout_path: String,
    /// Error output file.
    pub stderr_path: String,
    /// Pid file.
    pub pid_path: String,
}

row! {
    /// A link from one application to another, or to a person.
    pub struct LinkRow {
        /// The application.
        pub application_id: i64,
        /// What it is linked to.
        pub linked_id: i64,
    }
}

row! {
    /// A person responsible for an application.
    pub struct PersonRow {
        /// User.
        pub id: i64,
        /// Display name.
        pub name: String,
        /// E-mail address.
        pub email: String,
        /// Phone number as the user wrote it.
        pub phone: String,
        /// Capacity.
        pub capacity: Capacity,
    }
}

/// One page of the organisation's applications; conditions speak of `a`.
///
/// # Errors
/// When the database is not available.
pub async fn list(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<ApplicationRow>)> {
    let count = sql!("SELECT COUNT(*) FROM applications a WHERE a.organisation_id = $1/* filters */");
    let rows = sql!(
        "SELECT a.id, a.name, a.full_name, a.parent_id, a.production_id, a.description, a.application_type, \
         a.run_user, a.directory, a.startup_cmd, a.stop_cmd, a.stdout_path, a.stderr_path, a.pid_path \
         FROM applications a WHERE a.organisation_id = $1/* filters */ ORDER BY a.id"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

/// Every application that meets the conditions, which speak of `a`.
///
/// # Errors
/// When the database is not available.
pub async fn all(read: &mut Read, organisation_id: i64, conditions: &[Condition]) -> Result<Vec<ApplicationRow>> {
    let rows = sql!(
        "SELECT a.id, a.name, a.full_name, a.parent_id, a.production_id, a.description, a.application_type, \
         a.run_user, a.directory, a.startup_cmd, a.stop_cmd, a.stdout_path, a.stderr_path, a.pid_path \
         FROM applications a WHERE a.organisation_id = $1/* filters */ ORDER BY a.id"
    );
    let mut arguments: Vec<Value> = args![organisation_id];
    let rows = rows.filtered(conditions, &mut arguments);
    Ok(read.all(rows, arguments).await?)
}

/// The applications of these ids, by id.
///
/// # Errors
/// When the database is not available.
pub async fn find_many(read: &mut Read, organisation_id: i64, ids: &[i64]) -> Result<Vec<ApplicationRow>> {
    all(read, organisation_id, &[drover_kernel::when!("a.id IN ($1)", ids.to_vec())]).await
}

/// One application.
///
/// # Errors
/// Not found, or when the database is not available.
pub async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<ApplicationRow> {
    find_many(read, organisation_id, &[id]).await?.pop().ok_or_else(|| Error::not_found("application"))
}

/// Children of these applications that meet the conditions, which speak of `a`.
///
/// # Errors
/// When the database is not available.
pub async fn children(read: &mut Read, ids: &[i64], conditions: &[Condition]) -> Result<Vec<LinkRow>> {
    let rows = sql!(
        "SELECT a.parent_id AS application_id, a.id AS linked_id FROM applications a \
         WHERE a.parent_id IN ($1)/* filters */ ORDER BY a.id"
    );
    let mut arguments = args![ids.to_vec()];
    Ok(read.all(rows.filtered(conditions, &mut arguments), arguments).await?)
}

/// Which of these applications have children, whoever may see them.
///
/// # Errors
/// When the database is not available.
pub async fn parents_among(read: &mut Read, ids: &[i64]) -> Result<Vec<i64>> {
    let rows = sql!("SELECT DISTINCT parent_id FROM applications WHERE parent_id IN ($1)");
    Ok(read.values(rows, args![ids.to_vec()]).await?)
}

/// What these applications depend on, of those that meet the conditions, which speak of `a`.
///
/// # Errors
/// When the database is not available.
pub async fn required(read: &mut Read, ids: &[i64], conditions: &[Condition]) -> Result<Vec<LinkRow>> {
    let rows = sql!(
        "SELECT r.application_id, a.id AS linked_id FROM application_requirements r \
         JOIN applications a ON a.id = r.required_id WHERE r.application_id IN ($1)/* filters */ ORDER BY a.id"
    );
    let mut arguments = args![ids.to_vec()];
    Ok(read.all(rows.filtered(conditions, &mut arguments), arguments).await?)
}

/// Who is responsible for these applications.
///
/// # Errors
/// When the database is not available.
pub async fn responsible(read: &mut Read, ids: &[i64]) -> Result<Vec<LinkRow>> {
    let rows = sql!(
        "SELECT application_id, user_id AS linked_id FROM application_persons WHERE application_id IN ($1) \
         ORDER BY user_id"
    );
    Ok(read.all(rows, args![ids.to_vec()]).await?)
}

/// One page of the persons responsible for an application.
///
/// # Errors
/// When the database is not available.
pub async fn persons(read: &mut Read, paging: &Paging, application_id: i64) -> Result<(i64, Vec<PersonRow>)> {
    let count = sql!("SELECT COUNT(*) FROM application_persons WHERE application_id = $1");
    let rows = sql!(
        "SELECT u.id, u.name, u.email, u.phone, p.capacity FROM application_persons p JOIN users u ON u.id = p.user_id \
         WHERE p.application_id = $1 ORDER BY u.id"
    );
    paging.read(read, count, rows, args![application_id], &[]).await
}

/// The persons of these ids who are responsible for an application.
///
/// # Errors
/// When the database is not available.
pub async fn find_persons(read: &mut Read, application_id: i64, user_ids: &[i64]) -> Result<Vec<PersonRow>> {
    let rows = sql!(
        "SELECT u.id, u.name, u.email, u.phone, p.capacity FROM application_persons p JOIN users u ON u.id = p.user_id \
         WHERE p.application_id = $1 AND u.id IN ($2) ORDER BY u.id"
    );
    Ok(read.all(rows, args![application_id, user_ids.to_vec()]).await?)
}

/// Those of these ids that are users of the organisation.
///
/// # Errors
/// When the database is not available.
pub async fn known_users(read: &mut Read, organisation_id: i64, ids: &[i64]) -> Result<Vec<i64>> {
    let rows = sql!("SELECT id FROM users WHERE organisation_id = $1 AND id IN ($2)");
    Ok(read.values(rows, args![organisation_id, ids.to_vec()]).await?)
}

/// Id of the user of this name.
///
/// # Errors
/// When the database is not available.
pub async fn user_named(read: &mut Read, organisation_id: i64, username: &str) -> Result<Option<i64>> {
    let row = sql!("SELECT id FROM users WHERE organisation_id = $1 AND lower(username) = lower($2)");
    Ok(read.opt::<(i64,)>(row, args![organisation_id, username]).await?.map(|(id,)| id))
}

/// Changes an application's details.
///
/// # Errors
/// A conflict when it is gone.
pub async fn update(tx: &mut Tx, id: i64, details: &Details) -> Result<()> {
    let update = sql!(
        "UPDATE applications SET description = $3, application_type = $4, run_user = $5, directory = $6, \
         startup_cmd = $7, stop_cmd = $8, stdout_path = $9, stderr_path = $10, pid_path = $11 \
         WHERE organisation_id = $1 AND id = $2"
    );
    let arguments = args![
        tx.organisation_id(),
        id,
        details.description.as_str(),
        details.application_type.as_str(),
        details.run_user.as_str(),
        details.directory.as_str(),
        details.startup_cmd.as_str(),
        details.stop_cmd.as_str(),
        details.stdout_path.as_str(),
        details.stderr_path.as_str(),
        details.pid_path.as_str()
    ];
    tx.run_one(update, arguments).await
}

/// Records that an application depends on others; those it depends on already stay.
///
/// # Errors
/// When the database refuses.
pub async fn require(tx: &mut Tx, id: i64, required: &[i64]) -> Result<()> {
    let organisation_id = tx.organisation_id();
    let present: Vec<i64> = self::required(tx, &[id], &[]).await?.into_iter().map(|link| link.linked_id).collect();
    let new = required.iter().filter(|required| !present.contains(required));
    let rows = new.map(|required| args![organisation_id, id, *required]).collect();
    let insert =
        sql!("INSERT INTO application_requirements (organisation_id, application_id, required_id) VALUES ($1, $2, $3)");
    Ok(tx.insert_many(insert, rows).await?)
}

/// Drops dependencies.
///
/// # Errors
/// When the database refuses.
pub async fn release(tx: &mut Tx, id: i64, required: &[i64]) -> Result<()> {
    let delete = sql!("DELETE FROM application_requirements WHERE application_id = $1 AND required_id IN ($2)");
    Ok(tx.run(delete, args![id, required.to_vec()]).await.map(drop)?)
}

/// Makes persons responsible, each in a capacity; who is there already changes it.
///
/// # Errors
/// When the database refuses.
pub async fn appoint(tx: &mut Tx, id: i64, persons: &[(i64, Capacity)]) -> Result<()> {
    let organisation_id = tx.organisation_id();
    let users: Vec<i64> = persons.iter().map(|(user_id, _)| *user_id).collect();
    dismiss(tx, id, &users).await?;
    let rows = persons.iter().map(|(user_id, capacity)| args![organisation_id, id, *user_id, *capacity]).collect();
    let insert = sql!(
        "INSERT INTO application_persons (organisation_id, application_id, user_id, capacity) VALUES ($1, $2, $3, $4)"
    );
    Ok(tx.insert_many(insert, rows).await?)
}

/// Withdraws persons.
///
/// # Errors
/// When the database refuses.
pub async fn dismiss(tx: &mut Tx, id: i64, users: &[i64]) -> Result<()> {
    let delete = sql!("DELETE FROM application_persons WHERE application_id = $1 AND user_id IN ($2)");
    Ok(tx.run(delete, args![id, users.to_vec()]).await.map(drop)?)
}

/// What keeps an application from being deleted: names of hosts with instances, ids of deploy tasks not closed.
///
/// # Errors
/// When the database is not available.
pub async fn in_use(read: &mut Read, id: i64) -> Result<(Vec<String>, Vec<i64>)> {
    let hosts = sql!(
        "SELECT h.name FROM instances i JOIN hosts h ON h.id = i.host_id WHERE i.application_id = $1 ORDER BY h.name"
    );
    let tasks = sql!("SELECT id FROM deploy_tasks WHERE application_id = $1 AND status <> 'closed' ORDER BY id");
    Ok((read.values(hosts, args![id]).await?, read.values(tasks, args![id]).await?))
}

/// Removes an application without children or instances, with its links.
///
/// # Errors
/// A conflict when something came to use it meanwhile, not found when it is gone.
pub async fn delete(tx: &mut Tx, id: i64) -> Result<()> {
    let arguments = args![tx.organisation_id(), id];
    match tx.run(sql!("DELETE FROM applications WHERE organisation_id = $1 AND id = $2"), arguments).await {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::not_found("application")),
        Err(DbError::Reference) => Err(Error::conflict("the application came to be used just now")),
        Err(error) => Err(error.into()),
    }
}

/// Takes the row's lock before it is read, so that of two changes at the same time the second one sees the first.
pub(super) async fn hold(tx: &mut Tx, id: i64) -> Result<()> {
    let sql = sql!("UPDATE applications SET name = name WHERE organisation_id = $1 AND id = $2");
    let organisation_id = tx.organisation_id();
    Ok(tx.run(sql, args![organisation_id, id]).await.map(drop)?)
}
