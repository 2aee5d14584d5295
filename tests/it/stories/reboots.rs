//! Hosts that lose their power in the middle of a hook, and boot again.

use drover_tests::processes::{Signal, can_boot, is_alive};

use super::*;

const BOOT_ID: &str = "0b007ed0-0000-4000-8000-000000000002";

/// Lines that the hook writes at a time.
const LINES: usize = 200;

/// Writes lines when it begins, more when it is told to, and goes on for longer than anybody waits; where the host was
/// restarted since, it ends.
const HOOK: &str = r#"
echo started >> 'FOLDER/starts'
say() { for number in $(seq 1 LINES); do echo "$1 $number"; done; }
if [ -e 'FOLDER/restarted' ]; then say again; exit 0; fi
say early
until [ -e 'FOLDER/more' ]; do sleep 0.02; done
say late
setsid sleep 1000 &
echo $! > 'FOLDER/detached.new' && mv 'FOLDER/detached.new' 'FOLDER/detached'
wait
"#;

fn lines(word: &str) -> String {
    (1..=LINES).map(|number| format!("{word} {number}\n")).collect()
}

/// Whether the host has this in the output that it keeps until the server has it.
fn is_kept(shop: &Shop, wanted: &str) -> bool {
    let spool = fs::read_dir(shop.processes.agent_folder("web-1").join("spool")).expect("the spool");
    let mut logs = spool.map(|item| fs::read(item.expect("an item").path().join("log")).unwrap_or_default());
    logs.any(|log| log.windows(wanted.len()).any(|window| window == wanted.as_bytes()))
}

#[tokio::test]
async fn what_a_restart_of_the_host_interrupted_waits_for_a_person() {
    if !can_boot() {
        return eprintln!("SKIPPED: this machine lets no test show an agent another boot id");
    }
    let mut shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().to_owned();
    let hook = HOOK.replace("FOLDER", &folder.display().to_string()).replace("LINES", &LINES.to_string());
    shop.hook("pre_exec", "bash", &hook).await;
    let deploy_task = shop.deploy_task("v1").await;
    let sub_task = shop.make("upgrade", deploy_task, shop.sub_task("v1")).await;
    let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
    viewer.until(&format!("early {LINES}\n")).await;

    // What comes now only the host has.
    shop.processes.signal_agent("web-1", Signal::SIGSTOP);
    fs::write(folder.join("more"), "").expect("a file");
    wait_until("the rest of the output", async || {
        folder.join("detached").exists() && is_kept(&shop, &format!("late {LINES}\n"))
    })
    .await;
    let detached = fs::read_to_string(folder.join("detached")).expect("a process");
    let detached: i32 = detached.trim().parse().expect("its number");
    assert!(is_alive(detached));
    shop.processes.lose_power("web-1").await;
    wait_until("everything to be gone", async || !is_alive(detached)).await;
    let host = shop.processes.wait_for_connection("web-1", false).await;
    assert_eq!(shop.api().get(&sub_task.path).await.expect(200)["status"], "running", "nobody has given it up");
    fs::write(folder.join("restarted"), "").expect("a file");
    shop.processes.boot("web-1", BOOT_ID).await;

    let detail = shop.end_of(&sub_task).await;
    let one = on_host(&detail, "web-1");
    let reason = "the host was restarted while this ran: how it ended is not known";
    assert_eq!((&detail["status"], &one["status"], &one["error"]), (&json!("failed"), &json!("lost"), &json!(reason)));
    let agent = shop.api().get(&format!("/hosts/{host}/")).await.expect(200)["agent"].clone();
    assert_eq!(agent["boot_id"], BOOT_ID);
    assert!(agent["restart_time"].is_string(), "{agent}");
    let output = shop.output(&sub_task, "?format=json").await;
    assert_eq!(stdout_of(&output.records(), "web-1"), lines("early") + &lines("late"));
    assert!(shop.output(&sub_task, "").await.text.contains("web-1: the host was restarted meanwhile"));
    assert_eq!(fs::read_to_string(folder.join("starts")).expect("the starts"), "started\n", "not tried by itself");
    assert_eq!(shop.current("web-1", "index.html"), None);

    // Nothing is done to it until somebody says so.
    let path = format!("/applications/deploy-tasks/{deploy_task}/sub-upgrade-tasks/");
    let refused = shop.api().post(&path, shop.sub_task("v1")).await.expect(409);
    assert!(text(&refused["message"]).contains("nobody knows how sub-task"), "{refused}");
    assert_eq!(shop.api().get("/tasks/?unanswered=true").await.expect(200)["count"], 1);
    let instances = shop.sub_task("v1")["instances"].clone();
    let retry = json!({"instances": instances, "reason": "the power is back"});
    let made = shop.api().post(&format!("{}actions/retry/", sub_task.path), retry).await.expect(200);
    let again = SubTask { path: format!("{path}{}/", text(&made["task_id"])), channel: text(&made["task_output"]) };
    let detail = shop.end_of(&again).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    let output = shop.output(&again, "?format=json").await;
    assert_eq!(stdout_of(&output.records(), "web-1"), lines("again"));
    assert_eq!(fs::read_to_string(folder.join("starts")).expect("the starts"), "started\nstarted\n");
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
    assert_eq!(shop.instance("web-1").await, ("running".to_owned(), Some("v1".to_owned())));
    assert_eq!(shop.api().get("/tasks/?unanswered=true").await.expect(200)["count"], 0);
}
