//! Starting, stopping and restarting a real program on its hosts.

use drover_tests::processes::is_alive;

use super::*;

/// A program that stays, leaves its number in a file, and needs a while to end.
const PROGRAM: &str = r#"#!/usr/bin/env python3
import os, signal, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
def end(*_):
    time.sleep(0.2)
    os.remove(folder + "/app.pid")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
with open(folder + "/app.pid.new", "w") as file:
    file.write("%d\n" % os.getpid())
os.rename(folder + "/app.pid.new", folder + "/app.pid")
while True:
    time.sleep(60)
"#;

impl Shop {
    /// A folder for each host with the program in it, and the commands that start and stop it.
    pub(super) async fn with_program(hosts: &[&str]) -> Self {
        let shop = Self::with_versions(hosts).await;
        for host in hosts {
            let folder = shop.folder().join("programs").join(host);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("app.py"), PROGRAM).expect("a program");
        }
        let folder = format!("{}/programs/{{{{ host.name }}}}", shop.folder().display());
        let commands = json!({
            "startup_cmd": format!("cd {folder}\nsetsid python3 app.py > out.log 2>&1 < /dev/null &"),
            "stop_cmd": format!("kill $(cat {folder}/app.pid)"),
            "pid_path": format!("{folder}/app.pid"),
        });
        shop.api().patch(&format!("/applications/{}/", shop.application), commands).await.expect(200);
        shop
    }

    /// The number of the program on a host, if it runs.
    pub(super) fn program_of(&self, host: &str) -> Option<i32> {
        let file = self.folder().join("programs").join(host).join("app.pid");
        fs::read_to_string(file).ok()?.trim().parse().ok().filter(|id| is_alive(*id))
    }

    /// Starts, stops or restarts the instances.
    async fn operate(&self, action: &str, query: &str) -> SubTask {
        let ids: Vec<Value> = self.instances.iter().map(|(_, id)| json!({"id": id})).collect();
        let path = format!("/applications/{}/instances/actions/{action}/{query}", self.application);
        let made = self.api().post(&path, ids.into()).await.expect(200);
        SubTask { path: format!("/tasks/{}/", text(&made["task_id"])), channel: text(&made["task_output"]) }
    }

    /// The same, to its end, which has to be this one.
    pub(super) async fn operated(&self, action: &str, query: &str, status: &str) -> Value {
        let detail = self.end_of(&self.operate(action, query).await).await;
        assert_eq!(detail["status"], status, "{detail:#}");
        detail
    }
}

#[tokio::test]
async fn programs_are_started_restarted_and_stopped() {
    let shop = Shop::with_program(&["web-1", "web-2"]).await;
    shop.operated("start", "", "finished").await;
    let first = (shop.program_of("web-1").expect("it runs"), shop.program_of("web-2").expect("it runs"));
    assert_eq!(shop.instance("web-1").await, ("running".to_owned(), None));

    // One after the other, each down and up again.
    let detail = shop.operated("restart", "?batch=1", "finished").await;
    let second = (shop.program_of("web-1").expect("it runs"), shop.program_of("web-2").expect("it runs"));
    assert!(first.0 != second.0 && first.1 != second.1, "{first:?} {second:?}");
    assert!(!is_alive(first.0) && !is_alive(first.1));
    assert_eq!(detail["instances"][1]["batch"], 2);
    assert_eq!(
        steps(on_host(&detail, "web-2")),
        [("stop".to_owned(), "succeeded".to_owned()), ("start".to_owned(), "succeeded".to_owned())]
    );
    let output = text(&detail["output"]);
    assert!(output.contains(&format!("process {} has ended", first.0)), "{output}");
    assert!(output.contains(&format!("running as process {}", second.0)), "{output}");

    shop.operated("stop", "", "finished").await;
    assert_eq!((shop.program_of("web-1"), shop.program_of("web-2")), (None, None));
    assert_eq!(shop.instance("web-2").await.0, "stopped");
}

#[tokio::test]
async fn the_command_line_starts_and_stops_as_well() {
    let shop = Shop::with_program(&["web-1", "web-2"]).await;
    let token = shop.api().token().to_owned();
    let says = async |code: i32, arguments: &[&str]| shop.says(code, &[&["--token", &token], arguments].concat()).await;
    let output = says(0, &["instance", "start", "shop", "--batch", "50%", "--yes"]).await;
    assert!(output.contains("running as process"), "{output}");
    let first = shop.program_of("web-1").expect("it runs");
    says(2, &["instance", "start", "shop", "--hosts", "web-1", "--yes"]).await;
    let made = says(0, &["instance", "restart", "shop", "--hosts", "web-1", "--no-follow", "--yes"]).await;
    let name = made.trim();
    assert!(name.starts_with('/'), "{made}");
    let output = says(0, &["logs", "--follow", name]).await;
    assert!(output.contains(&format!("process {first} has ended")), "{output}");
    let listed = says(0, &["instance", "list", "shop"]).await;
    assert_eq!(listed.matches("running  ").count(), 4, "as they were left, and as their hosts see them: {listed}");
    says(0, &["instance", "stop", "shop", "--yes"]).await;
    assert_eq!((shop.program_of("web-1"), shop.program_of("web-2")), (None, None));
}

#[tokio::test]
async fn what_cannot_be_started_says_so_and_stays_stopped() {
    let shop = Shop::with_program(&["web-1", "web-2"]).await;
    fs::write(shop.folder().join("programs/web-1/app.py"), "import sys\nsys.exit('no room')\n").expect("a program");
    let failing =
        json!({"startup_cmd": format!("cd {}/programs/{{{{ host.name }}}}\npython3 app.py", shop.folder().display())});
    shop.api().patch(&format!("/applications/{}/", shop.application), failing).await.expect(200);
    let sub_task = shop.operate("start", "?batch=1").await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "failed");
    assert_eq!(on_host(&detail, "web-2")["status"], "cancelled", "the rollout stopped");
    assert!(shop.output(&sub_task, "").await.text.contains("no room"), "the program's own words are shown");
    assert_eq!((shop.instance("web-1").await.0, shop.program_of("web-2")), ("stopped".to_owned(), None));
    // Mended, it is tried again within the same task's followers.
    fs::write(shop.folder().join("programs/web-1/app.py"), "print('now')\nopen('app.pid', 'w').write('1\\n')\n")
        .expect("a program");
    fs::copy(shop.folder().join("programs/web-1/app.py"), shop.folder().join("programs/web-2/app.py")).expect("a copy");
    let again = shop.api().post(&format!("{}actions/retry/", sub_task.path), json!({})).await.expect(200);
    let again = SubTask { path: format!("/tasks/{}/", text(&again["task_id"])), channel: text(&again["task_output"]) };
    assert_eq!(shop.end_of(&again).await["status"], "finished");
    assert_eq!(shop.instance("web-2").await.0, "running");
}

#[tokio::test]
async fn a_start_goes_on_when_server_and_agent_are_killed() {
    let mut shop = Shop::with_program(&["web-1"]).await;
    let folder = shop.folder().join("programs/web-1");
    let waits = format!(
        "cd {}\necho started >> starts\nuntil [ -e go ]; do sleep 0.05; done\nsetsid python3 app.py > out.log 2>&1 < /dev/null &",
        folder.display()
    );
    shop.api().patch(&format!("/applications/{}/", shop.application), json!({"startup_cmd": waits})).await.expect(200);
    let sub_task = shop.operate("start", "").await;
    wait_until("the command", async || folder.join("starts").exists()).await;
    shop.processes.kill_server().await;
    shop.processes.kill_agent("web-1").await;
    fs::write(folder.join("go"), "").expect("a file");
    shop.processes.start_server().await;
    shop.processes.start_agent("web-1").await;
    assert_eq!(shop.end_of(&sub_task).await["status"], "finished");
    assert_eq!(fs::read_to_string(folder.join("starts")).expect("the starts"), "started\n");
    assert_eq!(shop.instance("web-1").await.0, "running");
    let program = shop.program_of("web-1").expect("it runs");
    shop.operated("stop", "", "finished").await;
    assert!(!is_alive(program));
}
