//! What is tried again, played through with hosts that fail at random steps.

use drover_kernel::db::Json;
use drover_shared::Digest;
use drover_shared::order::Probe;
use drover_shared::words::{Language, StepState, Word as _};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn script(name: &str) -> Step {
    let (name, content) = (name.to_owned(), "true".to_owned());
    Step::Script { name, language: Language::Bash, content, running_user: None, timeout_ms: None }
}

/// An update as plans have it.
fn entry(has_files: bool, has_health: bool) -> Entry {
    let (digest, release) = (Digest::of(b"archive"), "v2".to_owned());
    let mut steps = vec![script("pre_exec"), script("post_exec")];
    if has_files {
        steps.insert(0, Step::Fetch { digest, size_bytes: 7, index: None });
        steps.insert(2, Step::Unpack { digest, release: release.clone() });
        steps.insert(3, Step::Switch { release });
        steps.push(Step::Prune { keep: 3 });
    }
    if has_health {
        let at = steps.iter().position(|step| step.name() == "prune").unwrap_or(steps.len());
        let probe = Probe::Tcp { address: "web-1:80".to_owned() };
        let (interval_ms, timeout_ms, retries, successes) = (1, 1, 1, 1);
        steps.insert(at, Step::Health { probe, interval_ms, timeout_ms, retries, successes, running_user: None });
    }
    Entry {
        action: Action::Upgrade,
        task_id: 1,
        host: "web-1".to_owned(),
        application: "shop".to_owned(),
        instance_id: Some(1),
        version: "v2".to_owned(),
        deploy_path: None,
        run_user: None,
        steps,
        environment: Default::default(),
        output_bytes_max: 1,
        kill_grace_ms: 1,
        secrets: Vec::new(),
        shared_paths: Vec::new(),
    }
}

/// What the server keeps of an execution whose host did so many steps well; nothing of the steps when the host was lost.
fn kept(entry: &Entry, well: usize, is_lost: bool) -> Script {
    let state = |index: usize| match index.cmp(&well) {
        std::cmp::Ordering::Less => StepState::Succeeded,
        std::cmp::Ordering::Equal => StepState::Failed,
        std::cmp::Ordering::Greater => StepState::Skipped,
    };
    let told = |(index, step): (usize, &Step)| json!({"name": step.name(), "state": state(index).as_str()});
    let steps: serde_json::Value = entry.steps.iter().enumerate().map(told).collect();
    let steps = (!is_lost).then_some(Json(steps));
    Script { execution_id: String::new(), entry: canonical(entry), steps, revert_entry: None }
}

proptest! {
    #[test]
    fn a_retry_repeats_no_step_that_is_known_to_be_done_and_leaves_none_out(
        has_files in any::<bool>(),
        has_health in any::<bool>(),
        failures in proptest::collection::vec((0_usize..8, proptest::bool::weighted(0.1)), 0..20),
    ) {
        let whole = entry(has_files, has_health);
        let mut sent = whole.clone();
        // Names of the steps that the server knows to be done, and of those that were done at all, in their order.
        let (mut known, mut did): (BTreeSet<String>, Vec<String>) = Default::default();
        let end = (usize::MAX, false);
        for (well, is_lost) in failures.into_iter().chain([end]) {
            let well = well.min(sent.steps.len());
            let failed = (well + 1).min(sent.steps.len());
            for step in &sent.steps[..failed] {
                let costs_nothing = matches!(step, Step::Fetch { .. } | Step::Switch { .. });
                prop_assert!(costs_nothing || !known.contains(step.name()), "{} once more", step.name());
            }
            did.extend(sent.steps[..well].iter().map(|step| step.name().to_owned()));
            if well == sent.steps.len() {
                break;
            }
            if !is_lost {
                known.extend(sent.steps[..well].iter().map(|step| step.name().to_owned()));
            }
            let script = kept(&sent, well, is_lost);
            sent = without_done(sent, &script);
        }
        // All of it was done, each step after those that it needs.
        let mut rest = did.iter();
        for step in &whole.steps {
            prop_assert!(rest.any(|name| name == step.name()), "{} is missing or too early in {did:?}", step.name());
        }
    }
}

#[test]
fn what_began_nothing_was_not_touched() {
    let whole = entry(true, false);
    let began = |well| kept(&whole, well, false);
    assert!(!touched(&kept(&whole, 0, true), State::Failed), "it turned the order down");
    assert!(!touched(&kept(&whole, 0, true), State::Cancelled), "it never got the order");
    assert!(touched(&kept(&whole, 0, true), State::Lost), "nobody knows");
    assert!(!touched(&began(0), State::Failed), "it could not fetch the artifact");
    assert!(touched(&began(1), State::Failed), "the first hook failed");
    let silent = Script { steps: Some(Json(json!([]))), ..began(0) };
    assert!(touched(&silent, State::Failed), "it says nothing of its steps");
}
