//! Servers that answer badly, or only to those who may.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn at(scene: &Scene, port: u16) -> GitSource {
    GitSource { url: format!("http://127.0.0.1:{port}/repository/.git"), ..scene.source("main") }
}

#[tokio::test]
async fn a_port_that_nobody_serves_is_told() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = scene.fetch(&at(&scene, port)).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_server_that_hangs_ends_by_the_deadline() {
    let scene = Scene::with(Limits { time_max: Duration::from_secs(4), ..Limits::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let source = at(&scene, port);
    let start = std::time::Instant::now();
    let (error, mut connection) = tokio::join!(scene.fetch(&source), async { listener.accept().await.unwrap().0 });
    assert_eq!(error.unwrap_err(), SourceError::TimedOut { doing: "fetch the repository" });
    assert!(start.elapsed() < Duration::from_secs(30));
    // The connection ends, so the helper that git started is dead too.
    let mut asked = Vec::new();
    let ended = timeout(Duration::from_secs(20), connection.read_to_end(&mut asked)).await;
    assert!(ended.is_ok(), "a process was left behind");
}

#[tokio::test]
async fn credentials_open_the_door_and_stay_hidden() {
    let scene = Scene::new();
    scene.write("a", "secret content");
    let commit = scene.commit("one");
    scene.git(&["update-server-info"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let serving = tokio::spawn(serve(listener, scene.folder.path().to_owned(), Arc::clone(&asked)));
    let source = at(&scene, port);
    let error = scene.fetch(&source).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorised { .. }), "{error}");
    let credential = |password: &str| Access {
        credential: Some(Credential::Password {
            username: "ada".to_owned(),
            password: Zeroizing::new(password.to_owned()),
        }),
        ..Access::default()
    };
    let error = scene.sources.fetch(&source, &credential("wrong"), &|_| {}).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorised { .. }), "{error}");
    assert!(!error.to_string().contains("wrong") && !format!("{:?}", credential("wrong")).contains("wrong"));
    let fetched = scene.sources.fetch(&source, &credential("s3cret"), &|_| {}).await.unwrap();
    assert_eq!(fetched.commit, commit);
    assert!(asked.lock().unwrap().iter().all(|path: &String| !path.contains("s3cret")));
    // Who has no credential gets nothing from the mirror either.
    let error = scene.fetch(&GitSource { version: commit, ..source }).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorised { .. }), "{error}");
    serving.abort();
}

/// Serves files to those who say the right words: the simplest server that git understands.
async fn serve(listener: TcpListener, root: PathBuf, asked: Arc<Mutex<Vec<String>>>) {
    const RIGHT: &str = "Authorization: Basic YWRhOnMzY3JldA==";
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let Ok(byte) = connection.read_u8().await else { break };
            request.push(byte);
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
        asked.lock().unwrap().push(path.clone());
        let (status, body) = if !request.lines().any(|line| line == RIGHT) {
            ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"", Vec::new())
        } else {
            match std::fs::read(root.join(path.trim_start_matches('/'))) {
                Ok(content) => ("200 OK", content),
                Err(_) => ("404 Not Found", Vec::new()),
            }
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = connection.write_all(&[head.as_bytes(), &body].concat()).await;
        let _ = connection.shutdown().await;
    }
}
