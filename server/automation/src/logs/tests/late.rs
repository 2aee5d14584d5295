//! Output that comes after the end mark, from a host that was thought lost.

use super::*;

/// A log that ended as `lost`, got more, and ended anew.
async fn late_log(store: &LogStore, last: Option<&str>) -> TaskLog {
    let log = store.task(1).await.unwrap();
    append(&log, 1, 0, &output("half \u{1f600}".as_bytes().split_last().unwrap().1)).await.unwrap();
    append(&log, 2, 0, &output(b"other\n")).await.unwrap();
    log.finish("lost").await.unwrap();
    let offset = log.durable(1);
    append(&log, 1, offset, &output(b"\x80late\n")).await.unwrap();
    if let Some(state) = last {
        log.finish(state).await.unwrap();
    }
    log
}

const WHOLE: &str = "half other\n\u{1f600}late\n";

async fn read(mut reader: LogReader) -> (String, Option<String>) {
    let mut text = String::new();
    while let Some(frame) = reader.next_frame().await.unwrap() {
        text.push_str(&frame.into_text());
    }
    (text, reader.final_state().map(str::to_owned))
}

#[tokio::test]
async fn a_log_that_got_more_is_shown_whole_and_its_newest_mark_counts() {
    let folder = tempfile::tempdir().unwrap();
    let one = store(folder.path());
    let log = late_log(&one, Some("succeeded")).await;
    assert_eq!(read(log.reader(0, Format::Text)).await, (WHOLE.to_owned(), Some("succeeded".to_owned())));
    drop(log);
    one.close().await;
    let two = store(folder.path());
    let log = two.task(1).await.unwrap();
    assert_eq!(log.final_state().as_deref(), Some("succeeded"));
    assert_eq!(read(log.reader(0, Format::Text)).await, (WHOLE.to_owned(), Some("succeeded".to_owned())));
    assert_eq!(read(log.reader(5, Format::Raw)).await.1.as_deref(), Some("succeeded"));
    let length = WHOLE.len() as u64;
    assert_eq!(log.text_length(), length);
    assert_eq!(read(log.reader(length - 5, Format::Text)).await, ("late\n".to_owned(), Some("succeeded".to_owned())));
    assert_eq!(read(log.reader(length, Format::Text)).await, (String::new(), Some("succeeded".to_owned())));
    assert_eq!(read(log.reader(length, Format::Text).until_now()).await.1.as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn viewers_wait_for_the_new_mark() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = late_log(&store, None).await;
    assert_eq!(log.final_state(), None, "late output opened it again");
    assert_eq!(read(log.reader(0, Format::Text).until_now()).await, (WHOLE.to_owned(), None));
    let early = tokio::spawn(read(log.reader(0, Format::Text)));
    let middle = tokio::spawn(read(log.reader(11, Format::Raw)));
    let offset = log.durable(2);
    append(&log, 2, offset, &output(b"more\n")).await.unwrap();
    log.finish("failed").await.unwrap();
    let whole = format!("{WHOLE}more\n");
    assert_eq!(early.await.unwrap(), (whole.clone(), Some("failed".to_owned())));
    assert_eq!(middle.await.unwrap().1.as_deref(), Some("failed"));
    log.finish("succeeded").await.unwrap();
    assert_eq!(read(log.reader(0, Format::Text)).await, (whole, Some("succeeded".to_owned())), "a state is corrected");
}

#[tokio::test]
async fn a_crash_between_late_output_and_its_mark_leaves_both_readable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0/1.log");
    let one = store(folder.path());
    late_log(&one, None).await;
    one.close().await;
    let whole = std::fs::read(&path).unwrap();
    let mut states = std::collections::BTreeSet::new();
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let store = store(folder.path());
        let log = store.task(1).await.unwrap();
        let state = log.final_state();
        assert!(state.is_none() || log.durable(1) < 30, "a mark with more behind it is no end");
        let text = text_now(&log).await;
        let begun = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        assert!(WHOLE.starts_with(begun), "{text:?} after a cut at {cut}");
        states.insert((state.map(|state| state.to_string()), log.text_length()));
        store.close().await;
    }
    let lost = Some("lost".to_owned());
    let expected = [(None, 0), (None, 8), (None, 14), (None, 20), (lost, 14)];
    assert_eq!(states.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn marks_and_late_output_may_share_a_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    for round in 0..20u64 {
        let piece = output(format!("round {round:02}\n").as_bytes());
        let offset = log.durable(1);
        let (first, appended, second) =
            tokio::join!(log.finish("lost"), append(&log, 1, offset, &piece), log.finish("succeeded"));
        first.unwrap();
        second.unwrap();
        assert_eq!(appended.unwrap(), (round + 1) * piece.len() as u64);
        assert_eq!(log.final_state().as_deref(), Some("succeeded"));
    }
    let text: String = (0..20).map(|round| format!("round {round:02}\n")).collect();
    assert_eq!(read(log.reader(0, Format::Text)).await, (text, Some("succeeded".to_owned())));
}
