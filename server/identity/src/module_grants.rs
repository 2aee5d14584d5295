//! Rights of users and roles on whole modules.
//!
//! Owns the table of rights on modules. Invariants: a call names only defined modules and rights, or changes nothing;
//! each right that really changed leaves one audit entry.

use std::collections::{BTreeMap, BTreeSet};

use drover_kernel::call::{Administrator, SelfOrAdministrator};
use drover_kernel::db::{OnDuplicate as _, Read};
use drover_kernel::fields::{Flag, Many, Name};
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Message, Path, Query, Reply, Result, Routes, args, permission,
    row, sql,
};
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::grants::{Flags, Subject, subject_name, undefined};
use crate::rights;

permission!(
    pub(crate) Grant,
    "module_rights.grant",
    "Grant rights on modules; whoever is no administrator gets error 30002",
    SignedIn
);

pub(crate) fn routes() -> Routes {
    Routes::tagged("permissions")
        .get("/users/{id}/system/perms/", "user-system-perms-list", "List a user's rights on modules.", of_user)
        .post(
            "/users/{id}/system/perms/",
            "user-system-perms-set",
            "Grant or withdraw a user's rights on whole modules.",
            set_of_user,
        )
        .get("/roles/{id}/system/perms/", "role-system-perms-list", "List a role's rights on modules.", of_role)
        .post(
            "/roles/{id}/system/perms/",
            "role-system-perms-set",
            "Grant or withdraw a role's rights on whole modules.",
            set_of_role,
        )
}

/// Rights on one module.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModulePermissionGrant")]
pub(crate) struct ModuleGrantOut {
    /// Key of the module.
    #[schemars(with = "rights::ModuleName")]
    module_name: &'static str,
    /// Its rights, held or not.
    permissions: BTreeMap<String, bool>,
}

impl ModuleGrantOut {
    /// Rights on one module by name.
    pub(crate) fn new(module_name: &'static str, permissions: BTreeMap<String, bool>) -> Self {
        Self { module_name, permissions }
    }
}

#[derive(Deserialize, JsonSchema)]
struct ModuleFilter {
    /// One module alone.
    module_name: Option<Name>,
}

async fn of_user(
    call: Call<SelfOrAdministrator>,
    Path(id): Path<i64>,
    Query(filter): Query<ModuleFilter>,
) -> Result<Reply<Vec<ModuleGrantOut>>> {
    let mut read = call.read().await?;
    list_of(&mut read, call.organisation_id(), Subject::User, id, filter).await
}

async fn of_role(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Query(filter): Query<ModuleFilter>,
) -> Result<Reply<Vec<ModuleGrantOut>>> {
    let mut read = call.read().await?;
    list_of(&mut read, call.organisation_id(), Subject::Role, id, filter).await
}

row! {
    struct Held {
        module: String,
        right_name: String,
    }
}

async fn held(read: &mut Read, subject: Subject, subject_id: i64) -> Result<BTreeSet<(String, String)>> {
    let sql = sql!("SELECT module, right_name FROM module_rights WHERE subject_type = $1 AND subject_id = $2");
    let rows: Vec<Held> = read.all(sql, args![subject, subject_id]).await?;
    Ok(rows.into_iter().map(|row| (row.module, row.right_name)).collect())
}

async fn list_of(
    read: &mut Read,
    organisation_id: i64,
    subject: Subject,
    subject_id: i64,
    filter: ModuleFilter,
) -> Result<Reply<Vec<ModuleGrantOut>>> {
    let only = match filter.module_name {
        Some(name) => Some(rights::module(&name.0).ok_or_else(|| unknown_module("module_name"))?.name),
        None => None,
    };
    subject_name(read, organisation_id, subject, subject_id).await?;
    let held = held(read, subject, subject_id).await?;
    let modules = rights::MODULES.iter().filter(|module| only.is_none_or(|only| only == module.name));
    let grants = modules.map(|module| {
        let flags = module.rights.iter().map(|right| {
            let (of, name) = right.same_as.unwrap_or((module.name, right.name));
            (right.name.to_owned(), held.contains(&(of.to_owned(), name.to_owned())))
        });
        ModuleGrantOut::new(module.name, flags.collect())
    });
    Ok(Reply::new(grants.collect()))
}

fn unknown_module(field: impl Into<String>) -> Error {
    let names: Vec<&str> = rights::MODULES.iter().map(|module| module.name).collect();
    Error::invalid(field, format!("is not one of: {}", names.join(", ")))
}

#[derive(Deserialize, JsonSchema)]
struct ModuleGrant {
    /// Module whose rights are set.
    module_name: Name,
    /// true grants, false withdraws, absent leaves as it is; the allowed names depend on the module.
    #[serde(alias = "permission")]
    permissions: Flags,
}

async fn set_of_user(
    call: Call<Grant>,
    Path(id): Path<i64>,
    Body(body): Body<Many<ModuleGrant>>,
) -> Result<Reply<Message>> {
    set_of(call, Subject::User, id, body.0).await
}

async fn set_of_role(
    call: Call<Grant>,
    Path(id): Path<i64>,
    Body(body): Body<Many<ModuleGrant>>,
) -> Result<Reply<Message>> {
    set_of(call, Subject::Role, id, body.0).await
}

/// What shall be: by module and right.
type Wanted = BTreeMap<(&'static str, &'static str), bool>;

fn wanted(grants: &[ModuleGrant]) -> Result<Wanted> {
    let mut wanted = Wanted::new();
    for (index, grant) in grants.iter().enumerate() {
        let module = &grant.module_name.0;
        if rights::module(module).is_none() {
            return Err(unknown_module(format!("[{index}].module_name")));
        }
        for (spelling, flag) in &grant.permissions {
            let found = rights::find_in_module(module, spelling)
                .ok_or_else(|| undefined(format!("[{index}].permissions.{spelling}"), spelling))?;
            if let Some(Flag(flag)) = flag {
                wanted.insert(found, *flag);
            }
        }
    }
    Ok(wanted)
}

async fn set_of(
    call: Call<Grant>,
    subject: Subject,
    subject_id: i64,
    grants: Vec<ModuleGrant>,
) -> Result<Reply<Message>> {
    if !call.caller()?.administrator {
        return Err(Error::coded(400, 30002, "administrators alone may grant rights on modules"));
    }
    let wanted = wanted(&grants)?;
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let name = subject_name(&mut tx, organisation_id, subject, subject_id).await?;
    let held = held(&mut tx, subject, subject_id).await?;
    let (mut entries, mut rows) = (Vec::new(), Vec::new());
    let mut withdrawn: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((module, right), flag) in wanted {
        if held.contains(&(module.to_owned(), right.to_owned())) == flag {
            continue;
        }
        if flag {
            rows.push(args![organisation_id, subject, subject_id, module, right]);
        } else {
            withdrawn.entry(module).or_default().push(right.to_owned());
        }
        let action = if flag { "enable" } else { "disable" };
        let entry = AuditEntry::new(AuditList::ModuleRight, action, "module", subject_id, module);
        entries.push(entry.right(right, subject.as_str(), &name));
    }
    let sql = sql!(
        "INSERT INTO module_rights (organisation_id, subject_type, subject_id, module, right_name) \
         VALUES ($1, $2, $3, $4, $5)"
    );
    tx.insert_many(sql, rows).await.on_duplicate(|| Error::conflict("the rights were changed at the same time"))?;
    for (module, rights) in withdrawn {
        let sql = sql!(
            "DELETE FROM module_rights WHERE organisation_id = $1 AND subject_type = $2 AND subject_id = $3 \
             AND module = $4 AND right_name IN ($5)"
        );
        tx.run(sql, args![organisation_id, subject, subject_id, module, rights]).await?;
    }
    tx.commit(Audit::all(entries), Message::success()).await
}
