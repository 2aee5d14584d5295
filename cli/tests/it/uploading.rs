//! `archive upload`: what is sent, and from where on.

use serde_json::{Value, json};

use crate::Person;
use crate::server::{Server, page};

/// SHA-256 of [`CONTENT`].
const SHA256: &str = "9efb694acbeeb7919070cb9fbbcc694eac3e79c62a1ea9312287dd40f334fa86";
/// What is behind the fifth byte is JSON, so that the server of this test can tell what came.
const CONTENT: &str = "12345\"the rest\"";

fn archive(state: &str, offset: u64) -> Value {
    json!({"id": 9, "version": "1.0", "name": "shop.tar", "state": state, "size_bytes": CONTENT.len(), "offset": offset,
        "sha256": SHA256, "files": 1, "reason": null})
}

fn upload(server: &Server) -> crate::Ended {
    let person = Person::at(server);
    let file = person.home.path().join("shop.tar");
    std::fs::write(&file, CONTENT).unwrap();
    person.run(&format!("archive upload shop {} --version 1.0", file.display()))
}

#[test]
fn an_upload_that_was_begun_goes_on_at_the_offset_that_the_server_tells() {
    let server = Server::start();
    server.with_shop("finished").on("GET /applications/4/archives/", 200, page(json!([archive("receiving", 5)])));
    // The first attempt finds a server that is just going away; the second one goes on at the same place.
    server.on("PATCH /applications/4/archives/9/", 503, json!({"error_code": 10009, "message": "not now"}));
    server.on("PATCH /applications/4/archives/9/", 200, json!({}));
    server.on("GET /applications/4/archives/9/", 200, archive("receiving", 5));
    server.on("GET /applications/4/archives/9/", 200, archive("ready", 15));
    let ended = upload(&server);
    assert_eq!(
        (ended.code, ended.output.as_str()),
        (0, "version 1.0 is ready: 1 files, 15 bytes uploaded\n"),
        "{ended:?}"
    );
    assert!(server.lines("POST").is_empty(), "it is not announced anew");
    let sent: Vec<_> = server.asked().into_iter().filter(|asked| asked.line.starts_with("PATCH")).collect();
    assert_eq!(sent.len(), 2);
    for asked in sent {
        let head = asked.head.to_ascii_lowercase();
        let is_there = |wanted: &str| head.lines().any(|line| line == wanted);
        assert!(is_there("upload-offset: 5") && is_there("content-length: 10"), "{head}");
        assert_eq!(asked.body, "the rest");
    }
}

#[test]
fn another_archive_of_the_same_version_is_not_gone_on_with() {
    let server = Server::start();
    let mut other = archive("receiving", 5);
    other["sha256"] = "00".repeat(32).into();
    server.with_shop("finished").on("GET /applications/4/archives/", 200, page(json!([other])));
    let ended = upload(&server);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.errors.contains("version 1.0 has another archive") && server.lines("PATCH").is_empty(), "{ended:?}");
}
