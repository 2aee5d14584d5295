//! Logs that are removed while they are open, and when nobody has them.

use super::*;
use crate::logs::stored;

#[tokio::test]
async fn a_log_that_somebody_has_stays_until_they_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1007).await.unwrap();
    append(&log, 1, 0, &output(b"one\n")).await.unwrap();
    log.finish("finished").await.unwrap();
    let file = folder.path().join("1/1007.log");
    let length = std::fs::metadata(&file).unwrap().len();
    assert_eq!(stored(folder.path()).unwrap(), [(1007, length)].into());

    let reader = log.reader(0, Format::Text);
    let picture = log.reader(0, Format::Raw).until_now();
    assert!(!store.remove(1007).await.unwrap(), "held by three");
    drop(log);
    assert_eq!(drain(reader).await, b"one\n");
    assert!(!store.remove(1007).await.unwrap(), "held by one");
    assert_eq!(drain(picture).await, b"one\n");
    assert!(file.is_file());
    assert!(store.remove(1007).await.unwrap());
    assert!(!file.exists());
    assert!(stored(folder.path()).unwrap().is_empty());
    // What is gone may be removed again, and is empty for whoever opens it.
    assert!(store.remove(1007).await.unwrap());
    assert_eq!(text_now(&store.task(1007).await.unwrap()).await, "");
}

#[tokio::test]
async fn who_opens_a_log_while_it_is_removed_has_all_of_it_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    for round in 1..=200 {
        let log = store.task(round).await.unwrap();
        append(&log, 1, 0, &output(b"all of it\n")).await.unwrap();
        drop(log);
        let opening = {
            let store = store.clone();
            tokio::spawn(async move { text_now(&store.task(round).await.unwrap()).await })
        };
        let removed = store.remove(round).await.unwrap();
        let text = opening.await.unwrap();
        assert!(text == "all of it\n" || (removed && text.is_empty()), "round {round}: {text}");
    }
}

#[tokio::test]
async fn other_files_beside_the_logs_are_none() {
    let folder = tempfile::tempdir().unwrap();
    assert!(stored(&folder.path().join("nothing")).unwrap().is_empty());
    let _store = store(folder.path());
    std::fs::create_dir(folder.path().join("0")).unwrap();
    for name in ["0/x.log", "0/7.txt", "8.log"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    assert!(stored(folder.path()).unwrap().is_empty());
}
