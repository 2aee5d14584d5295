//! Automation: tasks and what carries them out.

pub mod artifacts;
pub mod logs;
pub mod render;
pub mod source;
