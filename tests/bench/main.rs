//! `cargo xtask bench`: figures of the whole path with real processes, each beside its limit in the same run.
//!
//! Owns the load and the clock, nothing of the product: it starts release builds, speaks HTTP and websockets to them,
//! and reads `/proc`. Prints a table, and JSON with `--json FILE`.

#![expect(clippy::print_stdout, reason = "a program for people at a terminal")]

mod client;
mod limits;
mod machines;
mod output;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use client::Client;
use machines::Machines;

/// Sub-tasks in the row for latency.
const LATENCY_ROUNDS: usize = 200;
/// Agents, and rounds of one command for each application on each of them, in the row for throughput.
const AGENTS: usize = 10;
/// Agents in the row for memory at rest.
const MANY_AGENTS: usize = 50;
const THROUGHPUT_ROUNDS: usize = 6;
/// Time for the processes to come to rest before their memory is read.
const REST: Duration = Duration::from_secs(3);

struct Row {
    what: &'static str,
    value: String,
    target: &'static str,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let file = std::env::args().skip_while(|argument| argument != "--json").nth(1);
    let mut rows = limits::rows()?;
    let machines = Machines::start(AGENTS).await?;
    let mut client = Client::connect(&machines).await?;
    let applications = describe(&mut client).await?;
    let _ = tokio::time::timeout(REST, std::future::pending::<()>()).await;
    let (server, agent) = (machines.server_memory_kib()?, machines.agent_memory_kib()?);
    rows.push(Row { what: "server with 10 agents, at rest, RSS", value: mib(server), target: "<= 48 MiB with 50" });
    rows.push(Row { what: "idle agent, RSS", value: mib(agent), target: "<= 5 MiB" });
    latency(&mut client, &applications[0], &mut rows).await?;
    throughput(&mut client, &applications, &mut rows).await?;
    let memory = mib(machines.server_memory_kib()?);
    rows.push(Row { what: "server after the load, RSS", value: memory, target: "" });
    drop((client, machines));
    output::rows(&mut rows).await?;
    at_rest(&mut rows).await?;
    print(&rows);
    if let Some(file) = file {
        let rows: Vec<Value> =
            rows.iter().map(|row| json!({"what": row.what, "value": row.value, "target": row.target})).collect();
        std::fs::write(&file, serde_json::to_string_pretty(&rows)? + "\n").with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

/// The server with many agents that have nothing to do.
async fn at_rest(rows: &mut Vec<Row>) -> Result<()> {
    let machines = Machines::start(MANY_AGENTS).await?;
    let _ = tokio::time::timeout(REST, std::future::pending::<()>()).await;
    let (server, agent) = (machines.server_memory_kib()?, machines.agent_memory_kib()?);
    rows.push(Row { what: "server with 50 agents, at rest, RSS", value: mib(server), target: "<= 48 MiB" });
    rows.push(Row { what: "idle agent among 50, RSS", value: mib(agent), target: "<= 5 MiB" });
    Ok(())
}

fn print(rows: &[Row]) {
    println!("{:52} {:>28}   target", "what", "measured");
    for row in rows {
        println!("{:52} {:>28}   {}", row.what, row.value, row.target);
    }
}

fn mib(kib: u64) -> String {
    format!("{}.{} MiB", kib / 1024, (kib % 1024) * 10 / 1024)
}

/// An application with one instance on each of several hosts, and a started deploy task.
struct Application {
    deploy_task: i64,
    instances: Vec<i64>,
}

/// Ten applications on every host, whose only hook does nothing.
async fn describe(client: &mut Client) -> Result<Vec<Application>> {
    let hosts = client.get("/hosts/?page_size=100").await?;
    let hosts: Vec<Value> =
        hosts["results"].as_array().context("hosts")?.iter().map(|host| host["id"].clone()).collect();
    let script = json!({"name": "nothing", "language": "bash", "content": "true\n"});
    let script = client.post("/applications/deploy-scripts/", &script).await?;
    let mut applications = Vec::new();
    for number in 0..AGENTS {
        let application = client.post("/applications/", &json!({"name": format!("application-{number}")})).await?;
        let id = application["id"].as_i64().context("id")?;
        let wanted: Vec<Value> = hosts.iter().map(|host| json!({"hostid": host})).collect();
        let instances = client.post(&format!("/applications/{id}/instances/"), &json!(wanted)).await?;
        let instances =
            instances.as_array().context("instances")?.iter().filter_map(|one| one["id"].as_i64()).collect();
        let settings = json!({"enabled": true, "lifecycle_hooks": {"post_exec": {"script": {"id": script["id"]}}}});
        client.patch(&format!("/applications/{id}/deploy-settings/"), &settings).await?;
        let task =
            json!({"application_id": id, "version": "1", "level": "I", "package_source": "", "planned_exec_time": 1});
        let deploy_task = client.post("/applications/deploy-tasks/", &task).await?["id"].as_i64().context("id")?;
        for action in ["approve", "start"] {
            client.post(&format!("/applications/deploy-tasks/{deploy_task}/actions/{action}/"), &json!({})).await?;
        }
        applications.push(Application { deploy_task, instances });
    }
    Ok(applications)
}

/// One no-op hook on one agent: from the request on a kept connection to the final state at a viewer.
async fn latency(client: &mut Client, application: &Application, rows: &mut Vec<Row>) -> Result<()> {
    let mut times = Vec::with_capacity(LATENCY_ROUNDS);
    for round in 0..LATENCY_ROUNDS + 20 {
        let started = Instant::now();
        let receipt = client.run(application.deploy_task, &application.instances[..1]).await?;
        ensure!(client.follow(&receipt).await? == "finished", "a no-op hook failed");
        // The first ones warm everything up.
        if round >= 20 {
            times.push(started.elapsed());
        }
    }
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let value = format!("p50 {:.1} ms, p99 {:.1} ms", milliseconds(at(50)), milliseconds(at(99)));
    rows.push(Row { what: "one no-op hook, request to final state", value, target: "p50 <= 10 ms, p99 <= 30 ms" });
    Ok(())
}

/// As many commands as ten applications on ten agents give, all tasks of a round at once.
async fn throughput(client: &mut Client, applications: &[Application], rows: &mut Vec<Row>) -> Result<()> {
    let started = Instant::now();
    let mut commands = 0;
    for _ in 0..THROUGHPUT_ROUNDS {
        let mut receipts = Vec::with_capacity(applications.len());
        for application in applications {
            receipts.push(client.run(application.deploy_task, &application.instances).await?);
            commands += application.instances.len();
        }
        for receipt in &receipts {
            ensure!(client.follow(receipt).await? == "finished", "a no-op hook failed");
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let value = format!("{:.0}/s", f64::from(u32::try_from(commands)?) / seconds);
    rows.push(Row { what: "no-op hooks over 10 agents, sustained", value, target: ">= 300/s" });
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
