//! Figures of output: through to a viewer, into a download, and found again.

use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::machines::Machines;
use crate::report::{Figure, Report, float, percentile};
use crate::work::{self, Application, Script};
use crate::{Size, limits};

/// Lines that hardly compress.
const MILLION: &str = "import random, sys\n\
    dice = random.Random(1)\n\
    piece = b''.join(b'%07d %s\\n' % (n, dice.randbytes(46).hex()[:91].encode()) for n in range(10000))\n\
    for _ in range(100): sys.stdout.buffer.write(piece)\n\
    sys.stdout.buffer.flush()\n";
const MILLION_BYTES: usize = 100_000_000;
const QUIET_LINES: usize = 300;
const LOUD: Script = Script { name: "loud", language: "python", content: MILLION };
const QUIET: Script = Script {
    name: "quiet",
    language: "python",
    content: "import sys, time\n\
        for _ in range(300):\n    time.sleep(0.01)\n    print('at %d' % time.time_ns(), flush=True)\n",
};

/// A million lines: live, as a download, and searched.
pub(crate) async fn rows(size: Size, report: &mut Report) -> Result<()> {
    let machines = Machines::start(1).await?;
    let mut client = Client::connect(&machines).await?;
    let hosts = work::hosts(&mut client).await?;
    let loud = work::applications(&mut client, 1, &hosts, LOUD).await?;
    let task = through_to_a_viewer(size, &mut client, &loud[0], report).await?;
    report.add(Figure::new("server after that, peak RSS", "MiB", vec![machines.server_peak_mib()?]).at_most(64.0));
    report.add(Figure::new("agent after that, peak RSS", "MiB", vec![machines.agents_peak_mib()?]).at_most(64.0));
    download(size, &client, &task, report).await?;
    search(size, &mut client, &task, report).await?;
    let peak = vec![machines.server_peak_mib()?];
    report.add(Figure::new("server after download and search, peak RSS", "MiB", peak).at_most(64.0));
    Ok(())
}

/// Request to the last byte and the final state at a viewer; gives the number of the last task.
async fn through_to_a_viewer(
    size: Size,
    client: &mut Client,
    loud: &Application,
    report: &mut Report,
) -> Result<String> {
    let (mut times, mut pipes) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(7, 1) {
        let started = Instant::now();
        let address = client.run(loud.deploy_task, &loud.instances).await?;
        let mut viewer = client.open(&address).await?;
        let mut bytes = 0;
        loop {
            match viewer.next().await.context("the output broke off")?? {
                Message::Text(text) => bytes += text.len(),
                Message::Close(frame) => {
                    ensure!(frame.is_some_and(|frame| frame.reason.as_str() == "finished"), "the task failed");
                    break;
                }
                _ => {}
            }
        }
        ensure!(bytes >= MILLION_BYTES, "only {bytes} bytes at the viewer");
        times.push(started.elapsed().as_secs_f64());
        pipes.push(limits::through_a_pipe(MILLION)?);
    }
    let figure = Figure::new("1,000,000 lines of 100 bytes, complete at a viewer", "s", times).at_most(2.0);
    report.add(figure.beside("the same through a pipe", pipes));
    let path = format!("/applications/deploy-tasks/{}/sub-upgrade-tasks/?page_size=1", loud.deploy_task);
    let task = client.get(&path).await?["results"][0]["task_id"].as_str().context("task_id")?.to_owned();
    Ok(task)
}

/// From a line's own time to its arrival at a viewer: a job that writes a line every 10 ms.
pub(crate) async fn lag(size: Size, report: &mut Report) -> Result<()> {
    let machines = Machines::start(1).await?;
    let mut client = Client::connect(&machines).await?;
    let hosts = work::hosts(&mut client).await?;
    let quiet = work::applications(&mut client, 1, &hosts, QUIET).await?;
    let (mut middles, mut lates, mut least, mut least_late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.pick(5, 1) {
        let mut lags = lags(&mut client, &quiet[0]).await?;
        middles.push(percentile(&mut lags, 50));
        lates.push(percentile(&mut lags, 99));
        least.push(limits::least_line(50)?);
        least_late.push(limits::least_line(99)?);
    }
    let what = "a wait for the disk and an echo";
    report.add(Figure::new("lag of a line of a quiet job, p50", "ms", middles).at_most(10.0).beside(what, least));
    report.add(Figure::new("the same, p99", "ms", lates).at_most(50.0).beside(what, least_late));
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the hook and this program compare the machine's own clock")]
async fn lags(client: &mut Client, quiet: &Application) -> Result<Vec<f64>> {
    let address = client.run(quiet.deploy_task, &quiet.instances).await?;
    let mut viewer = client.open(&address).await?;
    let mut lags = Vec::new();
    while let Some(message) = viewer.next().await {
        let Message::Text(text) = message? else { continue };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        for line in text.lines().filter_map(|line| line.strip_prefix("at ")) {
            let nanoseconds = now.saturating_sub(line.parse()?);
            lags.push(f64::from(u32::try_from(nanoseconds / 1000)?) / 1000.0);
        }
    }
    ensure!(lags.len() == QUIET_LINES, "{} lines of {QUIET_LINES}", lags.len());
    Ok(lags)
}

async fn download(size: Size, client: &Client, task: &str, report: &mut Report) -> Result<()> {
    let (mut times, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(7, 1) {
        let started = Instant::now();
        let bytes = client.fetch(&format!("/tasks/{task}/output/")).await?;
        ensure!(bytes >= MILLION_BYTES, "only {bytes} bytes in the download");
        times.push(started.elapsed().as_secs_f64());
        limits.push(limits::over_loopback(MILLION_BYTES)?);
    }
    report.add(Figure::new("download of these lines", "s", times).at_most(0.5).beside("loopback", limits));
    Ok(())
}

async fn search(size: Size, client: &mut Client, task: &str, report: &mut Report) -> Result<()> {
    let text = tempfile::NamedTempFile::new()?;
    let made = Command::new("python3").args(["-c", MILLION]).stdout(text.reopen()?).status()?;
    ensure!(made.success(), "python3 failed");
    for (what, query, arguments) in [
        ("search for a text that is not there", "q=needle", ["-cF", "needle"]),
        ("search for an expression that is not there", "regex=true&q=%5B0-9%5D%7B8%7D%20y", ["-cE", "[0-9]{8} y"]),
    ] {
        let (mut rates, mut limits) = (Vec::new(), Vec::new());
        let megabytes = float(MILLION_BYTES / 1_000_000);
        for _ in 0..size.pick(5, 1) {
            let started = Instant::now();
            let found = client.get(&format!("/tasks/{task}/output/search/?{query}")).await?;
            ensure!(found["next"].is_null() && found["matches"] == json!([]), "{found}");
            rates.push(megabytes / started.elapsed().as_secs_f64());
            let started = Instant::now();
            Command::new("grep").args(arguments).arg(text.path()).stdout(Stdio::null()).status()?;
            limits.push(megabytes / started.elapsed().as_secs_f64());
        }
        report.add(Figure::new(what, "MB/s", rates).beside("grep", limits));
    }
    Ok(())
}
