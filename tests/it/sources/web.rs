//! Repositories behind a web server.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use drover_automation::source::{Access, Credential, SourceError};

use super::servers::PASSWORD;
use super::{Place, Store};

fn password(password: &str) -> Access {
    let credential = Credential::Password { username: "ada".to_owned(), password: password.to_owned().into() };
    Access { credential: Some(credential), ..Access::default() }
}

#[tokio::test]
async fn a_password_opens_and_is_seen_by_nobody() {
    let place = Place::new();
    let certificate = place.certificate("tls");
    let server = place.web("").await;
    let url = format!("https://localhost:{}/git/shop/.git", server.port);
    let store = Store::new();
    let trusting = Access { ca_certificate: Some(certificate), ..password(PASSWORD) };
    let fetched = store.fetch(&url, &trusting).await.expect("the source");
    assert_eq!((fetched.commit, fetched.files, fetched.trusted), (place.commit(), 1, None));
    assert!(fetched.notices.is_empty(), "{:?}", fetched.notices);
    let seen = place.processes();
    assert!(!seen.contains(PASSWORD) && !seen.contains("s3cret"), "{seen}");

    for wrong in [
        Access { credential: password("wr0ng").credential, ..trusting.clone() },
        Access { credential: None, ..trusting.clone() },
    ] {
        let error = store.fetch(&url, &wrong).await.expect_err("a refusal");
        assert!(matches!(error, SourceError::Unauthorised { .. }), "{error}");
        assert!(!error.to_string().contains("wr0ng") && !format!("{wrong:?}").contains("wr0ng"), "{error}");
    }
    // The certificate is nobody's that the system knows, and not another's either.
    let other = place.certificate("other");
    for ca_certificate in [None, Some(other)] {
        let error = store.fetch(&url, &Access { ca_certificate, ..password(PASSWORD) }).await.expect_err("a refusal");
        assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

#[tokio::test]
async fn a_password_in_clear_is_told() {
    let place = Place::new();
    let server = place.web("").await;
    let url = format!("http://127.0.0.1:{}/git/shop/.git", server.port);
    let fetched = Store::new().fetch(&url, &password(PASSWORD)).await.expect("the source");
    assert!(fetched.notices.len() == 1 && fetched.notices[0].contains("in clear"), "{:?}", fetched.notices);
    let key = Credential::PrivateKey { username: String::new(), private_key: "key".to_owned().into() };
    let access = Access { credential: Some(key), ..Access::default() };
    let error = Store::new().fetch(&url, &access).await.expect_err("a refusal").to_string();
    assert!(error.starts_with("repository.credential is a private key"), "{error}");
}

#[tokio::test]
async fn a_redirect_elsewhere_gets_no_password() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let elsewhere = listener.local_addr().expect("an address").port();
    let further = format!(
        "url.redirect = (\"^/moved/(.*)\" => \"http://127.0.0.1:{elsewhere}/git/$1\")\nurl.redirect-code = 302"
    );
    let server = place.web(&further).await;
    let asked = std::thread::spawn(move || collect(&listener));
    let url = format!("http://127.0.0.1:{}/moved/shop/.git", server.port);
    let error = Store::new().fetch(&url, &password(PASSWORD)).await.expect_err("a refusal");
    assert!(matches!(error, SourceError::Unauthorised { .. }), "{error}");
    let asked = asked.join().expect("the other place");
    assert!(asked.contains("GET /git/shop/.git/info/refs"), "{asked}");
    assert!(!asked.to_lowercase().contains("authorization"), "{asked}");
}

/// Asks whoever comes first for a password, and gives what they sent.
fn collect(listener: &TcpListener) -> String {
    let (mut connection, _) = listener.accept().expect("a connection");
    let mut asked = Vec::new();
    let mut buffer = [0; 4096];
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        match connection.read(&mut buffer).expect("a request") {
            0 => break,
            length => asked.extend_from_slice(&buffer[..length]),
        }
    }
    let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\n\
        Connection: close\r\n\r\n";
    connection.write_all(answer.as_bytes()).expect("an answer");
    String::from_utf8(asked).expect("text")
}
