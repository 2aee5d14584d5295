//! Who holds which role, changed from either side.
//!
//! Invariants: a call changes all it names or nothing; what is so already is no error and leaves no audit entry.

use std::collections::BTreeMap;

use drover_kernel::call::{Administrator, SelfOrAdministrator};
use drover_kernel::db::Sql;
use drover_kernel::{
    Audit, AuditEntry, AuditList, Call, Error, Ids, Message, Path, Reply, Result, Routes, Tx, args, row, sql,
};

use crate::roles::{self, RoleOut, roles_of};
use crate::users::{self, UserOut, UserRow};

pub(crate) fn routes() -> Routes {
    Routes::tagged("roles")
        .get("/users/{id}/roles/", "user-roles-list", "List the roles of a user.", roles_of_user)
        .post("/users/{id}/roles/", "user-roles-add", "Give roles to a user.", give_roles)
        .delete("/users/{id}/roles/", "user-roles-remove", "Take roles from a user.", take_roles)
        .get("/roles/{id}/users/", "role-users-list", "List the users who hold a role.", users_of_role)
        .post("/roles/{id}/users/", "role-users-add", "Give a role to users.", add_users)
        .delete("/roles/{id}/users/", "role-users-remove", "Take a role from users.", remove_users)
}

async fn roles_of_user(call: Call<SelfOrAdministrator>, Path(id): Path<i64>) -> Result<Reply<Vec<RoleOut>>> {
    let mut read = call.read().await?;
    users::load(&mut read, call.organisation_id(), id).await?;
    Ok(Reply::new(roles_of(&mut read, id).await?))
}

async fn users_of_role(call: Call<Administrator>, Path(id): Path<i64>) -> Result<Reply<Vec<UserOut>>> {
    let mut read = call.read().await?;
    roles::load(&mut read, call.organisation_id(), id).await?;
    let sql = sql!(
        "SELECT u.id, u.organisation_id, u.username, u.name, u.email, u.phone, u.status, u.administrator, \
         u.password_hash FROM users u JOIN role_users ru ON ru.user_id = u.id WHERE ru.role_id = $1 ORDER BY u.id"
    );
    let users: Vec<UserRow> = read.all(sql, args![id]).await?;
    Ok(Reply::new(users.into_iter().map(UserOut::from).collect()))
}

async fn give_roles(call: Call<Administrator>, Path(id): Path<i64>, ids: Ids) -> Result<Reply<Message>> {
    change(call, Side::User(id), ids, Change::Give).await
}

async fn take_roles(call: Call<Administrator>, Path(id): Path<i64>, ids: Ids) -> Result<Reply<Message>> {
    change(call, Side::User(id), ids, Change::Take).await
}

async fn add_users(call: Call<Administrator>, Path(id): Path<i64>, ids: Ids) -> Result<Reply<Message>> {
    change(call, Side::Role(id), ids, Change::Give).await
}

async fn remove_users(call: Call<Administrator>, Path(id): Path<i64>, ids: Ids) -> Result<Reply<Message>> {
    change(call, Side::Role(id), ids, Change::Take).await
}

/// Whose address the call came to; the body names those of the other side.
#[derive(Clone, Copy)]
enum Side {
    User(i64),
    Role(i64),
}

#[derive(Clone, Copy)]
enum Change {
    Give,
    Take,
}

row! {
    struct Named {
        id: i64,
        name: String,
    }
}

async fn change(call: Call<Administrator>, side: Side, Ids(ids): Ids, change: Change) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let (role_ids, user_ids) = match side {
        Side::User(id) => {
            users::load(&mut tx, organisation_id, id).await?;
            (ids, vec![id])
        }
        Side::Role(id) => {
            roles::load(&mut tx, organisation_id, id).await?;
            (vec![id], ids)
        }
    };
    let roles =
        named(&mut tx, sql!("SELECT id, name FROM roles WHERE organisation_id = $1 AND id IN ($2)"), &role_ids, "role")
            .await?;
    let users = named(
        &mut tx,
        sql!("SELECT id, username AS name FROM users WHERE organisation_id = $1 AND id IN ($2)"),
        &user_ids,
        "user",
    )
    .await?;
    let (sql, action) = match change {
        Change::Give => (
            sql!(
                "INSERT INTO role_users (organisation_id, role_id, user_id) \
                 SELECT r.organisation_id, r.id, u.id FROM roles r \
                 JOIN users u ON u.organisation_id = r.organisation_id \
                 WHERE r.organisation_id = $1 AND r.id IN ($2) AND u.id IN ($3) \
                 ON CONFLICT DO NOTHING RETURNING role_id, user_id"
            ),
            "add_role",
        ),
        Change::Take => (
            sql!(
                "DELETE FROM role_users WHERE organisation_id = $1 AND role_id IN ($2) AND user_id IN ($3) \
                 RETURNING role_id, user_id"
            ),
            "remove_role",
        ),
    };
    let changed: Vec<Membership> = tx.all(sql, args![organisation_id, role_ids, user_ids]).await?;
    let name = |all: &BTreeMap<i64, String>, id: i64| all.get(&id).cloned().unwrap_or_default();
    let entries = changed
        .iter()
        .map(|membership| {
            let (role, user) = (name(&roles, membership.role_id), name(&users, membership.user_id));
            AuditEntry::new(AuditList::General, action, "user", membership.user_id, user).detail(format!("role {role}"))
        })
        .collect();
    tx.commit(Audit::all(entries), Message::success()).await
}

row! {
    struct Membership {
        role_id: i64,
        user_id: i64,
    }
}

/// Those of the ids with their names; all of them must exist.
async fn named(tx: &mut Tx, sql: Sql, ids: &[i64], noun: &str) -> Result<BTreeMap<i64, String>> {
    let organisation_id = tx.organisation_id();
    let found: Vec<Named> = tx.all(sql, args![organisation_id, ids.to_vec()]).await?;
    let found: BTreeMap<i64, String> = found.into_iter().map(|named| (named.id, named.name)).collect();
    match ids.iter().find(|id| !found.contains_key(id)) {
        Some(missing) => Err(Error::invalid("id", format!("there is no {noun} {missing}"))),
        None => Ok(found),
    }
}
