//! Repositories on a host that is logged in to.

use drover_automation::source::{Access, Credential, SourceError};

use super::servers::PASSWORD;
use super::{Place, Store};

/// The account of this process: the only one that its sshd can serve.
pub(super) fn account() -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::effective()).expect("the accounts").expect("an account").name
}

pub(super) fn url(place: &Place, port: u16) -> String {
    format!("ssh://127.0.0.1:{port}{}", place.repository().display())
}

fn key(place: &Place, name: &str) -> Access {
    let credential = Credential::PrivateKey { username: account(), private_key: place.read(name).into() };
    Access { credential: Some(credential), ..Access::default() }
}

fn authorize(place: &Place, names: &[&str]) {
    let keys: Vec<String> = names.iter().map(|name| place.read(&format!("{name}.pub"))).collect();
    std::fs::write(place.path("authorized"), keys.concat()).expect("a file");
}

#[tokio::test]
async fn a_key_opens_and_is_seen_by_nobody() {
    let place = Place::new();
    let host_key = place.key("host", &["-t", "ed25519"]);
    place.key("new", &["-t", "ed25519"]);
    place.key("old", &["-t", "rsa", "-b", "2048", "-m", "PEM"]);
    place.key("stranger", &["-t", "ed25519"]);
    authorize(&place, &["new", "old"]);
    let server = place.sshd("host").await;
    let url = url(&place, server.port);
    for name in ["new", "old"] {
        let access = Access { host_key: Some(host_key.clone()), ..key(&place, name) };
        let fetched = Store::new().fetch(&url, &access).await.expect("the source");
        assert_eq!((fetched.commit, fetched.trusted), (place.commit(), None), "{name}");
        let seen = place.processes();
        let secret = place.read(name).lines().nth(1).expect("a line of the key").to_owned();
        assert!(seen.contains("ssh -F ") && !seen.contains(&secret), "{seen}");
    }
    let access = Access { host_key: Some(host_key), ..key(&place, "stranger") };
    let error = Store::new().fetch(&url, &access).await.expect_err("a refusal");
    assert!(matches!(error, SourceError::Unauthorised { .. }), "{error}");
    let secret = place.read("stranger").lines().nth(1).expect("a line of the key").to_owned();
    assert!(!error.to_string().contains(&secret) && !format!("{access:?}").contains(&secret), "{error}");
    let nobody = Access { credential: None, ..access };
    let error = Store::new().fetch(&url, &nobody).await.expect_err("a refusal");
    assert!(matches!(error, SourceError::Unauthorised { .. }), "{error}");
}

#[tokio::test]
async fn a_host_is_trusted_once_and_then_has_to_be_the_same() {
    let place = Place::new();
    let first = place.key("host", &["-t", "ed25519"]);
    let second = place.key("another", &["-t", "ed25519"]);
    place.key("client", &["-t", "ed25519"]);
    authorize(&place, &["client"]);
    let server = place.sshd("host").await;
    let store = Store::new();
    let address = url(&place, server.port);
    let fetched = store.fetch(&address, &key(&place, "client")).await.expect("the source");
    assert_eq!(fetched.trusted.as_deref(), Some(first.as_str()), "what it showed is to be remembered");
    let pinned = Access { host_key: fetched.trusted, ..key(&place, "client") };
    assert_eq!(store.fetch(&address, &pinned).await.expect("the source").trusted, None);
    // Several keys may be pinned, while a host changes from one to the next.
    let both = Access { host_key: Some(format!("{second}\n{first}\n")), ..pinned.clone() };
    store.fetch(&address, &both).await.expect("the source");
    drop(server);

    let server = place.sshd("another").await;
    let error = store.fetch(&url(&place, server.port), &pinned).await.expect_err("a refusal");
    let SourceError::HostKey { pinned: told, shown, .. } = &error else { panic!("{error}") };
    let fingerprint = |name: &str| {
        let output = std::process::Command::new("ssh-keygen").args(["-l", "-f"]).arg(place.path(name)).output();
        let text = String::from_utf8(output.expect("ssh-keygen").stdout).expect("text");
        text.split_whitespace().nth(1).expect("a fingerprint").to_owned()
    };
    assert!(told.contains(&fingerprint("host.pub")) && shown.contains(&fingerprint("another.pub")), "{error}");
    assert!(error.to_string().contains("change repository.host_key"), "{error}");
}

#[tokio::test]
async fn a_password_opens_and_a_wrong_one_is_not_asked_for_again() {
    let place = Place::new();
    let host_key = place.key("host", &["-t", "ed25519"]);
    authorize(&place, &[]);
    let server = place.sshd_with_password("host", &account()).await;
    let access = |password: &str| {
        let credential = Credential::Password { username: account(), password: password.to_owned().into() };
        Access { credential: Some(credential), host_key: Some(host_key.clone()), ca_certificate: None }
    };
    let url = url(&place, server.port);
    let fetched = Store::new().fetch(&url, &access(PASSWORD)).await.expect("the source");
    assert_eq!(fetched.commit, place.commit());
    let seen = place.processes();
    assert!(!seen.contains("s3cret"), "{seen}");
    let error = Store::new().fetch(&url, &access("wr0ng")).await.expect_err("a refusal");
    assert!(matches!(error, SourceError::Unauthorised { .. }), "{error}");
    assert!(!error.to_string().contains("wr0ng"), "{error}");
}
