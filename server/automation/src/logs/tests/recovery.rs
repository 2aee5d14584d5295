//! What is left after crashes, doubled and missing bytes, and full disks.

use std::process::Command;

use super::*;
use crate::logs::OpenError;
use crate::logs::chunk::{FILE_HEAD_BYTES, HEADER_BYTES, STORED_BYTES_MAX};

#[tokio::test]
async fn a_torn_end_is_cut_off_wherever_it_tore() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("7/7001.log");
    let (first, second) = (output("begin \u{1f600}".as_bytes()), output(b"the last chunk"));
    let one = store(folder.path());
    let log = one.task(7001).await.unwrap();
    append(&log, 1, 0, &first).await.unwrap();
    let good = std::fs::metadata(&path).unwrap().len();
    append(&log, 1, first.len() as u64, &second).await.unwrap();
    one.close().await;
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        check(folder.path(), cut as u64, (good, whole.len() as u64), &first, &second).await;
        // Pages may also reach the disk out of order, as zeros.
        let mut holed = whole.clone();
        holed[cut..].fill(0);
        std::fs::write(&path, &holed).unwrap();
        check(folder.path(), cut as u64, (good, whole.len() as u64), &first, &second).await;
    }
}

/// Opens what is left, sends again from where the store says, and looks at the text.
async fn check(folder: &Path, cut: u64, (good, whole): (u64, u64), first: &[u8], second: &[u8]) {
    let store = store(folder);
    let log = store.task(7001).await.unwrap();
    let durable = log.durable(1);
    let possible = match cut {
        // A tail of zeros in the file may be what was there anyway.
        cut if cut < good => vec![0, first.len() as u64],
        cut if cut < whole => vec![first.len() as u64],
        _ => vec![(first.len() + second.len()) as u64],
    };
    assert!(possible.contains(&durable), "{durable} of {possible:?} after a cut at {cut}");
    let all = [first, second].concat();
    append(&log, 1, durable, &all[usize::try_from(durable).unwrap()..]).await.unwrap();
    log.finish("succeeded").await.unwrap();
    assert_eq!(text_now(&log).await, "begin \u{1f600}the last chunk", "after a cut at {cut}");
    store.close().await;
}

#[tokio::test]
async fn damage_in_the_middle_is_refused_not_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0/1.log");
    let one = store(folder.path());
    let log = one.task(1).await.unwrap();
    let body = output(&[b'x'; 60_000]);
    for number in 0..120 {
        append(&log, 1, number * body.len() as u64, &body).await.unwrap();
    }
    one.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    let at = usize::try_from(FILE_HEAD_BYTES).unwrap() + HEADER_BYTES + body.len();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let again = store(folder.path());
    assert!(matches!(again.task(1).await, Err(OpenError::Damaged { task_id: 1, at: found }) if found == at as u64));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes.len() as u64);
    std::fs::write(folder.path().join("0/2.log"), "something else that is no log").unwrap();
    assert!(matches!(again.task(2).await, Err(OpenError::Foreign { task_id: 2, .. })));
    assert!(matches!(again.task(-1).await, Err(OpenError::NoTask(-1))));
}

/// As a child of a killed server does that was just being started.
#[test]
fn a_lock_that_is_held_a_moment_longer_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let held = std::fs::File::create(folder.path().join("lock")).unwrap();
    held.lock().unwrap();
    let begun = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            begun.wait();
            LogStore::open(folder.path(), Options::default())
        });
        begun.wait();
        held.unlock().unwrap();
        opening.join().unwrap().unwrap();
    });
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let one = store(folder.path());
    assert!(matches!(LogStore::open(folder.path(), Options::default()), Err(OpenError::InUse(_))));
    let log = one.task(12).await.unwrap();
    assert_eq!(append(&log, 1, 0, &output(b"one ")).await, Ok(20));
    assert_eq!(append(&log, 2, 0, &output(b"two ")).await, Ok(20));
    assert_eq!(append(&log, 1, 20, &output(b"three")).await, Ok(41));
    log.notice(0, "end", 1).await.unwrap();
    log.finish("succeeded").await.unwrap();
    one.close().await;
    assert_eq!(append(&log, 1, 41, &output(b"late")).await, Err(AppendError::Closed));

    let two = store(folder.path());
    let log = two.task(12).await.unwrap();
    assert_eq!((log.durable(0), log.durable(1), log.durable(2), log.durable(3)), (20, 41, 20, 0));
    assert_eq!(log.text_length(), 17);
    assert_eq!(log.final_state().as_deref(), Some("succeeded"));
    let mut reader = log.reader(4, Format::Text);
    assert_eq!(reader.next_frame().await.unwrap().unwrap().into_text(), "two threeend\n");
    assert_eq!(reader.next_frame().await.unwrap(), None);
    assert_eq!(reader.final_state(), Some("succeeded"));
    assert_eq!(append(&log, 1, 0, &output(b"one ")).await, Ok(41), "what comes twice does not open the log again");
    let length = std::fs::metadata(folder.path().join("0/12.log")).unwrap().len();
    assert_eq!(log.finish("succeeded").await, Ok(()));
    assert_eq!(log.final_state().as_deref(), Some("succeeded"));
    assert_eq!(std::fs::metadata(folder.path().join("0/12.log")).unwrap().len(), length, "one mark says it");
}

#[tokio::test]
async fn what_comes_twice_is_stored_once_and_a_gap_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    let pieces: Vec<Vec<u8>> = (0..6).map(|number| output(format!("piece {number}\n").as_bytes())).collect();
    let size = pieces[0].len() as u64;
    let span = |from: usize, to: usize| pieces[from..to].concat();
    assert_eq!(append(&log, 1, 0, &span(0, 2)).await, Ok(2 * size));
    assert_eq!(append(&log, 1, 0, &span(0, 2)).await, Ok(2 * size));
    assert_eq!(append(&log, 1, 3 * size, &span(3, 4)).await, Err(AppendError::Gap { durable: 2 * size }));
    assert_eq!(append(&log, 1, size, &span(1, 4)).await, Ok(4 * size));
    let raw = span(3, 6);
    let small = zstd::bulk::compress(&raw, 1).unwrap();
    let length = u32::try_from(raw.len()).unwrap();
    assert_eq!(log.append(1, 3 * size, 1, length, small.into()).await.unwrap().durable, 6 * size);
    let crooked = AppendError::Malformed("its records do not join those that are stored");
    assert_eq!(append(&log, 1, 6 * size - 3, &output(b"crooked")).await, Err(crooked));
    assert_eq!(text_now(&log).await, (0..6).map(|number| format!("piece {number}\n")).collect::<String>());
}

#[tokio::test]
async fn nonsense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    let good = output(b"good");
    let bomb = zstd::bulk::compress(&vec![0; 100 * 1024 * 1024], 1).unwrap();
    let cases: [(u16, usize, Vec<u8>, &str); 8] = [
        (0, good.len(), good[..good.len() - 1].to_vec(), "its length is not the one announced"),
        (0, good.len() - 1, good[..good.len() - 1].to_vec(), "it ends inside a record"),
        (0, 20, vec![9; 20], "unknown stream"),
        (1, good.len(), good.clone(), "it does not decompress"),
        (1, 1000, bomb.clone(), "its length is not the one announced"),
        (1, 100 * 1024 * 1024, bomb, "it is longer than a chunk may be"),
        (2, good.len(), good.clone(), "it has unknown flags"),
        (0, STORED_BYTES_MAX + 1, vec![0; STORED_BYTES_MAX + 1], "it is longer than a chunk may be"),
    ];
    for (flags, length, body, reason) in cases {
        let length = u32::try_from(length).unwrap();
        let outcome = log.append(1, 0, flags, length, body.into()).await;
        assert_eq!(outcome.unwrap_err(), AppendError::Malformed(reason));
    }
    assert!(matches!(append(&log, 1, u64::MAX - 3, &good).await, Err(AppendError::Gap { durable: 0 })));
    assert!(!folder.path().join("0/1.log").exists(), "nothing was stored");
    assert_eq!(append(&log, 1, 0, &good).await, Ok(good.len() as u64));
}

#[tokio::test]
async fn idle_logs_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let store = LogStore::open(folder.path(), Options { idle_open_max: 3, ..Options::default() }).unwrap();
    let held = store.task(0).await.unwrap();
    for task_id in 0..40 {
        store.task(task_id).await.unwrap().notice(0, "hello", 1).await.unwrap();
    }
    let (alive, known) = {
        let open = crate::logs::lock(&store.shared.open);
        (open.logs.values().filter(|log| log.strong_count() > 0).count(), open.logs.len())
    };
    assert!(alive <= 4 && known <= 8, "{alive} alive of {known}");
    held.notice(0, "still here", 2).await.unwrap();
    assert_eq!(text_now(&store.task(0).await.unwrap()).await, "hello\nstill here\n");
    assert_eq!(text_now(&store.task(17).await.unwrap()).await, "hello\n");
}

const FULL_FOLDER: &str = "DROVER_TEST_FULL_FOLDER";

/// A file size limit stands for the full disk. It holds for a whole process, so the test runs itself in another one,
/// in which the signal that comes with the limit is ignored.
#[test]
fn a_full_disk_is_told_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    let name = "logs::tests::recovery::inside_a_process_with_a_limit";
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(FULL_FOLDER, folder.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&status.stdout).into_owned() + &String::from_utf8_lossy(&status.stderr);
    assert!(status.status.success() && shown.contains("1 passed"), "{shown}");
    assert!(folder.path().join("reached").exists(), "the inner test did its work: {shown}");
}

/// Does its work only when started by the test above.
#[tokio::test]
async fn inside_a_process_with_a_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Some(folder) = std::env::var_os(FULL_FOLDER) else { return };
    let folder = Path::new(&folder);
    let store = store(folder);
    let log = store.task(1).await.unwrap();
    let body = output(&[b'x'; 10_000]);
    let size = body.len() as u64;
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 25_000, hard).unwrap();
    assert_eq!(append(&log, 1, 0, &body).await, Ok(size));
    assert_eq!(append(&log, 1, size, &body).await, Ok(2 * size));
    let good = std::fs::metadata(folder.join("0/1.log")).unwrap().len();
    let mut reader = log.reader(20_000, Format::Text);
    assert_eq!(append(&log, 1, 2 * size, &body).await, Err(AppendError::Full));
    assert!(store.is_full());
    assert_eq!(std::fs::metadata(folder.join("0/1.log")).unwrap().len(), good, "the half of it is cut off");
    assert_eq!(log.durable(1), 2 * size);
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    assert_eq!(append(&log, 1, 2 * size, &body).await, Ok(3 * size));
    assert!(!store.is_full());
    assert_eq!(reader.next_frame().await.unwrap().unwrap().bytes, vec![b'x'; 10_000]);
    std::fs::write(folder.join("reached"), "").unwrap();
}
