//! Script steps: their order, environment, output and failures.

use drover_shared::message::StepEvent;
use drover_shared::record::{Stream, records};
use drover_shared::words::{ExecutionState, Language, StepState};

use crate::bench::{Bench, bash, entry, is_root, script, stream, text};

#[test]
fn hooks_run_in_order_with_their_environment() {
    let bench = Bench::new();
    let deploy = bench.path("shop");
    std::fs::create_dir(&deploy).unwrap();
    let mut entry = entry(vec![
        bash("pre_exec", "pwd; env | grep -E '^(DROVER_|COLOUR|LANG|HOME|USER)' | sort; read line || echo no input"),
        script("post_exec", Language::Python, "import os\nprint('then', os.environ['DROVER_STEP'])\n", None),
    ]);
    entry.deploy_path = Some(deploy.to_string_lossy().into_owned());
    let (finished, folder) = bench.run(&entry);
    assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Succeeded, None));
    let out = text(&folder, Stream::Output);
    let deploy = deploy.to_string_lossy();
    assert!(out.starts_with(&format!("{deploy}\nCOLOUR=green\n")), "{out}");
    for line in [
        "DROVER_ACTION=upgrade",
        "DROVER_APPLICATION=shop.web",
        "DROVER_ATTEMPT=1",
        &format!("DROVER_DEPLOY_PATH={deploy}"),
        &format!("DROVER_CURRENT_PATH={deploy}/current"),
        &format!("DROVER_SHARED_PATH={deploy}/shared"),
        &format!("DROVER_EXECUTION_ID={}", finished.execution_id),
        "DROVER_HOST=web-1",
        "DROVER_INSTANCE_ID=3",
        "DROVER_STEP=pre_exec",
        "DROVER_TASK_ID=7",
        "DROVER_VERSION=1.0",
        "LANG=C.UTF-8",
    ] {
        assert!(out.lines().any(|one| one == line), "{line} is missing in {out}");
    }
    assert!(out.ends_with("no input\nthen post_exec\n"), "{out}");
    assert!(!out.contains("CARGO"), "the environment is not clean: {out}");
}

#[test]
fn events_and_ranges_frame_the_steps() {
    let bench = Bench::new();
    let (finished, folder) = bench.run(&entry(vec![bash("pre_exec", "echo a"), bash("post_exec", "echo b >&2")]));
    let log = std::fs::read(folder.log()).unwrap();
    assert_eq!(finished.log_length, log.len() as u64);
    let events: Vec<(u16, StepState)> = records(&log)
        .map(Result::unwrap)
        .filter(|record| record.stream == Stream::Event)
        .map(|record| (record.step, serde_json::from_slice::<StepEvent>(record.payload).unwrap().state))
        .collect();
    let expected =
        [(0, StepState::Running), (0, StepState::Succeeded), (1, StepState::Running), (1, StepState::Succeeded)];
    assert_eq!(events, expected);
    assert_eq!(finished.steps[0].log_start, 0);
    assert_eq!(finished.steps[0].log_end, finished.steps[1].log_start);
    assert_eq!(finished.steps[1].log_end, finished.log_length);
    assert_eq!(stream(&folder, Stream::Error), b"b\n");
}

#[test]
fn a_failing_hook_stops_the_rest_and_says_why() {
    let bench = Bench::new();
    let (finished, folder) = bench.run(&entry(vec![bash("pre_exec", "exit 3"), bash("post_exec", "echo no")]));
    assert_eq!(
        (finished.state, finished.reason.as_deref()),
        (ExecutionState::Failed, Some("pre_exec exited with status 3"))
    );
    assert_eq!(
        finished.steps.iter().map(|step| step.state).collect::<Vec<_>>(),
        [StepState::Failed, StepState::Skipped]
    );
    assert_eq!(finished.steps[0].exit_code, Some(3));
    assert_eq!(stream(&folder, Stream::Output), b"");
    assert!(text(&folder, Stream::Notice).contains("pre_exec exited with status 3\n"));

    let (finished, _) = Bench::new().run(&entry(vec![bash("pre_exec", "kill -9 $$")]));
    assert_eq!((finished.steps[0].exit_code, finished.steps[0].signal), (None, Some(9)));
}

#[test]
fn output_is_kept_byte_for_byte() {
    let content = "for i in $(seq 100000); do printf 'line %d \\033[31mred\\033[0m \\xf0\\x9f\\x9a\\x80 \\n' $i; done; printf '\\xff\\x00end'";
    let bench = Bench::new();
    let (finished, folder) = bench.run(&entry(vec![bash("pre_exec", content)]));
    assert_eq!(finished.state, ExecutionState::Succeeded);
    let mut expected = Vec::new();
    for i in 1..=100_000 {
        expected.extend_from_slice(format!("line {i} \u{1b}[31mred\u{1b}[0m \u{1f680} \n").as_bytes());
    }
    expected.extend_from_slice(b"\xff\x00end");
    assert!(stream(&folder, Stream::Output) == expected, "the output differs");
    assert!(!finished.output_truncated);
}

#[test]
fn the_output_limit_is_loud_and_ends_nothing() {
    let mut entry = entry(vec![bash("pre_exec", "head -c 1000000 /dev/zero; echo; echo done > $COLOUR")]);
    let bench = Bench::new();
    entry.environment.insert("COLOUR".to_owned(), bench.path("done").to_string_lossy().into_owned());
    entry.output_bytes_max = 100_000;
    let (finished, folder) = bench.run(&entry);
    assert_eq!(finished.state, ExecutionState::Succeeded);
    assert!(finished.output_truncated);
    assert!(bench.path("done").exists());
    let kept = stream(&folder, Stream::Output).len();
    assert!((90_000..=100_000).contains(&kept), "{kept}");
    assert_eq!(text(&folder, Stream::Notice).matches("output limit of 100000 bytes reached").count(), 1);
}

#[test]
fn what_is_missing_on_the_host_is_named() {
    let bench = Bench::new();
    let (finished, _) =
        bench.run(&entry(vec![script("pre_exec", Language::Bash, "true", Some("nobody-of-that-name"))]));
    let reason = finished.reason.unwrap();
    assert_eq!(reason, "pre_exec user `nobody-of-that-name` does not exist on this host");

    let folder = bench.accept(&entry(vec![script("pre_exec", Language::Python, "print(1)", None)]));
    let status = crate::bench::command(&folder).env("PATH", bench.folder.path()).status().unwrap();
    assert!(status.success());
    let reason = folder.status().unwrap().unwrap().reason.unwrap();
    assert_eq!(reason, "pre_exec interpreter `python3` is not installed on this host");
}

#[test]
fn without_root_a_hook_of_another_user_is_refused() {
    let bench = Bench::new();
    let ran = bench.path("ran");
    let hook = format!("touch {}", ran.display());
    let (finished, folder) =
        bench.run_without_root(&entry(vec![script("pre_exec", Language::Bash, &hook, Some("root"))]));
    let reason = finished.reason.unwrap();
    assert!(reason.starts_with("pre_exec the agent runs as `"), "{reason}");
    assert!(reason.ends_with("` and may not run scripts as `root`"), "{reason}");
    assert!(text(&folder, Stream::Notice).contains(&reason));
    assert!(!ran.exists());
    let (finished, _) = Bench::new().run_without_root(&entry(vec![bash("pre_exec", "test $(id -u) != 0")]));
    assert_eq!(finished.reason, None, "its own user it may be");
}

#[test]
fn a_hook_runs_as_its_user() {
    if !is_root() {
        // Only root may become somebody else; see above for everybody else.
        return;
    }
    let bench = Bench::new();
    let (finished, folder) =
        bench.run(&entry(vec![script("pre_exec", Language::Bash, "id -un; id -Gn; echo $HOME", Some("nobody"))]));
    assert_eq!(finished.reason, None);
    let out = text(&folder, Stream::Output);
    assert!(out.starts_with("nobody\nnogroup\n"), "{out}");
}

#[test]
fn a_hook_and_what_it_starts_can_be_ended_by_any_signal() {
    let bench = Bench::new();
    let (finished, folder) = bench.run(&entry(vec![bash("pre_exec", "grep SigBlk /proc/self/status")]));
    assert_eq!(finished.state, ExecutionState::Succeeded);
    assert_eq!(text(&folder, Stream::Output), "SigBlk:\t0000000000000000\n");
}
