//! Archives: from a file on somebody's machine to every host, by way of an agent that is killed in the middle.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use drover_shared::Digest;
use drover_tests::wire::Wire;

use super::*;

/// Length of what goes to many hosts. The same with 500 MB is a row of the bench.
const MANY_BYTES: usize = 24 * 1024 * 1024;
const HOSTS: usize = 10;

/// Bytes that no compressor makes shorter, made fast.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Writes files and packs them with the system's own tar.
fn packed(shop: &Shop, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let folder = shop.folder().join(format!("{name}-files"));
    for (name, content) in files {
        let file = folder.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::File::create(file).and_then(|mut file| file.write_all(content)).expect("a file");
    }
    let archive = shop.folder().join(name);
    let compressed = if name.ends_with(".tar.gz") { "-cz" } else { "-c" };
    let mut command = Command::new("tar");
    command.arg("-C").arg(&folder).arg(compressed).arg("-f").arg(&archive).arg(".");
    assert!(command.status().expect("tar starts").success());
    fs::remove_dir_all(folder).expect("the files are packed");
    archive
}

/// Uploads with the command line.
fn upload(shop: &Shop, archive: &Path, version: &str) -> String {
    let output = drover(shop, &["archive", "upload", "shop", &archive.display().to_string(), "--version", version]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn drover(shop: &Shop, arguments: &[&str]) -> std::process::Output {
    drover_at(shop, &shop.processes.url(), arguments).output().expect("the command line starts")
}

/// `drover` with the server at this address.
fn drover_at(shop: &Shop, url: &str, arguments: &[&str]) -> Command {
    let mut command = shop.processes.program("drover");
    command.env("DROVER_URL", url).env("DROVER_TOKEN", shop.api().token()).args(arguments);
    command
}

/// Bytes of artifacts that an agent has, complete or not.
fn cached(shop: &Shop, host: &str) -> u64 {
    let items = fs::read_dir(shop.processes.agent_folder(host).join("artifacts"));
    items.into_iter().flatten().flatten().filter_map(|item| item.metadata().ok()).map(|meta| meta.len()).sum()
}

#[tokio::test]
async fn an_archive_reaches_ten_hosts_though_an_agent_is_killed_in_the_middle() {
    let hosts: Vec<String> = (1..=HOSTS).map(|number| format!("web-{number}")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let mut shop = Shop::open(Engine::Sqlite, &hosts).await;
    shop.set(json!({"repository": {"type": "ARCHIVE"}, "timeout": 600})).await;
    let content = noise(1, MANY_BYTES);
    let archive = packed(&shop, "shop.tar", &[("data.bin", &content), ("index.html", b"one\n")]);
    let told = upload(&shop, &archive, "1.0");
    assert!(told.contains("version 1.0 is ready: 2 files"), "{told}");
    let victim = hosts[HOSTS / 2];
    let wire = Wire::to(shop.processes.agent_address()).await;
    shop.processes.stop_agent(victim).await;
    shop.processes.redirect_agent(victim, &wire);
    shop.processes.start_agent(victim).await;
    // A third of it comes, and no more while the agent lives.
    let whole = MANY_BYTES as u64;
    wire.freeze_after(whole / 3);
    let sub_task = shop.deploy("1.0").await;
    wait_until("a part of the download", async || cached(&shop, victim) > whole / 6).await;
    shop.processes.kill_agent(victim).await;
    let part = cached(&shop, victim);
    assert!(part < whole / 2, "{part} bytes are not the middle");
    wire.cut();
    wire.thaw();
    let before = wire.passed();
    shop.processes.start_agent(victim).await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    let again = wire.passed() - before;
    assert!(again < whole - part / 2, "it began anew: {again} bytes moved after {part} were there");
    let told = shop.output(&sub_task, "?format=json").await.records();
    let goes_on = |record: &Value| record["host"] == victim && record.to_string().contains("fetch: goes on");
    assert!(told.iter().any(goes_on), "{told:?}");
    let wanted = Digest::of(&content);
    for host in &hosts {
        let current = shop.deploy_path(host).join("current");
        let found = Digest::of(&fs::read(current.join("data.bin")).expect("the file"));
        assert_eq!((found, shop.current(host, "index.html").as_deref()), (wanted, Some("one\n")), "{host}");
    }
    let peak = shop.processes.server_memory().peak_kib;
    assert!(peak < 400 * 1024, "the server had {peak} KiB in memory");
}

#[tokio::test]
async fn a_version_that_shares_most_with_the_one_before_moves_little() {
    let shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    shop.set(json!({"repository": {"type": "ARCHIVE"}})).await;
    let (large, small) = (noise(1, 4_000_000), noise(2, 30_000));
    let first = packed(&shop, "one.tar.gz", &[("large.bin", &large), ("small.bin", &small), ("page", b"one\n")]);
    upload(&shop, &first, "1.0");
    shop.deployed("1.0").await;
    let changed = [&large[..2_000_000], b"in the middle", &large[2_000_000..]].concat();
    let second = packed(&shop, "two.tar", &[("large.bin", &changed), ("small.bin", &small), ("page", b"two\n")]);
    upload(&shop, &second, "2.0");
    let sub_task = shop.deployed("2.0").await;
    let output = shop.output(&sub_task, "").await.text;
    assert!(
        output.contains("fetch: verified; moved ") && output.contains(" of 4.0 MB, the rest was here already"),
        "{output}"
    );
    assert_eq!(fs::read(shop.deploy_path("web-1").join("current/large.bin")).expect("the file"), changed);
    assert_eq!(shop.current("web-1", "page").as_deref(), Some("two\n"));
    // Back to what is kept, and forward again; what is installed is verified file by file.
    let revert = shop.revert("1.0").await;
    assert_eq!(shop.end_of(&revert).await["status"], "finished");
    assert_eq!(shop.current("web-1", "page").as_deref(), Some("one\n"));
}

#[tokio::test]
async fn an_upload_goes_on_after_the_server_was_killed() {
    let mut shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    shop.set(json!({"repository": {"type": "ARCHIVE"}})).await;
    let archive = packed(&shop, "shop.tar", &[("data.bin", &noise(3, 60_000_000))]);
    let size = fs::metadata(&archive).expect("the archive").len();
    let arguments = ["archive", "upload", "shop", &archive.display().to_string(), "--version", "1.0"];
    let address = shop.processes.url().trim_start_matches("http://").parse().expect("an address");
    let wire = Wire::to(address).await;
    let url = format!("http://{}", wire.address());
    wire.freeze_after(size / 3);
    let mut command = drover_at(&shop, &url, &arguments);
    let uploading = command.stdout(std::process::Stdio::piped()).spawn().expect("the command line starts");
    let uploads = shop.folder().join("server/uploads");
    let came = || -> u64 {
        let items = fs::read_dir(&uploads).into_iter().flatten().flatten();
        items.filter_map(|item| item.metadata().ok()).map(|meta| meta.len()).sum()
    };
    wait_until("a part of the upload", async || came() > size / 6).await;
    shop.processes.kill_server().await;
    let before = came();
    assert!(before > size / 6 && before < size / 2, "{before} bytes are not the middle");
    shop.processes.start_server().await;
    // What came is there after the restart, and is what the upload goes on from.
    let path = format!("/applications/{}/archives/", shop.application);
    let found = shop.api().get(&path).await.expect(200);
    assert_eq!(found["results"][0]["offset"], before, "{found}");
    let sent = wire.passed();
    wire.cut();
    wire.thaw();
    let waiting = tokio::task::spawn_blocking(move || uploading.wait_with_output());
    let output = waiting.await.expect("no panic").expect("its output");
    // Whether it noticed in time or has to be run again: nothing that came is sent twice, and nothing is lost.
    if !output.status.success() {
        let again = drover_at(&shop, &url, &arguments).output().expect("the command line starts");
        assert!(again.status.success(), "{again:?}");
    }
    let again = wire.passed() - sent;
    assert!(again >= size - before && again < size - before / 2, "{again} bytes moved after {before} were there");
    let found = shop.api().get(&path).await.expect(200);
    assert_eq!((&found["count"], &found["results"][0]["state"]), (&json!(1), &json!("ready")), "{found}");
    let list = drover(&shop, &["archive", "list", "shop"]);
    assert!(String::from_utf8_lossy(&list.stdout).contains("shop.tar"), "{list:?}");
    let gone = drover(&shop, &["archive", "delete", "shop", "--version", "1.0"]);
    assert!(gone.status.success(), "{gone:?}");
}
