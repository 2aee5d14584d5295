//! Server and agent stop and are killed while an artifact is fetched, while it is unpacked, and during a revert.

use std::fs;
use std::time::Duration;

use drover_shared::Digest;
use drover_tests::processes::Signal;

use super::*;

/// What happens in the middle.
#[derive(Debug, Clone, Copy)]
enum Blow {
    StopAgent,
    KillAgent,
    StopServer,
    KillServer,
}

const BLOWS: [Blow; 4] = [Blow::StopAgent, Blow::KillAgent, Blow::StopServer, Blow::KillServer];
/// Size of the file that does not compress, and number of small ones.
const LARGE_BYTES: usize = 6 * 1024 * 1024;
const SMALL_FILES: usize = 1500;

/// Waits until a sub-task's output says that a step runs.
async fn step_runs(shop: &Shop, sub_task: &SubTask, step: &str) {
    let mut viewer = Viewer::open(&format!("{}?format=json", sub_task.channel), shop.api().token()).await;
    loop {
        let drover_tests::processes::Seen::Text(lines) = viewer.next().await else { panic!("no step {step}") };
        let mut records = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record"));
        if records.any(|record| record["event"]["step"] == step) {
            return;
        }
    }
}

async fn strike(shop: &mut Shop, blow: Blow) {
    match blow {
        Blow::StopAgent => shop.processes.stop_agent("web-1").await,
        Blow::KillAgent => shop.processes.kill_agent("web-1").await,
        Blow::StopServer => shop.processes.stop_server().await,
        Blow::KillServer => shop.processes.kill_server().await,
    }
    match blow {
        Blow::StopAgent | Blow::KillAgent => shop.processes.start_agent("web-1").await,
        Blow::StopServer | Blow::KillServer => shop.processes.start_server().await,
    }
}

/// A shop whose hook counts its starts.
async fn counting_shop() -> Shop {
    let shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    let hook = format!("echo \"$DROVER_TASK_ID\" >> '{}/starts'", shop.folder().display());
    shop.hook("post_exec", "bash", &hook).await;
    shop
}

/// Commits a version in which every file is new.
fn commit_large(shop: &Shop, version: &str) {
    let mut state = Digest::of(version.as_bytes());
    let mut noise = Vec::with_capacity(LARGE_BYTES);
    while noise.len() < LARGE_BYTES {
        let text = state.to_string();
        noise.extend((0..text.len() / 2).filter_map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()));
        state = Digest::of(text.as_bytes());
    }
    fs::write(shop.repository().join("noise"), noise).expect("a file");
    for number in 0..SMALL_FILES {
        let folder = shop.repository().join(format!("part-{}", number % 10));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(number.to_string()), format!("{version} {number}\n")).expect("a file");
    }
    shop.commit(version, &[("index.html", version)]);
}

/// It went well, at the first attempt, the hook ran once more, and every file is there.
async fn check_end(shop: &Shop, sub_task: &SubTask, version: &str, starts: usize, what: &str) {
    let detail = shop.end_of(sub_task).await;
    assert_eq!(detail["status"], "finished", "{what}: {detail:#}");
    assert_eq!(on_host(&detail, "web-1")["attempt"], 1, "{what}");
    let started = fs::read_to_string(shop.folder().join("starts")).expect("the hook's starts");
    assert_eq!(started.lines().count(), starts, "{what}: {started}");
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some(version), "{what}");
    let last = SMALL_FILES - 1;
    let small = shop.current("web-1", &format!("part-{}/{last}", last % 10));
    assert_eq!(small, Some(format!("{version} {last}\n")), "{what}");
    let output = shop.output(sub_task, "").await;
    assert_eq!(output.closing.reason, "finished", "{what}");
}

async fn deploys_through(step: &str) {
    let mut shop = counting_shop().await;
    for (number, blow) in BLOWS.into_iter().enumerate() {
        let version = format!("v{number}");
        commit_large(&shop, &version);
        let sub_task = shop.deploy(&version).await;
        step_runs(&shop, &sub_task, step).await;
        strike(&mut shop, blow).await;
        check_end(&shop, &sub_task, &version, number + 1, &format!("{blow:?} during {step}")).await;
    }
}

#[tokio::test]
async fn during_fetch() {
    deploys_through("fetch").await;
}

#[tokio::test]
async fn during_unpack() {
    deploys_through("unpack").await;
}

#[tokio::test]
async fn during_a_revert() {
    let mut shop = counting_shop().await;
    for version in ["v1", "v2"] {
        commit_large(&shop, version);
        shop.deployed(version).await;
    }
    let hook = format!("until [ -e '{}/go' ]; do sleep 0.05; done", shop.folder().display());
    shop.hook("pre_exec", "bash", &hook).await;
    let go = shop.folder().join("go");
    for (number, blow) in BLOWS.into_iter().enumerate() {
        for (turn, step) in ["verify", "pre_exec"].into_iter().enumerate() {
            // Back and forth between the two.
            let version = if turn == 0 { "v1" } else { "v2" };
            let sub_task = shop.revert(version).await;
            step_runs(&shop, &sub_task, step).await;
            strike(&mut shop, blow).await;
            fs::write(&go, "").expect("a file");
            let what = format!("{blow:?} during {step} of a revert");
            check_end(&shop, &sub_task, version, 2 + 2 * number + turn + 1, &what).await;
            fs::remove_file(&go).expect("the file");
        }
    }
}

#[tokio::test]
async fn an_agent_that_hangs_is_noticed_and_comes_back() {
    let shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    shop.commit("v1", &[("index.html", "one\n")]);
    let folder = shop.folder().display().to_string();
    let hook =
        format!("echo started >> '{folder}/starts'\nuntil [ -e '{folder}/go' ]; do sleep 0.05; done\necho done\n");
    shop.hook("pre_exec", "bash", &hook).await;
    let sub_task = shop.deploy("v1").await;
    wait_until("the hook to start", async || shop.folder().join("starts").exists()).await;
    shop.processes.signal_agent("web-1", Signal::SIGSTOP);
    // Silent for 45 s at most: nothing tells the server but the time.
    shop.processes.wait_for_connection_within("web-1", false, Duration::from_secs(150)).await;
    let detail = shop.api().get(&sub_task.path).await.expect(200);
    assert_eq!(on_host(&detail, "web-1")["status"], "running", "its execution is not given up");
    fs::write(shop.folder().join("go"), "").expect("a file");
    shop.processes.signal_agent("web-1", Signal::SIGCONT);
    shop.processes.wait_for_connection_within("web-1", true, Duration::from_secs(150)).await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(on_host(&detail, "web-1")["attempt"], 1);
    assert_eq!(fs::read_to_string(shop.folder().join("starts")).expect("the starts"), "started\n");
    assert_eq!(shop.output(&sub_task, "").await.text.matches("done\n").count(), 1);
    shop.deployed("v1").await;
}
