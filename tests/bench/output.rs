//! Figures of output: through to a viewer, into a download, and found again.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::machines::Machines;
use crate::{Application, Row};

/// Runs of each figure.
const RUNS: usize = 5;
/// Lines that hardly compress.
const MILLION: &str = "import random, sys\n\
    dice = random.Random(1)\n\
    piece = b''.join(b'%07d %s\\n' % (n, dice.randbytes(46).hex()[:91].encode()) for n in range(10000))\n\
    for _ in range(100): sys.stdout.buffer.write(piece)\n\
    sys.stdout.buffer.flush()\n";
const MILLION_BYTES: usize = 100_000_000;
const QUIET_LINES: usize = 300;
const QUIET: &str = "import sys, time\n\
    for _ in range(300):\n    time.sleep(0.01)\n    print('at %d' % time.time_ns(), flush=True)\n";

pub(crate) async fn rows(rows: &mut Vec<Row>) -> Result<()> {
    let machines = Machines::start(1).await?;
    let mut client = Client::connect(&machines).await?;
    let loud = application(&mut client, "loud", MILLION).await?;
    let quiet = application(&mut client, "quiet", QUIET).await?;
    through_a_pipe(rows)?;
    let task = through_to_a_viewer(&mut client, &loud, rows).await?;
    let memory =
        format!("{} and {}", crate::mib(machines.server_memory_kib()?), crate::mib(machines.agent_memory_kib()?));
    rows.push(Row { what: "server and agent after that, RSS", value: memory, target: "<= 64 MiB each" });
    lag(&mut client, &quiet, rows).await?;
    download(&client, &task, rows).await?;
    search(&mut client, &task, rows).await
}

/// An application on the one host, whose only hook is this script.
async fn application(client: &mut Client, name: &str, script: &str) -> Result<Application> {
    let hosts = client.get("/hosts/").await?;
    let script = json!({"name": name, "language": "python", "content": script});
    let script = client.post("/applications/deploy-scripts/", &script).await?;
    let id = client.post("/applications/", &json!({"name": name})).await?["id"].as_i64().context("id")?;
    let wanted = json!([{"hostid": hosts["results"][0]["id"]}]);
    let made = client.post(&format!("/applications/{id}/instances/"), &wanted).await?;
    let instance = made[0]["id"].as_i64().context("instance")?;
    let settings = json!({"enabled": true, "lifecycle_hooks": {"post_exec": {"script": {"id": script["id"]}}}});
    client.patch(&format!("/applications/{id}/deploy-settings/"), &settings).await?;
    let task =
        json!({"application_id": id, "version": "1", "level": "I", "package_source": "", "planned_exec_time": 1});
    let deploy_task = client.post("/applications/deploy-tasks/", &task).await?["id"].as_i64().context("id")?;
    for action in ["approve", "start"] {
        client.post(&format!("/applications/deploy-tasks/{deploy_task}/actions/{action}/"), &json!({})).await?;
    }
    Ok(Application { deploy_task, instances: vec![instance] })
}

fn through_a_pipe(rows: &mut Vec<Row>) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let started = Instant::now();
        let mut child = Command::new("python3").args(["-c", MILLION]).stdout(Stdio::piped()).spawn()?;
        let mut pipe = child.stdout.take().context("a pipe")?;
        let mut piece = vec![0; 64 * 1024];
        while pipe.read(&mut piece)? > 0 {}
        child.wait()?;
        times.push(started.elapsed().as_secs_f64());
    }
    rows.push(Row { what: "limit: 1,000,000 lines through a pipe", value: spread(times, "s", 3), target: "" });
    Ok(())
}

/// Request to the last byte and the final state at a viewer; gives the number of the last task.
async fn through_to_a_viewer(client: &mut Client, loud: &Application, rows: &mut Vec<Row>) -> Result<String> {
    let (mut times, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
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
        rates.push(1_000_000.0 / started.elapsed().as_secs_f64());
    }
    let what = "1,000,000 lines of 100 bytes, complete at a viewer";
    rows.push(Row { what, value: spread(times, "s", 2), target: "<= 2 s" });
    rows.push(Row { what: "lines through to a viewer", value: spread(rates, "/s", 0), target: "" });
    let path = format!("/applications/deploy-tasks/{}/sub-upgrade-tasks/?page_size=1", loud.deploy_task);
    let task = client.get(&path).await?["results"][0]["task_id"].as_str().context("task_id")?.to_owned();
    Ok(task)
}

/// From a line's own time to its arrival at a viewer: the first byte of each line of a quiet job.
#[expect(clippy::disallowed_methods, reason = "the hook and this program compare the machine's own clock")]
async fn lag(client: &mut Client, quiet: &Application, rows: &mut Vec<Row>) -> Result<()> {
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
    lags.sort_by(f64::total_cmp);
    let at = |percent: usize| lags[(lags.len() * percent / 100).min(lags.len() - 1)];
    let value = format!("p50 {:.1} ms, p99 {:.1} ms", at(50), at(99));
    rows.push(Row { what: "lag of a line of a quiet job at a viewer", value, target: "p50 <= 10 ms, p99 <= 50 ms" });
    Ok(())
}

async fn download(client: &Client, task: &str, rows: &mut Vec<Row>) -> Result<()> {
    let (mut times, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let started = Instant::now();
        let bytes = client.fetch(&format!("/tasks/{task}/output/")).await?;
        ensure!(bytes >= MILLION_BYTES, "only {bytes} bytes in the download");
        times.push(started.elapsed().as_secs_f64());
        limits.push(over_loopback()?);
    }
    rows.push(Row { what: "limit: 100 MB over loopback", value: spread(limits, "s", 3), target: "" });
    rows.push(Row { what: "download of these lines", value: spread(times, "s", 3), target: "<= 0.5 s" });
    Ok(())
}

fn over_loopback() -> Result<f64> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let started = Instant::now();
    let sending = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let piece = vec![7; 64 * 1024];
        (0..MILLION_BYTES / piece.len()).try_for_each(|_| stream.write_all(&piece))
    });
    let mut stream = std::net::TcpStream::connect(address)?;
    let mut piece = vec![0; 64 * 1024];
    while stream.read(&mut piece)? > 0 {}
    sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok(started.elapsed().as_secs_f64())
}

async fn search(client: &mut Client, task: &str, rows: &mut Vec<Row>) -> Result<()> {
    let text = tempfile::NamedTempFile::new()?;
    let made = Command::new("python3").args(["-c", MILLION]).stdout(text.reopen()?).status()?;
    ensure!(made.success(), "python3 failed");
    for (what, limit, query, arguments) in [
        ("search for a text that is not there", "limit: grep -F for it", "q=needle", ["-cF", "needle"]),
        (
            "search for an expression that is not there",
            "limit: grep -E for it",
            "regex=true&q=%5B0-9%5D%7B8%7D%20y",
            ["-cE", "[0-9]{8} y"],
        ),
    ] {
        let (mut rates, mut limits) = (Vec::new(), Vec::new());
        let megabytes = f64::from(u32::try_from(MILLION_BYTES / 1_000_000)?);
        for _ in 0..RUNS {
            let started = Instant::now();
            let found = client.get(&format!("/tasks/{task}/output/search/?{query}")).await?;
            ensure!(found["next"].is_null() && found["matches"] == json!([]), "{found}");
            rates.push(megabytes / started.elapsed().as_secs_f64());
            let started = Instant::now();
            Command::new("grep").args(arguments).arg(text.path()).stdout(Stdio::null()).status()?;
            limits.push(megabytes / started.elapsed().as_secs_f64());
        }
        rows.push(Row { what: limit, value: spread(limits, " MB/s", 0), target: "" });
        rows.push(Row { what, value: spread(rates, " MB/s", 0), target: "" });
    }
    Ok(())
}

/// The middle of several runs, with the least and the most.
fn spread(mut values: Vec<f64>, unit: &str, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else { return "nothing".to_owned() };
    let middle = values[values.len() / 2];
    format!("{middle:.digits$}{unit} ({least:.digits$}-{most:.digits$})")
}
