//! What is old is removed by the command, beside a server and without one, and a revert works after it.

use drover_tests::processes::Viewer;
use sqlx::Connection as _;

use super::*;

/// Makes every task that is over a very old one, behind the server's back.
async fn age(shop: &Shop) {
    let file = format!("sqlite:{}", shop.folder().join("server/drover.db").display());
    let mut database = sqlx::SqliteConnection::connect(&file).await.expect("the database");
    sqlx::query("UPDATE tasks SET finished_at = id WHERE phase = 'over'").execute(&mut database).await.expect("aged");
    sqlx::query("UPDATE deploy_tasks SET started_at = id").execute(&mut database).await.expect("aged");
    database.close().await.expect("closed");
}

/// Files of output there are.
fn outputs(shop: &Shop) -> usize {
    let folders = fs::read_dir(shop.folder().join("server/logs")).expect("the output");
    let folders = folders.map(|item| item.expect("an item").path()).filter(|path| path.is_dir());
    folders.map(|folder| fs::read_dir(folder).expect("a folder").count()).sum()
}

/// What a command says it does, without its first word and what follows the figures.
fn figures(said: &str) -> Vec<String> {
    said.lines().filter(|line| line.starts_with("  ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn what_is_removed_is_what_was_foreseen_and_a_revert_works_after_it() {
    let mut shop = Shop::with_versions(&["web-1"]).await;
    shop.commit("v3", &[("index.html", "three\n")]);
    shop.set(json!({"keep_backups": 1})).await;
    let first = shop.deployed("v1").await;
    let second = shop.deployed("v1").await;
    for version in ["v2", "v3"] {
        shop.deployed(version).await;
    }
    let nothing = shop.processes.administer(&["gc", "--dry-run"]);
    let expected = [
        "  tasks: 0",
        "  deploy tasks: 0",
        "  audit: 0 entries",
        "  output: 0 files, 0 bytes",
        "  artifacts: 0 files, 0 bytes",
        "  mirrors: 0 repositories, 0 bytes",
    ];
    assert_eq!(figures(&nothing), expected);
    age(&shop).await;

    // Beside a server: rows go, and the server removes the files.
    let least = ["--keep-tasks-least", "0"];
    let dry: Vec<&str> = ["gc", "--dry-run"].iter().chain(&least).copied().collect();
    let foreseen = shop.processes.administer(&dry);
    let begin = "Would remove\n  tasks: 1\n  deploy tasks: 1\n  audit: 0 entries\n  output: 4 files, ";
    assert!(foreseen.starts_with(begin), "{foreseen}");
    assert_eq!(outputs(&shop), 4);
    let said = shop.processes.administer(&["gc", least[0], least[1]]);
    assert!(said.starts_with("Gave up\n") && said.contains("A server works with this data directory"), "{said}");
    assert_eq!(figures(&said), figures(&foreseen));
    shop.api().get(&first.path).await.expect(404);
    shop.api().get("/applications/deploy-tasks/1/").await.expect(404);
    let detail = shop.api().get(&second.path).await.expect(200);
    assert!(detail["output_removed_time"].is_string() && detail.get("output").is_none(), "{detail:#}");
    let refused = Viewer::try_open(&second.channel, shop.api().token()).await.err().expect("no output");
    assert!(refused.contains("410"), "{refused}");
    shop.processes.kill_server().await;
    shop.processes.start_server().await;
    wait_until("the server to remove the files", async || outputs(&shop) == 0).await;

    // The host keeps v2 and v3: v1 is installed again.
    let sub_task = shop.revert("v1").await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));

    // Without a server the command does all of it.
    age(&shop).await;
    shop.processes.kill_server().await;
    assert_eq!(outputs(&shop), 1);
    let foreseen = shop.processes.administer(&dry);
    let said = shop.processes.administer(&["gc"]);
    let begin = "Removed\n  tasks: 0\n  deploy tasks: 0\n  audit: 0 entries\n  output: 1 files, ";
    assert!(said.starts_with(begin), "{said}");
    assert_eq!(figures(&said), figures(&foreseen));
    assert_eq!(outputs(&shop), 0);
    shop.processes.start_server().await;
    let said = shop.processes.administer(&["gc", "--keep-output", "never"]);
    assert!(said.starts_with("Gave up\n  tasks: 0\n") && said.contains("\n  output: 0 files"), "{said}");
    shop.deployed("v2").await;
}
