//! Several applications on one host, each after those that it requires, with real processes.

use super::*;

/// `web` requires `api`, which requires `db`. Each hook notes that it ran; that of `api` does what its file says.
async fn three(engine: Engine) -> Shop {
    let shop = Shop::open(engine, &["web-1"]).await;
    let host = shop.api().get("/hosts/").await.expect(200)["results"][0]["id"].clone();
    let folder = shop.folder().display().to_string();
    let mut before: Option<i64> = None;
    for name in ["db", "api", "web"] {
        let application = id(&shop.api().post("/applications/", json!({"name": name})).await.expect(200));
        let path = format!("/applications/{application}/instances/");
        shop.api().post(&path, json!([{"hostid": host}])).await.expect(200);
        let content = format!(
            "echo \"{name} {{{{ version }}}}\" >> '{folder}/ran'\n\
             while [ {name} = api ] && [ -e '{folder}/hold' ]; do sleep 0.1; done\n\
             [ {name} != api ] || [ ! -e '{folder}/fail' ]"
        );
        let script = json!({"name": format!("hook of {name}"), "language": "bash", "content": content});
        let script = id(&shop.api().post("/applications/deploy-scripts/", script).await.expect(200));
        let settings = json!({"enabled": true, "lifecycle_hooks": {"pre_exec": {"script": {"id": script}}}});
        shop.api().patch(&format!("/applications/{application}/deploy-settings/"), settings).await.expect(200);
        if let Some(required) = before.replace(application) {
            let path = format!("/applications/{application}/required-apps/");
            shop.api().post(&path, json!([{"id": required}])).await.expect(200);
        }
    }
    shop
}

/// What ran, in its order.
fn ran(shop: &Shop) -> Vec<String> {
    let text = fs::read_to_string(shop.folder().join("ran")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn deploy(token: &str, version: &str, more: &[&str]) -> Vec<String> {
    let words = ["--token", token, "deploy", "web", "--version", version, "--with", "db=7", "--with", "api", "--yes"];
    words.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

async fn says(shop: &Shop, code: i32, words: &[String]) -> String {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    shop.says(code, &words).await
}

#[tokio::test]
async fn applications_go_one_after_the_other_until_one_fails() {
    let shop = three(Engine::Sqlite).await;
    let token = shop.api().token().to_owned();
    says(&shop, 0, &deploy(&token, "1", &[])).await;
    assert_eq!(ran(&shop), ["db 7", "api 1", "web 1"]);

    // The one in the middle fails: the last one never starts, and says why.
    fs::write(shop.folder().join("fail"), "").expect("a file");
    let output = says(&shop, 1, &deploy(&token, "2", &["--json"])).await;
    assert_eq!(ran(&shop)[3..], ["db 7", "api 2"]);
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    assert_eq!(lines[0]["order"][2]["after"], json!(["db", "api"]), "{output}");
    let ends: Vec<&Value> = lines.iter().filter(|line| line["type"] == "result").collect();
    let states: Vec<&str> = ends.iter().filter_map(|end| end["status"].as_str()).collect();
    assert_eq!(states, ["finished", "failed", "failed"], "{output}");
    let reason = format!("task {}, which had to go first, failed", text(&ends[1]["task_id"]));
    assert_eq!((text(&ends[2]["error"]), &ends[2]["instances"][0]["status"]), (reason, &json!("cancelled")));
}

/// The server is killed while one waits: it starts all the same when its turn comes.
async fn one_waits_through_a_crash(engine: Engine) {
    let mut shop = three(engine).await;
    let token = shop.api().token().to_owned();
    fs::write(shop.folder().join("hold"), "").expect("a file");
    let made = says(&shop, 0, &deploy(&token, "1", &["--no-follow"])).await;
    let web = made.lines().last().expect("a task").rsplit_once('/').expect("two numbers").1.to_owned();
    wait_until("the one in the middle", async || ran(&shop).len() == 2).await;
    let shown = says(&shop, 0, &["--token", &token, "task", "show", "3"].map(str::to_owned)).await;
    assert!(shown.contains("waits for the upgrade of api, task 2"), "{shown}");
    shop.processes.kill_server().await;
    shop.processes.start_server().await;
    let path = format!("/tasks/{web}/");
    assert_eq!(shop.api().get(&path).await.expect(200)["phase"], "waiting");
    fs::remove_file(shop.folder().join("hold")).expect("the file");
    wait_until("the last one", async || shop.api().get(&path).await.expect(200)["status"] == "finished").await;
    assert_eq!(ran(&shop), ["db 7", "api 1", "web 1"]);
}

#[tokio::test]
async fn one_waits_through_a_crash_on_sqlite() {
    one_waits_through_a_crash(Engine::Sqlite).await;
}

#[tokio::test]
async fn one_waits_through_a_crash_on_postgres() {
    one_waits_through_a_crash(Engine::Postgres).await;
}
