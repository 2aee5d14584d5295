//! The artifact store on a real disk.

use super::*;

fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[test]
fn an_artifact_is_found_by_its_digest() {
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(folder.path()).unwrap();
    for _ in 0..2 {
        let mut writer = store.create(11).unwrap();
        writer.write_all(b"hello ").unwrap();
        writer.write_all(b"world").unwrap();
        let stored = writer.commit().unwrap();
        assert_eq!(stored, Stored { digest: Digest::of(b"hello world"), size_bytes: 11 });
        assert_eq!(files(folder.path()), 1, "the same bytes are kept once");
    }
    let digest = Digest::of(b"hello world");
    assert!(store.contains(digest));
    let file = store.read(digest).unwrap();
    assert_eq!((file.digest(), file.size_bytes()), (digest, 11));
    assert_eq!(file.read_at(0, 5).unwrap(), "hello");
    assert_eq!(file.read_at(6, 100).unwrap(), "world");
    assert_eq!(file.read_at(11, 1).unwrap(), "");
    assert_eq!(file.read_at(u64::MAX, 1).unwrap(), "");
    assert!(matches!(store.read(Digest::of(b"other")), Err(ArtifactError::Missing(_))));
    assert!(folder.path().join(&digest.to_string()[..2]).join(digest.to_string()).is_file());
}

#[test]
fn what_is_too_large_or_given_up_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(folder.path()).unwrap();
    let mut writer = store.create(4).unwrap();
    writer.write_all(b"four").unwrap();
    let error = ArtifactWriter::explain(writer.write_all(b"!").unwrap_err());
    assert_eq!(error.to_string(), "the artifact is larger than 4 bytes");
    drop(writer);
    assert_eq!(files(folder.path()), 0);
}

#[test]
fn what_a_dead_process_left_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(folder.path()).unwrap();
    let mut kept = store.create(100).unwrap();
    kept.write_all(b"kept").unwrap();
    let kept = kept.commit().unwrap();
    let mut lost = store.create(100).unwrap();
    lost.write_all(b"half").unwrap();
    std::mem::forget(lost);
    assert_eq!(files(folder.path()), 2);
    let store = ArtifactStore::open(folder.path()).unwrap();
    assert_eq!(files(folder.path()), 1);
    assert!(store.contains(kept.digest));
}

#[test]
fn a_file_of_the_wrong_length_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(folder.path()).unwrap();
    let digest = Digest::of(b"whole");
    let path = store.path(digest);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "wh").unwrap();
    let mut writer = store.create(100).unwrap();
    writer.write_all(b"whole").unwrap();
    writer.commit().unwrap();
    assert_eq!(store.read(digest).unwrap().read_at(0, 100).unwrap(), "whole");
}

#[test]
fn what_is_kept_in_reserve_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let room = Arc::new(Room::new(folder.path(), u64::MAX));
    let store = ArtifactStore::open(folder.path()).unwrap().within(room);
    let mut writer = store.create(100).unwrap();
    let error = ArtifactWriter::explain(writer.write_all(b"x").unwrap_err());
    assert!(matches!(error, ArtifactError::Reserved(_)), "{error}");
    assert!(
        error.to_string().contains("are needed on the disk of the data directory, of which 0 KiB are free"),
        "{error}"
    );
    drop(writer);
    assert_eq!(files(folder.path()), 0);
}
