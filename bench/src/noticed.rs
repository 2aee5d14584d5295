//! How long it takes until it is told that an agent is away.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::time::timeout;

use crate::Size;
use crate::client::Client;
use crate::machines::Machines;
use crate::report::{Figure, Report};

/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) async fn rows(size: Size, report: &mut Report) -> Result<()> {
    let mut machines = Machines::start(1).await?;
    let mut client = Client::connect(&machines).await?;
    told(&mut client, true).await?;
    let mut killed = Vec::new();
    for _ in 0..size.pick(5, 2) {
        machines.kill_agent(0)?;
        killed.push(told(&mut client, false).await?);
        machines.start_agent_again(0)?;
        told(&mut client, true).await?;
    }
    report.add(Figure::new("an agent that was killed, until it is told to be away", "s", killed).at_most(1.0));
    let mut silent = Vec::new();
    for _ in 0..size.pick(3, 1) {
        machines.signal_agent(0, Signal::SIGSTOP)?;
        silent.push(told(&mut client, false).await?);
        machines.signal_agent(0, Signal::SIGCONT)?;
        told(&mut client, true).await?;
    }
    report.add(Figure::new("an agent that hangs, until it is told to be away", "s", silent).at_most(46.0));
    Ok(())
}

/// How long it takes until the only host is told to be connected, or not, in seconds.
async fn told(client: &mut Client, connected: bool) -> Result<f64> {
    let started = Instant::now();
    let looking = async {
        while client.get("/hosts/").await?["results"][0]["agent"]["connected"] != connected {
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, looking).await.context("it is not told")??;
    Ok(started.elapsed().as_secs_f64())
}
