//! Ten thousand agents with nothing to do, over TLS.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::bare::Bare;
use crate::machines::Machines;
use crate::report::{Figure, Report, float};
use crate::simulated::{News, Simulated, Way};
use crate::{Size, rest};

/// Agents that enrol at a time.
const ENROLLING: usize = 64;
/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) async fn rows(size: Size, report: &mut Report) -> Result<()> {
    let count = size.pick(10_000, 500);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut machines = Machines::start(0).await?;
    let way = Way::new(&machines.join_token(count)?)?;
    let (news, mut heard) = unbounded_channel();
    let enrolling = stream::iter(0..count).map(|number| {
        let (way, news) = (&way, news.clone());
        async move {
            let mut agent = Simulated::new(way, format!("idle-{number}"), news)?;
            agent.enrol().await?;
            anyhow::Ok(agent)
        }
    });
    let agents: Vec<Simulated> = enrolling.buffer_unordered(ENROLLING).try_collect().await?;
    rest(size).await;
    let least = Bare::start()?.connection_kib(count).await?;
    let before = machines.server_memory_mib()?;
    let living: Vec<_> = agents.into_iter().map(|agent| tokio::spawn(agent.live())).collect();
    welcomed(&mut heard, count).await?;
    rest(size).await;
    let each = (machines.server_memory_mib()? - before) * 1024.0 / float(count);
    let what = format!("{count} idle agents over TLS, at the server, each");
    let figure = Figure::new(what, "KiB", vec![each]).at_most(20.0);
    report.add(figure.beside("a bare TLS connection", vec![least]));
    let (cpu, begun) = (machines.server_cpu()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(size.pick(20, 2))).await;
    let share = (machines.server_cpu()? - cpu) / begun.elapsed().as_secs_f64() * 100.0;
    report.add(Figure::new("the server meanwhile, of a core", "%", vec![share]));
    let mut times = Vec::new();
    for _ in 0..size.pick(3, 1) {
        while heard.try_recv().is_ok() {}
        let started = Instant::now();
        machines.restart_server().await?;
        welcomed(&mut heard, count).await?;
        times.push(started.elapsed().as_secs_f64());
    }
    report.add(Figure::new("all of them back after the server was killed", "s", times).at_most(15.0));
    living.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

async fn welcomed(heard: &mut UnboundedReceiver<News>, count: usize) -> Result<()> {
    let all = async {
        for _ in 0..count {
            heard.recv().await.context("the agents are gone")?;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, all).await.context("not all of the agents came")?
}
