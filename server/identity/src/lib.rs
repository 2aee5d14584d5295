//! Who there is and who may do what: users, roles, rights, tokens, signing in.
//!
//! Owns the tables of users, roles, memberships, rights, sessions, tokens and failed sign-ins. Invariants: a secret
//! (password, token, session) is stored as a hash alone; what a caller may do is answered by [`IdentityAuthority`], from
//! the tables of [`rights`]; a right that changes leaves one audit entry; one enabled administrator always remains.
//! Absent: mails for forgotten passwords, other directories of users.

mod account;
mod application_grants;
mod authority;
mod grants;
mod host_grants;
mod members;
mod module_grants;
mod password;
mod resource_grants;
pub mod rights;
mod roles;
mod secret;
mod setup;
mod sign_in;
mod throttle;
mod tokens;
mod users;
mod visible;

pub use authority::{IdentityAuthority, caller_of, rights_on_many};
pub use grants::{forget_resource, grant_all};
pub use setup::{create_token, ensure_administrator};
pub use visible::{
    applications_of_role, applications_of_user, hosts_of_role, hosts_of_user, visible_applications, visible_hosts,
};

use drover_kernel::Routes;
use drover_kernel::resources::Resources;

/// Every route of this area.
#[must_use]
pub fn routes() -> Routes {
    Routes::tagged("users")
        .merge(users::routes())
        .merge(account::routes())
        .merge(sign_in::routes())
        .merge(members::routes())
        .merge(roles::routes())
        .merge(tokens::routes())
        .merge(application_grants::routes())
        .merge(host_grants::routes())
        .merge(module_grants::routes())
}

/// Kinds of objects that permissions of other areas may speak about: none, since users and roles have no rights on them.
#[must_use]
pub fn resources() -> Resources {
    Resources::default()
}
