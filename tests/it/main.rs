//! Tests across areas.

mod identity;
