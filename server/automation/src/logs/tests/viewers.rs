//! What viewers see.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::*;
use crate::logs::Sources;

/// Lines as programs print them: colours, characters of one to four bytes.
fn line(number: usize) -> String {
    let tail = ["plain", "é", "€uro", "\u{1f600}\u{1f680}", "\u{10ffff}"][number % 5];
    format!("\u{1b}[3{}m{number:06}\u{1b}[0m {tail} {}\n", number % 8, "x".repeat(number % 40))
}

/// Two sources of 50,000 lines each, cut anywhere into records and chunks, in the order of arrival.
fn chunks() -> Vec<(u32, u64, Vec<u8>)> {
    let mut dice = Dice(0x5eed_1234_5678_9abc);
    let mut left = [1u32, 2].map(|source| {
        let whole: String = (0..50_000).map(|number| line(number * 2 + source as usize)).collect();
        (source, 0u64, whole.into_bytes())
    });
    let mut chunks = Vec::new();
    while left.iter().any(|(_, _, rest)| !rest.is_empty()) {
        let (source, offset, rest) = &mut left[usize::from(dice.roll(2) == 1)];
        let mut raw = Vec::new();
        for _ in 0..=dice.roll(4) {
            let longest = if dice.roll(20) == 0 { 60_000 } else { 3000 };
            let cut = rest.len().min(1 + usize::try_from(dice.roll(longest)).unwrap());
            raw.extend(output(&rest[..cut]));
            rest.drain(..cut);
        }
        chunks.push((*source, *offset, raw.clone()));
        *offset += raw.len() as u64;
    }
    chunks
}

/// What a viewer must see, reckoned in another way: each source shows what is valid so far of what it has sent.
fn expected(chunks: &[(u32, u64, Vec<u8>)]) -> (Vec<u8>, String) {
    let (mut raw, mut text) = (Vec::new(), String::new());
    let mut waiting = [Vec::new(), Vec::new(), Vec::new()];
    for (source, _, chunk) in chunks {
        for record in drover_shared::record::records(chunk) {
            let payload = record.unwrap().payload;
            raw.extend_from_slice(payload);
            let bytes = &mut waiting[*source as usize];
            bytes.extend_from_slice(payload);
            let valid = match std::str::from_utf8(bytes) {
                Ok(all) => all.len(),
                Err(error) => error.valid_up_to(),
            };
            text.push_str(std::str::from_utf8(&bytes[..valid]).unwrap());
            bytes.drain(..valid);
        }
    }
    assert!(waiting.iter().all(Vec::is_empty));
    (raw, text)
}

#[tokio::test]
async fn three_viewers_see_every_byte_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(4321).await.unwrap();
    let chunks = chunks();
    let (raw, text) = expected(&chunks);
    let half = chunks.len() / 2;

    let first = tokio::spawn(drain(log.reader(0, Format::Text)));
    let unchanged = tokio::spawn(drain(log.reader(0, Format::Raw)));
    let mut slow = log.reader(0, Format::Text);
    let mut slow_text = slow.next_frame().await_while(feed(&log, &chunks[..half])).await;
    let so_far = log.text_length();
    let middle = tokio::spawn(drain(log.reader(so_far / 2, Format::Raw)));
    let late = tokio::spawn(drain(log.reader(so_far, Format::Raw)));
    feed(&log, &chunks[half..]).await;
    log.finish("succeeded").await.unwrap();
    let mut frames = 1;
    while let Some(frame) = slow.next_frame().await.unwrap() {
        slow_text.push_str(&frame.into_text());
        frames += 1;
    }
    assert!(slow_text == text, "the slow viewer sees something else");
    assert!(frames < text.len() / 30_000, "a viewer that lags gets few frames, not {frames}");
    assert_eq!(slow.final_state(), Some("succeeded"));
    assert!(first.await.unwrap() == text.as_bytes(), "the first viewer sees something else");
    assert!(unchanged.await.unwrap() == raw, "the download differs");
    let from = |offset: u64| &raw[usize::try_from(offset).unwrap()..];
    assert!(middle.await.unwrap() == from(so_far / 2), "who joins in the middle sees something else");
    assert!(late.await.unwrap() == from(so_far), "who joins at the end sees something else");
    assert!(text_now(&log).await == text, "who comes afterwards sees something else");
    store.close().await;
}

async fn feed(log: &TaskLog, chunks: &[(u32, u64, Vec<u8>)]) {
    let mut pending = Vec::new();
    for (index, (source, offset, raw)) in chunks.iter().enumerate() {
        let small = zstd::bulk::compress(raw, 1).unwrap();
        let (flags, body) = if index % 3 == 0 { (0, raw.clone()) } else { (1, small) };
        let length = u32::try_from(raw.len()).unwrap();
        pending.push(log.enqueue(*source, *offset, flags, length, body.into()).await.unwrap());
        if index % 5 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for pending in pending {
        pending.done().await.unwrap();
    }
}

/// Feeds while the first frame is awaited, and gives that frame's text.
trait AwaitWhile {
    async fn await_while(self, feed: impl Future<Output = ()>) -> String;
}

impl<F: Future<Output = Result<Option<crate::logs::Frame>, crate::logs::ReadError>>> AwaitWhile for F {
    async fn await_while(self, feed: impl Future<Output = ()>) -> String {
        let (frame, ()) = tokio::join!(self, feed);
        frame.unwrap().unwrap().into_text()
    }
}

#[tokio::test]
async fn every_place_to_begin_shows_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    let text = "a\u{1f600}é€z";
    let mut offset = 0;
    for byte in text.as_bytes() {
        offset = append(&log, 1, offset, &output(&[*byte])).await.unwrap();
    }
    log.finish("succeeded").await.unwrap();
    for from in 0..=text.len() {
        let boundary = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap();
        let seen = drain(log.reader(from as u64, Format::Text)).await;
        assert_eq!(String::from_utf8(seen).unwrap(), text[boundary..], "from {from}");
        let seen = drain(log.reader(from as u64, Format::Raw)).await;
        assert_eq!(seen, &text.as_bytes()[from..], "from {from}");
    }
    for to in 0..=text.len() {
        let seen = drain(log.reader(1, Format::Raw).until(to as u64)).await;
        assert_eq!(seen, &text.as_bytes()[1.min(to)..to], "until {to}");
    }
}

#[tokio::test]
async fn a_reader_goes_on_where_another_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    let chunks: Vec<_> = chunks().into_iter().take(60).collect();
    feed(&log, &chunks).await;
    let whole = drain(log.reader(0, json_format()).until_now()).await;
    let whole = String::from_utf8(whole).unwrap();
    let texts = |lines: &str| -> String {
        let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.map(|record| record["text"].as_str().unwrap().to_owned()).collect()
    };
    for line in whole.lines().step_by(7) {
        let next = serde_json::from_str::<Value>(line).unwrap()["next"].as_u64().unwrap();
        let first: String = drain_text(log.reader(0, json_format()).until(next).until_now()).await;
        let rest: String = drain_text(log.reader(next, json_format()).until_now()).await;
        assert_eq!(texts(&first) + &texts(&rest), texts(&whole), "cut at {next}");
    }
}

async fn drain_text(reader: LogReader) -> String {
    String::from_utf8(drain(reader).await).unwrap()
}

fn json_format() -> Format {
    Format::Json(Arc::new(|source| {
        let members = json!({ "host": format!("web-{source}") });
        members.as_object().cloned()
    }))
}

#[tokio::test]
async fn json_names_who_said_what() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    log.notice(0, "fetching", 5).await.unwrap();
    let event = record(1, Stream::Event, br#"{"step":"restart", "state":"running"}"#);
    let offset = append(&log, 2, 0, &event).await.unwrap();
    let offset = append(&log, 2, offset, &record(1, Stream::Error, b"oh \xff\n")).await.unwrap();
    append(&log, 2, offset, &record(1, Stream::Output, b"half \xf0\x9f")).await.unwrap();
    log.finish("failed").await.unwrap();
    let lines = drain_text(log.reader(0, json_format())).await;
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = json!([
        {"host":"web-0","source":0,"step":0,"stream":"notice","time":5,"offset":0,"next":9,"text":"fetching\n"},
        {"host":"web-2","source":2,"step":1,"stream":"event","time":7,"offset":9,"next":9,
         "event":{"step":"restart","state":"running"}},
        {"host":"web-2","source":2,"step":1,"stream":"stderr","time":7,"offset":9,"next":14,"text":"oh \u{fffd}\n"},
        {"host":"web-2","source":2,"step":1,"stream":"stdout","time":7,"offset":14,"next":21,"text":"half "},
        {"host":"web-2","source":2,"step":1,"stream":"stdout","time":7,"offset":21,"next":21,"text":"\u{fffd}"},
    ]);
    assert_eq!(Value::Array(records), expected);
    assert_eq!(text_now(&log).await, "fetching\noh \u{fffd}\nhalf \u{fffd}");
    assert_eq!(drain(log.reader(0, Format::Raw).only(Sources::these([2]))).await, b"oh \xff\nhalf \xf0\x9f");
    assert_eq!(drain_text(log.reader(10, Format::Text).only(Sources::these([0]))).await, "");
}

#[tokio::test]
async fn an_unknown_source_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let describe = move |_| {
        let known = counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0;
        known.then(Map::new)
    };
    for number in 0..4 {
        log.notice(0, "line", number).await.unwrap();
    }
    drain(log.reader(0, Format::Json(Arc::new(describe))).until_now()).await;
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_long_text_is_shown_with_its_middle_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    assert_eq!(log.text(10).await.unwrap().to_string(), "");
    append(&log, 1, 0, &output(b"0123456789")).await.unwrap();
    assert_eq!(log.text(10).await.unwrap().to_string(), "0123456789");
    assert_eq!(log.text(5).await.unwrap().to_string(), "012\n[5 bytes left out]\n89");
}

#[tokio::test]
async fn a_viewer_that_is_cancelled_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    let mut reader = log.reader(0, Format::Text);
    let mut seen = String::new();
    for number in 0..50 {
        // Polled once without anything to read, then dropped.
        assert!(futures_util::FutureExt::now_or_never(reader.next_frame()).is_none());
        log.notice(0, &number.to_string(), number).await.unwrap();
        seen.push_str(&reader.next_frame().await.unwrap().unwrap().into_text());
    }
    assert_eq!(seen, (0..50).map(|number| format!("{number}\n")).collect::<String>());
}
