//! What server and agent cost while nothing is to be done.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::machines::Machines;
use crate::report::{Figure, Report};
use crate::{Size, rest};

/// A server alone, then with an agent.
pub(crate) async fn rows(size: Size, report: &mut Report) -> Result<()> {
    {
        let machines = Machines::start(0).await?;
        rest(size).await;
        let memory = vec![machines.server_memory_mib()?];
        report.add(Figure::new("server at rest, RSS", "MiB", memory).at_most(32.0));
    }
    let machines = Machines::start(10).await?;
    rest(size).await;
    report.add(Figure::new("idle agent, RSS", "MiB", machines.agents_memory_mib()?).at_most(5.0));
    let (server, agents, started) = (machines.server_cpu()?, machines.agents_cpu()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(size.pick(30, 5))).await;
    let seconds = started.elapsed().as_secs_f64();
    let agent = (machines.agents_cpu()? - agents) / 10.0 / seconds * 100.0;
    report.add(Figure::new("idle agent, of a core", "%", vec![agent]).at_most(0.05));
    let server = (machines.server_cpu()? - server) / seconds * 100.0;
    report.add(Figure::new("server with 10 idle agents, of a core", "%", vec![server]));
    Ok(())
}
