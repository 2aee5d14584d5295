//! `login`, `whoami`, `logout`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::server::Server;
use crate::{Person, ended, with_input};

fn server() -> Server {
    let server = Server::start();
    let user = json!({ "id": 1, "username": "ann", "name": "Ann", "roles": [{ "id": 1, "name": "ops" }] });
    server
        .on("POST /users/actions/login/", 200, json!({ "token": "session", "user": user }))
        .on("POST /auth-tokens/", 200, json!({ "id": 5, "name": "x", "value": "kept-value" }))
        .on("POST /auth-tokens/", 200, json!({ "id": 6, "name": "x", "value": "second-value" }))
        .on("POST /users/actions/logout/", 200, json!({ "message": "success" }))
        .on("DELETE /auth-tokens/5/", 200, json!({ "message": "success" }))
        .on("GET /users/me/", 200, user);
    server
}

#[test]
fn a_login_keeps_a_token_that_is_used_and_revoked() {
    let server = server();
    let person = Person::at(&server);
    let line = format!("login --url {} --username ann --password-stdin", server.url());
    let login = with_input(&mut person.stranger(&line), "pass word\n");
    assert_eq!((login.code, login.output.as_str()), (0, ""), "{login:?}");
    assert_eq!(server.body("POST /api/v1/users/actions/login/"), json!({ "username": "ann", "password": "pass word" }));
    let name = server.body("POST /api/v1/auth-tokens/")["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("drover@") && name.len() > "drover@".len(), "{name}");
    let file = person.home.path().join(".config/drover/config.toml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let kept = fs::read_to_string(&file).unwrap();
    assert!(kept.contains("kept-value") && !kept.contains("session") && !kept.contains("pass"), "{kept}");

    let who = ended(&person.stranger("whoami").output().unwrap());
    assert!(who.output.starts_with("ann at http://127.0.0.1:"), "{who:?}");
    assert!(who.output.contains("roles  ops"), "{}", who.output);
    assert_eq!(server.asked().last().unwrap().authorization, "Token kept-value");

    let logout = ended(&person.stranger("logout --json").output().unwrap());
    assert_eq!(logout.json()[0]["revoked"], true);
    assert_eq!(server.lines("DELETE"), ["DELETE /api/v1/auth-tokens/5/"]);
    assert!(!file.exists());
    assert_eq!(ended(&person.stranger("whoami").output().unwrap()).code, 2);
    assert_eq!(ended(&person.stranger("logout").output().unwrap()).code, 3);
}

#[test]
fn a_second_login_revokes_the_first_token() {
    let server = server();
    let person = Person::at(&server);
    let line = format!("login --url {} --username ann --password-stdin", server.url());
    for _ in 0..2 {
        assert_eq!(with_input(&mut person.stranger(&line), "secret").code, 0);
    }
    assert_eq!(server.lines("DELETE"), ["DELETE /api/v1/auth-tokens/5/"]);
}

#[test]
fn a_wrong_password_changes_nothing() {
    let server = Server::start();
    server.on("POST /users/actions/login/", 401, json!({ "error_code": 10002, "message": "wrong name or password" }));
    let person = Person::at(&server);
    let login = with_input(&mut person.command("login --username ann --password-stdin"), "x\n");
    assert_eq!(login.code, 3);
    assert!(login.errors.contains("wrong name or password"), "{}", login.errors);
    assert!(!login.errors.contains("drover login"), "{}", login.errors);
    assert!(!person.home.path().join(".config").exists());
}

#[test]
fn a_password_is_not_waited_for_where_nobody_can_type() {
    let server = Server::start();
    let person = Person::at(&server);
    assert_eq!(person.run("login --username ann").code, 2);
    assert_eq!(person.run("login --password-stdin").code, 2);
    assert_eq!(with_input(&mut person.command("login --username ann --password-stdin"), "").code, 2);
    assert!(server.asked().is_empty());
}
