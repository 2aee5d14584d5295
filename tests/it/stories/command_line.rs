//! The command line, as people and pipelines call it.

use std::io::Write as _;
use std::process::{Output as Ended, Stdio};

use drover_tests::ADMIN_PASSWORD;

use super::*;

impl Shop {
    /// Runs `drover` with this on standard input.
    async fn drover(&self, arguments: &[&str], input: &str) -> Ended {
        let mut command = self.processes.program("drover");
        command.args(arguments).env("DROVER_URL", self.processes.url());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let running = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().expect("the command line starts");
            child.stdin.take().expect("standard input").write_all(input.as_bytes()).expect("it is read");
            child.wait_with_output().expect("it ends")
        });
        running.await.expect("it does not panic")
    }

    /// What `drover` prints; it has to end with this exit status.
    pub(super) async fn says(&self, code: i32, arguments: &[&str]) -> String {
        let ended = self.drover(arguments, "").await;
        let (output, errors) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {output}{errors}");
        output.into_owned()
    }
}

#[tokio::test]
async fn a_person_signs_in_deploys_and_goes_back() {
    let shop = Shop::with_versions(&["web-1", "web-2"]).await;
    let hook = "echo \"now {{ version }} on $DROVER_HOST\"; [ {{ version }} != v3 ] || exit 4";
    shop.hook("post_exec", "bash", hook).await;
    shop.says(3, &["deploy", "shop", "--version", "v1", "--yes"]).await;
    let login = ["login", "--username", "admin", "--password-stdin"];
    let refused = shop.drover(&login, "not the password\n").await;
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let ended = shop.drover(&login, &format!("{ADMIN_PASSWORD}\n")).await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");

    let output = shop.says(0, &["deploy", "shop", "--version", "v1", "--yes"]).await;
    for host in ["web-1", "web-2"] {
        assert!(output.contains(&format!("now v1 on {host}")), "{output}");
        assert_eq!(shop.current(host, "index.html").as_deref(), Some("one\n"));
    }

    let output = shop.says(0, &["deploy", "shop", "--version", "v2", "--hosts", "web-1", "--json"]).await;
    let records: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    assert_eq!(stdout_of(&records, "web-1"), "now v2 on web-1\n");
    assert_eq!(records.last().expect("the end")["status"], "finished", "{output}");
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("two\n"));
    assert_eq!(shop.current("web-2", "index.html").as_deref(), Some("one\n"));

    shop.says(0, &["revert", "shop", "--version", "v1", "--yes"]).await;
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
    assert_eq!(shop.instance("web-1").await, ("running".to_owned(), Some("v1".to_owned())));

    let output = shop.says(1, &["deploy", "shop", "--version", "v3", "--yes"]).await;
    assert!(output.contains("post_exec exited with status 4"), "{output}");
    shop.says(2, &["revert", "shop", "--version", "v9", "--yes"]).await;
    shop.says(4, &["deploy", "no-such-shop", "--version", "v1", "--yes"]).await;
    shop.says(3, &["--token", "not-a-token", "app", "list"]).await;
}

#[tokio::test]
async fn logs_are_read_later_and_followed() {
    let shop = Shop::with_versions(&["web-1"]).await;
    shop.hook("post_exec", "bash", "echo \"now {{ version }}\"").await;
    let sub_task = shop.deployed("v1").await;
    let whole = shop.output(&sub_task, "").await.text;
    let token = shop.api().token().to_owned();
    let output = shop.says(0, &["--token", &token, "logs", "1"]).await;
    assert_eq!(output, whole);
    let output = shop.says(0, &["--token", &token, "logs", "--follow", "1/1", "--json"]).await;
    assert!(output.lines().count() > 1 && output.contains("now v1"), "{output}");
    shop.says(4, &["--token", &token, "logs", "99"]).await;
}

#[tokio::test]
async fn what_a_reviewer_saw_is_what_runs() {
    let shop = Shop::with_versions(&["web-1", "web-2"]).await;
    shop.hook("post_exec", "bash", "echo \"now {{ version }}\"").await;
    let token = shop.api().token().to_owned();
    let says = async |code: i32, arguments: &[&str]| shop.says(code, &[&["--token", &token], arguments].concat()).await;
    let made = ["deploy", "shop", "--version", "v1", "--hosts", "web-2", "--batch", "1", "--no-approve", "--yes"];
    assert_eq!(says(0, &made).await, "1\n");
    let plan = says(2, &["plan", "1"]).await;
    assert!(
        plan.contains("batch 1: web-2\n") && plan.contains("+echo \"now v1\"") && !plan.contains("web-1"),
        "{plan}"
    );
    let digest = plan.lines().last().expect("a digest").trim_start_matches("plan ").to_owned();
    let change = json!({"content": "echo \"{{ version }} is here\""});
    shop.api().patch("/applications/deploy-scripts/1/", change).await.expect(200);
    says(2, &["task", "approve", "1", "--plan", &digest]).await;
    let plan = says(2, &["plan", "1"]).await;
    let digest = plan.lines().last().expect("a digest").trim_start_matches("plan ").to_owned();
    says(0, &["task", "approve", "1", "--plan", &digest]).await;
    let output = says(0, &["deploy", "--task", "1", "--yes"]).await;
    assert!(output.contains("v1 is here"), "{output}");
    assert_eq!(shop.current("web-2", "index.html").as_deref(), Some("one\n"));
    assert_eq!(shop.current("web-1", "index.html"), None, "the plan was for the other host");

    // At its time it starts by itself.
    let made = ["deploy", "shop", "--version", "v2", "--at", "2020-01-01T00:00Z", "--yes"];
    says(2, &made).await;
    let now = Command::new("date").arg("+%Y-%m-%dT%H:%M:%S%:z").output().expect("the time");
    let now = String::from_utf8(now.stdout).expect("text");
    says(0, &["deploy", "shop", "--version", "v2", "--at", now.trim(), "--yes"]).await;
    wait_until("the start", async || shop.current("web-1", "index.html").as_deref() == Some("two\n")).await;
    let shown = says(0, &["task", "show", "3"]).await;
    assert!(shown.contains("by itself") && shown.contains("running"), "{shown}");
}

#[tokio::test]
async fn a_person_leads_a_rollout_to_its_end() {
    let hosts = ["web-1", "web-2", "web-3", "web-4", "web-5"];
    let shop = Shop::with_versions(&hosts).await;
    // It fails where a file asks for that, and on v2 goes on until it is ended.
    let folder = shop.folder().display().to_string();
    let hook = format!(
        "echo \"$DROVER_HOST $DROVER_VERSION\" >> '{folder}/ran'\n\
         test ! -e '{folder}/fail-on-{{{{ host.name }}}}' || exit 7\n\
         test {{{{ version }}}} != v2 || exec sleep 1000"
    );
    shop.hook("post_exec", "bash", &hook).await;
    let ran = || fs::read_to_string(shop.folder().join("ran")).unwrap_or_default().lines().count();
    let token = shop.api().token().to_owned();
    let says = async |code: i32, arguments: &[&str]| shop.says(code, &[&["--token", &token], arguments].concat()).await;
    let states = async |sub_task: i64| {
        let path = format!("/applications/deploy-tasks/1/sub-upgrade-tasks/{sub_task}/");
        let detail = shop.api().get(&path).await.expect(200);
        let states = detail["instances"].as_array().expect("instances").iter().map(|one| text(&one["status"]));
        (text(&detail["status"]), states.collect::<Vec<String>>())
    };
    let rollout = ["--canary", "1", "--batch", "25%", "--yes", "--no-follow"];
    assert_eq!(says(0, &[&["deploy", "shop", "--version", "v1"], &rollout[..]].concat()).await, "1/1\n");
    wait_until("the canary", async || states(1).await.1[0] == "succeeded").await;
    let waiting = ["succeeded", "queued", "queued", "queued", "queued"];
    assert_eq!(states(1).await, ("running".to_owned(), waiting.map(str::to_owned).to_vec()));
    assert_eq!(says(0, &["pause", "1/1", "--reason", "lunch"]).await, "1/1: pause\n");
    says(2, &["pause", "1/1"]).await;
    assert_eq!(says(0, &["promote", "1", "--reason", "looks good"]).await, "1/1: promote\n");
    assert_eq!(states(1).await.1, waiting, "it is held");
    fs::write(shop.folder().join("fail-on-web-3"), "").expect("a file");
    assert_eq!(says(0, &["resume", "1"]).await, "1/1: resume\n");
    // A quarter of five is two.
    wait_until("the end", async || states(1).await.0 == "failed").await;
    assert_eq!(states(1).await.1, ["succeeded", "succeeded", "failed", "cancelled", "cancelled"]);
    assert_eq!(ran(), 3);
    fs::remove_file(shop.folder().join("fail-on-web-3")).expect("the file");
    // Without a rule of its own it would begin with a canary once more.
    says(0, &["retry", "1/1", "--batch", "2", "--reason", "it is mended"]).await;
    for host in hosts {
        assert_eq!(shop.current(host, "index.html").as_deref(), Some("one\n"), "{host}");
    }
    assert_eq!(ran(), 6, "what went well is not done again");

    says(0, &["deploy", "shop", "--version", "v2", "--batch", "1", "--yes", "--no-follow"]).await;
    wait_until("the hook", async || ran() == 7).await;
    says(0, &["cancel", "2", "--reason", "wrong one"]).await;
    says(1, &["logs", "--follow", "2"]).await;
    let shown = says(0, &["task", "show", "2", "--json"]).await;
    assert!(shown.contains("cancelled by admin: wrong one"), "{shown}");
    assert_eq!(shop.current("web-2", "index.html").as_deref(), Some("one\n"), "it was never touched");
    says(2, &["cancel", "2"]).await;
}
