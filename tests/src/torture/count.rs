//! The count at the end: what the server tells, against what the hooks wrote down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use drover_shared::limits::OUTPUT_IN_FLIGHT_BYTES_MAX;
use serde_json::Value;

use super::load::{Asked, Fleet};
use crate::processes::with_environment;

/// What a hook may have written down and not said when it was ended in between: its longest line.
const UNSAID_BYTES_MAX: usize = 4 * 1024;
/// What went with a supervisor that was killed, beside the line that its hook was about to say.
const IN_FLIGHT_BYTES_MAX: usize = OUTPUT_IN_FLIGHT_BYTES_MAX + UNSAID_BYTES_MAX;

/// What was compared.
#[derive(Debug, Default)]
pub struct Counted {
    /// Sub-tasks by how they ended.
    pub tasks: BTreeMap<String, usize>,
    /// Executions by how they ended.
    pub executions: BTreeMap<String, usize>,
    /// Hooks that started.
    pub starts: usize,
    /// Bytes of output that were compared.
    pub bytes: usize,
}

impl std::fmt::Display for Counted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |counts: &BTreeMap<String, usize>| {
            let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
            parts.join(", ")
        };
        writeln!(formatter, "sub-tasks: {}", list(&self.tasks))?;
        writeln!(formatter, "executions: {}", list(&self.executions))?;
        write!(formatter, "{} hooks started, {} bytes of output compared", self.starts, self.bytes)
    }
}

/// Compares everything.
///
/// # Panics
/// When anything does not agree.
pub(super) async fn count(fleet: &Fleet, asked: &[Asked]) -> Counted {
    let all = fleet.all().await;
    let made: BTreeSet<&str> = all.iter().filter(|one| one["origin"].is_null()).filter_map(id).collect();
    let wanted: BTreeSet<&str> = asked.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(made, wanted, "what was asked for is there, once");
    assert_eq!(wanted.len(), asked.len(), "no two requests were taken for one");
    let mut counted = Counted::default();
    let mut known = BTreeSet::new();
    for task in &all {
        *counted.tasks.entry(text(&task["status"])).or_default() += 1;
        for execution in task["instances"].as_array().expect("instances") {
            *counted.executions.entry(text(&execution["status"])).or_default() += 1;
            let name = format!("{}.{}", text(&execution["execution_id"]), execution["attempt"]);
            compare(fleet, task, execution, &name, &mut counted).await;
            known.insert(name);
        }
    }
    for item in fs::read_dir(fleet.folder().join("kept")).expect("the folder") {
        let name = item.expect("an entry").file_name().into_string().expect("text");
        assert!(known.contains(&name), "the hooks of {name} ran, and nobody knows of it");
    }
    counted
}

async fn compare(fleet: &Fleet, task: &Value, execution: &Value, name: &str, counted: &mut Counted) {
    let state = text(&execution["status"]);
    let what = || format!("{name} ({state}) of {:#}", task);
    let over = ["succeeded", "failed", "cancelled", "timed_out", "lost"];
    assert!(over.contains(&state.as_str()), "the task is over and this is not: {}", what());
    for step in ["pre_exec", "post_exec"] {
        let starts = fs::read_to_string(fleet.folder().join(format!("starts/{name}.{step}"))).unwrap_or_default();
        let starts = starts.lines().count();
        let told = step_state(execution, step);
        assert!(starts <= 1, "{step} started {starts} times: {}", what());
        if told.as_deref() == Some("succeeded") {
            assert_eq!(starts, 1, "{step} succeeded and never started: {}", what());
        }
        if told.as_deref() == Some("skipped") {
            assert_eq!(starts, 0, "{step} was skipped and started: {}", what());
        }
        counted.starts += starts;
    }
    let kept = fs::read(fleet.folder().join("kept").join(name)).unwrap_or_default();
    let seen = stdout(fleet, task, execution).await;
    counted.bytes += seen.len();
    let unsaid = match state.as_str() {
        "succeeded" | "failed" => 0,
        "lost" => IN_FLIGHT_BYTES_MAX,
        _ => UNSAID_BYTES_MAX,
    };
    let common = kept.iter().zip(&seen).take_while(|(one, other)| one == other).count();
    assert!(
        common == seen.len() && kept.len() - common <= unsaid,
        "{} bytes were written, {} are told, {common} of them the same: {}",
        kept.len(),
        seen.len(),
        what()
    );
    if matches!(state.as_str(), "cancelled" | "timed_out" | "lost") {
        let mark = format!("DROVER_EXECUTION_ID={}", text(&execution["execution_id"]));
        let left = with_environment(&mark);
        assert!(left.is_empty(), "{left:?} live on: {}", what());
    }
}

/// What an execution's hooks said, as the server tells it.
async fn stdout(fleet: &Fleet, task: &Value, execution: &Value) -> Vec<u8> {
    let path = format!(
        "/tasks/{}/output/?format=json&execution={}",
        id(task).expect("an id"),
        text(&execution["execution_id"])
    );
    let bytes = fleet.api().download(&path, None).await.expect_bytes(200);
    let lines = String::from_utf8(bytes).expect("JSON is UTF-8");
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record"));
    records.filter(|record| record["stream"] == "stdout").map(|record| text(&record["text"])).collect::<String>().into()
}

fn step_state(execution: &Value, step: &str) -> Option<String> {
    let steps = execution["steps"].as_array()?;
    steps.iter().find(|one| one["name"] == step)?["state"].as_str().map(str::to_owned)
}

fn id(task: &Value) -> Option<&str> {
    task["task_id"].as_str()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}
