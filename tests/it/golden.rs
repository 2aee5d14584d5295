//! Golden files: what others rely on, written down so that every change shows up in review.
//!
//! `cargo xtask bless` writes them anew; here they must be what the project does.

use std::path::PathBuf;

use drover_kernel::routes::openapi;
use drover_shared::digest::Digest;
use drover_shared::instance::{
    LogAnswer, LogEvent, LogFile, LogOutcome, LogPiece, LogQuestion, LogSlice, Observation, ProcessState, Watched,
};
use drover_shared::message::{
    Abilities, Drift, Finished, Hello, Holding, HoldingAnswer, Inspect, Inspected, InspectedRelease, Part,
    ProcessVerdict, Range, Release, StepEvent, StepOutcome, ToAgent, ToServer,
};
use drover_shared::order::{Entry, IndexOf, Order, Statement, Step, canonical};
use drover_shared::secret::Secrets;
use drover_shared::words::{Action, ExecutionState, Language, StepState};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{schema, statements};

const LOG_FILE: LogFile = LogFile { device: 64_769, inode: 12, made_ns: 1_714_564_800_000_000_000 };

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../golden").join(name)
}

/// Compares, or writes when asked to bless.
pub(crate) fn golden(name: &str, text: &str) {
    let path = file(name);
    if std::env::var("DROVER_BLESS").is_ok_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
        std::fs::write(&path, text).expect("write the golden file");
        return;
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == text, "golden/{name} is stale: run `cargo xtask bless` and look at the difference");
}

#[test]
fn golden_openapi() {
    let text = serde_json::to_string_pretty(&openapi(&drover_server::routes(), "1")).expect("JSON");
    golden("openapi.json", &(text + "\n"));
}

#[test]
fn golden_routes() {
    golden("routes.txt", &drover_server::routes().listing());
}

#[test]
fn golden_transitions() {
    golden("transitions/execution.txt", &drover_automation::executions::rules::table());
    golden("transitions/deploy_task.txt", &drover_automation::deploys::rules::table());
}

#[tokio::test]
async fn golden_schema_of_sqlite() {
    golden("schema.sqlite.sql", &schema::sqlite().await);
}

#[tokio::test]
async fn golden_scans() {
    golden("scans.txt", &statements::scans().await);
}

mod golden_schema {
    #[tokio::test]
    async fn postgres() {
        super::golden("schema.postgres.sql", &super::schema::postgres().await);
    }
}

/// A message as it travels: what is stored must decode for ever, to what this build would send.
fn wire<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, message: &T) {
    let text = serde_json::to_string_pretty(message).expect("JSON");
    golden(&format!("wire/v1/{name}.json"), &(text + "\n"));
    let stored = std::fs::read_to_string(file(&format!("wire/v1/{name}.json"))).expect("the golden file");
    assert_eq!(&serde_json::from_str::<T>(&stored).expect("an old message decodes"), message);
}

fn entry() -> Entry {
    let digest = Digest::of(b"artifact");
    Entry {
        action: Action::Upgrade,
        task_id: 7,
        host: "web-1".to_owned(),
        application: "shop".to_owned(),
        instance_id: Some(3),
        version: "1.0".to_owned(),
        deploy_path: Some("/srv/shop".to_owned()),
        run_user: Some("shop".to_owned()),
        steps: vec![
            Step::Fetch { digest, size_bytes: 100, index: None },
            Step::Script {
                name: "pre_exec".to_owned(),
                language: Language::Bash,
                content: "true\n".to_owned(),
                running_user: None,
                timeout_ms: None,
            },
            Step::Unpack { digest, release: "1.0-0123456789ab".to_owned() },
            Step::Switch { release: "1.0-0123456789ab".to_owned() },
            Step::Verify { release: "1.0-0123456789ab".to_owned(), tree_digest: digest },
            Step::Prune { keep: 5 },
        ],
        environment: [("COLOUR".to_owned(), "blue".to_owned())].into(),
        output_bytes_max: 1024,
        kill_grace_ms: 5000,
        secrets: Vec::new(),
        shared_paths: Vec::new(),
    }
}

#[test]
fn golden_wire_orders() {
    wire("run", &run(&entry(), Secrets::default()));
    let mut newer = entry();
    newer.secrets = vec!["TOKEN".to_owned()];
    newer.shared_paths = vec!["uploads/".to_owned()];
    let mut indexed = entry();
    let index = IndexOf { digest: Digest::of(b"index"), size_bytes: 7 };
    indexed.steps = vec![Step::Fetch { digest: Digest::of(b"artifact"), size_bytes: 100, index: Some(index) }];
    wire("run_with_index", &run(&indexed, Secrets::default()));
    let mut limited = entry();
    if let Some(Step::Script { timeout_ms, .. }) = limited.steps.get_mut(1) {
        *timeout_ms = Some(30_000);
    }
    wire("run_with_timeout", &run(&limited, Secrets::default()));
    wire("run_with_secrets", &run(&newer, Secrets([("TOKEN".to_owned(), "s3cret".to_owned())].into())));
}

fn run(entry: &Entry, secrets: Secrets) -> ToAgent {
    let entry = canonical(entry);
    let statement = Statement {
        execution_id: "0190a5a0-0000-7000-8000-000000000001".to_owned(),
        attempt: 1,
        agent_id: "0190a5a0-0000-7000-8000-000000000002".to_owned(),
        plan_digest: Digest::of(b"plan"),
        entry_digest: Digest::of(entry.as_bytes()),
        timeout_ms: 120_000,
    };
    ToAgent::Run { order: Order::seal(&statement, entry, |_| vec![7; 64]), secrets }
}

#[test]
fn golden_wire_to_agent() {
    let id = "0190a5a0-0000-7000-8000-000000000001".to_owned();
    wire("challenge", &ToAgent::Challenge { nonce: "n".to_owned(), versions: (1, 1), time_ms: 1 });
    wire(
        "enrolled",
        &ToAgent::Enrolled { agent_id: id.clone(), ca_pem: "pem".to_owned(), signing_key: "key".to_owned() },
    );
    wire("refused", &ToAgent::Refused { reason: "no".to_owned(), retry: true });
    let answer = HoldingAnswer { execution_id: id.clone(), attempt: 1, wanted: true, offset: 9 };
    wire(
        "welcome",
        &ToAgent::Welcome {
            version: 1,
            epoch: 2,
            heartbeat_ms: 15_000,
            deadline_ms: 45_000,
            output_window_bytes: 1_048_576,
            holdings: vec![answer],
        },
    );
    let cancel =
        ToAgent::Cancel { execution_id: id.clone(), attempt: 1, reason: "by hand".to_owned(), timed_out: false };
    wire("cancel", &cancel);
    wire("output_ack", &ToAgent::OutputAck { channel: 1, offset: 64 });
    wire("output_resume", &ToAgent::OutputResume { channel: 1, offset: 64 });
    wire("archived", &ToAgent::Archived { execution_id: id, attempt: 1 });
    wire("artifact_refused", &ToAgent::ArtifactRefused { channel: 1, reason: "gone".to_owned() });
    wire("heartbeat_ack", &ToAgent::HeartbeatAck {});
    let (deploy_path, release) = ("/srv/shop".to_owned(), Some("1.0-0123456789ab".to_owned()));
    let (pid_path, running_user) = ("/run/shop.pid".to_owned(), Some("shop".to_owned()));
    let watched = Watched { instance_id: 3, pid_path, running_user: running_user.clone() };
    wire("watch", &ToAgent::Watch { instances: vec![watched] });
    let piece = LogPiece::Next { file: LOG_FILE, from: 100, bytes: 8192, wait_ms: 20_000 };
    let path = "/var/log/shop.log".to_owned();
    wire("read_log", &ToAgent::ReadLog(LogQuestion { request: 7, path, running_user, piece }));
    wire("inspect", &ToAgent::Inspect(Inspect { request: 7, deploy_path, release, compare: true, timeout_ms: 60_000 }));
}

#[test]
fn golden_wire_to_server() {
    let id = "0190a5a0-0000-7000-8000-000000000001".to_owned();
    let enrol = ToServer::Enrol { secret: "s".to_owned(), name: "web-1".to_owned(), public_key: "key".to_owned() };
    wire("enrol", &enrol);
    let abilities = Abilities {
        user: "root".to_owned(),
        other_users: true,
        cgroups: false,
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        spool_bytes_max: None,
    };
    let holding = Holding {
        execution_id: id.clone(),
        attempt: 1,
        channel: 1,
        log_length: 10,
        finished: false,
        needs_order: false,
    };
    let hello = Hello {
        agent_id: id.clone(),
        version: 1,
        features: vec![],
        signature: "sig".to_owned(),
        agent_version: "0.1.0".to_owned(),
        boot_id: "boot".to_owned(),
        time_ms: 1,
        abilities,
        holdings: vec![holding],
    };
    wire("hello", &ToServer::Hello(Box::new(hello)));
    wire("accepted", &ToServer::Accepted { execution_id: id.clone(), attempt: 1, channel: 1 });
    for (name, no_room) in [("rejected", false), ("rejected_no_room", true)] {
        let (execution_id, reason) = (id.clone(), "full".to_owned());
        wire(name, &ToServer::Rejected { execution_id, attempt: 1, reason, no_room });
    }
    let digest = Digest::of(b"artifact");
    wire("fetch", &ToServer::Fetch { channel: 2, digest, offset: 0, execution_id: id.clone(), part: Part::Whole });
    let ranges = Part::Ranges(vec![Range { offset: 0, length: 10 }, Range { offset: 20, length: 5 }]);
    for (name, part) in [("fetch_index", Part::Index), ("fetch_ranges", ranges)] {
        wire(name, &ToServer::Fetch { channel: 2, digest, offset: 0, execution_id: id.clone(), part });
    }
    wire("fetch_ack", &ToServer::FetchAck { channel: 2, offset: 128 });
    wire("fetch_done", &ToServer::FetchDone { channel: 2 });
    wire("heartbeat", &ToServer::Heartbeat { time_ms: 5 });
    wire("inspected", &ToServer::Inspected(Box::new(inspected(digest))));
    let (state, reason) = (ProcessState::Running, None);
    let seen = Observation { instance_id: 3, state, pid: Some(42), since_ms: Some(1), reason };
    wire("observed", &ToServer::Observed { instances: vec![seen] });
    let slice = LogSlice {
        content: "line\n".to_owned(),
        length: 5,
        position: 105,
        total_length: 105,
        lines: Some(1),
        file: LOG_FILE,
        event: Some(LogEvent::Rotated),
    };
    wire("log", &ToServer::Log(Box::new(LogAnswer { request: 7, outcome: LogOutcome::Slice(slice) })));
    wire("log_missing", &ToServer::Log(Box::new(LogAnswer { request: 7, outcome: LogOutcome::Missing {} })));
    wire("finished", &ToServer::Finished(Box::new(finished(id, digest))));
    wire(
        "step_event",
        &StepEvent { step: "pre_exec".to_owned(), state: StepState::Failed, exit_code: Some(3), error: None },
    );
}

#[test]
fn golden_wire_of_survivors() {
    let mut survived = finished("0190a5a0-0000-7000-8000-000000000001".to_owned(), Digest::of(b"artifact"));
    survived.processes.survivors = vec!["17 mount.nfs (D)".to_owned()];
    survived.processes.survivors_total = 1;
    wire("finished_with_survivors", &ToServer::Finished(Box::new(survived)));
}

fn inspected(digest: Digest) -> Inspected {
    let release = finished(String::new(), digest).releases.expect("releases").remove(0);
    let drift = Drift {
        manifest_damaged: false,
        changed: vec![("bin/run".to_owned(), "has another content".to_owned())],
        missing: vec!["a".to_owned()],
        added: vec!["b".to_owned()],
        more: 1,
    };
    let release = InspectedRelease { release, previous: false, members: 3, disk_bytes: 8192, drift: Some(drift) };
    Inspected { request: 7, reason: None, releases: vec![release], free_bytes: Some(1 << 30) }
}

fn finished(execution_id: String, digest: Digest) -> Finished {
    Finished {
        execution_id,
        attempt: 1,
        state: ExecutionState::Failed,
        reason: Some("pre_exec exited with status 3".to_owned()),
        steps: vec![StepOutcome {
            name: "pre_exec".to_owned(),
            state: StepState::Failed,
            exit_code: Some(3),
            signal: None,
            error: Some("exited with status 3".to_owned()),
            started_ms: Some(1),
            duration_ms: Some(2),
            log_start: 0,
            log_end: 64,
        }],
        log_length: 64,
        output_truncated: false,
        processes: ProcessVerdict {
            ended: 1,
            survivors: vec![],
            survivors_total: 0,
            certain: true,
            left_running: false,
        },
        releases: Some(vec![Release {
            name: "1.0-0123456789ab".to_owned(),
            version: "1.0".to_owned(),
            artifact_digest: digest,
            tree_digest: digest,
            current: true,
            installed_ms: 1,
        }]),
    }
}
