//! Following output through everything that happens to connections.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::server::{Server, Step};
use crate::{Person, ended};

fn text(offset: u64, text: &str) -> Value {
    let next = offset + text.len() as u64;
    json!({ "offset": offset, "next": next, "host": "web-1", "stream": "stdout", "text": text })
}

fn event(offset: u64, step: &str) -> Value {
    let event = json!({ "step": step, "state": "running" });
    json!({ "offset": offset, "next": offset, "host": "web-1", "event": event })
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let server = Server::start();
    server
        .with_shop("finished")
        .channel(vec![Step::Send(vec![event(0, "a"), text(0, "one\n"), event(4, "b")]), Step::Break])
        .channel(vec![Step::Refuse(503)])
        .channel(vec![Step::Send(vec![event(4, "b"), event(4, "c"), text(4, "two\n")]), Step::Close(1012, "restart")])
        .channel(vec![Step::Send(vec![text(8, "three\n")]), Step::Close(1000, "finished")]);
    let ended = Person::at(&server).run("logs -f 7/34 --json");
    let lines = ended.json();
    let seen: Vec<String> = lines
        .iter()
        .filter(|line| line["type"] == "record")
        .map(|line| line["text"].as_str().or(line["event"]["step"].as_str()).unwrap().to_owned())
        .collect();
    assert_eq!((ended.code, seen), (0, ["a", "one\n", "b", "c", "two\n", "three\n"].map(str::to_owned).into()));
    let from: Vec<String> = server.lines("GET /api/v1/channel/secret?format=json&from=");
    let from: Vec<&str> = from.iter().filter_map(|line| line.rsplit_once('=')).map(|(_, from)| from).collect();
    assert_eq!(from, ["0", "4", "4", "8"]);
    assert!(ended.errors.contains("connection lost"), "{}", ended.errors);
}

#[test]
fn a_channel_that_is_refused_is_not_asked_for_again() {
    let server = Server::start();
    server.with_shop("finished").channel(vec![Step::Refuse(403)]);
    let ended = Person::at(&server).run("logs -f 7");
    assert_eq!(ended.code, 3);
    assert!(ended.errors.contains("no channel for you"), "{}", ended.errors);
    assert_eq!(server.lines("GET /api/v1/channel").len(), 1);
}

#[test]
fn the_exit_code_is_the_state_of_the_sub_task() {
    let server = Server::start();
    let running = json!({ "status": "running" });
    server.on("GET /applications/deploy-tasks/7/sub-upgrade-tasks/34/", 200, running);
    server.with_shop("failed").channel(vec![Step::Close(1000, "")]);
    assert_eq!(Person::at(&server).run("logs -f 7").code, 1);
}

#[test]
fn waiting_has_an_end() {
    let server = Server::start();
    server.with_shop("finished").channel(vec![Step::Send(vec![text(0, "one\n")]), Step::Hold]);
    let ended = Person::at(&server).run("logs -f 7 --wait 1");
    assert_eq!((ended.code, ended.output.as_str()), (124, "web-1 | one\n"));
    assert!(ended.errors.contains("drover logs -f 7/34"), "{}", ended.errors);
}

#[test]
fn an_interruption_leaves_the_work_going_on() {
    let server = Server::start();
    server.with_shop("finished").channel(vec![Step::Hold]);
    let child = Person::at(&server).command("deploy shop --version v1").spawn().unwrap();
    server.wait_for("GET /api/v1/channel");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let ended = ended(&child.wait_with_output().unwrap());
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.errors.contains("drover logs -f 7/34"), "{}", ended.errors);
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_no_panic() {
    let server = Server::start();
    server.with_shop("finished").channel(vec![Step::Send(vec![text(0, "one\n")]), Step::Hold]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = ended(&Person::at(&server).command("logs -f 7").stdout(full).output().unwrap());
    assert_eq!(ended.code, 1);
    assert!(ended.errors.contains("cannot write the output"), "{}", ended.errors);
}

#[test]
fn output_so_far_is_shown_without_following() {
    let server = Server::start();
    server.with_shop("running");
    server.on("GET /tasks/34/output/", 200, json!("old lines\n"));
    server.on("GET /tasks/34/output/", 200, json!("{\"text\":\"old lines\\n\"}\n"));
    let person = Person::at(&server);
    assert_eq!(person.run("logs 7/34").output, "old lines\n");
    assert_eq!(person.run("logs 7 --from 4").output, "lines\n");
    assert_eq!(person.run("logs 7 --json").json(), [json!({ "type": "record", "text": "old lines\n" })]);
    assert_eq!(person.run("logs 7/99").code, 4);
}

#[test]
fn everything_works_through_tls() {
    let (server, certificate) = Server::start_with_tls();
    server.with_shop("finished").channel(vec![Step::Send(vec![text(0, "safe\n")]), Step::Close(1000, "finished")]);
    let person = Person::at(&server);
    let file = person.home.path().join("ca.pem");
    std::fs::write(&file, certificate).unwrap();
    let trusting = ended(&person.command("deploy shop --version v1").env("DROVER_CA", &file).output().unwrap());
    assert_eq!((trusting.code, trusting.output.as_str()), (0, "web-1 | safe\n"), "{trusting:?}");

    let asked = server.asked().len();
    let strange = person.run("deploy shop --version v1");
    assert_eq!(strange.code, 5, "{strange:?}");
    assert!(strange.errors.contains("--ca FILE"), "{}", strange.errors);
    assert_eq!(server.asked().len(), asked, "nothing is said to a server that is not trusted");
}
