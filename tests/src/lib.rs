//! The test kit: a whole server in process, on either engine, with a clock that the test moves.
//!
//! Invariants: every test has a database of its own; nothing is shared between tests but read-only templates; time
//! stands still unless the test moves it.

mod client;
mod database;
pub mod kit;
pub mod processes;
mod server;
pub mod stub_agent;
pub mod torture;
mod waiting;
pub mod wire;

pub use client::{Answer, Client, TestUser};
pub use database::Engine;
pub use server::{ADMIN_PASSWORD, TestServer, USER_PASSWORD, with_server};
pub use waiting::{wait_until, wait_within};

/// Makes a test of each function, once for each engine: `name::sqlite` and `name::postgres`.
///
/// ```text
/// both_engines! {
///     async fn users_are_listed(server: TestServer) {
///         server.admin().get("/users/").await.expect(200);
///     }
/// }
/// ```
#[macro_export]
macro_rules! both_engines {
    ($($(#[$meta:meta])* async fn $name:ident($server:ident: TestServer) $body:block)+) => {$(
        $(#[$meta])*
        mod $name {
            #[expect(clippy::allow_attributes, reason = "not every test uses what is around it")]
            #[allow(unused_imports, reason = "not every test uses what is around it")]
            use super::*;

            async fn run($server: $crate::TestServer) $body

            #[tokio::test]
            async fn sqlite() {
                Box::pin($crate::with_server($crate::Engine::Sqlite, Default::default(), run)).await;
            }

            #[tokio::test]
            async fn postgres() {
                Box::pin($crate::with_server($crate::Engine::Postgres, Default::default(), run)).await;
            }
        }
    )+};
}
