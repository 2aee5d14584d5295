//! The main job: deploy, deploy again, go back.

use std::collections::BTreeSet;
use std::fs;

use drover_tests::processes::Closing;

use super::*;

const HOSTS: [&str; 2] = ["web-1", "web-2"];
const HOOKS: [&str; 4] = ["global_pre_exec", "pre_exec", "post_exec", "global_post_exec"];

/// Environment of every hook, then of the hooks of an instance.
const OF_ALL: [&str; 14] = [
    "DROVER_ACTION",
    "DROVER_APPLICATION",
    "DROVER_ATTEMPT",
    "DROVER_EXECUTION_ID",
    "DROVER_HOST",
    "DROVER_STEP",
    "DROVER_TASK_ID",
    "DROVER_VERSION",
    "HOME",
    "LANG",
    "LOGNAME",
    "PATH",
    "SHELL",
    "USER",
];
const OF_INSTANCES: [&str; 5] =
    ["DROVER_CURRENT_PATH", "DROVER_DEPLOY_PATH", "DROVER_INSTANCE_ID", "DROVER_RELEASE_PATH", "DROVER_SHARED_PATH"];

mod two_versions_and_back {
    use super::*;

    #[tokio::test]
    async fn sqlite() {
        Box::pin(two_versions_and_back(Engine::Sqlite)).await;
    }

    #[tokio::test]
    async fn postgres() {
        Box::pin(two_versions_and_back(Engine::Postgres)).await;
    }
}

async fn two_versions_and_back(engine: Engine) {
    let shop = Shop::open(engine, &HOSTS).await;
    shop.commit("v1", &[("index.html", "one\n"), ("bin/run", "#!/bin/sh\n")]);
    shop.commit("v2", &[("index.html", "two\n"), ("new/file", "new\n")]);
    let folder = shop.folder().display().to_string();
    for hook in HOOKS {
        // One line for each hook, with what is live at that moment.
        let content = format!(
            "live=$(cat \"$DROVER_CURRENT_PATH/index.html\" 2>/dev/null)\n\
             echo \"$DROVER_STEP $DROVER_HOST $DROVER_ACTION $DROVER_VERSION live=$live\" >> '{folder}/order'\n\
             echo \"$DROVER_STEP on {{{{ host.name }}}} for {{{{ action }}}}\"\n\
             env -0 | cut -z -d= -f1 | tr '\\0' '\\n' > '{folder}/env-{{{{ action }}}}-{{{{ version }}}}-{hook}'\n"
        );
        shop.hook(hook, "bash", &content).await;
    }

    let first = shop.deployed("v1").await;
    check_round(&shop, "upgrade", "v1", ["", "one"]).await;
    assert_eq!(shop.output(&first, "").await.closing, Closing { code: 1000, reason: "finished".to_owned() });
    let second = shop.deployed("v2").await;
    check_round(&shop, "upgrade", "v2", ["one", "two"]).await;
    let back = shop.revert("v1").await;
    let detail = shop.end_of(&back).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    check_round(&shop, "revert", "v1", ["two", "one"]).await;

    for host in HOSTS {
        assert!(shop.current(host, "bin/run").is_some() && shop.current(host, "new/file").is_none());
        let releases = fs::read_dir(shop.deploy_path(host).join("releases")).expect("releases").count();
        assert_eq!(releases, 2, "both versions are kept on {host}");
    }
    check_environment(&folder);
    check_output(&shop, &second, "upgrade").await;
    check_output(&shop, &back, "revert").await;
    check_audit(&shop).await;
}

/// What the hooks saw of one rollout, and what it left.
async fn check_round(shop: &Shop, action: &str, version: &str, [before, after]: [&str; 2]) {
    let file = shop.folder().join("order");
    let lines = fs::read_to_string(&file).expect("the hooks' lines");
    fs::remove_file(file).expect("the hooks' lines");
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 6, "{lines:#?}");
    assert_eq!(lines[0], format!("global_pre_exec web-1 {action} {version} live="));
    assert_eq!(lines[5], format!("global_post_exec web-1 {action} {version} live="));
    for host in HOSTS {
        let own: Vec<&&str> = lines[1..5].iter().filter(|line| line.contains(host)).collect();
        let expected = [
            format!("pre_exec {host} {action} {version} live={before}"),
            format!("post_exec {host} {action} {version} live={after}"),
        ];
        assert_eq!(own, expected.iter().map(String::as_str).collect::<Vec<_>>().iter().collect::<Vec<_>>());
        assert_eq!(shop.current(host, "index.html").as_deref(), Some(format!("{after}\n").as_str()), "{host}");
        assert_eq!(shop.instance(host).await, ("running".to_owned(), Some(version.to_owned())), "{host}");
    }
}

/// The hooks have what is documented, and nothing else of Drover's.
fn check_environment(folder: &str) {
    for (round, previous) in [("upgrade-v1", false), ("upgrade-v2", true), ("revert-v1", true)] {
        for hook in HOOKS {
            let names = fs::read_to_string(format!("{folder}/env-{round}-{hook}")).expect("the hook's environment");
            // Bash has some of its own.
            let names = names.lines().filter(|name| !matches!(*name, "PWD" | "OLDPWD" | "SHLVL" | "_"));
            let names: BTreeSet<&str> = names.collect();
            let mut expected: BTreeSet<&str> = OF_ALL.into_iter().collect();
            if !hook.starts_with("global_") {
                expected.extend(OF_INSTANCES);
                expected.extend(previous.then_some("DROVER_PREVIOUS_RELEASE_PATH"));
            }
            assert_eq!(names, expected, "{hook} of {round}");
        }
    }
}

async fn check_output(shop: &Shop, sub_task: &SubTask, action: &str) {
    let output = shop.output(sub_task, "").await;
    assert_eq!(output.closing, Closing { code: 1000, reason: "finished".to_owned() });
    for hook in HOOKS {
        let hosts = if hook.starts_with("global_") { &HOSTS[..1] } else { &HOSTS[..] };
        for host in hosts {
            let line = format!("{hook} on {host} for {action}");
            assert_eq!(output.text.lines().filter(|found| *found == line).count(), 1, "{line}: {}", output.text);
        }
    }
}

async fn check_audit(shop: &Shop) {
    let entries = shop.processes.audit().await;
    let count = |entry: &str| entries.iter().filter(|found| *found == entry).count();
    for (entry, expected) in [
        ("create deploy_task admin", 3),
        ("approve deploy_task admin", 3),
        ("start deploy_task admin", 3),
        ("upgrade task admin", 2),
        ("revert task admin", 1),
        ("attach_host application admin", 2),
    ] {
        assert_eq!(count(entry), expected, "{entry}: {entries:#?}");
    }
    assert_eq!(entries.iter().filter(|entry| entry.starts_with("enrol agent ")).count(), 2, "{entries:#?}");
}
