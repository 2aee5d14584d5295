//! What every area stands on; it knows no word of any of them.
//!
//! Owns calls and permissions, the database, audit, background jobs, errors, routes, lists, time and configuration
//! that all areas share. Invariants: no handler without a permission, no statement without a call or a piece of work,
//! no commit without an audit. sqlx, apalis and axum's router are named in this crate alone.

pub mod at_once;
pub mod audit;
pub mod call;
pub mod clock;
pub mod db;
pub mod error;
pub mod extract;
pub mod fields;
pub mod http;
mod idempotency;
pub mod jobs;
pub mod kernel;
pub mod key_file;
pub mod metrics;
pub mod page;
mod panics;
pub mod proxies;
pub mod pulse;
pub mod resources;
pub mod retention;
pub mod room;
pub mod routes;
pub mod secrets;
pub mod serve;
mod trace;
pub mod tx;

pub use audit::{Audit, AuditEntry, AuditList};
pub use call::{Call, Caller};
pub use clock::{Clock, Time};
pub use error::{Error, Result};
pub use extract::{Body, Ids, OFFSET_OCTETS, Path, Pieces, Query};
pub use kernel::{Kernel, KernelBuilder, Settings};
pub use page::{Page, Paging};
pub use panics::caught;
pub use routes::{Message, Reply, Routes};
pub use secrets::Sealer;
pub use trace::current_request_id;
pub use tx::Tx;

/// The organisation that everything belongs to until more are made.
pub const DEFAULT_ORGANISATION: i64 = 1;
