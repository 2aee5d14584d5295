//! What health steps take for proof: commands, addresses and ports that answer, well or not.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use drover_shared::order::{Entry, Probe, Step};
use drover_shared::record::Stream;
use drover_shared::words::{ExecutionState, Language};

use crate::bench::{Bench, bash, entry, process_lives, text, wait_until};

/// Longest time for one question, in milliseconds.
const TIMEOUT_MS: u64 = 20_000;

fn health(probe: Probe, retries: u32, timeout_ms: u64) -> Step {
    Step::Health { probe, interval_ms: 10, timeout_ms, retries, successes: 1, running_user: None }
}

fn command(content: &str, retries: u32) -> Step {
    health(Probe::Command { content: content.to_owned() }, retries, TIMEOUT_MS)
}

/// How these steps end, and what was said about them.
fn ended(steps: Vec<Step>) -> (Option<String>, String) {
    let bench = Bench::new();
    let (finished, folder) = bench.run(&entry(steps));
    (finished.reason, text(&folder, Stream::Notice))
}

/// An address whose connections get these answers, one after the other, and then the last one for ever.
fn answering(answers: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answers[index.min(answers.len() - 1)].as_bytes());
        }
    });
    format!("http://{address}/health")
}

#[test]
fn a_command_runs_to_its_end() {
    for (content, reason) in [
        // Whatever it reads, the rest of it has its turn.
        ("cat > /dev/null\nexit 3", Some("health: not healthy after 2 questions: the command exited with status 3")),
        ("read line\ntest -z \"$line\"", None),
        ("cat <<'DROVER_HEALTH'\nDROVER_HEALTH\nexit 3", Some("the command exited with status 3")),
        ("cat > /dev/null\ntest \"$DROVER_STEP\" = health", None),
        // As `timeout` ends, which was not the reason here.
        ("exit 124", Some("the command exited with status 124")),
        ("exit 137", Some("the command exited with status 137")),
    ] {
        let (told, said) = ended(vec![command(content, 2)]);
        match (reason, &told) {
            (Some(part), Some(told)) => assert!(told.contains(part), "{content}: {told}"),
            _ => assert_eq!(told.as_deref(), reason, "{content}: {said}"),
        }
    }
}

#[test]
fn a_command_that_hangs_is_ended_and_asked_again() {
    let bench = Bench::new();
    let file = bench.path("asked");
    let content = format!("echo $$ >> '{}'\nsleep 600", file.display());
    let step = health(Probe::Command { content }, 2, 1_000);
    let (finished, folder) = bench.run(&entry(vec![step]));
    assert_eq!(finished.state, ExecutionState::Failed);
    let reason = finished.reason.unwrap();
    assert_eq!(reason, "health: not healthy after 2 questions: no answer within 1000 ms");
    let said = text(&folder, Stream::Notice);
    assert!(said.contains("no answer within 1000 ms, attempt 1 of 2"), "{said}");
    let asked = std::fs::read_to_string(&file).unwrap();
    assert_eq!(asked.lines().count(), 2);
    for pid in asked.lines() {
        wait_until("the end of the command", || !process_lives(pid));
    }
}

const GOOD: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
const BAD: &str = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

#[test]
fn good_answers_count_in_a_row() {
    let asked = |answers: &'static [&'static str], retries: u32, successes: u32, interval_ms: u64| {
        let probe = Probe::Http { url: answering(answers) };
        ended(vec![Step::Health { probe, interval_ms, timeout_ms: TIMEOUT_MS, retries, successes, running_user: None }])
    };
    let (reason, said) = asked(&[GOOD, BAD, GOOD, GOOD, BAD], 9, 2, 10);
    assert_eq!(reason, None, "{said}");
    assert!(said.contains("good answer, attempt 4 of 9") && !said.contains("attempt 5"), "{said}");
    let (reason, said) = asked(&[GOOD, BAD, GOOD, BAD], 3, 2, 10);
    assert!(reason.is_some_and(|reason| reason.contains("not healthy after 3 questions")), "{said}");
    // Between three questions there are two intervals.
    let begun = std::time::Instant::now();
    assert_eq!(asked(&[GOOD], 3, 3, 300).0, None);
    assert!(begun.elapsed() >= std::time::Duration::from_millis(600), "{:?}", begun.elapsed());
}

#[test]
fn an_address_that_answers_well_is_healthy() {
    const ELSEWHERE: &str = "HTTP/1.1 302 Found\r\nlocation: /\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let (reason, said) = ended(vec![health(Probe::Http { url: answering(&[BAD, GOOD]) }, 3, TIMEOUT_MS)]);
    assert_eq!(reason, None);
    assert!(said.contains("answered 503, attempt 1 of 3") && said.contains("good answer, attempt 2 of 3"), "{said}");
    for (answers, status) in [(&[BAD], "503"), (&[ELSEWHERE], "302")] {
        let (reason, _) = ended(vec![health(Probe::Http { url: answering(answers) }, 2, TIMEOUT_MS)]);
        let reason = reason.unwrap();
        assert!(reason.ends_with(&format!("answered {status}")), "{reason}");
    }
    // A connection that is taken and never answered.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (reason, _) = ended(vec![health(Probe::Http { url }, 1, 200)]);
    assert!(reason.is_some_and(|reason| reason.starts_with("health: not healthy after 1 questions: ")));
}

#[test]
fn a_port_that_takes_connections_is_healthy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let probe = || Probe::Tcp { address: address.clone() };
    assert_eq!(ended(vec![health(probe(), 1, TIMEOUT_MS)]).0, None);
    drop(listener);
    let reason = ended(vec![health(probe(), 2, TIMEOUT_MS)]).0.unwrap();
    assert!(reason.starts_with(&format!("health: not healthy after 2 questions: {address}: ")), "{reason}");
}

#[test]
fn a_question_passes_every_proxy_by() {
    let bench = Bench::new();
    let proxy = answering(&["HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let probe = Probe::Http { url: format!("http://{closed}/health") };
    let folder = bench.accept(&entry(vec![health(probe, 1, TIMEOUT_MS)]));
    let mut supervisor = crate::bench::command(&folder);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        supervisor.env(name, proxy.trim_end_matches("/health"));
    }
    assert!(supervisor.status().unwrap().success());
    assert_eq!(folder.status().unwrap().unwrap().state, ExecutionState::Failed, "nobody listens there");
}

#[test]
fn what_fails_before_keeps_the_question_from_being_asked() {
    let mut entry: Entry = entry(vec![bash("post_exec", "exit 3"), command("true", 1)]);
    entry.steps.push(crate::bench::script("later", Language::Bash, "true", None));
    let finished = Bench::new().run(&entry).0;
    assert_eq!(finished.reason.as_deref(), Some("post_exec exited with status 3"));
}
