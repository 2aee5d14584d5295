//! The queue: how fast executions that wait leave for their agents, each marked as sent and committed before it goes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::Client;
use crate::machines::{Machines, Wanted};
use crate::report::{Figure, Report, float, percentile};
use crate::simulated::{News, Simulated, Way};
use crate::work::{self, NOTHING, Script};
use crate::{Size, limits};

/// Agents that the waiting executions are for.
const AGENTS: usize = 20;
/// How long an order may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn rows(size: Size, database: Option<String>, report: &mut Report) -> Result<()> {
    let engine = if database.is_some() { "PostgreSQL" } else { "SQLite" };
    let machines = Machines::start_wanted(Wanted { database, ..Wanted::default() }).await?;
    let mut client = Client::connect(&machines).await?;
    let runs = size.pick(5, 1);
    let way = Way::new(&machines.join_token(runs * (AGENTS + 1))?)?;
    let (mut rates, mut syncs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        rates.push(burst(size, &mut client, &way, run).await?);
        syncs.push(limits::syncs_per_second()?);
    }
    let what = format!("queued executions dispatched, {engine}");
    let figure = Figure::new(what, "/s", rates).at_least(3000.0);
    report.add(figure.beside("appends of 4 KiB, each durable", syncs));
    let (mut middles, mut lates, mut least, mut least_late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        let mut times = single(size, &mut client, &way, run).await?;
        let mut syncs = limits::syncs()?;
        middles.push(percentile(&mut times, 50));
        lates.push(percentile(&mut times, 99));
        least.push(percentile(&mut syncs, 50));
        least_late.push(percentile(&mut syncs, 99));
    }
    let limit = "a wait for the disk";
    let what = format!("one execution, answer to order at the agent, {engine}, p50");
    report.add(Figure::new(what, "ms", middles).at_most(2.0).beside(limit, least));
    report.add(Figure::new("the same, p99", "ms", lates).beside(limit, least_late));
    Ok(())
}

/// A server that is killed with many executions waiting, until the first and the last of them are at their agents.
pub(crate) async fn restart(size: Size, report: &mut Report) -> Result<()> {
    let mut machines = Machines::start(0).await?;
    let mut client = Client::connect(&machines).await?;
    let way = Way::new(&machines.join_token(AGENTS)?)?;
    let (agents, hosts, mut news) = agents(&mut client, &way, "restart", AGENTS).await?;
    let count = size.pick(500, 50);
    let applications = work::applications(&mut client, count, &hosts, Script { name: "restart", ..NOTHING }).await?;
    for application in &applications {
        client.run(application.deploy_task, &application.instances).await?;
    }
    let killed = Instant::now();
    machines.restart_server().await?;
    let served = killed.elapsed();
    let living: Vec<JoinHandle<()>> = agents.into_iter().map(|agent| tokio::spawn(agent.live())).collect();
    let wanted = applications.len() * AGENTS;
    let first = order(&mut news).await?.duration_since(killed);
    let mut last = killed;
    for _ in 1..wanted {
        last = order(&mut news).await?;
    }
    living.iter().for_each(JoinHandle::abort);
    let what = |part: &str| format!("killed with {wanted} queued executions, {part}");
    report.add(Figure::new(what("until it serves"), "s", vec![served.as_secs_f64()]));
    report.add(Figure::new(what("to the first order"), "s", vec![first.as_secs_f64()]).at_most(5.0));
    let last = last.duration_since(killed).as_secs_f64();
    report.add(Figure::new(what("to the last order"), "s", vec![last]));
    Ok(())
}

/// Agents of their own, whose names begin with `name`; gives the hosts as well.
async fn agents(
    client: &mut Client,
    way: &Way,
    name: &str,
    count: usize,
) -> Result<(Vec<Simulated>, Vec<i64>, UnboundedReceiver<News>)> {
    let before = work::hosts(client).await?;
    let (news, heard) = unbounded_channel();
    let mut agents = Vec::with_capacity(count);
    for number in 0..count {
        let mut agent = Simulated::new(way, format!("{name}-{number}"), news.clone())?;
        agent.enrol().await?;
        agents.push(agent);
    }
    let mut hosts = work::hosts(client).await?;
    hosts.retain(|host| !before.contains(host));
    Ok((agents, hosts, heard))
}

/// Many executions wait for agents that are not there; then these come. Gives orders in a second.
async fn burst(size: Size, client: &mut Client, way: &Way, run: usize) -> Result<f64> {
    let (agents, hosts, mut news) = agents(client, way, &format!("burst-{run}"), AGENTS).await?;
    let names = ["burst-a", "burst-b", "burst-c", "burst-d", "burst-e"];
    let script = Script { name: names[run % names.len()], ..NOTHING };
    let applications = work::applications(client, size.pick(40, 10), &hosts, script).await?;
    for application in &applications {
        client.run(application.deploy_task, &application.instances).await?;
    }
    let started = Instant::now();
    let living: Vec<JoinHandle<()>> = agents.into_iter().map(|agent| tokio::spawn(agent.live())).collect();
    let wanted = applications.len() * AGENTS;
    let mut last = started;
    for _ in 0..wanted {
        last = order(&mut news).await?;
    }
    living.iter().for_each(JoinHandle::abort);
    Ok(float(wanted) / last.duration_since(started).as_secs_f64())
}

/// Milliseconds from the answer to a request until its order is at the agent.
async fn single(size: Size, client: &mut Client, way: &Way, run: usize) -> Result<Vec<f64>> {
    let (agents, hosts, mut news) = agents(client, way, &format!("single-{run}"), 1).await?;
    let names = ["single-a", "single-b", "single-c", "single-d", "single-e"];
    let script = Script { name: names[run % names.len()], ..NOTHING };
    let applications = work::applications(client, size.pick(100, 20), &hosts, script).await?;
    let living: Vec<JoinHandle<()>> = agents.into_iter().map(|agent| tokio::spawn(agent.live())).collect();
    let Some(News::Welcomed) = timeout(PATIENCE, news.recv()).await? else { bail!("not welcome") };
    let mut times = Vec::with_capacity(applications.len());
    for application in &applications {
        client.run(application.deploy_task, &application.instances).await?;
        let answered = Instant::now();
        let came = order(&mut news).await?;
        // The order may be first.
        times.push(came.saturating_duration_since(answered).as_secs_f64() * 1000.0);
    }
    living.iter().for_each(JoinHandle::abort);
    Ok(times)
}

async fn order(news: &mut UnboundedReceiver<News>) -> Result<Instant> {
    loop {
        match timeout(PATIENCE, news.recv()).await?.context("the agents are gone")? {
            News::Order(came) => return Ok(came),
            News::Welcomed => {}
        }
    }
}
