//! Everything is backed up while the server works, and comes back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;

/// Says who it is, and goes on until it is told to end.
const HOOK: &str = "echo \"$DROVER_EXECUTION_ID\" | tee -a 'FOLDER/starts'\n\
    if [ -e 'FOLDER/hold' ]; then until [ -e 'FOLDER/go' ]; do sleep 0.05; done; fi\n\
    for line in $(seq 2000); do echo \"$line of $DROVER_EXECUTION_ID\"; done\n";

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
    let said = shop.processes.administer(&["backup", &named]);
    assert!(said.starts_with(&format!("{named} holds ")), "{said}");
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
    let said = shop.processes.administer(&["restore", &named]);
    assert!(said.contains("2 executions were under way") && said.contains("1 tasks are held"), "{said}");
    shop.processes.start_server().await;
    assert_eq!(later.token(), shop.api().token());

    assert_eq!(told(&shop).await, before, "what was over is as it was");
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
    assert_eq!(stdout_of(&records, "web-2").lines().count(), 2001, "its output came with it");
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
