//! What fails stops no more than it must, says why, and leaves the rest as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use drover_tests::processes::is_alive;

use super::*;

const HOSTS: [&str; 2] = ["web-1", "web-2"];

fn running(version: &str) -> (String, Option<String>) {
    ("running".to_owned(), Some(version.to_owned()))
}

fn step(name: &str, state: &str) -> (String, String) {
    (name.to_owned(), state.to_owned())
}

/// The sub-task failed, says this, and its output does too.
async fn check_failed(shop: &Shop, sub_task: &SubTask) -> Value {
    let detail = shop.end_of(sub_task).await;
    assert_eq!(detail["status"], "failed", "{detail:#}");
    let closing = shop.output(sub_task, "").await.closing;
    assert_eq!(closing, Closing { code: 1000, reason: "failed".to_owned() });
    detail
}

#[tokio::test]
async fn a_failing_hook_on_one_host_stops_that_instance_alone() {
    let shop = Shop::with_versions(&HOSTS).await;
    let folder = shop.folder().display().to_string();
    shop.deployed("v1").await;
    let failing = "[ \"$DROVER_HOST\" = web-1 ] || { echo 'the disk smells' >&2; exit 7; }";
    shop.hook("pre_exec", "bash", failing).await;
    shop.hook("post_exec", "bash", &format!("touch '{folder}/post-{{{{ host.name }}}}'")).await;
    shop.hook("global_post_exec", "bash", &format!("touch '{folder}/after'")).await;

    let sub_task = shop.deploy("v2").await;
    let detail = check_failed(&shop, &sub_task).await;
    let failed = on_host(&detail, "web-2");
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["error"], "pre_exec exited with status 7");
    let expected = [
        step("fetch", "succeeded"),
        step("pre_exec", "failed"),
        step("unpack", "skipped"),
        step("switch", "skipped"),
        step("post_exec", "skipped"),
        step("prune", "skipped"),
    ];
    assert_eq!(steps(failed), expected);
    assert_eq!(failed["steps"][1]["exit_code"], 7);
    assert_eq!(on_host(&detail, "web-1")["status"], "succeeded");
    let output = shop.output(&sub_task, "").await.text;
    assert!(output.contains("the disk smells\n") && output.contains("pre_exec exited with status 7"), "{output}");

    assert_eq!(shop.instance("web-1").await, running("v2"));
    assert_eq!(shop.instance("web-2").await, ("stopped".to_owned(), Some("v1".to_owned())));
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("two\n"));
    assert_eq!(shop.current("web-2", "index.html").as_deref(), Some("one\n"));
    assert!(shop.folder().join("post-web-1").exists() && !shop.folder().join("post-web-2").exists());
    assert!(shop.folder().join("after").exists(), "the last hook runs although an instance failed");
    assert_eq!(detail["global_hooks"][0]["status"], "succeeded", "{detail:#}");
}

#[tokio::test]
async fn nothing_is_touched_when_the_first_hook_fails() {
    let shop = Shop::with_versions(&HOSTS).await;
    let folder = shop.folder().display().to_string();
    shop.deployed("v1").await;
    shop.hook("global_pre_exec", "bash", "exit 1").await;
    for hook in ["pre_exec", "post_exec", "global_post_exec"] {
        shop.hook(hook, "bash", &format!("touch '{folder}/{hook}'")).await;
    }
    let sub_task = shop.deploy("v2").await;
    let detail = check_failed(&shop, &sub_task).await;
    assert_eq!(detail["global_hooks"][0]["status"], "failed", "{detail:#}");
    for host in HOSTS {
        assert_eq!(on_host(&detail, host)["status"], "cancelled");
        assert_eq!(shop.instance(host).await, running("v1"));
        assert_eq!(shop.current(host, "index.html").as_deref(), Some("one\n"));
    }
    for hook in ["pre_exec", "post_exec", "global_post_exec"] {
        assert!(!shop.folder().join(hook).exists(), "{hook} ran");
    }
}

#[tokio::test]
async fn a_timeout_ends_the_whole_tree() {
    let shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    // One child in the script's own session and one that left it.
    let script = format!(
        "trap 'echo told to end; exit 1' TERM\n\
         sleep 1000 & echo $! > '{folder}/near'\n\
         setsid bash -c 'echo $$ > \"{folder}/far.new\"; mv \"{folder}/far.new\" \"{folder}/far\"; sleep 1000' &\n\
         while [ ! -e '{folder}/far' ]; do sleep 0.01; done\n\
         echo waiting\nwait\n"
    );
    shop.hook("pre_exec", "bash", &script).await;
    let task = shop.deploy_task("v1").await;
    let mut wanted = shop.sub_task("v1");
    wanted["timeout"] = json!(3);
    let sub_task = shop.make("upgrade", task, wanted).await;
    let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
    viewer.until("waiting\n").await;
    let pids: Vec<i32> = ["near", "far"]
        .map(|name| {
            fs::read_to_string(shop.folder().join(name)).expect("a process").trim().parse().expect("its number")
        })
        .into();
    assert!(pids.iter().all(|pid| is_alive(*pid)));

    let detail = check_failed(&shop, &sub_task).await;
    let instance = on_host(&detail, "web-1");
    assert_eq!(instance["status"], "timed_out", "{detail:#}");
    assert!(text(&instance["error"]).contains("ran out"), "{instance}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?} live on");
    let output = shop.output(&sub_task, "").await.text;
    assert!(output.contains("told to end\n"), "it is asked before it is forced, and heard until the end: {output}");
    assert!(instance["processes"]["ended"].as_u64().is_some_and(|ended| ended >= 3), "{instance}");
    assert_eq!(instance["processes"]["survivors"], json!([]));
    assert_eq!(shop.instance("web-1").await, ("stopped".to_owned(), None));
    assert_eq!(shop.current("web-1", "index.html"), None);
}

#[tokio::test]
async fn a_hook_has_no_more_than_its_own_time() {
    let shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    shop.hook("pre_exec", "bash", &format!("echo $$ > '{folder}/pid'; sleep 1000 & wait")).await;
    shop.set(json!({"lifecycle_hooks": {"pre_exec": {"timeout": 2}}})).await;
    let sub_task = shop.deploy("v1").await;
    let detail = check_failed(&shop, &sub_task).await;
    let instance = on_host(&detail, "web-1");
    assert_eq!(
        (&instance["status"], &instance["error"]),
        (&json!("timed_out"), &json!("the time of pre_exec (2 s) ran out"))
    );
    assert_eq!(steps(instance)[1], step("pre_exec", "failed"));
    assert_eq!(steps(instance)[2], step("unpack", "skipped"));
    let pid = fs::read_to_string(shop.folder().join("pid")).expect("a process");
    assert!(!is_alive(pid.trim().parse().expect("its number")));
}

#[tokio::test]
async fn what_one_host_does_is_cancelled_and_the_other_goes_on() {
    let shop = Shop::with_versions(&HOSTS).await;
    let folder = shop.folder().display().to_string();
    let script = format!(
        "if [ \"$DROVER_HOST\" = web-2 ]; then while [ ! -e '{folder}/go' ]; do sleep 0.02; done; exit 0; fi\n\
         setsid bash -c 'echo $$ > \"{folder}/far.new\"; mv \"{folder}/far.new\" \"{folder}/far\"; sleep 1000' &\n\
         wait\n"
    );
    shop.hook("pre_exec", "bash", &script).await;
    let sub_task = shop.deploy("v1").await;
    wait_until("the hook", async || shop.folder().join("far").exists()).await;
    let pid: i32 =
        fs::read_to_string(shop.folder().join("far")).expect("a process").trim().parse().expect("its number");
    assert!(is_alive(pid));

    let token = shop.api().token().to_owned();
    let cancel = ["--token", &token, "cancel", "1", "--hosts", "web-1", "--reason", "wrong host"];
    assert_eq!(shop.says(0, &cancel).await, "1/1: cancel\n");
    wait_until("its end", async || {
        on_host(&shop.api().get(&sub_task.path).await.expect(200), "web-1")["status"] == "cancelled"
    })
    .await;
    assert!(!is_alive(pid), "{pid} lives on");
    shop.says(2, &cancel).await;
    fs::write(shop.folder().join("go"), "").expect("a file");
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    let (ended, other) = (on_host(&detail, "web-1"), on_host(&detail, "web-2"));
    assert_eq!((&ended["error"], &other["status"]), (&json!("cancelled by admin: wrong host"), &json!("succeeded")));
    assert!(ended["processes"]["ended"].as_u64().is_some_and(|count| count >= 2), "{ended}");
    assert_eq!(shop.current("web-1", "index.html"), None);
    assert_eq!(shop.current("web-2", "index.html").as_deref(), Some("one\n"));
}

#[tokio::test]
async fn a_running_user_that_does_not_exist_is_named() {
    let shop = Shop::with_versions(&["web-1"]).await;
    shop.hook("post_exec", "bash", "echo never").await;
    shop.set(json!({"lifecycle_hooks": {"post_exec": {"running_user": "nobody-of-this-name"}}})).await;
    let sub_task = shop.deploy("v1").await;
    let detail = check_failed(&shop, &sub_task).await;
    let reason = text(&on_host(&detail, "web-1")["error"]);
    assert_eq!(reason, "post_exec user `nobody-of-this-name` does not exist on this host");
    let output = shop.output(&sub_task, "").await.text;
    assert!(output.contains(&reason) && !output.contains("never"), "{output}");
}

#[tokio::test]
async fn an_interpreter_that_is_not_there_is_named() {
    let mut shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    // The machine of the tests has one: the agent is started where none is found.
    let programs = shop.folder().join("programs");
    fs::create_dir(&programs).expect("a folder");
    shop.processes.stop_agent("web-1").await;
    let mut agent = shop.processes.program("drover-agent");
    agent.env("PATH", &programs);
    shop.processes.spawn_agent_by(agent, "web-1", &[]);
    shop.processes.wait_for_connection("web-1", true).await;
    shop.hook("pre_exec", "python", &format!("open('{folder}/ran', 'w')\n")).await;
    shop.hook("post_exec", "bash", "echo never").await;

    let sub_task = shop.deploy("v1").await;
    let detail = check_failed(&shop, &sub_task).await;
    let instance = on_host(&detail, "web-1");
    let reason = text(&instance["error"]);
    assert_eq!(reason, "pre_exec interpreter `python3` is not installed on this host");
    let expected = [
        step("fetch", "succeeded"),
        step("pre_exec", "failed"),
        step("unpack", "skipped"),
        step("switch", "skipped"),
        step("post_exec", "skipped"),
        step("prune", "skipped"),
    ];
    assert_eq!((&instance["status"], steps(instance)), (&json!("failed"), expected.to_vec()));
    let output = shop.output(&sub_task, "").await.text;
    assert!(output.contains(&reason) && !output.contains("never"), "{output}");
    assert!(!shop.folder().join("ran").exists());
    assert_eq!(shop.instance("web-1").await, ("stopped".to_owned(), None));
    assert_eq!(shop.current("web-1", "index.html"), None);
}

/// Number of an account that is not root; it need not have a name.
const STRANGER: u32 = 65_534;

/// Starts the agent of a host as an account that is not root, whoever runs the tests.
async fn start_without_root(shop: &mut Shop, host: &str) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    shop.processes.stop_agent(host).await;
    let folder = shop.folder().to_owned();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("a folder that others may enter");
    give_away(&shop.processes.agent_folder(host));
    // The program may lie where only root gets to.
    let agent = shop.processes.program("drover-agent");
    let program = folder.join("drover-agent");
    fs::copy(agent.get_program(), &program).expect("the program");
    let mut own = Command::new(program);
    own.env_clear().current_dir(&folder).stdin(std::process::Stdio::null()).uid(STRANGER).gid(STRANGER);
    own.envs(agent.get_envs().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value.to_owned()))));
    shop.processes.spawn_agent_by(own, host, &[]);
    shop.processes.wait_for_connection(host, true).await;
}

/// Gives a folder and all below it to that account.
fn give_away(path: &Path) {
    std::os::unix::fs::lchown(path, Some(STRANGER), Some(STRANGER)).expect("another owner");
    if path.is_dir() {
        for item in fs::read_dir(path).expect("a folder") {
            give_away(&item.expect("an item").path());
        }
    }
}

#[tokio::test]
async fn an_agent_without_root_says_so_and_names_what_it_may_not_do() {
    let mut shop = Shop::with_versions(&["web-1"]).await;
    start_without_root(&mut shop, "web-1").await;
    let host = shop.processes.wait_for_connection("web-1", true).await;
    let shown = shop.api().get(&format!("/hosts/{host}/")).await.expect(200);
    assert_eq!(shown["agent"]["abilities"]["other_users"], json!(false), "{shown:#}");
    let own = text(&shown["agent"]["abilities"]["user"]);
    assert_ne!(own, "root");

    let folder = shop.folder().display().to_string();
    shop.hook("pre_exec", "bash", &format!("touch '{folder}/ran'")).await;
    shop.set(json!({"lifecycle_hooks": {"pre_exec": {"running_user": "root"}}})).await;
    let sub_task = shop.deploy("v1").await;
    let detail = check_failed(&shop, &sub_task).await;
    let reason = text(&on_host(&detail, "web-1")["error"]);
    assert_eq!(reason, format!("pre_exec the agent runs as `{own}` and may not run scripts as `root`"));
    assert!(shop.output(&sub_task, "").await.text.contains(&reason));
    assert!(!shop.folder().join("ran").exists());
}

#[tokio::test]
async fn an_undefined_variable_is_refused_with_its_place() {
    let shop = Shop::with_versions(&["web-1"]).await;
    shop.hook("pre_exec", "bash", "echo fine\necho {{ host.name }}\necho {{ host.nmae }}\n").await;
    let task = shop.deploy_task("v1").await;
    let path = format!("/applications/deploy-tasks/{task}/sub-upgrade-tasks/");
    let refused = shop.api().post(&path, shop.sub_task("v1")).await.expect(400);
    assert_eq!(refused["field"], "lifecycle_hooks.pre_exec.script", "{refused}");
    let message = text(&refused["message"]);
    assert!(message.contains("pre_exec, line 3, column") && message.contains("host.nmae"), "{message}");
    assert_eq!(shop.api().get(&path).await.expect(200)["count"], 0, "nothing is stored");
    assert_eq!(shop.instance("web-1").await, ("stopped".to_owned(), None));
}

#[tokio::test]
async fn a_source_that_cannot_be_had_leaves_everything_as_it_was() {
    let shop = Shop::with_versions(&["web-1"]).await;
    shop.deployed("v1").await;
    let folder = shop.folder().display().to_string();
    shop.hook("pre_exec", "bash", &format!("touch '{folder}/pre_exec-ran'")).await;
    let repository = |url: &str, branch: &str| json!({"repository": {"type": "GIT", "url": url, "branch": branch}});
    let own = shop.repository().display().to_string();

    // Nobody listens on the port of a socket that is bound and closed again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let silent = format!("http://{port}/shop.git");
    std::os::unix::fs::symlink("../../../etc/passwd", shop.repository().join("escape")).expect("a link");
    shop.commit_all("v3");
    for (change, version, reason) in [
        (repository(&silent, "main"), "v2", format!("cannot fetch {silent}")),
        (repository(&format!("{folder}/nothing"), "main"), "v2", format!("there is no repository at {folder}/nothing")),
        (
            repository(&own, "trunk"),
            "v9",
            "repository has neither a tag, commit nor branch `v9`, and no branch `trunk`".to_owned(),
        ),
        (repository(&own, "main"), "v3", "the archive is refused because of `escape`".to_owned()),
    ] {
        shop.set(change).await;
        let sub_task = shop.deploy(version).await;
        let detail = check_failed(&shop, &sub_task).await;
        let error = text(&detail["error"]);
        assert!(error.contains(&reason), "{error}");
        let output = shop.output(&sub_task, "").await.text;
        assert!(output.contains(&error), "{output}");
        assert_eq!(on_host(&detail, "web-1")["status"], "cancelled");
        assert_eq!(shop.instance("web-1").await, running("v1"));
        assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
    }
    assert!(!shop.folder().join("pre_exec-ran").exists(), "nothing is stopped for a source that cannot be had");
    assert_eq!(fs::read_dir(shop.deploy_path("web-1").join("releases")).expect("releases").count(), 1);
}
