//! Automation: deploy tasks, the tasks and executions that carry them out, agents, output, sources and artifacts.
//!
//! Owns what design calls the work: a deploy task is reviewed and started, a task is planned and rolled out, an
//! execution runs on one host. Invariants: nothing runs that was not rendered when its task was made; an order is sent
//! to one agent, signed; what was said to be stored is durable.

pub mod archives;
pub mod artifacts;
pub mod channel;
pub mod credentials;
pub mod deploys;
pub mod engine;
pub mod executions;
pub mod instance_logs;
pub mod link;
pub mod locks;
pub mod logs;
pub mod operations;
pub mod output;
pub mod releases;
pub mod render;
pub mod retention;
pub mod schedules;
pub mod script_tasks;
pub mod scripts;
pub mod settings;
pub mod source;
pub mod tasks;
pub mod templates;
mod watching;

use drover_kernel::Routes;
use drover_kernel::jobs::Jobs;
use drover_kernel::resources::Resources;

/// Routes of this area.
#[must_use]
pub fn routes() -> Routes {
    let tasks = deploys::routes()
        .merge(tasks::routes())
        .merge(operations::routes())
        .merge(instance_logs::routes())
        .merge(output::routes())
        .merge(channel::routes())
        .merge(locks::routes())
        .merge(script_tasks::routes());
    let tasks = tasks.merge(releases::routes()).merge(archives::routes()).merge(schedules::routes());
    let settings = credentials::routes().merge(templates::routes()).merge(settings::routes());
    scripts::routes().merge(settings).merge(tasks)
}

/// Kinds of objects of this area.
#[must_use]
pub fn resources() -> Resources {
    let tasks = deploys::resources().merge(tasks::resources()).merge(output::resources());
    tasks.merge(locks::resources()).merge(schedules::resources())
}

/// Background handlers of this area.
#[must_use]
pub fn jobs() -> Jobs {
    engine::jobs()
}
