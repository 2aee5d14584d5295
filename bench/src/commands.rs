//! Commands: how long one takes, how many go through, and what each costs.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::bare::{self, Bare};
use crate::client::Client;
use crate::limits;
use crate::machines::{Machines, Wanted};
use crate::report::{Figure, Report, float, percentile};
use crate::work::{self, Application, NOTHING};
use crate::{Size, rest};

/// Agents, and applications on each of them, in the row for throughput.
const AGENTS: usize = 10;
/// What the server makes durable for a command that nobody shares a commit with: task, outcome, end of the output.
const WAITS: f64 = 3.0;
/// Agents in the rows for many.
const MANY_AGENTS: usize = 50;

/// One no-op hook on one agent: from the request on a kept connection to the final state at a viewer.
pub(crate) async fn latency(size: Size, report: &mut Report) -> Result<()> {
    let machines = Machines::start(1).await?;
    let mut client = Client::connect(&machines).await?;
    let hosts = work::hosts(&mut client).await?;
    let applications = work::applications(&mut client, 1, &hosts, NOTHING).await?;
    let application = applications.first().context("an application")?;
    // The first ones warm everything up.
    once(&mut client, application, 20).await?;
    let (mut middles, mut lates, mut least, mut least_late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.pick(5, 2) {
        let mut times = once(&mut client, application, size.pick(200, 50)).await?;
        middles.push(percentile(&mut times, 50));
        lates.push(percentile(&mut times, 99));
        least.push(limits::least_hook(50)?);
        least_late.push(limits::least_hook(99)?);
    }
    let limit = "a bare bash and five waits for the disk";
    report
        .add(Figure::new("no-op hook, request to final state, p50", "ms", middles).at_most(10.0).beside(limit, least));
    report.add(Figure::new("the same, p99", "ms", lates).at_most(30.0).beside(limit, least_late));
    shell(size, &machines, &mut client, application, report).await
}

/// Milliseconds of each of several commands, one after the other.
async fn once(client: &mut Client, application: &Application, rounds: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        let receipt = client.run(application.deploy_task, &application.instances[..1]).await?;
        ensure!(client.follow(&receipt).await? == "finished", "a no-op hook failed");
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(times)
}

/// The same by `drover` from the shell.
async fn shell(
    size: Size,
    machines: &Machines,
    client: &mut Client,
    application: &Application,
    report: &mut Report,
) -> Result<()> {
    let (mut times, mut starts) = (Vec::new(), Vec::new());
    let task = application.deploy_task.to_string();
    for _ in 0..size.pick(60, 10) {
        let started = Instant::now();
        let output = machines.drover()?.args(["deploy", "--task", &task, "--yes"]).output()?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        starts.push(limits::program(machines.drover()?.arg("--version"))?);
    }
    let same = once(client, application, 20).await?;
    let figure = Figure::new("no-op hook by `drover` from the shell", "ms", times).at_most(30.0);
    report.add(figure.beside("`drover --version`", starts));
    report.add(Figure::new("the same on a kept connection, at the same time", "ms", same));
    Ok(())
}

/// As many commands as ten applications on ten agents give, all tasks of a round at once; and what each costs.
pub(crate) async fn throughput(size: Size, report: &mut Report) -> Result<()> {
    sustained(size, None, report).await
}

/// The same with PostgreSQL.
pub(crate) async fn sustained(size: Size, database: Option<String>, report: &mut Report) -> Result<()> {
    let engine = if database.is_some() { "PostgreSQL" } else { "SQLite" };
    let machines = Machines::start_wanted(Wanted { agents: AGENTS, database, ..Wanted::default() }).await?;
    let mut client = Client::connect(&machines).await?;
    let hosts = work::hosts(&mut client).await?;
    let applications = work::applications(&mut client, 10, &hosts, NOTHING).await?;
    work::round(&mut client, &applications).await?;
    let (mut rates, mut server, mut agent, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut bare_cpu, mut sync_cpu) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(5, 2) {
        let (server_before, agents_before) = (machines.server_cpu()?, machines.agents_cpu()?);
        let started = Instant::now();
        let mut commands = 0;
        for _ in 0..size.pick(6, 2) {
            commands += work::round(&mut client, &applications).await?;
        }
        let commands = float(commands);
        rates.push(commands / started.elapsed().as_secs_f64());
        server.push((machines.server_cpu()? - server_before) * 1000.0 / commands);
        agent.push((machines.agents_cpu()? - agents_before) * 1000.0 / commands);
        bare.push(limits::spawns_per_second()?);
        bare_cpu.push(limits::spawn_cpu()?);
        sync_cpu.push(limits::sync_cpu()? * WAITS);
    }
    let what = format!("no-op hooks over {AGENTS} agents, {engine}");
    report.add(Figure::new(what, "/s", rates).at_least(300.0).beside("bare bash, eight at a time", bare));
    let figure = Figure::new("processor time for each command, server", "ms", server).at_most(1.5);
    report.add(figure.beside("three durable appends", sync_cpu));
    let figure = Figure::new("the same, agent with supervisor and hook", "ms", agent).at_most(5.0);
    report.add(figure.beside("bare bash", bare_cpu));
    report.add(Figure::new("server after that, RSS", "MiB", vec![machines.server_memory_mib()?]));
    Ok(())
}

/// A thousand commands at once for one agent.
pub(crate) async fn queued(size: Size, report: &mut Report) -> Result<()> {
    let machines = Machines::start(1).await?;
    let mut client = Client::connect(&machines).await?;
    let hosts = work::hosts(&mut client).await?;
    let count = size.pick(1000, 50);
    let applications = work::applications(&mut client, count, &hosts, NOTHING).await?;
    let (mut times, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(3, 1) {
        let started = Instant::now();
        work::round(&mut client, &applications).await?;
        times.push(started.elapsed().as_secs_f64());
        bare.push(float(count) / limits::spawns_per_second()?);
    }
    let figure = Figure::new(format!("{count} commands queued to one agent"), "s", times).at_most(5.0);
    report.add(figure.beside("bare bash, eight at a time", bare));
    Ok(())
}

/// One no-op hook on fifty agents; and the server with so many that have nothing to do.
pub(crate) async fn fifty(size: Size, report: &mut Report) -> Result<()> {
    let (mut memory, mut bare) = (Vec::new(), Vec::new());
    for _ in 1..size.pick(3, 1) {
        let machines = Machines::start(MANY_AGENTS).await?;
        rest(size).await;
        memory.push(machines.server_memory_mib()?);
    }
    let machines = Machines::start(MANY_AGENTS).await?;
    let mut client = Client::connect(&machines).await?;
    rest(size).await;
    memory.push(machines.server_memory_mib()?);
    bare.push(Bare::start()?.memory_mib().await?);
    let figure = Figure::new("server with 50 agents, at rest, RSS", "MiB", memory).at_most(48.0);
    report.add(figure.beside(bare::WHAT, bare));
    let hosts = work::hosts(&mut client).await?;
    let applications = work::applications(&mut client, 1, &hosts, NOTHING).await?;
    work::round(&mut client, &applications).await?;
    let (mut times, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(10, 3) {
        let started = Instant::now();
        work::round(&mut client, &applications).await?;
        times.push(started.elapsed().as_secs_f64());
        bare.push(float(MANY_AGENTS) / limits::spawns_per_second()?);
    }
    let figure = Figure::new("one no-op hook on 50 agents", "s", times).at_most(0.25);
    report.add(figure.beside("50 bare bash, eight at a time", bare));
    Ok(())
}
