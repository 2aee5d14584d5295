//! A million lines: through to a viewer, into the download, and found again, byte by byte.

use std::fs;

use super::*;

const MILLION: &str = r#"
import sys
pads = ["=" * (n % 41) + " \u00e9\U0001f600\n" for n in range(41)]
with open("FOLDER/kept", "wb") as kept:
    for first in range(0, 1000000, 10000):
        data = "".join("%07d %s" % (n, pads[n % 41]) for n in range(first, first + 10000)).encode()
        kept.write(data)
        sys.stdout.buffer.write(data)
sys.stdout.buffer.flush()
sys.stdout.buffer.write(b"not UTF-8: \xff\xfe\n")
sys.stdout.buffer.flush()
"#;

#[tokio::test]
async fn a_million_lines_arrive_whole() {
    let shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    shop.hook("post_exec", "python", &MILLION.replace("FOLDER", &folder)).await;
    let sub_task = shop.deploy("v1").await;
    let output = shop.output(&sub_task, "").await;
    assert_eq!(output.closing.reason, "finished");
    let kept = fs::read(shop.folder().join("kept")).expect("what the hook wrote");
    assert_eq!(kept.iter().filter(|byte| **byte == b'\n').count(), 1_000_000);
    let begin = output.text.find("0000000 ").expect("the first line");
    // Compared without printing megabytes.
    let seen = &output.text.as_bytes()[begin..];
    assert!(seen.starts_with(&kept), "the viewer saw something else in {} bytes", seen.len());

    let number = sub_task.path.trim_end_matches('/').rsplit('/').next().expect("a number").to_owned();
    let path = format!("/tasks/{number}/output/");
    let whole = shop.api().download(&path, None).await.expect_bytes(200);
    assert!(String::from_utf8_lossy(&whole) == output.text, "the download is another text");
    assert!(whole[begin..].starts_with(&kept), "the download has other bytes");
    assert!(whole.windows(4).rev().any(|window| window == b": \xff\xfe"), "bytes that are no text are unchanged");
    for from in [1, whole.len() / 3, whole.len() - 1] {
        let part = shop.api().download(&path, Some(from)).await.expect_bytes(206);
        assert!(part == whole[from..], "from {from}: {} bytes", part.len());
    }
    let records = shop.api().download(&format!("{path}?format=json&host=web-1"), None).await.expect_bytes(200);
    let records = String::from_utf8(records).expect("JSON is text");
    let records: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
    assert!(stdout_of(&records, "web-1").as_bytes().starts_with(&kept), "the records are another text");

    let token = shop.api().token().to_owned();
    let file = shop.folder().join("fetched");
    let name = file.display().to_string();
    fs::write(&file, &whole[..whole.len() / 2]).expect("an unfinished download");
    shop.says(0, &["--token", &token, "logs", "1", "--download", &name]).await;
    assert!(fs::read(&file).expect("the download") == whole, "a resumed download is whole");
    shop.says(0, &["--token", &token, "logs", "1", "--download", &name]).await;
    assert_eq!(fs::metadata(&file).expect("the download").len(), whole.len() as u64);
    let found = shop.says(0, &["--token", &token, "logs", "1", "--grep", "^0999999 =* ", "-E", "-C", "1"]).await;
    let lines: Vec<&str> = found.lines().map(|line| &line[..line.len().min(15)]).collect();
    assert_eq!(lines, ["web-1 | 0999998", "web-1 | 0999999", "web-1 | not UTF"], "{found}");
    shop.says(1, &["--token", &token, "logs", "1", "--grep", "1000000 "]).await;
    let timed = shop.says(0, &["--token", &token, "logs", "1", "--timestamps", "--host", "web-1"]).await;
    assert!(timed.contains(" web-1 = post_exec succeeded"), "{} bytes", timed.len());
}
