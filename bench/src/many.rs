//! Ten thousand agents with nothing to do, over TLS, and what becomes of a server to which all of them come back at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::bare::Bare;
use crate::client::Client;
use crate::machines::Machines;
use crate::report::{Figure, Report, float};
use crate::simulated::{News, Simulated, Way};
use crate::{Size, rest};

/// Agents that enrol at a time.
const ENROLLING: usize = 64;
/// Pause between two requests of a person.
const PAUSE: Duration = Duration::from_millis(20);
/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) async fn rows(size: Size, report: &mut Report) -> Result<()> {
    let count = size.pick(10_000, 2_000);
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
    let (mut times, mut answers, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.pick(3, 1) {
        while heard.try_recv().is_ok() {}
        let started = Instant::now();
        machines.restart_server().await?;
        let person = Person::new(&machines);
        welcomed(&mut heard, count).await?;
        times.push(started.elapsed().as_secs_f64());
        answers.push(person.longest().await?);
        peaks.push(machines.server_peak_mib()?);
    }
    report.add(Figure::new("all of them back after the server was killed", "s", times).at_most(15.0));
    report.add(Figure::new("what a person asks meanwhile, the longest answer", "s", answers).at_most(1.0));
    report.add(Figure::new("server meanwhile, RSS at most", "MiB", peaks));
    living.iter().for_each(JoinHandle::abort);
    Ok(())
}

/// Somebody who asks for hosts again and again, from a thread of their own.
struct Person {
    enough: Arc<AtomicBool>,
    asking: JoinHandle<Result<f64>>,
}

impl Person {
    fn new(machines: &Machines) -> Self {
        let (address, token) = (machines.address().to_owned(), machines.token().to_owned());
        let enough = Arc::new(AtomicBool::new(false));
        let until = enough.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut longest = 0.0_f64;
                while !until.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    let mut client = Client::connect_to(address.clone(), token.clone()).await?;
                    client.get("/hosts/?page_size=20").await?;
                    longest = longest.max(started.elapsed().as_secs_f64());
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(longest)
            })
        });
        Self { enough, asking }
    }

    /// The longest time that an answer took.
    async fn longest(self) -> Result<f64> {
        self.enough.store(true, Ordering::Relaxed);
        self.asking.await?
    }
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
