//! Looking at the project's own sources: the scanner and the rules of the house.
//!
//! Owns nothing that runs: other packages call it from their tests. Invariant: what is found depends on the files
//! alone, in an order that is the same everywhere.

pub mod scan;
pub mod sources;
pub mod tidy;
