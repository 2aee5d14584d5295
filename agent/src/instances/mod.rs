//! Instances as the host sees them: whether their processes live, and what stands in their logs.
//!
//! Paths come from people who may be less than this agent is. Invariant: nothing below such a path is read by the agent
//! itself; a small process of its own does that ([`look`]), which has become the instance's account first and ends with
//! its answer. What the agent does with such a path by itself is to notice that the file there is another one.

pub mod log;
pub mod look;
mod pid_file;
mod process;
mod text;
pub mod watch;
