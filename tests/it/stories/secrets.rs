//! Secrets on a real host: a hook gets them, whatever it prints shows the mask, and no file anywhere keeps a value.

use drover_shared::Digest;

use super::*;

/// Characters that every way of writing it down has to escape.
const VALUE: &str = "pa\"ss 'w0rd/+%&=\\ \u{e9}x \u{1f600} end";
const WIDE: &str = "everybody-s_token.0123456789";

/// Prints the value in every way that masking knows, and proves that it got the right one.
const TELLING: &str = r#"
import base64, hashlib, json, os, shlex, sys, time, urllib.parse
value = os.environ["DROVER_SECRET_DB_PASSWORD"]
wide = os.environ["DROVER_SECRET_TOKEN"]
with open("FOLDER/seen", "a") as seen:
    print(hashlib.sha256(value.encode()).hexdigest(), hashlib.sha256(wide.encode()).hexdigest(), file=seen)
def say(way, what):
    data = what if isinstance(what, bytes) else what.encode()
    for stream in (1, 2):
        os.write(stream, way.encode() + b" [" + data + b"]\n")
say("plain", value)
say("twice", value + value)
say("wide", wide)
for before in ("", "u:", "us:"):
    say("base64", base64.b64encode((before + value + " behind").encode()))
    say("base64url", base64.urlsafe_b64encode((before + value).encode()))
say("url", urllib.parse.quote(value, safe=""))
say("url-plus", urllib.parse.quote_plus(value))
say("json", json.dumps({"password": value}))
say("json-utf8", json.dumps({"password": value}, ensure_ascii=False))
say("shell", shlex.quote(value))
import subprocess
for script in ("printf %q \"$1\"", "set -x; true \"$1\"", "x=$1; declare -p x"):
    told = subprocess.run(["bash", "-c", script.replace("$1", "$DROVER_SECRET_DB_PASSWORD")], capture_output=True)
    say("bash", told.stdout + told.stderr)
# One byte at a time, and the border of a chunk in its middle.
for byte in b"bytes [" + value.encode() + b"]\n":
    os.write(1, bytes([byte]))
for gap in (1, 7, 20):
    filler = b"." * (65536 - gap)
    os.write(1, filler + value.encode() + b"\n")
print("waiting", flush=True)
while not os.path.exists("FOLDER/go"):
    time.sleep(0.01)
if os.path.exists("FOLDER/fail") and os.environ["DROVER_ACTION"] == "upgrade":
    sys.exit("told to fail")
"#;

/// What must be found nowhere: the values as they are and as they may have been written down.
fn traces() -> Vec<Vec<u8>> {
    let percent = |text: &str| -> String {
        let byte = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        text.bytes().map(byte).collect()
    };
    let json = serde_json::to_string(VALUE).expect("JSON");
    let mut traces = vec![
        VALUE.to_owned(),
        WIDE.to_owned(),
        percent(VALUE),
        json.trim_matches('"').to_owned(),
        // Parts that no other word has.
        "w0rd/+%&=".to_owned(),
        "s_token.0123".to_owned(),
        "w0rd%2F%2B%25".to_owned(),
    ];
    // Base64 of a text behind none, one and two other bytes: the middle of it, whichever way it begins.
    for text in [VALUE, WIDE] {
        for skipped in 0..3 {
            traces.push(base64(&text.as_bytes()[skipped..text.len() - 4])[..16].to_owned());
        }
    }
    traces.into_iter().map(String::into_bytes).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[(bits >> shift & 63) as usize]))
    };
    bytes.chunks_exact(3).flat_map(group).collect()
}

/// Refuses a text that shows a trace of a value.
fn check_clean(what: &str, bytes: &[u8]) {
    for trace in traces() {
        let found = bytes.windows(trace.len()).position(|window| window == trace);
        assert!(found.is_none(), "{what} shows `{}` at {found:?}", String::from_utf8_lossy(&trace));
    }
}

/// Every file below a folder. What goes away meanwhile was not kept.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        match item.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&item.path())),
            Ok(kind) if kind.is_file() => found.push(item.path()),
            _ => {}
        }
    }
    found
}

/// Looks through everything that a server and its agents keep, and through the command line of every process.
fn check_nothing_is_kept(shop: &Shop) {
    let kept = files(shop.folder());
    assert!(kept.iter().any(|path| path.ends_with("drover.db")), "{kept:?}");
    for path in kept {
        if let Ok(bytes) = fs::read(&path) {
            check_clean(&path.display().to_string(), &bytes);
        }
    }
    for process in fs::read_dir("/proc").expect("processes").flatten() {
        if let Ok(line) = fs::read(process.path().join("cmdline")) {
            check_clean("a command line", &line);
        }
    }
}

/// Sets the secrets, and a hook that tells them.
async fn tell(shop: &Shop) {
    let wide = json!({"secrets": {"TOKEN": WIDE, "DB_PASSWORD": "not this one"}});
    shop.api().patch("/secrets/", wide).await.expect(200);
    let path = format!("/applications/{}/secrets/", shop.application);
    shop.api().patch(&path, json!({"secrets": {"DB_PASSWORD": VALUE}})).await.expect(200);
    shop.hook("pre_exec", "python", &TELLING.replace("FOLDER", &shop.folder().display().to_string())).await;
}

/// How often a hook got both values; it never got others.
fn got(shop: &Shop) -> usize {
    let seen = fs::read_to_string(shop.folder().join("seen")).unwrap_or_default();
    let right = format!("{} {}", Digest::of(VALUE.as_bytes()), Digest::of(WIDE.as_bytes()));
    assert!(seen.lines().all(|line| line == right), "{seen}");
    seen.lines().count()
}

#[tokio::test]
async fn a_hook_gets_its_secrets_and_nobody_sees_them() {
    let shop = Shop::with_versions(&["web-1"]).await;
    tell(&shop).await;
    let bash =
        "printf '%s' {{ secrets.DB_PASSWORD | shell_quote }} | sha256sum\nprintf '%s\\n' @@drover-secret:TOKEN@@";
    shop.hook("post_exec", "bash", bash).await;
    let sub_task = shop.deploy("v1").await;
    let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
    let beginning = viewer.until("waiting\n").await;
    check_clean("the channel", beginning.as_bytes());
    check_nothing_is_kept(&shop);
    fs::write(shop.folder().join("go"), "").expect("a file");
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(got(&shop), 1);

    let text = shop.output(&sub_task, "").await.text;
    // The two streams of a hook may meet in the middle of a line: here is one of them alone.
    let stdout = stdout_of(&shop.output(&sub_task, "?format=json").await.records(), "web-1");
    for way in ["plain", "wide", "base64", "base64url", "url", "json", "json-utf8", "bytes"] {
        let line =
            stdout.lines().find(|line| line.contains(&format!("{way} ["))).unwrap_or_else(|| panic!("{way}: {text}"));
        assert!(line.contains("******"), "{line}");
    }
    assert!(text.contains(&Digest::of(VALUE.as_bytes()).to_string()), "bash got the same: {text}");
    let number = sub_task.path.trim_end_matches('/').rsplit('/').next().expect("a number").to_owned();
    let download = shop.api().download(&format!("/tasks/{number}/output/"), None).await;
    for (what, shown) in [
        ("the channel", text.into_bytes()),
        ("the records", shop.output(&sub_task, "?format=json").await.text.into_bytes()),
        ("the detail", detail.to_string().into_bytes()),
        ("the download", download.expect_bytes(200)),
        ("the audit", shop.api().get("/audit/entries/?page_size=100").await.expect(200).to_string().into_bytes()),
    ] {
        check_clean(what, &shown);
    }
    wait_until("the agent to forget", async || {
        files(&shop.processes.agent_folder("web-1")).iter().all(|path| !path.ends_with("order.json"))
    })
    .await;
    check_nothing_is_kept(&shop);
}

#[tokio::test]
async fn retries_and_the_way_back_get_them_too() {
    let shop = Shop::with_versions(&["web-1"]).await;
    tell(&shop).await;
    fs::write(shop.folder().join("go"), "").expect("a file");
    shop.deployed("v1").await;
    assert_eq!(got(&shop), 1);
    fs::write(shop.folder().join("fail"), "").expect("a file");
    let task = shop.deploy_task("v2").await;
    let mut body = shop.sub_task("v2");
    body["rollout"] = json!({"auto_revert": true});
    let sub_task = shop.make("upgrade", task, body).await;
    assert_eq!(shop.end_of(&sub_task).await["status"], "failed");
    wait_until("the way back", async || shop.instance("web-1").await == ("running".to_owned(), Some("v1".to_owned())))
        .await;
    assert_eq!(got(&shop), 3, "the update that failed, and its revert");
    fs::remove_file(shop.folder().join("fail")).expect("the file");
    let made = shop.api().post(&format!("{}actions/retry/", sub_task.path), json!({})).await.expect(200);
    let base = sub_task.path.trim_end_matches('/').rsplit_once('/').expect("a path").0.to_owned();
    let again = SubTask { path: format!("{base}/{}/", text(&made["task_id"])), channel: text(&made["task_output"]) };
    let detail = shop.end_of(&again).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(got(&shop), 4);
    check_nothing_is_kept(&shop);
}

#[tokio::test]
async fn restarts_in_the_middle_lose_none() {
    let mut shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    // Large enough that it is often struck before anything has started.
    let noise: Vec<u8> =
        (0..200_000_u32).flat_map(|number| Digest::of(&number.to_le_bytes()).to_string().into_bytes()).collect();
    fs::write(shop.repository().join("noise"), noise).expect("a file");
    shop.commit("v1", &[("index.html", "one\n")]);
    tell(&shop).await;
    fs::write(shop.folder().join("go"), "").expect("a file");
    for (number, server) in [false, true, false].into_iter().enumerate() {
        let sub_task = shop.deploy("v1").await;
        let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
        viewer.until(if number == 2 { "waiting\n" } else { "" }).await;
        wait_until("the order to arrive", async || {
            let detail = shop.api().get(&sub_task.path).await.expect(200);
            ["running", "succeeded"].iter().any(|status| on_host(&detail, "web-1")["status"] == *status)
        })
        .await;
        if server {
            shop.processes.kill_server().await;
            shop.processes.start_server().await;
        } else {
            shop.processes.kill_agent("web-1").await;
            shop.processes.start_agent("web-1").await;
        }
        let detail = shop.end_of(&sub_task).await;
        assert_eq!(detail["status"], "finished", "{detail:#}");
        assert_eq!(got(&shop), number + 1);
    }
    check_nothing_is_kept(&shop);
}

#[tokio::test]
async fn a_secret_that_was_deleted_before_the_start_is_named() {
    let mut shop = Shop::with_versions(&["web-1"]).await;
    tell(&shop).await;
    fs::write(shop.folder().join("go"), "").expect("a file");
    shop.deployed("v1").await;
    shop.processes.stop_agent("web-1").await;
    shop.processes.wait_for_connection("web-1", false).await;
    let sub_task = shop.deploy("v2").await;
    shop.api().patch("/secrets/", json!({"secrets": {"TOKEN": null}})).await.expect(200);
    shop.processes.start_agent("web-1").await;
    let detail = shop.end_of(&sub_task).await;
    let failed = on_host(&detail, "web-1");
    assert_eq!((&detail["status"], &failed["status"]), (&json!("failed"), &json!("failed")), "{detail:#}");
    assert_eq!(failed["error"], "the secret `TOKEN` was deleted since the sub-task was made");
    assert_eq!(got(&shop), 1, "nothing ran");
    assert_eq!(shop.instance("web-1").await, ("running".to_owned(), Some("v1".to_owned())));
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
}
