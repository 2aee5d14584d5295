//! Instances as their hosts see them, over HTTP: their processes and their logs, with agents that only talk.

mod logs;
mod processes;
