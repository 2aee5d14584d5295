//! Instances that really run: how their hosts see them, and their logs as they are written.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

impl Shop {
    /// What is shown of the process of a host's instance.
    async fn process(&self, host: &str) -> Value {
        let (_, id) = self.instances.iter().find(|(name, _)| name == host).expect("an instance");
        let path = format!("/applications/{}/instances/{id}/", self.application);
        self.api().try_get(&path).await.map(|instance| instance["process"].clone()).unwrap_or_default()
    }

    /// The same, once it is so.
    async fn process_when(&self, host: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut process = Value::Null;
        wait_until(what, async || {
            process = self.process(host).await;
            is(&process)
        })
        .await;
        process
    }

    async fn process_is(&self, host: &str, state: &str) -> Value {
        self.process_when(host, state, |process| process["state"] == state).await
    }

    /// Starts `drover` with its output in a file.
    fn drover_into(&self, arguments: &[&str], output: &Path) -> Child {
        let mut command = self.processes.program("drover");
        command.args(["--token", self.api().token()]).args(arguments).env("DROVER_URL", self.processes.url());
        let errors = File::create(output.with_extension("errors")).expect("a file");
        command.stdin(Stdio::null()).stdout(File::create(output).expect("a file")).stderr(errors);
        command.spawn().expect("the command line starts")
    }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).expect("a log");
    file.write_all(text.as_bytes()).expect("room");
}

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn an_instance_that_is_killed_behind_drovers_back_is_shown_as_crashed() {
    let mut shop = Shop::with_program(&["web-1", "web-2"]).await;
    shop.process_is("web-1", "stopped").await;
    shop.process_is("web-2", "stopped").await;
    shop.operated("start", "", "finished").await;
    assert_eq!(shop.process("web-1").await["state"], "running", "right after the operation");
    let program = shop.program_of("web-1").expect("it runs");
    let is_it = |process: &Value| process["pid"] == program && process["since_time"].is_string();
    shop.process_when("web-1", "its number", is_it).await;

    kill(Pid::from_raw(program), Signal::SIGKILL).expect("it is there");
    let process = shop.process_is("web-1", "crashed").await;
    assert!(text(&process["reason"]).contains(&program.to_string()), "{process}");
    assert!(process["since_time"].is_string(), "it was seen to go: {process}");
    assert_eq!(shop.instance("web-1").await.0, "running", "that is what was done to it last");
    let token = shop.api().token().to_owned();
    let listed = shop.says(0, &["--token", &token, "instance", "list", "shop", "--process", "crashed"]).await;
    assert!(listed.contains("web-1") && listed.contains("crashed") && !listed.contains("web-2"), "{listed}");

    // It may be started, and what runs may not.
    let both = format!("/applications/{}/instances/actions/start/", shop.application);
    let ids: Vec<Value> = shop.instances.iter().map(|(_, id)| json!(id)).collect();
    shop.api().post(&both, json!(ids)).await.expect(409);
    shop.api().post(&both, json!([ids[0]])).await.expect(200);
    let again = shop.process_when("web-1", "its new number", |process| process["pid"].is_number()).await;
    assert_ne!(again["pid"], program);
    wait_until("the end of the start", async || shop.instance("web-1").await.0 == "running").await;

    // Nobody knows how a host is that is away; when it is back everybody does.
    shop.processes.kill_agent("web-1").await;
    let process = shop.process_is("web-1", "unknown").await;
    assert_eq!((&process["last_state"], &process["reason"]), (&json!("running"), &json!("the agent is not connected")));
    assert!(process["last_seen_time"].is_string(), "{process}");
    shop.processes.start_agent("web-1").await;
    assert_eq!(shop.process_is("web-1", "running").await["pid"], again["pid"]);
    shop.processes.kill_server().await;
    shop.processes.start_server().await;
    assert_eq!(shop.process_is("web-1", "running").await["pid"], again["pid"]);

    shop.operated("stop", "", "finished").await;
    assert_eq!(shop.process("web-2").await["state"], "stopped", "right after the operation");
    shop.process_is("web-1", "stopped").await;
}

#[tokio::test]
async fn a_log_is_followed_on_the_command_line_over_a_rotation_and_a_restart() {
    let mut shop = Shop::with_program(&["web-1"]).await;
    let logs = shop.folder().join("log files");
    fs::create_dir(&logs).expect("a folder");
    let log = logs.join("web-1.log");
    let paths = json!({
        "stdout_path": format!("{}/{{{{ host.name }}}}.log", logs.display()),
        "stderr_path": format!("{}/none.log", logs.display()),
    });
    shop.api().patch(&format!("/applications/{}/", shop.application), paths).await.expect(200);
    for number in 1..=5 {
        append(&log, &format!("line {number} äöü\n"));
    }
    let token = shop.api().token().to_owned();
    let says = async |code: i32, arguments: &[&str]| {
        shop.says(code, &[&["--token", &token, "instance", "logs", "shop"], arguments].concat()).await
    };
    assert_eq!(says(0, &["web-1", "-n", "2"]).await, "line 4 äöü\nline 5 äöü\n");
    let instance = shop.instances[0].1.to_string();
    let slice: Value = serde_json::from_str(&says(0, &[&instance, "--json"]).await).expect("a slice");
    assert_eq!((&slice["lines"], &slice["total_length"]), (&json!(5), &json!(content(&log).len())));
    says(4, &["web-1", "--error"]).await;
    says(4, &["web-9"]).await;

    let output = shop.folder().join("followed");
    let mut follower = shop.drover_into(&["instance", "logs", "shop", "web-1", "-n", "1", "-f"], &output);
    let mut followed = async |expected: &str| {
        wait_until("the lines", async || {
            let ended = follower.try_wait().expect("its state");
            assert!(ended.is_none(), "{ended:?}: {}", content(&output.with_extension("errors")));
            content(&output).ends_with(expected)
        })
        .await;
    };
    followed("line 5 äöü\n").await;
    append(&log, "line 6\n");
    followed("line 6\n").await;
    // As a rotation goes: the writer still has the former file open when the new one is there.
    append(&log, "line 7\n");
    let former = logs.join("web-1.log.1");
    fs::rename(&log, &former).expect("it is renamed");
    append(&former, "line 8\n");
    File::create_new(&log).expect("a new log");
    append(&former, "line 9\n");
    append(&log, "line 10\n");
    followed("line 10\n").await;
    // Meanwhile the server is another one, and what is written is not lost.
    shop.processes.kill_server().await;
    append(&log, "line 11\n");
    shop.processes.start_server().await;
    append(&log, "line 12\n");
    followed("line 12\n").await;
    kill(Pid::from_raw(i32::try_from(follower.id()).expect("a number")), Signal::SIGINT).expect("it is there");
    let mut ended = None;
    wait_until("the end of the command", async || {
        ended = follower.try_wait().expect("its state");
        ended.is_some()
    })
    .await;
    assert_eq!(ended.and_then(|status| status.code()), Some(130));
    let lines: String = (6..=12).map(|number| format!("line {number}\n")).collect();
    assert_eq!(content(&output), format!("line 5 äöü\n{lines}"));
    assert!(content(&output.with_extension("errors")).contains("rotated"));
}
