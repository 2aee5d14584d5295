//! Automation: tasks and what carries them out.

pub mod logs;
