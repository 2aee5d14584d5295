//! Everything is backed up while the server works, and comes back.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::Stdio;

use super::*;

/// Says who it is, and says on until it is told to end. It writes down what it says.
const HOOK: &str = "echo \"$DROVER_EXECUTION_ID\" >> 'FOLDER/starts'\n\
    { if [ -e 'FOLDER/hold' ]; then until [ -e 'FOLDER/go' ]; do echo \"on and on, $((++said))\"; sleep 0.0005; done; fi\n\
    for line in $(seq 2000); do echo \"$line of $DROVER_EXECUTION_ID\"; done; } | tee 'FOLDER/said.'$DROVER_EXECUTION_ID\n";
/// The account that is nobody's.
const NOBODY: u32 = 65_534;

/// Details and output of every task that is over.
async fn told(shop: &Shop) -> Vec<(Value, Vec<u8>)> {
    let listed = shop.api().get("/tasks/?page_size=100").await.expect(200);
    let mut told = Vec::new();
    for task in listed["results"].as_array().expect("tasks").iter().filter(|task| task["status"] != "running") {
        let path = format!("/tasks/{}/", text(&task["task_id"]));
        let mut detail = shop.api().get(&path).await.expect(200);
        // The address of the server is in it.
        detail["task_output"] = Value::Null;
        let output = shop.api().download(&format!("{path}output/"), None).await.expect_bytes(200);
        told.push((detail, output));
    }
    told
}

/// Makes a backup while hooks say on and somebody makes one application after the other. Gives how many there were when it
/// began and when it had ended.
async fn busy_backup(shop: &Shop, file: &str) -> (usize, usize) {
    let mut asked = 0;
    let mut ask = async || {
        shop.api().post("/applications/", json!({"name": format!("asked-{asked:04}")})).await.expect(200);
        asked += 1;
        asked
    };
    let mut before = 0;
    for _ in 0..5 {
        before = ask().await;
    }
    let mut command = shop.processes.server_program();
    command.args(["backup", file]).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut backup = command.spawn().expect("the program starts");
    let mut after = before;
    while backup.try_wait().expect("its state").is_none() {
        after = ask().await;
    }
    let output = backup.wait_with_output().expect("its output");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && said.starts_with(&format!("{file} holds ")), "{said}");
    assert!(after > before, "nothing was done meanwhile");
    (before, after)
}

/// Names of the applications that were asked for meanwhile, in order.
async fn applications(shop: &Shop) -> Vec<String> {
    let mut names = Vec::new();
    for page in 1.. {
        let listed = shop.api().get(&format!("/applications/?page_size=100&page={page}")).await.expect(200);
        names.extend(listed["results"].as_array().expect("applications").iter().map(|one| text(&one["name"])));
        if listed["next"].is_null() {
            break;
        }
    }
    names.retain(|name| name.starts_with("asked-"));
    names.sort();
    names
}

/// Restores into a folder that is there, as a file system of its own would be, and belongs to another account.
fn restored(shop: &Shop, file: &str) -> String {
    let data = shop.folder().join("server");
    fs::create_dir(&data).expect("the data directory");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).expect("for its owner alone");
    let given = chown(&data, Some(NOBODY), Some(NOBODY)).is_ok();
    let before = fs::metadata(&data).expect("the data directory");
    let said = shop.processes.administer(&["restore", file]);
    assert_eq!(fs::metadata(&data).expect("the data directory").ino(), before.ino());
    for item in fs::read_dir(data.join("logs")).expect("the logs") {
        let owner = item.expect("an item").metadata().expect("of it").uid();
        assert_eq!(owner == NOBODY, given);
    }
    said
}

async fn everything_comes_back(engine: Engine) {
    let mut shop = Shop::open(engine, &["web-1", "web-2"]).await;
    shop.commit("v1", &[("index.html", "one\n")]);
    shop.commit("v2", &[("index.html", "two\n")]);
    shop.hook("pre_exec", "bash", &HOOK.replace("FOLDER", &shop.folder().display().to_string())).await;
    let secrets = json!({"secrets": {"PASSWORD": "correct horse battery"}});
    shop.api().patch(&format!("/applications/{}/secrets/", shop.application), secrets).await.expect(200);
    for version in ["v1", "v2"] {
        shop.deployed(version).await;
    }
    let before = told(&shop).await;
    fs::write(shop.folder().join("hold"), "").expect("a file");
    let running = shop.deploy("v1").await;
    wait_until("both hooks to start", async || {
        fs::read_to_string(shop.folder().join("starts")).is_ok_and(|starts| starts.lines().count() == 6)
    })
    .await;

    let file = shop.folder().join("backup");
    let named = file.display().to_string();
    let (asked_before, asked) = busy_backup(&shop, &named).await;
    assert_eq!(fs::metadata(&file).expect("the backup").permissions().mode() & 0o777, 0o600);
    let again = shop.processes.try_administer(&["backup", &named]).expect_err("it is there");
    assert!(again.contains("is there already"), "{again}");
    // One of the two ends before the server is lost, and is forgotten by its host.
    let after = shop.processes.try_administer(&["restore", &named]).expect_err("there is a server");
    assert!(after.contains("holds something already"), "{after}");

    shop.processes.kill_agent("web-2").await;
    fs::write(shop.folder().join("go"), "").expect("a file");
    wait_until("the first host to have told its end", async || {
        let detail = shop.api().get(&running.path).await.expect(200);
        on_host(&detail, "web-1")["status"] == "succeeded"
    })
    .await;
    fs::remove_file(shop.folder().join("hold")).expect("the file");
    let later = shop.processes.api().clone();
    shop.processes.kill_server().await;
    shop.processes.lose_everything().await;
    let said = restored(&shop, &named);
    assert!(said.contains("2 executions were under way") && said.contains("1 tasks are held"), "{said}");
    shop.processes.start_server().await;
    assert_eq!(later.token(), shop.api().token());

    assert_eq!(told(&shop).await, before, "what was over is as it was");
    let restored = applications(&shop).await;
    assert!((asked_before..=asked).contains(&restored.len()), "{asked_before}, {asked}: {restored:?}");
    let first: Vec<String> = (0..restored.len()).map(|number| format!("asked-{number:04}")).collect();
    assert_eq!(restored, first, "it is how things were at one moment");
    let names = shop.api().get(&format!("/applications/{}/secrets/", shop.application)).await.expect(200);
    assert!(names.to_string().contains("PASSWORD"), "{names}");
    shop.processes.start_agent("web-2").await;
    let mut detail = Value::Null;
    wait_until("both hosts to be accounted for", async || {
        detail = shop.api().get(&running.path).await.expect(200);
        on_host(&detail, "web-1")["status"] == "lost" && on_host(&detail, "web-2")["status"] == "succeeded"
    })
    .await;
    let starts = fs::read_to_string(shop.folder().join("starts")).expect("the starts");
    assert_eq!(starts.lines().count(), 6, "nothing ran twice: {starts}");
    let records = shop.output(&running, "?format=json").await.records();
    let execution = text(&on_host(&detail, "web-2")["execution_id"]);
    let kept = fs::read_to_string(shop.folder().join(format!("said.{execution}"))).expect("what it said");
    assert!(stdout_of(&records, "web-2") == kept, "its output came with it, {} bytes", kept.len());
    let known = json!({"instances": [{"id": shop.instances[0].1}], "answer": "done", "reason": "it serves v1"});
    shop.api().post(&format!("{}actions/answer/", running.path), known).await.expect(200);
    assert_eq!(shop.instance("web-1").await, ("running".to_owned(), Some("v1".to_owned())));
    shop.deployed("v2").await;
}

#[tokio::test]
async fn everything_comes_back_on_sqlite() {
    Box::pin(everything_comes_back(Engine::Sqlite)).await;
}

#[tokio::test]
async fn everything_comes_back_on_postgres() {
    Box::pin(everything_comes_back(Engine::Postgres)).await;
}

#[tokio::test]
async fn what_is_not_whole_is_not_restored() {
    let mut shop = Shop::with_versions(&["web-1"]).await;
    let file = shop.folder().join("backup");
    let _ = shop.processes.administer(&["backup", &file.display().to_string()]);
    shop.processes.kill_server().await;
    shop.processes.lose_everything().await;
    let whole = fs::read(&file).expect("the backup");
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let cut = whole[..whole.len() - 100].to_vec();
    for (name, bytes) in [("changed", changed), ("cut", cut), ("empty", Vec::new()), ("text", b"hello".to_vec())] {
        let path = shop.folder().join(name);
        fs::write(&path, bytes).expect("a file");
        let error = shop.processes.try_administer(&["restore", &path.display().to_string()]).expect_err(name);
        assert!(error.contains("broken one") || error.contains("not complete"), "{name}: {error}");
        let left: Vec<PathBuf> =
            fs::read_dir(shop.folder()).expect("the folder").map(|item| item.expect("an item").path()).collect();
        assert!(left.iter().all(|path| !path.to_string_lossy().contains("restoring")), "{name}: {left:?}");
    }
    let said = shop.processes.administer(&["restore", &file.display().to_string()]);
    assert!(said.starts_with("Restored to "), "{said}");
    shop.processes.start_server().await;
    shop.api().get("/applications/").await.expect(200);
}

/// The backup comes through a pipe, so that the restore is where the story wants it.
#[tokio::test]
async fn a_restore_that_was_killed_is_no_server_to_start_with() {
    let mut shop = Shop::with_versions(&["web-1"]).await;
    let (file, pipe, data) = (shop.folder().join("backup"), shop.folder().join("pipe"), shop.folder().join("server"));
    let _ = shop.processes.administer(&["backup", &file.display().to_string()]);
    shop.processes.kill_server().await;
    shop.processes.lose_everything().await;
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut restore = shop.processes.server_program().arg("restore").arg(&pipe).spawn().expect("the program starts");
    let whole = fs::read(&file).expect("the backup");
    let mut feeding = fs::OpenOptions::new().write(true).open(&pipe).expect("the pipe");
    feeding.write_all(&whole[..whole.len() / 2]).expect("half of it");
    wait_until("the restore to have begun", async || data.join(".restoring").is_dir()).await;
    restore.kill().expect("a signal");
    restore.wait().expect("its end");

    for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["gc"], &["restore", "backup"], &["backup", "other"]] {
        let error = shop.processes.try_administer(command).expect_err("a part of a backup is nothing to work with");
        assert!(error.contains("did not end: remove what is in there"), "{command:?}: {error}");
    }
    shop.processes.lose_everything().await;
    let _ = shop.processes.administer(&["restore", &file.display().to_string()]);
    shop.processes.start_server().await;
    shop.api().get("/applications/").await.expect(200);
}
