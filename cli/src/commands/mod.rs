//! The commands, one file for each group.

pub(crate) mod archive;
mod deploy;
pub(crate) mod instance;
mod instance_logs;
mod inventory;
pub(crate) mod lock;
mod logs;
mod plan;
pub(crate) mod release;
mod revert;
mod rollout;
pub(crate) mod run;
pub(crate) mod schedule;
mod session;
mod sub_task;
mod task;
mod together;

use crate::api::Server;
use crate::arguments::{App, Arguments, Command, Global, Host};
use crate::failure::Result;
use crate::settings;

/// Carries out a command.
pub(crate) fn run(Arguments { global, command }: Arguments) -> Result<()> {
    match command {
        Command::Login(login) => session::login(&global, &login),
        Command::Logout => session::logout(&global),
        Command::Whoami => session::whoami(&server(&global)?, global.json),
        Command::Deploy(deploy) => deploy::run(&server(&global)?, &deploy, global.json),
        Command::Revert(revert) => revert::run(&server(&global)?, &revert, global.json),
        Command::Plan(plan) => plan::run(&server(&global)?, &plan, global.json),
        Command::Approve(approve) => task::approve(&server(&global)?, &approve, global.json),
        Command::Pause(action) => sub_task::act(&server(&global)?, &action, "pause", global.json),
        Command::Resume(action) => sub_task::act(&server(&global)?, &action, "resume", global.json),
        Command::Proceed(action) => sub_task::act(&server(&global)?, &action, "proceed", global.json),
        Command::Promote(action) => sub_task::act(&server(&global)?, &action, "promote", global.json),
        Command::Refuse(action) => sub_task::act(&server(&global)?, &action, "refuse", global.json),
        Command::Cancel(cancel) => sub_task::cancel(&server(&global)?, &cancel, global.json),
        Command::Skip(skip) => sub_task::skip(&server(&global)?, &skip, global.json),
        Command::Answer(answer) => sub_task::answer(&server(&global)?, &answer, global.json),
        Command::Retry(retry) => sub_task::retry(&server(&global)?, &retry, global.json),
        Command::Prioritise(prioritise) => sub_task::prioritise(&server(&global)?, &prioritise, global.json),
        Command::Queue(list) => lock::queue(&server(&global)?, &list, global.json),
        Command::Locks(locks) => lock::locks(&server(&global)?, &locks, global.json),
        Command::Lock(command) => lock::run(&server(&global)?, &command, global.json),
        Command::Task(task) => task::run(&server(&global)?, &task, global.json),
        Command::Run(script) => run::run(&server(&global)?, &script, global.json),
        Command::Instance(command) => instance::run(&server(&global)?, &command, global.json),
        Command::Logs(logs) => logs::run(&server(&global)?, &logs, global.json),
        Command::Archive(command) => archive::run(&server(&global)?, &command, global.json),
        Command::Schedule(command) => schedule::run(&server(&global)?, &command, global.json),
        Command::Release(release) => release::run(&server(&global)?, &release, global.json),
        Command::Host(Host::List(list)) => inventory::hosts(&server(&global)?, &list, global.json),
        Command::App(App::List(list)) => inventory::applications(&server(&global)?, &list, global.json),
    }
}

/// The server, with a token.
fn server(global: &Global) -> Result<Server> {
    let kept = settings::load(&settings::file()?)?;
    let server = Server::new(&settings::target(global, kept.as_ref())?)?;
    server.require_token()?;
    Ok(server)
}
