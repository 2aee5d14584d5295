//! Stored scripts on hosts, with real agents.

use drover_tests::processes::is_alive;

use super::*;

impl Shop {
    /// A stored script that may be run by itself.
    async fn script(&self, name: &str, content: &str, parameters: Value) {
        let script = json!({"name": name, "language": "bash", "content": content, "parameters": parameters});
        self.api().post("/applications/deploy-scripts/", script).await.expect(200);
    }

    /// Runs the command line with these words and a token.
    async fn runs(&self, code: i32, words: &[&str]) -> String {
        let token = self.api().token().to_owned();
        let words: Vec<&str> = ["--token", token.as_str(), "run"].into_iter().chain(words.iter().copied()).collect();
        self.says(code, &words).await
    }
}

#[tokio::test]
async fn a_script_runs_with_its_parameters_in_batches() {
    let shop = Shop::open(Engine::Sqlite, &["web-1", "web-2", "web-3"]).await;
    let folder = shop.folder().display().to_string();
    let content = format!(
        "echo \"$DROVER_ACTION on {{{{ host.name }}}}: $PARAM_WORD {{{{ params.times }}}} $DROVER_SECRET_WORD\"\n\
         echo {{{{ host.name }}}} >> '{folder}/order'\n\
         [ {{{{ host.name }}}} != \"$PARAM_FAILS\" ]"
    );
    let parameters = json!([{"name": "word", "type": "text"}, {"name": "times", "type": "number", "default": 2},
        {"name": "fails", "type": "text", "default": "nobody"}]);
    shop.script("greet", &content, parameters).await;
    shop.api().patch("/secrets/", json!({"secrets": {"WORD": "do-not-show"}})).await.expect(200);
    let words = ["greet", "--on", "web-1,web-2,web-3", "--param", "word=$(id) ; a'b", "--batch", "1", "--yes"];
    let said = shop.runs(0, &words).await;
    assert!(said.contains("web-2 | script on web-2: $(id) ; a'b 2"), "{said}");
    assert!(!said.contains("do-not-show"), "{said}");
    let order = || fs::read_to_string(shop.folder().join("order")).expect("the order");
    assert_eq!(order(), "web-1\nweb-2\nweb-3\n");

    // A failure stops what has not begun, and says where it was.
    let words = ["greet", "--on-app", "shop", "--param", "word=x", "--param", "fails=web-2", "--batch", "1", "--yes"];
    shop.runs(1, &words).await;
    assert_eq!(order(), "web-1\nweb-2\nweb-3\nweb-1\nweb-2\n");
    shop.runs(2, &["greet", "--on", "web-1", "--yes"]).await;
    shop.runs(4, &["greet", "--on", "web-9", "--param", "word=x", "--yes"]).await;
    let shown = shop.runs(0, &["greet", "--on", "web-1", "--param", "word=x", "--dry-run"]).await;
    assert!(shown.starts_with("greet on web-1 as the agent's own account:"), "{shown}");
    assert_eq!(order().lines().count(), 5, "nothing ran");
}

#[tokio::test]
async fn a_script_is_cancelled_with_all_its_processes() {
    let shop = Shop::open(Engine::Postgres, &["web-1", "web-2"]).await;
    let folder = shop.folder().display().to_string();
    let content = format!("setsid sleep 600 & echo $! > '{folder}/{{{{ host.name }}}}.pid'; sleep 600");
    shop.script("stay", &content, json!([])).await;
    let made = shop.runs(0, &["stay", "--on", "web-1,web-2", "--no-follow", "--yes"]).await;
    let process = |host: &str| -> Option<i32> {
        fs::read_to_string(shop.folder().join(format!("{host}.pid"))).ok()?.trim().parse().ok()
    };
    wait_until("both to be at work", async || process("web-1").is_some() && process("web-2").is_some()).await;
    let token = shop.api().token().to_owned();
    shop.runs(2, &["stay", "--on", "web-1", "--yes"]).await;
    let waiting = shop.runs(0, &["stay", "--on", "web-1", "--queue", "--no-follow", "--yes"]).await;
    let locks = shop.says(0, &["--token", &token, "locks", "--wanted"]).await;
    assert!(locks.contains("host") && locks.contains("web-1") && !locks.contains("web-2"), "{locks}");
    shop.says(0, &["--token", &token, "cancel", waiting.trim()]).await;
    shop.says(0, &["--token", &token, "cancel", made.trim(), "--reason", "enough"]).await;
    let path = format!("/tasks{}/", made.trim());
    let mut told = Value::Null;
    wait_until("the end", async || {
        told = shop.api().get(&path).await.expect(200);
        told["status"] == "failed"
    })
    .await;
    for host in ["web-1", "web-2"] {
        assert_eq!(on_host(&told, host)["status"], "cancelled", "{told:#}");
        let process = process(host).expect("a number");
        wait_until("its processes to be gone", async || !is_alive(process)).await;
    }
}
