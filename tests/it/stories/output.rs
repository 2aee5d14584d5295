//! Output: loud, coloured, and the same for everybody who watches.

use std::fs;

use drover_tests::processes::{Closing, Seen};

use super::*;

/// Writes 100,000 lines, the second half when it is told to, to standard output and to a file.
const LOUD: &str = r#"
import os, sys, time
kept = open("FOLDER/kept", "wb")
def say(numbers):
    lines = ("\x1b[%dm%06d \U0001f600\U00010348 %s\x1b[0m\n" % (31 + n % 7, n, "=" * (n % 23)) for n in numbers)
    data = "".join(lines).encode()
    kept.write(data)
    kept.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
say(range(50000))
while not os.path.exists("FOLDER/go"):
    time.sleep(0.01)
say(range(50000, 100000))
"#;

#[tokio::test]
async fn all_viewers_see_the_same_bytes() {
    let shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    shop.hook("post_exec", "python", &LOUD.replace("FOLDER", &folder)).await;
    let token = shop.api().token().to_owned();

    let sub_task = shop.deploy("v1").await;
    let mut first = Viewer::open(&sub_task.channel, &token).await;
    let mut slow = Viewer::open_slow(&sub_task.channel, &token).await;
    let Seen::Text(beginning_of_slow) = slow.next().await else { panic!("the output is over") };
    let beginning_of_first = first.until("049999 ").await;
    let middle = Viewer::open(&format!("{}?from=0", sub_task.channel), &token).await;
    fs::write(shop.folder().join("go"), "").expect("a file");
    let reading = tokio::spawn(async move {
        let mut middle = middle;
        middle.rest().await
    });
    let (rest, closing) = first.rest().await;
    let whole = beginning_of_first + &rest;
    let finished = Closing { code: 1000, reason: "finished".to_owned() };
    assert_eq!(closing, finished);
    let (middle, closing) = reading.await.expect("the viewer does not panic");
    assert_eq!(closing, finished);
    // The others have everything; the slow one has read a single frame so far.
    assert!(beginning_of_slow.len() < 1_000_000, "a frame has a bound");
    let (rest, closing) = slow.rest().await;
    let slow = beginning_of_slow + &rest;
    assert_eq!(closing, finished);

    let kept = fs::read_to_string(shop.folder().join("kept")).expect("what the hook wrote");
    assert_eq!(kept.lines().count(), 100_000);
    let at = whole.find(&kept).expect("what the hook wrote, in one piece");
    assert!(!whole[..at].contains('\x1b') && !whole[at + kept.len()..].contains('\x1b'), "nothing is doubled");
    // Compared without printing megabytes.
    assert!(middle == whole, "the one who joined in the middle: {} of {} bytes", middle.len(), whole.len());
    assert!(slow == whole, "the slow one: {} of {} bytes", slow.len(), whole.len());

    check_offsets(&shop, &sub_task, &whole).await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(on_host(&detail, "web-1")["output_truncated"], false);
    let shown = text(&detail["output"]);
    assert!(shown.len() < 100_000, "the detail shows a part of long output, not {} bytes", shown.len());
}

/// Going on from an offset, and the records of JSON.
async fn check_offsets(shop: &Shop, sub_task: &SubTask, whole: &str) {
    let middle = whole.len() / 2;
    for wanted in [1, 1000, middle, middle + 1, middle + 2, middle + 3, whole.len() - 1, whole.len()] {
        let resumed = shop.output(sub_task, &format!("?from={wanted}")).await;
        // In the middle of a character the next one begins.
        let at = (wanted..).find(|at| whole.is_char_boundary(*at)).expect("an end");
        assert!(resumed.text == whole[at..], "from {wanted}: {} bytes", resumed.text.len());
        assert_eq!(resumed.closing.reason, "finished");
    }
    let records = shop.output(sub_task, "?format=json").await.records();
    let mut next = 0;
    let mut joined = String::new();
    for record in &records {
        assert_eq!(record["offset"].as_u64(), Some(next), "{record}");
        next = record["next"].as_u64().expect("where the next begins");
        joined.push_str(record["text"].as_str().unwrap_or_default());
    }
    assert_eq!(next, whole.len() as u64);
    assert!(joined == whole, "the records are the text");
    let kept = fs::read_to_string(shop.folder().join("kept")).expect("what the hook wrote");
    assert!(stdout_of(&records, "web-1") == kept, "host and stream of the records");
    let states: Vec<String> =
        records.iter().filter_map(|record| record["event"]["state"].as_str()).map(str::to_owned).collect();
    assert_eq!(states, ["running", "succeeded"].repeat(states.len() / 2), "every step begins and ends");
}

#[tokio::test]
async fn output_beyond_the_limit_is_left_out_loudly() {
    let mut shop = Shop::with_versions(&["web-1"]).await;
    shop.processes.stop_server().await;
    fs::write(shop.processes.config(), "output_limit = \"64K\"\n").expect("a file");
    shop.processes.start_server().await;
    let done = shop.folder().join("done");
    let hook = format!("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo done > '{}'", done.display());
    shop.hook("pre_exec", "bash", &hook).await;
    let sub_task = shop.deploy("v1").await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!((&detail["status"], &on_host(&detail, "web-1")["output_truncated"]), (&json!("finished"), &json!(true)));
    assert!(done.exists(), "the hook went on to its end");
    let told = shop.output(&sub_task, "").await.text;
    assert_eq!(told.matches("output limit of 65536 bytes reached").count(), 1, "{} bytes", told.len());
    assert!((60_000..80_000).contains(&told.len()), "{} bytes", told.len());
}
