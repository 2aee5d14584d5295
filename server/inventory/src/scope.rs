//! To what variables and secrets belong. Of several of one name the narrowest counts, in the order given here.
//!
//! Owns what their routes have in common. Invariant: whoever may see an object sees what it has, whoever may change it may
//! change that, and each change is in the audit of the object.

use std::future::Future;

use drover_kernel::call::Administrator;
use drover_kernel::db::Read;
use drover_kernel::{AuditEntry, AuditList, Body, Call, Error, Path, Reply, Result, Tx};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{applications, environments, hosts, instances};

drover_shared::words! {
    /// Whose variables or secrets.
    pub enum Scope {
        /// Everybody's.
        Organisation = "organisation",
        /// Those of an application.
        Application = "application",
        /// Those of the hosts of an environment.
        Environment = "environment",
        /// Those of a host.
        Host = "host",
        /// Those of an application on one host.
        Instance = "instance",
    }
}

/// Id under which the organisation's own are kept.
pub(crate) const NONE: i64 = 0;

/// What objects have by name: variables or secrets.
pub(crate) trait Kept: 'static {
    /// As the audit names what the organisation has.
    const NOUN: &'static str;
    /// What is shown of it.
    type Shown: Serialize + JsonSchema + Send + 'static;
    /// A change of it.
    type Change: DeserializeOwned + JsonSchema + Send + 'static;

    /// What an object has.
    fn read(
        read: &mut Read,
        organisation_id: i64,
        of: (Scope, i64),
    ) -> impl Future<Output = Result<Reply<Self::Shown>>> + Send;

    /// Changes what an object has, and commits, with `entry` if anything is another.
    fn change(
        tx: Tx,
        of: (Scope, i64),
        change: Self::Change,
        entry: AuditEntry,
    ) -> impl Future<Output = Result<Reply<Self::Shown>>> + Send;
}

pub(crate) async fn of_organisation<K: Kept>(call: Call<Administrator>) -> Result<Reply<K::Shown>> {
    K::read(&mut call.read().await?, call.organisation_id(), (Scope::Organisation, NONE)).await
}

pub(crate) async fn change_organisation<K: Kept>(
    call: Call<Administrator>,
    Body(change): Body<K::Change>,
) -> Result<Reply<K::Shown>> {
    let tx = call.begin().await?;
    let entry = AuditEntry::new(AuditList::General, "update", "organisation", tx.organisation_id(), K::NOUN);
    K::change(tx, (Scope::Organisation, NONE), change, entry).await
}

pub(crate) async fn of_application<K: Kept>(
    call: Call<applications::View>,
    Path(id): Path<i64>,
) -> Result<Reply<K::Shown>> {
    K::read(&mut call.read().await?, call.organisation_id(), (Scope::Application, id)).await
}

pub(crate) async fn change_application<K: Kept>(
    call: Call<applications::Edit>,
    Path(id): Path<i64>,
    Body(change): Body<K::Change>,
) -> Result<Reply<K::Shown>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let application = applications::store::load(&mut tx, organisation_id, id).await?;
    let entry = AuditEntry::new(AuditList::Application, "update", "application", id, application.full_name);
    K::change(tx, (Scope::Application, id), change, entry).await
}

pub(crate) async fn of_environment<K: Kept>(call: Call<Administrator>, Path(id): Path<i64>) -> Result<Reply<K::Shown>> {
    let mut read = call.read().await?;
    environments::require(&mut read, call.organisation_id(), id).await?;
    K::read(&mut read, call.organisation_id(), (Scope::Environment, id)).await
}

pub(crate) async fn change_environment<K: Kept>(
    call: Call<Administrator>,
    Path(id): Path<i64>,
    Body(change): Body<K::Change>,
) -> Result<Reply<K::Shown>> {
    let mut tx = call.begin().await?;
    let entry = environments::entry_of(&mut tx, id).await?;
    K::change(tx, (Scope::Environment, id), change, entry).await
}

pub(crate) async fn of_host<K: Kept>(call: Call<hosts::View>, Path(id): Path<i64>) -> Result<Reply<K::Shown>> {
    K::read(&mut call.read().await?, call.organisation_id(), (Scope::Host, id)).await
}

pub(crate) async fn change_host<K: Kept>(
    call: Call<hosts::Edit>,
    Path(id): Path<i64>,
    Body(change): Body<K::Change>,
) -> Result<Reply<K::Shown>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    let host = hosts::store::load(&mut tx, organisation_id, id).await?;
    let entry = AuditEntry::new(AuditList::Host, "update", "host", id, host.name);
    K::change(tx, (Scope::Host, id), change, entry).await
}

pub(crate) async fn of_instance<K: Kept>(
    call: Call<applications::View>,
    Path((id, instance_id)): Path<(i64, i64)>,
) -> Result<Reply<K::Shown>> {
    let mut read = call.read().await?;
    find_instance(&mut read, id, instance_id).await?;
    K::read(&mut read, call.organisation_id(), (Scope::Instance, instance_id)).await
}

pub(crate) async fn change_instance<K: Kept>(
    call: Call<applications::Edit>,
    Path((id, instance_id)): Path<(i64, i64)>,
    Body(change): Body<K::Change>,
) -> Result<Reply<K::Shown>> {
    let mut tx = call.begin().await?;
    let instance = find_instance(&mut tx, id, instance_id).await?;
    let organisation_id = tx.organisation_id();
    let application = applications::store::load(&mut tx, organisation_id, id).await?;
    let name = format!("{} on {}", application.full_name, instance.host_name);
    let entry = AuditEntry::new(AuditList::Application, "update", "application", id, name);
    K::change(tx, (Scope::Instance, instance_id), change, entry).await
}

/// An instance, found under its own application alone.
async fn find_instance(read: &mut Read, id: i64, instance_id: i64) -> Result<instances::store::InstanceRow> {
    let row = instances::store::load_many(read, id, &[instance_id]).await?.pop();
    row.ok_or_else(|| Error::not_found("instance"))
}
