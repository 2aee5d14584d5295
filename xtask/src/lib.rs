//! What other packages' tests need of the development tasks: the project's own sources under the rules of the house, and
//! what is installed, started and stopped around a run.
//!
//! Invariants: what is found in the sources depends on the files alone, in an order that is the same everywhere; whatever
//! is started here ends with its guard.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "for people at a terminal, who wait")]

pub mod debian;
pub mod postgres;
pub mod process;
pub mod scan;
pub mod scratch;
pub mod sources;
pub mod tidy;
