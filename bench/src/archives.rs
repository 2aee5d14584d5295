//! Releases on their way: a large archive to ten hosts, one of which loses its agent in the middle, and consecutive
//! releases of a real repository, of which only what changed is moved.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Size;
use crate::client::Client;
use crate::machines::{Machines, wait_until};
use crate::report::{Figure, Report};
use crate::work;

/// Hosts that a large archive goes to.
const HOSTS: usize = 10;
/// How long a release may take on its way.
const PATIENCE: Duration = Duration::from_secs(1200);
/// A repository whose consecutive tags are deployed: path and tags, with commas.
const REPOSITORY: &str = "DROVER_BENCH_REPOSITORY";
const TAGS: &str = "DROVER_BENCH_TAGS";

/// A large archive that cannot be compressed, uploaded and deployed.
pub(crate) async fn many(size: Size, report: &mut Report) -> Result<()> {
    let megabytes = size.pick(500, 50);
    let mut machines = Machines::start(HOSTS).await?;
    let mut client = Client::connect(&machines).await?;
    let archive = machines.folder().join("large.tar");
    let source = pack(&machines.folder().join("large"), &archive, megabytes * 1_000_000)?;
    let shop = Shop::new(&mut client, &machines, json!({"type": "ARCHIVE"})).await?;
    let started = Instant::now();
    let output = machines.drover()?.args(["archive", "upload", "shop", "--version", "1"]).arg(&archive).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let what = format!("{megabytes} MB uploaded by `drover`, checked and packed");
    report.add(Figure::new(what, "s", vec![started.elapsed().as_secs_f64()]));
    let started = Instant::now();
    let task = shop.deploy(&mut client, "1").await?;
    let cache = machines.folder().join("host-3/artifacts");
    let enough = megabytes as u64 * 1_000_000 / 5;
    wait_until(|| (bytes_in(&cache) > enough).then_some(())).await.context("no download")?;
    machines.kill_agent(3)?;
    let part = bytes_in(&cache);
    ensure!(part < std::fs::metadata(&archive)?.len(), "the agent was killed when it had everything");
    machines.start_agent_again(3)?;
    shop.end(&mut client, &task).await?;
    let seconds = started.elapsed().as_secs_f64();
    let (now, peak) = (machines.server_memory_mib()?, machines.server_peak_mib()?);
    let part = part / 1_000_000;
    let what = format!("the same on {HOSTS} hosts, one agent killed when it had {part} MB");
    let figure = Figure::new(what, "s", vec![seconds]);
    report
        .add(figure.beside("copied and read as often by cp and sha256sum", vec![copied(&archive, machines.folder())?]));
    report.add(Figure::new("memory of the server behind that", "MiB", vec![now]));
    report.add(Figure::new("and the most that it had", "MiB", vec![peak]));
    report.add(Figure::new("the most that an agent had", "MiB", vec![machines.agents_peak_mib()?]));
    for number in 0..HOSTS {
        let installed = machines.folder().join(format!("site/host-{number}/current/data"));
        ensure!(digest(&installed)? == source, "host {number} has another file");
    }
    Ok(())
}

/// Seconds in which the archive is copied and read for each host by programs that do nothing else.
fn copied(archive: &Path, folder: &Path) -> Result<f64> {
    let copy = folder.join("copy");
    let started = Instant::now();
    for _ in 0..HOSTS {
        let copied = Command::new("cp").arg(archive).arg(&copy).status()?;
        let read = Command::new("sha256sum").arg(&copy).stdout(Stdio::null()).status()?;
        ensure!(copied.success() && read.success(), "cp or sha256sum fails");
        std::fs::File::open(&copy)?.sync_all()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    std::fs::remove_file(copy)?;
    Ok(seconds)
}

fn digest(file: &Path) -> Result<Vec<u8>> {
    let mut digest = Sha256::new();
    std::io::copy(&mut std::fs::File::open(file)?, &mut digest)?;
    Ok(digest.finalize().to_vec())
}

fn bytes_in(folder: &Path) -> u64 {
    let items = std::fs::read_dir(folder).into_iter().flatten().flatten();
    items.filter_map(|item| item.metadata().ok()).map(|meta| meta.len()).sum()
}

/// Packs one file of noise, and gives its SHA-256.
fn pack(folder: &Path, archive: &Path, bytes: usize) -> Result<Vec<u8>> {
    std::fs::create_dir(folder)?;
    let mut noise = std::fs::File::open("/dev/urandom")?;
    let mut file = std::fs::File::create(folder.join("data"))?;
    std::io::copy(&mut std::io::Read::take(&mut noise, bytes as u64), &mut file)?;
    let digest = digest(&folder.join("data"))?;
    let packed = Command::new("tar").arg("-cf").arg(archive).arg("-C").arg(folder).arg(".").status()?;
    ensure!(packed.success(), "tar fails");
    std::fs::remove_dir_all(folder)?;
    Ok(digest)
}

/// Consecutive releases of a repository, each after the one before.
pub(crate) async fn delta(report: &mut Report) -> Result<()> {
    let (Ok(repository), Ok(tags)) = (std::env::var(REPOSITORY), std::env::var(TAGS)) else { return Ok(()) };
    let machines = Machines::start(1).await?;
    let mut client = Client::connect(&machines).await?;
    let source = json!({"type": "GIT", "url": PathBuf::from(&repository), "branch": "main"});
    let shop = Shop::new(&mut client, &machines, source).await?;
    let (mut shares, mut seconds, mut first) = (Vec::new(), Vec::new(), None);
    for tag in tags.split(',') {
        let task = shop.deploy(&mut client, tag).await?;
        let detail = shop.end(&mut client, &task).await?;
        let Fetched { moved, whole, took } = fetched(&detail)?;
        let share = moved.map_or(100.0, |moved| moved / whole * 100.0);
        let moved = moved.unwrap_or(whole);
        let what = format!("{tag}: moved of {:.2} MB, in {took:.2} s", whole / 1e6);
        report.add(Figure::new(what, "MB", vec![moved / 1e6]));
        match first {
            None => first = Some(took),
            Some(_) => {
                shares.push(share);
                seconds.push(took);
            }
        }
    }
    report.add(Figure::new("share of a release that is moved", "%", shares));
    let figure = Figure::new("time of its fetch", "s", seconds);
    report.add(figure.beside("the first, whole", vec![first.context("give tags")?]));
    Ok(())
}

struct Fetched {
    /// Bytes; none if all of it was.
    moved: Option<f64>,
    whole: f64,
    took: f64,
}

/// What the output and the steps of a sub-task say about its fetch.
fn fetched(detail: &Value) -> Result<Fetched> {
    let text = detail["output"].as_str().context("output")?;
    let between = |from: &str, to: &str| text.split_once(from).and_then(|(_, rest)| Some(rest.split_once(to)?.0));
    let whole: f64 = between("fetch: ", " bytes").context("the length of the artifact")?.parse()?;
    let moved = between("moved ", " of ").map(|text| {
        let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
        let factor = match unit {
            "MB" => 1e6,
            "kB" => 1e3,
            _ => 1.0,
        };
        number.parse::<f64>().map(|number| number * factor)
    });
    let steps = detail["instances"][0]["steps"].as_array().context("steps")?;
    let fetch = steps.iter().find(|step| step["name"] == "fetch").context("a fetch")?;
    let took = fetch["duration_ms"].as_f64().context("its time")? / 1000.0;
    Ok(Fetched { moved: moved.transpose()?, whole, took })
}

/// An application on every host.
struct Shop {
    application: i64,
    instances: Vec<i64>,
}

impl Shop {
    async fn new(client: &mut Client, machines: &Machines, repository: Value) -> Result<Self> {
        let application =
            client.post("/applications/", &json!({"name": "shop"})).await?["id"].as_i64().context("id")?;
        let hosts = work::hosts(client).await?;
        let wanted: Vec<Value> = hosts.iter().map(|host| json!({"hostid": host})).collect();
        let made = client.post(&format!("/applications/{application}/instances/"), &json!(wanted)).await?;
        let instances = made.as_array().context("instances")?.iter().filter_map(|one| one["id"].as_i64()).collect();
        let deploy_path = format!("{}/site/{{{{ host.name }}}}", machines.folder().display());
        let settings = json!({"enabled": true, "repository": repository, "deploy_path": deploy_path, "timeout": 1200});
        client.patch(&format!("/applications/{application}/deploy-settings/"), &settings).await?;
        Ok(Self { application, instances })
    }

    /// Begins to deploy a version; gives the address of the sub-task.
    async fn deploy(&self, client: &mut Client, version: &str) -> Result<String> {
        let id = self.application;
        let task = json!({"application_id": id, "version": version, "level": "I", "package_source": "",
            "planned_exec_time": 1});
        let task = client.post("/applications/deploy-tasks/", &task).await?["id"].as_i64().context("id")?;
        for action in ["approve", "start"] {
            client.post(&format!("/applications/deploy-tasks/{task}/actions/{action}/"), &json!({})).await?;
        }
        let path = format!("/applications/deploy-tasks/{task}/sub-upgrade-tasks/");
        let receipt = client.post(&path, &json!({"instances": self.instances, "version": version})).await?;
        Ok(format!("{path}{}/", receipt["task_id"].as_str().context("task_id")?))
    }

    /// Waits for the end of a sub-task, which has to be good, and gives its detail.
    async fn end(&self, client: &mut Client, path: &str) -> Result<Value> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let detail = client.get(path).await?;
            match detail["status"].as_str() {
                Some("finished") => return Ok(detail),
                Some("running") => tokio::time::sleep(Duration::from_millis(100)).await,
                _ => bail!("{detail:#}"),
            }
        }
        bail!("{path} does not end")
    }
}
