//! Roles: sets of rights for several users.
//!
//! Owns the table of roles and its routes. Invariant: what a role carried goes with it.

use drover_kernel::call::Administrator;
use drover_kernel::db::{Condition, OnDuplicate as _, Read};
use drover_kernel::fields::Name;
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Page, Paging, Path, Query, Reply, Result, Routes, args,
    row, sql, when,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) fn routes() -> Routes {
    Routes::tagged("roles")
        .get("/roles/", "roles-list", "List roles.", list)
        .post("/roles/", "role-create", "Create a role.", create)
        .get("/roles/{id}/", "role-detail", "Read one role.", detail)
        .patch("/roles/{id}/", "role-update", "Rename a role.", update)
        .delete("/roles/{id}/", "role-delete", "Delete a role.", delete)
}

row! {
    /// One role.
    pub(crate) struct RoleRow {
        pub(crate) id: i64,
        pub(crate) name: String,
        pub(crate) creator: String,
    }
}

/// A set of rights for several users.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Role")]
pub(crate) struct RoleOut {
    /// Id.
    id: i64,
    /// Name.
    name: String,
    /// Username that made it.
    creator: String,
}

impl From<RoleRow> for RoleOut {
    fn from(role: RoleRow) -> Self {
        Self { id: role.id, name: role.name, creator: role.creator }
    }
}

/// The role of this id within the organisation.
///
/// # Errors
/// Not found.
pub(crate) async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<RoleRow> {
    let sql = sql!("SELECT id, name, creator FROM roles WHERE organisation_id = $1 AND id = $2");
    read.opt(sql, args![organisation_id, id]).await?.ok_or_else(|| Error::not_found("role"))
}

/// The roles that a user holds.
pub(crate) async fn roles_of(read: &mut Read, user_id: i64) -> Result<Vec<RoleOut>> {
    let sql = sql!(
        "SELECT r.id, r.name, r.creator FROM roles r JOIN role_users ru ON ru.role_id = r.id WHERE ru.user_id = $1 \
         ORDER BY r.id"
    );
    let roles: Vec<RoleRow> = read.all(sql, args![user_id]).await?;
    Ok(roles.into_iter().map(RoleOut::from).collect())
}

fn entry(action: &str, role: &RoleRow) -> AuditEntry {
    AuditEntry::new(AuditList::General, action, "role", role.id, role.name.as_str())
}

fn taken() -> Error {
    Error::conflict("a role of this name exists")
}

#[derive(Deserialize, JsonSchema)]
struct RoleFilter {
    /// Part of the name.
    name: Option<Name>,
}

async fn list(
    call: Call<Administrator>,
    paging: Paging,
    Query(filter): Query<RoleFilter>,
) -> Result<Reply<Page<RoleOut>>> {
    let mut conditions = Vec::new();
    if let Some(name) = filter.name {
        conditions.push(when!("lower(r.name) LIKE $1 ESCAPE '\\'", Condition::pattern(&name.0)));
    }
    let (count, roles) = paging
        .read::<RoleRow>(
            &mut call.read().await?,
            sql!("SELECT COUNT(*) FROM roles r WHERE r.organisation_id = $1/* filters */"),
            sql!("SELECT r.id, r.name, r.creator FROM roles r WHERE r.organisation_id = $1/* filters */ ORDER BY r.id"),
            args![call.organisation_id()],
            &conditions,
        )
        .await?;
    Ok(Reply::new(paging.page(count, roles.into_iter().map(RoleOut::from).collect())))
}

async fn detail(call: Call<Administrator>, Path(id): Path<i64>) -> Result<Reply<RoleOut>> {
    let role = load(&mut call.read().await?, call.organisation_id(), id).await?;
    Ok(Reply::new(role.into()))
}

#[derive(Deserialize, JsonSchema)]
struct NewRole {
    /// Name; unique.
    name: Name,
}

async fn create(call: Call<Administrator>, Body(body): Body<NewRole>) -> Result<Reply<RoleOut>> {
    let name = body.name.required("name")?;
    let creator = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let sql = sql!(
        "INSERT INTO roles (organisation_id, name, creator, created_at) VALUES ($1, $2, $3, $4) \
         RETURNING id, name, creator"
    );
    let arguments = args![tx.organisation_id(), name, creator, tx.now()];
    let role: RoleRow = tx.one(sql, arguments).await.on_duplicate(taken)?;
    tx.commit(Audit::of(entry("create", &role)), role.into()).await
}

#[derive(Deserialize, JsonSchema)]
struct RoleChange {
    /// Name; unique.
    name: Option<Name>,
}

async fn update(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(body): Body<RoleChange>,
) -> Result<Reply<RoleOut>> {
    let wanted = body.name.map(|name| name.required("name")).transpose()?;
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let mut role = load(&mut tx, organisation_id, id).await?;
    let Some(wanted) = wanted.filter(|wanted| *wanted != role.name) else {
        return Ok(Reply::new(role.into()));
    };
    let sql = sql!("UPDATE roles SET name = $3 WHERE organisation_id = $1 AND id = $2");
    let changed = tx.run(sql, args![organisation_id, id, &wanted]).await.on_duplicate(taken)?;
    if changed == 0 {
        return Err(Error::not_found("role"));
    }
    let detail = format!("name: {} -> {wanted}", role.name);
    role.name = wanted;
    tx.commit(Audit::of(entry("update", &role).detail(detail)), role.into()).await
}

async fn delete(call: Call<Administrator>, Path(id): Path<i64>) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let role = load(&mut tx, organisation_id, id).await?;
    let users = tx.run(sql!("DELETE FROM role_users WHERE role_id = $1"), args![id]).await?;
    let resources =
        tx.run(sql!("DELETE FROM resource_rights WHERE subject_type = 'role' AND subject_id = $1"), args![id]).await?;
    let modules =
        tx.run(sql!("DELETE FROM module_rights WHERE subject_type = 'role' AND subject_id = $1"), args![id]).await?;
    tx.run_one(sql!("DELETE FROM roles WHERE organisation_id = $1 AND id = $2"), args![organisation_id, id]).await?;
    let detail =
        format!("{users} users held it; it carried {resources} rights on single resources and {modules} on modules");
    tx.commit(Audit::of(entry("delete", &role).detail(detail)), Message::success()).await
}
