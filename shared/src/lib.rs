//! The words that server, agent and command line must agree on.
//!
//! Owns the wire protocol between server and agent (control messages, data frames, log records), the signed
//! order to run something, what an archive may contain, and the enumerations that are stored and shown everywhere. Plain data and codecs only:
//! no I/O, no clock, no runtime. Whatever is added here must decode what an older peer sends: a new field has a
//! default, a new message is skipped by a peer that does not know it.

pub mod chunks;
pub mod digest;
pub mod frame;
pub mod instance;
pub mod limits;
pub mod members;
pub mod message;
pub mod order;
pub mod planted;
pub mod record;
pub mod secret;
pub mod size;
pub mod token;
pub mod words;

pub use digest::Digest;
pub use words::ParseWordError;
