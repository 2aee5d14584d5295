//! Hosts, applications and instances as records.
//!
//! Owns the tables `hosts`, `ip_addresses`, `applications`, `application_trees`, `application_requirements`,
//! `application_persons`, `environments`, `instances`, `instance_states`, `variables` and `secrets`; nothing else writes them. Invariants: an application's full name always
//! follows from its ancestors' names; a host with instances is `attached` or `offline`; an instance changes its state
//! by [`instances::rules::step`] alone. Absent: whatever runs on a host, which is the automation area's.

pub mod applications;
pub mod changes;
mod environments;
pub mod hosts;
pub mod instances;
mod scope;
pub mod secrets;
pub mod variables;

use drover_kernel::Routes;
use drover_kernel::resources::Resources;

/// Every route of this area.
#[must_use]
pub fn routes() -> Routes {
    applications::routes()
        .merge(instances::routes())
        .merge(hosts::routes())
        .merge(environments::routes())
        .merge(variables::routes())
        .merge(secrets::routes())
}

/// The kinds of objects that rights are spoken about here.
#[must_use]
pub fn resources() -> Resources {
    Resources::default().with(applications::resource()).with(hosts::resource())
}
