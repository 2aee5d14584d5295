//! What server and agent cost while nothing is to be done.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bare::{self, Bare};
use crate::machines::{Machines, Wanted};
use crate::report::{Figure, Report, float};
use crate::{Size, rest};

/// Agents with nothing to do.
const AGENTS: usize = 10;
/// The agent linked with musl, where that can be built.
const MUSL_AGENT: &str = "DROVER_BENCH_AGENT_MUSL";

/// A server alone, then with agents.
pub(crate) async fn rows(size: Size, report: &mut Report) -> Result<()> {
    let (mut memory, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(5, 1) {
        let machines = Machines::start(0).await?;
        rest(size).await;
        memory.push(machines.server_memory_mib()?);
        bare.push(Bare::start()?.memory_mib().await?);
    }
    let figure = Figure::new("server at rest, RSS", "MiB", memory).at_most(32.0);
    report.add(figure.beside(bare::WHAT, bare.clone()));
    let machines = Machines::start(AGENTS).await?;
    rest(size).await;
    let figure = Figure::new("idle agent, RSS", "MiB", machines.agents_memory_mib()?).at_most(5.0);
    report.add(figure.beside(bare::WHAT, bare.clone()));
    let (mut servers, mut agents) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(5, 1) {
        let (server, agent, started) = (machines.server_cpu()?, machines.agents_cpu()?, Instant::now());
        tokio::time::sleep(Duration::from_secs(size.pick(20, 5))).await;
        let of_a_core = 100.0 / started.elapsed().as_secs_f64();
        agents.push((machines.agents_cpu()? - agent) / float(AGENTS) * of_a_core);
        servers.push((machines.server_cpu()? - server) * of_a_core);
    }
    report.add(Figure::new("idle agent, of a core", "%", agents).at_most(0.05));
    report.add(Figure::new(format!("server with {AGENTS} idle agents, of a core"), "%", servers));
    if let Some(agent) = std::env::var_os(MUSL_AGENT) {
        let wanted = Wanted { agents: AGENTS, agent: Some(PathBuf::from(agent)), ..Wanted::default() };
        let machines = Machines::start_wanted(wanted).await?;
        rest(size).await;
        let figure = Figure::new("idle agent with musl, RSS", "MiB", machines.agents_memory_mib()?).at_most(2.5);
        report.add(figure.beside(bare::WHAT, bare));
    }
    Ok(())
}
