//! Many viewers at a time, some of whom join in the middle, and some who never read.

use std::fs;

use drover_tests::processes::Closing;

use super::*;

/// Writes numbered lines, the second half when it is told to, to standard output and to a file.
const HALVES: &str = r#"
import os, sys, time
kept = open("FOLDER/kept", "wb")
def say(numbers):
    data = "".join("%06d \U0001f600 %s\n" % (n, "=" * (n % 23)) for n in numbers).encode()
    kept.write(data)
    kept.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
say(range(10000))
while not os.path.exists("FOLDER/go"):
    time.sleep(0.01)
say(range(10000, 20000))
"#;

/// Viewers from the beginning, and as many that join at an offset while the output runs.
const VIEWERS: usize = 25;

#[tokio::test]
async fn fifty_viewers_see_the_same_and_who_joins_at_a_live_offset_sees_the_rest() {
    let shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    shop.hook("post_exec", "python", &HALVES.replace("FOLDER", &folder)).await;
    let token = shop.api().token().to_owned();
    let sub_task = shop.deploy("v1").await;
    let mut first = Viewer::open(&sub_task.channel, &token).await;
    let mut watching = Vec::new();
    for _ in 0..VIEWERS {
        let mut viewer = Viewer::open(&sub_task.channel, &token).await;
        watching.push((0, tokio::spawn(async move { viewer.rest().await })));
    }
    let beginning = first.until("009999 ").await;
    for number in 0..VIEWERS {
        // Any place, beyond what there is too; a viewer begins with a whole character.
        let wanted = beginning.len() * (number + 1) / (VIEWERS - 2);
        let at = (wanted..).find(|at| *at >= beginning.len() || beginning.is_char_boundary(*at)).expect("an end");
        let mut viewer = Viewer::open(&format!("{}?from={at}", sub_task.channel), &token).await;
        watching.push((at, tokio::spawn(async move { viewer.rest().await })));
    }
    fs::write(shop.folder().join("go"), "").expect("a file");
    let (rest, closing) = first.rest().await;
    let whole = beginning + &rest;
    let finished = Closing { code: 1000, reason: "finished".to_owned() };
    assert_eq!(closing, finished);
    for (at, viewer) in watching {
        let (seen, closing) = viewer.await.expect("a viewer does not panic");
        assert_eq!(closing, finished, "from {at}");
        let at = (at..).find(|at| *at >= whole.len() || whole.is_char_boundary(*at)).expect("an end");
        // Compared without printing megabytes.
        assert!(seen == whole[at..], "from {at}: {} of {} bytes", seen.len(), whole.len() - at);
    }
    let kept = fs::read_to_string(shop.folder().join("kept")).expect("what the hook wrote");
    assert!(whole.contains(&kept), "the hook's output in one piece");
}

/// Writes this many MiB in large pieces.
const FLOOD: &str = r#"
import sys
piece = (b"." * 1023 + b"\n") * 1024
for number in range(MIB):
    sys.stdout.buffer.write(piece)
sys.stdout.buffer.flush()
"#;
const FLOOD_MIB: usize = 64;
/// What the server may take in addition while the flood passes: far less than it would hold for those who do not read.
const MEMORY_KIB_MAX: u64 = 64 * 1024;

#[tokio::test]
async fn viewers_who_never_read_cost_nobody_anything() {
    let shop = Shop::with_versions(&["web-1"]).await;
    shop.hook("post_exec", "python", &FLOOD.replace("MIB", &FLOOD_MIB.to_string())).await;
    let token = shop.api().token().to_owned();
    let before = shop.processes.server_memory().resident_kib;
    let sub_task = shop.deploy("v1").await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(Viewer::open_slow(&sub_task.channel, &token).await);
    }
    let mut viewer = Viewer::open(&sub_task.channel, &token).await;
    let (seen, closing) = viewer.rest().await;
    assert_eq!(closing.reason, "finished");
    let flood = seen.bytes().filter(|byte| *byte == b'.').count();
    assert!(flood >= FLOOD_MIB * 1023 * 1024, "{flood} bytes of the flood");
    let grown = shop.processes.server_memory().peak_kib.saturating_sub(before);
    assert!(grown < MEMORY_KIB_MAX, "the server took {grown} KiB more");
    // They are still there, and begin to read now.
    for mut late in idle {
        let (text, closing) = late.rest().await;
        assert_eq!(closing.reason, "finished");
        assert!(text == seen, "{} of {} bytes", text.len(), seen.len());
    }
}
