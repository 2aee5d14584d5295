//! Viewers who lose their right, and viewers who hold up a server that stops.

use std::fs;

use drover_tests::USER_PASSWORD;
use drover_tests::processes::Seen;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// Says something, then more than sockets hold, and waits until it may end.
const LOUD: &str = r#"
import os, sys, time
print("here I am", flush=True)
sys.stdout.write("%s\n" % ("=" * 99) * 200000)
print("that was all", flush=True)
while not os.path.exists("FOLDER/go"):
    time.sleep(0.01)
"#;

async fn loud() -> (Shop, SubTask) {
    let shop = Shop::with_versions(&["web-1"]).await;
    shop.hook("pre_exec", "python", &LOUD.replace("FOLDER", &shop.folder().display().to_string())).await;
    let sub_task = shop.deploy("v1").await;
    (shop, sub_task)
}

#[tokio::test]
async fn a_viewer_whose_right_is_withdrawn_is_closed() {
    let (shop, sub_task) = loud().await;
    let user = json!({"username": "eve", "password": USER_PASSWORD});
    let eve = id(&shop.api().post("/users/", user.clone()).await.expect(200));
    let grant = |flag: bool| {
        let body = json!({"authorizations": [{"id": shop.application, "permission": {"view_app": flag}}]});
        let api = shop.api().clone();
        async move { api.post(&format!("/users/{eve}/application/perms/"), body).await.expect(200) }
    };
    grant(true).await;
    let token = text(&shop.api().post("/users/actions/login/", user).await.expect(200)["token"]);
    let mut viewer = Viewer::open(&sub_task.channel, &token).await;
    let mut administrators = Viewer::open(&sub_task.channel, shop.api().token()).await;
    viewer.until("that was all").await;
    grant(false).await;
    // Nothing more is said, so the next thing to come is the end.
    let Seen::Closed(closing) = viewer.next().await else { panic!("the hook says nothing more") };
    assert_eq!(closing, Closing { code: 1008, reason: "the right to see this was withdrawn".to_owned() });
    fs::write(shop.folder().join("go"), "").expect("a file");
    assert_eq!(administrators.rest().await.1.code, 1000, "others go on");
}

#[tokio::test]
async fn a_viewer_that_never_reads_does_not_hold_up_the_stop() {
    let (mut shop, sub_task) = loud().await;
    let token = shop.api().token().to_owned();
    let mut reader = Viewer::open(&sub_task.channel, &token).await;
    let _never_reads = Viewer::open_slow(&sub_task.channel, &token).await;
    reader.until("that was all").await;
    // A probe whose head is not complete yet: it is answered although the server stops meanwhile.
    let address = shop.processes.url();
    let address = address.strip_prefix("http://").expect("an address");
    let mut probe = TcpStream::connect(address).await.expect("the server answers");
    probe.write_all(b"GET /readyz HTTP/1.1\r\nhost: drover\r\n").await.expect("half a head");
    let mut second = TcpStream::connect(address).await.expect("the server answers");
    second.write_all(b"GET /healthz HTTP/1.1\r\nhost: drover\r\n\r\n").await.expect("a request");
    let mut byte = [0];
    second.read_exact(&mut byte).await.expect("an answer, so the first connection was taken as well");
    let probing = tokio::spawn(async move {
        let (text, closing) = reader.rest().await;
        assert!(text.is_empty(), "{} bytes", text.len());
        probe.write_all(b"\r\n").await.expect("the other half");
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.expect("an answer");
        (closing, answer)
    });
    // Fails when it takes longer than is promised.
    shop.processes.stop_server().await;
    let (closing, answer) = probing.await.expect("the reader does not panic");
    assert_eq!(closing, Closing { code: 1012, reason: "the server stops".to_owned() });
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("the server is stopping"), "{answer}");
    shop.processes.start_server().await;
    fs::write(shop.folder().join("go"), "").expect("a file");
    assert_eq!(shop.end_of(&sub_task).await["status"], "finished");
}
