//! Reaching the server: lists, refusals, and servers that are none.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::server::{Server, page};
use crate::{Person, ended};

#[test]
fn lists_are_read_page_by_page() {
    let server = Server::start();
    let hosts =
        |from: u64| (from..from + 100).map(|id| json!({ "id": id, "name": format!("h{id}") })).collect::<Value>();
    let first = json!({ "count": 300, "prev": null, "next": "x", "results": hosts(0) });
    server.on("GET /hosts/", 200, first).on("GET /hosts/", 200, page(hosts(100)));
    let found = Person::at(&server).run("host list --json --limit 150 --name h");
    assert_eq!(found.json()[0]["results"].as_array().map(Vec::len), Some(150));
    assert_eq!(server.lines("GET"), [1, 2].map(|page| format!("GET /api/v1/hosts/?page={page}&page_size=100&name=h")));
}

#[test]
fn lists_are_tables_for_people() {
    let server = Server::start();
    let applications = json!([{ "id": 4, "full_name": "shop", "application_type": "web", "description": "a\nb" }]);
    server.on("GET /applications/", 200, page(applications));
    let host = json!({ "id": 1, "name": "web-1", "status": "attached", "os_status": "running",
        "ip_address": [{ "address": "10.0.0.1" }], "agent": { "version": "0.1.0", "connected": true } });
    server.on("GET /hosts/", 200, page(json!([host])));
    let person = Person::at(&server);
    assert_eq!(person.run("app list").output, "ID  NAME  TYPE  DESCRIPTION\n4   shop  web   a\n");
    let hosts = person.run("host list").output;
    let words: Vec<&str> = hosts.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(words, ["1", "web-1", "attached", "running", "connected", "0.1.0", "10.0.0.1"]);
}

#[test]
fn each_refusal_has_its_exit_code() {
    for (status, code) in [(400, 2), (401, 3), (403, 3), (404, 4), (409, 2), (500, 1), (503, 5)] {
        let server = Server::start();
        let answer = json!({ "error_code": 1, "message": "no", "field": "name", "request_id": "r1" });
        server.on("GET /hosts/", status, answer);
        let person = Person::at(&server);
        let ended = person.run("host list");
        assert_eq!((ended.code, ended.output.as_str()), (code, ""), "{status}");
        assert!(ended.errors.starts_with("error: no (field name, request r1)"), "{}", ended.errors);
        let error = &person.run("host list --json").json()[0]["error"];
        assert_eq!((&error["message"], &error["request_id"]), (&json!("no"), &json!("r1")));
    }
}

#[test]
fn a_server_that_is_not_there_is_told_from_one_that_refuses() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let server = Server::start();
    let person = Person::at(&server);
    let ended = ended(&person.command("host list").env("DROVER_URL", &address).output().unwrap());
    assert_eq!(ended.code, 5, "{ended:?}");
    assert!(ended.errors.contains(&address), "{}", ended.errors);
}

#[test]
fn a_server_of_another_kind_is_seen() {
    let server = Server::start();
    server.on("GET /hosts/", 302, json!({})).on("GET /applications/", 200, json!("hello"));
    let person = Person::at(&server);
    assert_eq!(person.run("host list").code, 1);
    assert_eq!(person.run("app list").code, 1);
}

#[test]
fn an_unknown_application_is_not_found_and_like_names_are_shown() {
    let server = Server::start();
    server.with_shop("finished");
    let ended = Person::at(&server).run("deploy sho --version v1");
    assert_eq!(ended.code, 4);
    assert!(ended.errors.contains("no application `sho`; there is shop.old, shop"), "{}", ended.errors);
}

#[test]
fn without_address_or_token_nothing_is_tried() {
    let server = Server::start();
    let person = Person::at(&server);
    assert_eq!(ended(&person.stranger("host list").output().unwrap()).code, 2);
    let nobody = ended(&person.stranger("host list").env("DROVER_URL", server.url()).output().unwrap());
    assert_eq!(nobody.code, 3);
    let strange = ended(&person.stranger("host list --url ftp://x").output().unwrap());
    assert_eq!(strange.code, 2);
    let missing = ended(&person.command("host list --ca gone.pem").output().unwrap());
    assert_eq!(missing.code, 2);
    assert!(server.asked().is_empty());
}

#[test]
fn a_download_goes_on_with_its_own_output_alone() {
    let server = Server::start();
    server.with_shop("finished");
    let person = Person::at(&server);
    let file = person.home.path().join("fetched");
    let line = format!("logs 7 --download {}", file.display());
    for (before, code, after) in [
        ("", 0, "old lines\n"),
        ("old li", 0, "old lines\n"),
        ("old lines\n", 0, "old lines\n"),
        // Of another task: shorter, as long, and longer.
        ("new", 2, "new"),
        ("new lines\n", 2, "new lines\n"),
        ("old lines\nand more", 2, "old lines\nand more"),
    ] {
        std::fs::write(&file, before).unwrap();
        let ended = person.run(&line);
        assert_eq!(
            (ended.code, std::fs::read_to_string(&file).unwrap().as_str()),
            (code, after),
            "{before:?}: {ended:?}"
        );
        assert_eq!(code == 2, ended.errors.contains("it is another file"), "{ended:?}");
    }
}
